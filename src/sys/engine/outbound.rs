//! From the TUN to the socket.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::event::PollFlags;

use super::Shared;
use super::counters::add;
use super::socket::{MAX_SEGMENTS, MAX_SEND};
use super::table::{Peer, State};
use crate::path::Path;
use crate::tunnel::{MIN_ROOM, OVERHEAD, Sealed, Tunnel};

/// Sealed datagrams on their way out: those for one address and of one size leave in one send.
pub(super) struct Batch {
    buffer: Box<[u8]>,
    /// Where the run begins that is not sent yet, and where it ends.
    start: usize,
    end: usize,
    to: Option<SocketAddr>,
    segment: usize,
    count: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; 4 * MAX_SEND].into_boxed_slice(), start: 0, end: 0, to: None, segment: 0, count: 0 }
    }

    /// Room for a packet of so many bytes, sealed.
    pub(super) fn room(&mut self, shared: &Shared, packet: usize) -> &mut [u8] {
        let need = (packet + OVERHEAD).max(MIN_ROOM);
        if self.buffer.len() - self.end < need {
            self.flush(shared);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// The first so many bytes of the room are a datagram for this address.
    pub(super) fn push(&mut self, shared: &Shared, to: SocketAddr, length: usize) {
        let run = self.end - self.start;
        let whole = run == self.segment * self.count;
        let joins = self.to == Some(to)
            && whole
            && length <= self.segment
            && self.count < MAX_SEGMENTS
            && run + length <= MAX_SEND
            && shared.socket.segmentation();
        if joins {
            self.count += 1;
        } else {
            self.send(shared);
            self.to = Some(to);
            self.segment = length;
            self.count = 1;
        }
        self.end += length;
    }

    fn send(&mut self, shared: &Shared) {
        if let Some(to) = self.to.take()
            && let Some(run) = self.buffer.get(self.start..self.end)
        {
            shared.socket.send(shared, to, run, self.segment);
        }
        self.start = self.end;
    }

    /// Sends what has gathered.
    pub(super) fn flush(&mut self, shared: &Shared) {
        self.send(shared);
        self.start = 0;
        self.end = 0;
    }
}

/// Sends a handshake initiation on every path the peer's chooser names.
pub(super) fn initiate(shared: &Shared, peer: &Peer, state: &mut State, message: &[u8]) {
    let now = shared.now();
    let paths = state.chooser.ask(now);
    tracing::debug!(peer = peer.name, paths = paths.len(), "handshake initiation");
    state.sent = now;
    if paths.is_empty() {
        add(&shared.counters.no_path, 1);
    }
    add(&shared.counters.initiations, paths.len() as u64);
    for Path::Direct(to) in paths {
        shared.socket.send(shared, to, message, message.len());
    }
}

fn packet(shared: &Shared, batch: &mut Batch, packet: &[u8]) {
    let Some(destination) = Tunnel::destination(packet) else {
        add(&shared.counters.bad_tun, 1);
        return;
    };
    let table = shared.table();
    let Some(peer) = table.by_address(destination) else {
        add(&shared.counters.no_peer, 1);
        return;
    };
    let mut state = peer.lock();
    let room = batch.room(shared, packet.len());
    match state.tunnel.seal(packet, room) {
        Sealed::Data(length) => {
            let Some(Path::Direct(to)) = state.chooser.best() else {
                add(&shared.counters.no_path, 1);
                return;
            };
            batch.push(shared, to, length);
            state.sent = shared.now();
            peer.tx_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
        }
        Sealed::Initiation(length) => {
            let mut message = [0; MIN_ROOM];
            if let (Some(to), Some(from)) = (message.get_mut(..length), room.get(..length)) {
                to.copy_from_slice(from);
                initiate(shared, peer, &mut state, to);
            }
        }
        Sealed::Waiting => {}
    }
}

/// The outbound thread.
pub(super) fn run(shared: &Shared) {
    let mut buffer = vec![0; 65_536].into_boxed_slice();
    let mut batch = Batch::new();
    while !shared.stopping() {
        match rustix::io::read(&shared.tun, &mut *buffer) {
            Ok(length) => {
                add(&shared.counters.tun_reads, 1);
                add(&shared.counters.tun_in, 1);
                packet(shared, &mut batch, buffer.get(..length).unwrap_or_default());
            }
            Err(error) => {
                batch.flush(shared);
                if error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR {
                    tracing::debug!(%error, "the TUN cannot be read");
                }
                shared.wait(Some((shared.tun.as_fd(), PollFlags::IN)), None);
            }
        }
    }
}
