//! The control session of a node: registers, follows the map stream, reports changes, and comes back by itself.
//!
//! [`run`] never ends by itself: whatever fails is told as an [`Event`] and tried again after a pause, whose length is
//! [`crate::coord::client::Pace`]'s decision. A coordinator that is not up yet, or goes away, costs nothing but news: keys, addresses
//! and the last map stay with the caller. A registration under way outlives its connection, so that a page the user is visiting stays
//! the right one.

mod ping;
mod register;
mod stream;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::coord::client::{Credentials, Ended, NetMap, Pace, Registration};
use crate::ident::{DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic, Secret};
use crate::node::Endpoint;
use crate::sys::clock;
use crate::sys::dial::{ControlConnection, DialError, Dialer, Origin};
use crate::wire::control::noise::HandshakeError;
use crate::wire::control::{Hostinfo, MapRequest, PingKind, PingResponse};

pub use register::log_out;

/// Who the node is and where it belongs.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The coordinator.
    pub url: String,
    /// The coordinator's key, if it is known already.
    pub pin: Option<Pin>,
    /// A file with a certificate authority to trust for this coordinator.
    pub authority: Option<PathBuf>,
    /// Where the coordinator was reached last.
    pub address: Option<IpAddr>,
    /// The machine key.
    pub machine: Arc<MachinePrivate>,
    /// The node key.
    pub node: Arc<NodePrivate>,
    /// The node key before it; zero if there was none.
    pub previous: NodePublic,
    /// The coordinator has let this node key in before.
    pub registered: bool,
    /// Another node key is wanted: this one has expired, or the user says so.
    pub renew: bool,
    /// Nobody waits for the outcome of the renewal.
    pub automatic: bool,
    /// The join key, until it has served.
    pub auth_key: Option<Secret>,
    /// This process's disco key.
    pub disco: DiscoPublic,
}

impl Identity {
    fn credentials(&self) -> Credentials {
        Credentials {
            node: Arc::clone(&self.node),
            previous: self.previous,
            registered: self.registered,
            renew: self.renew,
            auth_key: self.auth_key.clone(),
            automatic: self.automatic,
        }
    }

    fn dialer(&self) -> Dialer {
        let dialer = Dialer::new(self.authority.clone());
        if let (Ok(origin), Some(address)) = (self.url.parse::<Origin>(), self.address) {
            dialer.remember(&origin.host, address);
        }
        dialer
    }
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
    /// A control connection is open.
    Connected {
        /// Our end.
        local: IpAddr,
        /// The coordinator's end.
        remote: IpAddr,
    },
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
        /// The join key was shown and is not to be kept any longer.
        key_shown: bool,
    },
    /// The coordinator had let the node in, and does not know it now: it was removed there. It asks to be let in again.
    Unknown(String),
    /// The coordinator wants to know what comes of a ping.
    Ping {
        /// How.
        kind: PingKind,
        /// Whom.
        address: IpAddr,
        /// Where that goes; dropped, nothing is told.
        answer: oneshot::Sender<PingResponse>,
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
    /// We ended it, for a better one.
    Renewed,
}

impl From<DialError> for End {
    fn from(error: DialError) -> Self {
        Self::Dial(error)
    }
}

/// Keeps the node in its network until dropped. `wake` says that the network has changed or the machine has slept: the connection is
/// opened anew then, without any pause.
///
/// Ends only when the receiver of the events is gone.
pub async fn run(identity: Identity, mut report: watch::Receiver<Report>, wake: Arc<Notify>, events: mpsc::Sender<Event>) {
    let mut client =
        Client { dialer: identity.dialer(), pace: Pace::new(&identity.machine.public()), identity, registration: None, let_in: false };
    while !events.is_closed() {
        let end = tokio::select! {
            end = client.session(&mut report, &events) => end,
            () = wake.notified() => End::Renewed,
        };
        let ended = client.ended(&end);
        let event = match end {
            End::Dial(error) => {
                tracing::debug!(%error, "control session ended");
                Some(Event::Offline(error.to_string()))
            }
            End::Refused(text) => Some(Event::Refused(text)),
            End::Unregistered(text) => {
                client.let_in = false;
                Some(Event::Unknown(text))
            }
            End::Renewed => None,
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return;
        }
        let pause = client.pace.pause(clock::now(), ended);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wake.notified() => {}
        }
    }
}

