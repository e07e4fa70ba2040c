//! The control client: what a node makes of a coordinator's answers.
//!
//! Values and rules only. `sys` holds the connection, asks these when to try again and what a message changed.

mod ask;
mod backoff;
mod map;
mod netmap;
mod register;

pub use ask::{Answer, answer_ping};
pub use backoff::{Backoff, WATCHDOG, Watchdog};
pub use map::{MapError, MapSession};
pub use netmap::NetMap;
pub use register::{Verdict, judge};
