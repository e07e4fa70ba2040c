//! The stack's thread: what the engine brings, and the time.

use std::cmp::Reverse;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Shared, forward, locked};
use crate::netstack::Reassembly;
use crate::netstack::arrival::{self, Arrival, Useless};
use crate::time::Time;
use crate::tunnel::{MAX_PACKET, VirtioHeader};

/// Packets taken before it is looked at the time again.
const BURST: usize = 64;

/// What came, given to whom it is for.
fn packet(shared: &Arc<Shared>, reassembly: &mut Reassembly, packet: &[u8], verified: bool) -> Result<(), Useless> {
    match arrival::read(packet, verified)? {
        Arrival::Tcp { ends, opens, resets } => match shared.flow(&ends) {
            Some(flow) if !opens || !forward::may_be_replaced(&flow) => flow.arrive(shared, packet),
            _ if opens => forward::asked(shared, ends, packet),
            _ if resets => {}
            _ => forward::stray(shared, ends, packet),
        },
        Arrival::Fragment(fragment) => {
            if let Some(payload) = reassembly.add(shared.now(), &fragment) {
                let of = fragment.of;
                datagram(shared, arrival::transport(of.remote, of.local, of.protocol.into(), &payload, false)?);
            }
        }
        whole => datagram(shared, whole),
    }
    Ok(())
}

fn datagram(shared: &Arc<Shared>, arrived: Arrival<'_>) {
    match arrived {
        Arrival::Udp { ends, payload } => super::datagrams::arrived(shared, ends, payload),
        Arrival::Echo { local, remote, contents } => super::datagrams::echo(shared, local, remote, contents),
        // TCP does not come in pieces: its segments fit.
        Arrival::Tcp { .. } | Arrival::Fragment(_) => {}
    }
}

/// Looks at the connections whose time has come; says when the next one's comes.
fn call(shared: &Shared) -> Option<Time> {
    loop {
        let now = shared.now();
        let ends = {
            let mut calls = locked(&shared.calls);
            match calls.peek() {
                Some(Reverse((at, _))) if *at <= now => calls.pop().map(|Reverse((_, ends))| ends),
                next => return next.map(|Reverse((at, _))| *at),
            }
        };
        if let Some(flow) = ends.and_then(|ends| shared.flow(&ends)) {
            flow.attend(shared, false);
        }
    }
}

/// Works until the stack is stopped or the engine has ended.
pub(super) fn run(shared: &Arc<Shared>) {
    work(shared);
    shared.end();
}

fn work(shared: &Arc<Shared>) {
    let mut buffer = vec![0; VirtioHeader::LENGTH + MAX_PACKET].into_boxed_slice();
    let mut reassembly = Reassembly::default();
    while !shared.stopping.load(Ordering::Acquire) {
        let mut idle = false;
        for _ in 0..BURST {
            match shared.link.receive(&mut buffer) {
                Ok(Some((header, bytes))) => {
                    if let Err(useless) = packet(shared, &mut reassembly, bytes, header.needs_checksum) {
                        tracing::trace!(%useless, "a packet from the mesh is of no use");
                    }
                }
                Ok(None) => {
                    idle = true;
                    break;
                }
                // The engine has ended.
                Err(_) => return,
            }
        }
        if !shared.link.is_ready() && shared.link.flush() {
            for flow in std::mem::take(&mut *locked(&shared.blocked)) {
                flow.attend(shared, true);
            }
        }
        let next = call(shared);
        if idle {
            wait(shared, next);
        }
    }
}

/// Waits until there is something to do.
fn wait(shared: &Shared, next: Option<Time>) {
    let nanoseconds = |time: Time| u64::try_from(time.since(Time::default()).as_nanos()).unwrap_or(u64::MAX);
    shared.sleeps_until.store(next.map_or(u64::MAX, nanoseconds), Ordering::Release);
    // Whoever came before that has not woken us.
    let first = locked(&shared.calls).peek().map(|Reverse((at, _))| *at);
    let limit = first.map(|at| at.since(shared.now()).max(Duration::from_micros(100)));
    let limit =
        limit.map(|limit| Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: limit.subsec_nanos().into() });
    let events = if shared.link.is_ready() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
    let mut fds = [PollFd::new(&shared.link, events), PollFd::new(&shared.wake, PollFlags::IN)];
    if rustix::event::poll(&mut fds, limit.as_ref()).is_ok() {
        let mut count = [0; 8];
        let _ = rustix::io::read(shared.wake.as_fd(), &mut count);
    }
    shared.sleeps_until.store(0, Ordering::Release);
}
