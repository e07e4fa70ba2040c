//! From the TUN to the socket.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::PollFlags;

use super::Shared;
use super::counters::add;
use super::socket::{MAX_SEGMENTS, MAX_SEND};
use super::table::{Peer, State};
use super::translation::{Answering, Leaving};
use crate::filter::{Departure, Flow};
use crate::node::TunOffload;
use crate::path::{Local, Path, Ways};
use crate::time::Time;
use crate::tunnel::translate::GROWTH;
use crate::tunnel::{MAX_PACKET, MIN_ROOM, OVERHEAD, Sealed, Segments, Tunnel, VirtioHeader};

/// Datagrams of one size for one address, the last may be shorter: one send.
struct Run {
    to: SocketAddr,
    local: Local,
    range: Range<usize>,
    segment: usize,
}

/// Sealed datagrams on their way out. Sealing gathers, under a peer's lock; sending comes after it: a full socket must not keep
/// the inbound thread from the peer.
struct Batch {
    buffer: Box<[u8]>,
    end: usize,
    runs: Vec<Run>,
    /// The last address the system knows no way to, and when it said so.
    unreachable: Option<(SocketAddr, Time)>,
    /// The last flow that was remembered.
    remembered: Option<Flow>,
}

/// How often the core hears that an address is unreachable.
const REMIND: Duration = Duration::from_secs(1);

/// Room for what one super-packet becomes, and the beginning of the next.
const BATCH: usize = 4 * MAX_SEND;

impl Batch {
    fn new() -> Self {
        Self { buffer: vec![0; BATCH].into_boxed_slice(), end: 0, runs: Vec::with_capacity(16), unreachable: None, remembered: None }
    }

    /// Whether a packet may leave. Remembers what is being sent, where its answers would not be let in otherwise.
    fn lets_go(&mut self, shared: &Shared, packet: &[u8]) -> bool {
        match shared.filter().departure(packet) {
            Departure::Held => return false,
            Departure::Flow(flow) if self.remembered != Some(flow) => {
                shared.flows().sent(flow);
                self.remembered = Some(flow);
            }
            Departure::Flow(_) | Departure::Plain => {}
        }
        true
    }

