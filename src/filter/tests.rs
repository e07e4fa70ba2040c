//! What is let in and what is not, by example and against the rules read one by one.

#![allow(clippy::indexing_slicing, reason = "test code")]

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::wire::control::{FilterRule, NetPortRange, PortRange};

const PEER: &str = "100.64.0.7";
const OWN: &str = "100.64.0.1";

/// A rule as text: sources, destinations with ports, protocols.
fn rule(sources: &[&str], destinations: &[(&str, u16, u16)], protocols: &[i32]) -> FilterRule {
    FilterRule {
        src_ips: sources.iter().map(|text| (*text).to_owned()).collect(),
        dst_ports: destinations
            .iter()
            .map(|(ip, first, last)| NetPortRange { ip: (*ip).to_owned(), ports: PortRange { first: *first, last: *last } })
            .collect(),
        ip_proto: protocols.to_vec(),
        ..FilterRule::default()
    }
}

fn config(rules: Vec<FilterRule>) -> FilterConfig {
    FilterConfig {
        rules,
        addresses: vec![OWN.parse::<IpAddr>().unwrap().into(), "fd7a:115c:a1e0::1".parse::<IpAddr>().unwrap().into()],
        ..FilterConfig::default()
    }
}

/// An IP packet with this body.
fn ip(from: &str, to: &str, protocol: u8, body: &[u8]) -> Vec<u8> {
    match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
            let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0];
            packet.extend(from.octets());
            packet.extend(to.octets());
            packet.extend(body);
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u16::try_from(body.len()).unwrap().to_be_bytes();
            let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            packet.extend(from.octets());
            packet.extend(to.octets());
            packet.extend(body);
            packet
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

fn ports(from: u16, to: u16, rest: &[u8]) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), rest].concat()
}

fn tcp(from: &str, to: &str, port: u16, flags: u8) -> Vec<u8> {
    ip(from, to, packet::TCP, &ports(40_000, port, &[0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]))
}

fn syn(from: &str, to: &str, port: u16) -> Vec<u8> {
    tcp(from, to, port, 0x02)
}

fn udp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    ip(from.0, to.0, packet::UDP, &ports(from.1, to.1, &[0, 8, 0, 0]))
}

fn icmp(from: &str, to: &str, kind: u8) -> Vec<u8> {
    let protocol = if from.contains(':') { packet::ICMPV6 } else { packet::ICMP };
    ip(from, to, protocol, &[kind, 0, 0, 0, 0, 0, 0, 0])
}

fn judge(filter: &Filter, packet: &[u8]) -> Result<(), Refusal> {
    filter.admit(packet, &mut Last::default(), |_| false)
}

#[test]
fn before_there_is_a_map_and_with_shields_up_only_answers_come_in() {
    let shields = Filter::new(&FilterConfig { shields_up: true, ..config(vec![rule(&["*"], &[("*", 0, 65535)], &[])]) });
    let asked = Flow { protocol: 17, own: (OWN.parse().unwrap(), 5000), other: (PEER.parse().unwrap(), 53) };
    for packet in [syn(PEER, OWN, 22), udp((PEER, 1), (OWN, 2)), icmp(PEER, OWN, 8), udp((PEER, 53), (OWN, 5000))] {
        assert_eq!(judge(&shields, &packet), Err(Refusal::NotAllowed));
        assert!(judge(&Filter::default(), &packet).is_err());
        assert_eq!(judge(&Filter::open(), &packet), Ok(()));
    }
    for packet in [tcp(PEER, OWN, 22, 0x12), tcp(PEER, OWN, 22, 0x10), tcp(PEER, OWN, 22, 0x04), icmp(PEER, OWN, 0), icmp(PEER, OWN, 3)] {
        assert_eq!(judge(&shields, &packet), Ok(()), "{packet:?}");
    }
    assert_eq!(shields.departure(&udp((OWN, 5000), (PEER, 53))), Departure::Flow(asked), "what is sent is remembered");
    let answer = udp((PEER, 53), (OWN, 5000));
    assert_eq!(shields.admit(&answer, &mut Last::default(), |flow| *flow == asked), Ok(()));
}

