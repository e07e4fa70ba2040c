//! From the peer to the site.

use super::*;

#[test]
fn tcp_udp_and_pings_arrive_as_the_peer_would_have_sent_them_in_ipv4() {
    let bodies = [
        (TCP, tcp((4000, 80), 0x18, None, &payload(1001)), TCP, tcp((4000, 80), 0x18, None, &payload(1001))),
        (TCP, tcp((4000, 80), 0x02, Some(1220), &[]), TCP, tcp((4000, 80), 0x02, Some(1220), &[])),
        (UDP, udp((4000, 53), &payload(33)), UDP, udp((4000, 53), &payload(33))),
        (UDP, udp((4000, 53), &[]), UDP, udp((4000, 53), &[])),
        (ICMPV6, icmp(128, 0, 0x0102_0003, &payload(57)), ICMP, icmp(8, 0, 0x0102_0003, &payload(57))),
        (ICMPV6, icmp(129, 0, 0x0102_0003, &payload(56)), ICMP, icmp(0, 0, 0x0102_0003, &payload(56))),
    ];
    for (next, body, protocol, expected) in bodies {
        let (packet, _) = turned(forth_v6(next, &body)).unwrap();
        assert!(is_right(&packet), "{packet:x?}");
        assert_eq!(apart_from_id(packet), apart_from_id(forth_v4(protocol, &expected)));
    }
}

#[test]
fn a_conversation_is_named_by_what_its_answers_will_show() {
    let origin = Origin { site: 7, peer: PEER_V6 };
    let flow = |protocol, ports| Some((Flow { peer: PEER_V4, machine: MACHINE, protocol, ports }, origin));
    let of = |next, body: &[u8]| turned(forth_v6(next, body)).unwrap().1;
    assert_eq!(of(TCP, &tcp((4000, 80), 0x10, None, &[])), flow(TCP, (4000, 80)));
    assert_eq!(of(UDP, &udp((4000, 53), &[1])), flow(UDP, (4000, 53)));
    assert_eq!(of(ICMPV6, &icmp(128, 0, 0x0102_0003, &[])), flow(ICMP, (0x102, 0)));
    assert_eq!(of(ICMPV6, &icmp(129, 0, 0x0102_0003, &[])), None, "nobody answers an answer");
    let plain = forth_v4(UDP, &udp((4000, 53), &[1]));
    assert_eq!(Flow::of_peer(&plain), flow(UDP, (4000, 53)).map(|(flow, _)| flow));
}

#[test]
fn a_checksum_that_was_wrong_stays_wrong() {
    for (next, body) in
        [(TCP, tcp((1, 2), 0x10, None, &payload(9))), (UDP, udp((1, 2), &payload(9))), (ICMPV6, icmp(128, 0, 1, &payload(9)))]
    {
        let mut packet = forth_v6(next, &body);
        *packet.last_mut().unwrap() ^= 0x40;
        assert!(!is_right(&turned(packet).unwrap().0));
    }
}

#[test]
fn a_udp_checksum_that_comes_to_zero_is_written_the_other_way() {
    let mut seen = 0;
    for port in 0..=u16::MAX {
        let packet = turned(forth_v6(UDP, &udp((port, 53), &[]))).unwrap().0;
        assert_ne!(packet[26..28], [0, 0]);
        seen += usize::from(packet[26..28] == [0xff, 0xff]);
    }
    assert!(seen > 0);
}

#[test]
fn a_segment_size_that_would_not_fit_back_is_lowered_wherever_it_stands() {
    for (told, expected) in [(1460, 1220), (1220, 1220), (536, 536)] {
        let (packet, _) = turned(forth_v6(TCP, &tcp((1, 2), 0x02, Some(told), &[]))).unwrap();
        assert!(is_right(&packet));
        assert_eq!(packet[43..45], u16::to_be_bytes(expected), "{told}");
    }
    // Not an opening: whatever looks like the option is left alone.
    let (packet, _) = turned(forth_v6(TCP, &tcp((1, 2), 0x10, Some(1460), &[]))).unwrap();
    assert_eq!(packet[43..45], 1460_u16.to_be_bytes());
}

#[test]
fn small_packets_may_be_fragmented_on_their_way_and_have_identifications_that_count() {
    let ids = Identifications::default();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut packet = forth_v6(TCP, &tcp((1, 2), 0x10, None, &payload(1220)));
        let range = to_v4(&mut packet, PEER_V4, &sites(), &ids).unwrap().range;
        let packet = &packet[range];
        assert_eq!((packet.len(), packet[6]), (1260, 0));
        seen.push(u16::from_be_bytes([packet[4], packet[5]]));
    }
    assert_eq!(seen, [seen[0], seen[0] + 1, seen[0] + 2]);
    let (packet, _) = turned(forth_v6(TCP, &tcp((1, 2), 0x10, None, &payload(1221)))).unwrap();
    assert_eq!((packet.len(), packet[6]), (1261, 0x40));
}

/// A fragment header (RFC 8200, section 4.5).
fn fragment(next: u8, offset: u16, more: bool, id: u32) -> Vec<u8> {
    [&[next, 0], &(offset << 3 | u16::from(more)).to_be_bytes()[..], &id.to_be_bytes()].concat()
}

