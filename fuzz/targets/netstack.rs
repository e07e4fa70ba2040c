//! Packets of peers as the stack of a node without a TUN takes them: each alone, and segments one after the other on one connection.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pvemesh::netstack::arrival::{Arrival, read, transport};
use pvemesh::netstack::datagram::{Unreachable, unreachable};
use pvemesh::netstack::{Connection, Ends, Reassembly};
use pvemesh::time::Time;

/// An IPv4 packet of a peer's with this in it, behind a header that is right.
fn packet(ends: Ends, segment: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + segment.len()).unwrap_or(u16::MAX);
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    header[2..4].copy_from_slice(&length.to_be_bytes());
    for end in [ends.remote, ends.local] {
        let std::net::IpAddr::V4(ip) = end.ip() else { unreachable!() };
        header.extend(ip.octets());
    }
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    header.extend_from_slice(segment);
    header
}

fuzz_target!(|data: &[u8]| {
    let _ = read(data, true);
    let _ = unreachable(data, Unreachable::Port);
    let ends = Ends { local: "10.0.0.1:80".parse().unwrap(), remote: "100.64.0.1:40000".parse().unwrap() };
    let mut now = Time::default();
    let mut connection = Connection::asked_for(ends, 4096, 7, now);
    connection.admit();
    let mut reassembly = Reassembly::default();
    let mut sequence = 0;
    // A byte says how long each segment is, and what is done besides.
    let mut rest = data;
    while let Some((&how, after)) = rest.split_first() {
        let (body, after) = after.split_at(after.len().min(usize::from(how >> 1)));
        rest = after;
        now = now + Duration::from_millis(u64::from(how) * 20);
        let mut segment = [&40_000_u16.to_be_bytes()[..], &80_u16.to_be_bytes(), body].concat();
        // Numbers that fit are what a fuzzer does not find by itself.
        if how % 2 == 0 && segment.len() >= 20 {
            segment[4..8].copy_from_slice(&u32::to_be_bytes(sequence));
            sequence = sequence.wrapping_add(1);
        }
        let packet = packet(ends, &segment);
        match read(&packet, true) {
            Ok(Arrival::Tcp { .. }) => {
                let mut sent = 0;
                connection.arrive(now, &packet, &|| true, |_| sent += 1);
                assert!(sent < 100, "{sent} packets for one");
            }
            Ok(Arrival::Fragment(fragment)) => {
                if let Some(whole) = reassembly.add(now, &fragment) {
                    let _ = transport(fragment.of.remote, fragment.of.local, fragment.of.protocol.into(), &whole, true);
                }
            }
            _ => {}
        }
        if let Ok(Arrival::Fragment(fragment)) = read(body, true) {
            let _ = reassembly.add(now, &fragment);
        }
        match how % 5 {
            0 => drop(connection.write(body)),
            1 => drop(connection.read(&mut [0; 64])),
            2 if how > 250 => connection.close(),
            3 if how > 250 => connection.abandon(),
            _ => {}
        }
        connection.depart(now, &|| how % 7 != 0, |_| ());
        let _ = connection.deadline(now);
    }
});