#[test]
fn whoever_opens_a_connection_that_is_refused_is_told_so_and_why_and_nobody_else_is() {
    let lan = |forwards, shields_up| {
        let rules = vec![rule(&[PEER], &[("192.168.7.0/24", 22, 22)], &[])];
        Filter::new(&FilterConfig { subnets: vec!["192.168.7.0/24".parse().unwrap()], forwards, shields_up, ..config(rules) })
    };
    let both = Forwards::default();
    let told = |filter: &Filter, packet: &[u8]| {
        let refusal = judge(filter, packet).unwrap_err();
        filter.objection(packet, refusal).map(|packet| (packet.from, packet.to, packet.message))
    };
    let reject = |from: &str, to: &str, port, reason| {
        let message = tsmp::Message::Reject(Reject { protocol: 6, reason, source_port: 40_000, port, maybe_broken: false });
        Some((from.parse().unwrap(), to.parse().unwrap(), message))
    };
    let filter = lan(both, false);
    assert_eq!(told(&filter, &syn(PEER, OWN, 22)), reject(OWN, PEER, 22, Reason::Policy));
    let (peer6, own6) = ("fd7a:115c:a1e0::7", "fd7a:115c:a1e0::1");
    assert_eq!(told(&filter, &syn(peer6, own6, 80)), reject(own6, peer6, 80, Reason::Policy));
    assert_eq!(told(&filter, &syn(PEER, "192.168.7.9", 80)), reject("192.168.7.9", PEER, 80, Reason::Policy));
    assert_eq!(told(&filter, &syn(PEER, "192.168.8.9", 80)), reject("192.168.8.9", PEER, 80, Reason::Policy), "and nothing of ours");
    assert_eq!(told(&lan(both, true), &syn(PEER, "192.168.7.9", 22)), reject("192.168.7.9", PEER, 22, Reason::ShieldsUp));
    assert_eq!(judge(&filter, &syn(PEER, "192.168.7.9", 22)), Ok(()));
    let stuck = lan(Forwards { v4: false, v6: true }, false);
    assert_eq!(judge(&stuck, &syn(PEER, "192.168.7.9", 22)), Err(Refusal::NotForwarded));
    assert_eq!(told(&stuck, &syn(PEER, "192.168.7.9", 22)), reject("192.168.7.9", PEER, 22, Reason::NotForwarded));
    assert_eq!(told(&stuck, &syn(PEER, "192.168.7.9", 23)), reject("192.168.7.9", PEER, 23, Reason::Policy), "the policy comes first");
    let silent = [udp((PEER, 1), (OWN, 2)), icmp(PEER, OWN, 8), ip(PEER, OWN, 47, &[]), ip(PEER, OWN, tsmp::PROTOCOL, b"pabcdefgh")];
    for packet in silent {
        assert_eq!(told(&filter, &packet), None, "{packet:?}");
    }
    let mut cut = syn(PEER, OWN, 22);
    cut.truncate(30);
    assert_eq!(told(&filter, &cut), None);
    for flags in [0x12, 0x10, 0x04] {
        assert_eq!(filter.objection(&tcp(PEER, OWN, 22, flags), Refusal::NotAllowed), None, "no answer to an answer");
    }
}

