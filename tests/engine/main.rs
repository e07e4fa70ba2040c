//! Two packet engines in two network namespaces: what goes in at one end comes out at the other, and nothing else does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "test code")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, missing_docs, unreachable_pub, reason = "test code")]

mod netns;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use netns::{Machine, eventually, ip, lacking, pair};
use pvemesh::filter::Filter;
use pvemesh::ident::{DiscoPrivate, NodeId, NodePrivate};
use pvemesh::node::PeerConfig;
use pvemesh::sys::engine::{Counters, Engine, EngineOptions, TunOffload};

const PORT: u16 = 41641;
const LIMIT: Duration = Duration::from_secs(20);

/// Tests run side by side, but for one that looks at the memory of the whole process.
static TURN: RwLock<()> = RwLock::new(());

macro_rules! need_root {
    ($turn:ident) => {
        if let Some(reason) = lacking() {
            println!("skipped: {reason}");
            return;
        }
        let _turn = TURN.$turn().unwrap_or_else(PoisonError::into_inner);
    };
}

mod allocations;
mod disco;
mod fallbacks;
mod filter;
mod shapes;
mod sites;
mod sizes;
mod tsmp;

fn key(n: u8) -> NodePrivate {
    NodePrivate::from_seed([n; 32])
}

fn disco(n: u8) -> DiscoPrivate {
    DiscoPrivate::from_seed([100 + n; 32])
}

fn peer(n: u8, endpoints: &[&str]) -> PeerConfig {
    PeerConfig {
        id: NodeId(n.into()),
        key: key(n).public(),
        disco: None,
        name: format!("node-{n}"),
        allowed_ips: vec![format!("100.64.0.{n}/32").parse().unwrap(), format!("fd7a:115c:a1e0::{n}/128").parse().unwrap()],
        endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
        home: None,
        ends: None,
        v4: Some(Ipv4Addr::new(100, 64, 0, n)),
    }
}

/// A machine with an engine; node `n` has the addresses 100.64.0.n and fd7a:115c:a1e0::n.
struct Node {
    machine: Machine,
    engine: Arc<Mutex<Option<Engine>>>,
    n: u8,
    offload: bool,
}

impl Node {
    fn new(machine: Machine, n: u8, offload: bool) -> Self {
        let node = Self { machine, engine: Arc::default(), n, offload };
        node.start();
        node
    }

    fn start(&self) {
        self.start_as(disco(self.n));
    }

    fn start_as(&self, disco: DiscoPrivate) {
        let (engine, n) = (Arc::clone(&self.engine), self.n);
        let offload = if self.offload { TunOffload::TcpAndUdp } else { TunOffload::None };
        self.machine.run(move || {
            let options = EngineOptions { interface: "pm0".into(), mtu: 1280, port: PORT, key: key(n), disco, mark: None, offload };
            // A process that another test has just forked may hold the last engine's TUN for a moment.
            eventually("the TUN to be free", LIMIT, || match Engine::start(options.clone()) {
                Ok(started) => {
                    started.set_filter(Filter::open());
                    *engine.lock().unwrap() = Some(started);
                    true
                }
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{error}");
                    false
                }
            });
            ip(&format!("addr add 100.64.0.{n}/32 dev pm0"));
            ip(&format!("addr add fd7a:115c:a1e0::{n}/128 dev pm0 nodad"));
            ip("route add 100.64.0.0/10 dev pm0");
            ip("route add fd7a:115c:a1e0::/48 dev pm0");
        });
    }

    fn stop(&self) {
        self.engine.lock().unwrap().take().unwrap().stop();
    }

    fn with<T>(&self, look: impl FnOnce(&Engine) -> T) -> T {
        look(self.engine.lock().unwrap().as_ref().unwrap())
    }

    fn peers(&self, peers: &[PeerConfig]) {
        self.with(|engine| engine.set_peers(peers));
    }

    fn counters(&self) -> Counters {
        self.with(Engine::counters)
    }

    fn endpoint(&self) -> Option<SocketAddr> {
        self.with(|engine| engine.peers().first().and_then(|p| p.endpoint))
    }

    /// A UDP socket in this machine, bound to an address of the node.
    fn udp(&self, address: &str) -> UdpSocket {
        let address: IpAddr = address.parse().unwrap();
        let socket = self.machine.run(move || UdpSocket::bind((address, 7000)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket
    }
}

/// Two engines that know each other.
fn mesh(offload: [bool; 2]) -> (Node, Node) {
    let (a, b) = pair();
    let (a, b) = (Node::new(a, 1, offload[0]), Node::new(b, 2, offload[1]));
    a.peers(&[peer(2, &["192.0.2.2:41641"])]);
    b.peers(&[peer(1, &["192.0.2.1:41641"])]);
    (a, b)
}

fn bytes(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|n| (n.wrapping_mul(31) ^ (n >> 8) ^ salt) as u8).collect()
}