    /// Room for a packet of so many bytes, sealed. Sends what has gathered if there is none left, which only a super-packet of
    /// very small segments brings about.
    fn room(&mut self, shared: &Shared, packet: usize) -> &mut [u8] {
        let need = (packet + OVERHEAD).max(MIN_ROOM);
        if self.buffer.len() - self.end < need {
            self.flush(shared);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// The first so many bytes of the room are a datagram for this address.
    fn push(&mut self, segmentation: bool, (to, local): (SocketAddr, Local), length: usize) {
        let range = self.end..self.end + length;
        self.end = range.end;
        if segmentation && let Some(run) = self.runs.last_mut() {
            let total = run.range.len();
            let whole = total % run.segment == 0;
            let count = total / run.segment;
            if (run.to, run.local) == (to, local) && whole && length <= run.segment && count < MAX_SEGMENTS && total + length <= MAX_SEND {
                run.range.end = range.end;
                return;
            }
        }
        self.runs.push(Run { to, local, range, segment: length });
    }

    /// Sends all but the last run, which the next packets may continue, or all if room gets short.
    fn send(&mut self, shared: &Shared) {
        if self.buffer.len() - self.end < BATCH / 2 {
            return self.flush(shared);
        }
        let Some(last) = self.runs.len().checked_sub(1) else { return };
        self.send_runs(shared, last);
    }

    /// Sends everything.
    fn flush(&mut self, shared: &Shared) {
        self.send_runs(shared, self.runs.len());
        self.end = 0;
    }

    fn send_runs(&mut self, shared: &Shared, count: usize) {
        for run in self.runs.drain(..count) {
            let contents = self.buffer.get(run.range).unwrap_or_default();
            // A socket that is gone is no reason to give up the address.
            let reachable = shared.sockets.with(run.local, |socket| socket.send(shared, run.to, contents, run.segment));
            if reachable == Some(false) {
                let now = shared.now();
                if self.unreachable.is_none_or(|(address, at)| address != run.to || now.since(at) >= REMIND) {
                    self.unreachable = Some((run.to, now));
                    shared.attend(|paths, now| paths.unreachable(now, run.to));
                }
            }
        }
    }
}

/// Sends a handshake initiation on every path that is to be tried.
pub(super) fn initiate(shared: &Shared, peer: &Peer, state: &mut State, message: &[u8]) {
    let now = shared.now();
    let paths: Vec<(Path, Local)> = {
        let mut core = shared.paths();
        let paths = core.ask(now, &peer.key);
        paths.into_iter().map(|path| (path, path.direct().map_or(Local::MAIN, |address| core.local(address)))).collect()
    };
    tracing::debug!(peer = peer.name, paths = paths.len(), "handshake initiation");
    (state.sent, state.asked) = (now, now);
    if paths.is_empty() {
        add(&shared.counters.no_path, 1);
    }
    add(&shared.counters.initiations, paths.len() as u64);
    for (path, from) in paths {
        shared.send_by(path, from, &peer.key, message);
    }
}

/// Locks a peer to send it data, and has the core know that data goes there.
pub(super) fn lock_for_sending<'a>(shared: &Shared, peer: &'a Peer, now: Time) -> MutexGuard<'a, State> {
    let mut state = peer.lock();
    if state.route.tell_sending(now) {
        drop(state);
        // Before the packet, so that a peer that must learn our address by a ping learns it before the handshake comes.
        shared.attend(|paths, now| paths.sending(now, &peer.key));
        shared.traffic.store(u64::try_from(now.since(Time::default()).as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        state = peer.lock();
        // How long the address is enough alone changes with each answered ping.
        state.follow(&shared.paths(), &peer.key);
    }
    state
}

/// Seals one packet into the batch; `false` if there is no session, so that it waits.
fn seal(shared: &Shared, batch: &mut Batch, peer: &Peer, state: &mut State, ways: Ways, packet: &[u8]) -> bool {
    let room = batch.room(shared, packet.len());
    match state.tunnel.seal(packet, room) {
        Sealed::Data(length) => {
            if ways.relay.is_some() {
                shared.send_on(Ways { direct: None, ..ways }, &peer.key, room.get(..length).unwrap_or_default());
            }
            if let Some(to) = ways.direct {
                batch.push(shared.sockets.main.segmentation(), (to, ways.local), length);
            }
            add(&shared.counters.no_path, ways.is_none().into());
            true
        }
        Sealed::Initiation(length) => {
            let mut message = [0; MIN_ROOM];
            if let (Some(copy), Some(original)) = (message.get_mut(..length), room.get(..length)) {
                copy.copy_from_slice(original);
                initiate(shared, peer, state, copy);
            }
            false
        }
        Sealed::Waiting => false,
    }
}

/// Sends what one read of the TUN brought: a packet, or a super-packet.
fn packets(shared: &Shared, batch: &mut Batch, header: &VirtioHeader, packet: &mut [u8]) {
    let counters = &shared.counters;
    let Some(destination) = Tunnel::destination(packet) else {
        add(&counters.bad_tun, 1);
        return;
    };
    let table = shared.table();
    let Some(peer) = table.by_address(destination) else {
        add(&counters.no_peer, 1);
        return;
    };
    if !batch.lets_go(shared, packet) {
        add(&counters.bad_tun, 1);
        return;
    }
    let Ok(mut segments) = Segments::new(header, packet) else {
        add(&counters.bad_tun, 1);
        return;
    };
    // All segments have one destination: one lock, one look at the path and the clock for all of them.
    let now = shared.now();
    let mut state = lock_for_sending(shared, peer, now);
    let ways = state.route.ways(now);
    let (mut count, mut bytes) = (0, 0);
    let mut sent = false;
    while let Some(segment) = segments.next() {
        count += 1;
        bytes += segment.len() as u64;
        sent |= seal(shared, batch, peer, &mut state, ways, segment);
    }
    if sent {
        state.sent = now;
    }
    drop(state);
    add(&counters.tun_in, count);
    peer.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
    batch.send(shared);
}

/// Sends what one read of the TUN brought, from `start` of the buffer on; as IPv6, if it answers what came as that.
fn read(shared: &Shared, batch: &mut Batch, answering: &mut Answering, mut header: VirtioHeader, buffer: &mut [u8], start: usize) {
    match shared.translation.leaving(shared, &mut header, buffer, start) {
        Leaving::From(start) => packets(shared, batch, &header, buffer.get_mut(start..).unwrap_or_default()),
        Leaving::Singly(origin, sites) => {
            let Ok(mut segments) = Segments::new(&header, buffer.get_mut(start..).unwrap_or_default()) else {
                add(&shared.counters.bad_tun, 1);
                return;
            };
            while let Some(segment) = segments.next() {
                let told =
                    answering.singly(shared, segment, &origin, &sites, |packet| packets(shared, batch, &VirtioHeader::default(), packet));
                if told {
                    return;
                }
            }
        }
    }
}

/// The outbound thread.
pub(super) fn run(shared: &Shared) {
    // Room to grow, the virtio-net header if there is one, the packet.
    let mut buffer = vec![0; GROWTH + VirtioHeader::LENGTH + MAX_PACKET].into_boxed_slice();
    let (mut batch, mut answering) = (Batch::new(), Answering::default());
    while !shared.stopping() {
        match rustix::io::read(&shared.tun, buffer.get_mut(GROWTH..).unwrap_or_default()) {
            Ok(length) => {
                add(&shared.counters.tun_reads, 1);
                let taken = buffer.get_mut(..GROWTH + length).unwrap_or_default();
                if shared.tun.offload == TunOffload::None {
                    read(shared, &mut batch, &mut answering, VirtioHeader::default(), taken, GROWTH);
                } else if let Some(header) = taken.get(GROWTH..).and_then(<[u8]>::first_chunk).copied().and_then(VirtioHeader::read) {
                    read(shared, &mut batch, &mut answering, header, taken, GROWTH + VirtioHeader::LENGTH);
                } else {
                    add(&shared.counters.bad_tun, 1);
                }
            }
            Err(error) => {
                batch.flush(shared);
                if error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR {
                    tracing::debug!(%error, "the TUN cannot be read");
                    // Somebody has deleted it; the wait below returns at once then. Whoever keeps the routing notices and starts anew.
                    std::thread::sleep(Duration::from_millis(50));
                }
                shared.wait([(shared.tun.as_fd(), PollFlags::IN)], None);
            }
        }
    }
}
