//! Whom a check asks.

use super::*;

fn shown(planned: &[Planned]) -> Vec<(u128, u16, usize, bool)> {
    planned.iter().map(|p| (p.after.as_millis(), p.region.0, p.server, p.family == Family::V6)).collect()
}

fn last(latencies: &[(u16, u64)], v6: bool, home: Option<u16>) -> Last {
    Last { latencies: latencies.iter().map(|(n, l)| (region(*n), ms(*l))).collect(), v6, home: home.map(region) }
}

fn questions(planned: &[Planned], n: u16) -> Vec<(u128, bool)> {
    shown(planned).into_iter().filter(|p| p.1 == n).map(|p| (p.0, p.3)).collect()
}

#[test]
fn a_full_check_asks_every_region_three_times_and_its_servers_in_turn() {
    let planned = plan(&plain(&[1, 2]), true, Scope::Full(None));
    assert_eq!(
        shown(&planned),
        [
            (0, 1, 0, false),
            (0, 1, 0, true),
            (0, 2, 0, false),
            (0, 2, 0, true),
            (100, 1, 1, false),
            (100, 1, 1, true),
            (100, 2, 1, false),
            (100, 2, 1, true),
            (200, 1, 0, false),
            (200, 1, 0, true),
            (200, 2, 0, false),
            (200, 2, 0, true),
        ]
    );
    assert!(plan(&plain(&[1, 2]), false, Scope::Full(None)).iter().all(|p| p.family == Family::V4));
    assert_eq!(plan(&[], true, Scope::Full(None)), []);
}

#[test]
fn between_full_checks_the_near_regions_and_the_home_are_asked() {
    let regions = plain(&[1, 2, 3, 4, 5]);
    let known = last(&[(1, 50), (2, 10), (3, 20), (4, 40), (5, 30)], false, Some(1));
    let planned = plan(&regions, false, Scope::Near(&known));
    // The home: four tries, 120 % of its latency apart, later ones 50 ms more each.
    assert_eq!(questions(&planned, 1), [(0, false), (60, false), (220, false), (330, false)]);
    assert_eq!(questions(&planned, 2), [(0, false), (12, false)]);
    assert_eq!(questions(&planned, 3), [(0, false), (24, false)]);
    assert_eq!(questions(&planned, 5), [(0, false)]);
    assert_eq!(questions(&planned, 4), []);
}

#[test]
fn a_family_that_did_not_answer_is_tried_once_where_it_matters() {
    let regions = plain(&[1, 2, 3]);
    let known = last(&[(1, 10), (2, 20), (3, 30)], false, Some(1));
    let planned = plan(&regions, true, Scope::Near(&known));
    let v6 = |n| questions(&planned, n).iter().filter(|(_, v6)| *v6).count();
    assert_eq!((v6(1), v6(2), v6(3)), (1, 1, 0));
    let known = last(&[(1, 10), (2, 20), (3, 30)], true, Some(1));
    let planned = plan(&regions, true, Scope::Near(&known));
    assert_eq!(questions(&planned, 3), [(0, false)], "one family is enough there");
    assert_eq!(questions(&planned, 2).len(), 4);
}

#[test]
fn regions_that_are_not_to_be_measured_or_avoided_are_not_asked_unless_they_are_home() {
    let mut regions = plain(&[1, 2, 3]);
    regions[1].unmeasured = true;
    regions[2].avoid = true;
    let asked = |scope| {
        let mut asked: Vec<u16> = plan(&regions, false, scope).iter().map(|p| p.region.0).collect();
        asked.dedup();
        asked.sort_unstable();
        asked.dedup();
        asked
    };
    assert_eq!(asked(Scope::Full(None)), [1]);
    assert_eq!(asked(Scope::Full(Some(region(3)))), [1, 3]);
    assert_eq!(asked(Scope::Full(Some(region(2)))), [1]);
    assert_eq!(asked(Scope::Near(&last(&[], false, Some(3)))), [1, 3]);
}

#[test]
fn servers_without_stun_or_without_the_family_are_passed_over() {
    let mut regions = plain(&[1]);
    regions[0].servers[0].stun = None;
    regions[0].servers[1].v6 = Place::Nowhere;
    let planned = plan(&regions, true, Scope::Full(None));
    assert_eq!(shown(&planned), [(0, 1, 1, false), (100, 1, 1, false), (200, 1, 1, false)]);
}
