//! The rows of the matrix. A new row is a sentence and a function, in the list of the act on whose stage it plays; a new act is a module
//! with a list of rows, in [`ACTS`].

mod changes;
mod clocks;
mod faults;
mod https;
mod keys;
mod login;
mod names;
mod policy;
mod relays;
mod routes;
mod rust_client;
mod together;
mod userspace;

use crate::scene::{Cast, Clients, Outcome, Scene};

/// One sentence, and what finds out whether it holds.
pub struct Row {
    pub sentence: &'static str,
    pub play: fn(&mut Scene) -> Outcome,
}

/// Rows that are played on one stage, in this order.
pub struct Act {
    pub name: &'static str,
    /// Which columns play it.
    pub plays: fn(&Cast) -> bool,
    /// How long it takes, roughly: longer ones are begun first.
    pub seconds: u32,
    pub rows: &'static [Row],
}

pub const ACTS: &[Act] = &[
    keys::ACT,
    login::ACT,
    together::ACT,
    relays::ACT,
    names::ACT,
    names::HOSTS,
    changes::ACT,
    routes::ACT,
    userspace::ACT,
    policy::ACT,
    policy::FILTER,
    faults::ACT,
    clocks::ACT,
    https::ACT,
    rust_client::ACT,
];

/// Rows about one client at a time.
fn alone(cast: &Cast) -> bool {
    matches!(cast.clients, Clients::Ours | Clients::Stock)
}

/// Rows about two clients, of one kind or of both.
fn in_company(cast: &Cast) -> bool {
    cast.clients != Clients::Rust
}
