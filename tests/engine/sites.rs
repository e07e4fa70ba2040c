//! Networks of sites ("4via6"): the far end has a machine of IPv4 alone, the near end knows it by IPv6.

use std::net::Ipv6Addr;

use pvemesh::tunnel::translate::SitesConfig;

use super::*;

const SITE: &str = "fd7a:115c:a1e0:b1a:0:7:10.7.0.0/120";
const MACHINE: &str = "10.7.0.5";
const MACHINE_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0x0b1a, 0, 7, 0x0a07, 5);
/// Enough for super-packets of full size.
const BULK: usize = 20_000_000;

/// The second node carries the site, whose machine is itself.
fn carried(offload: [bool; 2]) -> (Node, Node) {
    let (a, b) = mesh(offload);
    let router = peer(2, &["192.0.2.2:41641"]);
    let allowed_ips = router.allowed_ips.iter().copied().chain([SITE.parse().unwrap()]).collect();
    a.peers(&[PeerConfig { allowed_ips, ..router }]);
    b.with(|engine| {
        engine.set_sites(&SitesConfig {
            routes: vec![SITE.parse().unwrap()],
            own: Some("fd7a:115c:a1e0::2".parse().unwrap()),
            kept_out: vec!["10.7.0.6".parse().unwrap()],
        });
    });
    b.machine.ip("addr add 10.7.0.5/32 dev lo");
    (a, b)
}

/// Bytes there and bytes back, at the same time.
fn exchange(a: &Node, b: &Node) {
    let listener = b.machine.run(|| TcpListener::bind((MACHINE, 7001)).unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), IpAddr::from([100, 64, 0, 1]));
        let mut reader = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || stream.write_all(&bytes(BULK, 2)).unwrap());
        let mut got = vec![0; BULK];
        reader.read_exact(&mut got).unwrap();
        sender.join().unwrap();
        assert!(got == bytes(BULK, 1), "what arrived differs");
    });
    let mut stream = a.machine.run(|| TcpStream::connect_timeout(&(MACHINE_V6, 7001).into(), LIMIT).unwrap());
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || stream.write_all(&bytes(BULK, 1)).unwrap());
    let mut got = vec![0; BULK];
    reader.read_exact(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == bytes(BULK, 2), "the answer differs");
    server.join().unwrap();
}

/// Whether a datagram comes back.
fn echoed(from: &UdpSocket, length: usize) -> bool {
    let sent = bytes(length, length);
    from.send_to(&sent, (MACHINE_V6, 7002)).unwrap();
    let mut got = vec![0; 65_536];
    while let Ok((count, _)) = from.recv_from(&mut got) {
        if got[..count] == sent {
            return true;
        }
    }
    false
}

fn everything_is_translated(offload: [bool; 2]) {
    let (a, b) = carried(offload);
    let echo = b.machine.run(|| UdpSocket::bind((MACHINE, 7002)).unwrap());
    let (stop, stopped) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), echo.try_clone().unwrap());
    let ending = Arc::clone(&stop);
    let echoing = std::thread::spawn(move || {
        stopped.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut buffer = vec![0; 65_536];
        while !ending.load(std::sync::atomic::Ordering::Relaxed) {
            if let Ok((length, from)) = stopped.recv_from(&mut buffer) {
                let _ = stopped.send_to(&buffer[..length], from);
            }
        }
    });
    let from = a.udp("fd7a:115c:a1e0::1");
    eventually("the first datagram", LIMIT, || echoed(&from, 10));
    for length in [0, 1, 2, 100, 1199, 1200, 1231, 1232, 1233, 1252, 1253, 2000, 9000, 40_001, 65_000] {
        eventually(&format!("{length} bytes there and back"), LIMIT, || echoed(&from, length));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    echoing.join().unwrap();
    let before = b.counters();
    exchange(&a, &b);
    let after = b.counters();
    println!("{after:?}");
    if offload[1] {
        let joined = (after.tun_out - before.tun_out) / (after.tun_writes - before.tun_writes).max(1);
        let cut = (after.tun_in - before.tun_in) / (after.tun_reads - before.tun_reads).max(1);
        assert!(joined >= 4 && cut >= 4, "super-packets both ways: {joined} packets a write, {cut} a read");
    }
    for size in [0, 56, 1232] {
        eventually(&format!("a ping of {size} bytes"), LIMIT, || ping(&a, &MACHINE_V6.to_string(), size));
    }
    // Plain IPv4 to the same node is as it was.
    assert!(ping(&a, "100.64.0.2", 56));
}

#[test]
fn a_sites_machine_is_reached_with_offloads() {
    need_root!(read);
    everything_is_translated([true, true]);
}

#[test]
fn a_sites_machine_is_reached_without_offloads() {
    need_root!(read);
    everything_is_translated([false, false]);
}

#[test]
fn what_may_not_be_reached_through_a_site_is_counted() {
    need_root!(read);
    let (a, b) = carried([true, true]);
    eventually("a ping", LIMIT, || ping(&a, &MACHINE_V6.to_string(), 56));
    b.machine.ip("addr add 10.7.0.6/32 dev lo");
    let before = b.counters().untranslated;
    assert!(!ping(&a, "fd7a:115c:a1e0:b1a:0:7:10.7.0.6", 56));
    assert_eq!(b.counters().untranslated, before + 1);
    // Nor is a peer translated that has no IPv4 address.
    b.peers(&[PeerConfig { v4: None, ..peer(1, &["192.0.2.1:41641"]) }]);
    assert!(!ping(&a, &MACHINE_V6.to_string(), 56));
    assert_eq!(b.counters().untranslated, before + 2);
}
