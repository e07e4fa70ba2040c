//! Real nodes behind NATs of every kind: which way results between each two, after how long, and what happens when ways change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "test code")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, missing_docs, unreachable_pub, reason = "test code")]

mod coordinator;
mod game;
mod matrix;
mod moving;
#[path = "../engine/netns.rs"]
mod netns;
mod node;
mod place;
mod portal;
mod ports;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: they look at the clock.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
