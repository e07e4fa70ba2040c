//! The control protocol's bytes: recorded vectors, round trips, and mangled input.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "test code"
)]

mod derp;
mod disco;
mod dns;
mod frame;
mod messages;
mod noise;
mod stream;
mod stun;
mod tsmp;

/// Bytes from hex.
fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}
