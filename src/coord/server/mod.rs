//! The coordinator's core: who is in the mesh, and what each node has to be told about the others.
//!
//! What it is: a registry of users, join keys and nodes; the rules of registration; addresses, names and routes; and per open map
//! stream the set of changes not yet told. What it does not do: sockets, HTTP, Noise, compression, storage, clocks. Machine keys reach it
//! as facts, proven by the Noise handshake; everything else in a request is a claim and is checked.
//!
//! The caller's duties: one call, then drain [`Server::poll_event`] and [`Server::take_writes`]; answer a request only when what it
//! changed is stored; call [`Server::handle_timeout`] when [`Server::poll_timeout`] is due. `Moment::now` must not go back.
//!
//! Invariants: a node key, a name, an address belongs to one node; numbers are never given twice; a prefix has at most one carrier; what
//! a node is told never contains a node twice in one list.
//!
//! The wire contract is that of Tailscale's control protocol; the rules of registration follow what its stock coordinators do.

mod command;
mod join_key;
mod message;
mod record;
mod register;
mod registry;
mod routes;
mod session;
mod update;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand_core::SeedableRng as _;

pub use command::CommandError;
pub use join_key::Digest;
pub use message::{Message, Next};
pub use record::{Counters, JoinKeyRecord, NodeRecord, Snapshot, UserRecord, Write};
pub use register::Registered;
pub use registry::LoadError;
pub use routes::{approval, is_exit};
pub use session::{MAX_PENDING, SessionId};
pub use update::{MapAnswer, MapRefusal};

use crate::ident::{AddressPlan, NodeId, UserId};
use crate::time::{Deadline, Time, Wall};
use crate::wire::control::DerpMap;
use registry::Registry;
use routes::Primaries;
use session::{Change, Ending, Fields, Session};
use waiting::WaitingRoom;

/// How long a node key lives, as the hosted service has it by default. Tagged nodes' keys do not expire.
pub const KEY_LIFE: Duration = Duration::from_secs(180 * 24 * 3600);
/// How long a node whose stream ended still counts as online: reconnects within it are told to nobody.
pub const OFFLINE_GRACE: Duration = Duration::from_secs(10);
/// The same after a restart of the coordinator. Clients back off up to 30 s, so twice that brings all of them back.
pub const RESTART_GRACE: Duration = Duration::from_secs(60);
/// How long an ephemeral node is kept after it went offline.
pub const EPHEMERAL_AFTER: Duration = Duration::from_secs(30 * 60);
/// How often expired node keys are looked for.
const EXPIRY_CHECK: Duration = Duration::from_secs(30);
/// The number under which tagged nodes appear to clients, who know a user for every node; the one stock coordinators use.
pub const TAGGED_USER: UserId = UserId(2_147_455_555);

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// For grace times.
    pub now: Time,
    /// For what is stored and told.
    pub wall: Wall,
}

/// What the coordinator is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address clients are told, without a slash at its end.
    pub url: String,
    /// The DNS suffix of node names.
    pub base_domain: String,
    /// Which addresses nodes get.
    pub plan: AddressPlan,
    /// The relays clients are told; `None` leaves the field out.
    pub derp_map: Option<DerpMap>,
}

/// Something the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A registration that was held may have an answer now: ask again.
    Decided,
    /// The stream has something to take.
    Wake(SessionId),
}

/// Whether a node is here.
#[derive(Debug, Clone, Copy, Default)]
struct Presence {
    online: bool,
    session: Option<SessionId>,
    offline_at: Option<Time>,
    remove_at: Option<Time>,
    told_expired: bool,
}

/// The coordinator's core.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    rng: rand_chacha::ChaCha20Rng,
    registry: Registry,
    presence: BTreeMap<NodeId, Presence>,
    /// Nodes to be taken for offline, and ephemeral nodes to be removed.
    offline_due: BTreeSet<(Time, NodeId)>,
    removal_due: BTreeSet<(Time, NodeId)>,
    expiry_check: Time,
    primaries: Primaries,
    waiting: WaitingRoom,
    sessions: BTreeMap<SessionId, Session>,
    last_session: u64,
    /// Each node as its peers are told, encoded once for all of them.
    encoded: BTreeMap<NodeId, Arc<str>>,
    events: VecDeque<Event>,
}

