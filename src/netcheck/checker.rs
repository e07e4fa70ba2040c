//! The checks: when there is one, whom it asks, when it ends.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::plan::{Last, Planned, Scope, plan};
use super::report::Answer;
use super::{
    ACTIVE, CHECK_LIMIT, FULL_PERIOD, Family, HTTPS_AFTER, History, Latency, Old, PERIOD, Region, Report, STUN_LIMIT, Server, choose_home,
};
use crate::ident::RegionId;
use crate::time::{Deadline, Time};
use crate::wire::stun::{self, TxId};

/// So many regions are enough to choose by; the others have so long to answer as the slowest of these took, twice in a full check.
const ENOUGH: usize = 3;
/// A home that is dead starts a check at most so often.
const LOST_GAP: Duration = Duration::from_secs(5);
/// A busy machine needs that, however near a server is.
const SLACK: Duration = Duration::from_millis(20);

/// A question to be sent from the node's own socket. Whoever sends it says so by [`Checker::sent`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Its id, which the answer repeats.
    pub tx: TxId,
    /// Whom to ask.
    pub server: Server,
    /// By which family.
    pub family: Family,
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A server has seen us at this address.
    Seen(SocketAddr),
    /// No STUN server answers: the time of an HTTPS round trip to one of these is wanted, see [`Checker::measured`].
    Measure(RegionId, Vec<Server>),
    /// A check has ended, see [`Checker::report`].
    Done,
}

struct Sent {
    tx: TxId,
    planned: Planned,
    at: Option<Time>,
}

/// A check under way.
struct Run {
    started: Time,
    full: bool,
    planned: VecDeque<Planned>,
    /// How many regions are asked.
    regions: usize,
    sent: Vec<Sent>,
    answers: Vec<Answer>,
    latencies: BTreeMap<RegionId, Latency>,
    /// HTTPS round trips have been asked for, and so many are not in yet.
    measuring: Option<usize>,
    ends: Time,
}

/// What a node knows of the network around it.
pub struct Checker {
    random: ChaCha12Rng,
    regions: Vec<Region>,
    has_v6: bool,
    /// The coordinator is reached, so that peers would learn of another home.
    told: bool,
    home: Option<RegionId>,
    heard: BTreeMap<RegionId, Time>,
    history: History,
    report: Option<Report>,
    run: Option<Run>,
    /// Another check is wanted after the one under way; whether a full one.
    queued: Option<bool>,
    periodic: Option<Time>,
    last_full: Option<Time>,
    active: Option<Time>,
    /// When the home was last found dead.
    lost: Option<Time>,
    events: VecDeque<Event>,
}

impl std::fmt::Debug for Checker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checker").field("home", &self.home).field("running", &self.run.is_some()).finish_non_exhaustive()
    }
}

