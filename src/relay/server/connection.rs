//! One connection: the handshake, then frames.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use super::counters::{Drop as Dropped, Tally};
use super::mailbox::{Mailbox, Pushed};
use super::registry::{ConnectionId, Target};
use super::{Arrival, Closed, Full, HANDSHAKE, KEEPALIVE, MESH_WRITE_LIMIT, Relay, WRITE_LIMIT};
use crate::ident::NodePublic;
use crate::time::{Bucket, Deadline, Time};
use crate::wire::derp::{
    ClientInfo, Decoder, Frame, GoneReason, HEADER_LEN, KEY_LEN, PresentFlags, ServerInfo, SharedKey, VERSION, packet_frame,
};
use crate::wire::disco;

/// Destinations whose way is kept.
const MAX_ROUTES: usize = 256;
/// A client is told so often at once that a peer is not here, then once a second.
const NOT_HERE_BURST: u64 = 3;

/// What is to be done after bytes were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All bytes were taken.
    Drained,
    /// Whether this node is served must be found out, and [`Connection::admit`] called, before the rest is taken.
    Ask(NodePublic),
}

enum Stage {
    /// Has not said who it is.
    Stranger,
    /// Has proven its key; whether it is served is being found out.
    Waiting(Introduced),
    Member(Member),
}

struct Introduced {
    key: NodePublic,
    shared: SharedKey,
    info: ClientInfo,
    trusted: bool,
}

struct Member {
    key: NodePublic,
    trusted: bool,
    next_keepalive: Time,
    not_here: Bucket,
    limit: Option<Bucket>,
    /// As of which change of the rate.
    limit_of: u64,
}

/// A connection. Dropping it takes the client out of the relay.
pub struct Connection {
    relay: Arc<Relay>,
    id: ConnectionId,
    arrival: Arrival,
    mailbox: Arc<Mailbox>,
    decoder: Decoder,
    stage: Stage,
    started: Time,
    keepalive: Duration,
    routes: HashMap<NodePublic, Target>,
    /// The state of the relay's registry that `routes` are from.
    routes_of: u64,
    wakers: Vec<Waker>,
    tally: Tally,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).field("key", &self.key()).finish_non_exhaustive()
    }
}

impl Relay {
    /// Takes a connection whose stream of frames begins now.
    ///
    /// # Errors
    /// There are too many.
    pub fn connect(self: &Arc<Self>, now: Time, arrival: Arrival) -> Result<Connection, Full> {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.config.max_connections {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(Full);
        }
        let mailbox = Arc::new(Mailbox::new());
        mailbox.tell(Frame::ServerKey(self.key()).to_bytes());
        Ok(Connection {
            relay: self.clone(),
            id: self.number(),
            arrival,
            mailbox,
            decoder: Decoder::default(),
            stage: Stage::Stranger,
            started: now,
            keepalive: KEEPALIVE + self.jitter(),
            routes: HashMap::new(),
            routes_of: 0,
            wakers: Vec::new(),
            tally: Tally::default(),
        })
    }
}

impl Connection {
    /// The client's key, once it is let in.
    pub fn key(&self) -> Option<NodePublic> {
        match &self.stage {
            Stage::Member(member) => Some(member.key),
            Stage::Stranger | Stage::Waiting(_) => None,
        }
    }

    /// How long a write may make no progress.
    pub fn write_limit(&self) -> Duration {
        match &self.stage {
            Stage::Member(member) if member.trusted => MESH_WRITE_LIMIT,
            _ => WRITE_LIMIT,
        }
    }

    /// Takes bytes of the stream off the front of `bytes`, as they arrived.
    ///
    /// # Errors
    /// The connection is to be ended.
    pub fn handle_bytes(&mut self, now: Time, bytes: &mut &[u8]) -> Result<Progress, Closed> {
        let mut decoder = std::mem::take(&mut self.decoder);
        let result = self.decode(now, &mut decoder, bytes);
        self.decoder = decoder;
        self.relay.counters.add(&std::mem::take(&mut self.tally));
        self.wakers.drain(..).for_each(Waker::wake);
        result
    }

    fn decode(&mut self, now: Time, decoder: &mut Decoder, bytes: &mut &[u8]) -> Result<Progress, Closed> {
        if let Stage::Waiting(waiting) = &self.stage {
            return Ok(Progress::Ask(waiting.key));
        }
        while let Some(raw) = decoder.next(bytes).map_err(Closed::Stream)? {
            let Some(frame) = raw.frame().map_err(|_| Closed::Protocol)? else { continue };
            if let Stage::Member(_) = self.stage {
                self.handle_frame(now, &frame)?;
            } else if let Some(key) = self.introduce(now, &frame)? {
                return Ok(Progress::Ask(key));
            }
        }
        Ok(Progress::Drained)
    }

