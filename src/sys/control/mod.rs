//! The control session of a node: registers, follows the map stream, reports changes, and comes back by itself.
//!
//! [`run`] never ends by itself: whatever fails is told as an [`Event`] and tried again after a growing pause. A coordinator that is
//! not up yet, or goes away, costs nothing but news: keys, addresses and the last map stay with the caller.

mod ping;
mod register;
mod stream;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::coord::client::{Backoff, NetMap};
use crate::ident::{DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic, Secret};
use crate::node::Endpoint;
use crate::sys::dial::{ControlConnection, DialError, fetch_server_key};
use crate::sys::entropy;
use crate::wire::control::noise::HandshakeError;
use crate::wire::control::{Hostinfo, MapRequest, RegisterRequest};

pub use register::log_out;

/// Who the node is and where it belongs.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The coordinator.
    pub url: String,
    /// The coordinator's key, if it is known already.
    pub pin: Option<Pin>,
    /// The machine key.
    pub machine: Arc<MachinePrivate>,
    /// The node key.
    pub node: Arc<NodePrivate>,
    /// The node key before it; zero if there was none.
    pub previous: NodePublic,
    /// The join key, until it has served.
    pub auth_key: Option<Secret>,
    /// This process's disco key.
    pub disco: DiscoPublic,
}

/// A coordinator's key that was seen or told before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The key.
    pub key: MachinePublic,
    /// Another key is refused. Otherwise one that comes over verified TLS replaces it.
    pub strict: bool,
}

/// What the node reports. A change goes to the coordinator at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Its description.
    pub hostinfo: Hostinfo,
    /// Where it may be reached.
    pub endpoints: Vec<Endpoint>,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// The coordinator's key, to be remembered.
    ServerKey(MachinePublic),
    /// The user has to visit this address.
    Visit(String),
    /// The coordinator refused the node, in its words. Something has to change; it is asked again nevertheless.
    Refused(String),
    /// The node is in.
    Admitted {
        /// Whose node it is.
        login: String,
        /// The node key it has from now on, if it is a new one; the old one is not valid any more.
        new_key: Option<Arc<NodePrivate>>,
    },
    /// The map, as a whole.
    Map(Box<NetMap>),
    /// The coordinator is not reached; it is tried again.
    Offline(String),
}

/// Why a session ended.
enum End {
    /// The connection failed, or the answer was wrong. Try again.
    Dial(DialError),
    /// The coordinator refuses; the text is for the user.
    Refused(String),
    /// The node has to register again.
    Unregistered(String),
}

impl From<DialError> for End {
    fn from(error: DialError) -> Self {
        Self::Dial(error)
    }
}

/// Keeps the node in its network until dropped.
///
/// Ends only when the receiver of the events is gone, or the system has no randomness.
pub async fn run(mut identity: Identity, mut report: watch::Receiver<Report>, events: mpsc::Sender<Event>) {
    let Ok(seed) = entropy::seed() else {
        tracing::error!("the system gives no randomness; the coordinator is not contacted");
        return;
    };
    let mut backoff = Backoff::new(seed);
    let mut registered = false;
    while !events.is_closed() {
        let end = session(&mut identity, &mut registered, &mut report, &events, &mut backoff).await;
        let event = match end {
            End::Dial(error) => {
                tracing::debug!(%error, "control session ended");
                Event::Offline(error.to_string())
            }
            End::Refused(text) => Event::Refused(text),
            End::Unregistered(text) => {
                registered = false;
                Event::Offline(text)
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

/// One connection: key, upgrade, registration where needed, then the map stream and the reports side by side.
async fn session(
    identity: &mut Identity,
    registered: &mut bool,
    report: &mut watch::Receiver<Report>,
    events: &mpsc::Sender<Event>,
    backoff: &mut Backoff,
) -> End {
    let connection = match connect(identity, events).await {
        Ok(connection) => connection,
        Err(end) => return end,
    };
    if !*registered {
        if let Err(end) = register::register(&connection, identity, report, events).await {
            return end;
        }
        *registered = true;
    }
    let connection = connection.for_node(&identity.node.public());
    let mut reports = report.clone();
    tokio::select! {
        end = stream::follow(&connection, identity, report.clone(), events, backoff) => end,
        end = stream::report_changes(&connection, identity, &mut reports) => end,
    }
}

/// Connects with the pinned key; without one, or where another may replace it, the coordinator is asked first.
async fn connect(identity: &mut Identity, events: &mpsc::Sender<Event>) -> Result<ControlConnection, End> {
    let key = match identity.pin {
        Some(pin) => pin.key,
        None => learn_key(identity, events).await?,
    };
    match ControlConnection::connect(&identity.url, &key, &identity.machine).await {
        Err(error) if is_key_doubtful(&error) => {
            // Either the coordinator has a new key, or something else is wrong: its answer tells.
            let now = fetch_server_key(&identity.url).await?;
            if now == key {
                return Err(error.into());
            }
            if identity.pin.is_some_and(|pin| pin.strict) || !identity.url.starts_with("https://") {
                return Err(End::Refused(format!(
                    "the coordinator {} has another key ({now}) than the one known ({key}); if it was set up anew, log out and join again",
                    identity.url
                )));
            }
            identity.pin = None;
            let key = learn_key(identity, events).await?;
            Ok(ControlConnection::connect(&identity.url, &key, &identity.machine).await?)
        }
        result => Ok(result?),
    }
}

async fn learn_key(identity: &mut Identity, events: &mpsc::Sender<Event>) -> Result<MachinePublic, DialError> {
    let key = fetch_server_key(&identity.url).await?;
    identity.pin = Some(Pin { key, strict: false });
    let _ = events.send(Event::ServerKey(key)).await;
    Ok(key)
}

/// Whether a failed connection may mean that the coordinator's key has changed: it cannot read our first message then, and says so, or
/// hangs up.
fn is_key_doubtful(error: &DialError) -> bool {
    match error {
        DialError::Handshake(HandshakeError::Rejected | HandshakeError::Refused(_)) | DialError::Closed { .. } => true,
        DialError::Status { status, .. } => *status < 500,
        _ => false,
    }
}

/// A registration with everything but what the situation adds.
fn register_request(node: &NodePrivate, previous: NodePublic, hostinfo: Hostinfo) -> RegisterRequest {
    RegisterRequest {
        version: u32::from(crate::wire::control::CAPABILITY_VERSION),
        node_key: node.public(),
        old_node_key: previous,
        hostinfo: Some(hostinfo),
        ..Default::default()
    }
}

/// A map request with everything the node reports: some coordinators take an absent part for an empty one.
fn map_request(identity: &Identity, report: &Report) -> MapRequest {
    MapRequest {
        version: u32::from(crate::wire::control::CAPABILITY_VERSION),
        keep_alive: true,
        node_key: identity.node.public(),
        disco_key: identity.disco,
        hostinfo: Some(report.hostinfo.clone()),
        endpoints: report.endpoints.iter().map(|e| e.address).collect(),
        endpoint_types: report.endpoints.iter().map(|e| e.kind as u8).collect(),
        ..Default::default()
    }
}