/// Whether a datagram arrives, byte for byte, tried again until the limit.
fn reaches(from: &UdpSocket, to: &UdpSocket, length: usize) -> bool {
    let sent = bytes(length, length);
    from.send_to(&sent, to.local_addr().unwrap()).unwrap();
    let mut got = vec![0; 65_536];
    while let Ok((count, _)) = to.recv_from(&mut got) {
        if got[..count] == sent {
            return true;
        }
    }
    false
}

fn udp_of_many_sizes(a: &Node, b: &Node) {
    for (from, to) in [("100.64.0.1", "100.64.0.2"), ("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2")] {
        let (from, to) = (a.udp(from), b.udp(to));
        eventually("the first datagram", LIMIT, || reaches(&from, &to, 10));
        for length in [0, 1, 2, 3, 100, 1199, 1200, 1231, 1232, 1251, 1252, 1253, 1280, 2000, 9000, 40_001, 65_000] {
            eventually(&format!("{length} bytes there"), LIMIT, || reaches(&from, &to, length));
            eventually(&format!("{length} bytes back"), LIMIT, || reaches(&to, &from, length));
        }
    }
}

fn tcp_both_ways(a: &Node, b: &Node, address: &str, length: usize) {
    let address: IpAddr = address.parse().unwrap();
    let listener = b.machine.run(move || TcpListener::bind((address, 7001)).unwrap());
    let to = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || stream.write_all(&bytes(length, 2)).unwrap());
        let mut got = vec![0; length];
        reader.read_exact(&mut got).unwrap();
        sender.join().unwrap();
        got
    });
    let mut stream = a.machine.run(move || TcpStream::connect_timeout(&to, LIMIT).unwrap());
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || stream.write_all(&bytes(length, 1)).unwrap());
    let mut got = vec![0; length];
    reader.read_exact(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == bytes(length, 2), "the answer differs");
    assert!(server.join().unwrap() == bytes(length, 1), "what arrived differs");
}

fn ping(a: &Node, address: &str, size: usize) -> bool {
    let arguments = format!("-c 1 -W 1 -s {size} {address}");
    a.machine.run(move || {
        let output = std::process::Command::new("ping").args(arguments.split_whitespace()).output().unwrap();
        output.status.success()
    })
}

fn everything_passes(offload: [bool; 2]) {
    let (a, b) = mesh(offload);
    udp_of_many_sizes(&a, &b);
    for (address, length) in [("100.64.0.2", 20_000_000), ("fd7a:115c:a1e0::2", 20_000_000), ("100.64.0.2", 1)] {
        tcp_both_ways(&a, &b, address, length);
    }
    for size in [0, 56, 1252, 1253, 8000] {
        for address in ["100.64.0.2", "fd7a:115c:a1e0::2"] {
            eventually(&format!("ping {address} with {size} bytes"), LIMIT, || ping(&a, address, size));
        }
    }
    println!("{:?}\n{:?}", a.counters(), b.counters());
    for node in [&a, &b] {
        let counters = node.counters();
        for (what, n) in [("forged", counters.forged), ("malformed", counters.malformed), ("not allowed", counters.not_allowed)] {
            assert_eq!(n, 0, "{what}");
        }
    }
}

#[test]
fn udp_tcp_and_icmp_pass_byte_for_byte_with_offloads() {
    need_root!(read);
    everything_passes([true, true]);
}

#[test]
fn udp_tcp_and_icmp_pass_byte_for_byte_without_offloads() {
    need_root!(read);
    everything_passes([false, false]);
}

#[test]
fn an_engine_with_offloads_talks_to_one_without() {
    need_root!(read);
    everything_passes([true, false]);
}

#[test]
fn a_restarted_engine_is_reached_again_at_once() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    let from = a.udp("100.64.0.1");
    eventually("the first datagram", LIMIT, || reaches(&from, &b.udp("100.64.0.2"), 100));
    b.stop();
    b.start();
    b.peers(&[peer(1, &["192.0.2.1:41641"])]);
    // WireGuard alone would notice after 15 s.
    let to = b.udp("100.64.0.2");
    eventually("a datagram after the restart", Duration::from_secs(8), || reaches(&from, &to, 100));
}

