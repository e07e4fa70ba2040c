//! Which answers leave as IPv6.

use std::time::Duration;

use super::*;
use crate::time::Time;

fn at(seconds: u64) -> Time {
    Time::from_start(Duration::from_secs(seconds))
}

fn spoken(flows: &mut Flows, now: Time, next: u8, body: &[u8]) {
    let (flow, origin) = turned(forth_v6(next, body)).unwrap().1.unwrap();
    flows.spoken(now, flow, origin);
}

#[test]
fn the_answers_of_what_came_as_ipv6_are_known_and_nothing_else_is() {
    let mut flows = Flows::default();
    spoken(&mut flows, at(0), TCP, &tcp((4000, 80), 2, None, &[]));
    spoken(&mut flows, at(0), UDP, &udp((4000, 53), &[]));
    spoken(&mut flows, at(0), ICMPV6, &icmp(128, 0, 0x0102_0001, &[]));
    let error = |quote: &[u8]| whole(v4(Ipv4Addr::new(10, 0, 0, 1), PEER_V4, ICMP, 0, &icmp(11, 0, 0, quote)));
    for answer in [
        back_v4(TCP, 0, &tcp((80, 4000), 0x12, None, &[])),
        back_v4(UDP, 0, &udp((53, 4000), &[])),
        back_v4(ICMP, 0, &icmp(0, 0, 0x0102_0002, &[])),
        error(&forth_v4(UDP, &udp((4000, 53), &[]))),
        error(&forth_v4(ICMP, &icmp(8, 0, 0x0102_0001, &[]))),
    ] {
        assert_eq!(flows.answered(at(1), &answer), Some(ORIGIN), "{answer:x?}");
    }
    let stranger = Ipv4Addr::new(192, 168, 1, 3);
    for other in [
        back_v4(TCP, 0, &tcp((80, 4001), 0x12, None, &[])),
        back_v4(UDP, 0, &udp((54, 4000), &[])),
        back_v4(ICMP, 0, &icmp(0, 0, 0x0103_0002, &[])),
        // The machine asks itself.
        back_v4(ICMP, 0, &icmp(8, 0, 0x0102_0001, &[])),
        whole(v4(stranger, PEER_V4, UDP, 0, &udp((53, 4000), &[]))),
        whole(v4(MACHINE, Ipv4Addr::new(100, 64, 0, 10), UDP, 0, &udp((53, 4000), &[]))),
        error(&whole(v4(Ipv4Addr::new(100, 64, 0, 10), MACHINE, UDP, 0, &udp((4000, 53), &[])))),
    ] {
        assert_eq!(flows.answered(at(1), &other), None, "{other:x?}");
    }
}

#[test]
fn a_flow_is_known_as_long_as_it_is_used_and_an_idle_time_longer() {
    let bodies = [
        (TCP, tcp((4000, 80), 2, None, &[]), back_v4(TCP, 0, &tcp((80, 4000), 0x10, None, &[])), 7440),
        (UDP, udp((4000, 53), &[]), back_v4(UDP, 0, &udp((53, 4000), &[])), 300),
        (ICMPV6, icmp(128, 0, 0x0102_0001, &[]), back_v4(ICMP, 0, &icmp(0, 0, 0x0102_0001, &[])), 60),
    ];
    for (next, body, answer, idle) in bodies {
        let mut flows = Flows::default();
        spoken(&mut flows, at(100), next, &body);
        assert!(flows.answered(at(100 + idle - 1), &answer).is_some(), "{next}");
        assert!(flows.answered(at(100 + 2 * idle - 2), &answer).is_some(), "an answer is use");
        assert!(flows.answered(at(100 + 3 * idle - 2), &answer).is_none(), "{next}");
    }
}

#[test]
fn the_family_in_which_the_peer_spoke_last_has_the_answers() {
    let mut flows = Flows::default();
    let answer = back_v4(UDP, 0, &udp((53, 4000), &[]));
    let plain = Flow::of_peer(&forth_v4(UDP, &udp((4000, 53), &[]))).unwrap();
    spoken(&mut flows, at(0), UDP, &udp((4000, 53), &[]));
    flows.spoken_plainly(&plain);
    assert_eq!(flows.answered(at(1), &answer), None);
    spoken(&mut flows, at(2), UDP, &udp((4000, 53), &[]));
    assert_eq!(flows.answered(at(3), &answer), Some(ORIGIN));
}

#[test]
fn later_fragments_go_where_the_first_went() {
    let mut flows = Flows::default();
    spoken(&mut flows, at(0), UDP, &udp((4000, 53), &[]));
    let datagram = udp((53, 4000), &payload(2000));
    let first = v4(MACHINE, PEER_V4, UDP, 0x2000, &datagram[..1200]);
    let later = v4(MACHINE, PEER_V4, UDP, 150, &datagram[1200..]);
    assert_eq!(flows.answered(at(1), &later), None);
    assert_eq!(flows.answered(at(1), &first), Some(ORIGIN));
    assert_eq!(flows.answered(at(1), &later), Some(ORIGIN));
    assert_eq!(flows.answered(at(20), &later), None, "nothing is late for so long");
}

#[test]
fn however_many_there_are_those_in_use_are_known_and_memory_is_bounded() {
    let mut flows = Flows::default();
    let flow = |n: u32| Flow { peer: PEER_V4, machine: Ipv4Addr::from(n), protocol: UDP, ports: (4000, 53) };
    let mine = Flow { peer: PEER_V4, machine: MACHINE, protocol: UDP, ports: (4000, 53) };
    let answer = back_v4(UDP, 0, &udp((53, 4000), &[]));
    flows.spoken(at(0), mine, ORIGIN);
    for n in 0..200_000 {
        flows.spoken(at(1), flow(n), ORIGIN);
        if n % 10_000 == 0 {
            assert!(flows.answered(at(1), &answer).is_some(), "{n}");
        }
    }
    assert!(flows.count() <= 2 * 16_384);
    for n in 0..100_000 {
        flows.spoken(at(1), flow(n), ORIGIN);
    }
    assert!(flows.answered(at(1), &answer).is_none(), "not used for long, it makes room");
}
