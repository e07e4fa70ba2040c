//! What the network around this machine is like: where relays see us, how far they are, and which of them is our home.
//!
//! [`Checker`] is one node's: a core that is told of the relays, of answers and of the passing of time, and says what to ask whom.
//! A check asks STUN servers from the node's own socket, because what they see is of use for that socket only; where no answer
//! comes at all it asks for HTTPS round trips instead. A full check asks every region, those between it the near ones. [`Report`] is
//! what came of a check, [`OwnAddresses`] what is remembered of where others see us, [`choose_home`] the judgement.

mod addresses;
mod checker;
mod home;
mod plan;
mod portal;
mod redial;
mod regions;
mod report;
#[cfg(test)]
mod tests;

pub use addresses::OwnAddresses;
pub use checker::{Checker, Event, Probe};
pub use home::{History, Old, choose_home};
pub use plan::{Last, Planned, Scope, plan};
pub use portal::{MAX_ASKED, challenge, is_the_relays, judge};
pub use redial::Redial;
pub use regions::{Family, Place, Region, Server, regions, server};
pub use report::{Latency, Report};

use std::time::Duration;

/// How long a check may take, all in all.
pub const CHECK_LIMIT: Duration = Duration::from_secs(5);
/// How long STUN servers have to answer.
pub const STUN_LIMIT: Duration = Duration::from_secs(3);
/// How long a check waits for a first STUN answer before it asks for HTTPS round trips as well. Stock clients wait for
/// [`STUN_LIMIT`]; a node that cannot use UDP would be without its relay for so long.
pub const HTTPS_AFTER: Duration = Duration::from_secs(1);
/// How often every region is asked.
pub const FULL_PERIOD: Duration = Duration::from_mins(5);
/// How far apart checks are while there is traffic, at least and at most: below the 30 s after which NATs forget a mapping.
pub const PERIOD: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(26));
/// How long after the last traffic checks go on.
pub const ACTIVE: Duration = Duration::from_secs(45);
