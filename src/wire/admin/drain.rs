//! Telling the coordinator beforehand that a node goes away, or at once that it is gone.

use serde::{Deserialize, Serialize};

/// A node that is about to stop, or has stopped, as whoever runs its guest knows before its stream ends.
///
/// Both are undone when the node opens a stream again, so a mistaken one costs a reconnection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// For so many seconds it keeps only those routes that no other router can carry; 0 ends that.
    #[serde(default)]
    pub for_secs: u64,
    /// It has stopped: it is offline now, and loses its routes.
    #[serde(default)]
    pub gone: bool,
}
