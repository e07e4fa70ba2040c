//! Packets of unusual shape: extension headers, options, fragments, checksums left out, ECN; and an MTU that changes.

use std::sync::atomic::{AtomicBool, Ordering};

use quinn_udp::{EcnCodepoint, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use super::*;

const V4: [[u8; 4]; 2] = [[100, 64, 0, 1], [100, 64, 0, 2]];
const V6: [&str; 2] = ["fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"];
const FROM: u16 = 7100;
const TO: u16 = 7000;

fn sum(parts: &[&[u8]]) -> u32 {
    let words = |part: &[u8]| part.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or_default())).sum::<u32>();
    parts.iter().map(|part| words(part)).sum()
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = sum(parts);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A UDP datagram from machine 1 to machine 2. `addresses` is what its checksum covers of the IP header; without, it has none.
fn datagram(payload: &[u8], addresses: Option<&[u8]>) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut udp = [FROM.to_be_bytes(), TO.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    udp.extend(payload);
    if let Some(addresses) = addresses {
        let sum = checksum(&[addresses, &[0, 17], &length.to_be_bytes(), &udp]);
        udp[6..8].copy_from_slice(&sum);
    }
    udp
}

fn v4(id: u16, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let mut packet = vec![0x40 | words as u8, 0];
    packet.extend(((words * 4 + payload.len()) as u16).to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, 17, 0, 0]);
    packet.extend(V4.concat());
    packet.extend(options);
    packet.extend(payload);
    packet
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(v6_addresses());
    packet.extend(payload);
    packet
}

fn v6_addresses() -> Vec<u8> {
    V6.iter().flat_map(|a| a.parse::<std::net::Ipv6Addr>().unwrap().octets()).collect()
}

/// Sends a packet as it is.
fn send(node: &Node, packet: &[u8]) {
    let packet = packet.to_vec();
    node.machine.run(move || {
        let (domain, to) = match packet[0] >> 4 {
            4 => (Domain::IPV4, SocketAddr::from((V4[1], 0))),
            _ => (Domain::IPV6, SocketAddr::new(V6[1].parse().unwrap(), 0)),
        };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
        socket.send_to(&packet, &to.into()).unwrap();
    });
}

/// Whether the packets, sent together, bring this payload to the far machine's socket.
fn bring(node: &Node, to: &UdpSocket, packets: &[Vec<u8>], payload: &[u8]) -> bool {
    for packet in packets {
        send(node, packet);
    }
    let mut got = vec![0; 65_536];
    while let Ok((count, from)) = to.recv_from(&mut got) {
        if got[..count] == *payload && from.port() == FROM {
            return true;
        }
    }
    false
}

/// All packets in which a payload can come, by what is special about them.
fn shapes(payload: &[u8], id: u16) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let with_sum = datagram(payload, Some(&V4.concat()));
    let options: [u8; 8] = [1, 1, 0x94, 4, 0, 0, 1, 0];
    let padding: [u8; 6] = [1, 4, 0, 0, 0, 0];
    let six = datagram(payload, Some(&v6_addresses()));
    // Hop-by-hop, then destination options, then UDP; each is 8 bytes of padding.
    let extended = [&[60, 0][..], &padding, &[17, 0], &padding, &six].concat();
    let cut = (with_sum.len() / 2).next_multiple_of(8).min(1200);
    let fragments4 = vec![v4(id, (cut / 8) as u16, &[], &with_sum[cut..]), v4(id, 0x2000, &[], &with_sum[..cut])];
    let part6 = |offset: usize, more: bool, bytes: &[u8]| {
        let place = (offset as u16 | u16::from(more)).to_be_bytes();
        v6(44, &[&[17, 0], &place[..], &u32::from(id).to_be_bytes(), bytes].concat())
    };
    let fragments6 = vec![part6(cut, false, &six[cut..]), part6(0, true, &six[..cut])];
    vec![
        ("IPv4 without a UDP checksum", vec![v4(id, 0x4000, &[], &datagram(payload, None))]),
        ("IPv4 with options", vec![v4(id, 0, &options, &with_sum)]),
        ("IPv4 in fragments, the last one first", fragments4),
        ("IPv6 with two extension headers", vec![v6(0, &extended)]),
        ("IPv6 in fragments, the last one first", fragments6),
    ]
}

