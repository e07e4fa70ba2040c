//! What a relay counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Drop {
    /// Nobody has that key here or at another relay of the region.
    UnknownDestination,
    /// Another relay handed it over, but its destination is not here.
    UnknownForForwarded,
    /// Its destination left at this moment.
    Gone,
    /// It waited until newer packets took its place.
    QueueHead,
    /// It is longer than a whole queue may be.
    QueueTail,
    /// The connection to its destination broke while it was written.
    WriteError,
}

/// All reasons, with the names they have in metrics.
pub const DROPS: [(Drop, &str); 6] = [
    (Drop::UnknownDestination, "unknown_dest"),
    (Drop::UnknownForForwarded, "unknown_dest_on_fwd"),
    (Drop::Gone, "gone_disconnected"),
    (Drop::QueueHead, "queue_head"),
    (Drop::QueueTail, "queue_tail"),
    (Drop::WriteError, "write_error"),
];

/// What one connection adds up before it is written to the common counters.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) received: u64,
    pub(super) bytes: u64,
    pub(super) forwarded: u64,
    pub(super) strays: u64,
    pub(super) drops: [u64; DROPS.len()],
}

impl Tally {
    pub(super) fn drop(&mut self, why: Drop, packets: u64) {
        if let Some(count) = self.drops.get_mut(why as usize) {
            *count += packets;
        }
    }
}

/// What is counted since the relay started.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Packets that clients sent.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Packets handed to other relays of the region.
    pub forwarded: u64,
    /// Frames without a place.
    pub stray_frames: u64,
    /// Clients that were told that a peer is not here.
    pub told_not_here: u64,
    /// Connections taken.
    pub accepted: u64,
    /// Connections refused: unknown nodes, wrong proofs.
    pub refused: u64,
    /// Packets dropped, in the order of [`DROPS`].
    pub drops: [u64; DROPS.len()],
}

impl Snapshot {
    /// Packets dropped for one reason.
    pub fn dropped(&self, why: Drop) -> u64 {
        self.drops.get(why as usize).copied().unwrap_or(0)
    }
}

/// The common counters: written once per batch of a connection, so that packets do not meet in one place.
#[derive(Debug, Default)]
pub(super) struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    forwarded: AtomicU64,
    strays: AtomicU64,
    pub(super) told_not_here: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    drops: [AtomicU64; DROPS.len()],
}

fn add(counter: &AtomicU64, value: u64) {
    if value > 0 {
        counter.fetch_add(value, Ordering::Relaxed);
    }
}

impl Counters {
    pub(super) fn add(&self, tally: &Tally) {
        add(&self.packets, tally.received);
        add(&self.bytes, tally.bytes);
        add(&self.forwarded, tally.forwarded);
        add(&self.strays, tally.strays);
        for (counter, value) in self.drops.iter().zip(tally.drops) {
            add(counter, value);
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            packets: read(&self.packets),
            bytes: read(&self.bytes),
            forwarded: read(&self.forwarded),
            stray_frames: read(&self.strays),
            told_not_here: read(&self.told_not_here),
            accepted: read(&self.accepted),
            refused: read(&self.refused),
            drops: std::array::from_fn(|n| self.drops.get(n).map_or(0, read)),
        }
    }
}
