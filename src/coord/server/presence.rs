//! Which nodes are here: streams opened and closed, and what follows from a node's absence, each in its own time.
//!
//! A stream's end says little: clients drop theirs with every change of network and are back within a second. So peers hear of an absence
//! after [`OFFLINE_GRACE`], which is short enough for a person who looks and long enough for a reconnect to be nobody's business. Routes
//! that another router can take over go to it after [`HANDOVER_GRACE`] already, because packets are being lost, and stay there when the
//! first one comes back; with none to take over they stay until [`ROUTE_GRACE`], since the router may well be
//! reachable without its control stream. Ephemeral nodes are removed much later.

use std::collections::BTreeMap;
use std::time::Duration;

use super::due::Due;
use super::journal::{Change, Fields};
use super::session::{Ending, Session, SessionId};
use super::{Moment, Server};
use crate::ident::NodeId;
use crate::time::{Deadline, Time};

/// How long a node whose stream ended still counts as online: reconnects within it are told to nobody.
pub const OFFLINE_GRACE: Duration = Duration::from_millis(1500);
/// How long after its stream's end a router keeps the routes that another one can take over: as long as a stream needs that ends in order
/// and is opened again at once.
pub const HANDOVER_GRACE: Duration = Duration::from_millis(300);
/// How long after its stream's end a router keeps the routes that no other router can take over.
pub const ROUTE_GRACE: Duration = Duration::from_secs(10);
/// How long after a restart of the coordinator a node that was online still counts as online. Clients back off up to 30 s, so twice that
/// brings all of them back.
pub const RESTART_GRACE: Duration = Duration::from_secs(60);
/// How long a stream may live at least, if another takes its place.
pub const STREAM_TURN: Duration = Duration::from_secs(10);
/// How long an ephemeral node is kept after it went offline, unless set otherwise.
pub const EPHEMERAL_AFTER: Duration = Duration::from_secs(30 * 60);

/// Whether a node is here.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Presence {
    /// As its peers are told.
    pub(super) online: bool,
    /// Its stream has been gone for [`HANDOVER_GRACE`], whatever its peers are told: it may keep routes, but not win any.
    absent: bool,
    pub(super) session: Option<SessionId>,
    /// The stream that the one of now has taken the place of, while it is left open.
    pub(super) older: Option<SessionId>,
    /// When the stream of now was opened.
    opened: Time,
    /// Its peers have been told that its key has expired.
    pub(super) told_expired: bool,
}

/// All presences, and what becomes due by absence.
#[derive(Debug, Default)]
pub(super) struct Presences {
    known: BTreeMap<NodeId, Presence>,
    handover: Due,
    offline: Due,
    withdrawal: Due,
    removal: Due,
    superseded: Due,
    /// Nodes that have said to leave, and until when that counts.
    leaving: Due,
}

impl Presences {
    pub(super) fn of(&mut self, id: NodeId) -> &mut Presence {
        self.known.entry(id).or_default()
    }

    pub(super) fn is_online(&self, id: NodeId) -> bool {
        self.known.get(&id).is_some_and(|presence| presence.online)
    }

    pub(super) fn session(&self, id: NodeId) -> Option<SessionId> {
        self.known.get(&id)?.session
    }

    /// Nodes with an open stream.
    pub(super) fn connected(&self) -> usize {
        self.known.values().filter(|presence| presence.session.is_some()).count()
    }

    /// Whether a router may carry routes: `Some(true)` if it is here, `Some(false)` if it may only keep what it has.
    pub(super) fn carrying(&self, id: NodeId) -> Option<bool> {
        match self.known.get(&id) {
            Some(Presence { online: true, absent, .. }) => Some(!absent && !self.leaving.awaits(id)),
            _ => self.withdrawal.awaits(id).then_some(false),
        }
    }

    /// The node leaves, until this time; or it does not.
    pub(super) fn set_leaving(&mut self, id: NodeId, until: Option<Time>) {
        match until {
            Some(until) => self.leaving.set(id, until),
            None => drop(self.leaving.clear(id)),
        }
    }

    /// The node is known to be gone: nothing has to be waited for.
    pub(super) fn set_absent(&mut self, id: NodeId) {
        self.cancel(id);
        self.of(id).absent = true;
    }

    pub(super) fn forget(&mut self, id: NodeId) -> Presence {
        self.cancel(id);
        self.superseded.clear(id);
        self.known.remove(&id).unwrap_or_default()
    }

    /// The earliest of what is due.
    pub(super) fn next(&self) -> Option<Deadline> {
        let handover = self.handover.next("an absent router gives way to another");
        let offline = self.offline.next("a node is offline");
        let withdrawal = self.withdrawal.next("an absent router loses its routes");
        let removal = self.removal.next("an ephemeral node is removed");
        let superseded = self.superseded.next("a superseded stream ends");
        let leaving = self.leaving.next("a node that was to leave counts as staying again");
        [handover, offline, withdrawal, removal, superseded, leaving].into_iter().flatten().min()
    }

    /// The node is here: nothing is due for its absence any more.
    fn cancel(&mut self, id: NodeId) {
        self.handover.clear(id);
        self.offline.clear(id);
        self.withdrawal.clear(id);
        self.removal.clear(id);
        self.leaving.clear(id);
    }
}

impl Server {
    /// Takes the stored nodes for what they were when the process ended.
    pub(super) fn restore_presences(&mut self, at: Moment) {
        for node in self.registry.nodes() {
            let told_expired = node.expired(at.wall);
            *self.presences.of(node.id) = Presence { online: node.connected, told_expired, ..Presence::default() };
            if node.connected {
                self.presences.offline.set(node.id, at.now + RESTART_GRACE);
            } else if node.ephemeral {
                self.presences.removal.set(node.id, at.now + self.settings.ephemeral_after);
            }
        }
    }

