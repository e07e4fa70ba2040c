//! Whom a check asks, and when.

use std::time::Duration;

use super::{Family, Place, Region};
use crate::ident::RegionId;

/// How far apart the tries of a full check are.
const FULL_STEP: Duration = Duration::from_millis(100);
/// How far apart they are otherwise, where nothing better is known.
const STEP: Duration = Duration::from_millis(200);
/// Later tries wait a little longer each.
const LATER: Duration = Duration::from_millis(50);
/// Tries of a full check, for each region and family.
const FULL_TRIES: u32 = 3;
/// Regions asked between full checks, the fastest.
const NEAR: usize = 3;
/// Tries for our home then.
const HOME_TRIES: u32 = 4;

/// A question that is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Planned {
    /// How long after the check's beginning.
    pub after: Duration,
    /// Which region's.
    pub region: RegionId,
    /// Which of its servers.
    pub server: usize,
    /// By which family.
    pub family: Family,
}

/// What is known from the check before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// How long each region took that answered.
    pub latencies: Vec<(RegionId, Duration)>,
    /// Whether IPv6 was answered.
    pub v6: bool,
    /// The region that is home.
    pub home: Option<RegionId>,
}

/// How much is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Every region; the home, if there is one.
    Full(Option<RegionId>),
    /// The near ones.
    Near(&'a Last),
}

/// The questions of a check, in the order they are asked. `v6` says that this machine has IPv6 at all.
pub fn plan(regions: &[Region], v6: bool, scope: Scope<'_>) -> Vec<Planned> {
    let home = match scope {
        Scope::Full(home) => home,
        Scope::Near(last) => last.home,
    };
    let asked: Vec<&Region> = regions.iter().filter(|region| !region.unmeasured && (!region.avoid || Some(region.id) == home)).collect();
    let mut planned = match scope {
        Scope::Full(_) => full(&asked, v6),
        Scope::Near(last) => near(&asked, v6, last),
    };
    planned.sort();
    planned
}

/// A question to the region's n-th server that has the family and answers STUN, counted round.
fn question(region: &Region, n: u32, family: Family, after: Duration) -> Option<Planned> {
    let fit: Vec<usize> = (0..region.servers.len())
        .filter(|index| region.servers.get(*index).is_some_and(|s| s.stun.is_some() && *s.place(family) != Place::Nowhere))
        .collect();
    let server = *fit.get(n as usize % fit.len().max(1))?;
    Some(Planned { after, region: region.id, server, family })
}

fn full(regions: &[&Region], v6: bool) -> Vec<Planned> {
    let families = if v6 { &[Family::V4, Family::V6][..] } else { &[Family::V4] };
    let tries =
        regions.iter().flat_map(|region| (0..FULL_TRIES).flat_map(move |n| families.iter().map(move |family| (region, n, *family))));
    tries.filter_map(|(region, n, family)| question(region, n, family, FULL_STEP * n)).collect()
}

fn near(regions: &[&Region], v6: bool, last: &Last) -> Vec<Planned> {
    let latency = |region: &Region| last.latencies.iter().find(|(id, _)| *id == region.id).map(|(_, latency)| *latency);
    let mut by_latency: Vec<&Region> = regions.to_vec();
    by_latency.sort_by_key(|region| latency(region).unwrap_or(Duration::MAX));
    let mut planned = Vec::new();
    for (rank, region) in by_latency.into_iter().enumerate() {
        let is_home = Some(region.id) == last.home;
        if rank >= NEAR && !is_home {
            continue;
        }
        let important = is_home || rank < 2;
        let tries = if is_home {
            HOME_TRIES
        } else if rank < 2 {
            2
        } else {
            1
        };
        let step = latency(region).map_or(STEP, |latency| latency * 6 / 5);
        // With both families at work one is enough for those that matter less; they take turns.
        let single = (v6 && last.v6 && !important).then_some(if rank % 2 == 0 { Family::V4 } else { Family::V6 });
        for n in 0..tries {
            let after = step * n + if n >= 2 { LATER * n } else { Duration::ZERO };
            let wants = |family| match family {
                Family::V4 => single != Some(Family::V6),
                // What did not answer last time is tried once, where it would matter.
                Family::V6 => v6 && single != Some(Family::V4) && (last.v6 || important && n == 0),
            };
            planned.extend([Family::V4, Family::V6].into_iter().filter(|f| wants(*f)).filter_map(|f| question(region, n, f, after)));
        }
    }
    planned
}
