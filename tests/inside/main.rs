//! The ways into guests, and what is done through them, with real unprivileged LXC containers behind the stand-in: programs run, files pushed,
//! nodes put into containers of others, upgraded, given new keys, examined.
//!
//! Needs root and LXC; skips itself elsewhere and says so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "test code"
)]
#![allow(missing_docs, unreachable_pub, reason = "test code")]

mod admin;
mod change;
mod distributions;
mod doctor;
mod enroll;
mod site;
#[path = "../pve/standin/mod.rs"]
mod standin;
mod undo;
mod upgrade;
mod way;