#[test]
fn fragments_stay_fragments_of_one_packet() {
    let datagram = forth_v6(UDP, &udp((4000, 53), &payload(2000)))[40..].to_vec();
    let (first, rest) = datagram.split_at(1200);
    let mut joined = Vec::new();
    for (offset, more, part) in [(0, true, first), (150, false, rest)] {
        let body = [&fragment(UDP, offset, more, 0xabcd_4321), part].concat();
        let (packet, flow) = turned(v6(PEER_V6, MACHINE_V6, 44, &body)).unwrap();
        assert_eq!(slow(&packet[..20]), 0xffff);
        assert_eq!(packet[4..6], [0x43, 0x21]);
        assert_eq!(packet[6..8], (offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        assert_eq!(flow.is_some(), offset == 0);
        joined.extend_from_slice(&packet[20..]);
    }
    assert!(is_right(&v4(PEER_V4, MACHINE, UDP, 0, &joined)));
    // The checksum of a ping in fragments cannot be made.
    let body = [&fragment(ICMPV6, 0, true, 1), &icmp(128, 0, 1, &payload(64))[..]].concat();
    assert_eq!(turned(v6(PEER_V6, MACHINE_V6, 44, &body)), Err(Refusal::Untranslatable));
}

#[test]
fn extension_headers_are_left_out_unless_they_change_the_way() {
    let datagram = forth_v6(UDP, &udp((4000, 53), &payload(20)))[40..].to_vec();
    let options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let routing = |next: u8, left: u8| vec![next, 0, 4, left, 0, 0, 0, 0];
    let body = [options(60), options(43), routing(UDP, 0), datagram.clone()].concat();
    let (packet, _) = turned(v6(PEER_V6, MACHINE_V6, 0, &body)).unwrap();
    assert!(is_right(&packet));
    assert_eq!(packet[20..24], datagram[..4]);
    for wrong in [[routing(UDP, 1), datagram.clone()].concat(), [vec![UDP, 200, 0, 0, 0, 0, 0, 0], datagram].concat()] {
        assert_eq!(turned(v6(PEER_V6, MACHINE_V6, 43, &wrong)), Err(Refusal::Malformed));
    }
}

#[test]
fn nobody_reaches_what_is_no_machine_of_a_site() {
    let everything = SitesConfig {
        routes: vec!["fd7a:115c:a1e0:b1a:0:7::/96".parse().unwrap()],
        own: Some(OWN),
        kept_out: vec![Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::new(100, 100, 100, 100)],
    };
    let all = Sites::new(&everything, MTU).unwrap();
    let to = |site: u16, v4: [u8; 4]| {
        let [a, b, c, d] = v4;
        let words = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        let destination = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0xb1a, 0, site, words[0], words[1]);
        let mut packet = whole(v6(PEER_V6, destination, UDP, &udp((1, 2), &[])));
        to_v4(&mut packet, PEER_V4, &all, &Identifications::default()).err()
    };
    for wrong in [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [127, 9, 9, 9],
        [169, 254, 169, 254],
        [224, 0, 0, 1],
        [239, 255, 255, 250],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
        [100, 64, 0, 1],
        [100, 100, 100, 100],
    ] {
        assert_eq!(to(7, wrong), Some(Refusal::Forbidden), "{wrong:?}");
    }
    for right in [[10, 0, 0, 1], [192, 168, 1, 255], [8, 8, 8, 8], [100, 64, 0, 2]] {
        assert_eq!(to(7, right), None, "{right:?}");
        assert_eq!(to(8, right), Some(Refusal::Forbidden), "another site");
    }
    let kept_out = whole(v6(PEER_V6, "fd7a:115c:a1e0:b1a:0:7:c0a8:1ff".parse().unwrap(), UDP, &udp((1, 2), &[])));
    assert_eq!(turned(kept_out), Err(Refusal::Forbidden));
}

#[test]
fn without_a_sites_prefix_nothing_is_translated() {
    let config = |routes: &[&str]| SitesConfig { routes: routes.iter().map(|r| r.parse().unwrap()).collect(), ..SitesConfig::default() };
    for none in [&[][..], &["fd00::/64"], &["fd7a:115c:a1e0:b1a::/64"]] {
        assert!(Sites::new(&config(none), MTU).is_none(), "{none:?}");
    }
}

#[test]
fn other_protocols_and_udp_without_a_checksum_are_refused() {
    for next in [1, 2, 41, 47, 50, 59, 132, 136] {
        assert_eq!(turned(v6(PEER_V6, MACHINE_V6, next, &payload(40))), Err(Refusal::Untranslatable), "{next}");
    }
    assert_eq!(turned(v6(PEER_V6, MACHINE_V6, UDP, &udp((1, 2), &[]))), Err(Refusal::Malformed));
    for kind in [130, 133, 135, 143, 200] {
        assert_eq!(turned(forth_v6(ICMPV6, &icmp(kind, 0, 0, &[]))), Err(Refusal::Untranslatable), "{kind}");
    }
}
