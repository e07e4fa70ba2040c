//! The coordinator's core: who is in the mesh, and what each node has to be told about the others.
//!
//! What it is: a registry of users, join keys and nodes; the rules of registration; addresses, names, routes and DNS; who sees whom;
//! and per open map stream the set of changes not yet told. What it does not do: sockets, HTTP, Noise, compression, storage, clocks.
//! Machine keys reach it as facts, proven by the Noise handshake; everything else in a request is a claim and is checked.
//!
//! The caller's duties: one call, then drain [`Server::poll_event`] and [`Server::take_writes`]; answer a request only when what it
//! changed is stored; call [`Server::handle_timeout`] when [`Server::poll_timeout`] is due. `Moment::now` must not go back.
//!
//! Invariants: a node key, a name, an address belongs to one node; numbers are never given twice; a prefix has at most one carrier; what
//! a node is told never contains a node twice in one list, nor one that it may not see.
//!
//! The wire contract is that of Tailscale's control protocol; the rules of registration follow what its stock coordinators do.

mod command;
mod describe;
mod dns;
mod drain;
mod due;
mod join_key;
mod journal;
mod last_use;
mod leaves;
mod message;
mod piece;
mod presence;
mod record;
mod register;
mod registry;
mod relays;
mod routes;
mod session;
mod sight;
mod update;
mod view;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand_core::SeedableRng as _;

pub use command::CommandError;
pub use drain::MAX_DRAIN;
pub use join_key::Digest;
pub use journal::MAX_REMOVED;
pub use last_use::REPEAT_WITHIN;
pub use message::Next;
pub use piece::{Message, Own, Piece, Shared};
pub use presence::{EPHEMERAL_AFTER, HANDOVER_GRACE, OFFLINE_GRACE, RESTART_GRACE, ROUTE_GRACE, STREAM_TURN};
pub use record::{Counters, JoinKeyRecord, NodeRecord, PolicyRecord, Snapshot, UserRecord, Write};
pub use register::{KEY_LIFE, Registered};
pub use registry::LoadError;
pub use routes::{approval, is_exit};
pub use session::SessionId;
pub use update::{MapAnswer, MapRefusal};
pub use waiting::WaitingState;

use crate::ident::{AddressPlan, NodeId, UserId};
use crate::time::{Deadline, Time, Wall};
use crate::wire::admin::DnsSettings;
use crate::wire::control::{DerpMap, DerpRegion, DnsRecord};
use describe::{Descriptions, shown_user};
use journal::{Change, Position};
use last_use::LastUses;
use presence::Presences;
use registry::Registry;
use routes::Primaries;
use session::{Ending, Part, Session};
use sight::{Audience, Sight};
use view::{View, ViewId};
use waiting::WaitingRoom;

/// Changes are told at once when it is quiet, and then no more often than this: what changes meanwhile goes into one message.
const TELL_EVERY: Duration = Duration::from_millis(20);
/// The same for each stream that was told last time: telling is work, and the more there is the more is done in one go.
const TELL_EVERY_PER_STREAM: Duration = Duration::from_micros(50);
/// Whatever the number of streams.
const TELL_EVERY_AT_MOST: Duration = Duration::from_millis(500);
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
    /// How long a node key lives after a login; `None` for ever. Tagged nodes' keys do not expire.
    pub key_life: Option<Duration>,
    /// How long an ephemeral node is kept after it went offline.
    pub ephemeral_after: Duration,
}

impl Settings {
    /// The usual settings for an address and a base domain.
    pub fn new(url: impl Into<String>, base_domain: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            base_domain: base_domain.into(),
            plan: AddressPlan::default(),
            derp_map: None,
            key_life: Some(KEY_LIFE),
            ephemeral_after: EPHEMERAL_AFTER,
        }
    }
}

/// Something the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A registration that was held may have an answer now: ask again.
    Decided,
    /// The stream has something to take.
    Wake(SessionId),
}

/// The coordinator's core.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    rng: rand_chacha::ChaCha20Rng,
    registry: Registry,
    dns: DnsSettings,
    presences: Presences,
    expiry_check: Time,
    primaries: Primaries,
    waiting: WaitingRoom,
    last_uses: LastUses,
    sessions: BTreeMap<SessionId, Session>,
    last_session: u64,
    sight: Sight,
    /// What streams are shown, and what of it has changed.
    views: BTreeMap<ViewId, View>,
    view_ids: BTreeMap<Audience, ViewId>,
    last_view: u64,
    /// Something has changed that is not being told yet, and when telling may begin.
    untold: bool,
    tell_from: Time,
    descriptions: Descriptions,
    unsaved_dns: bool,
    /// What the aliases of the DNS settings stood for when it was told last.
    aliased: Vec<DnsRecord>,
    /// Regions that an admin added.
    relays: BTreeMap<i32, DerpRegion>,
    unsaved_relays: BTreeSet<i32>,
    unsaved_policy: bool,
    events: VecDeque<Event>,
}