    /// The first frame of a client. The key, if somebody must be asked about it.
    fn introduce(&mut self, now: Time, frame: &Frame<'_>) -> Result<Option<NodePublic>, Closed> {
        let Frame::ClientInfo { key, sealed } = frame else { return Err(Closed::Protocol) };
        let shared = SharedKey::of_relay(&self.relay.config.key, key);
        let info = shared.open::<ClientInfo>(sealed).map_err(|error| {
            self.relay.counters.refused.fetch_add(1, Ordering::Relaxed);
            Closed::Unproven(error)
        })?;
        let trusted = match (&self.relay.config.mesh_key, info.mesh_key()) {
            (Some(own), Some(shown)) => *own == shown,
            _ => false,
        };
        let introduced = Introduced { key: *key, shared, info, trusted };
        if trusted {
            self.join(now, introduced);
            return Ok(None);
        }
        self.stage = Stage::Waiting(introduced);
        Ok(Some(*key))
    }

    /// The answer to [`Progress::Ask`].
    ///
    /// # Errors
    /// The node is not served: the connection is to be ended.
    pub fn admit(&mut self, now: Time, served: bool) -> Result<(), Closed> {
        match std::mem::replace(&mut self.stage, Stage::Stranger) {
            Stage::Waiting(introduced) if served => {
                self.join(now, introduced);
                Ok(())
            }
            Stage::Waiting(_) => {
                self.relay.counters.refused.fetch_add(1, Ordering::Relaxed);
                Err(Closed::Refused)
            }
            other => {
                self.stage = other;
                Ok(())
            }
        }
    }

    fn join(&mut self, now: Time, introduced: Introduced) {
        let Introduced { key, shared, info, trusted } = introduced;
        let mut flags = if trusted { PresentFlags::MESH_PEER } else { PresentFlags::REGULAR };
        if info.is_prober {
            flags = flags.and(PresentFlags::PROBER);
        }
        if self.arrival.not_ideal {
            flags = flags.and(PresentFlags::NOT_IDEAL);
        }
        self.mailbox.set_trusted(trusted);
        let welcome = ServerInfo { version: VERSION, ..ServerInfo::default() };
        self.mailbox.tell(shared.server_info(self.relay.nonce(), &welcome));
        let health = self.relay.health();
        if !health.is_empty() {
            self.mailbox.tell(Frame::Health(health.as_bytes()).to_bytes());
        }
        let (limit, limit_of) = self.relay.limit(now);
        self.stage = Stage::Member(Member {
            key,
            trusted,
            next_keepalive: now + self.keepalive,
            not_here: Bucket::new(now, 1, NOT_HERE_BURST),
            limit: limit.filter(|_| !trusted),
            limit_of,
        });
        let address = self.arrival.address;
        self.relay.change(|registry| registry.join(key, self.id, self.mailbox.clone(), address, flags));
        self.relay.counters.accepted.fetch_add(1, Ordering::Relaxed);
    }

    fn handle_frame(&mut self, now: Time, frame: &Frame<'_>) -> Result<(), Closed> {
        let Stage::Member(member) = &mut self.stage else { return Err(Closed::Protocol) };
        let (own, trusted) = (member.key, member.trusted);
        match frame {
            Frame::SendPacket { to, packet } => {
                if !trusted && member.limit_of != self.relay.rates.load(Ordering::Acquire) {
                    (member.limit, member.limit_of) = self.relay.limit(now);
                }
                if let Some(limit) = &mut member.limit {
                    limit.charge(now, HEADER_LEN + KEY_LEN + packet.len());
                }
                if !self.mailbox.is_active() {
                    self.relay.change(|registry| registry.activate(&own, self.id));
                }
                self.tally.received += 1;
                self.tally.bytes += packet.len() as u64;
                self.relay_packet(now, own, to, packet);
            }
            Frame::ForwardPacket { from, to, packet } if trusted => self.deliver_forwarded(from, to, packet),
            Frame::WatchConns if trusted => {
                let most = self.relay.config.max_connections;
                self.relay.registry().watch(self.id, &self.mailbox, most);
            }
            Frame::ClosePeer(key) if trusted => self.relay.close_peer(key),
            Frame::ForwardPacket { .. } | Frame::WatchConns | Frame::ClosePeer(_) => return Err(Closed::Untrusted),
            Frame::Ping(data) => self.mailbox.tell(Frame::Pong(*data).to_bytes()),
            // Which relay is whose home, the coordinator knows; pongs answer nothing we asked.
            Frame::NotePreferred(_) | Frame::Pong(_) => {}
            Frame::ClientInfo { .. } => return Err(Closed::Protocol),
            _ => self.tally.strays += 1,
        }
        Ok(())
    }

