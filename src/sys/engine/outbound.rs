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
use crate::sys::offload::Offload;
use crate::tunnel::{MAX_PACKET, MIN_ROOM, OVERHEAD, Sealed, Segments, Tunnel, VirtioHeader};

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

/// Seals one packet into the batch; `false` if there is no session, so that it waits.
fn seal(shared: &Shared, batch: &mut Batch, peer: &Peer, state: &mut State, to: Option<Path>, packet: &[u8]) -> bool {
    let room = batch.room(shared, packet.len());
    match state.tunnel.seal(packet, room) {
        Sealed::Data(length) => match to {
            Some(Path::Direct(to)) => {
                batch.push(shared, to, length);
                true
            }
            None => {
                add(&shared.counters.no_path, 1);
                true
            }
        },
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
    let Ok(mut segments) = Segments::new(header, packet) else {
        add(&counters.bad_tun, 1);
        return;
    };
    // All segments have one destination: one lock, one look at the path and the clock for all of them.
    let mut state = peer.lock();
    let to = state.chooser.best();
    let (mut count, mut bytes) = (0, 0);
    let mut sent = false;
    while let Some(segment) = segments.next() {
        count += 1;
        bytes += segment.len() as u64;
        sent |= seal(shared, batch, peer, &mut state, to, segment);
    }
    if sent {
        state.sent = shared.now();
    }
    add(&counters.tun_in, count);
    peer.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
}

/// The outbound thread.
pub(super) fn run(shared: &Shared) {
    let mut buffer = vec![0; VirtioHeader::LENGTH + MAX_PACKET].into_boxed_slice();
    let mut batch = Batch::new();
    while !shared.stopping() {
        match rustix::io::read(&shared.tun, &mut *buffer) {
            Ok(length) => {
                add(&shared.counters.tun_reads, 1);
                let read = buffer.get_mut(..length).unwrap_or_default();
                if shared.tun.offload == Offload::None {
                    packets(shared, &mut batch, &VirtioHeader::default(), read);
                } else if let Some((header, packet)) = read.split_first_chunk_mut()
                    && let Some(header) = VirtioHeader::read(*header)
                {
                    packets(shared, &mut batch, &header, packet);
                } else {
                    add(&shared.counters.bad_tun, 1);
                }
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