#[test]
fn messages_between_mesh_programs_neither_come_from_this_machines_programs_nor_reach_them() {
    let all = rule(&["*"], &[("*", 0, 65535)], &[tsmp::PROTOCOL.into()]);
    let filter = Filter::new(&config(vec![all]));
    let ping = |from, to| ip(from, to, tsmp::PROTOCOL, b"pabcdefgh");
    let (peer6, own6) = ("fd7a:115c:a1e0::7", "fd7a:115c:a1e0::1");
    for (from, to) in [(PEER, OWN), (peer6, own6)] {
        assert_eq!(judge(&filter, &ping(from, to)), Err(Refusal::NotAllowed));
        assert_eq!(filter.departure(&ping(to, from)), Departure::Held);
    }
    // Not even behind options or extension headers, or as the first of several fragments.
    let mut options = ping(OWN, PEER);
    options.splice(20..20, [1, 1, 1, 1]);
    (options[0], options[3]) = (0x46, options[3] + 4);
    let hop_by_hop = ip(own6, peer6, 0, &[&[tsmp::PROTOCOL, 0, 1, 4, 0, 0, 0, 0][..], b"pabcdefgh"].concat());
    let first = ip(own6, peer6, 44, &[&[tsmp::PROTOCOL, 0, 0, 1, 0, 0, 0, 0][..], b"pabcdefgh"].concat());
    for packet in [options, hop_by_hop, first] {
        assert_eq!(filter.departure(&packet), Departure::Held, "{packet:?}");
    }
    assert_eq!(filter.departure(&syn(OWN, PEER, 22)), Departure::Plain);
}

#[test]
fn at_a_door_every_peer_may_knock_and_nowhere_else() {
    let doors = vec![SocketAddr::new(OWN.parse().unwrap(), 58436)];
    let door = FilterConfig { doors, ..config(vec![]) };
    let filter = Filter::new(&door);
    assert_eq!(judge(&filter, &syn(PEER, OWN, 58436)), Ok(()));
    for packet in [
        syn(PEER, OWN, 58437),
        udp((PEER, 1), (OWN, 58436)),
        syn("fd7a:115c:a1e0::7", "fd7a:115c:a1e0::1", 58436),
        syn(PEER, "192.0.2.1", 58436),
    ] {
        assert!(judge(&filter, &packet).is_err(), "{packet:?}");
    }
    let shields = Filter::new(&FilterConfig { shields_up: true, ..door });
    assert_eq!(judge(&shields, &syn(PEER, OWN, 58436)), Err(Refusal::NotAllowed));
}

#[test]
fn what_a_source_may_ask_of_the_internet_is_told_whatever_this_node_carries() {
    let filter = Filter::new(&config(vec![rule(&[PEER], &[("0.0.0.0/5", 0, 65535), ("2000::/3", 53, 53)], &[])]));
    let asks = |from: &str, to: &str, port| filter.allows_datagram(from.parse().unwrap(), to.parse().unwrap(), port);
    assert!(asks(PEER, "0.0.0.0", 53) && asks(PEER, "2000::", 53));
    assert!(!asks(PEER, "2000::", 54) && !asks("100.64.0.8", "0.0.0.0", 53) && !asks(PEER, "9.9.9.9", 53));
}

#[test]
fn a_rule_allows_its_sources_its_destinations_its_ports_and_its_protocols_and_no_more() {
    let filter = Filter::new(&config(vec![
        rule(&[PEER], &[(OWN, 22, 22), (OWN, 8000, 8999)], &[6]),
        rule(&["100.64.0.8-100.64.0.9"], &[("*", 53, 53)], &[17]),
        rule(&["100.64.0.10"], &[(OWN, 0, 65535)], &[47]),
        rule(&["100.64.0.11"], &[(OWN, 1, 65535)], &[47, 132]),
        rule(&["fd7a:115c:a1e0::/48"], &[("fd7a:115c:a1e0::1", 443, 443)], &[]),
    ]));
    let allowed = [
        syn(PEER, OWN, 22),
        syn(PEER, OWN, 8000),
        syn(PEER, OWN, 8999),
        udp(("100.64.0.9", 9), (OWN, 53)),
        ip("100.64.0.10", OWN, 47, &[]),
        ip("100.64.0.11", OWN, SCTP, &ports(9, 7, &[0; 8])),
        syn("fd7a:115c:a1e0::9", "fd7a:115c:a1e0::1", 443),
        udp(("fd7a:115c:a1e0::9", 1), ("fd7a:115c:a1e0::1", 443)),
        icmp(PEER, OWN, 8),
        icmp("fd7a:115c:a1e0::9", "fd7a:115c:a1e0::1", 128),
    ];
    for packet in allowed {
        assert_eq!(judge(&filter, &packet), Ok(()), "{packet:?}");
    }
    let refused = [
        syn(PEER, OWN, 23),
        syn(PEER, OWN, 9000),
        syn("100.64.0.6", OWN, 22),
        udp((PEER, 1), (OWN, 22)),
        udp(("100.64.0.10", 1), (OWN, 53)),
        icmp("100.64.0.6", OWN, 8),
        ip(PEER, OWN, 47, &[]),
        ip("100.64.0.11", OWN, 47, &[]),
        ip("100.64.0.11", OWN, SCTP, &ports(9, 0, &[0; 8])),
        ip(PEER, OWN, 99, b"p12345678"),
    ];
    for packet in refused {
        assert_eq!(judge(&filter, &packet), Err(Refusal::NotAllowed), "{packet:?}");
    }
}