impl Server {
    /// A coordinator with what is stored. Nodes that were connected when it was written count as online for [`RESTART_GRACE`].
    ///
    /// # Errors
    /// The stored state contradicts itself.
    pub fn new(settings: Settings, seed: [u8; 32], snapshot: Snapshot, at: Moment) -> Result<Self, LoadError> {
        let registry = Registry::load(settings.plan, snapshot)?;
        let mut server = Self {
            settings,
            rng: rand_chacha::ChaCha20Rng::from_seed(seed),
            registry,
            presence: BTreeMap::new(),
            offline_due: BTreeSet::new(),
            removal_due: BTreeSet::new(),
            expiry_check: at.now + EXPIRY_CHECK,
            primaries: Primaries::default(),
            waiting: WaitingRoom::default(),
            sessions: BTreeMap::new(),
            last_session: 0,
            encoded: BTreeMap::new(),
            events: VecDeque::new(),
        };
        let stored: Vec<(NodeId, bool, bool, bool)> =
            server.registry.nodes().map(|node| (node.id, node.connected, node.ephemeral, node.expired(at.wall))).collect();
        for (id, connected, ephemeral, expired) in stored {
            server.presence.insert(id, Presence { online: connected, told_expired: expired, ..Presence::default() });
            if connected {
                server.schedule_offline(id, at.now + RESTART_GRACE);
            } else if ephemeral {
                server.schedule_removal(id, at.now + EPHEMERAL_AFTER);
            }
        }
        server.elect(at.wall);
        Ok(server)
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What has to be stored since the last call.
    pub fn take_writes(&mut self) -> Vec<Write> {
        self.registry.take_writes()
    }

    /// When [`Self::handle_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let first = |due: &BTreeSet<(Time, NodeId)>, why| due.first().map(|(at, _)| Deadline { at: *at, why });
        [
            first(&self.offline_due, "a node is offline"),
            first(&self.removal_due, "an ephemeral node is removed"),
            self.waiting.next_expiry().map(|at| Deadline { at, why: "a waiting registration lapses" }),
            Some(Deadline { at: self.expiry_check, why: "expired node keys are looked for" }),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, at: Moment) {
        while let Some(&(due, id)) = self.offline_due.first()
            && due <= at.now
        {
            self.go_offline(id, at);
        }
        while let Some(&(due, id)) = self.removal_due.first()
            && due <= at.now
        {
            self.remove(id, at);
        }
        if self.waiting.expire(at.now) {
            self.events.push_back(Event::Decided);
        }
        if self.expiry_check <= at.now {
            self.expiry_check = at.now + EXPIRY_CHECK;
            self.tell_expired(at.wall);
        }
    }

    fn schedule_offline(&mut self, id: NodeId, due: Time) {
        let presence = self.presence.entry(id).or_default();
        if let Some(old) = presence.offline_at.replace(due) {
            self.offline_due.remove(&(old, id));
        }
        self.offline_due.insert((due, id));
    }

    fn schedule_removal(&mut self, id: NodeId, due: Time) {
        let presence = self.presence.entry(id).or_default();
        if let Some(old) = presence.remove_at.replace(due) {
            self.removal_due.remove(&(old, id));
        }
        self.removal_due.insert((due, id));
    }

    /// The node is here: nothing is due for its absence any more.
    fn unschedule(&mut self, id: NodeId) {
        let presence = self.presence.entry(id).or_default();
        if let Some(due) = presence.offline_at.take() {
            self.offline_due.remove(&(due, id));
        }
        if let Some(due) = presence.remove_at.take() {
            self.removal_due.remove(&(due, id));
        }
    }

    /// Opens a stream for a node; the newest wins, an older one is ended.
    fn open_session(&mut self, id: NodeId, at: Moment) -> SessionId {
        self.unschedule(id);
        self.last_session += 1;
        let session = SessionId(self.last_session);
        let presence = self.presence.entry(id).or_default();
        let was_online = std::mem::replace(&mut presence.online, true);
        let older = presence.session.replace(session);
        self.sessions.insert(session, Session::new(id));
        if let Some(older) = older {
            self.end_session(older, Ending::Now);
        }
        self.registry.change_node(id, |node| {
            node.last_seen = Some(at.wall);
            node.connected = true;
        });
        if !was_online {
            self.tell_peers(id, Change::Fields(Fields { online: true, ..Fields::default() }));
            self.elect(at.wall);
        }
        self.events.push_back(Event::Wake(session));
        session
    }

    /// The stream is gone, whoever ended it. Its node is offline after [`OFFLINE_GRACE`], unless it has a newer stream by then.
    pub fn close_session(&mut self, session: SessionId, at: Moment) {
        let Some(closed) = self.sessions.remove(&session) else { return };
        let Some(presence) = self.presence.get_mut(&closed.node) else { return };
        if presence.session != Some(session) {
            return;
        }
        presence.session = None;
        self.registry.change_node(closed.node, |node| node.last_seen = Some(at.wall));
        self.schedule_offline(closed.node, at.now + OFFLINE_GRACE);
    }

    fn end_session(&mut self, session: SessionId, ending: Ending) {
        if self.sessions.get_mut(&session).is_some_and(|open| open.end(ending)) {
            self.events.push_back(Event::Wake(session));
        }
    }

    fn go_offline(&mut self, id: NodeId, at: Moment) {
        self.unschedule(id);
        let presence = self.presence.entry(id).or_default();
        if !std::mem::replace(&mut presence.online, false) {
            return;
        }
        self.registry.change_node(id, |node| node.connected = false);
        if self.registry.node(id).is_some_and(|node| node.ephemeral) {
            self.schedule_removal(id, at.now + EPHEMERAL_AFTER);
        }
        self.tell_peers(id, Change::Fields(Fields { online: true, ..Fields::default() }));
        self.elect(at.wall);
    }

    /// Removes a node: its own stream learns it by an expired key, then ends; the others see it go.
    fn remove(&mut self, id: NodeId, at: Moment) {
        let last_words = self.farewell(id, at.wall);
        self.unschedule(id);
        let Some(node) = self.registry.remove_node(id) else { return };
        tracing::info!(node = %node.id, name = %node.name, "node removed");
        let presence = self.presence.remove(&id).unwrap_or_default();
        self.encoded.remove(&id);
        if let Some(session) = presence.session {
            self.end_session(session, last_words.map_or(Ending::Now, Ending::After));
        }
        self.tell_peers(id, Change::Removed);
        self.elect(at.wall);
    }

    /// Nodes whose key has expired since the last look: they lose their routes, they and their peers are told.
    fn tell_expired(&mut self, wall: Wall) {
        let expired: Vec<NodeId> = self.registry.nodes().filter(|node| node.expired(wall)).map(|node| node.id).collect();
        let mut any = false;
        for id in expired {
            if !std::mem::replace(&mut self.presence.entry(id).or_default().told_expired, true) {
                self.tell_all(id);
                any = true;
            }
        }
        if any {
            self.elect(wall);
        }
    }

    /// Elects the carriers of routes again and tells every change, both sides of a handover in one message.
    fn elect(&mut self, wall: Wall) {
        let online = |id: &NodeId| self.presence.get(id).is_some_and(|presence| presence.online);
        let routers = self.registry.nodes().filter(|node| !node.advertised.is_empty() && !node.expired(wall) && online(&node.id));
        let candidates = routers.flat_map(|node| node.effective_routes().map(|net| (node.id, net)));
        for id in self.primaries.elect(candidates) {
            // Of a node that is being removed the others hear that it is gone, and nothing after that.
            if self.registry.node(id).is_some() {
                self.tell_all(id);
            }
        }
    }

    /// A change of a node that its peers have to hear of. Expects that the change has been made.
    fn tell_peers(&mut self, id: NodeId, change: Change) {
        self.encoded.remove(&id);
        for (session, open) in &mut self.sessions {
            if open.node != id && open.note(id, change) {
                self.events.push_back(Event::Wake(*session));
            }
        }
    }

    /// A change that both the node itself and its peers have to hear of as a whole.
    fn tell_all(&mut self, id: NodeId) {
        self.tell_peers(id, Change::Whole);
        let session = self.presence.get(&id).and_then(|presence| presence.session);
        if let Some(session) = session
            && self.sessions.get_mut(&session).is_some_and(Session::note_own)
        {
            self.events.push_back(Event::Wake(session));
        }
    }
}