#[test]
fn a_handshake_that_came_before_the_map_is_answered_when_it_arrives() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    b.peers(&[]);
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    assert!(!reaches(&at_a, &at_b, 100));
    assert_eq!(b.counters().stranger, 1);
    b.peers(&[peer(1, &[])]);
    // WireGuard alone would try again after 5 s.
    eventually("the datagram that waited", Duration::from_secs(2), || reaches(&at_a, &at_b, 101));
    assert_eq!(a.counters().initiations, 1);
}

#[test]
fn a_path_with_a_small_mtu_carries_the_mesh_in_fragments() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    a.machine.ip("link set data-a mtu 1280");
    b.machine.ip("link set data-b mtu 1280");
    tcp_both_ways(&a, &b, "100.64.0.2", 3_000_000);
    assert_eq!(a.counters().send_failed, 0, "{:?}", a.counters());
}

#[test]
fn the_mesh_goes_over_ipv6_too() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    a.peers(&[peer(2, &["[fd00::2]:41641"])]);
    b.peers(&[peer(1, &["[fd00::1]:41641"])]);
    tcp_both_ways(&a, &b, "fd7a:115c:a1e0::2", 3_000_000);
    assert_eq!(a.endpoint(), Some("[fd00::2]:41641".parse().unwrap()));
    a.machine.ip("link set data-a mtu 1280");
    b.machine.ip("link set data-b mtu 1280");
    tcp_both_ways(&a, &b, "100.64.0.2", 3_000_000);
}

#[test]
fn the_path_follows_a_peer_to_its_new_address() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    assert_eq!(a.endpoint(), Some("192.0.2.2:41641".parse().unwrap()));
    b.machine.ip("addr add 192.0.2.77/24 dev data-b");
    b.machine.ip("addr del 192.0.2.2/24 dev data-b");
    b.machine.ip("addr replace 192.0.2.77/24 dev data-b");
    eventually("a datagram from the new address", LIMIT, || reaches(&at_b, &at_a, 100));
    eventually("a datagram to the new address", LIMIT, || reaches(&at_a, &at_b, 100));
    assert_eq!(a.endpoint(), Some("192.0.2.77:41641".parse().unwrap()));
}

#[test]
fn a_peer_that_is_removed_is_cut_off_and_the_others_are_not() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    // The same peers again: the session stays.
    let before = a.counters().initiations;
    a.peers(&[peer(2, &["192.0.2.2:41641"]), peer(3, &["192.0.2.3:41641"])]);
    assert!(reaches(&at_a, &at_b, 100));
    assert_eq!(a.counters().initiations, before);
    b.peers(&[]);
    assert!(!reaches(&at_a, &at_b, 100));
    assert!(!reaches(&at_b, &at_a, 100));
    assert!(b.counters().no_peer > 0 && b.counters().no_session > 0, "{:?}", b.counters());
}

#[test]
fn a_packet_from_an_address_that_is_not_the_peers_is_dropped() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    a.machine.ip("addr add 100.64.0.9/32 dev pm0");
    let liar = a.udp("100.64.0.9");
    assert!(!reaches(&liar, &at_b, 100));
    assert_eq!(b.counters().not_allowed, 1);
    assert!(reaches(&at_a, &at_b, 101));
}

#[test]
fn a_flood_of_junk_is_counted_and_changes_nothing() {
    need_root!(write);
    let (a, b) = mesh([true, true]);
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    let before = resident();
    let junk = a.machine.run(|| UdpSocket::bind("192.0.2.1:0").unwrap());
    let target = "192.0.2.2:41641";
    for length in (0..3000).chain([9000, 40_000, 65_507]) {
        junk.send_to(&bytes(length, length * 7), target).unwrap();
        // The same with a beginning that gets past the first look.
        for kind in 1..=4 {
            let mut message = bytes(length.max(4), length);
            message[..4].copy_from_slice(&[kind, 0, 0, 0]);
            junk.send_to(&message, target).unwrap();
        }
        if length % 64 == 0 {
            eventually("a datagram during the flood", LIMIT, || reaches(&at_a, &at_b, 100 + length % 1000));
        }
    }
    let counters = b.counters();
    println!("{counters:?}");
    assert!(counters.junk > 10_000, "{counters:?}");
    assert!(counters.no_session > 2000, "{counters:?}");
    assert!(counters.forged >= 2, "an initiation and a response with a wrong checksum: {counters:?}");
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 << 20, "grew by {grown} bytes");
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