fn unusual_packets_arrive(offload: [bool; 2]) {
    let (a, b) = mesh(offload);
    let sockets = [b.udp("100.64.0.2"), b.udp(V6[1])];
    let first = a.udp("100.64.0.1");
    eventually("the first datagram", LIMIT, || reaches(&first, &sockets[0], 10));
    for (n, length) in [1, 2, 7, 500, 1100].into_iter().enumerate() {
        let payload = bytes(length, length);
        for (what, packets) in shapes(&payload, 100 + n as u16) {
            let to = &sockets[usize::from(packets[0][0] >> 4 == 6)];
            if packets.iter().any(|packet| packet.len() > 1280) || packets.len() > 1 && length < 16 {
                continue;
            }
            eventually(&format!("{what}, {length} bytes"), LIMIT, || bring(&a, to, &packets, &payload));
        }
    }
    // One that was damaged before it came here arrives damaged, so that the machine drops it: nothing makes a new checksum for it.
    let mut damaged = datagram(b"damaged", Some(&V4.concat()));
    damaged[8] ^= 1;
    let before = b.counters().tun_out;
    assert!(!bring(&a, &sockets[0], &[v4(9, 0, &[], &damaged)], b"eamaged"));
    assert!(b.counters().tun_out > before, "it was carried");
}

#[test]
fn extension_headers_options_fragments_and_missing_checksums_pass_with_offloads() {
    need_root!(read);
    unusual_packets_arrive([true, true]);
}

#[test]
fn extension_headers_options_fragments_and_missing_checksums_pass_without_offloads() {
    need_root!(read);
    unusual_packets_arrive([false, false]);
}

/// Datagrams of one flow with changing ECN bits: they may be cut from one super-packet, and be joined only with those alike.
fn congestion_marks_arrive(offload: [bool; 2]) {
    let (a, b) = mesh(offload);
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 10));
    let to = at_b.local_addr().unwrap();
    let sender = UdpSocketState::new(UdpSockRef::from(&at_a)).unwrap();
    // Sees packets with their IP headers, super-packets in one piece.
    let mut receiver = b.machine.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let marks = [None, Some(EcnCodepoint::Ect0), Some(EcnCodepoint::Ect1), Some(EcnCodepoint::Ce)];
    // Each says which mark it was sent with.
    let contents = marks.map(|mark| vec![mark.map_or(0, |mark| mark as u8); 900 * 8]);
    let mut arrived = [0_usize; 4];
    eventually("datagrams with each mark", LIMIT, || {
        for (mark, contents) in marks.into_iter().zip(&contents) {
            for part in contents.chunks(if offload[0] { contents.len() } else { 900 }) {
                let segment_size = offload[0].then_some(900);
                let transmit = Transmit { destination: to, ecn: mark, contents: part, segment_size, src_ip: None };
                sender.try_send(UdpSockRef::from(&at_a), &transmit).unwrap();
            }
        }
        let mut packet = vec![0; 65_536];
        while let Ok(length) = receiver.read(&mut packet) {
            let (tos, ours, payload) = (packet[1], packet[12..16] == V4[0] && length >= 928, &packet[28..length]);
            if ours {
                assert!(payload.iter().all(|sent| *sent == tos), "another mark than {tos}");
                arrived[usize::from(tos)] += payload.len() / 900;
            }
        }
        arrived.iter().all(|count| *count >= 64)
    });
}

#[test]
fn congestion_marks_arrive_as_they_were_sent_with_offloads() {
    need_root!(read);
    congestion_marks_arrive([true, true]);
}

#[test]
fn congestion_marks_arrive_as_they_were_sent_without_offloads() {
    need_root!(read);
    congestion_marks_arrive([false, false]);
}

#[test]
fn an_mtu_that_changes_while_data_flows_changes_no_byte() {
    need_root!(read);
    let (a, b) = mesh([true, true]);
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                for mtu in [1400, 576, 1280, 9000, 1280] {
                    // Below 1280 bytes Linux takes IPv6 off an interface; IPv4 goes on.
                    a.machine.ip(&format!("link set pm0 mtu {mtu}"));
                    b.machine.ip(&format!("link set pm0 mtu {}", 1280 + mtu % 7));
                    count += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            count
        });
        let (server, client) = (a.machine.run(|| TcpListener::bind("100.64.0.1:7003").unwrap()), &b);
        let to = server.local_addr().unwrap();
        let length = 20_000_000;
        let sent = scope.spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            stream.write_all(&bytes(length, 5)).unwrap();
        });
        let mut stream = client.machine.run(move || TcpStream::connect_timeout(&to, LIMIT).unwrap());
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut got = vec![0; length];
        let arrived = stream.read_exact(&mut got);
        done.store(true, Ordering::Relaxed);
        println!("{} changes of the MTU", changes.join().unwrap());
        arrived.unwrap();
        sent.join().unwrap();
        assert!(got == bytes(length, 5), "what arrived differs");
    });
}
