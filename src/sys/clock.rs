//! The clocks: the only place that asks the system for the time on behalf of the cores.

use std::sync::OnceLock;
use std::time::Instant;

use crate::time::{Time, Wall};

/// When the process first asked for the time. Cores count from here.
static START: OnceLock<Instant> = OnceLock::new();

/// The moment, on a clock that never goes back (and stands still while the machine sleeps).
pub fn now() -> Time {
    Time::from_start(START.get_or_init(Instant::now).elapsed())
}

/// The moment on the wall clock, which may jump.
pub fn wall() -> Wall {
    Wall::now()
}

/// The system's moment for one of ours, for timers.
pub fn instant(time: Time) -> Instant {
    *START.get_or_init(Instant::now) + time.since(Time::default())
}
