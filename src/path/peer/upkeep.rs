//! What is sent to keep a way right: pings, calls, and when.

use std::time::Duration;

use super::{Doubt, Draw, PeerPaths};
use crate::path::candidates::Candidate;
use crate::path::probes::patience;
use crate::path::{ACTIVE, HEARTBEAT, Path, QUIET};
use crate::time::Time;

/// Below this nobody looks for a faster way while one works.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// How often a faster way is looked for otherwise.
const UPGRADE: Duration = Duration::from_mins(1);
/// A ping to the address in use that is unanswered for so long, and two round trips, is sent again. Much less, and busy machines
/// cause it; stock clients wait until trust ends.
const OVERDUE: Duration = Duration::from_secs(1);
/// What a busy machine may take to answer before packets go through the relay as well.
const SUSPICION: Duration = Duration::from_millis(50);

impl PeerPaths {
    /// What was proven may be so no more: our own addresses, or the peer's process, have changed.
    pub(in crate::path) fn forget_proofs(&mut self, draw: &mut Draw<'_>) {
        for candidate in self.candidates.iter_mut() {
            candidate.reset();
        }
        self.doubt = None;
        self.is_alive(draw);
        draw.effects.moved |= self.relay.is_some();
        draw.effects.answers.extend(self.probes.clear().into_iter().map(|token| (token, None)));
    }

    /// This machine's networks have changed.
    pub(in crate::path) fn network_changed(&mut self, now: Time, draw: &mut Draw<'_>) {
        self.forget_proofs(draw);
        self.offers.start_anew();
        if self.is_active() {
            self.round(now, draw);
        }
    }

    pub(super) fn probe(&mut self, now: Time, to: Path, token: Option<u64>, draw: &mut Draw<'_>) {
        if self.disco.is_none() {
            return;
        }
        if let Path::Direct(address) = to {
            let Some(candidate) = self.candidates.find_mut(address) else { return };
            candidate.note_probe(now);
        }
        let tx = (draw.tx)();
        self.probes.add(tx, to, now, token);
        draw.effects.probes.push((tx, to));
    }

    /// Pings all candidates that have not just been pinged, and has the peer do the same.
    pub(super) fn round(&mut self, now: Time, draw: &mut Draw<'_>) {
        self.candidates.forget_silent(now, self.best);
        self.candidates.sort();
        self.round = Some(now);
        self.probe_due(now, |_| true, draw);
        // Even if there was nothing to ping: the peer may know ways that we do not.
        if self.disco.is_some() && self.relay.is_some() && self.calls.make(now) {
            draw.effects.call = true;
        }
    }

    pub(super) fn probe_due(&mut self, now: Time, which: impl Fn(&Candidate) -> bool, draw: &mut Draw<'_>) {
        let due: Vec<_> = self.candidates.iter().filter(|c| c.due() <= now && which(c)).map(|c| c.address).collect();
        for address in due {
            self.probe(now, Path::Direct(address), None, draw);
        }
    }

    /// Data is being sent to the peer.
    pub(in crate::path) fn sending(&mut self, now: Time, draw: &mut Draw<'_>) {
        if self.disco.is_none() {
            return;
        }
        self.sent = Some(now);
        self.heartbeat.get_or_insert(now + HEARTBEAT);
        self.changed.get_or_insert((now, "no address has answered yet"));
        if !self.is_trusted(now) || self.round.is_none() {
            self.round(now, draw);
        }
        if self.relay.is_some() && self.is_trusted(now) && !self.watch.doubled {
            self.watch.waiting.get_or_insert(now);
        }
    }

    /// Pings the peer because somebody asks: the address in use if it is proven, else all, and the relay. `false` if there is nothing to ping.
    pub(in crate::path) fn ping(&mut self, now: Time, token: u64, draw: &mut Draw<'_>) -> bool {
        let trusted = self.best.filter(|_| self.is_trusted(now));
        let targets: Vec<Path> = match trusted {
            Some(best) => vec![Path::Direct(best)],
            None => self.candidates.iter().map(|c| Path::Direct(c.address)).chain(self.relay.map(Path::Relay)).collect(),
        };
        if self.disco.is_none() || targets.is_empty() {
            return false;
        }
        for target in targets {
            self.probe(now, target, Some(token), draw);
        }
        self.sending(now, draw);
        true
    }

    /// Finds out whether and how fast the peer answers, and starts nothing that goes on: no data is on its way to it. The address in use
    /// is not enough, even if it is proven, for it may just have died. The peer is told our addresses, so that a direct way can open.
    /// `false` if there is nothing to ping.
    pub(in crate::path) fn measure(&mut self, now: Time, token: u64, draw: &mut Draw<'_>) -> bool {
        let trusted = self.best.filter(|_| self.is_trusted(now));
        let direct = self.candidates.iter().map(|c| c.address).filter(|address| trusted.is_none_or(|best| best == *address));
        let targets: Vec<Path> = direct.map(Path::Direct).chain(self.relay.map(Path::Relay)).collect();
        if self.disco.is_none() || targets.is_empty() {
            return false;
        }
        for target in targets {
            self.probe(now, target, Some(token), draw);
        }
        if trusted.is_none() && self.relay.is_some() && self.calls.make(now) {
            draw.effects.call = true;
        }
        true
    }

