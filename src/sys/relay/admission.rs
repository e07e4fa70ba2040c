//! Whom a relay serves.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ident::NodePublic;

/// How long the coordinator may take to answer.
const ASK_TIME: Duration = Duration::from_secs(5);
/// Nodes whose last answer is remembered, for when the coordinator is away.
const MAX_REMEMBERED: usize = 16 * 1024;
/// The longest answer that is read.
const MAX_ANSWER: usize = 4096;
/// Bytes of a list of nodes.
const MAX_LIST: u64 = 8 << 20;

/// Whom a relay serves.
#[derive(Clone)]
pub enum Admission {
    /// Whoever comes. Anybody can use the relay then.
    Anyone,
    /// The nodes in a file, a key a line; `#` starts a comment. It is read each time: a change needs no restart.
    List(PathBuf),
    /// Whom the coordinator at this address knows (`POST {"NodePublic":..}`, answered by `{"Allow":..}`). While it is away, whoever it
    /// allowed before.
    Ask(Asked),
    /// Whom the coordinator in this process knows.
    Local(Known),
}

/// Whether the coordinator in this process knows a node.
pub type Known = Arc<dyn Fn(&NodePublic) -> bool + Send + Sync>;

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("Anyone"),
            Self::List(path) => f.debug_tuple("List").field(path).finish(),
            Self::Ask(asked) => f.debug_tuple("Ask").field(&asked.url).finish(),
            Self::Local(_) => f.write_str("Local"),
        }
    }
}

/// A coordinator to ask.
#[derive(Debug, Clone)]
pub struct Asked {
    url: reqwest::Url,
    client: reqwest::Client,
    allowed: Arc<Mutex<HashMap<NodePublic, ()>>>,
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
    /// Asks at this address, `http(s)://HOST[:PORT]/verify`.
    ///
    /// # Errors
    /// It is no such address, or the client cannot be made.
    pub fn new(url: &str) -> Result<Self, String> {
        let url: reqwest::Url = url.parse().map_err(|e| format!("{url} is not a URL: {e}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("{url} is not an http(s) address"));
        }
        let builder =
            rustls::ClientConfig::builder_with_provider(crate::sys::certificate::provider()).with_safe_default_protocol_versions();
        let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
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

    async fn allows(&self, node: NodePublic, source: IpAddr) -> bool {
        let answer = self.ask(node, source).await;
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(true) => {
                if allowed.len() < MAX_REMEMBERED {
                    allowed.insert(node, ());
                }
                true
            }
            Ok(false) => {
                allowed.remove(&node);
                false
            }
            Err(error) => {
                let known = allowed.contains_key(&node);
                tracing::warn!(url = %self.url, %error, known, "the coordinator does not say whom to serve: whoever it allowed before is served");
                known
            }
        }
    }
}

impl Admission {
    /// Whether a node is served.
    pub(super) async fn allows(&self, node: NodePublic, source: IpAddr) -> bool {
        match self {
            Self::Anyone => true,
            Self::Local(known) => known(&node),
            Self::Ask(asked) => asked.allows(node, source).await,
            Self::List(path) => match listed(path) {
                Ok(nodes) => nodes.contains(&node),
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "the list of nodes does not read: nobody is served");
                    false
                }
            },
        }
    }
}

/// The nodes in a file.
///
/// # Errors
/// It cannot be read, or holds something else.
pub fn listed(path: &std::path::Path) -> std::io::Result<Vec<NodePublic>> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_LIST).read_to_string(&mut text)?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|line| !line.is_empty());
    let failed =
        |line: &str| std::io::Error::other(format!("`{}` is not a node key", line.chars().take(80).collect::<String>().escape_debug()));
    lines.map(|line| line.parse().map_err(|_| failed(line))).collect()
}
