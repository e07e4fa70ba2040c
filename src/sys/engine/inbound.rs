//! From the socket to the TUN.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn_udp::RecvMeta;
use rustix::event::PollFlags;

use super::Shared;
use super::announce::announce;
use super::counters::add;
use super::outbound::initiate;
use super::relays::Arrived;
use super::table::{Peer, State, Table};
use crate::filter::{Filter, Last};
use crate::ident::NodePublic;
use crate::path::Path;
use crate::sys::offload::Offload;
use crate::tunnel::demux::{Kind, classify};
use crate::tunnel::{Admission, Coalescer, Joining, MIN_ROOM, Opened, Segments, VirtioHeader};
use crate::wire::tsmp;

/// Messages taken from the socket at a time; each may carry 64 KiB of datagrams.
const MESSAGES: usize = 4;
const MESSAGE: usize = 65_536;
/// How long a handshake may stay without an answer when its peer shows that it is there.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Where a message came from: by which way, and through a relay from whom, for which the relay vouches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    path: Path,
    sender: Option<NodePublic>,
}

impl Origin {
    /// What stands for it in cookies.
    fn ip(&self) -> IpAddr {
        self.path.as_address().ip()
    }

    /// Whether a message that names this peer may come from there: nobody speaks for another through a relay.
    fn may_be(&self, peer: &NodePublic) -> bool {
        self.sender.is_none_or(|sender| sender == *peer)
    }

    /// Sends a message straight back.
    pub(super) fn reply(&self, shared: &Shared, message: &[u8]) {
        match (self.path, self.sender) {
            (Path::Direct(to), _) => shared.socket.send_now(shared, to, message),
            (path, Some(sender)) => shared.send_by(path, &sender, message),
            (Path::Relay(_), None) => {}
        }
    }
}

