//! What the mesh programs say to one another inside the tunnel, and what of it is believed.

use std::time::Instant;

use pvemesh::filter::{FilterConfig, RefusedFlow};
use pvemesh::sys::engine::InsidePong;
use pvemesh::wire::control::{FilterRule, NetPortRange, PortRange};
use pvemesh::wire::tsmp::Reason;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::oneshot::error::TryRecvError;

use super::*;

const TSMP: i32 = 99;

/// What node `n` lets in, if everything is; it carries the network 10.9.0.0/16.
fn config(n: u8) -> FilterConfig {
    let all = NetPortRange { ip: "*".to_owned(), ports: PortRange { first: 0, last: 65535 } };
    FilterConfig {
        rules: vec![FilterRule { src_ips: vec!["*".to_owned()], dst_ports: vec![all], ..FilterRule::default() }],
        addresses: peer(n, &[]).allowed_ips,
        subnets: vec!["10.9.0.0/16".parse().unwrap()],
        ..FilterConfig::default()
    }
}

fn set(node: &Node, config: &FilterConfig) {
    node.with(|engine| engine.set_filter(Filter::new(config)));
}

fn pong(node: &Node, from: &str, to: &str) -> Option<InsidePong> {
    let mut answer = node.with(|engine| engine.ping_inside(from.parse().unwrap(), to.parse().unwrap())).unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    loop {
        match answer.try_recv() {
            Ok(pong) => return Some(pong),
            Err(TryRecvError::Empty) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => return None,
        }
    }
}

/// Sends such packets as a program of this machine does, so many, from one address to another.
fn send(node: &Node, from: &str, to: &str, body: &[u8], count: usize) {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let body = body.to_vec();
    node.machine.run(move || {
        let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(TSMP))).unwrap();
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0))).unwrap();
        for _ in 0..count {
            socket.send_to(&body, &SockAddr::from(SocketAddr::new(to, 0))).unwrap();
        }
    });
}

/// What this machine's system gets of the protocol.
fn listen(node: &Node) -> Socket {
    let socket = node.machine.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(TSMP))).unwrap());
    socket.set_nonblocking(true).unwrap();
    socket
}

fn heard_nothing(mut socket: &Socket) -> bool {
    socket.read(&mut [0; 2048]).is_err()
}

fn refused(node: &Node) -> Vec<RefusedFlow> {
    node.with(|engine| engine.peers().iter().flat_map(|peer| peer.refused.iter().map(|(flow, _)| *flow)).collect())
}

fn tries(from: &Node, to: &str, port: u16) {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    from.machine.run(move || {
        let _ = TcpStream::connect_timeout(&to, Duration::from_millis(100));
    });
}

#[test]
fn a_ping_is_answered_by_the_mesh_program_whatever_the_filter_says_with_the_port_of_its_peer_api() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    set(&a, &config(1));
    let system = listen(&b);
    set(&b, &FilterConfig { rules: Vec::new(), doors: vec!["100.64.0.2:58437".parse().unwrap()], ..config(2) });
    let first = pong(&a, "100.64.0.1", "100.64.0.2").expect("a session is made for it");
    assert_eq!(first.peer_api, Some(58437));
    let second = pong(&a, "100.64.0.1", "100.64.0.2").unwrap();
    assert!(second.latency < Duration::from_secs(1), "{second:?}");
    assert_eq!(second.path.direct(), Some("192.0.2.2:41641".parse().unwrap()));
    let v6 = pong(&a, "fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2").unwrap();
    assert_eq!(v6.peer_api, None, "none listens at that address");
    // Shields-up is for connections.
    set(&b, &FilterConfig { shields_up: true, ..config(2) });
    assert!(pong(&a, "100.64.0.1", "100.64.0.2").is_some());
    let nowhere = a.with(|engine| engine.ping_inside("100.64.0.1".parse().unwrap(), "100.64.0.9".parse().unwrap()));
    assert!(nowhere.unwrap_err().to_string().contains("no node has 100.64.0.9"));
    let mixed = a.with(|engine| engine.ping_inside("100.64.0.1".parse().unwrap(), "fd7a:115c:a1e0::2".parse().unwrap()));
    assert!(mixed.is_err());
    assert!(heard_nothing(&system), "the system has no part in it");
    assert_eq!((b.counters().tun_out, b.counters().unsaid), (0, 0), "{:?}", b.counters());
}

#[test]
fn a_flood_of_pings_is_not_answered_by_a_flood() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    // A node whose programs may say anything: its own mesh program does not hold them back.
    a.with(|engine| engine.set_filter(Filter::open()));
    set(&b, &config(2));
    assert!(pong(&a, "100.64.0.1", "100.64.0.2").is_some());
    let started = Instant::now();
    for _ in 0..20 {
        send(&a, "100.64.0.1", "100.64.0.2", b"pabcdefgh", 50);
    }
    eventually("all pings to have come", LIMIT, || b.counters().unsaid + a.counters().unasked >= 900);
    let answers = a.counters().unasked;
    let most = 11 + 10 * (started.elapsed().as_secs() + 1);
    assert!((9..=most).contains(&answers), "{answers} answers, at most {most} would do");
    // Such as nobody knows are dropped too, and the peer still answers when the flood is over.
    send(&a, "100.64.0.1", "100.64.0.2", b"zabcdefgh", 3);
    eventually("the unknown ones to be dropped", LIMIT, || b.counters().junk == 3);
    eventually("an answer", LIMIT, || pong(&a, "100.64.0.1", "100.64.0.2").is_some());
    assert_eq!(b.counters().tun_out, 0);
}

