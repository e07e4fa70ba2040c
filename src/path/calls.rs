//! When a peer is told our addresses.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::FRESH;
use crate::ident::NodePublic;
use crate::time::Time;

/// The pause after the first call to a peer; it doubles with each that changes nothing.
const FIRST_GAP: Duration = Duration::from_secs(1);
/// Stock clients wait so long at least, because of the pings that go before.
const MAX_GAP: Duration = Duration::from_secs(5);
/// Calls of a peer that follow one another more closely are not followed by pings: a peer must not have us send more than it does.
const HEED_GAP: Duration = Duration::from_millis(300);

/// The calls to and from one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Calls {
    made: Option<Time>,
    /// How many, since an address was last proven, and when the first of them was.
    fruitless: u32,
    since: Option<Time>,
    heeded: Option<Time>,
}

impl Calls {
    /// Whether it is time for another call; it counts as made then.
    pub(super) fn make(&mut self, now: Time) -> bool {
        let gap = FIRST_GAP.saturating_mul(1 << self.fruitless.saturating_sub(1).min(8)).min(MAX_GAP);
        let due = self.made.is_none_or(|at| now.since(at) >= gap);
        if due {
            self.made = Some(now);
            self.since.get_or_insert(now);
            self.fruitless = self.fruitless.saturating_add(1);
        }
        due
    }

    /// An address has been proven.
    pub(super) fn note_success(&mut self) {
        (self.fruitless, self.since) = (0, None);
    }

    /// Since when calls have been in vain.
    pub(super) fn in_vain_since(&self) -> Option<Time> {
        self.since
    }

    /// Whether a call of the peer's is followed by pings.
    pub(super) fn heed(&mut self, now: Time) -> bool {
        let heed = self.heeded.is_none_or(|at| now.since(at) >= HEED_GAP);
        if heed {
            self.heeded = Some(now);
        }
        heed
    }
}

/// Our own addresses, and the peers that are to be told them as soon as they are known.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnEndpoints {
    addresses: Vec<SocketAddr>,
    known: Option<Time>,
    pub(super) waiting: BTreeSet<NodePublic>,
}

impl OwnEndpoints {
    /// Takes them, as of now.
    pub(super) fn set(&mut self, now: Time, addresses: Vec<SocketAddr>) {
        self.addresses = addresses;
        self.known = Some(now);
    }

    /// They may be other ones now.
    pub(super) fn doubt(&mut self) {
        self.known = None;
    }

    /// What a peer may be told: none, if they are too old for that.
    pub(super) fn fresh(&self, now: Time) -> Option<&[SocketAddr]> {
        self.known.filter(|at| now.since(*at) <= FRESH).map(|_| &*self.addresses)
    }
}
