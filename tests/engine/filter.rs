//! The packet filter at work: what a peer may reach, and what comes back.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use pvemesh::filter::{Filter, FilterConfig};
use pvemesh::wire::control::{FilterRule, NetPortRange, PortRange};

use super::*;

/// Node `n` lets these ports in, from anyone.
fn lets_in(node: &Node, n: u8, ports: &[u16]) {
    let dst_ports = ports.iter().map(|port| NetPortRange { ip: "*".to_owned(), ports: PortRange { first: *port, last: *port } }).collect();
    let rule = FilterRule { src_ips: vec!["*".to_owned()], dst_ports, ..FilterRule::default() };
    let addresses = [format!("100.64.0.{n}/32"), format!("fd7a:115c:a1e0::{n}/128")];
    let config = FilterConfig {
        rules: if ports.is_empty() { Vec::new() } else { vec![rule] },
        addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        ..FilterConfig::default()
    };
    node.with(|engine| engine.set_filter(Filter::new(&config)));
}

fn connects(from: &Node, to: &Node, address: &str, port: u16) -> bool {
    let address: IpAddr = address.parse().unwrap();
    let listener = to.machine.run(move || TcpListener::bind((address, port)).unwrap());
    let at = listener.local_addr().unwrap();
    from.machine.run(move || TcpStream::connect_timeout(&at, Duration::from_millis(700)).is_ok())
}

#[test]
fn a_peer_reaches_the_ports_the_rules_name_and_no_others_and_its_own_answers_come_back() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    lets_in(&a, 1, &[]);
    lets_in(&b, 2, &[7000, 7001]);
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("a datagram to an open port", LIMIT, || reaches(&at_a, &at_b, 100));
    assert!(reaches(&at_b, &at_a, 101), "an answer comes in although nothing else may");
    for address in ["100.64.0.2", "fd7a:115c:a1e0::2"] {
        assert!(connects(&a, &b, address, 7001) && !connects(&a, &b, address, 7002), "{address}");
        assert!(ping(&a, address, 56), "an echo request needs any rule");
    }
    for address in ["100.64.0.1", "fd7a:115c:a1e0::1"] {
        assert!(!connects(&b, &a, address, 7001) && !ping(&b, address, 56), "{address} lets nothing in");
    }
    assert!(a.counters().filtered > 0 && b.counters().filtered > 0);
    tcp_both_ways(&a, &b, "100.64.0.2", 3_000_000);
    // The ports are closed: nothing new comes in, and what b has sent is answered as before.
    lets_in(&b, 2, &[22]);
    assert!(!connects(&a, &b, "100.64.0.2", 7001));
    assert!(reaches(&at_a, &at_b, 102));
}

#[test]
fn before_there_is_a_filter_nothing_comes_in() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    b.with(|engine| engine.set_filter(Filter::default()));
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    assert!(!reaches(&at_a, &at_b, 100));
    eventually("the filter to have dropped it", LIMIT, || b.counters().filtered > 0);
    b.with(|engine| engine.set_filter(Filter::open()));
    assert!(reaches(&at_a, &at_b, 101));
}
