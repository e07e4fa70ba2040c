//! Pings of ours: when, where to, and what their answers change.

use super::*;

#[test]
fn only_a_peer_that_is_talked_to_is_pinged() {
    let mut bench = Bench::new(&[WAN, LAN]);
    assert_eq!((bench.sent(), bench.paths.poll_timeout()), (Vec::new(), None));
    bench.hear(at(0), WAN);
    bench.hear(at(1), WAN);
    assert_eq!((bench.sent(), bench.paths.poll_timeout()), (Vec::new(), None));
    bench.send(at(2));
    assert_eq!(bench.pinged(), [address(LAN), address(WAN)]);
    bench.send(at(2));
    assert_eq!(bench.pinged(), [], "they have just been pinged");
}

#[test]
fn a_pong_proves_where_the_ping_went_and_not_where_the_pong_came_from() {
    let mut bench = Bench::new(&[WAN]);
    bench.send(at(0));
    let tx = bench.pings()[0].1;
    bench.pong(ms(30), CAFE, tx);
    assert_eq!(bench.best(), Some(direct(WAN)));
    assert_eq!(bench.paths.latency(ms(30), &node(THEM)), Some(Duration::from_millis(30)));
    assert_eq!(bench.events(), [Event::Moved(node(THEM))]);
    bench.send(ms(31));
    assert_eq!(bench.pinged(), [], "where the pong came from is no candidate");
}

#[test]
fn of_proven_addresses_the_better_one_is_taken() {
    for (answers, best) in
        [([(LAN, 2), (WAN, 3)], LAN), ([(WAN, 2), (LAN, 2)], LAN), ([(WAN, 10), (LAN, 40)], WAN), ([(LAN, 40), (WAN, 10)], WAN)]
    {
        let mut bench = Bench::new(&[WAN, LAN]);
        bench.prove(at(0), &answers);
        assert_eq!(bench.best(), Some(direct(best)), "{answers:?}");
    }
}

#[test]
fn beside_a_way_that_works_others_are_tried_four_times_and_then_once_a_minute_if_it_is_slow() {
    for (latency, rounds) in [(20, 4 + 2), (3, 4)] {
        let mut bench = Bench::new(&[WAN, CAFE]);
        bench.prove(at(0), &[(WAN, latency)]);
        let mut tried = 1;
        for second in 1..=125 {
            bench.send(at(second));
            bench.pass(at(second));
            for (to, tx) in bench.pings() {
                if to == address(WAN) {
                    bench.pong(at(second) + Duration::from_millis(latency), WAN, tx);
                } else {
                    tried += 1;
                }
            }
        }
        assert_eq!(tried, rounds, "at {latency} ms");
        assert_eq!(bench.best(), Some(direct(WAN)));
    }
}

#[test]
fn the_heartbeat_ends_forty_five_seconds_after_the_last_data() {
    let mut bench = Bench::new(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    let mut beats = Vec::new();
    while let Some(deadline) = bench.paths.poll_timeout() {
        assert!(deadline.at < at(60), "{deadline}");
        bench.paths.handle_timeout(deadline.at);
        for (to, tx) in bench.pings() {
            beats.push(deadline.at);
            bench.pong(deadline.at + Duration::from_millis(20), WAN, tx);
            assert_eq!(to, address(WAN));
            // Received packets and pings are no activity.
            bench.hear(deadline.at, WAN);
            bench.ping(deadline.at, WAN);
        }
    }
    assert_eq!(beats, (1..=15).map(|n| at(3 * n)).collect::<Vec<_>>());
}

#[test]
fn unanswered_candidates_are_tried_again_ever_more_slowly_and_only_while_there_is_data() {
    let mut bench = Bench::new(&[WAN]);
    bench.send(at(0));
    let mut tries = vec![0];
    bench.pings();
    while let Some(deadline) = bench.paths.poll_timeout() {
        bench.paths.handle_timeout(deadline.at);
        tries.extend(bench.pings().iter().map(|_| deadline.at.since(at(0)).as_millis()));
    }
    assert_eq!(tries[..7], [0, 500, 1500, 3500, 7500, 12_500, 17_500]);
    assert!(tries.last().is_some_and(|last| *last <= 48_000), "{tries:?}");
}

#[test]
fn measuring_a_peer_gives_its_latency_and_starts_nothing_that_goes_on() {
    let mut bench = Bench::new(&[WAN]);
    bench.paths.measure(at(0), &node(THEM), 7).unwrap();
    let pings = bench.pings();
    assert_eq!(pings.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [address(WAN)]);
    bench.pong(at(0) + Duration::from_millis(20), WAN, pings[0].1);
    let told = |event: &Event| matches!(event, Event::Answered { token: 7, pong: Some(pong) } if pong.latency == Duration::from_millis(20));
    assert!(bench.events().iter().any(told));
    bench.pass(at(120));
    assert_eq!(bench.pinged(), [], "nobody is pinged who is not talked to");
    assert_eq!(bench.paths.measure(at(120), &node(US), 8), Err(Unreached::NoPeer));
}