impl Server {
    /// A coordinator with what is stored. Nodes that were connected when it was written count as online for [`RESTART_GRACE`].
    ///
    /// # Errors
    /// The stored state contradicts itself.
    pub fn new(settings: Settings, seed: [u8; 32], snapshot: Snapshot, at: Moment) -> Result<Self, LoadError> {
        let (dns, sight) = (snapshot.dns.clone(), Sight::load(snapshot.policy.clone())?);
        let relays = snapshot.relays.iter().map(|region| (region.region_id, region.clone())).collect();
        let registry = Registry::load(settings.plan, snapshot)?;
        let mut server = Self {
            settings,
            rng: rand_chacha::ChaCha20Rng::from_seed(seed),
            registry,
            dns,
            presences: Presences::default(),
            expiry_check: at.now + EXPIRY_CHECK,
            primaries: Primaries::default(),
            waiting: WaitingRoom::default(),
            last_uses: LastUses::default(),
            sessions: BTreeMap::new(),
            last_session: 0,
            sight,
            views: BTreeMap::new(),
            view_ids: BTreeMap::new(),
            last_view: 0,
            untold: false,
            tell_from: at.now,
            descriptions: Descriptions::default(),
            unsaved_dns: false,
            aliased: Vec::new(),
            relays,
            unsaved_relays: BTreeSet::new(),
            unsaved_policy: false,
            events: VecDeque::new(),
        };
        server.restore_sight();
        server.restore_presences(at);
        server.elect(at.wall);
        server.aliased = server.alias_records();
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
        let mut writes = self.registry.take_writes();
        if std::mem::take(&mut self.unsaved_dns) {
            writes.push(Write::Dns(Box::new(self.dns.clone())));
        }
        for number in std::mem::take(&mut self.unsaved_relays) {
            writes.push(match self.relays.get(&number) {
                Some(region) => Write::Relay(Box::new(region.clone())),
                None => Write::RemoveRelay(number),
            });
        }
        if std::mem::take(&mut self.unsaved_policy) {
            writes.push(Write::Policy(self.sight.record().cloned().map(Box::new)));
        }
        writes
    }

