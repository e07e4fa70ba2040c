//! The policy file: reading, what follows from it, and the results of the hosted service as an oracle.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "test code"
)]

mod access;
mod capture;
mod claims;
mod mesh;
mod naive;
mod oracle;
mod properties;
mod refusals;
mod scale;