#[test]
fn only_what_is_this_nodes_is_reached() {
    let all = vec![rule(&["*"], &[("*", 0, 65535)], &[])];
    let plain = Filter::new(&config(all.clone()));
    let router = Filter::new(&FilterConfig { subnets: vec!["192.168.1.0/24".parse().unwrap()], ..config(all.clone()) });
    let exit = FilterConfig { exit: true, machine: vec!["203.0.113.0/24".parse().unwrap()], ..config(all.clone()) };
    let exit = Filter::new(&exit);
    let metadata = Filter::new(&FilterConfig { subnets: vec!["169.254.0.0/16".parse().unwrap()], ..config(all) });
    let here = |filter: &Filter, to: &str| judge(filter, &syn(if to.contains(':') { "fd7a::7" } else { PEER }, to, 80)) == Ok(());
    for (to, expected) in [
        (OWN, [true, true, true]),
        ("fd7a:115c:a1e0::1", [true, true, true]),
        ("100.64.0.2", [false, false, false]),
        ("192.168.1.77", [false, true, false]),
        ("192.168.2.77", [false, false, false]),
        ("8.8.8.8", [false, false, true]),
        ("2606:4700::1111", [false, false, true]),
        ("203.0.113.9", [false, false, false]),
        ("10.0.0.1", [false, false, false]),
        ("fd00::1", [false, false, false]),
        ("224.0.0.251", [false, false, false]),
        ("ff02::fb", [false, false, false]),
        ("169.254.1.1", [false, false, false]),
    ] {
        assert_eq!([here(&plain, to), here(&router, to), here(&exit, to)], expected, "{to}");
    }
    assert!(here(&metadata, "169.254.169.254") && !here(&metadata, "169.254.1.1"));
    // The resolver is never the mesh's, whatever is carried and whichever addresses a coordinator gives.
    let nets = |texts: [&str; 2]| texts.map(|text| text.parse().unwrap()).to_vec();
    let all = vec![rule(&["*"], &[("*", 0, 65535)], &[])];
    let wide = FilterConfig { subnets: nets(["100.64.0.0/10", "fd00::/8"]), exit: true, ..config(all.clone()) };
    let given = FilterConfig { addresses: nets(["100.100.100.100/32", "fd7a:115c:a1e0::53/128"]), ..config(all) };
    for filter in [Filter::new(&wide), Filter::new(&given)] {
        assert!(!here(&filter, "100.100.100.100") && !here(&filter, "fd7a:115c:a1e0::53"));
    }
    assert!(here(&Filter::new(&wide), "fd7a:115c:a1e0::54"));
    assert_eq!(judge(&plain, &syn(PEER, "8.8.8.8", 80)), Err(Refusal::NotHere));
}

