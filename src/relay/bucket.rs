//! A token bucket over bytes.

use crate::time::Time;

/// Lets through so many bytes a second on average and so many at once.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    bytes_per_second: u64,
    burst: u64,
    /// Billionths of bytes, so that slow rates lose nothing to rounding.
    level: u128,
    at: Time,
}

const NANO: u128 = 1_000_000_000;

impl Bucket {
    /// A full one. A burst of less than one frame would let nothing through; it is at least one full packet.
    pub(super) fn new(now: Time, bytes_per_second: u64, burst: u64) -> Self {
        let burst = burst.max(SMALLEST_BURST);
        Self { bytes_per_second: bytes_per_second.max(1), burst, level: u128::from(burst) * NANO, at: now }
    }

    fn refill(&mut self, now: Time) {
        let gained = now.since(self.at).as_nanos().saturating_mul(self.bytes_per_second.into());
        self.level = self.level.saturating_add(gained).min(u128::from(self.burst) * NANO);
        self.at = self.at.max(now);
    }

    /// Takes `bytes` if they are there.
    pub(super) fn take(&mut self, now: Time, bytes: usize) -> bool {
        self.refill(now);
        let cost = bytes as u128 * NANO;
        let enough = self.level >= cost;
        if enough {
            self.level -= cost;
        }
        enough
    }
}

/// A packet of the largest size with its key.
const SMALLEST_BURST: u64 = 64 * 1024 + 32 + 5;
