//! How long to wait before a relay is dialled again.

use std::time::Duration;

/// The pause after the first failure; it doubles with each.
const FIRST: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);
/// A connection that lasted so long was a good one: the next is dialled at once.
const GOOD: Duration = Duration::from_secs(10);

/// The failures in a row of one relay's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Redial {
    failures: u32,
}

impl Redial {
    /// A connection ended after it had lasted so long; zero if there was none. How long to wait: half of it by chance, so that the clients
    /// of a relay that restarts do not come all at once.
    pub fn pause(&mut self, lasted: Duration, chance: u32) -> Duration {
        if lasted >= GOOD {
            self.failures = 0;
            return Duration::ZERO;
        }
        let whole = FIRST.saturating_mul(1 << self.failures.min(8)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        whole / 2 + whole.mul_f64(f64::from(chance) / f64::from(u32::MAX) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_seconds_and_a_good_connection_ends_them() {
        let mut redial = Redial::default();
        let longest: Vec<u128> = (0..7).map(|_| redial.pause(Duration::ZERO, u32::MAX).as_millis()).collect();
        assert_eq!(longest, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(redial.pause(Duration::from_secs(9), 0), Duration::from_millis(2500));
        assert_eq!(redial.pause(Duration::from_secs(10), 0), Duration::ZERO);
        assert_eq!(redial.pause(Duration::ZERO, 0), Duration::from_millis(125));
    }
}
