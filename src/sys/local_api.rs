//! The running node's local interface: HTTP/1 with JSON on a unix socket that only its owner can open.
//!
//! | method, path | request | reply |
//! |---|---|---|
//! | `GET /v1/status` | - | [`Status`] |
//! | `GET /v1/prefs`, `PATCH /v1/prefs` | -, [`PrefsChange`] | [`Prefs`] |
//! | `GET /v1/dns` | - | [`DnsStatus`] |
//! | `POST /v1/query` | [`Query`] | [`NameAnswer`] |
//! | `POST /v1/netcheck` | `{}` | [`NetworkReport`] |
//! | `POST /v1/ping` | [`PingRequest`] | [`PingReply`] or `null` |
//! | `POST /v1/up` | [`Up`] | [`Status`] |
//! | `POST /v1/down`, `POST /v1/logout`, `POST /v1/stop` | `{}` | [`Status`] |
//!
//! Errors come with status 4xx or 5xx and a [`Refused`]: `{"error": text, "next": text}`.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::ident::Secret;
use crate::node::{DnsStatus, NameAnswer, NetworkReport, PingReply, Prefs, PrefsChange, RecordType, Status};
use crate::wire::control::PingKind;

/// Where the socket is unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/pvemesh/node.sock";

const MAX_REQUEST: usize = 64 * 1024;
const MAX_REPLY: usize = 64 * 1024 * 1024;
const REPLY_LIMIT: Duration = Duration::from_secs(45);

/// Switches the node on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Up {
    /// Changes of preferences made with it.
    #[serde(default)]
    pub change: PrefsChange,
    /// A join key for a coordinator that does not know the node yet; a node that is in keeps it for the renewal of its own key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_key: Option<Secret>,
    /// Ask to be let in again, with a new node key.
    #[serde(default)]
    pub force_reauth: bool,
}

/// Asks what a name or an address means.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// A name, complete or of one label, or an address.
    pub name: String,
    /// What is wanted of it.
    #[serde(rename = "type")]
    pub kind: RecordType,
}

/// Asks for a ping.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PingRequest {
    /// How.
    #[serde(rename = "type", default)]
    pub kind: PingKind,
    /// An address of the node's; with TSMP also one behind it.
    pub address: IpAddr,
}

/// What is asked of the node's process.
#[derive(Debug)]
pub enum Request {
    /// Its state.
    Status,
    /// Its preferences.
    Prefs,
    /// Other preferences.
    Set(PrefsChange),
    /// What the coordinator says of names.
    Dns,
    /// What a name means.
    Query(Query),
    /// What the network around it is like, checked now.
    Netcheck,
    /// A ping of a peer.
    Ping(PingRequest),
    /// Take part.
    Up(Box<Up>),
    /// Take no part until told otherwise.
    Down,
    /// Give the node up at the coordinator and forget its keys.
    LogOut,
    /// End the process.
    Stop,
}

/// What it answers.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// Its state.
    Status(Box<Status>),
    /// Its preferences.
    Prefs(Box<Prefs>),
    /// What the coordinator says of names.
    Dns(Box<DnsStatus>),
    /// What a name means.
    Name(Box<NameAnswer>),
    /// What the network is like.
    Network(Box<NetworkReport>),
    /// What came of a ping; nothing if no answer came.
    Pong(Option<PingReply>),
}

/// A request, and where its answer goes.
pub type Asked = (Request, oneshot::Sender<Result<Reply, Refused>>);

/// Why the node's process does not do what it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// What happened.
    pub error: String,
    /// What the user may do, where more can be said than that the error is to be corrected; else empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next: String,
}

impl From<String> for Refused {
    fn from(error: String) -> Self {
        Self { error, next: String::new() }
    }
}

impl From<&str> for Refused {
    fn from(error: &str) -> Self {
        error.to_owned().into()
    }
}

/// The listening socket; removed when dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Server {
    /// Listens; what is asked goes to `asked`. A socket that a killed process left behind is replaced: whoever calls holds the lock that
    /// says there is no other.
    ///
    /// # Errors
    /// The socket cannot be made, or something else has its name.
    pub fn listen(path: &Path, asked: mpsc::Sender<Asked>) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket has this name")),
            Err(_) => {}
        }
        // The mode has to be right from the first moment on, so it is the mask that sets it.
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(mask);
        let routes = Router::new()
            .route("/v1/status", get(|state| ask(state, Request::Status)))
            .route("/v1/prefs", get(|state| ask(state, Request::Prefs)).patch(|state, Json(change)| ask(state, Request::Set(change))))
            .route("/v1/dns", get(|state| ask(state, Request::Dns)))
            .route("/v1/query", post(|state, Json(query)| ask(state, Request::Query(query))))
            .route("/v1/netcheck", post(|state| ask(state, Request::Netcheck)))
            .route("/v1/ping", post(|state, Json(ping)| ask(state, Request::Ping(ping))))
            .route("/v1/up", post(|state, Json(up)| ask(state, Request::Up(Box::new(up)))))
            .route("/v1/down", post(|state| ask(state, Request::Down)))
            .route("/v1/logout", post(|state| ask(state, Request::LogOut)))
            .route("/v1/stop", post(|state| ask(state, Request::Stop)))
            .layer(DefaultBodyLimit::max(MAX_REQUEST))
            .with_state(asked);
        let listener = listener?;
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                tracing::error!(%error, "the local socket is served no more");
            }
        });
        Ok(Self { path: path.to_owned(), task })
    }
}