/// Sends what waited for a session.
fn release(shared: &Shared, peer: &Peer, state: &mut State, room: &mut [u8]) {
    while let Some(length) = state.tunnel.release(room) {
        let ways = state.route.ways(shared.now());
        if ways.is_none() {
            return;
        }
        shared.send_on(ways, &peer.key, room.get(..length).unwrap_or_default());
        peer.tx_bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// A handshake message that passed the gate, or a cookie.
fn handshake(shared: &Shared, peer: &Peer, from: Origin, message: &[u8], room: &mut [u8]) {
    let kind = classify(message);
    let mut state = peer.lock();
    match state.tunnel.open(from.ip(), message, room) {
        Opened::Reply { message, established } => {
            if established {
                // Only the peer could answer what we sent. An initiation may be an old one, sent again by anyone: it gets
                // its response, and the path moves when data follows.
                let mut paths = shared.paths();
                paths.answered(shared.now(), &peer.key, from.path);
                state.follow(&paths, &peer.key);
                tracing::debug!(peer = peer.name, from = ?from.path, "handshake answered");
            } else {
                shared.paths().met(shared.now(), &peer.key);
            }
            state.sent = shared.now();
            from.reply(shared, message);
            if let (true, Kind::Response { receiver }) = (established, kind) {
                announce(shared, peer, &mut state, receiver, from, room);
            }
            release(shared, peer, &mut state, room);
        }
        Opened::Refused(refusal) => shared.counters.refuse(refusal),
        Opened::Packet(..) | Opened::Nothing => {}
    }
    drop(state);
    shared.attend(|_, _| ());
}

/// What was opened and is to be written: the packets lie in `arena`, in the order they came.
struct Opening {
    arena: Box<[u8]>,
    used: usize,
    coalescer: Coalescer,
}

impl Opening {
    fn new(shared: &Shared) -> Self {
        let joining = match shared.tun.offload {
            Offload::None => Joining::Nothing,
            Offload::Tcp => Joining::Tcp,
            Offload::TcpAndUdp => Joining::TcpAndUdp,
        };
        // What is opened is shorter than what was received; opening itself needs room for the largest datagram.
        Self { arena: vec![0; (MESSAGES + 1) * MESSAGE].into_boxed_slice(), used: 0, coalescer: Coalescer::new(joining) }
    }

    fn room(&mut self) -> &mut [u8] {
        self.arena.get_mut(self.used..).unwrap_or_default()
    }

    /// The first so many bytes of the room are a packet for the TUN.
    fn keep(&mut self, length: usize) {
        let range = self.used..self.used + length;
        self.used = range.end;
        self.coalescer.push(&self.arena, range);
    }

    /// Writes everything to the TUN.
    fn write(&mut self, shared: &Shared) {
        if self.coalescer.is_empty() {
            return;
        }
        let plain = shared.tun.offload == Offload::None;
        let mut refused = false;
        self.coalescer.finish(&mut self.arena, |pieces, count| {
            let counters = &shared.counters;
            let pieces = if plain { pieces.get(1..).unwrap_or_default() } else { pieces };
            match rustix::io::writev(&shared.tun, pieces) {
                Ok(_) => {
                    add(&counters.tun_writes, 1);
                    add(&counters.tun_out, count as u64);
                }
                Err(error) => {
                    tracing::trace!(%error, count, "the TUN refused a packet");
                    if count > 1 && error == rustix::io::Errno::INVAL {
                        refused = true;
                        write_singly(shared, pieces);
                    } else {
                        add(&counters.write_failed, count as u64);
                    }
                }
            }
        });
        self.used = 0;
        if refused {
            tracing::info!("the kernel refuses joined packets on the TUN, writing them one by one");
            self.coalescer.set_joining(Joining::Nothing);
        }
    }
}

/// Cuts up a super-packet that the kernel refused. Rare: it happens once, then nothing is joined any more.
fn write_singly(shared: &Shared, pieces: &[IoSlice<'_>]) {
    let Some((header, rest)) = pieces.split_first() else { return };
    let mut packet: Vec<u8> = rest.iter().flat_map(|piece| piece.iter().copied()).collect();
    let header = <[u8; VirtioHeader::LENGTH]>::try_from(&**header).ok().and_then(VirtioHeader::read);
    let Some(Ok(mut segments)) = header.map(|header| Segments::new(&header, &mut packet)) else { return };
    let plain = VirtioHeader::default().bytes();
    while let Some(segment) = segments.next() {
        let counters = &shared.counters;
        match rustix::io::writev(&shared.tun, &[IoSlice::new(&plain), IoSlice::new(segment)]) {
            Ok(_) => {
                add(&counters.tun_writes, 1);
                add(&counters.tun_out, 1);
            }
            Err(_) => add(&counters.write_failed, 1),
        }
    }
}

/// Where a received message came from, and what it meets here.
#[derive(Clone, Copy)]
struct Arrival<'a> {
    shared: &'a Shared,
    table: &'a Table,
    filter: &'a Filter,
    from: Origin,
}

impl Arrival<'_> {
    /// What one received message holds: datagrams of `stride` bytes from one sender, the last may be shorter.
    fn message(self, contents: &[u8], stride: usize, opening: &mut Opening) {
        let mut rest = contents.chunks(stride.max(1));
        let mut next = rest.next();
        while let Some(one) = next {
            let peer = match classify(one) {
                Kind::Data { receiver } => self.table.by_receiver(receiver).map(|peer| (peer, receiver)),
                _ => None,
            };
            let peer = peer.filter(|(peer, _)| self.from.may_be(&peer.key));
            next = match peer {
                Some((peer, receiver)) => self.data(peer, receiver, std::iter::once(one).chain(&mut rest), opening),
                None => {
                    control(self.shared, self.table, self.from, one, opening.room());
                    rest.next()
                }
            };
        }
    }

    /// A run of datagrams for one session: the peer is locked once for all of them. Returns the datagram after the run.
    fn data<'d>(
        self,
        peer: &Arc<Peer>,
        receiver: u32,
        datagrams: impl Iterator<Item = &'d [u8]>,
        opening: &mut Opening,
    ) -> Option<&'d [u8]> {
        let Self { shared, table, filter, from } = self;
        let mut state = peer.lock();
        let mut authentic = false;
        let mut allowed = None;
        let mut last = Last::default();
        let mut bytes = 0;
        let mut after = None;
        let mut told = false;
        for message in datagrams {
            if classify(message) != (Kind::Data { receiver }) {
                after = Some(message);
                break;
            }
            match state.tunnel.open(from.ip(), message, opening.room()) {
                Opened::Packet(packet, source) => {
                    authentic = true;
                    let length = packet.len();
                    if allowed != Some(source) && table.by_address(source).is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
                        allowed = Some(source);
                    }
                    if let Some(disco) = tsmp::disco_key(packet) {
                        shared.paths().told_disco(shared.now(), &peer.key, disco);
                    } else if allowed != Some(source) {
                        add(&shared.counters.not_allowed, 1);
                    } else if filter.admit(packet, &mut last, |flow| shared.flows().answers(flow)).is_err() {
                        add(&shared.counters.filtered, 1);
                    } else {
                        bytes += length as u64;
                        opening.keep(length);
                    }
                }
                Opened::Nothing => authentic = true,
                Opened::Refused(refusal) => shared.counters.refuse(refusal),
                Opened::Reply { message, .. } => from.reply(shared, message),
            }
        }
        if authentic {
            let now = shared.now();
            told = state.route.tell_heard(now, from.path);
            if told {
                let mut paths = shared.paths();
                paths.heard(now, &peer.key, from.path);
                state.follow(&paths, &peer.key);
            }
            peer.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
            announce(shared, peer, &mut state, receiver, from, opening.room());
            if state.tunnel.has_waiting() {
                release(shared, peer, &mut state, opening.room());
            }
        }
        drop(state);
        if told {
            shared.attend(|_, _| ());
        }
        after
    }
}

