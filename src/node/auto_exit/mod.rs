//! The choice of an exit node by the node itself (`--exit-node auto`).
//!
//! [`AutoExit`] is told of the network map, answers to its pings, the bytes that went to and fro, and the passing of time; it gives pings
//! to send, its next deadline, and the choice. How it chooses:
//! * At first all are pinged, and the fastest that answers is taken.
//! * The one in use is left when it has stopped answering: data goes out and nothing comes back for [`SILENCE`], or the map has it offline.
//!   Then it is pinged at once and has [`PATIENCE`] to answer. The others are asked meanwhile, and the fastest that answers takes over. If
//!   none does the fault may be our own: the choice stays, traffic waits, and all are asked again.
//! * While there is traffic all are pinged every [`ROUND`]. One that is clearly faster each time for [`STEADY`] takes over; it needs
//!   twice as long for each time it has died before. Else nothing brings a node back: a change breaks connections.
//!
//! Without traffic nobody is asked, so that an idle node is quiet: silence is noticed as soon as there is traffic again.

mod candidates;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use candidates::MAX_CANDIDATES;
use candidates::{Candidate, Candidates, is_clearly_better};

use crate::coord::client::NetMap;
use crate::ident::{NodeId, NodePublic};
use crate::time::{Deadline, Time, Wall};

/// How often the traffic of the one in use is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Data without anything in return for so long raises a doubt.
pub const SILENCE: Duration = Duration::from_millis(500);
/// How long the one in use may take to answer then, and any at first.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Those that have not answered are pinged again after so long: single packets get lost.
const REPEAT: Duration = Duration::from_millis(300);
/// The first choice waits so long for slower ones.
const SETTLE: Duration = Duration::from_millis(700);
/// How often all are measured while there is traffic.
pub const ROUND: Duration = Duration::from_mins(1);
/// A round's second pings, when direct ways are open, and its end.
const ROUND_REPEAT: Duration = Duration::from_secs(1);
const ROUND_END: Duration = Duration::from_millis(2500);
/// For how long another one has to be clearly faster.
pub const STEADY: Duration = Duration::from_mins(2);
/// A doubt that came to nothing is not raised again for so long: data may go one way only.
const DOUBT_GAP: Duration = Duration::from_secs(2);
/// The pause between two tries while none answers, which doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// Why an exit node is the one in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// No other was offered.
    Only,
    /// Of all it answered fastest.
    Fastest,
    /// None has answered yet; it is the first.
    First,
    /// This one was in use and stopped answering.
    Died(NodeId),
    /// The one before is no longer offered.
    Withdrawn,
    /// It was clearly faster than this one for some time.
    Faster(NodeId),
}

impl Why {
    /// The reason in words.
    pub fn text(self, map: &NetMap) -> String {
        let name = |id: NodeId| map.peers.get(&id).map_or("the one before", |peer| peer.short_name()).to_owned();
        match self {
            Self::Only => "it was the only one".to_owned(),
            Self::Fastest => "it answered fastest".to_owned(),
            Self::First => "none has answered yet, and it is the first".to_owned(),
            Self::Died(before) => format!("{} stopped answering", name(before)),
            Self::Withdrawn => "the one before is no longer offered".to_owned(),
            Self::Faster(before) => format!("it has been clearly faster than {} for minutes", name(before)),
        }
    }
}

/// The exit node in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoChoice {
    /// Which.
    pub id: NodeId,
    /// Why.
    pub why: Why,
    /// It answers, as far as is known. If it does not, neither does any other: traffic waits.
    pub answers: bool,
    /// How long its answers took when it was last asked.
    pub latency: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// None is in use yet.
    First,
    /// The one in use may be dead.
    Doubt,
    /// Latencies are compared.
    Round,
}

/// Pings to several, and a decision at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Check {
    kind: Kind,
    began: Time,
    /// When to ping next.
    ping: Option<Time>,
    end: Time,
}

/// The one in use, and its traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used {
    id: NodeId,
    why: Why,
    answers: bool,
    /// Bytes sent and received when last looked at.
    carried: Option<(u64, u64)>,
    /// Data went out then, and nothing has come back since.
    waiting: Option<Time>,
}

/// The machine that chooses.
#[derive(Debug, Default)]
pub struct AutoExit {
    candidates: Candidates,
    used: Option<Used>,
    check: Option<Check>,
    look: Option<Time>,
    /// When the next round is due, and whether there was traffic since the last.
    round: Option<Time>,
    busy: bool,
    /// Before that no silence raises a doubt.
    quiet_until: Time,
    /// When all are asked again after none has answered, and the pause before the try after that.
    retry: Option<Time>,
    pause: Option<Duration>,
    pings: VecDeque<(NodeId, NodePublic)>,
}

