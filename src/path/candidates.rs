//! One peer's addresses and what is known of each.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::rank::Standing;
use super::{ACTIVE, Reach, TRUST, canonical, is_usable};
use crate::time::Time;

/// Addresses taken from the network map, for one peer. A round of pings goes to all of them.
pub const MAX_LISTED: usize = 24;
/// Addresses kept that the map does not name: those packets have come from.
pub const MAX_LEARNED: usize = 8;
/// Addresses taken from one call-me-maybe of a peer.
pub const MAX_CALLED: usize = 24;
/// The pause before an address is pinged again, after the first ping; it doubles up to [`MAX_GAP`] while nothing is answered.
const FIRST_GAP: Duration = Duration::from_millis(500);
/// Stock clients always wait so long.
const MAX_GAP: Duration = Duration::from_secs(5);

/// The fastest answer says what a way can do, the others tell of queues and busy machines; it is forgotten by this part with each of those.
const FADING: u32 = 16;

/// Pings in a row that have to stay unanswered before an address is left alone while another works.
const TRIES: u32 = 4;

/// An answered ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) at: Time,
    pub(super) latency: Duration,
}

/// An address and the evidence for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) address: SocketAddr,
    /// The network map names it.
    listed: bool,
    /// The peer itself has named it lately, in a call-me-maybe.
    called: Option<Time>,
    /// Something authentic came from it: it works, at least towards us.
    pub(super) heard: Option<Time>,
    /// A ping came from it: the peer may be there, or someone who repeats the peer's pings.
    pub(super) pinged: Option<Time>,
    /// A ping to it was answered: it works both ways.
    pub(super) proof: Option<Proof>,
    /// The fastest answer, lately.
    fastest: Option<Duration>,
    /// When it was last pinged by us, and how many pings in a row have not been answered.
    probed: Option<Time>,
    unanswered: u32,
}

impl Candidate {
    fn new(address: SocketAddr, listed: bool) -> Self {
        Self { address, listed, called: None, heard: None, pinged: None, proof: None, fastest: None, probed: None, unanswered: 0 }
    }

    /// When it may be pinged again in a round of pings.
    pub(super) fn due(&self) -> Time {
        let gap = FIRST_GAP.saturating_mul(1 << self.unanswered.saturating_sub(1).min(8)).min(MAX_GAP);
        self.probed.map_or(Time::default(), |at| at + gap)
    }

    pub(super) fn note_probe(&mut self, now: Time) {
        self.probed = Some(now);
        self.unanswered = self.unanswered.saturating_add(1);
    }

    pub(super) fn note_pong(&mut self, now: Time, latency: Duration) {
        self.proof = Some(Proof { at: now, latency });
        let faded = self.fastest.map(|fastest| fastest + latency.saturating_sub(fastest) / FADING);
        self.fastest = Some(faded.map_or(latency, |faded| faded.min(latency)));
        self.unanswered = 0;
    }

    /// What it is ranked by.
    pub(super) fn standing(&self) -> Standing {
        (self.address, self.fastest.unwrap_or(Duration::MAX))
    }

    /// Whether it has been tried too rarely to be called dead.
    pub(super) fn is_open(&self) -> bool {
        (1..TRIES).contains(&self.unanswered)
    }

    /// Something has changed: what was known is void, and it may be worth another try at once.
    pub(super) fn reset(&mut self) {
        self.proof = None;
        self.fastest = None;
        self.probed = None;
        self.unanswered = 0;
    }

    pub(super) fn is_proven(&self, now: Time) -> bool {
        self.proof.is_some_and(|proof| now.since(proof.at) <= TRUST)
    }

    pub(super) fn heard_within(&self, now: Time, limit: Duration) -> bool {
        self.heard.is_some_and(|at| now.since(at) <= limit)
    }

    /// Whether a handshake may go there: not to an address that is known from a ping alone.
    pub(super) fn is_accepted(&self) -> bool {
        self.listed || self.called.is_some() || self.heard.is_some() || self.proof.is_some()
    }

    /// When the peer was last known to be reached there: something authentic came from it, or a ping was answered.
    pub(super) fn evidence(&self) -> Option<Time> {
        self.heard.max(self.proof.map(|proof| proof.at))
    }