/// Data for a session we do not have: if it comes from where a peer is known to be, we were restarted and the peer does not know.
/// A handshake now spares it the 15 s until it would notice. While one is under way a second is started only if the first has got no
/// answer for [`ASK_AGAIN`]: the peer was not to be reached then, and is now.
fn lost(shared: &Shared, table: &Table, from: Origin, room: &mut [u8]) {
    add(&shared.counters.no_session, 1);
    let peer = match (from.path, from.sender) {
        (Path::Direct(address), _) => table.by_endpoint(address),
        (Path::Relay(_), sender) => sender.and_then(|sender| table.by_key(&sender)),
    };
    let Some(peer) = peer else { return };
    let mut state = peer.lock();
    if state.tunnel.has_session() {
        return;
    }
    let stale = shared.now().since(state.asked) >= ASK_AGAIN;
    let initiation = if stale { state.tunnel.meet(room) } else { state.tunnel.initiate(room) };
    if let Some(length) = initiation {
        initiate(shared, peer, &mut state, room.get(..length).unwrap_or_default());
    }
}

/// A message that is not data.
fn control(shared: &Shared, table: &Table, from: Origin, message: &[u8], room: &mut [u8]) {
    let counters = &shared.counters;
    let mut cookie = [0; MIN_ROOM];
    match classify(message) {
        kind @ (Kind::Initiation | Kind::Response { .. }) => match shared.gate.admit(from.ip(), message, &mut cookie) {
            Admission::Initiation(key) => match table.by_key(&key) {
                Some(peer) if from.may_be(&key) => handshake(shared, peer, from, message, room),
                known => {
                    add(&counters.stranger, 1);
                    if known.is_none() && from.may_be(&key) {
                        shared.strangers().keep(shared.now(), key, from.path.as_address(), message);
                    }
                }
            },
            Admission::Response => {
                let Kind::Response { receiver } = kind else { return };
                match table.by_receiver(receiver).filter(|peer| from.may_be(&peer.key)) {
                    Some(peer) => handshake(shared, peer, from, message, room),
                    None => add(&counters.no_session, 1),
                }
            }
            Admission::Cookie(cookie) => {
                add(&counters.cookies, 1);
                from.reply(shared, cookie);
            }
            Admission::Refused(refusal) => counters.refuse(refusal),
        },
        Kind::Cookie { receiver } => match table.by_receiver(receiver).filter(|peer| from.may_be(&peer.key)) {
            Some(peer) => handshake(shared, peer, from, message, room),
            None => add(&counters.no_session, 1),
        },
        Kind::Data { .. } => lost(shared, table, from, room),
        Kind::Disco => shared.attend(|paths, now| match (from.path, from.sender) {
            (Path::Direct(address), _) => paths.handle_datagram(now, address, message),
            (Path::Relay(region), Some(sender)) => paths.handle_relayed(now, region, sender, message),
            (Path::Relay(_), None) => {}
        }),
        Kind::Stun => {
            if from.sender.is_some() || shared.stun.try_send((shared.now(), message.to_vec())).is_err() {
                add(&counters.unasked, 1);
            }
        }
        Kind::Junk => add(&counters.junk, 1),
    }
}

