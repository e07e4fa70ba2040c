//! One peer's way: the choice, and what is done to keep it right.
//!
//! Here is the state and what it says; `evidence` is what arrives, `upkeep` what is sent and when.

mod evidence;
mod upkeep;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::calls::Calls;
use super::candidates::{Candidate, Candidates};
use super::probes::Probes;
use super::rank::is_better;
use super::relays::{Relays, relay_for};
use super::route::Choice;
use super::spread::Offers;
use super::{Local, Path, Pong, Reach, TRUST, UNANSWERED};
use crate::ident::{DiscoPublic, RegionId};
use crate::time::{Deadline, Time};
use crate::wire::disco::TxId;

/// What is to be done, beside what the state itself says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Ways to ping, under these ids.
    pub(super) probes: Vec<(TxId, Path)>,
    /// After that, the peer is to be told our addresses.
    pub(super) call: bool,
    /// Packets go another way.
    pub(super) moved: bool,
    /// A handshake would be answered now.
    pub(super) meet: bool,
    /// The peer is to be asked to guess ports.
    pub(super) offer: bool,
    /// What became of pings that were asked for.
    pub(super) answers: Vec<(u64, Option<Pong>)>,
}

/// What is needed to make pings.
pub(super) struct Draw<'a> {
    /// A new id for each ping.
    pub(super) tx: &'a mut dyn FnMut() -> TxId,
    pub(super) effects: Effects,
}

/// How a peer is reached, since when, and why so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Where packets go, or went last; while an address is in doubt, through the relay as well.
    pub path: Path,
    /// Since when.
    pub since: Time,
    /// What has brought that about.
    pub why: &'static str,
}

/// The address in use has this long to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Doubt {
    until: Time,
    /// Where packets come from instead.
    instead: Option<SocketAddr>,
}

/// Signs that the address in use has died silently. They count while there is a relay to turn to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Watch {
    /// Data went out then, and nothing has come back since.
    waiting: Option<Time>,
    /// The address has been asked, and has until then to answer.
    suspect: Option<Time>,
    /// It has not answered: packets go both ways.
    doubled: bool,
    /// When packets came through the relay although there is a proven address, and how often in a row that meant nothing.
    relayed: Option<Time>,
    idle_alarms: u32,
}