    /// A ping from there is the first one for a while: whatever kept ours from being answered may be over.
    pub(super) fn note_ping(&mut self, now: Time) {
        if self.pinged.is_none_or(|at| now.since(at) >= MAX_GAP) {
            self.probed = None;
        }
        self.pinged = Some(now);
    }

    /// The last sign of life.
    fn last(&self) -> Option<Time> {
        self.called.max(self.pinged).max(self.evidence())
    }
}

/// All candidates of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Candidates(Vec<Candidate>);

/// A link-local IPv6 address means nothing without the interface it was seen on.
fn is_placeless(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}

impl Candidates {
    pub(super) fn find(&self, address: SocketAddr) -> Option<&Candidate> {
        self.0.iter().find(|c| c.address == address)
    }

    pub(super) fn find_mut(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        self.0.iter_mut().find(|c| c.address == address)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Candidate> {
        self.0.iter_mut()
    }

    /// Takes the network map's addresses. What it names no more goes, unless there is other evidence for it or it is `in_use`.
    pub(super) fn list(&mut self, addresses: &[SocketAddr], in_use: Option<SocketAddr>) {
        let mut wanted: Vec<SocketAddr> = Vec::new();
        for address in addresses.iter().copied().map(canonical) {
            if is_usable(address) && !is_placeless(address) && !wanted.contains(&address) && wanted.len() < MAX_LISTED {
                wanted.push(address);
            }
        }
        for candidate in &mut self.0 {
            candidate.listed = wanted.contains(&candidate.address);
        }
        for address in wanted {
            if self.find(address).is_none() {
                self.0.push(Candidate::new(address, true));
            }
        }
        self.0.retain(|c| c.listed || c.last().is_some() || Some(c.address) == in_use);
        while self.learned() > MAX_LEARNED && self.make_room(in_use) {}
    }

    /// Takes the addresses a peer names in a call-me-maybe, in place of those it named before, and lets all be pinged at once: the
    /// peer is pinging us at this moment.
    pub(super) fn call(&mut self, now: Time, addresses: &[SocketAddr], in_use: Option<SocketAddr>) {
        for candidate in &mut self.0 {
            candidate.called = None;
            candidate.probed = None;
            candidate.unanswered = 0;
        }
        for address in addresses.iter().copied().map(canonical).filter(|a| is_usable(*a) && !is_placeless(*a)).take(MAX_CALLED) {
            match self.find_mut(address) {
                Some(known) => known.called = Some(now),
                None => self.0.push(Candidate { called: Some(now), ..Candidate::new(address, false) }),
            }
        }
        self.0.retain(|c| c.listed || c.last().is_some() || Some(c.address) == in_use);
    }

    fn is_learned(candidate: &Candidate) -> bool {
        !candidate.listed && candidate.called.is_none()
    }

    fn learned(&self) -> usize {
        self.0.iter().filter(|c| Self::is_learned(c)).count()
    }

    /// Drops the least credible of the learned addresses.
    fn make_room(&mut self, in_use: Option<SocketAddr>) -> bool {
        let learned = self.0.iter().filter(|c| Self::is_learned(c) && Some(c.address) != in_use);
        let Some(victim) = learned.min_by_key(|c| (c.is_accepted(), c.last())).map(|c| c.address) else { return false };
        self.0.retain(|c| c.address != victim);
        true
    }

    /// The candidate with this address, added if it is new; `None` if it is of no use.
    pub(super) fn learn(&mut self, address: SocketAddr, in_use: Option<SocketAddr>) -> Option<&mut Candidate> {
        if !is_usable(address) || is_placeless(address) {
            return None;
        }
        if self.find(address).is_none() {
            if self.learned() >= MAX_LEARNED && !self.make_room(in_use) {
                return None;
            }
            self.0.push(Candidate::new(address, false));
        }
        self.find_mut(address)
    }

    /// Drops learned addresses without a sign of life for [`ACTIVE`].
    pub(super) fn forget_silent(&mut self, now: Time, in_use: Option<SocketAddr>) {
        self.0.retain(|c| c.listed || Some(c.address) == in_use || c.last().is_some_and(|at| now.since(at) < ACTIVE));
    }

    /// Puts near ones first, which are to be tried first.
    pub(super) fn sort(&mut self) {
        self.0.sort_by_key(|c| Reach::of(c.address.ip()));
    }
}
