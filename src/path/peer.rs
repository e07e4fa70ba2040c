//! One peer's way: the choice, and what is done to keep it right.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidates::{Candidate, Candidates};
use super::probes::{Probes, patience};
use super::rank::is_better;
use super::{ACTIVE, HEARTBEAT, Path, Pong, Reach, TRUST, UNANSWERED, canonical};
use crate::ident::DiscoPublic;
use crate::time::{Deadline, Time};
use crate::wire::disco::TxId;

/// Below this nobody looks for a faster way while one works.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// How often a faster way is looked for otherwise.
const UPGRADE: Duration = Duration::from_mins(1);
/// A ping to the address in use that is unanswered for so long, and two round trips, is sent again. Much less, and busy machines
/// cause it; stock clients wait until trust ends.
const OVERDUE: Duration = Duration::from_secs(1);
/// A way in use for so long is left for a faster one only if that is faster by a fifth: what it is on some days is noise.
const SETTLED: Duration = Duration::from_secs(10);
/// Doubts because packets come from elsewhere are raised at most so often.
const CHECK_GAP: Duration = Duration::from_secs(1);
/// A handshake is repeated so long after a ping from the peer was answered: the answer has arrived by then or never will.
const MEET_PAUSE: Duration = Duration::from_millis(20);
/// Stock peers pass over initiations that follow one another more closely than 20 ms.
const ASK_PAUSE: Duration = Duration::from_millis(30);
/// How often that is done while it does not help.
const MEET_GAP: Duration = Duration::from_secs(1);

/// What is to be done, beside what the state itself says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Addresses to ping, under these ids.
    pub(super) probes: Vec<(TxId, SocketAddr)>,
    /// The address in use is another one.
    pub(super) moved: bool,
    /// A handshake would be answered now.
    pub(super) meet: bool,
    /// What became of pings that were asked for.
    pub(super) answers: Vec<(u64, Option<Pong>)>,
}

/// What is needed to make pings.
pub(super) struct Draw<'a> {
    /// A new id for each ping.
    pub(super) tx: &'a mut dyn FnMut() -> TxId,
    pub(super) effects: Effects,
}

/// The address in use has this long to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Doubt {
    until: Time,
    /// Where packets come from instead.
    instead: Option<SocketAddr>,
}

/// One peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PeerPaths {
    disco: Option<DiscoPublic>,
    candidates: Candidates,
    best: Option<SocketAddr>,
    /// Since when.
    taken: Option<Time>,
    probes: Probes,
    doubt: Option<Doubt>,
    last_check: Option<Time>,
    /// Where the last authentic packet came from.
    from: Option<SocketAddr>,
    /// When data was last sent, and when the address in use is next looked after because of it.
    sent: Option<Time>,
    heartbeat: Option<Time>,
    /// When all candidates were last pinged.
    round: Option<Time>,
    /// When the oldest unanswered handshake was started, and when one was last sent.
    asked: Option<Time>,
    last_ask: Option<Time>,
    meet: Option<Time>,
    last_meet: Option<Time>,
}

impl PeerPaths {
    pub(super) fn disco(&self) -> Option<DiscoPublic> {
        self.disco
    }

    /// Where data goes.
    pub(super) fn best(&self) -> Option<Path> {
        self.best.map(Path::Direct)
    }

    /// The latency of the address in use, if it is proven at this moment.
    pub(super) fn latency(&self, now: Time) -> Option<Duration> {
        let candidate = self.candidates.find(self.best?)?;
        candidate.proof.filter(|_| candidate.is_proven(now)).map(|proof| proof.latency)
    }

    fn is_trusted(&self, now: Time) -> bool {
        self.latency(now).is_some()
    }

    fn is_active(&self) -> bool {
        self.heartbeat.is_some()
    }

    /// Takes the peer's disco key. Whether it is another one than before.
    pub(super) fn set_disco(&mut self, disco: Option<DiscoPublic>, draw: &mut Draw<'_>) -> bool {
        let changed = self.disco.is_some() && disco.is_some() && self.disco != disco;
        if self.disco != disco {
            self.forget_proofs(draw);
        }
        self.disco = disco;
        if self.disco.is_none() {
            (self.heartbeat, self.meet) = (None, None);
        }
        changed
    }