#[test]
fn fragments_after_the_first_pass_and_small_ones_do_not() {
    let filter = Filter::new(&config(vec![rule(&[PEER], &[(OWN, 22, 22)], &[])]));
    let v4 = |units: u16, more: bool, body: &[u8]| {
        let mut packet = ip(PEER, OWN, packet::TCP, body);
        packet[6..8].copy_from_slice(&(units | u16::from(more) << 13).to_be_bytes());
        packet
    };
    let header = &syn(PEER, OWN, 22)[20..];
    let other = &syn(PEER, OWN, 23)[20..];
    assert_eq!(judge(&filter, &v4(0, true, header)), Ok(()), "the first has the ports");
    assert_eq!(judge(&filter, &v4(0, true, other)), Err(Refusal::NotAllowed));
    assert_eq!(judge(&filter, &v4(0, true, &header[..16])), Err(Refusal::Malformed), "tiny (RFC 1858)");
    assert_eq!(judge(&filter, &v4(1, false, header)), Err(Refusal::Malformed), "it could overwrite the flags");
    assert_eq!(judge(&filter, &v4(10, false, b"rest")), Ok(()));
    let mut elsewhere = v4(10, false, b"rest");
    elsewhere[16..20].copy_from_slice(&[8, 8, 8, 8]);
    assert_eq!(judge(&filter, &elsewhere), Err(Refusal::NotHere));

    let filter = Filter::new(&config(vec![rule(&["fd7a::7"], &[("*", 53, 53)], &[])]));
    let v6 = |units: u16, port: u16| {
        let field = (units << 3).to_be_bytes();
        let body = [&[packet::UDP, 0, field[0], field[1], 0, 0, 0, 1][..], &ports(1, port, &[0, 8, 0, 0])].concat();
        // Behind options for the destination, as a host may put them.
        ip("fd7a::7", "fd7a:115c:a1e0::1", 60, &[&[44, 0, 1, 4, 0, 0, 0, 0][..], &body].concat())
    };
    assert_eq!(judge(&filter, &v6(0, 53)), Ok(()));
    assert_eq!(judge(&filter, &v6(0, 54)), Err(Refusal::NotAllowed));
    assert_eq!(judge(&filter, &v6(20, 54)), Ok(()));
    assert_eq!(judge(&filter, &v6(2, 53)), Err(Refusal::Malformed));
}

#[test]
fn a_capability_as_source_means_the_nodes_that_have_it() {
    let mut config = config(vec![rule(&["cap:example.com/admin"], &[("*", 22, 22)], &[]), rule(&["cap:none"], &[("*", 23, 23)], &[])]);
    config.capable.insert("example.com/admin".to_owned(), vec![PEER.parse().unwrap()]);
    let filter = Filter::new(&config);
    assert_eq!(judge(&filter, &syn(PEER, OWN, 22)), Ok(()));
    assert!(judge(&filter, &syn(PEER, OWN, 23)).is_err() && judge(&filter, &syn("100.64.0.8", OWN, 22)).is_err());
    assert_eq!(filter.unread(), 0);
}

#[test]
fn trap_24_an_entry_with_host_bits_or_nonsense_is_left_out_and_counted_and_the_rest_of_its_rule_stays() {
    let filter = Filter::new(&config(vec![rule(&["10.0.0.1/8", "nonsense", PEER], &[("100.64.0.1/24", 22, 22), (OWN, 80, 80)], &[])]));
    assert_eq!(filter.unread(), 3);
    assert_eq!(judge(&filter, &syn(PEER, OWN, 80)), Ok(()));
    assert!(judge(&filter, &syn("10.0.0.1", OWN, 80)).is_err() && judge(&filter, &syn(PEER, OWN, 22)).is_err());
}

#[test]
fn flows_are_kept_as_long_as_they_are_used_and_their_number_is_bounded() {
    let flow = |n: u32| Flow { protocol: 17, own: (IpAddr::from(n.to_be_bytes()), 1), other: (PEER.parse().unwrap(), 2) };
    let mut flows = Flows::default();
    flows.sent(flow(0));
    flows.sent(flow(1));
    for n in 2..100_000 {
        flows.sent(flow(n));
        if n % 1000 == 0 {
            assert!(flows.answers(&flow(1)), "it is in use");
        }
    }
    assert!(flows.answers(&flow(99_000)) && !flows.answers(&flow(0)));
    assert!(!flows.answers(&Flow { protocol: 132, ..flow(99_000) }));
}

