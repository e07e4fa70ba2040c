//! The inbound thread: what the sockets and the relays have, in turn.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use quinn_udp::RecvMeta;
use rustix::event::PollFlags;

use super::Shared;
use super::counters::add;
use super::inbound::{Arrival, Origin};
use super::opening::Opening;
use super::relays::Arrived;
use super::socket::Socket;
use crate::path::{Local, Path};
use crate::tunnel::Shares;

/// Messages taken from a socket at a time; each may carry 64 KiB of datagrams.
pub(super) const MESSAGES: usize = 4;
pub(super) const MESSAGE: usize = 65_536;
/// After so many receives that brought all they could, the queue behind them is looked at.
const LOOK: u32 = 16;

/// What relays have brought.
fn relayed(shared: &Shared, opening: &mut Opening, shares: &mut Shares) {
    let arrived = shared.relays.take_arrived();
    if arrived.is_empty() {
        return;
    }
    let (table, filter, sites) = (shared.table(), shared.filter(), shared.translation.sites());
    for Arrived { region, from, packet } in arrived {
        let from = Origin { path: Path::Relay(region), local: Local::MAIN, sender: Some(from) };
        if opening.room().len() < 2 * MESSAGE {
            opening.write(shared);
        }
        Arrival { shared, table: &table, filter: &filter, sites: sites.as_deref(), from }.message(&packet, packet.len(), opening, shares);
    }
    opening.write(shared);
}

/// What is received into.
struct Reception {
    buffer: Box<[u8]>,
    meta: [RecvMeta; MESSAGES],
    opening: Opening,
    shares: Shares,
    /// How often in a row there was as much as could be taken.
    full: u32,
}

impl Reception {
    /// While there is always more than can be taken of the main socket, its queue is looked at now and then.
    fn note_queue(&mut self, socket: &Socket, count: usize) {
        if count < MESSAGES {
            self.full = 0;
            return self.shares.note_queue(0.0);
        }
        self.full = self.full.wrapping_add(1);
        if self.full.is_multiple_of(LOOK) {
            self.shares.note_queue(socket.queue_used());
        }
    }

    /// Takes what a socket has, up to so many messages.
    fn take(&mut self, shared: &Shared, local: Local, socket: &Socket) -> io::Result<()> {
        let mut parts = self.buffer.chunks_exact_mut(MESSAGE);
        let mut slices: [IoSliceMut<'_>; MESSAGES] = std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
        let count = socket.receive(&mut slices, &mut self.meta)?;
        let (table, filter, sites) = (shared.table(), shared.filter(), shared.translation.sites());
        for (contents, meta) in self.buffer.chunks_exact(MESSAGE).zip(&self.meta).take(count) {
            let path = Path::Direct(SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port()));
            let from = Origin { path, local, sender: None };
            let contents = contents.get(..meta.len).unwrap_or_default();
            add(&shared.counters.udp_receives, 1);
            add(&shared.counters.udp_in, contents.len().div_ceil(meta.stride.max(1)) as u64);
            Arrival { shared, table: &table, filter: &filter, sites: sites.as_deref(), from }.message(
                contents,
                meta.stride,
                &mut self.opening,
                &mut self.shares,
            );
        }
        if local == Local::MAIN {
            self.note_queue(socket, count);
        }
        self.opening.write(shared);
        Ok(())
    }
}

/// The inbound thread.
pub(super) fn run(shared: &Shared) {
    let mut reception = Reception {
        buffer: vec![0; MESSAGES * MESSAGE].into_boxed_slice(),
        meta: [RecvMeta::default(); MESSAGES],
        opening: Opening::new(shared),
        shares: Shares::default(),
        full: 0,
    };
    while !shared.stopping() {
        let received = reception.take(shared, Local::MAIN, &shared.sockets.main);
        relayed(shared, &mut reception.opening, &mut reception.shares);
        let mut others = 0;
        if shared.sockets.has_others() {
            let ready = shared.sockets.ready();
            others = ready.iter().filter(|(local, socket)| reception.take(shared, *local, socket).is_ok()).count();
        }
        if let Err(error) = received {
            if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                tracing::debug!(%error, "the socket cannot be read");
            }
            if others == 0 {
                let main = (shared.sockets.main.as_fd(), PollFlags::IN);
                shared.wait([main, (shared.sockets.as_fd(), PollFlags::IN), (shared.relays.as_fd(), PollFlags::IN)], None);
            }
        }
    }
}
