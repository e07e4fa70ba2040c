//! When a peer is asked to guess ports, and when it may ask us.

use std::time::Duration;

use super::HEED_GAP;
use crate::time::Time;

/// How long the usual pings have, which need a tenth of that where they can do it.
const PATIENCE: Duration = Duration::from_millis(800);
/// The pause after the first offer; it doubles with each that changes nothing.
const FIRST_GAP: Duration = Duration::from_secs(15);
/// How long one peer's turn takes at most.
const TURN: Duration = Duration::from_secs(5);
const MAX_GAP: Duration = Duration::from_mins(10);

/// The offers to and from one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::path) struct Offers {
    made: Option<Time>,
    /// How many, since an address was last proven.
    fruitless: u32,
    /// When another peer's ports were being guessed.
    busy: Option<Time>,
    heeded: Option<Time>,
}

impl Offers {
    /// When one is to be made, if the peer has been called in vain since then.
    pub(in crate::path) fn due(&self, in_vain_since: Time) -> Time {
        let gap = FIRST_GAP.saturating_mul(1 << self.fruitless.saturating_sub(1).min(8)).min(MAX_GAP);
        let after_last = self.made.map(|at| at + gap);
        let after_others = self.busy.map(|at| at + TURN);
        after_others.or(after_last).unwrap_or_default().max(in_vain_since + PATIENCE)
    }

    pub(in crate::path) fn note_made(&mut self, now: Time) {
        self.busy = None;
        self.made = Some(now);
        self.fruitless = self.fruitless.saturating_add(1);
    }

    /// It could not be made, because another peer is guessing.
    pub(in crate::path) fn take_back(&mut self, now: Time) {
        self.busy = Some(now);
        self.fruitless = self.fruitless.saturating_sub(1);
    }

    /// An address has been proven.
    pub(in crate::path) fn note_success(&mut self) {
        self.fruitless = 0;
    }

    /// This machine is in another network: what did not help there may help here.
    pub(in crate::path) fn start_anew(&mut self) {
        (self.made, self.fruitless) = (None, 0);
    }

    /// Whether an offer of the peer's is followed by guesses.
    pub(in crate::path) fn heed(&mut self, now: Time) -> bool {
        let heed = self.heeded.is_none_or(|at| now.since(at) >= HEED_GAP);
        if heed {
            self.heeded = Some(now);
        }
        heed
    }
}
