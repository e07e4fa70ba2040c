//! From the socket to the TUN.

use std::io::{ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quinn_udp::RecvMeta;
use rustix::event::PollFlags;

use super::Shared;
use super::counters::add;
use super::outbound::initiate;
use super::table::{Peer, State, Table};
use crate::path::Path;
use crate::tunnel::demux::{Kind, classify};
use crate::tunnel::{Admission, MIN_ROOM, Opened};

/// Messages taken from the socket at a time; each may carry 64 KiB of datagrams.
const MESSAGES: usize = 4;
const MESSAGE: usize = 65_536;

/// Sends a message straight back to where something came from.
fn reply(shared: &Shared, to: SocketAddr, message: &[u8]) {
    shared.socket.send(shared, to, message, message.len().max(1));
}

/// Sends what waited for a session.
fn release(shared: &Shared, peer: &Peer, state: &mut State, room: &mut [u8]) {
    while let Some(length) = state.tunnel.release(room) {
        let Some(Path::Direct(to)) = state.chooser.best() else { return };
        reply(shared, to, room.get(..length).unwrap_or_default());
        peer.tx_bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// A handshake message that passed the gate, or a cookie.
fn handshake(shared: &Shared, peer: &Peer, from: SocketAddr, message: &[u8], room: &mut [u8]) {
    let mut state = peer.lock();
    match state.tunnel.open(from.ip(), message, room) {
        Opened::Reply { message, established } => {
            if established {
                // Only the peer could answer what we sent. An initiation may be an old one, sent again by anyone: it gets
                // its response, and the path moves when data follows.
                state.chooser.answered(shared.now(), from);
                tracing::debug!(peer = peer.name, %from, "handshake answered");
            }
            state.sent = shared.now();
            reply(shared, from, message);
            release(shared, peer, &mut state, room);
        }
        Opened::Refused(refusal) => shared.counters.refuse(refusal),
        Opened::Packet(..) | Opened::Nothing => {}
    }
}

fn write(shared: &Shared, packet: &[u8]) {
    match rustix::io::write(&shared.tun, packet) {
        Ok(_) => {
            add(&shared.counters.tun_writes, 1);
            add(&shared.counters.tun_out, 1);
        }
        Err(_) => add(&shared.counters.write_failed, 1),
    }
}

/// Data for one session.
fn data(shared: &Shared, table: &Table, peer: &Arc<Peer>, from: SocketAddr, message: &[u8], room: &mut [u8]) {
    let mut state = peer.lock();
    match state.tunnel.open(from.ip(), message, room) {
        Opened::Packet(packet, source) => {
            state.chooser.heard(shared.now(), from);
            if table.by_address(source).is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
                peer.rx_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
                write(shared, packet);
            } else {
                add(&shared.counters.not_allowed, 1);
            }
        }
        Opened::Nothing => state.chooser.heard(shared.now(), from),
        Opened::Refused(refusal) => shared.counters.refuse(refusal),
        Opened::Reply { message, .. } => reply(shared, from, message),
    }
    if state.tunnel.has_waiting() {
        release(shared, peer, &mut state, room);
    }
}

/// Data for a session we do not have: if it comes from where a peer is known to be, we were restarted and the peer does not know.
/// A handshake now spares it the 15 s until it would notice. The peer's tunnel starts no second one while this is under way.
fn lost(shared: &Shared, table: &Table, from: SocketAddr, room: &mut [u8]) {
    add(&shared.counters.no_session, 1);
    let Some(peer) = table.by_endpoint(from) else { return };
    let mut state = peer.lock();
    if !state.tunnel.has_session()
        && let Some(length) = state.tunnel.initiate(room)
    {
        initiate(shared, peer, &mut state, room.get(..length).unwrap_or_default());
    }
}

fn datagram(shared: &Shared, table: &Table, from: SocketAddr, message: &[u8], room: &mut [u8]) {
    let counters = &shared.counters;
    match classify(message) {
        Kind::Data { receiver } => match table.by_receiver(receiver) {
            Some(peer) => data(shared, table, peer, from, message, room),
            None => lost(shared, table, from, room),
        },
        Kind::Initiation => {
            let mut cookie = [0; MIN_ROOM];
            match shared.gate.admit(from.ip(), message, &mut cookie) {
                Admission::Initiation(key) => match table.by_key(&key) {
                    Some(peer) => handshake(shared, peer, from, message, room),
                    None => add(&counters.stranger, 1),
                },
                Admission::Cookie(cookie) => {
                    add(&counters.cookies, 1);
                    reply(shared, from, cookie);
                }
                Admission::Refused(refusal) => counters.refuse(refusal),
                Admission::Response => {}
            }
        }
        Kind::Response { receiver } => {
            let mut cookie = [0; MIN_ROOM];
            match (shared.gate.admit(from.ip(), message, &mut cookie), table.by_receiver(receiver)) {
                (Admission::Response, Some(peer)) => handshake(shared, peer, from, message, room),
                (Admission::Cookie(cookie), _) => {
                    add(&counters.cookies, 1);
                    reply(shared, from, cookie);
                }
                (Admission::Refused(refusal), _) => counters.refuse(refusal),
                _ => add(&counters.no_session, 1),
            }
        }
        Kind::Cookie { receiver } => match table.by_receiver(receiver) {
            Some(peer) => handshake(shared, peer, from, message, room),
            None => add(&counters.no_session, 1),
        },
        Kind::Disco | Kind::Stun => add(&counters.unasked, 1),
        Kind::Junk => add(&counters.junk, 1),
    }
}

/// The inbound thread.
pub(super) fn run(shared: &Shared) {
    let mut buffer = vec![0; MESSAGES * MESSAGE].into_boxed_slice();
    let mut room = vec![0; MESSAGE].into_boxed_slice();
    let mut meta = [RecvMeta::default(); MESSAGES];
    while !shared.stopping() {
        let received = {
            let mut parts = buffer.chunks_exact_mut(MESSAGE);
            let mut slices: [IoSliceMut<'_>; MESSAGES] = std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
            shared.socket.receive(&mut slices, &mut meta)
        };
        match received {
            Ok(count) => {
                let table = shared.table();
                for (message, meta) in buffer.chunks_exact(MESSAGE).zip(&meta).take(count) {
                    let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
                    add(&shared.counters.udp_receives, 1);
                    for one in message.get(..meta.len).unwrap_or_default().chunks(meta.stride.max(1)) {
                        add(&shared.counters.udp_in, 1);
                        datagram(shared, &table, from, one, &mut room);
                    }
                }
            }
            Err(error) => {
                if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                    tracing::debug!(%error, "the socket cannot be read");
                }
                shared.wait(Some((shared.socket.as_fd(), PollFlags::IN)), None);
            }
        }
    }
}