    /// Takes the network map's addresses.
    pub(super) fn list(&mut self, now: Time, addresses: &[SocketAddr], draw: &mut Draw<'_>) {
        self.candidates.list(addresses, self.best);
        if self.is_active() {
            self.probe_due(now, |c| c.due() == Time::default(), draw);
        }
    }

    /// What was proven may be so no more: our own addresses, or the peer's process, have changed.
    pub(super) fn forget_proofs(&mut self, draw: &mut Draw<'_>) {
        for candidate in self.candidates.iter_mut() {
            candidate.reset();
        }
        self.doubt = None;
        draw.effects.answers.extend(self.probes.clear().into_iter().map(|token| (token, None)));
    }

    /// This machine's networks have changed.
    pub(super) fn network_changed(&mut self, now: Time, draw: &mut Draw<'_>) {
        self.forget_proofs(draw);
        if self.is_active() {
            self.round(now, draw);
        }
    }

    fn probe(&mut self, now: Time, to: SocketAddr, token: Option<u64>, draw: &mut Draw<'_>) {
        if self.disco.is_none() {
            return;
        }
        if let Some(candidate) = self.candidates.find_mut(to) {
            candidate.note_probe(now);
            let tx = (draw.tx)();
            self.probes.add(tx, to, now, token);
            draw.effects.probes.push((tx, to));
        }
    }

    /// Pings all candidates that have not just been pinged.
    fn round(&mut self, now: Time, draw: &mut Draw<'_>) {
        self.candidates.forget_silent(now, self.best);
        self.candidates.sort();
        self.round = Some(now);
        self.probe_due(now, |_| true, draw);
    }

    fn probe_due(&mut self, now: Time, which: impl Fn(&Candidate) -> bool, draw: &mut Draw<'_>) {
        let due: Vec<_> = self.candidates.iter().filter(|c| c.due() <= now && which(c)).map(|c| c.address).collect();
        for address in due {
            self.probe(now, address, None, draw);
        }
    }

    fn take(&mut self, now: Time, address: SocketAddr, draw: &mut Draw<'_>) {
        if self.best != Some(address) {
            self.best = Some(address);
            self.taken = Some(now);
            draw.effects.moved = true;
        }
        self.doubt = None;
    }

    /// Data is being sent to the peer.
    pub(super) fn sending(&mut self, now: Time, draw: &mut Draw<'_>) {
        if self.disco.is_none() {
            return;
        }
        self.sent = Some(now);
        self.heartbeat.get_or_insert(now + HEARTBEAT);
        if !self.is_trusted(now) || self.round.is_none() {
            self.round(now, draw);
        }
    }

    /// An authentic WireGuard packet came from this address.
    pub(super) fn heard(&mut self, now: Time, from: SocketAddr, draw: &mut Draw<'_>) {
        let from = canonical(from);
        let Some(candidate) = self.candidates.learn(from, self.best) else { return };
        candidate.heard = Some(now);
        let elsewhere = self.from.replace(from) != Some(from);
        if self.best == Some(from) {
            return;
        }
        if self.is_trusted(now) {
            if elsewhere {
                self.check(now, from, draw);
            }
        } else if !self.holds(now, from) {
            self.take(now, from, draw);
            if self.is_active() && self.candidates.find(from).is_some_and(|c| c.due() <= now) {
                self.probe(now, from, None, draw);
            }
        }
    }

    /// Whether the address in use is kept although packets come from another: it is nearer, and has been heard from.
    fn holds(&self, now: Time, from: SocketAddr) -> bool {
        let best = self.best.and_then(|best| self.candidates.find(best));
        best.is_some_and(|c| Reach::of(c.address.ip()) < Reach::of(from.ip()) && c.heard_within(now, TRUST))
    }