async fn ask(State(asked): State<mpsc::Sender<Asked>>, request: Request) -> Response {
    let (answer, reply) = oneshot::channel();
    let result = match asked.send((request, answer)).await {
        Ok(()) => reply.await.unwrap_or_else(|_| Err("the node is stopping".into())),
        Err(_) => Err("the node is stopping".into()),
    };
    match result {
        Ok(reply) => Json(reply).into_response(),
        Err(refused) => (StatusCode::CONFLICT, Json(refused)).into_response(),
    }
}

/// Why a running node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// No node listens on the socket.
    #[error("no node is running ({})", .0.display())]
    NotRunning(PathBuf),
    /// The socket may not be opened.
    #[error("the socket {} belongs to another user", .0.display())]
    Denied(PathBuf),
    /// The node refused.
    #[error("{}", .0.error)]
    Refused(Refused),
    /// The answer did not come or is not one.
    #[error("the node does not answer: {0}")]
    Silent(String),
}

/// Asks a running node.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the node that listens on a socket.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Its state.
    ///
    /// # Errors
    /// No node runs, or it does not answer.
    pub async fn status(&self) -> Result<Status, LocalError> {
        self.ask("GET", "status", None::<&()>).await
    }

    /// Changes preferences and gives them all.
    ///
    /// # Errors
    /// As [`Self::status`], or the change is refused.
    pub async fn set(&self, change: &PrefsChange) -> Result<Prefs, LocalError> {
        self.ask("PATCH", "prefs", Some(change)).await
    }

    /// Its preferences.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn prefs(&self) -> Result<Prefs, LocalError> {
        self.ask("GET", "prefs", None::<&()>).await
    }

    /// What the coordinator says of names.
    ///
    /// # Errors
    /// As [`Self::status`], or it has no map.
    pub async fn dns(&self) -> Result<DnsStatus, LocalError> {
        self.ask("GET", "dns", None::<&()>).await
    }

    /// What a name means.
    ///
    /// # Errors
    /// As [`Self::dns`].
    pub async fn query(&self, query: &Query) -> Result<NameAnswer, LocalError> {
        self.ask("POST", "query", Some(query)).await
    }

    /// What the network around it is like; it is checked for that.
    ///
    /// # Errors
    /// As [`Self::status`], or the node takes no part at this moment.
    pub async fn netcheck(&self) -> Result<NetworkReport, LocalError> {
        self.ask("POST", "netcheck", Some(&serde_json::json!({}))).await
    }

    /// Pings a peer; `None` if no answer comes within five seconds.
    ///
    /// # Errors
    /// As [`Self::netcheck`], or there is nothing to ping.
    pub async fn ping(&self, ping: PingRequest) -> Result<Option<PingReply>, LocalError> {
        self.ask("POST", "ping", Some(&ping)).await
    }

    /// Switches it on.
    ///
    /// # Errors
    /// As [`Self::status`], or it cannot start.
    pub async fn up(&self, up: &Up) -> Result<Status, LocalError> {
        self.ask("POST", "up", Some(up)).await
    }

    /// `down`, `logout` or `stop`.
    ///
    /// # Errors
    /// As [`Self::status`], or it is refused.
    pub async fn tell(&self, what: &'static str) -> Result<Status, LocalError> {
        self.ask("POST", what, Some(&serde_json::json!({}))).await
    }

    async fn ask<R: DeserializeOwned>(&self, method: &str, path: &str, body: Option<&impl Serialize>) -> Result<R, LocalError> {
        let exchange = self.exchange(method, path, body);
        let (status, reply) = tokio::time::timeout(REPLY_LIMIT, exchange)
            .await
            .map_err(|_| LocalError::Silent(format!("nothing within {} s", REPLY_LIMIT.as_secs())))??;
        if !status.is_success() {
            let refused = serde_json::from_slice(&reply).unwrap_or_else(|_| format!("HTTP status {status}").into());
            return Err(LocalError::Refused(refused));
        }
        serde_json::from_slice(&reply).map_err(|e| LocalError::Silent(e.to_string()))
    }

    async fn exchange(&self, method: &str, path: &str, body: Option<&impl Serialize>) -> Result<(StatusCode, Bytes), LocalError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => LocalError::NotRunning(self.path.clone()),
            io::ErrorKind::PermissionDenied => LocalError::Denied(self.path.clone()),
            _ => LocalError::Silent(e.to_string()),
        })?;
        let silent = |e: &dyn std::fmt::Display| LocalError::Silent(e.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| silent(&e))?;
        tokio::spawn(connection);
        let body = body.map(serde_json::to_vec).transpose().map_err(|e| silent(&e))?.unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(format!("/v1/{path}"))
            .header(http::header::HOST, "node")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| silent(&e))?;
        let response = sender.send_request(request).await.map_err(|e| silent(&e))?;
        let status = response.status();
        let reply = Limited::new(response.into_body(), MAX_REPLY).collect().await.map_err(|e| silent(&e))?;
        Ok((status, reply.to_bytes()))
    }
}
