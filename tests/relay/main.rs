//! The relay: the client's and the server's core against each other and against a scripted other side.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

mod client;
mod net;
mod server;
mod server_mesh;
mod world;

use std::time::Duration;

use pvemesh::time::Time;

/// A moment, in milliseconds from the start.
fn at(millis: u64) -> Time {
    Time::from_start(Duration::from_millis(millis))
}