/// What outlives a connection.
struct Client {
    identity: Identity,
    dialer: Dialer,
    pace: Pace,
    registration: Option<Registration>,
    /// The coordinator has let the node in since this began.
    let_in: bool,
}

impl Client {
    /// One connection: key, upgrade, registration where needed, then the map stream and the reports side by side.
    async fn session(&mut self, report: &mut watch::Receiver<Report>, events: &mpsc::Sender<Event>) -> End {
        let connection = match self.connect(events).await {
            Ok(connection) => connection,
            Err(end) => return end,
        };
        let (local, remote) = connection.ends();
        let _ = events.send(Event::Connected { local: local.ip(), remote: remote.ip() }).await;
        if !self.let_in
            && let Err(end) = self.register(&connection, report, events).await
        {
            return end;
        }
        let connection = connection.for_node(&self.identity.node.public());
        let mut reports = report.clone();
        tokio::select! {
            end = stream::follow(&connection, &self.dialer, &self.identity, report.clone(), events, &mut self.pace) => end,
            never = stream::report_changes(&connection, &self.identity, &mut reports) => match never {},
        }
    }

    /// What an end means for the pace.
    fn ended(&mut self, end: &End) -> Ended {
        match end {
            End::Dial(DialError::Status { status: 429, retry_after, .. }) => {
                Ended::Throttled(self.pace.retry_after(retry_after.as_deref(), clock::wall()))
            }
            End::Dial(_) | End::Unregistered(_) => Ended::Lost,
            End::Refused(_) => Ended::Refused,
            End::Renewed => Ended::Renewed,
        }
    }

    /// Connects with the pinned key; without one, or where another may replace it, the coordinator is asked first.
    async fn connect(&mut self, events: &mpsc::Sender<Event>) -> Result<ControlConnection, End> {
        let key = match self.identity.pin {
            Some(pin) => pin.key,
            None => self.learn_key(events).await?,
        };
        match self.dial(&key).await {
            Err(error) if is_key_doubtful(&error) => {
                // Either the coordinator has a new key, or something else is wrong: its answer tells.
                let url = self.identity.url.clone();
                let now = self.dialer.fetch_server_key(&url).await?;
                if now == key {
                    return Err(error.into());
                }
                if self.identity.pin.is_some_and(|pin| pin.strict) || !url.starts_with("https://") {
                    return Err(End::Refused(format!(
                        "the coordinator {url} has another key ({now}) than the one known ({key}); if it was set up anew, log out and join again",
                    )));
                }
                self.identity.pin = None;
                let key = self.learn_key(events).await?;
                Ok(self.dial(&key).await?)
            }
            result => Ok(result?),
        }
    }

    async fn dial(&self, key: &MachinePublic) -> Result<ControlConnection, DialError> {
        self.dialer.open(&self.identity.url, key, &self.identity.machine).await
    }

    async fn learn_key(&mut self, events: &mpsc::Sender<Event>) -> Result<MachinePublic, DialError> {
        let key = self.dialer.fetch_server_key(&self.identity.url).await?;
        if let Ok(place) = events.reserve().await {
            place.send(Event::ServerKey(key));
        }
        self.identity.pin = Some(Pin { key, strict: false });
        Ok(key)
    }
}

/// Whether a failed connection may mean that the coordinator's key has changed: it cannot read our first message then, and says so, or
/// hangs up.
fn is_key_doubtful(error: &DialError) -> bool {
    match error {
        DialError::Handshake(HandshakeError::Rejected | HandshakeError::Refused(_)) | DialError::Closed { .. } => true,
        DialError::Status { status, .. } => *status < 500 && *status != 429,
        _ => false,
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