    /// Packets begin to come from elsewhere: the peer has moved, or has made another choice than we. The address in use must answer.
    fn check(&mut self, now: Time, instead: SocketAddr, draw: &mut Draw<'_>) {
        let recent = self.last_check.is_some_and(|at| now.since(at) < CHECK_GAP);
        if let (Some(best), Some(latency), false) = (self.best, self.latency(now), recent || self.doubt.is_some()) {
            self.last_check = Some(now);
            self.probe(now, best, None, draw);
            self.probe(now, instead, None, draw);
            self.doubt = Some(Doubt { until: now + patience(latency), instead: Some(instead) });
        }
    }

    /// A handshake we started was answered from this address.
    pub(super) fn answered(&mut self, now: Time, from: SocketAddr, draw: &mut Draw<'_>) {
        self.asked = None;
        self.meet = None;
        self.heard(now, from, draw);
    }

    /// A handshake the peer started was answered: it needs none of ours.
    pub(super) fn met(&mut self) {
        self.meet = None;
    }

    /// Where a handshake initiation goes that is sent now: the path in use if it works as far as we know, else every candidate,
    /// near ones first.
    pub(super) fn ask(&mut self, now: Time) -> Vec<Path> {
        let first = self.asked.is_none();
        let asked = *self.asked.get_or_insert(now);
        self.last_ask = Some(now);
        let credible = self.disco.is_none() || self.is_trusted(now);
        match self.best {
            Some(best) if credible && (first || now.since(asked) < UNANSWERED) => vec![Path::Direct(best)],
            _ => {
                self.candidates.sort();
                self.candidates.iter().filter(|c| c.is_accepted()).map(|c| Path::Direct(c.address)).collect()
            }
        }
    }

    /// A ping came from the peer by this address. It is not our data, so it starts nothing that goes on: at most a ping of ours
    /// so that both ends know the way, and the handshake that one of us wants.
    pub(super) fn pinged(&mut self, now: Time, from: SocketAddr, draw: &mut Draw<'_>) {
        let from = canonical(from);
        let Some(candidate) = self.candidates.learn(from, self.best) else { return };
        candidate.pinged = Some(now);
        let due = candidate.due() <= now;
        if due && !self.is_trusted(now) {
            self.probe(now, from, None, draw);
        }
        self.plan_meeting(now);
    }

    fn plan_meeting(&mut self, now: Time) {
        if self.meet.is_none() {
            let after_ask = self.last_ask.map_or(now, |at| at + ASK_PAUSE);
            let after_meet = self.last_meet.map_or(now, |at| at + MEET_GAP);
            self.meet = Some((now + MEET_PAUSE).max(after_ask).max(after_meet));
        }
    }

    /// A pong came. Whether it answers a ping of ours.
    pub(super) fn ponged(&mut self, now: Time, tx: TxId, observed: SocketAddr, draw: &mut Draw<'_>) -> bool {
        let Some(ping) = self.probes.answered(tx) else { return false };
        let latency = now.since(ping.sent);
        if let Some(token) = ping.token {
            self.probes.settle(token);
            draw.effects.answers.push((token, Some(Pong { path: Path::Direct(ping.to), latency, observed })));
        }
        let current = self.best.and_then(|best| self.candidates.find(best)).filter(|c| c.is_proven(now)).map(Candidate::standing);
        // Where the ping went is proven, not where the pong came from. It may be a candidate no longer.
        let Some(candidate) = self.candidates.find_mut(ping.to) else { return true };
        candidate.note_pong(now, latency);
        let mut standing = candidate.standing();
        if self.taken.is_some_and(|at| now.since(at) >= SETTLED) {
            standing.1 = standing.1 * 6 / 5;
        }
        match current {
            _ if self.best == Some(ping.to) => self.doubt = None,
            Some(current) if !is_better(standing, current) => {}
            _ => self.take(now, ping.to, draw),
        }
        if self.asked.is_some() {
            self.plan_meeting(now);
        }
        true
    }

    /// The system says that the address in use cannot be reached.
    pub(super) fn unreachable(&mut self, now: Time, draw: &mut Draw<'_>) {
        if self.is_trusted(now) {
            self.distrust(now, None, draw);
        }
    }

