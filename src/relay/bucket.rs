//! A token bucket over bytes.

use std::time::Duration;

use crate::time::Time;

/// Lets through so many bytes a second on average and so many at once.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    bytes_per_second: u64,
    burst: u64,
    /// Billionths of bytes, so that slow rates lose nothing to rounding.
    level: i128,
    at: Time,
}

const NANO: i128 = 1_000_000_000;

impl Bucket {
    /// A full one. A burst of less than one frame would let nothing through; it is at least one full packet.
    pub(super) fn new(now: Time, bytes_per_second: u64, burst: u64) -> Self {
        let burst = burst.max(SMALLEST_BURST);
        Self { bytes_per_second: bytes_per_second.max(1), burst, level: i128::from(burst) * NANO, at: now }
    }

    /// A full one that counts other things than bytes of packets.
    pub(super) fn of_events(now: Time, per_second: u64, burst: u64) -> Self {
        Self { bytes_per_second: per_second.max(1), burst, level: i128::from(burst) * NANO, at: now }
    }

    fn refill(&mut self, now: Time) {
        let elapsed = i128::try_from(now.since(self.at).as_nanos()).unwrap_or(i128::MAX);
        let gained = elapsed.saturating_mul(self.bytes_per_second.into());
        self.level = self.level.saturating_add(gained).min(i128::from(self.burst) * NANO);
        self.at = self.at.max(now);
    }

    /// Takes `bytes` if they are there.
    pub(super) fn take(&mut self, now: Time, bytes: usize) -> bool {
        self.refill(now);
        let cost = cost(bytes);
        let enough = self.level >= cost;
        if enough {
            self.level -= cost;
        }
        enough
    }

    /// Takes `bytes` even if they are not there: whoever sent them has to pause.
    pub(super) fn charge(&mut self, now: Time, bytes: usize) {
        self.refill(now);
        self.level -= cost(bytes);
    }

    /// When a debt will be paid off; `None` if there is none.
    pub(super) fn in_debt_until(&mut self, now: Time) -> Option<Time> {
        self.refill(now);
        let missing = u64::try_from(-self.level).ok().filter(|missing| *missing > 0)?;
        Some(now + Duration::from_nanos(missing.div_ceil(self.bytes_per_second)))
    }
}

fn cost(bytes: usize) -> i128 {
    i128::try_from(bytes).unwrap_or(i128::MAX / NANO) * NANO
}

/// A packet of the largest size with its key.
const SMALLEST_BURST: u64 = 64 * 1024 + 32 + 5;
