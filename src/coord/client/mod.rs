//! The control client: what a node makes of a coordinator's answers.
//!
//! Values and rules only. `sys` holds the connection, asks these when to try again and what a message changed.

mod ask;
mod attempts;
mod backoff;
mod map;
mod merge;
mod netmap;
mod pace;
mod registration;
mod watch;

pub use ask::{Answer, ReplyTo, answer_ping};
pub use attempts::{Attempt, attempts, interleaved};
pub use backoff::Backoff;
pub use map::{Applied, MapError, MapSession, is_bounded};
pub use netmap::NetMap;
pub use pace::{Ended, GOOD_STREAM, Pace};
pub use registration::{Admission, Credentials, Registration, Step, logged_out, logout_request};
pub use watch::{LONGEST_MESSAGE, SleepWatch, WATCHDOG, Watchdog};
