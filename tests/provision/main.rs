//! The provisioner's commands against the stand-in API, as an admin types them: what is made, what is refused, what is taken back.

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

mod attach;
mod change;
mod create;
mod doctor;
mod estate;
mod every_fault;
mod faults;
mod fleet;
mod fleet_sites;
mod followed;
mod golden;
mod hooks;
mod hostile;
mod hosts;
mod identity;
mod join;
mod login;
mod plan;
mod real;
mod recorded;
mod refusals;
mod resume;
mod role;
mod second_factor;
mod setup;
#[path = "../pve/standin/mod.rs"]
mod standin;
mod versions;
mod world;