    /// Does what absences have made due.
    pub(super) fn handle_absences(&mut self, at: Moment) {
        while let Some(id) = self.presences.handover.pop(at.now) {
            self.presences.of(id).absent = true;
            self.elect_if_router(id, at);
        }
        while let Some(id) = self.presences.offline.pop(at.now) {
            self.go_offline(id, at);
        }
        while let Some(id) = self.presences.leaving.pop(at.now) {
            self.elect_if_router(id, at);
        }
        let mut withdrawn = false;
        while self.presences.withdrawal.pop(at.now).is_some() {
            withdrawn = true;
        }
        if withdrawn {
            self.elect(at.wall);
        }
        while let Some(id) = self.presences.superseded.pop(at.now) {
            self.end_older(id);
        }
        while let Some(id) = self.presences.removal.pop(at.now) {
            // It may have joined again meanwhile, to stay.
            if self.registry.node(id).is_some_and(|node| node.ephemeral) {
                self.remove(id, at);
            }
        }
    }

    /// An ephemeral node that never connects goes, too.
    pub(super) fn expect_connection(&mut self, id: NodeId, at: Moment) {
        if self.presences.session(id).is_none() {
            self.presences.removal.set(id, at.now + self.settings.ephemeral_after);
        }
    }

    /// Opens a stream for a node; the newest wins. The older one ends, but not before it is [`STREAM_TURN`] old: two machines with the
    /// same keys (a cloned disk) take each other's place for ever, and come back at once each time.
    pub(super) fn open_session(&mut self, id: NodeId, at: Moment) -> SessionId {
        let was_carrying = self.presences.carrying(id) == Some(true);
        self.presences.cancel(id);
        self.last_session += 1;
        let session = SessionId(self.last_session);
        let presence = self.presences.of(id);
        let was_online = std::mem::replace(&mut presence.online, true);
        presence.absent = false;
        let older = presence.session.replace(session);
        let turn_ends = std::mem::replace(&mut presence.opened, at.now) + STREAM_TURN;
        let view = self.view_of(id);
        self.sessions.insert(session, Session::new(id, view));
        if let Some(older) = older {
            self.end_older(id);
            self.presences.of(id).older = Some(older);
            if turn_ends <= at.now {
                self.end_older(id);
            } else {
                self.presences.superseded.set(id, turn_ends);
            }
        }
        self.registry.change_node(id, |node| {
            node.last_seen = Some(at.wall);
            node.connected = true;
        });
        if !was_online {
            self.tell_peers(id, Change::Fields(Fields { online: true, ..Fields::default() }));
        }
        if !(was_online && was_carrying) {
            self.elect_if_router(id, at);
        }
        self.wake(session);
        session
    }

    fn end_older(&mut self, id: NodeId) {
        self.presences.superseded.clear(id);
        if let Some(older) = self.presences.of(id).older.take() {
            self.end_session(older, Ending::Now);
        }
    }

    /// Ends all streams of a node, whose key is no longer its own.
    pub(super) fn end_streams(&mut self, id: NodeId) {
        self.end_older(id);
        if let Some(session) = self.presences.session(id) {
            self.end_session(session, Ending::Now);
        }
    }

    /// The stream is gone, whoever ended it. Its node is offline after [`OFFLINE_GRACE`], unless it has a newer stream by then.
    pub fn close_session(&mut self, session: SessionId, at: Moment) {
        let Some(closed) = self.sessions.remove(&session) else { return };
        if self.presences.session(closed.node) != Some(session) {
            return;
        }
        let presence = self.presences.of(closed.node);
        let older = presence.older.take().filter(|older| self.sessions.contains_key(older));
        presence.session = older;
        if let Some(older) = older {
            // The one that was superseded is still there. What is known of the node (keys, addresses) is what the other machine has said,
            // and what concerned the node was told to the other: ended, it comes back at once, says everything and is told everything.
            self.presences.superseded.clear(closed.node);
            self.end_session(older, Ending::Now);
            return;
        }
        self.registry.change_node(closed.node, |node| node.last_seen = Some(at.wall));
        if self.primaries.replaceable().contains(&closed.node) {
            self.presences.handover.set(closed.node, at.now + HANDOVER_GRACE);
        }
        self.presences.offline.set(closed.node, at.now + OFFLINE_GRACE);
        self.presences.withdrawal.set(closed.node, at.now + ROUTE_GRACE);
    }

    pub(super) fn go_offline(&mut self, id: NodeId, at: Moment) {
        let presence = self.presences.of(id);
        if !std::mem::replace(&mut presence.online, false) {
            return;
        }
        self.registry.change_node(id, |node| node.connected = false);
        if self.registry.node(id).is_some_and(|node| node.ephemeral) {
            self.presences.removal.set(id, at.now + self.settings.ephemeral_after);
        }
        self.tell_peers(id, Change::Fields(Fields { online: true, ..Fields::default() }));
        self.elect_if_router(id, at);
    }

    /// Whether a stream's end has to be noticed soon: its node carries what another router would take over.
    pub fn is_watched(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|open| self.primaries.replaceable().contains(&open.node))
    }

    pub(super) fn elect_if_router(&mut self, id: NodeId, at: Moment) {
        if self.registry.node(id).is_some_and(|node| !node.advertised.is_empty()) {
            self.elect(at.wall);
            self.tell_rivals(id);
        }
    }
}
