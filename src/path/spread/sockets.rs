//! The sockets beside the main one: many for a while, and those that were found.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::{BURST, GUESSES, LINGER, Local, PACE, PORTS};
use crate::ident::NodePublic;
use crate::time::Time;

/// Found sockets that are kept; the one found longest ago goes then.
const MAX_BOUND: usize = 16;
/// Sent together, when many sockets say where they are: a cheap router has small queues.
const OPENING_BURST: u16 = 32;
const OPENING_PACE: Duration = Duration::from_millis(10);

/// Sockets open towards one address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    peer: NodePublic,
    first: u16,
    to: SocketAddr,
    sent: u16,
    next: Time,
    until: Time,
}

/// A socket kept for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    local: Local,
    peer: NodePublic,
    since: Time,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::path) struct Sockets {
    last: u16,
    open: Option<Open>,
    bound: BTreeMap<SocketAddr, Bound>,
}

impl Sockets {
    /// The socket from which an address is talked to.
    pub(in crate::path) fn local(&self, address: SocketAddr) -> Local {
        self.bound.get(&address).map_or(Local::MAIN, |bound| bound.local)
    }

    /// The peer for which an address has a socket of its own.
    pub(in crate::path) fn peer_of(&self, address: SocketAddr) -> Option<NodePublic> {
        self.bound.get(&address).map(|bound| bound.peer)
    }

    /// Those that are to be there.
    pub(in crate::path) fn wanted(&self) -> BTreeSet<Local> {
        let open = self.open.iter().flat_map(|open| open.first..open.first + PORTS).map(Local);
        open.chain(self.bound.values().map(|bound| bound.local)).collect()
    }

    pub(in crate::path) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Opens many towards an address of the peer's, for as long as guessing takes.
    pub(in crate::path) fn open(&mut self, now: Time, peer: NodePublic, to: SocketAddr) {
        let taken = |first: u16| self.bound.values().any(|bound| (first..first + PORTS).contains(&bound.local.0));
        let mut first = self.last;
        loop {
            first = if first > u16::MAX - 2 * PORTS { 1 } else { first + PORTS };
            if !taken(first) {
                break;
            }
        }
        self.last = first;
        let until = now + PACE * (GUESSES / BURST) + LINGER;
        self.open = Some(Open { peer, first, to, sent: 0, next: now, until });
    }

    /// Which sockets say now that they are there, to whom.
    pub(in crate::path) fn due(&mut self, now: Time) -> Option<(NodePublic, SocketAddr, Vec<Local>)> {
        let open = self.open.as_mut().filter(|open| open.sent < PORTS && open.next <= now)?;
        let from = open.sent;
        open.sent = PORTS.min(from + OPENING_BURST);
        open.next = now + OPENING_PACE;
        Some((open.peer, open.to, (from..open.sent).map(|n| Local(open.first + n)).collect()))
    }

    pub(in crate::path) fn deadline(&self) -> Option<Time> {
        self.open.as_ref().map(|open| if open.sent < PORTS { open.next } else { open.until })
    }

    /// Closes what was not found in time; whether there was something to close.
    pub(in crate::path) fn expire(&mut self, now: Time) -> bool {
        self.open.take_if(|open| open.until <= now).is_some()
    }

    /// The peer for which this socket has been opened, and waits.
    pub(in crate::path) fn opened_for(&self, local: Local) -> Option<NodePublic> {
        let open = self.open.as_ref()?;
        (open.first..open.first + PORTS).contains(&local.0).then_some(open.peer)
    }

    /// Keeps one of the open sockets for this address, and closes the others and what was kept for the peer before.
    pub(in crate::path) fn bind(&mut self, now: Time, address: SocketAddr, local: Local) {
        let Some(Open { peer, .. }) = self.open.take() else { return };
        self.bound.retain(|_, bound| bound.peer != peer);
        while self.bound.len() >= MAX_BOUND {
            let oldest = self.bound.iter().min_by_key(|(_, bound)| bound.since).map(|(address, _)| *address);
            oldest.and_then(|address| self.bound.remove(&address));
        }
        self.bound.insert(address, Bound { local, peer, since: now });
    }

    /// The address is talked to from the main socket again; the peer, if it was not before.
    pub(in crate::path) fn unbind(&mut self, address: SocketAddr) -> Option<NodePublic> {
        self.bound.remove(&address).map(|bound| bound.peer)
    }

    /// Closes those of other peers; whether there were any.
    pub(in crate::path) fn retain(&mut self, keep: impl Fn(&NodePublic) -> bool) -> bool {
        let before = (self.bound.len(), self.is_open());
        self.bound.retain(|_, bound| keep(&bound.peer));
        self.open.take_if(|open| !keep(&open.peer));
        before != (self.bound.len(), self.is_open())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodePublic {
        NodePublic::from_bytes([n; 32])
    }

    fn address(n: u16) -> SocketAddr {
        SocketAddr::new([203, 0, 113, 9].into(), n)
    }

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn one_socket_is_kept_of_many_and_the_numbers_never_meet() {
        let mut sockets = Sockets::default();
        for n in 0..2000_u16 {
            let peer = node(u8::try_from(n % 250).unwrap());
            sockets.open(at(n.into()), peer, address(n));
            let open: Vec<Local> = sockets.wanted().into_iter().collect();
            assert!(open.len() >= PORTS.into() && !open.contains(&Local::MAIN));
            let found = open.iter().copied().find(|local| sockets.opened_for(*local) == Some(peer)).unwrap();
            sockets.bind(at(n.into()), address(n), found);
            assert_eq!((sockets.local(address(n)), sockets.opened_for(found)), (found, None));
            assert_eq!(sockets.wanted().len(), MAX_BOUND.min(usize::from(n) + 1));
        }
        assert_eq!(sockets.local(address(7)), Local::MAIN, "long gone");
        assert_eq!((sockets.unbind(address(1999)), sockets.local(address(1999))), (Some(node(249)), Local::MAIN));
    }

    #[test]
    fn what_is_not_found_is_closed_in_time() {
        let mut sockets = Sockets::default();
        sockets.open(at(0), node(1), address(1));
        let mut said = 0;
        let mut now = at(0);
        while let Some(due) = sockets.deadline() {
            now = due;
            said += sockets.due(now).map_or(0, |(_, _, from)| from.len());
            sockets.expire(now);
        }
        assert_eq!((said, sockets.wanted().len()), (PORTS.into(), 0));
        assert!(now < at(8));
    }
}
