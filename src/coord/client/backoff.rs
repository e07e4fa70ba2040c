//! Growing pauses between attempts, and a bound on how many there may be at all.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::time::Time;

/// A random part of a duration.
pub(super) fn part(rng: &mut ChaCha8Rng, of: Duration) -> Duration {
    of.mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX))
}

/// How pauses grow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Growth {
    /// The first pause is random, up to this.
    pub(super) spread: Duration,
    /// The n-th pause is n² times this, times 0.5 to 1.5 by chance (less at the limit).
    pub(super) unit: Duration,
    /// No pause is longer.
    pub(super) longest: Duration,
}

/// Lost connections. The first pause spreads the nodes of a restarted coordinator over a second, so that they do not all come in the
/// same moment; the next ones are short, so that it has them back soon.
pub(super) const LOSSES: Growth =
    Growth { spread: Duration::from_secs(1), unit: Duration::from_millis(10), longest: Duration::from_secs(30) };
/// Refusals: something has to change first, at the coordinator or by the user, whose commands start anew without any pause.
pub(super) const REFUSALS: Growth =
    Growth { spread: Duration::from_secs(2), unit: Duration::from_secs(1), longest: Duration::from_secs(300) };

/// Growing pauses with chance in them, so that many nodes that fail together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    growth: Growth,
    failures: u32,
    rng: ChaCha8Rng,
}

impl Backoff {
    /// For lost connections and unanswered requests; starts without failures.
    pub fn new(seed: [u8; 32]) -> Self {
        Self::with(LOSSES, seed)
    }

    pub(super) fn with(growth: Growth, seed: [u8; 32]) -> Self {
        Self { growth, failures: 0, rng: ChaCha8Rng::from_seed(seed) }
    }

    /// Notes a failure and tells how long to wait.
    pub fn next_pause(&mut self) -> Duration {
        let Growth { spread, unit, longest } = self.growth;
        self.failures = self.failures.saturating_add(1);
        if self.failures == 1 {
            return part(&mut self.rng, spread);
        }
        let mean = unit.saturating_mul(self.failures.saturating_mul(self.failures)).min(longest);
        // At the limit, too, there has to be chance.
        mean / 2 + part(&mut self.rng, mean.min(longest - mean / 2))
    }

    /// Notes a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A token bucket: so many at once, then one in a while. As a virtual schedule: it holds the moment up to which it is spent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    burst: u32,
    every: Duration,
    spent: Time,
}

impl Bucket {
    pub(super) fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, spent: Time::default() }
    }

    /// Takes a token; tells how long to wait until it may be used.
    pub(super) fn take(&mut self, now: Time) -> Duration {
        self.spent = self.spent.max(now) + self.every;
        self.spent.since(now + self.every.saturating_mul(self.burst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_the_square_and_stay_within_their_bounds() {
        for growth in [LOSSES, REFUSALS] {
            let mut backoff = Backoff::with(growth, [1; 32]);
            assert!(backoff.next_pause() <= growth.spread);
            for n in 2u32..300 {
                let pause = backoff.next_pause();
                let mean = (growth.unit * (n * n)).min(growth.longest);
                assert!(pause >= mean.mul_f64(0.49) && pause <= mean.mul_f64(1.51).min(growth.longest), "{n}: {pause:?}");
            }
            backoff.reset();
            assert!(backoff.next_pause() <= growth.spread);
        }
    }

    #[test]
    fn two_seeds_do_not_wait_in_step() {
        let pauses = |seed| {
            let mut backoff = Backoff::new([seed; 32]);
            (0..8).map(|_| backoff.next_pause()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_one_in_a_while() {
        let every = Duration::from_secs(20);
        let mut bucket = Bucket::new(3, every);
        let start = Time::from_start(Duration::from_secs(1000));
        let waits: Vec<Duration> = (0..5).map(|_| bucket.take(start)).collect();
        assert_eq!(waits, [Duration::ZERO, Duration::ZERO, Duration::ZERO, every, every * 2]);
        // Long idle, it is full again and no fuller.
        let later = start + Duration::from_secs(100_000);
        let waits: Vec<Duration> = (0..4).map(|_| bucket.take(later)).collect();
        assert_eq!(waits, [Duration::ZERO, Duration::ZERO, Duration::ZERO, every]);
    }
}
