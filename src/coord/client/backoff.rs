//! When to try again, and when to give a silent stream up.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::time::{Deadline, Time};

/// How long a map stream may be silent. Servers send a keep-alive every 50 to 60 seconds, so this misses one and a half of them.
pub const WATCHDOG: Duration = Duration::from_secs(120);

const UNIT: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(30);

/// Growing pauses between attempts: n² times 10 ms, times 0.5 to 1.5 by chance, at most 30 s. The first ones are short, so that a
/// restarted coordinator has its nodes back at once; the chance keeps them from coming in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    failures: u32,
    rng: ChaCha8Rng,
}

impl Backoff {
    /// Starts without failures.
    pub fn new(seed: [u8; 32]) -> Self {
        Self { failures: 0, rng: ChaCha8Rng::from_seed(seed) }
    }

    /// Notes a failure and tells how long to wait.
    pub fn next_pause(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let mean = UNIT.saturating_mul(self.failures.saturating_mul(self.failures)).min(LONGEST);
        let factor = 0.5 + f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        mean.mul_f64(factor).min(LONGEST)
    }

    /// Notes a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Watches over a stream that is expected to say something every now and then.
#[derive(Debug, Clone, Copy)]
pub struct Watchdog {
    heard: Time,
}

impl Watchdog {
    /// Starts to watch.
    pub fn new(now: Time) -> Self {
        Self { heard: now }
    }

    /// Something was heard.
    pub fn heard(&mut self, now: Time) {
        self.heard = now;
    }

    /// When the stream is given up.
    pub fn deadline(&self) -> Deadline {
        Deadline { at: self.heard + WATCHDOG, why: "the map stream is silent" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_the_square_and_stay_within_their_bounds() {
        let mut backoff = Backoff::new([1; 32]);
        for n in 1u32..200 {
            let pause = backoff.next_pause();
            let mean = (UNIT * (n * n)).min(LONGEST);
            assert!(pause >= mean.mul_f64(0.5) && pause <= mean.mul_f64(1.5).min(LONGEST), "{n}: {pause:?}");
        }
        backoff.reset();
        assert!(backoff.next_pause() <= Duration::from_millis(15));
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
    fn each_message_moves_the_watchdog() {
        let start = Time::default();
        let mut watchdog = Watchdog::new(start);
        assert_eq!(watchdog.deadline().at, start + WATCHDOG);
        watchdog.heard(start + Duration::from_secs(50));
        assert_eq!(watchdog.deadline().at, start + Duration::from_secs(170));
    }
}
