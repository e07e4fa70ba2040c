//! The resolver on 100.100.100.100 and fd7a:115c:a1e0::53: what the network map says that a name means, and whom to ask about the rest.
//!
//! [`Table`] holds what is known: nodes, the coordinator's records, reverse names, which suffixes are ours alone and which other servers
//! answer for. [`answer`] reads a DNS message (RFC 1035, RFC 6891) and gives the reply, or says that others are to be asked; sockets and
//! waiting are the driver's.
//!
//! [`system`] says who has a machine's resolving in hand, and what he is told.
//!
//! What is below a suffix of ours and unknown does not exist; nobody else is asked about it. What belongs to nobody goes to the coordinator's
//! resolvers, or the machine's own where it names none.

mod layout;
mod message;
pub mod system;
mod table;

pub use message::{MAX_MESSAGE, Verdict, answer, failed, fitted, is_reply_to, refused, with_id};
pub use table::{Found, Host, Records, Table, Upstream, Want};

use std::time::Duration;

/// How long an answer of ours may be kept by who asked: nodes come and go.
pub const TTL: Duration = Duration::from_secs(5);
/// How long it may be kept that there is none.
pub const NEGATIVE_TTL: Duration = Duration::from_secs(10);
