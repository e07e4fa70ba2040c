//! Waiting for conditions, with limits.

use std::time::{Duration, Instant};

use crate::Done;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(15);

/// Waits until something holds and says how long that took.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> Done<bool>) -> Done<Duration> {
    let start = Instant::now();
    let mut last = String::new();
    loop {
        match holds() {
            Ok(true) => return Ok(start.elapsed()),
            Ok(false) => last.clear(),
            Err(why) => last = format!(" ({why})"),
        }
        if start.elapsed() > limit {
            return Err(format!("{what}: not within {:.1} s{last}", limit.as_secs_f64()));
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until there is something, and gives it.
pub fn get<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Done<Option<T>>) -> Done<T> {
    let mut found = None;
    until(what, limit, || {
        found = look()?;
        Ok(found.is_some())
    })?;
    found.ok_or_else(|| what.to_owned())
}

/// Sees that something goes on to hold for a while.
pub fn stays(what: &str, time: Duration, mut holds: impl FnMut() -> Done<bool>) -> Done {
    let start = Instant::now();
    while start.elapsed() < time {
        if !holds()? {
            return Err(format!("{what}: no longer after {:.1} s", start.elapsed().as_secs_f64()));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Seconds, as the cells show them.
pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