    /// When [`Self::handle_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let lapse = self.waiting.next_expiry().map(|at| Deadline { at, why: "a waiting registration lapses" });
        let check = Deadline { at: self.expiry_check, why: "expired node keys are looked for" };
        let tell = self.untold.then_some(Deadline { at: self.tell_from, why: "changes are told" });
        self.presences.next().into_iter().chain(lapse).chain(tell).chain([check]).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, at: Moment) {
        self.handle_absences(at);
        if self.waiting.expire(at.now) {
            self.events.push_back(Event::Decided);
        }
        if self.expiry_check <= at.now {
            self.expiry_check = at.now + EXPIRY_CHECK;
            self.tell_expired(at.wall);
            self.drop_idle_views();
        }
        if self.untold && self.tell_from <= at.now {
            self.publish(at.now);
        }
    }

    /// Tells the streams what has changed up to now, without waiting for the time to do so.
    pub fn publish(&mut self, now: Time) {
        self.renew_aliases();
        self.untold = false;
        let mut behind: BTreeMap<ViewId, Position> = BTreeMap::new();
        for (id, view) in &mut self.views {
            view.publish();
            behind.insert(*id, view.published());
        }
        let mut woken = 0u32;
        for (id, open) in &mut self.sessions {
            let Some(view) = self.views.get(&open.view).filter(|_| open.follows()) else { continue };
            if !view.reaches(open.told) {
                open.ending = Some(Ending::Now);
            }
            if open.told < view.published() || open.due() {
                behind.entry(open.view).and_modify(|position| *position = open.told.min(*position));
                woken += 1;
                if open.wake() {
                    self.events.push_back(Event::Wake(*id));
                }
            }
        }
        for (id, position) in behind {
            if let Some(view) = self.views.get_mut(&id) {
                view.forget(position);
            }
        }
        self.tell_from = now + (TELL_EVERY_PER_STREAM * woken).clamp(TELL_EVERY, TELL_EVERY_AT_MOST);
    }

    /// Changes the relays that clients are told.
    pub fn set_derp_map(&mut self, derp_map: Option<DerpMap>) {
        if self.settings.derp_map != derp_map {
            self.settings.derp_map = derp_map;
            self.tell_part_to_all(Part::Derp);
        }
    }

    fn end_session(&mut self, session: SessionId, ending: Ending) {
        if let Some(open) = self.sessions.get_mut(&session) {
            open.ending = Some(ending);
            self.wake(session);
        }
    }

    /// There is something to take now that does not wait for the next telling.
    fn wake(&mut self, session: SessionId) {
        if self.sessions.get_mut(&session).is_some_and(Session::wake) {
            self.events.push_back(Event::Wake(session));
        }
    }

    /// Removes a node: its own stream learns it by an expired key, then ends; the others see it go.
    fn remove(&mut self, id: NodeId, at: Moment) {
        let Some(last_words) = self.farewell(id, at.wall) else { return };
        self.tell_peers(id, Change::Removed);
        self.disregard(id);
        let presence = self.presences.forget(id);
        let Some(node) = self.registry.remove_node(id) else { return };
        tracing::info!(node = %node.id, name = %node.name, "node removed");
        self.descriptions.forget(id);
        self.last_uses.forget(&node.machine);
        if let Some(session) = presence.session {
            self.end_session(session, Ending::After(Box::new(last_words)));
        }
        if let Some(older) = presence.older {
            self.end_session(older, Ending::Now);
        }
        if !node.advertised.is_empty() {
            self.elect(at.wall);
        }
    }

    /// Nodes whose key has expired since the last look: they lose their routes, they and their peers are told.
    fn tell_expired(&mut self, wall: Wall) {
        let expired: Vec<NodeId> = self.registry.nodes().filter(|node| node.expired(wall)).map(|node| node.id).collect();
        let mut any = false;
        for id in expired {
            if !std::mem::replace(&mut self.presences.of(id).told_expired, true) {
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
        let routers = self.registry.nodes().filter(|node| !node.advertised.is_empty() && !node.expired(wall));
        let here = routers.filter_map(|node| self.presences.carrying(node.id).map(|online| (node, online)));
        let candidates = here.flat_map(|(node, online)| node.effective_routes().map(move |net| (node.id, net, online)));
        let watched = self.primaries.replaceable().clone();
        let changed = self.primaries.elect(candidates);
        let streams: Vec<SessionId> =
            watched.symmetric_difference(self.primaries.replaceable()).filter_map(|id| self.presences.session(*id)).collect();
        // They have nothing to take: they look whether they are watched.
        streams.into_iter().for_each(|session| self.wake(session));
        for id in changed {
            // Of a node that is being removed the others hear that it is gone, and nothing after that.
            if self.registry.node(id).is_some() {
                self.tell_all(id);
            }
        }
    }

    /// A change of a node that its peers have to hear of. Expects that the change has been made.
    fn tell_peers(&mut self, id: NodeId, change: Change) {
        self.descriptions.forget(id);
        let owner = self.registry.node(id).map(shown_user);
        for view in self.views.values_mut() {
            // A whole node may have come out of sight.
            let hidden = change == Change::Whole && !self.sight.shows(view.audience(), id);
            self.untold |= view.note(id, owner, if hidden { Change::Removed } else { change });
        }
    }

    /// A change that both the node itself and its peers have to hear of as a whole.
    fn tell_all(&mut self, id: NodeId) {
        self.tell_peers(id, Change::Whole);
        self.tell_part(id, Part::Own);
    }

    /// A user's name has changed: whoever knows the user has to hear of it.
    fn tell_user(&mut self, user: UserId) {
        for view in self.views.values_mut() {
            self.untold |= view.note_user(user);
        }
        // The user's own nodes know it also where they are shown none of its nodes.
        for open in self.sessions.values_mut() {
            let own = self.registry.node(open.node).is_some_and(|node| shown_user(node) == user);
            if own && self.views.get(&open.view).is_some_and(|view| !view.knows(user)) {
                open.note_part(Part::Own);
                self.untold = true;
            }
        }
    }

    /// A change of something besides the peers that one node has to hear of.
    fn tell_part(&mut self, id: NodeId, part: Part) {
        let session = self.presences.session(id);
        if let Some(open) = session.and_then(|session| self.sessions.get_mut(&session)) {
            open.note_part(part);
            self.untold = true;
        }
    }

    /// The same for all nodes.
    fn tell_part_to_all(&mut self, part: Part) {
        self.untold |= !self.sessions.is_empty();
        self.sessions.values_mut().for_each(|open| open.note_part(part));
    }
}
