//! What arrives from a peer, and what it changes.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Doubt, Draw, PeerPaths};
use crate::ident::RegionId;
use crate::path::candidates::Candidate;
use crate::path::probes::patience;
use crate::path::rank::is_better;
use crate::path::{Path, Pong, QUIET, canonical};
use crate::time::Time;
use crate::wire::disco::TxId;

/// A way in use for so long is left for a faster one only if that is faster by a fifth: what it is on some days is noise.
const SETTLED: Duration = Duration::from_secs(10);
/// Doubts because packets come from elsewhere are raised at most so often.
const CHECK_GAP: Duration = Duration::from_secs(1);
/// Those because packets come through the relay, while they mean nothing, at least so often.
const MAX_CHECK_GAP: Duration = Duration::from_mins(1);
/// A handshake is repeated so long after a ping from the peer was answered: the answer has arrived by then or never will.
const MEET_PAUSE: Duration = Duration::from_millis(20);
/// Stock peers pass over initiations that follow one another more closely than 20 ms.
const ASK_PAUSE: Duration = Duration::from_millis(30);
/// How often that is done while it does not help.
const MEET_GAP: Duration = Duration::from_secs(1);

impl PeerPaths {
    /// An authentic WireGuard packet came this way.
    pub(in crate::path) fn heard(&mut self, now: Time, from: Path, draw: &mut Draw<'_>) {
        match from {
            Path::Direct(address) => self.heard_directly(now, canonical(address), draw),
            Path::Relay(region) => self.heard_through(now, region, draw),
        }
    }

    fn heard_directly(&mut self, now: Time, from: SocketAddr, draw: &mut Draw<'_>) {
        let Some(candidate) = self.candidates.learn(from, self.best) else { return };
        candidate.heard = Some(now);
        let elsewhere = self.from.replace(from) != Some(from);
        if self.best == Some(from) {
            self.is_alive(draw);
        } else if self.is_trusted(now) {
            if elsewhere {
                self.check(now, from, draw);
            }
        } else if !self.holds(now, from) {
            // With a relay to turn to nothing is used that has not been proven.
            if self.relay.is_none() || self.disco.is_none() {
                self.take(now, from, "packets come from there", draw);
            }
            if self.is_active() && self.candidates.find(from).is_some_and(|c| c.due() <= now) {
                self.probe(now, Path::Direct(from), None, draw);
            }
        }
    }

    /// Packets come through a relay. If nothing has come from the address in use lately, the peer may have reason not to use it: it has
    /// to answer, and until it does packets go both ways. A peer that just never uses it has us ask ever less often.
    fn heard_through(&mut self, now: Time, region: RegionId, draw: &mut Draw<'_>) {
        self.heard_through = Some(region);
        self.changed.get_or_insert((now, "the peer calls through a relay"));
        let Some(best) = self.best.filter(|_| self.is_trusted(now) && !self.watch.doubled) else { return };
        let evidence = self.candidates.find(best).and_then(Candidate::evidence);
        let gap = CHECK_GAP.saturating_mul(1 << self.watch.idle_alarms.min(8)).min(MAX_CHECK_GAP);
        let recent = self.watch.relayed.is_some_and(|at| now.since(at) < gap);
        if recent || evidence.is_some_and(|at| now.since(at) < QUIET) {
            return;
        }
        self.watch.relayed = Some(now);
        self.watch.idle_alarms = self.watch.idle_alarms.saturating_add(1);
        self.watch.doubled = true;
        draw.effects.moved = true;
        self.probe(now, Path::Direct(best), None, draw);
    }

    /// Packets begin to come from elsewhere: the peer has moved, or has made another choice than we. The address in use must answer.
    fn check(&mut self, now: Time, instead: SocketAddr, draw: &mut Draw<'_>) {
        let recent = self.last_check.is_some_and(|at| now.since(at) < CHECK_GAP);
        if let (Some(best), Some(latency), false) = (self.best, self.latency(now), recent || self.doubt.is_some()) {
            self.last_check = Some(now);
            self.probe(now, Path::Direct(best), None, draw);
            self.probe(now, Path::Direct(instead), None, draw);
            self.doubt = Some(Doubt { until: now + patience(latency), instead: Some(instead) });
        }
    }

    /// A handshake we started was answered this way.
    pub(in crate::path) fn answered(&mut self, now: Time, from: Path, draw: &mut Draw<'_>) {
        self.asked = None;
        self.meet = None;
        self.heard(now, from, draw);
    }

