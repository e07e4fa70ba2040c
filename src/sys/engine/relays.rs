//! Packets on their way to and from relays: the queues between the packet threads and whoever has the connections.
//!
//! Neither side ever waits for the other: a queue that is full drops its oldest packet. Probes have a queue of their own, so that
//! they are not stuck behind data.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use crate::ident::{NodePublic, RegionId};
use crate::wire::disco;

/// Packets for one region that wait, of each kind. A super-packet becomes up to 64; more than a few of those are late anyway.
const QUEUE: usize = 256;
/// Regions with queues; a map has fewer.
const MAX_REGIONS: usize = 256;
/// Packets from relays that wait for the inbound thread.
const ARRIVED: usize = 512;

/// A packet for a peer, through a relay.
pub type Outgoing = (NodePublic, Vec<u8>);

/// A packet that a relay has brought.
pub(super) struct Arrived {
    pub(super) region: RegionId,
    pub(super) from: NodePublic,
    pub(super) packet: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    probes: VecDeque<Outgoing>,
    data: VecDeque<Outgoing>,
}

/// What waits to leave.
#[derive(Default)]
struct Leaving {
    queues: BTreeMap<RegionId, Queue>,
    /// Regions that have got packets since somebody asked.
    news: BTreeSet<RegionId>,
}

/// The queues in both directions.
pub(super) struct Relays {
    leaving: Mutex<Leaving>,
    pub(super) left: Arc<Notify>,
    arrived: Mutex<VecDeque<Arrived>>,
    has_arrived: AtomicBool,
    wake: OwnedFd,
}

fn push<T>(queue: &mut VecDeque<T>, limit: usize, item: T) -> u64 {
    let full = queue.len() >= limit;
    if full {
        queue.pop_front();
    }
    queue.push_back(item);
    full.into()
}

impl Relays {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            leaving: Mutex::default(),
            left: Arc::default(),
            arrived: Mutex::default(),
            has_arrived: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn leaving(&self) -> MutexGuard<'_, Leaving> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a packet; how many were dropped for it.
    pub(super) fn send(&self, region: RegionId, to: NodePublic, packet: &[u8]) -> u64 {
        let mut leaving = self.leaving();
        if leaving.queues.len() >= MAX_REGIONS && !leaving.queues.contains_key(&region) {
            return 1;
        }
        let queue = leaving.queues.entry(region).or_default();
        let queue = if disco::looks_like(packet) { &mut queue.probes } else { &mut queue.data };
        let dropped = push(queue, QUEUE, (to, packet.to_vec()));
        let first = leaving.news.insert(region);
        drop(leaving);
        if first {
            self.left.notify_one();
        }
        dropped
    }

    /// Regions that have got packets since the last call.
    pub(super) fn news(&self) -> BTreeSet<RegionId> {
        std::mem::take(&mut self.leaving().news)
    }

    /// The next packet for a region, probes first.
    pub(super) fn next(&self, region: RegionId) -> Option<Outgoing> {
        let mut leaving = self.leaving();
        let queue = leaving.queues.get_mut(&region)?;
        let next = queue.probes.pop_front().or_else(|| queue.data.pop_front());
        if next.is_none() {
            leaving.queues.remove(&region);
        }
        next
    }

    /// Whether packets wait for a region.
    pub(super) fn has(&self, region: RegionId) -> bool {
        self.leaving().queues.get(&region).is_some_and(|queue| !queue.probes.is_empty() || !queue.data.is_empty())
    }

    /// Hands a packet to the inbound thread; how many were dropped for it.
    pub(super) fn deliver(&self, arrived: Arrived) -> u64 {
        let dropped = push(&mut self.arrived.lock().unwrap_or_else(PoisonError::into_inner), ARRIVED, arrived);
        if !self.has_arrived.swap(true, Ordering::AcqRel)
            && let Err(error) = rustix::io::write(&self.wake, &1_u64.to_ne_bytes())
        {
            tracing::debug!(%error, "the inbound thread cannot be woken");
        }
        dropped
    }

    /// What has arrived since the last call; costs next to nothing if that is nothing.
    pub(super) fn take_arrived(&self) -> VecDeque<Arrived> {
        if !self.has_arrived.load(Ordering::Relaxed) {
            return VecDeque::new();
        }
        // What comes from now on wakes again.
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
        self.has_arrived.store(false, Ordering::Release);
        std::mem::take(&mut *self.arrived.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Relays {
    /// Readable when something has arrived.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> NodePublic {
        NodePublic::from_bytes([n; 32])
    }

    #[test]
    fn a_full_queue_drops_its_oldest_and_probes_overtake_data() {
        let relays = Relays::new().unwrap();
        let region = RegionId(1);
        let mut dropped = 0;
        for n in 0..QUEUE + 10 {
            dropped += relays.send(region, key(1), &n.to_le_bytes());
        }
        let mut probe = disco::MAGIC.to_vec();
        probe.resize(100, 0);
        dropped += relays.send(region, key(2), &probe);
        assert_eq!(dropped, 10);
        assert_eq!(relays.next(region), Some((key(2), probe)));
        assert_eq!(relays.next(region), Some((key(1), 10_usize.to_le_bytes().to_vec())));
        assert_eq!(std::iter::from_fn(|| relays.next(region)).count(), QUEUE - 1);
        assert_eq!((relays.news(), relays.news()), (BTreeSet::from([region]), BTreeSet::new()));
    }

    #[test]
    fn queues_for_regions_without_end_are_not_made() {
        let relays = Relays::new().unwrap();
        for n in 1..=1000 {
            relays.send(RegionId(n), key(1), b"x");
        }
        assert_eq!(relays.news().len(), MAX_REGIONS);
    }

    #[test]
    fn what_has_arrived_is_taken_once() {
        let relays = Relays::new().unwrap();
        assert!(relays.take_arrived().is_empty());
        let arrived = |n| Arrived { region: RegionId(1), from: key(n), packet: vec![n] };
        assert_eq!((relays.deliver(arrived(1)), relays.deliver(arrived(2))), (0, 0));
        assert_eq!(relays.take_arrived().iter().map(|a| a.packet.clone()).collect::<Vec<_>>(), [[1], [2]]);
        assert!(relays.take_arrived().is_empty());
        let dropped: u64 = (0..ARRIVED + 3).map(|_| relays.deliver(arrived(3))).sum();
        assert_eq!(dropped, 3);
    }
}
