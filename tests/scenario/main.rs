//! The main job in the lab, end to end, then what goes wrong in real life: restarts, kills, removal. And that the lab leaves nothing.
//!
//! Needs root and LXC, and the programs `pvemesh` and `pvemesh-lab` (named by PVEMESH_BINARY and PVEMESH_LAB, or built beside this one).

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

mod cleanup;
mod cluster;
mod faults;
mod stage;
