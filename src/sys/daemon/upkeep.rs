//! What keeps the machine's routing from being right, and what had to be put right: for the log and the user.

use std::time::Duration;

use crate::node::Repairs;
use crate::sys::clock;
use crate::time::Time;

/// How often at most the log says that another program is at work.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// Trouble and repairs so far.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    trouble: Option<String>,
    repairs: Repairs,
    /// When the user was last told of a repair.
    warned: Option<Time>,
}

impl Upkeep {
    /// Whether nothing is wrong.
    pub(super) fn is_well(&self) -> bool {
        self.trouble.is_none()
    }

    /// What keeps the machine's routing from being right, if anything does. The log says it once.
    pub(super) fn note_trouble(&mut self, trouble: Option<String>) {
        if let Some(text) = trouble.as_ref().filter(|_| self.trouble != trouble) {
            tracing::warn!("routing is not as it should be: {text}");
        }
        self.trouble = trouble;
    }

    /// Something is as it should be again.
    pub(super) fn note_repair(&mut self, what: String) {
        let now = clock::now();
        // Two programs may be at it for ever: once a minute is enough to know.
        if self.warned.is_none_or(|at| now.since(at) >= WARN_EVERY) {
            tracing::warn!("another program has changed what the mesh needs; put right: {what}");
            self.warned = Some(now);
        } else {
            tracing::debug!("put right: {what}");
        }
        self.repairs = Repairs { count: self.repairs.count.saturating_add(1), last: Some(clock::wall()), what };
    }

    /// What had to be put right so far.
    pub(super) fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    /// What the user should know of routing.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.as_ref().map(|text| format!("routing is not as it should be: {text}"))
    }

    /// Nothing is wanted any more, so nothing is wrong.
    pub(super) fn forget_trouble(&mut self) {
        self.trouble = None;
    }
}