impl AutoExit {
    /// Takes a network map. `wall` is this machine's clock, for the expiry of keys.
    pub fn set_map(&mut self, now: Time, map: &NetMap, wall: Wall) {
        let used = self.used.map(|used| used.id);
        let was_online = used.and_then(|id| self.candidates.find(id)).is_some_and(|c| c.online);
        let news = self.candidates.set(map, wall, used);
        match used.map(|id| self.candidates.find(id)) {
            None => self.begin(now),
            Some(None) => {
                (self.used, self.check) = (None, None);
                match self.candidates.fastest(|_, _| true) {
                    Some(next) => self.take(now, next, Why::Withdrawn, true),
                    None => self.begin(now),
                }
            }
            Some(Some(candidate)) => {
                let left = was_online && !candidate.online;
                if left || (news && self.used.is_some_and(|used| !used.answers)) {
                    self.doubt(now);
                } else if news {
                    self.round = Some(now);
                }
            }
        }
        if self.candidates.first().is_some() || self.used.is_some() {
            self.look.get_or_insert(now);
        } else {
            self.look = None;
        }
    }

    /// Begins to look for one, if there are any and it is not done already.
    fn begin(&mut self, now: Time) {
        match self.candidates.first() {
            None => self.check = None,
            Some(first) if self.candidates.is_single() => {
                self.check = None;
                self.take(now, first, Why::Only, true);
                // It may be dead all the same.
                self.doubt(now);
            }
            Some(_) if self.check.is_none() => self.start(now, Kind::First, PATIENCE),
            Some(_) => {}
        }
    }

    /// This machine's networks have changed: whoever did not answer may do so now, and distances are others.
    pub fn network_changed(&mut self, now: Time) {
        self.round = Some(now);
        self.pause = None;
        if self.retry.is_some() {
            self.retry = Some(now);
        }
    }

    /// A ping was answered.
    pub fn answered(&mut self, now: Time, id: NodeId, latency: Duration) {
        let Some(candidate) = self.candidates.find_mut(id) else { return };
        candidate.note_answer(latency);
        let online = candidate.online;
        match self.used {
            Some(used) if used.id == id => self.note_life(now),
            // Late, but the first to answer at all.
            Some(used) if !used.answers && self.check.is_none() && online => self.replace(now, used.id, id),
            _ => {}
        }
        self.go_on(now);
    }

    /// The one in use lives.
    fn note_life(&mut self, now: Time) {
        let Some(used) = &mut self.used else { return };
        (used.waiting, used.answers) = (None, true);
        (self.retry, self.pause) = (None, None);
        if self.check.is_some_and(|check| check.kind == Kind::Doubt) {
            self.check = None;
            self.quiet_until = now + DOUBT_GAP;
        }
    }

    /// Does what is due. `carried` are the bytes sent to and received from the one in use, since any moment.
    pub fn handle_timeout(&mut self, now: Time, carried: Option<(u64, u64)>) {
        if self.look.is_some_and(|at| at <= now) {
            self.look = Some(now + LOOK);
            self.look_at_traffic(now, carried);
            self.look_for_reasons(now);
        }
        self.go_on(now);
    }

    fn look_at_traffic(&mut self, now: Time, carried: Option<(u64, u64)>) {
        let (Some(used), Some(carried)) = (&mut self.used, carried) else { return };
        // Less than before means that the counters have begun anew.
        let before = used.carried.replace(carried).filter(|before| before.0 <= carried.0 && before.1 <= carried.1);
        let Some(before) = before else { return };
        self.busy |= carried.0 > before.0;
        if carried.1 > before.1 {
            self.note_life(now);
        } else if carried.0 > before.0 {
            used.waiting.get_or_insert(now);
        }
    }

    /// Begins a check if there is a reason for one.
    fn look_for_reasons(&mut self, now: Time) {
        let Some(used) = self.used else { return };
        let kind = self.check.map(|check| check.kind);
        let silent = used.waiting.is_some_and(|at| now.since(at) >= SILENCE) && used.answers && self.quiet_until <= now;
        let again = kind.is_none() && self.retry.is_some_and(|at| at <= now);
        if silent || again {
            self.doubt(now);
        } else if kind.is_none() && used.answers && self.busy && self.round.is_some_and(|at| at <= now) {
            self.busy = false;
            self.round = Some(now + ROUND);
            self.start(now, Kind::Round, ROUND_END);
        }
    }

    fn doubt(&mut self, now: Time) {
        if self.check.is_none_or(|check| check.kind != Kind::Doubt) {
            let known = self.used.and_then(|used| self.candidates.find(used.id)).and_then(|candidate| candidate.latency);
            self.retry = None;
            self.start(now, Kind::Doubt, PATIENCE + known.unwrap_or_default().min(PATIENCE));
        }
    }

    fn start(&mut self, now: Time, kind: Kind, limit: Duration) {
        for (_, candidate) in self.candidates.iter_mut() {
            candidate.answers = 0;
        }
        self.check = Some(Check { kind, began: now, ping: Some(now), end: now + limit });
        self.go_on(now);
    }

