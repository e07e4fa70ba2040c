//! A token bucket, over bytes or over events.

use std::time::Duration;

use super::Time;

/// Lets through so many tokens a second on average and so many at once. A token is whatever the owner counts: a byte, an event.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_second: u64,
    burst: u64,
    /// Billionths of tokens, so that slow rates lose nothing to rounding.
    level: i128,
    at: Time,
}

const NANO: i128 = 1_000_000_000;

impl Bucket {
    /// A full one.
    pub fn new(now: Time, per_second: u64, burst: u64) -> Self {
        Self { per_second: per_second.max(1), burst, level: i128::from(burst) * NANO, at: now }
    }

    fn refill(&mut self, now: Time) {
        let elapsed = i128::try_from(now.since(self.at).as_nanos()).unwrap_or(i128::MAX);
        let gained = elapsed.saturating_mul(self.per_second.into());
        self.level = self.level.saturating_add(gained).min(i128::from(self.burst) * NANO);
        self.at = self.at.max(now);
    }

    /// Takes so many if they are there.
    pub fn take(&mut self, now: Time, tokens: usize) -> bool {
        self.refill(now);
        let cost = cost(tokens);
        let enough = self.level >= cost;
        if enough {
            self.level -= cost;
        }
        enough
    }

    /// Takes so many even if they are not there: whoever brought that about has to pause.
    pub fn charge(&mut self, now: Time, tokens: usize) {
        self.refill(now);
        self.level -= cost(tokens);
    }

    /// When a debt will be paid off; `None` if there is none.
    pub fn in_debt_until(&mut self, now: Time) -> Option<Time> {
        self.refill(now);
        let missing = u64::try_from(-self.level).ok().filter(|missing| *missing > 0)?;
        Some(now + Duration::from_nanos(missing.div_ceil(self.per_second)))
    }
}

fn cost(tokens: usize) -> i128 {
    i128::try_from(tokens).unwrap_or(i128::MAX / NANO) * NANO
}
