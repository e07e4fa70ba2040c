//! What the provisioner has this program do inside a guest, where there may be no shell and no other program: files placed whole or not at
//! all, and checked.

mod files;
mod look;
pub mod trial;

pub use files::{ChoreError, place, remove, sha256, write};
pub use look::look;