    /// Sends the pings of a check that are due, and ends it when it is time.
    fn go_on(&mut self, now: Time) {
        let Some(check) = self.check else { return };
        if check.ping.is_some_and(|at| at <= now) {
            self.ping(now, check);
        }
        let all = |enough: u32| self.candidates.iter().all(|(_, c)| c.answers >= enough || !c.online);
        let some = self.candidates.iter().any(|(_, c)| c.answers > 0);
        let over = check.kind == Kind::First && (all(2) || some && now.since(check.began) >= SETTLE);
        if over || check.end <= now {
            self.check = None;
            match check.kind {
                Kind::First => self.choose_first(now),
                Kind::Doubt => self.give_up(now),
                Kind::Round => self.compare(now, check.began),
            }
        }
    }

    fn ping(&mut self, now: Time, check: Check) {
        let first = check.began == now;
        let used = self.used.map(|used| used.id);
        let wanted = |id: NodeId, candidate: &Candidate| match check.kind {
            Kind::First => candidate.answers < 2,
            // The others are asked only if the one in use does not answer at once.
            Kind::Doubt if first => Some(id) == used,
            Kind::Doubt => candidate.answers == 0,
            Kind::Round => true,
        };
        let wanted = self.candidates.iter().filter(|(id, candidate)| wanted(*id, candidate));
        self.pings.extend(wanted.map(|(id, candidate)| (id, candidate.key)));
        let next = match check.kind {
            Kind::Round => first.then_some(now + ROUND_REPEAT),
            Kind::First | Kind::Doubt => Some(now + REPEAT),
        };
        self.check = Some(Check { ping: next, ..check });
    }

    fn choose_first(&mut self, now: Time) {
        if let Some(id) = self.candidates.fastest(|_, c| c.answers > 0) {
            self.take(now, id, Why::Fastest, true);
        } else if let Some(id) = self.candidates.first() {
            self.take(now, id, Why::First, false);
            self.try_later(now);
        }
    }

    /// The one in use has not answered. Another takes over only if it has: else the fault may be on our side.
    fn give_up(&mut self, now: Time) {
        let Some(used) = &mut self.used else { return };
        used.waiting = None;
        let before = used.id;
        match self.candidates.fastest(|id, c| id != before && c.answers > 0) {
            Some(next) => self.replace(now, before, next),
            None => {
                used.answers = false;
                self.try_later(now);
            }
        }
    }

    fn replace(&mut self, now: Time, before: NodeId, next: NodeId) {
        if let Some(dead) = self.candidates.find_mut(before) {
            dead.latency = None;
            dead.deaths = dead.deaths.saturating_add(1);
        }
        self.take(now, next, Why::Died(before), true);
    }

    fn try_later(&mut self, now: Time) {
        let pause = self.pause.unwrap_or(FIRST_PAUSE);
        self.retry = Some(now + pause);
        self.pause = Some((pause * 2).min(MAX_PAUSE));
    }

    /// At the end of a round: one that was clearly faster for long takes over.
    fn compare(&mut self, now: Time, began: Time) {
        let Some(used) = self.used else { return };
        let Some(current) = self.candidates.find(used.id).filter(|c| c.answers > 0).and_then(|c| c.latency) else {
            self.doubt(now);
            return;
        };
        for (id, candidate) in self.candidates.iter_mut() {
            let faster = candidate.answers > 0 && candidate.latency.is_some_and(|latency| is_clearly_better(latency, current));
            candidate.faster = (faster && id != used.id).then(|| candidate.faster.unwrap_or(began));
        }
        let steady = |c: &Candidate| c.faster.is_some_and(|since| began.since(since) >= STEADY * (1 << c.deaths.min(4)));
        if let Some(next) = self.candidates.fastest(|_, c| steady(c)) {
            self.take(now, next, Why::Faster(used.id), true);
        }
    }

    fn take(&mut self, now: Time, id: NodeId, why: Why, answers: bool) {
        for (_, candidate) in self.candidates.iter_mut() {
            candidate.faster = None;
        }
        self.used = Some(Used { id, why, answers, carried: None, waiting: None });
        self.round = Some(now + ROUND);
        (self.retry, self.pause) = (None, None);
        self.busy = false;
    }

    /// The next ping to send.
    pub fn poll_ping(&mut self) -> Option<(NodeId, NodePublic)> {
        self.pings.pop_front()
    }

    /// What is due next, and why; nothing, while no exit node is offered.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let ping = self.check.and_then(|check| check.ping).map(|at| Deadline { at, why: "exit nodes are pinged" });
        let end = self.check.map(|check| Deadline { at: check.end, why: "the exit nodes' answers are judged" });
        let look = self.look.map(|at| Deadline { at, why: "the exit node's traffic is looked at" });
        ping.into_iter().chain(end).chain(look).min()
    }

    /// The choice.
    pub fn choice(&self) -> Option<AutoChoice> {
        let used = self.used?;
        let latency = self.candidates.find(used.id).and_then(|candidate| candidate.latency);
        Some(AutoChoice { id: used.id, why: used.why, answers: used.answers, latency })
    }

    /// The key of the one in use.
    pub fn key(&self) -> Option<NodePublic> {
        Some(self.candidates.find(self.used?.id)?.key)
    }
}
