//! Datagrams, echoes and messages of every size, compared byte for byte.

use std::io::BufReader;
use std::time::{SystemTime, UNIX_EPOCH};

use socket2::{Domain, Protocol, Socket, Type};

use super::*;

/// The largest UDP or ICMP payload over IPv4; for TCP the largest size looked at is the largest packet's.
const LARGEST: usize = 65_507;
const LARGEST_PACKET: usize = 65_535;
/// What fits a packet of the mesh (1,280 bytes less headers): of UDP, of a fragment, of a TCP segment with timestamps.
const STEPS: [usize; 3] = [1252, 1256, 1228];

/// Every size, or those about which something changes and some at random (the seed is printed; PVEMESH_SEED repeats it).
fn sizes(every: bool, largest: usize) -> Vec<usize> {
    if every {
        return (1..=largest).collect();
    }
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("PVEMESH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(fresh);
    println!("PVEMESH_SEED={seed}");
    let mut state = seed | 1;
    let mut random = || {
        // Xorshift, after Marsaglia: good enough to choose sizes.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        1 + state as usize % largest
    };
    let edges = STEPS.iter().flat_map(|step| [1, 2, 3, 20, 51].map(|n| n * step)).flat_map(|edge| edge - 2..=edge + 2);
    let mut sizes: Vec<usize> = (1..=24).chain(edges).chain(largest - 1..=largest).collect();
    sizes.extend((0..100).map(|_| random()));
    sizes.retain(|n| *n <= largest);
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn udp(a: &Node, b: &Node, every: bool) {
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 10));
    for length in sizes(every, LARGEST) {
        eventually(&format!("{length} bytes there"), LIMIT, || reaches(&at_a, &at_b, length));
        eventually(&format!("{length} bytes back"), LIMIT, || reaches(&at_b, &at_a, length));
    }
}

/// Echoes, which the far kernel sends back: each is carried twice.
fn icmp(a: &Node, every: bool) {
    let socket = a.machine.run(|| {
        // Who may have a socket for echoes, by group.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).unwrap();
        socket.connect(&"100.64.0.2:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket
    });
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let echoed = |length: usize| {
        let mut message = vec![8, 0, 0, 0, 0, 0, (length >> 8) as u8, length as u8];
        message.extend(bytes(length, length));
        socket.send(&message).unwrap();
        let mut got = vec![0; LARGEST_PACKET + 1];
        while let Ok(count) = (&socket).read(&mut got) {
            // The kernel's identifier and checksum stand before the number.
            if got[0] == 0 && got[6..count] == message[6..] {
                return true;
            }
        }
        false
    };
    for length in sizes(every, LARGEST) {
        eventually(&format!("an echo of {length} bytes"), LIMIT, || echoed(length));
    }
}

/// Messages on one connection, each sent back before the next, so that each ends a segment of its own.
fn tcp(a: &Node, b: &Node, every: bool) {
    let listener = b.machine.run(|| TcpListener::bind("100.64.0.2:7002").unwrap());
    let to = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut length = [0; 4];
        let mut message = Vec::new();
        while reader.read_exact(&mut length).is_ok() {
            message.resize(u32::from_be_bytes(length) as usize, 0);
            reader.read_exact(&mut message).unwrap();
            stream.write_all(&message).unwrap();
        }
    });
    let mut stream = a.machine.run(move || TcpStream::connect_timeout(&to, LIMIT).unwrap());
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    for length in sizes(every, LARGEST_PACKET) {
        let message = bytes(length, length * 3);
        stream.write_all(&[&(length as u32).to_be_bytes()[..], &message].concat()).unwrap();
        let mut got = vec![0; length];
        stream.read_exact(&mut got).unwrap();
        assert!(got == message, "a message of {length} bytes came back changed");
    }
    drop(stream);
    server.join().unwrap();
}

fn all(offload: [bool; 2], every: bool) {
    let (a, b) = mesh(offload);
    udp(&a, &b, every);
    icmp(&a, every);
    tcp(&a, &b, every);
    for counters in [a.counters(), b.counters()] {
        println!("{counters:?}");
        assert_eq!((counters.forged, counters.malformed, counters.bad_tun, counters.write_failed), (0, 0, 0, 0), "{counters:?}");
    }
}

#[test]
fn udp_icmp_and_tcp_of_sizes_to_the_largest_pass_unchanged_with_offloads() {
    need_root!(read);
    all([true, true], false);
}

#[test]
fn udp_icmp_and_tcp_of_sizes_to_the_largest_pass_unchanged_from_an_end_with_offloads_to_one_without() {
    need_root!(read);
    all([false, true], false);
}

#[test]
#[ignore = "every size from 1 to 65,535: some minutes"]
fn udp_icmp_and_tcp_of_every_size_pass_unchanged() {
    need_root!(read);
    all([true, true], true);
}
