//! Watching over the stream's silence and over the machine's sleep.

use std::time::Duration;

use crate::time::{Deadline, Time, Wall};

/// How long a map stream may be silent. Servers send a keep-alive every 50 to 60 seconds, so this misses one and a half of them.
pub const WATCHDOG: Duration = Duration::from_secs(120);
/// How long one message may take to arrive, as long as bytes of it keep coming: a large map on a slow line is no silence.
pub const LONGEST_MESSAGE: Duration = Duration::from_secs(600);
/// How far the wall clock may run ahead of the monotonic one, which stands still while the machine sleeps, before that means sleep.
const NAP: Duration = Duration::from_secs(10);

/// Watches over a stream that is expected to say something every now and then.
#[derive(Debug, Clone, Copy)]
pub struct Watchdog {
    bytes: Time,
    message: Time,
}

impl Watchdog {
    /// Starts to watch.
    pub fn new(now: Time) -> Self {
        Self { bytes: now, message: now }
    }

    /// Some bytes of a message arrived.
    pub fn heard_bytes(&mut self, now: Time) {
        self.bytes = now;
    }

    /// A message arrived, or one has been dealt with: the time that we take for it is not the coordinator's silence.
    pub fn heard_message(&mut self, now: Time) {
        (self.bytes, self.message) = (now, now);
    }

    /// When the stream is given up.
    pub fn deadline(&self) -> Deadline {
        let silent = Deadline { at: self.bytes + WATCHDOG, why: "the map stream is silent" };
        let endless = Deadline { at: self.message + LONGEST_MESSAGE, why: "a message of the map stream does not end" };
        silent.min(endless)
    }
}

/// Tells that the machine has slept: the wall clock has gone on, the monotonic one has not. What was connected before is not to be
/// trusted any more; waiting for its time-outs would cost minutes.
#[derive(Debug, Clone, Copy)]
pub struct SleepWatch {
    last: (Time, Wall),
}

impl SleepWatch {
    /// Starts to watch.
    pub fn new(now: Time, wall: Wall) -> Self {
        Self { last: (now, wall) }
    }

    /// Looks at both clocks. True if the machine has slept since the last look, or its wall clock was set by more than a nap, in either
    /// direction: what depends on the wall clock has to be judged anew then, too.
    pub fn look(&mut self, now: Time, wall: Wall) -> bool {
        let (then, wall_then) = std::mem::replace(&mut self.last, (now, wall));
        let went_on = wall.duration_since(wall_then);
        let awake = jiff::SignedDuration::try_from(now.since(then)).unwrap_or(jiff::SignedDuration::MAX);
        let difference = went_on.saturating_sub(awake);
        difference.unsigned_abs() > NAP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn each_message_moves_the_watchdog() {
        let start = Time::default();
        let mut watchdog = Watchdog::new(start);
        assert_eq!(watchdog.deadline().at, start + WATCHDOG);
        watchdog.heard_message(start + secs(50));
        assert_eq!(watchdog.deadline().at, start + secs(170));
    }

    #[test]
    fn a_slow_message_is_no_silence_but_an_endless_one_ends() {
        let start = Time::default();
        let mut watchdog = Watchdog::new(start);
        for s in 1..=5 {
            watchdog.heard_bytes(start + secs(s * 100));
        }
        assert_eq!(watchdog.deadline().at, start + LONGEST_MESSAGE);
        assert!(watchdog.deadline().why.contains("does not end"));
        // Dealing with it took five minutes; the silence counts from there.
        watchdog.heard_message(start + secs(900));
        assert_eq!(watchdog.deadline().at, start + secs(1020));
    }

    #[test]
    fn sleep_is_seen_by_the_two_clocks_difference() {
        let wall: Wall = "2026-05-01T12:00:00Z".parse().unwrap();
        let at = |mono: u64, wall_secs: i64| (Time::from_start(secs(mono)), wall + jiff::SignedDuration::from_secs(wall_secs));
        let mut watch = SleepWatch::new(Time::default(), wall);
        for (mono, wall, slept) in [
            (5, 5, false),
            (10, 12, false),
            // The process itself was held up, the machine was not asleep.
            (400, 402, false),
            (405, 4002, true),
            (410, 4007, false),
            // The clock was set back by a day.
            (415, 4012 - 86_400, true),
            (420, 4017 - 86_400, false),
        ] {
            let (now, wall) = at(mono, wall);
            assert_eq!(watch.look(now, wall), slept, "{mono} s");
        }
    }
}
