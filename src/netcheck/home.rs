//! The home relay: the one where others reach us. Moving has a price, for those who do not know yet call at the old one, so small or
//! passing differences change nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Region;
use crate::ident::RegionId;
use crate::time::Time;

/// How long a measurement counts: the time between two full checks, and some slack.
const WINDOW: Duration = Duration::from_secs(305);
/// Checks that are remembered; there are never as many in the window.
const MAX_CHECKS: usize = 64;
/// A home heard from within this time has not gone.
const HEARD: Duration = Duration::from_secs(8);
/// While nothing at all is measured a home may be silent for so long: twice its keepalive.
const SILENT: Duration = Duration::from_secs(120);
/// A gain of less is none.
const GAIN: Duration = Duration::from_millis(10);

/// What has been measured lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History(Vec<(Time, BTreeMap<RegionId, Duration>)>);

impl History {
    /// Adds a check's latencies.
    pub fn add(&mut self, now: Time, latencies: BTreeMap<RegionId, Duration>) {
        self.0.retain(|(at, _)| now.since(*at) < WINDOW);
        if self.0.len() >= MAX_CHECKS {
            self.0.remove(0);
        }
        self.0.push((now, latencies));
    }

    /// The best of each region.
    pub fn best(&self) -> BTreeMap<RegionId, Duration> {
        let mut best = BTreeMap::new();
        for (id, latency) in self.0.iter().flat_map(|(_, latencies)| latencies) {
            best.entry(*id).and_modify(|known: &mut Duration| *known = (*known).min(*latency)).or_insert(*latency);
        }
        best
    }

    /// Forgets everything: this machine is in another network.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// The home so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Old {
    /// Which.
    pub id: RegionId,
    /// When anything last came from there.
    pub heard: Option<Time>,
}

/// Chooses the home after a check that began at `started` and measured `current`, which is in `history` already. `None` if there is
/// nothing to choose by.
pub fn choose_home(
    now: Time,
    started: Time,
    regions: &[Region],
    history: &History,
    current: &BTreeMap<RegionId, Duration>,
    old: Option<Old>,
) -> Option<RegionId> {
    let score = |id: RegionId| regions.iter().find(|region| region.id == id).map(|region| region.score);
    let heard_within = |old: &Old, limit| old.heard.is_some_and(|at| now.since(at) <= limit);
    let old = old.filter(|old| score(old.id).is_some());
    let lately = history.best();
    let scored = |latencies: &BTreeMap<RegionId, Duration>, id: RegionId| Some(latencies.get(&id)?.mul_f64(score(id)?));
    let candidates = current.keys().filter(|id| {
        let usable = |r: &Region| r.id == **id && !r.unmeasured && (!r.avoid || old.is_some_and(|old| old.id == r.id));
        regions.iter().any(usable)
    });
    let best = candidates.filter_map(|id| Some((scored(&lately, *id)?, *id))).min();
    let Some((best_latency, best)) = best else {
        return old.filter(|old| heard_within(old, SILENT)).map(|old| old.id);
    };
    let Some(old) = old.filter(|old| old.id != best) else { return Some(best) };
    let since_start = old.heard.is_some_and(|at| at >= started);
    let old_latency = match scored(current, old.id) {
        Some(latency) => latency,
        // It lives, but did not answer: no reason to leave.
        None if since_start || heard_within(&old, HEARD) => return Some(old.id),
        None => return Some(best),
    };
    let too_little = old_latency.saturating_sub(best_latency) < GAIN || best_latency * 3 > old_latency * 2;
    Some(if too_little { old.id } else { best })
}