    /// Where packets for a key go; found out anew if anybody came or went.
    fn target(&mut self, from: Option<&NodePublic>, to: &NodePublic) -> Target {
        if self.routes_of != self.relay.changes.load(Ordering::Acquire) || self.routes.len() > MAX_ROUTES {
            self.routes.clear();
        } else if let Some(target) = self.routes.get(to) {
            return target.clone();
        }
        let (target, as_of) = self.relay.route(from, to);
        if self.routes_of != as_of {
            self.routes.clear();
            self.routes_of = as_of;
        }
        self.routes.insert(*to, target.clone());
        target
    }

    fn relay_packet(&mut self, now: Time, own: NodePublic, to: &NodePublic, packet: &[u8]) {
        let is_disco = disco::looks_like(packet);
        match self.target(Some(&own), to) {
            Target::Local(mailbox) => self.push(&mailbox, packet_frame(&own, packet), is_disco),
            Target::Forward(mailbox) => {
                self.tally.forwarded += 1;
                self.push(&mailbox, Frame::ForwardPacket { from: own, to: *to, packet }.to_bytes(), is_disco);
            }
            Target::Unknown => {
                self.tally.drop(Dropped::UnknownDestination, 1);
                let Stage::Member(member) = &mut self.stage else { return };
                if is_disco && member.not_here.take(now, 1) {
                    self.relay.counters.told_not_here.fetch_add(1, Ordering::Relaxed);
                    self.mailbox.tell(Frame::PeerGone { key: *to, reason: GoneReason::NotHere }.to_bytes());
                }
            }
        }
    }

    /// A packet that another relay hands over goes to a client here, or nowhere: never to a third relay.
    fn deliver_forwarded(&mut self, from: &NodePublic, to: &NodePublic, packet: &[u8]) {
        match self.target(None, to) {
            Target::Local(mailbox) => self.push(&mailbox, packet_frame(from, packet), disco::looks_like(packet)),
            Target::Forward(_) | Target::Unknown => self.tally.drop(Dropped::UnknownForForwarded, 1),
        }
    }

    fn push(&mut self, mailbox: &Mailbox, frame: Vec<u8>, is_disco: bool) {
        match mailbox.push(frame, is_disco) {
            Pushed::Waits(dropped, waker) => {
                self.tally.drop(Dropped::QueueHead, dropped);
                self.wakers.extend(waker);
            }
            Pushed::Gone => self.tally.drop(Dropped::Gone, 1),
        }
    }

    /// Moves all frames that wait to `into`. If there are none, `waker` will be woken once there are.
    ///
    /// # Errors
    /// The connection is to be ended.
    pub fn poll_transmit(&self, into: &mut Vec<Vec<u8>>, waker: &Waker) -> Result<(), Closed> {
        self.mailbox.take(into, waker)
    }

    /// So many frames were taken and could not be written.
    pub fn lost(&self, frames: usize) {
        let mut tally = Tally::default();
        tally.drop(Dropped::WriteError, frames as u64);
        self.relay.counters.add(&tally);
    }

    /// Up to when nothing more should be read, because the client sent more than it may.
    pub fn pause(&mut self, now: Time) -> Option<Time> {
        let Stage::Member(member) = &mut self.stage else { return None };
        member.limit.as_mut().and_then(|limit| limit.in_debt_until(now))
    }

    /// When something is due, and what.
    pub fn poll_timeout(&self) -> Deadline {
        match &self.stage {
            Stage::Member(member) => Deadline { at: member.next_keepalive, why: "the client must hear that the connection lives" },
            Stage::Stranger | Stage::Waiting(_) => Deadline { at: self.started + HANDSHAKE, why: "the client must have said who it is" },
        }
    }

    /// Time has passed.
    ///
    /// # Errors
    /// The connection is to be ended.
    pub fn handle_timeout(&mut self, now: Time) -> Result<(), Closed> {
        match &mut self.stage {
            Stage::Member(member) if now >= member.next_keepalive => {
                member.next_keepalive = now + self.keepalive;
                self.mailbox.tell(Frame::KeepAlive.to_bytes());
                Ok(())
            }
            Stage::Stranger | Stage::Waiting(_) if now >= self.started + HANDSHAKE => Err(Closed::Handshake),
            _ => Ok(()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.mailbox.close(Closed::Stopping);
        if let Stage::Member(member) = &self.stage {
            let key = member.key;
            self.relay.change(|registry| registry.leave(key, self.id));
        }
        self.relay.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
