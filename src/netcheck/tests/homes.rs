//! Which relay is home, and that it does not change for nothing.

use super::*;

/// A check's latencies in milliseconds.
type Check<'a> = &'a [(u16, u64)];

fn latencies(check: Check<'_>) -> BTreeMap<RegionId, Duration> {
    check.iter().map(|(n, l)| (region(*n), ms(*l))).collect()
}

struct Case {
    regions: Vec<Region>,
    history: History,
}

impl Case {
    fn new(numbers: &[u16]) -> Self {
        Self { regions: plain(numbers), history: History::default() }
    }

    /// A check that ends at this second; the old home was heard from at that second.
    fn check(&mut self, second: u64, check: Check<'_>, old: Option<(u16, Option<u64>)>) -> Option<u16> {
        let now = at(second * 1000);
        self.history.add(now, latencies(check));
        let old = old.map(|(n, heard)| Old { id: region(n), heard: heard.map(|s| at(s * 1000)) });
        choose_home(now, Time::from_start(ms(second * 1000 - 500)), &self.regions, &self.history, &latencies(check), old).map(|id| id.0)
    }
}

#[test]
fn the_nearest_region_is_the_first_home() {
    assert_eq!(Case::new(&[1, 2]).check(10, &[(1, 30), (2, 20)], None), Some(2));
    assert_eq!(Case::new(&[1, 2]).check(10, &[], None), None);
}

#[test]
fn a_home_is_left_for_another_that_is_ten_milliseconds_and_a_third_faster() {
    for (old, new, moves) in [(30, 21, false), (30, 19, true), (100, 67, false), (100, 66, true), (20, 9, true), (14, 5, false)] {
        let home = Case::new(&[1, 2]).check(10, &[(1, old), (2, new)], Some((1, None)));
        assert_eq!(home, Some(if moves { 2 } else { 1 }), "{old} ms against {new} ms");
    }
}

#[test]
fn one_slow_answer_of_the_home_does_not_move_it() {
    let mut case = Case::new(&[1, 2]);
    assert_eq!(case.check(10, &[(1, 20), (2, 25)], Some((1, None))), Some(1));
    // The other is compared by its best of the last minutes, the home by what it is now.
    assert_eq!(case.check(40, &[(1, 34), (2, 60)], Some((1, None))), Some(1));
    // What is long past does not count.
    assert_eq!(case.check(400, &[(1, 34), (2, 60)], Some((1, None))), Some(1));
}

#[test]
fn a_home_that_did_not_answer_but_was_heard_from_stays() {
    assert_eq!(Case::new(&[1, 2]).check(100, &[(2, 20)], Some((1, Some(93)))), Some(1));
    assert_eq!(Case::new(&[1, 2]).check(100, &[(2, 20)], Some((1, Some(91)))), Some(2));
    assert_eq!(Case::new(&[1, 2]).check(100, &[(2, 20)], Some((1, None))), Some(2));
}

#[test]
fn while_nothing_answers_a_home_that_lives_stays() {
    assert_eq!(Case::new(&[1, 2]).check(200, &[], Some((1, Some(81)))), Some(1));
    assert_eq!(Case::new(&[1, 2]).check(200, &[], Some((1, Some(79)))), None);
}

#[test]
fn a_home_that_is_in_the_map_no_more_is_left() {
    assert_eq!(Case::new(&[2]).check(100, &[(2, 200)], Some((1, Some(99)))), Some(2));
}

#[test]
fn the_coordinators_scores_count() {
    let mut case = Case::new(&[1, 2]);
    case.regions[1].score = 0.5;
    assert_eq!(case.check(10, &[(1, 30), (2, 50)], None), Some(2));
    case.regions[1].score = 2.0;
    assert_eq!(case.check(11, &[(1, 30), (2, 20)], None), Some(1));
}

#[test]
fn regions_to_be_avoided_are_no_home_unless_they_are_it_already() {
    let mut case = Case::new(&[1, 2]);
    case.regions[1].avoid = true;
    assert_eq!(case.check(10, &[(1, 90), (2, 10)], None), Some(1));
    assert_eq!(case.check(11, &[(1, 90), (2, 10)], Some((2, None))), Some(2));
    case.regions[1].unmeasured = true;
    assert_eq!(case.check(12, &[(2, 10)], None), None);
}

#[test]
fn the_history_is_bounded() {
    let mut history = History::default();
    for n in 0..1000 {
        history.add(at(n), latencies(&[(1, 1000 - n)]));
    }
    assert_eq!(history.best(), latencies(&[(1, 1)]));
    history.add(at(400_000), latencies(&[(1, 700)]));
    assert_eq!(history.best(), latencies(&[(1, 700)]));
}
