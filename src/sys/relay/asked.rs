//! Asking a coordinator whom to serve, and remembering what it said for when it is away.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::admission::listed;
use crate::ident::NodePublic;
use crate::sys::dial::roots;
use crate::sys::files::write_whole;

/// How long the coordinator may take to answer.
const ASK_TIME: Duration = Duration::from_secs(5);
/// Nodes whose last answer is remembered.
const MAX_REMEMBERED: usize = 16 * 1024;
/// The longest answer that is read.
const MAX_ANSWER: usize = 4096;

/// A coordinator to ask.
#[derive(Debug, Clone)]
pub struct Asked {
    url: reqwest::Url,
    client: reqwest::Client,
    allowed: Arc<Mutex<Allowed>>,
}

/// The nodes it allowed when it was asked last, and where they are kept: a relay that starts while the coordinator is away serves them.
#[derive(Debug, Default)]
struct Allowed {
    nodes: BTreeSet<NodePublic>,
    file: Option<PathBuf>,
}

impl Allowed {
    /// A file that does not read is as good as none: it is made anew from the coordinator's answers.
    fn kept(file: PathBuf) -> Self {
        let nodes = match listed(&file) {
            Ok(nodes) => nodes.into_iter().take(MAX_REMEMBERED).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "whom the coordinator allowed before does not read");
                BTreeSet::new()
            }
        };
        Self { nodes, file: Some(file) }
    }

    fn note(&mut self, node: NodePublic, allow: bool) {
        let changed = if allow { self.nodes.len() < MAX_REMEMBERED && self.nodes.insert(node) } else { self.nodes.remove(&node) };
        let Some(file) = self.file.as_ref().filter(|_| changed) else { return };
        let lines: String = self.nodes.iter().map(|node| format!("{node}\n")).collect();
        if let Err(error) = write_whole(file, lines.as_bytes()) {
            tracing::warn!(file = %file.display(), %error, "whom the coordinator allows is not kept");
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Question {
    node_public: NodePublic,
    source: IpAddr,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Verdict {
    allow: bool,
}

impl Asked {
    /// Asks at this address, `http(s)://HOST[:PORT]/verify`, and trusts the authority in `ca` beside the usual ones.
    ///
    /// # Errors
    /// It is no such address, the authority does not read, or the client cannot be made.
    pub fn new(url: &str, ca: Option<&Path>) -> Result<Self, String> {
        let url: reqwest::Url = url.parse().map_err(|e| format!("{url} is not a URL: {e}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("{url} is not an http(s) address"));
        }
        let builder =
            rustls::ClientConfig::builder_with_provider(crate::sys::certificate::provider()).with_safe_default_protocol_versions();
        let roots = roots(ca).map_err(|e| e.to_string())?;
        let tls = builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("pvemesh/", env!("CARGO_PKG_VERSION")))
            .timeout(ASK_TIME)
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Self { url, client, allowed: Arc::default() })
    }

    /// Keeps the answers in a file, and begins with those it holds.
    #[must_use]
    pub fn keeping(self, file: PathBuf) -> Self {
        Self { allowed: Arc::new(Mutex::new(Allowed::kept(file))), ..self }
    }

    async fn ask(&self, node: NodePublic, source: IpAddr) -> Result<bool, String> {
        let body = serde_json::to_vec(&Question { node_public: node, source }).map_err(|e| e.to_string())?;
        let mut response = self
            .client
            .post(self.url.clone())
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .send()
            .await
            .map_err(|e| e.to_string())?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status()));
        }
        let mut answer = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| e.to_string())? {
            answer.extend_from_slice(&piece);
            if answer.len() > MAX_ANSWER {
                return Err("its answer is too long".to_owned());
            }
        }
        crate::wire::control::json::from_slice::<Verdict>(&answer).map(|verdict| verdict.allow).map_err(|e| e.to_string())
    }

    pub(super) async fn allows(&self, node: NodePublic, source: IpAddr) -> bool {
        let answer = self.ask(node, source).await;
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(allow) => {
                allowed.note(node, allow);
                allow
            }
            Err(error) => {
                let known = allowed.nodes.contains(&node);
                tracing::warn!(url = %self.url, %error, known, "the coordinator does not say whom to serve: whoever it allowed before is served");
                known
            }
        }
    }

    /// Where it asks.
    pub(super) fn url(&self) -> &str {
        self.url.as_str()
    }
}