/// One peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PeerPaths {
    disco: Option<DiscoPublic>,
    candidates: Candidates,
    best: Option<SocketAddr>,
    /// Since when.
    taken: Option<Time>,
    /// The relay region the map has for it, the one it was last heard through, and which of them is to be used.
    home: Option<RegionId>,
    heard_through: Option<RegionId>,
    relay: Option<RegionId>,
    /// Since when it is reached as it is, and why.
    changed: Option<(Time, &'static str)>,
    probes: Probes,
    calls: Calls,
    offers: Offers,
    doubt: Option<Doubt>,
    watch: Watch,
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

    /// The address in use.
    pub(super) fn best(&self) -> Option<SocketAddr> {
        self.best
    }

    /// The relay to use.
    pub(super) fn relay(&self) -> Option<RegionId> {
        self.relay
    }

    /// Whether this IP address is known for the peer, by more than a ping.
    pub(super) fn is_known_at(&self, ip: IpAddr) -> bool {
        self.candidates.iter().any(|c| c.address.ip() == ip && c.is_accepted())
    }

    /// What the packet threads are to know, but for the socket.
    pub(super) fn choice(&self) -> Choice {
        let proof = self.best.and_then(|best| self.candidates.find(best)).and_then(|c| c.proof);
        let alone = match proof {
            // Without probes an address is known by its packets alone, and there is nothing better.
            _ if self.disco.is_none() => Some(Time::from_start(Duration::MAX)),
            _ if self.watch.doubled => None,
            proof => proof.map(|proof| proof.at + TRUST),
        };
        Choice { direct: self.best, local: Local::MAIN, alone, relay: self.relay, probed: self.disco.is_some() }
    }

    /// How it is reached.
    pub(super) fn way(&self) -> Option<Way> {
        let path = self.best.map(Path::Direct).or(self.relay.map(Path::Relay))?;
        let (since, why) = self.changed?;
        Some(Way { path, since, why })
    }

    /// The latency of the address in use, if it is proven at this moment.
    pub(super) fn latency(&self, now: Time) -> Option<Duration> {
        let candidate = self.candidates.find(self.best?)?;
        candidate.proof.filter(|_| candidate.is_proven(now)).map(|proof| proof.latency)
    }

    pub(super) fn is_trusted(&self, now: Time) -> bool {
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

    /// Takes the network map's addresses and home relay.
    pub(super) fn list(&mut self, now: Time, addresses: &[SocketAddr], home: Option<RegionId>, draw: &mut Draw<'_>) {
        self.home = home;
        self.candidates.list(addresses, self.best);
        if self.is_active() {
            self.probe_due(now, |c| c.due() == Time::default(), draw);
        }
    }

    /// Takes how our connections to relays are doing. Without any, the address that authentic packets last came from is as good as proven:
    /// there is nothing better, and a peer that does not know our disco key yet will never answer a ping.
    pub(super) fn look_at_relays(&mut self, now: Time, relays: &Relays, draw: &mut Draw<'_>) {
        let relay = relay_for(relays, self.home, self.heard_through);
        if self.relay == relay {
            return;
        }
        self.relay = relay;
        draw.effects.moved = true;
        if let (None, None, Some(from)) = (self.relay, self.best, self.from)
            && self.candidates.find(from).is_some()
        {
            self.take(now, from, "packets come from there", draw);
        }
    }

    /// The relay knows nothing of the peer, or no longer.
    pub(super) fn gone_from(&mut self, region: RegionId) {
        if self.heard_through == Some(region) {
            self.heard_through = None;
        }
    }

    fn take(&mut self, now: Time, address: SocketAddr, why: &'static str, draw: &mut Draw<'_>) {
        if self.best != Some(address) {
            self.best = Some(address);
            self.taken = Some(now);
            self.changed = Some((now, why));
            draw.effects.moved = true;
        }
        self.doubt = None;
        self.is_alive(draw);
    }

    /// The address in use lives.
    fn is_alive(&mut self, draw: &mut Draw<'_>) {
        let watch = &mut self.watch;
        (watch.waiting, watch.suspect) = (None, None);
        if watch.doubled {
            watch.doubled = false;
            draw.effects.moved = true;
        }
    }

    /// Where a handshake initiation goes that is sent now: the path in use if it works as far as we know, else every candidate,
    /// near ones first, and the relay.
    pub(super) fn ask(&mut self, now: Time) -> Vec<Path> {
        let first = self.asked.is_none();
        let asked = *self.asked.get_or_insert(now);
        self.last_ask = Some(now);
        let credible = self.disco.is_none() || self.is_trusted(now) && !self.watch.doubled;
        match self.best {
            Some(best) if credible && (first || now.since(asked) < UNANSWERED) => vec![Path::Direct(best)],
            _ => {
                self.candidates.sort();
                let direct = self.candidates.iter().filter(|c| c.is_accepted()).map(|c| Path::Direct(c.address));
                direct.chain(self.relay.map(Path::Relay)).collect()
            }
        }
    }

    /// The system says that the address in use cannot be reached.
    pub(super) fn unreachable(&mut self, now: Time, draw: &mut Draw<'_>) {
        if self.is_trusted(now) {
            self.distrust(now, None, draw);
        }
    }

    /// The address in use has not answered: another proven one is taken, or where there is no relay the one packets come from; all are tried.
    fn distrust(&mut self, now: Time, instead: Option<SocketAddr>, draw: &mut Draw<'_>) {
        self.doubt = None;
        self.watch.idle_alarms = 0;
        if let Some(candidate) = self.best.and_then(|best| self.candidates.find_mut(best)) {
            candidate.proof = None;
        }
        draw.effects.moved |= self.relay.is_some();
        let proven = self.candidates.iter().filter(|c| c.is_proven(now)).map(Candidate::standing);
        let proven = proven.reduce(|best, other| if is_better(other, best) { other } else { best }).map(|(address, _)| address);
        let instead = instead.filter(|from| self.relay.is_none() && !self.holds(now, *from));
        if let Some(next) = proven.or(instead) {
            self.take(now, next, "the address before stopped answering", draw);
        }
        if !self.is_trusted(now) && self.is_active() {
            self.round(now, draw);
        }
    }

    /// Whether the address in use is kept although packets come from another: it is nearer, and has been heard from.
    fn holds(&self, now: Time, from: SocketAddr) -> bool {
        let best = self.best.and_then(|best| self.candidates.find(best));
        best.is_some_and(|c| Reach::of(c.address.ip()) < Reach::of(from.ip()) && c.heard_within(now, TRUST))
    }

    /// What is due next, and why. `now` is the moment up to which everything has been done.
    pub(super) fn deadline(&self, now: Time) -> Option<Deadline> {
        let all = [
            (self.doubt.map(|doubt| doubt.until), "the address in use has had its time to answer"),
            (self.watch.suspect, "the address in use is asked whether it lives"),
            (self.silence(now), "nothing comes back for our data"),
            (self.meet, "the peer can answer a handshake"),
            (self.heartbeat, "the address in use is looked after"),
            (self.overdue(now), "a ping to the address in use is overdue"),
            (self.retry(now), "an address may be tried again"),
            (self.offer_due(now), "the peer may guess a port of our NAT"),
            (self.probes.deadline(), "a ping is lost"),
        ];
        all.into_iter().filter_map(|(at, why)| at.map(|at| Deadline { at, why })).min()
    }
}