#[test]
fn without_a_policy_nothing_is_remembered_of_udp() {
    let open = Filter::new(&config(vec![rule(&["*"], &[("*", 0, 65535)], &[])]));
    let narrow = Filter::new(&config(vec![rule(&["*"], &[("*", 0, 65534)], &[])]));
    let sent = udp((OWN, 1), (PEER, 2));
    let remembers = |filter: &Filter, packet: &[u8]| matches!(filter.departure(packet), Departure::Flow(_));
    assert_eq!((remembers(&open, &sent), remembers(&narrow, &sent)), (false, true));
    let sctp = ip(OWN, PEER, SCTP, &ports(1, 2, &[0; 8]));
    assert!(remembers(&open, &sctp), "which no such rule names");
    assert!(!remembers(&Filter::open(), &sctp));
}

/// The rules read one by one, as they are written.
fn naive(rules: &[FilterRule], from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> bool {
    let within = |text: &str, address: IpAddr| networks::networks(text).is_some_and(|nets| nets.iter().any(|net| net.contains(&address)));
    rules.iter().any(|rule| {
        let usual = [6, 17, 1, 58];
        let protocols = if rule.ip_proto.is_empty() { &usual[..] } else { &rule.ip_proto[..] };
        protocols.contains(&i32::from(protocol))
            && rule.src_ips.iter().any(|source| within(source, from))
            && rule.dst_ports.iter().any(|d| within(&d.ip, to) && (d.ports.first..=d.ports.last).contains(&port))
    })
}

fn some_rules() -> impl Strategy<Value = Vec<FilterRule>> {
    let source = prop_oneof![
        (0_u8..8).prop_map(|n| format!("100.64.0.{n}")),
        Just("*".to_owned()),
        Just("100.64.0.2-100.64.0.5".to_owned()),
        Just("100.64.0.0/30".to_owned()),
    ];
    let destination = (
        prop_oneof![Just(OWN.to_owned()), Just("*".to_owned()), Just("192.168.1.0/24".to_owned()), Just("192.168.1.128/25".to_owned())],
        0_u16..8,
        0_u16..8,
    );
    let protocols = prop_oneof![Just(vec![]), Just(vec![6]), Just(vec![17]), Just(vec![6, 17])];
    let one = (prop::collection::vec(source, 1..4), prop::collection::vec(destination, 1..4), protocols).prop_map(
        |(sources, destinations, protocols)| {
            let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
            let destinations: Vec<(&str, u16, u16)> = destinations.iter().map(|(ip, first, last)| (ip.as_str(), *first, *last)).collect();
            rule(&sources, &destinations, &protocols)
        },
    );
    // Both sides of where rules are merged.
    prop::collection::vec(one, 0..16)
}

proptest! {
    #[test]
    fn looking_up_agrees_with_reading_the_rules_one_by_one(
        rules in some_rules(),
        packets in prop::collection::vec((0_u8..8, prop_oneof![Just(OWN), Just("192.168.1.5"), Just("192.168.1.200")], 0_u16..9, any::<bool>()), 64),
    ) {
        let filter = Filter::new(&FilterConfig { subnets: vec!["192.168.1.0/24".parse().unwrap()], ..config(rules.clone()) });
        for (from, to, port, is_tcp) in packets {
            let from = format!("100.64.0.{from}");
            let (packet, protocol) = if is_tcp { (syn(&from, to, port), 6) } else { (udp((&from, 9), (to, port)), 17) };
            let expected = naive(&rules, from.parse().unwrap(), to.parse().unwrap(), protocol, port);
            prop_assert_eq!(judge(&filter, &packet).is_ok(), expected, "{} -> {}:{}/{}", from, to, port, protocol);
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..120), first in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()]) {
        let filter = Filter::new(&config(vec![rule(&["*"], &[("*", 0, 65535)], &[])]));
        let mut bytes = bytes;
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        let _ = judge(&filter, &bytes);
        let _ = filter.departure(&bytes);
    }
}