    /// A handshake the peer started was answered: it needs none of ours.
    pub(in crate::path) fn met(&mut self) {
        self.meet = None;
    }

    /// A ping came from the peer by this address. It is not our data, so it starts nothing that goes on: at most a ping of ours
    /// so that both ends know the way, and the handshake that one of us wants.
    pub(in crate::path) fn pinged(&mut self, now: Time, from: SocketAddr, draw: &mut Draw<'_>) {
        let from = canonical(from);
        let Some(candidate) = self.candidates.learn(from, self.best) else { return };
        candidate.note_ping(now);
        let due = candidate.due() <= now;
        if due && !self.is_trusted(now) {
            self.probe(now, Path::Direct(from), None, draw);
        }
        // Through a relay a peer can be met whatever it knows of our addresses.
        if self.relay.is_none() || self.asked.is_some() {
            self.plan_meeting(now);
        }
    }

    fn plan_meeting(&mut self, now: Time) {
        if self.meet.is_none() {
            let after_ask = self.last_ask.map_or(now, |at| at + ASK_PAUSE);
            let after_meet = self.last_meet.map_or(now, |at| at + MEET_GAP);
            self.meet = Some((now + MEET_PAUSE).max(after_ask).max(after_meet));
        }
    }

    /// The peer has told its addresses through a relay and is pinging ours at this moment: ours go out too, for they open the way for
    /// the peer's. Nothing is told in return, or two nodes would call each other for ever.
    pub(in crate::path) fn called(&mut self, now: Time, addresses: &[SocketAddr], draw: &mut Draw<'_>) {
        if !self.calls.heed(now) {
            return;
        }
        self.candidates.call(now, addresses, self.best);
        self.candidates.sort();
        self.probe_due(now, |_| true, draw);
    }

    /// The peer was not asked to guess ports after all.
    pub(in crate::path) fn take_offer_back(&mut self, now: Time) {
        self.offers.take_back(now);
    }

    /// The peer wants ports guessed; whether that is done.
    pub(in crate::path) fn offered(&mut self, now: Time) -> bool {
        !self.is_trusted(now) && self.offers.heed(now)
    }

    /// An address was found by guessing: it is pinged as others are, which proves it.
    pub(in crate::path) fn found(&mut self, now: Time, address: SocketAddr, draw: &mut Draw<'_>) {
        let Some(candidate) = self.candidates.learn(address, self.best) else { return };
        // The sign of life that it is, and the ping that may be in it is answered by this one.
        candidate.note_ping(now);
        if !self.is_trusted(now) {
            self.probe(now, Path::Direct(address), None, draw);
        }
    }

    /// A pong came, directly or through a relay. Whether it answers a ping of ours.
    pub(in crate::path) fn ponged(
        &mut self,
        now: Time,
        tx: TxId,
        via: Option<RegionId>,
        observed: SocketAddr,
        draw: &mut Draw<'_>,
    ) -> bool {
        let Some(ping) = self.probes.answered(tx, via) else { return false };
        let latency = now.since(ping.sent);
        if let Some(token) = ping.token {
            self.probes.settle(token);
            draw.effects.answers.push((token, Some(Pong { path: ping.to, latency, observed })));
        }
        // A relay is no address: its answer is for whoever asked.
        let Path::Direct(to) = ping.to else { return true };
        let current = self.best.and_then(|best| self.candidates.find(best)).filter(|c| c.is_proven(now)).map(Candidate::standing);
        // Where the ping went is proven, not where the pong came from. It may be a candidate no longer.
        let Some(candidate) = self.candidates.find_mut(to) else { return true };
        candidate.note_pong(now, latency);
        let mut standing = candidate.standing();
        if self.taken.is_some_and(|at| now.since(at) >= SETTLED) {
            standing.1 = standing.1 * 6 / 5;
        }
        self.calls.note_success();
        self.offers.note_success();
        match current {
            _ if self.best == Some(to) => {
                self.doubt = None;
                self.is_alive(draw);
            }
            Some(current) if !is_better(standing, current) => {}
            Some(_) => self.take(now, to, "it is better than the address before", draw),
            None => self.take(now, to, "it has answered", draw),
        }
        if self.asked.is_some() {
            self.plan_meeting(now);
        }
        true
    }
}
