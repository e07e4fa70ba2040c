//! Administering a coordinator: over its local socket, or from elsewhere through its control protocol with a machine key it trusts.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::ident::{MachinePrivate, MachinePublic, NodeId, NodeName, UserId};
use crate::sys::dial::{ControlConnection, DialError, fetch_server_key};
use crate::wire::admin::{
    ADMIN_PREFIX, AdminFailure, Approve, ApproveRoutes, Backup, CoordinatorInfo, CreateKey, CreateUser, CreatedKey, DnsSettings, Drain,
    Expire, KeyInfo, MoveNode, NodeInfo, PolicyReport, PolicyText, Registration, Rename, RenameUser, SetAddress, SetPolicy, SetTags, User,
};
use crate::wire::control::DerpRegion;

/// How long one request may take.
const REQUEST_TIME: Duration = Duration::from_secs(15);
/// The longest answer read: lists of thousands of nodes fit.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why an administration request failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The answer is not one of this protocol.
    #[error("the coordinator's answer to {path} does not read ({what}): use the same version of pvemesh on both sides")]
    Malformed {
        /// Which request.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The coordinator refuses: the request is wrong, conflicts with what is there, or its sender is no admin.
    #[error("{text}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The coordinator's words.
        text: String,
    },
    /// No coordinator answers.
    #[error("cannot reach the coordinator at {place}: {what}")]
    Unreachable {
        /// Where.
        place: String,
        /// What happened.
        what: String,
    },
}

/// What a request does.
#[derive(Debug, Clone)]
pub enum Act {
    /// Deletes something.
    Delete,
    /// Reads something.
    Get,
    /// Makes or changes something.
    Post(Value),
}

/// A way to a coordinator's administration.
pub trait Way {
    /// Sends one request and brings the answer.
    ///
    /// # Errors
    /// See [`AdminError`].
    fn send(&self, act: Act, path: &str) -> impl Future<Output = Result<Value, AdminError>> + Send;
}

/// A coordinator's administration, whichever way it is reached.
#[derive(Debug)]
pub struct Admin<W> {
    way: W,
}

/// The coordinator on this machine.
pub type LocalAdmin = Admin<Socket>;

/// A coordinator elsewhere, reached through its control protocol.
pub type AdminClient = Admin<Control>;