    /// Does what is due.
    pub(in crate::path) fn handle_timeout(&mut self, now: Time, draw: &mut Draw<'_>) {
        let lost = self.best.is_some_and(|best| self.probes.has_lost(now, Path::Direct(best)));
        draw.effects.answers.extend(self.probes.expire(now).into_iter().map(|token| (token, None)));
        if lost && !self.is_trusted(now) && self.relay.is_some() {
            (self.best, self.taken) = (None, None);
            self.changed = Some((now, "the address in use stopped answering"));
            draw.effects.moved = true;
        }
        if let Some(doubt) = self.doubt.filter(|doubt| doubt.until <= now) {
            self.distrust(now, doubt.instead, draw);
        }
        self.look_for_life(now, draw);
        if self.meet.is_some_and(|at| at <= now) {
            self.meet = None;
            self.last_meet = Some(now);
            draw.effects.meet = true;
        }
        if self.heartbeat.is_some_and(|at| at <= now) {
            self.beat(now, draw);
        }
        if self.overdue(now).is_some_and(|at| at <= now) {
            self.hurry(now, draw);
        }
        if self.offer_due(now).is_some_and(|at| at <= now) {
            self.offers.note_made(now);
            draw.effects.offer = true;
        }
        if self.retry(now).is_some_and(|at| at <= now) {
            if self.is_trusted(now) {
                let best = self.best;
                self.probe_due(now, |c| c.is_open() && Some(c.address) != best, draw);
            } else {
                self.round(now, draw);
            }
        }
    }

    /// When the peer is asked to guess ports: data has been going through the relay for a while, and pings did not help.
    pub(super) fn offer_due(&self, now: Time) -> Option<Time> {
        let since = self.calls.in_vain_since()?;
        (self.is_active() && self.relay.is_some() && !self.is_trusted(now)).then(|| self.offers.due(since))
    }

    /// When silence becomes suspicious.
    pub(super) fn silence(&self, now: Time) -> Option<Time> {
        let waiting = self.watch.waiting.filter(|_| self.watch.suspect.is_none() && !self.watch.doubled)?;
        (self.relay.is_some() && self.is_trusted(now)).then(|| waiting + QUIET)
    }

    /// Data went out and nothing has come back: the address in use is asked, and if it is silent too, packets go through the relay as
    /// well. That costs little where nothing is wrong, as when data goes one way only: a ping now and then.
    fn look_for_life(&mut self, now: Time, draw: &mut Draw<'_>) {
        if self.watch.suspect.is_some_and(|at| at <= now) {
            (self.watch.suspect, self.watch.waiting) = (None, None);
            if self.relay.is_some() && self.is_trusted(now) {
                self.watch.doubled = true;
                draw.effects.moved = true;
                self.round(now, draw);
            }
        }
        if self.silence(now).is_some_and(|at| at <= now)
            && let (Some(best), Some(latency)) = (self.best, self.latency(now))
        {
            self.watch.suspect = Some(now + latency * 2 + SUSPICION);
            self.probe(now, Path::Direct(best), None, draw);
        }
    }

    fn beat(&mut self, now: Time, draw: &mut Draw<'_>) {
        if self.sent.is_none_or(|at| now.since(at) > ACTIVE) {
            self.heartbeat = None;
            return;
        }
        self.heartbeat = Some(now + HEARTBEAT);
        let latency = self.latency(now);
        let slow = latency.is_some_and(|latency| latency > GOOD_ENOUGH);
        let long_ago = self.round.is_none_or(|at| now.since(at) >= UPGRADE);
        if let (Some(best), Some(_)) = (self.best, latency) {
            self.probe(now, Path::Direct(best), None, draw);
        }
        if latency.is_none() || self.round.is_none() || slow && long_ago {
            self.round(now, draw);
        }
    }

    /// When the last ping to the address in use is overdue.
    pub(super) fn overdue(&self, now: Time) -> Option<Time> {
        let latency = self.latency(now)?;
        let (_, sent) = self.probes.waiting(Path::Direct(self.best?))?;
        (self.is_active() && self.doubt.is_none()).then(|| sent + OVERDUE + latency * 2)
    }

    /// A ping to the address in use has not been answered. It is sent again; if nothing else has come from there either, the address
    /// has little time left.
    fn hurry(&mut self, now: Time, draw: &mut Draw<'_>) {
        let (Some(best), Some(latency)) = (self.best, self.latency(now)) else { return };
        let since = self.probes.waiting(Path::Direct(best)).map_or(now, |(oldest, _)| oldest);
        let silent = self.candidates.find(best).is_none_or(|c| c.heard.is_none_or(|heard| heard <= since));
        self.probe(now, Path::Direct(best), None, draw);
        if silent {
            self.round(now, draw);
            self.doubt = Some(Doubt { until: now + patience(latency), instead: None });
        }
    }

    /// When the next candidate may be pinged again: any while none is trusted, else those that may have had bad luck.
    pub(super) fn retry(&self, now: Time) -> Option<Time> {
        if self.disco.is_none() || !self.is_active() {
            return None;
        }
        let trusted = self.is_trusted(now);
        let open = |c: &&Candidate| !trusted || c.is_open() && Some(c.address) != self.best;
        self.candidates.iter().filter(open).map(Candidate::due).min()
    }
}