/// Answers the initiations of those who were strangers when they came and are peers now.
pub(super) fn meet_strangers(shared: &Shared) {
    let table = shared.table();
    let mut room = [0; 2 * MIN_ROOM];
    let known = shared.strangers().take(shared.now(), |key| table.by_key(key).is_some());
    for stranger in known {
        if let Some(peer) = table.by_key(&stranger.key) {
            let path = Path::from_address(stranger.from);
            let from = Origin { path, sender: path.region().map(|_| stranger.key) };
            handshake(shared, peer, from, &stranger.message, &mut room);
        }
    }
}

/// What relays have brought.
fn relayed(shared: &Shared, opening: &mut Opening) {
    let arrived = shared.relays.take_arrived();
    if arrived.is_empty() {
        return;
    }
    let (table, filter) = (shared.table(), shared.filter());
    for Arrived { region, from, packet } in arrived {
        let from = Origin { path: Path::Relay(region), sender: Some(from) };
        if opening.room().len() < 2 * MESSAGE {
            opening.write(shared);
        }
        Arrival { shared, table: &table, filter: &filter, from }.message(&packet, packet.len(), opening);
    }
    opening.write(shared);
}

/// The inbound thread.
pub(super) fn run(shared: &Shared) {
    let mut buffer = vec![0; MESSAGES * MESSAGE].into_boxed_slice();
    let mut opening = Opening::new(shared);
    let mut meta = [RecvMeta::default(); MESSAGES];
    while !shared.stopping() {
        let received = {
            let mut parts = buffer.chunks_exact_mut(MESSAGE);
            let mut slices: [IoSliceMut<'_>; MESSAGES] = std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
            shared.socket.receive(&mut slices, &mut meta)
        };
        relayed(shared, &mut opening);
        match received {
            Ok(count) => {
                let (table, filter) = (shared.table(), shared.filter());
                for (contents, meta) in buffer.chunks_exact(MESSAGE).zip(&meta).take(count) {
                    let path = Path::Direct(SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port()));
                    let from = Origin { path, sender: None };
                    let contents = contents.get(..meta.len).unwrap_or_default();
                    add(&shared.counters.udp_receives, 1);
                    add(&shared.counters.udp_in, contents.len().div_ceil(meta.stride.max(1)) as u64);
                    Arrival { shared, table: &table, filter: &filter, from }.message(contents, meta.stride, &mut opening);
                }
                opening.write(shared);
            }
            Err(error) => {
                if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                    tracing::debug!(%error, "the socket cannot be read");
                }
                shared.wait([(shared.socket.as_fd(), PollFlags::IN), (shared.relays.as_fd(), PollFlags::IN)], None);
            }
        }
    }
}