impl<W: Way + Sync> Admin<W> {
    /// What the coordinator says of itself.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn info(&self) -> Result<CoordinatorInfo, AdminError> {
        self.get("info").await
    }

    /// The users.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn users(&self) -> Result<Vec<User>, AdminError> {
        self.get("users").await
    }

    /// Makes a user.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn create_user(&self, name: &str) -> Result<User, AdminError> {
        self.post("users", &CreateUser { name: name.to_owned() }).await
    }

    /// Gives a user another name.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn rename_user(&self, id: UserId, name: &str) -> Result<User, AdminError> {
        self.post(&format!("users/{id}/name"), &RenameUser { name: name.to_owned() }).await
    }

    /// Deletes a user without nodes, and its join keys.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn delete_user(&self, id: UserId) -> Result<(), AdminError> {
        self.delete(&format!("users/{id}")).await
    }

    /// The join keys.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn keys(&self) -> Result<Vec<KeyInfo>, AdminError> {
        self.get("keys").await
    }

    /// Makes a join key.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn create_key(&self, wanted: &CreateKey) -> Result<CreatedKey, AdminError> {
        self.post("keys", wanted).await
    }

    /// Withdraws a join key.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn revoke_key(&self, id: i64) -> Result<(), AdminError> {
        self.delete(&format!("keys/{id}")).await
    }

    /// The nodes.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, AdminError> {
        self.get("nodes").await
    }

    /// Deletes a node.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn delete_node(&self, id: NodeId) -> Result<(), AdminError> {
        self.delete(&format!("nodes/{id}")).await
    }

    /// Replaces the set of routes a node may carry.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn approve_routes(&self, id: NodeId, routes: &[IpNet]) -> Result<NodeInfo, AdminError> {
        self.post(&format!("nodes/{id}/routes"), &ApproveRoutes { routes: routes.to_vec() }).await
    }

    /// Renames a node.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn rename_node(&self, id: NodeId, name: &NodeName) -> Result<NodeInfo, AdminError> {
        self.post(&format!("nodes/{id}/name"), &Rename { name: name.clone() }).await
    }

    /// Sets when a node's key expires.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn expire_node(&self, id: NodeId, when: Expire) -> Result<NodeInfo, AdminError> {
        self.post(&format!("nodes/{id}/expire"), &when).await
    }

    /// Gives a node another address.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn set_address(&self, id: NodeId, address: Ipv4Addr) -> Result<NodeInfo, AdminError> {
        self.post(&format!("nodes/{id}/address"), &SetAddress { address }).await
    }

    /// Replaces a node's tags.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn tag_node(&self, id: NodeId, tags: &[String]) -> Result<NodeInfo, AdminError> {
        self.post(&format!("nodes/{id}/tags"), &SetTags { tags: tags.to_vec() }).await
    }

    /// Says that a node is about to stop, or has stopped.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn drain(&self, id: NodeId, wanted: Drain) -> Result<NodeInfo, AdminError> {
        self.post(&format!("nodes/{id}/drain"), &wanted).await
    }

    /// Gives a node to another user.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn move_node(&self, id: NodeId, user: &str) -> Result<NodeInfo, AdminError> {
        self.post(&format!("nodes/{id}/user"), &MoveNode { user: user.to_owned() }).await
    }

    /// The policy in force.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn policy(&self) -> Result<PolicyText, AdminError> {
        self.get("policy").await
    }

    /// Puts a policy in force, or tries it.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn set_policy(&self, policy: &SetPolicy) -> Result<PolicyReport, AdminError> {
        self.post("policy", policy).await
    }

    /// Takes the policy away.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn remove_policy(&self) -> Result<(), AdminError> {
        self.delete("policy").await
    }

    /// How names are resolved.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn dns(&self) -> Result<DnsSettings, AdminError> {
        self.get("dns").await
    }

    /// Replaces how names are resolved.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn set_dns(&self, dns: &DnsSettings) -> Result<DnsSettings, AdminError> {
        self.post("dns", dns).await
    }

    /// The relays that were added to the relay map.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn relays(&self) -> Result<Vec<DerpRegion>, AdminError> {
        self.get("relays").await
    }

    /// Adds a relay's region to the relay map; without a number it gets one.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn add_relay(&self, region: &DerpRegion) -> Result<DerpRegion, AdminError> {
        self.post("relays", region).await
    }

    /// Takes a region out of the relay map again.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn remove_relay(&self, number: i32) -> Result<(), AdminError> {
        self.delete(&format!("relays/{number}")).await
    }

    /// The nodes that wait for approval.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn registrations(&self) -> Result<Vec<Registration>, AdminError> {
        self.get("registrations").await
    }

    /// Lets a waiting node in, as one of this user's.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn approve(&self, registration: &str, user: &str) -> Result<NodeInfo, AdminError> {
        // It becomes part of a path; what is not an id of ours cannot be waiting either.
        if registration.is_empty() || !registration.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let text = "a registration's id has letters, digits and `-` only: take it from the login page".to_owned();
            return Err(AdminError::Refused { status: 400, text });
        }
        self.post(&format!("registrations/{registration}"), &Approve { user: user.to_owned() }).await
    }

    async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, AdminError> {
        self.request(Act::Get, path).await
    }

    async fn post<R: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<R, AdminError> {
        let body = serde_json::to_value(body).map_err(|e| malformed(path, &e))?;
        self.request(Act::Post(body), path).await
    }

    async fn delete(&self, path: &str) -> Result<(), AdminError> {
        self.request::<Value>(Act::Delete, path).await.map(drop)
    }

    async fn request<R: DeserializeOwned>(&self, act: Act, path: &str) -> Result<R, AdminError> {
        let answer = self.way.send(act, &format!("{ADMIN_PREFIX}{path}")).await?;
        serde_json::from_value(answer).map_err(|e| malformed(path, &e))
    }
}

fn malformed(path: &str, error: &serde_json::Error) -> AdminError {
    AdminError::Malformed { path: path.to_owned(), what: error.to_string() }
}