    /// The address in use has not answered: another proven one is taken, or the one packets come from; all are tried.
    fn distrust(&mut self, now: Time, instead: Option<SocketAddr>, draw: &mut Draw<'_>) {
        self.doubt = None;
        if let Some(candidate) = self.best.and_then(|best| self.candidates.find_mut(best)) {
            candidate.proof = None;
        }
        let proven = self.candidates.iter().filter(|c| c.is_proven(now)).map(Candidate::standing);
        let proven = proven.reduce(|best, other| if is_better(other, best) { other } else { best }).map(|(address, _)| address);
        if let Some(next) = proven.or(instead.filter(|from| !self.holds(now, *from))) {
            self.take(now, next, draw);
        }
        if !self.is_trusted(now) && self.is_active() {
            self.round(now, draw);
        }
    }

    /// Pings the peer because somebody asks: the address in use if it is proven, else all. `false` if there is nothing to ping.
    pub(super) fn ping(&mut self, now: Time, token: u64, draw: &mut Draw<'_>) -> bool {
        let trusted = self.best.filter(|_| self.is_trusted(now));
        let targets: Vec<_> = match trusted {
            Some(best) => vec![best],
            None => self.candidates.iter().map(|c| c.address).collect(),
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

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Time, draw: &mut Draw<'_>) {
        draw.effects.answers.extend(self.probes.expire(now).into_iter().map(|token| (token, None)));
        if let Some(doubt) = self.doubt.filter(|doubt| doubt.until <= now) {
            self.distrust(now, doubt.instead, draw);
        }
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
        if self.retry(now).is_some_and(|at| at <= now) {
            if self.is_trusted(now) {
                let best = self.best;
                self.probe_due(now, |c| c.is_open() && Some(c.address) != best, draw);
            } else {
                self.round(now, draw);
            }
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
            self.probe(now, best, None, draw);
        }
        if latency.is_none() || self.round.is_none() || slow && long_ago {
            self.round(now, draw);
        }
    }

    /// When the last ping to the address in use is overdue.
    fn overdue(&self, now: Time) -> Option<Time> {
        let latency = self.latency(now)?;
        let (_, sent) = self.probes.waiting(self.best?)?;
        (self.is_active() && self.doubt.is_none()).then(|| sent + OVERDUE + latency * 2)
    }

    /// A ping to the address in use has not been answered. It is sent again; if nothing else has come from there either, the address
    /// has little time left.
    fn hurry(&mut self, now: Time, draw: &mut Draw<'_>) {
        let (Some(best), Some(latency)) = (self.best, self.latency(now)) else { return };
        let since = self.probes.waiting(best).map_or(now, |(oldest, _)| oldest);
        let silent = self.candidates.find(best).is_none_or(|c| c.heard.is_none_or(|heard| heard <= since));
        self.probe(now, best, None, draw);
        if silent {
            self.round(now, draw);
            self.doubt = Some(Doubt { until: now + patience(latency), instead: None });
        }
    }

    /// When the next candidate may be pinged again: any while none is trusted, else those that may have had bad luck.
    fn retry(&self, now: Time) -> Option<Time> {
        if self.disco.is_none() || !self.is_active() {
            return None;
        }
        let trusted = self.is_trusted(now);
        let open = |c: &&Candidate| !trusted || c.is_open() && Some(c.address) != self.best;
        self.candidates.iter().filter(open).map(Candidate::due).min()
    }

    /// What is due next, and why. `now` is the moment up to which everything has been done.
    pub(super) fn deadline(&self, now: Time) -> Option<Deadline> {
        let all = [
            (self.doubt.map(|doubt| doubt.until), "the address in use has had its time to answer"),
            (self.meet, "the peer can answer a handshake"),
            (self.heartbeat, "the address in use is looked after"),
            (self.overdue(now), "a ping to the address in use is overdue"),
            (self.retry(now), "an address may be tried again"),
            (self.probes.deadline(), "a ping is lost"),
        ];
        all.into_iter().filter_map(|(at, why)| at.map(|at| Deadline { at, why })).min()
    }
}