#[test]
fn who_is_refused_learns_which_connection_was_and_why() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    set(&a, &config(1));
    let lan = |n| PeerConfig {
        allowed_ips: [peer(n, &[]).allowed_ips, vec!["10.9.0.0/16".parse().unwrap()]].concat(),
        ..peer(n, &["192.0.2.2:41641"])
    };
    a.peers(&[lan(2)]);
    a.machine.ip("route add 10.9.0.0/16 dev pm0 src 100.64.0.1");
    let closed = FilterConfig { rules: Vec::new(), ..config(2) };
    let cases = [
        (closed.clone(), "100.64.0.2", 22, Reason::Policy),
        (closed.clone(), "fd7a:115c:a1e0::2", 23, Reason::Policy),
        (closed, "10.9.1.2", 24, Reason::Policy),
        (FilterConfig { shields_up: true, ..config(2) }, "100.64.0.2", 25, Reason::ShieldsUp),
        (FilterConfig { forwards: pvemesh::filter::Forwards { v4: false, v6: true }, ..config(2) }, "10.9.1.2", 26, Reason::NotForwarded),
    ];
    for (config, to, port, reason) in cases {
        set(&b, &config);
        tries(&a, to, port);
        let expected = (6, SocketAddr::new(to.parse().unwrap(), port), reason);
        eventually(&format!("{expected:?}"), LIMIT, || {
            refused(&a).last().is_some_and(|flow| (flow.protocol, flow.to, flow.reason) == expected)
        });
    }
    assert!(refused(&a).len() <= 4, "a few are remembered");
    // What is let in is not refused, and of what is no connection nothing is said.
    let before = refused(&a);
    set(&b, &config(2));
    tries(&a, "100.64.0.2", 27);
    set(&b, &FilterConfig { rules: Vec::new(), ..config(2) });
    assert!(!reaches(&a.udp("100.64.0.1"), &b.udp("100.64.0.2"), 100));
    assert!(pong(&a, "100.64.0.1", "100.64.0.2").is_some(), "it comes behind what else b had to say");
    assert_eq!(refused(&a), before);
    assert!(refused(&b).is_empty());
}

#[test]
fn a_refusal_is_believed_of_the_node_that_has_the_address_alone_and_for_what_came_from_here() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    a.with(|engine| engine.set_filter(Filter::open()));
    set(&b, &config(2));
    assert!(pong(&a, "100.64.0.1", "100.64.0.2").is_some());
    let reject = [b'!', 6, b'A', 0x9c, 0x40, 0, 22];
    // As if node 9, whose address a has taken, had refused.
    a.machine.ip("addr add 100.64.0.9/32 dev pm0");
    let before = b.counters();
    send(&a, "100.64.0.9", "100.64.0.2", &reject, 1);
    eventually("the lie to be dropped", LIMIT, || b.counters().not_allowed == before.not_allowed + 1);
    // A ping in another's name has no answer, which would go to the other.
    send(&a, "100.64.0.9", "100.64.0.2", b"pabcdefgh", 1);
    eventually("the ping to be dropped", LIMIT, || b.counters().not_allowed == before.not_allowed + 2);
    // For something that never was b's.
    b.peers(&[PeerConfig { allowed_ips: vec!["100.64.0.0/24".parse().unwrap()], ..peer(1, &["192.0.2.1:41641"]) }]);
    a.peers(&[PeerConfig { allowed_ips: vec!["100.64.0.0/24".parse().unwrap()], ..peer(2, &["192.0.2.2:41641"]) }]);
    send(&a, "100.64.0.1", "100.64.0.77", &reject, 1);
    eventually("what is not for b to be dropped", LIMIT, || b.counters().unasked == before.unasked + 1);
    assert!(refused(&b).is_empty());
    send(&a, "100.64.0.1", "100.64.0.2", &reject, 2);
    eventually("what a says of itself", LIMIT, || {
        refused(&b).iter().any(|flow| flow.to == "100.64.0.1:22".parse().unwrap() && flow.times == 2)
    });
}

#[test]
fn the_machines_own_programs_say_nothing_in_the_mesh_programs_name() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    set(&a, &config(1));
    set(&b, &config(2));
    let system = listen(&b);
    assert!(pong(&a, "100.64.0.1", "100.64.0.2").is_some());
    let (mine, theirs) = (a.counters(), b.counters());
    for (from, to) in [("100.64.0.1", "100.64.0.2"), ("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2")] {
        send(&a, from, to, b"pabcdefgh", 5);
        send(&a, from, to, &[b'!', 6, b'A', 0, 1, 0, 22], 5);
        send(&a, from, to, &[b'a'; 33], 5);
    }
    eventually("all of them to be dropped", LIMIT, || a.counters().bad_tun == mine.bad_tun + 30);
    assert!(reaches(&a.udp("100.64.0.1"), &b.udp("100.64.0.2"), 100), "what is no such message goes");
    assert_eq!((b.counters().junk, b.counters().unasked, b.counters().unsaid), (theirs.junk, theirs.unasked, theirs.unsaid));
    assert!(refused(&b).is_empty() && heard_nothing(&system));
}
