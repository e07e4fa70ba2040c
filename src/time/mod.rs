//! Time as a value: the cores get it as an argument and never read a clock.

mod bucket;

pub use bucket::Bucket;

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment on a clock that never goes back, counted from an arbitrary start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(Duration);

impl Time {
    /// The moment `since_start` after the clock's start.
    pub const fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// How long after `earlier` this is; zero if it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

/// When something is due and why; a state printed with its next deadline explains itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    /// The moment it is due.
    pub at: Time,
    /// What will happen then, for logs and status.
    pub why: &'static str,
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:?}", self.why, self.at.0)
    }
}

/// Wall-clock time, for what leaves the process: expiry dates, "last seen", certificates.
pub use jiff::Timestamp as Wall;