impl Checker {
    /// A checker without relays. The seed is to be a new one for each run of the program.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            random: ChaCha12Rng::from_seed(seed),
            regions: Vec::new(),
            has_v6: false,
            told: false,
            home: None,
            heard: BTreeMap::new(),
            history: History::default(),
            report: None,
            run: None,
            queued: None,
            periodic: None,
            last_full: None,
            active: None,
            lost: None,
            events: VecDeque::new(),
        }
    }

    /// Takes the relays. Others than before are all asked at once.
    pub fn set_regions(&mut self, now: Time, regions: Vec<Region>) {
        if self.regions == regions {
            return;
        }
        self.regions = regions;
        self.heard.retain(|id, _| self.regions.iter().any(|region| region.id == *id));
        if self.home.is_some_and(|id| self.region(id).is_none_or(|region| region.unmeasured)) {
            self.home = None;
        }
        // Where there is one relay only, there is nothing to find out before calling it home.
        let eligible: Vec<RegionId> = self.eligible().collect();
        if let (None, [only]) = (self.home, &*eligible) {
            self.home = Some(*only);
        }
        self.last_full = None;
        self.request(now, true);
    }

    /// The coordinator is reached, or not: while it is not, the home stays where it is, for nobody would learn of another.
    pub fn set_told(&mut self, told: bool) {
        self.told = told;
    }

    /// This machine has IPv6, or not.
    pub fn set_v6(&mut self, has_v6: bool) {
        self.has_v6 = has_v6;
    }

    /// This machine's networks have changed: all is asked anew.
    pub fn network_changed(&mut self, now: Time) {
        self.history.clear();
        self.last_full = None;
        self.request(now, true);
    }

    /// There has been traffic with peers.
    pub fn note_traffic(&mut self, now: Time) {
        self.active = Some(now);
        if self.periodic.is_none() && self.run.is_none() {
            self.plan_next(now);
        }
    }

    /// Something came from a relay.
    pub fn note_heard(&mut self, now: Time, region: RegionId) {
        if self.region(region).is_some() {
            self.heard.insert(region, now);
        }
    }

    /// A relay cannot be reached any more. If it is the home, it is looked for another at once: what was heard before does not count.
    pub fn note_lost(&mut self, now: Time, region: RegionId) {
        self.heard.remove(&region);
        let recent = self.lost.is_some_and(|at| now.since(at) < LOST_GAP);
        if self.home == Some(region) && !recent {
            self.lost = Some(now);
            self.request(now, true);
        }
    }

    /// Starts a check, or has another one follow that is under way.
    pub fn request(&mut self, now: Time, full: bool) {
        let full = full || self.last_full.is_none_or(|at| now.since(at) >= FULL_PERIOD);
        if self.run.is_some() {
            self.queued = Some(full || self.queued == Some(true));
        } else {
            self.start(now, full);
        }
    }

    fn region(&self, id: RegionId) -> Option<&Region> {
        self.regions.iter().find(|region| region.id == id)
    }

    /// Regions that may be chosen whatever their latency.
    fn eligible(&self) -> impl Iterator<Item = RegionId> {
        self.regions.iter().filter(|region| !region.unmeasured && !region.avoid).map(|region| region.id)
    }

    fn start(&mut self, now: Time, full: bool) {
        let last = self.report.as_ref().filter(|_| !full).map(|report| Last {
            latencies: self.history.best().into_iter().collect(),
            v6: report.v6.is_some(),
            home: self.home,
        });
        let planned = match &last {
            Some(last) => plan(&self.regions, self.has_v6, Scope::Near(last)),
            None => plan(&self.regions, self.has_v6, Scope::Full(self.home)),
        };
        let mut asked: Vec<RegionId> = planned.iter().map(|p| p.region).collect();
        asked.sort_unstable();
        asked.dedup();
        self.periodic = None;
        self.run = Some(Run {
            started: now,
            full: last.is_none(),
            planned: planned.into(),
            regions: asked.len(),
            sent: Vec::new(),
            answers: Vec::new(),
            latencies: BTreeMap::new(),
            measuring: None,
            ends: now + STUN_LIMIT,
        });
        if self.regions.is_empty() {
            self.finish(now);
        }
    }

    /// The next question to send, if it is time for one.
    pub fn poll_probe(&mut self, now: Time) -> Option<Probe> {
        loop {
            let run = self.run.as_mut()?;
            let planned = *run.planned.front().filter(|planned| run.started + planned.after <= now)?;
            run.planned.pop_front();
            let answered = run.latencies.get(&planned.region).is_some_and(|latency| match planned.family {
                Family::V4 => latency.v4.is_some(),
                Family::V6 => latency.v6.is_some(),
            });
            let server = self.regions.iter().find(|r| r.id == planned.region).and_then(|r| r.servers.get(planned.server));
            if let (Some(server), false) = (server, answered) {
                let mut tx = [0; 12];
                self.random.fill_bytes(&mut tx);
                let tx = TxId(tx);
                run.sent.push(Sent { tx, planned, at: None });
                return Some(Probe { tx, server: server.clone(), family: planned.family });
            }
        }
    }

    /// A question has just been sent.
    pub fn sent(&mut self, now: Time, tx: TxId) {
        let sent = self.run.iter_mut().flat_map(|run| &mut run.sent).find(|sent| sent.tx == tx);
        if let Some(sent) = sent {
            sent.at = Some(now);
        }
    }

    /// A datagram came that looks like STUN. Whether it answers a question of this check.
    pub fn handle_datagram(&mut self, now: Time, datagram: &[u8]) -> bool {
        let Ok((tx, observed)) = stun::read_response(datagram) else { return false };
        let Some(run) = &mut self.run else { return false };
        let Some(at) = run.sent.iter().position(|sent| sent.tx == tx) else { return false };
        let Sent { planned, at: Some(sent), .. } = run.sent.swap_remove(at) else { return false };
        run.latencies.entry(planned.region).or_default().note(planned.family, now.since(sent));
        run.answers.push(Answer { server: (planned.region, planned.server), observed });
        self.events.push_back(Event::Seen(observed));
        self.note_heard(now, planned.region);
        self.look_whether_enough(now);
        true
    }

    /// What came of an HTTPS round trip that was asked for.
    pub fn measured(&mut self, now: Time, region: RegionId, latency: Option<Duration>) {
        let Some(run) = &mut self.run else { return };
        let Some(waiting) = &mut run.measuring else { return };
        *waiting = waiting.saturating_sub(1);
        if let Some(latency) = latency {
            run.latencies.entry(region).or_default().https = Some(latency);
        }
        self.look_whether_enough(now);
    }

    fn look_whether_enough(&mut self, now: Time) {
        let Some(run) = &mut self.run else { return };
        let slowest = run.latencies.values().filter_map(Latency::best).max().unwrap_or_default();
        if run.latencies.len() >= ENOUGH.min(run.regions) {
            let more = if run.full { slowest * 2 } else { slowest };
            run.ends = run.ends.min(now + more + SLACK);
        }
        let open = |planned: &Planned| {
            let known = run.latencies.get(&planned.region).copied().unwrap_or_default();
            match planned.family {
                Family::V4 => known.v4.is_none(),
                Family::V6 => known.v6.is_none(),
            }
        };
        let asked = run.sent.iter().map(|sent| &sent.planned).chain(&run.planned).any(open);
        let nothing_left = if run.answers.is_empty() { run.measuring == Some(0) } else { !asked };
        if nothing_left {
            self.finish(now);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.periodic.is_some_and(|at| at <= now) {
            self.periodic = None;
            if self.active.is_some_and(|at| now.since(at) <= ACTIVE) {
                self.request(now, false);
            }
        }
        let Some(run) = &mut self.run else { return };
        let silent = run.answers.is_empty() && run.measuring.is_none();
        if silent && now >= run.started + HTTPS_AFTER {
            let measure: Vec<Event> = self
                .regions
                .iter()
                .filter(|region| !region.unmeasured && (!region.avoid || Some(region.id) == self.home))
                .map(|region| Event::Measure(region.id, region.servers.iter().filter(|s| s.relay.is_some()).cloned().collect()))
                .collect();
            run.measuring = Some(measure.len());
            run.regions = measure.len();
            run.ends = run.started + CHECK_LIMIT;
            self.events.extend(measure);
        }
        if self.run.as_ref().is_some_and(|run| run.ends <= now) {
            self.finish(now);
        }
    }

    fn finish(&mut self, now: Time) {
        let Some(run) = self.run.take() else { return };
        let mut report = Report { at: now, full: run.full, os_has_v6: self.has_v6, latencies: run.latencies.clone(), ..Report::default() };
        report.take_answers(&run.answers);
        if let Some(last) =
            self.report.as_ref().filter(|last| report.mapping_varies.is_none() && last.v4.map(|a| a.ip()) == report.v4.map(|a| a.ip()))
        {
            report.mapping_varies = last.mapping_varies;
        }
        let current: BTreeMap<RegionId, Duration> = run.latencies.iter().filter_map(|(id, latency)| Some((*id, latency.best()?))).collect();
        self.history.add(now, current.clone());
        let old = self.home.map(|id| Old { id, heard: self.heard.get(&id).copied() });
        // A home that nobody is told of would be no home.
        if self.told || self.home.is_none() {
            let chosen = choose_home(now, run.started, &self.regions, &self.history, &current, old);
            self.home = chosen.or(self.home).or_else(|| self.any());
        }
        report.home = self.home;
        if run.full {
            self.last_full = Some(now);
        }
        self.report = Some(report);
        self.events.push_back(Event::Done);
        match self.queued.take() {
            Some(full) => self.start(now, full),
            None => self.plan_next(now),
        }
    }

    /// Some region, if nothing can be measured: where others look for us is worth more than which.
    fn any(&mut self) -> Option<RegionId> {
        let eligible: Vec<RegionId> = self.eligible().collect();
        let count = u32::try_from(eligible.len()).ok().filter(|count| *count > 0)?;
        eligible.get((self.random.next_u32() % count) as usize).copied()
    }

    fn plan_next(&mut self, now: Time) {
        let active = self.active.is_some_and(|at| now.since(at) <= ACTIVE);
        let (least, most) = PERIOD;
        let share = f64::from(self.random.next_u32()) / f64::from(u32::MAX);
        self.periodic = (active && !self.regions.is_empty()).then(|| now + least + (most - least).mul_f64(share));
    }

    /// What is due next, and why.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let run = self.run.as_ref();
        let silent = run.filter(|run| run.answers.is_empty() && run.measuring.is_none());
        let all = [
            (self.periodic, "the network is checked from time to time"),
            (run.and_then(|run| run.planned.front().map(|p| run.started + p.after)), "a relay is asked where it sees us"),
            (silent.map(|run| run.started + HTTPS_AFTER), "no relay answers by UDP"),
            (run.map(|run| run.ends), "the check has had its time"),
        ];
        all.into_iter().filter_map(|(at, why)| at.map(|at| Deadline { at, why })).min()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What the last check found.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// How far each region was at best, in the last minutes.
    pub fn latencies(&self) -> BTreeMap<RegionId, Duration> {
        self.history.best()
    }

    /// The home relay.
    pub fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// The relays.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether a check is under way.
    pub fn is_running(&self) -> bool {
        self.run.is_some()
    }
}