/// What a refusal says.
fn refused(path: &str, status: u16, body: &[u8]) -> AdminError {
    let text = match serde_json::from_slice::<AdminFailure>(body) {
        Ok(failure) => failure.error,
        Err(_) => format!("the coordinator answers {path} with status {status}: is it a pvemesh coordinator?"),
    };
    AdminError::Refused { status, text }
}

/// The way through a coordinator's control protocol, with a machine key that it trusts.
#[derive(Debug)]
pub struct Control {
    connection: ControlConnection,
    server_key: MachinePublic,
}

impl AdminClient {
    /// Connects to a coordinator as the owner of a machine key. Without a pinned key the one it publishes is taken.
    ///
    /// # Errors
    /// It cannot be reached, or has another key than the pinned one. Whether it trusts `key` shows with the first request.
    pub async fn connect(url: &str, pinned: Option<MachinePublic>, key: &MachinePrivate) -> Result<Self, AdminError> {
        let unreachable = |e: DialError| AdminError::Unreachable { place: url.to_owned(), what: e.to_string() };
        let server_key = match pinned {
            Some(key) => key,
            None => fetch_server_key(url).await.map_err(unreachable)?,
        };
        let connection = ControlConnection::connect(url, &server_key, key).await.map_err(unreachable)?;
        Ok(Self { way: Control { connection, server_key } })
    }

    /// The coordinator's key, proven by the connection.
    pub fn server_key(&self) -> MachinePublic {
        self.way.server_key
    }
}

impl Way for Control {
    async fn send(&self, act: Act, path: &str) -> Result<Value, AdminError> {
        let answer = match act {
            Act::Delete => self.connection.delete_json(path).await,
            Act::Get => self.connection.get_json(path).await,
            Act::Post(body) => self.connection.post_json(path, &body).await,
        };
        answer.map_err(|e| match e {
            DialError::Status { status, text, .. } => refused(path, status, text.as_bytes()),
            DialError::Protocol { reason, .. } => AdminError::Malformed { path: path.to_owned(), what: reason },
            other => AdminError::Unreachable { place: self.connection.origin().to_string(), what: other.to_string() },
        })
    }
}

/// The way over a coordinator's local socket.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
}

impl LocalAdmin {
    /// The whole state in one file, the server's key included.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn backup(&self) -> Result<Zeroizing<Vec<u8>>, AdminError> {
        let answer: Backup = self.get("backup").await?;
        let what = |e: base64::DecodeError| AdminError::Malformed { path: "backup".to_owned(), what: e.to_string() };
        BASE64.decode(answer.backup.expose()).map(Zeroizing::new).map_err(what)
    }

    /// The coordinator behind a socket. The first request connects.
    pub fn connect(path: &Path) -> Self {
        Self { way: Socket { path: path.to_owned() } }
    }
}

impl Socket {
    fn unreachable(&self, what: impl ToString) -> AdminError {
        AdminError::Unreachable { place: self.path.display().to_string(), what: what.to_string() }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), AdminError> {
        let stream = tokio::net::UnixStream::connect(&self.path).await.map_err(|e| {
            self.unreachable(match e.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => "it is not running".to_owned(),
                std::io::ErrorKind::PermissionDenied => "only root, or whoever runs it, may use its socket".to_owned(),
                _ => e.to_string(),
            })
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(e))?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| self.unreachable(e))?;
        connection.abort();
        Ok((status, body.to_bytes()))
    }
}

impl Way for Socket {
    async fn send(&self, act: Act, path: &str) -> Result<Value, AdminError> {
        let (method, body) = match act {
            Act::Delete => (Method::DELETE, Vec::new()),
            Act::Get => (Method::GET, Vec::new()),
            Act::Post(body) => (Method::POST, serde_json::to_vec(&body).map_err(|e| malformed(path, &e))?),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "coordinator")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.unreachable(e))?;
        let exchange = tokio::time::timeout(REQUEST_TIME, self.exchange(request)).await;
        let (status, bytes) = exchange.unwrap_or_else(|_| Err(self.unreachable("it does not answer in time")))?;
        if !status.is_success() {
            return Err(refused(path, status.as_u16(), &bytes));
        }
        serde_json::from_slice(&bytes).map_err(|e| malformed(path, &e))
    }
}
