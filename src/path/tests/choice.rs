//! Handshakes as the probe, and the candidates.

use super::*;

#[test]
fn the_first_handshake_goes_to_all_candidates_local_ones_first() {
    for mut bench in [without_disco(&[WAN, LAN]), Bench::new(&[WAN, LAN])] {
        assert_eq!(bench.best(), None);
        assert_eq!(bench.ask(at(0)), [direct(LAN), direct(WAN)]);
    }
}

#[test]
fn the_candidate_that_answers_a_handshake_is_taken_and_asked_alone_next_time() {
    let mut bench = without_disco(&[WAN, LAN]);
    bench.ask(at(0));
    bench.answered(at(1), WAN);
    assert_eq!(bench.best(), Some(direct(WAN)));
    assert_eq!(bench.events(), [Event::Moved(node(THEM))]);
    assert_eq!(bench.ask(at(120)), [direct(WAN)]);
}

#[test]
fn a_handshake_unanswered_for_five_seconds_goes_to_all_again() {
    let mut bench = without_disco(&[WAN, LAN]);
    bench.answered(at(1), WAN);
    assert_eq!(bench.ask(at(120)), [direct(WAN)]);
    assert_eq!(bench.ask(at(124)), [direct(WAN)]);
    assert_eq!(bench.ask(at(125)), [direct(LAN), direct(WAN)]);
    assert_eq!(bench.best(), Some(direct(WAN)), "there is nowhere better yet");
    bench.answered(at(126), LAN);
    assert_eq!(bench.best(), Some(direct(LAN)));
    assert_eq!(bench.ask(at(240)), [direct(LAN)]);
}

#[test]
fn without_probes_the_path_follows_a_peer_that_moves() {
    let mut bench = without_disco(&[WAN]);
    bench.answered(at(1), WAN);
    bench.hear(at(2), CAFE);
    assert_eq!(bench.best(), Some(direct(CAFE)));
}

#[test]
fn without_probes_a_local_path_that_works_is_not_left_for_a_global_one() {
    let mut bench = without_disco(&[WAN, LAN]);
    bench.answered(at(1), LAN);
    bench.hear(at(2), WAN);
    assert_eq!(bench.best(), Some(direct(LAN)));
    bench.hear(at(8), WAN);
    assert_eq!(bench.best(), Some(direct(WAN)), "the local one fell silent");
    bench.hear(at(9), LAN);
    assert_eq!(bench.best(), Some(direct(LAN)));
}

#[test]
fn the_map_takes_back_its_candidates_but_not_the_path_in_use() {
    let mut bench = without_disco(&[WAN, LAN]);
    bench.answered(at(1), WAN);
    bench.paths.set_peers(at(2), &[Peer { disco: None, ..peer(&[CAFE]) }]);
    assert_eq!(bench.best(), Some(direct(WAN)));
    bench.ask(at(2));
    assert_eq!(bench.ask(at(7)), [direct(WAN), direct(CAFE)]);
}

#[test]
fn candidates_are_bounded_and_the_staleest_learned_one_makes_room() {
    let mut bench = without_disco(&[WAN]);
    for n in 0..1000 {
        bench.hear(at(n), &format!("198.51.100.1:{}", 1024 + n));
    }
    bench.ask(at(2000));
    let all = bench.ask(at(2006));
    assert_eq!(all.len(), MAX_LEARNED + 1);
    assert!(all.contains(&direct(WAN)) && all.contains(&direct("198.51.100.1:2023")));
    let many: Vec<String> = (1..200).map(|n| format!("203.0.113.{n}:1")).collect();
    let mut bench = Bench::new(&many.iter().map(String::as_str).collect::<Vec<_>>());
    bench.send(at(0));
    assert_eq!(bench.pinged().len(), MAX_LISTED);
    // A full list from the map does not keep the peer from moving.
    bench.hear(at(1), CAFE);
    assert_eq!(bench.best(), Some(direct(CAFE)));
}

#[test]
fn unusable_addresses_are_passed_over() {
    let mut bench = Bench::new(&["0.0.0.0:1", "1.2.3.4:0", "224.0.0.1:5", "255.255.255.255:5", "[ff02::1]:5", "[::]:1", "[fe80::1]:5"]);
    assert_eq!(bench.ask(at(0)), []);
    bench.paths.set_peers(at(0), &[peer(&["[::ffff:1.2.3.4]:5", "1.2.3.4:5"])]);
    assert_eq!(bench.ask(at(0)), [direct("1.2.3.4:5")]);
}

#[test]
fn a_peer_without_a_disco_key_is_never_pinged_and_costs_no_deadline() {
    let mut bench = without_disco(&[WAN]);
    bench.send(at(0));
    bench.hear(at(0), LAN);
    bench.ask(at(0));
    assert_eq!((bench.sent(), bench.paths.poll_timeout()), (Vec::new(), None));
    assert!(!bench.paths.route(&node(THEM)).probed);
    assert_eq!(bench.paths.ping(at(0), &node(THEM), 1), Err(Unreached::NoDisco));
}
