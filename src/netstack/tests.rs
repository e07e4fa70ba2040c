#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test code")]

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use proptest::prelude::*;

use super::arrival::{Arrival, Fragment, Useless, Whole, read, transport};
use super::datagram::{Unreachable, echo_reply, udp, unreachable};
use super::*;
use crate::time::Time;

const ROOM: usize = 64 * 1024;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ends(v6: bool) -> Ends {
    if v6 {
        Ends { local: address("[fd00::5]:80"), remote: address("[fd7a:115c:a1e0::9]:40000") }
    } else {
        Ends { local: address("192.168.50.7:80"), remote: address("100.64.0.9:40000") }
    }
}

fn turned(ends: Ends) -> Ends {
    Ends { local: ends.remote, remote: ends.local }
}

/// Two connections, and a link between them that loses each packet for which `lose` says so.
struct Pair<L> {
    now: Time,
    ours: Connection,
    peers: Connection,
    to_us: VecDeque<Vec<u8>>,
    to_peer: VecDeque<Vec<u8>>,
    lose: L,
}

impl<L: FnMut() -> bool> Pair<L> {
    /// The peer opens a connection to us.
    fn new(v6: bool, lose: L) -> Self {
        let now = Time::from_start(Duration::from_secs(1));
        let ours = Connection::asked_for(ends(v6), ROOM, 1, now);
        let peers = Connection::open(turned(ends(v6)), ROOM, 2, now);
        Self { now, ours, peers, to_us: VecDeque::new(), to_peer: VecDeque::new(), lose }
    }

    /// The packets that a departure stands for.
    fn cut(packets: &mut Vec<Vec<u8>>, departure: Departure<'_>) {
        let payload_at = usize::from(departure.transport_at) + 20;
        let Some(size) = departure.segment else { return packets.push(departure.packet.to_vec()) };
        let (headers, payload) = departure.packet.split_at(payload_at);
        for (index, part) in payload.chunks(usize::from(size.get())).enumerate() {
            let mut packet = [headers, part].concat();
            let at = payload_at - 16;
            let sequence = u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
            let sequence = sequence.wrapping_add(u32::try_from(index).unwrap() * u32::from(size.get()));
            packet[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            let length = u16::try_from(packet.len()).unwrap();
            if payload_at == 40 {
                packet[2..4].copy_from_slice(&length.to_be_bytes());
                packet[10..12].copy_from_slice(&[0; 2]);
                let sum = smoltcp::wire::checksum::data(&packet[..20]);
                packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
            } else {
                packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            }
            packets.push(packet);
        }
    }

    /// Lets both send what they have, and the link bring it; goes on to the next deadline if there was nothing.
    fn turn(&mut self) {
        let ready = || true;
        let mut packets = Vec::new();
        self.peers.depart(self.now, &ready, |d| Self::cut(&mut packets, d));
        self.to_us.extend(packets.drain(..));
        self.ours.depart(self.now, &ready, |d| Self::cut(&mut packets, d));
        self.to_peer.extend(packets.drain(..));
        if self.to_us.is_empty() && self.to_peer.is_empty() {
            let next = self.peers.deadline(self.now).into_iter().chain(self.ours.deadline(self.now)).min();
            self.now = next.unwrap_or(self.now).max(self.now + Duration::from_millis(1));
        }
        let (to_us, to_peer) = (std::mem::take(&mut self.to_us), std::mem::take(&mut self.to_peer));
        for packet in to_us.into_iter().filter(|_| !(self.lose)()) {
            self.ours.arrive(self.now, &packet, &ready, |d| Self::cut(&mut packets, d));
        }
        self.to_peer.extend(packets.drain(..));
        for packet in to_peer.into_iter().filter(|_| !(self.lose)()) {
            self.peers.arrive(self.now, &packet, &ready, |d| Self::cut(&mut packets, d));
        }
        self.to_us.extend(packets.drain(..));
    }

    fn turn_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("not within 20,000 turns: {what}; {:?} and {:?} at {:?}", self.ours, self.peers, self.now);
    }
}

fn contents(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + at / 251) % 256).unwrap()).collect()
}

/// Sends so much each way, and closes. Says how long the data took.
fn exchange(pair: &mut Pair<impl FnMut() -> bool>, length: usize) -> Duration {
    let begun = pair.now;
    let data = contents(length);
    let (mut written, mut read) = ([0; 2], [Vec::new(), Vec::new()]);
    let mut buffer = vec![0; 8192];
    pair.turn_until("all data there and back", |pair| {
        for (side, connection) in [&mut pair.ours, &mut pair.peers].into_iter().enumerate() {
            let Some(count) = connection.write(&data[written[side]..]) else { panic!("side {side} is {connection:?} at {:?}", pair.now) };
            written[side] += count;
            while let Read::Data(count) = connection.read(&mut buffer) {
                read[side].extend_from_slice(&buffer[..count]);
            }
        }
        read.iter().all(|read| read.len() == length)
    });
    assert!(read.iter().all(|read| *read == data));
    let took = pair.now.since(begun);
    pair.peers.close();
    pair.turn_until("the end is heard", |pair| pair.ours.read(&mut buffer) == Read::End);
    assert_eq!(pair.ours.write(b"still open this way"), Some(19));
    pair.ours.close();
    pair.turn_until("our last words", |pair| matches!(pair.peers.read(&mut buffer), Read::Data(19)));
    pair.turn_until("our end is heard", |pair| pair.peers.read(&mut buffer) == Read::End);
    pair.turn_until("both are over", |pair| pair.ours.state() == State::Over && pair.peers.state() == State::Over);
    assert_eq!(pair.ours.deadline(pair.now), None);
    took
}

#[test]
fn a_connection_is_answered_only_when_it_is_admitted_and_carries_data_both_ways() {
    for v6 in [false, true] {
        let mut pair = Pair::new(v6, || false);
        for _ in 0..50 {
            pair.turn();
            assert_eq!((pair.ours.state(), pair.peers.state()), (State::Opening, State::Opening));
        }
        pair.ours.admit();
        pair.turn_until("open", |pair| pair.peers.state() == State::Open && pair.ours.state() == State::Open);
        let took = exchange(&mut pair, 1_000_000);
        assert!(took < Duration::from_secs(1), "nothing is lost, so nothing waits for a retransmission: {took:?}");
    }
}

#[test]
fn a_refused_connection_is_reset() {
    let mut pair = Pair::new(false, || false);
    pair.turn();
    pair.ours.reset();
    pair.turn_until("the peer hears it", |pair| pair.peers.state() == State::Over);
    assert_eq!(pair.peers.read(&mut [0; 8]), Read::Broken);
    pair.turn_until("ours is over", |pair| pair.ours.state() == State::Over);
}

#[test]
fn a_segment_of_no_connection_is_answered_with_rst() {
    for v6 in [false, true] {
        let mut pair = Pair::new(v6, || false);
        let mut packets = Vec::new();
        pair.peers.depart(pair.now, &|| true, |d| packets.push(d.packet.to_vec()));
        let mut answers = Vec::new();
        Connection::refuse(ends(v6), pair.now, &packets[0], |d| answers.push(d.packet.to_vec()));
        assert_eq!(answers.len(), 1);
        pair.peers.arrive(pair.now, &answers[0], &|| true, |_| panic!("no answer to a reset"));
        assert_eq!(pair.peers.state(), State::Over);
        Connection::refuse(turned(ends(v6)), pair.now, &answers[0], |_| panic!("no answer to a reset"));
    }
}

#[test]
fn data_comes_through_a_link_that_loses_packets() {
    for seed in [3, 77, 4711] {
        let mut random: u32 = seed;
        let mut pair = Pair::new(true, move || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random >> 24 < 8
        });
        pair.ours.admit();
        let took = exchange(&mut pair, 300_000);
        assert!(took < Duration::from_mins(2), "{took:?}");
    }
}

#[test]
fn a_peer_that_vanishes_is_given_up() {
    let mut pair = Pair::new(false, || false);
    pair.ours.admit();
    pair.turn_until("open", |pair| pair.ours.state() == State::Open && pair.peers.state() == State::Open);
    let begun = pair.now;
    assert_eq!(pair.ours.write(b"anybody there?"), Some(14));
    while pair.ours.state() != State::Over {
        pair.ours.depart(pair.now, &|| true, |_| ());
        pair.now = pair.ours.deadline(pair.now).unwrap_or(pair.now) + Duration::from_millis(1);
        assert!(pair.now.since(begun) < Duration::from_mins(5), "{:?}", pair.ours);
    }
    assert_eq!(pair.ours.read(&mut [0; 8]), Read::Broken);
    assert_eq!(pair.ours.write(b"hello"), None);
}

#[test]
fn nothing_leaves_while_the_link_is_not_ready_and_all_of_it_later() {
    let mut pair = Pair::new(false, || false);
    pair.ours.admit();
    pair.turn_until("open", |pair| pair.ours.state() == State::Open && pair.peers.state() == State::Open);
    let data = contents(40_000);
    assert_eq!(pair.ours.write(&data), Some(40_000));
    pair.ours.depart(pair.now, &|| false, |_| panic!("it is not ready"));
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    pair.turn_until("it is there", |pair| {
        while let Read::Data(count) = pair.peers.read(&mut buffer) {
            read.extend_from_slice(&buffer[..count]);
        }
        read.len() == data.len()
    });
    assert_eq!(read, data);
}

#[test]
fn super_packets_leave_with_the_size_of_their_segments_and_unfinished_checksums() {
    let mut pair = Pair::new(false, || false);
    pair.ours.admit();
    pair.turn_until("open", |pair| pair.ours.state() == State::Open && pair.peers.state() == State::Open);
    pair.ours.write(&contents(6_000));
    let mut sizes = Vec::new();
    pair.ours.depart(pair.now, &|| true, |departure| {
        assert_eq!(departure.transport_at, 20);
        // Addresses, protocol and length (RFC 9293, section 3.1); not inverted.
        let words = departure.packet[12..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let sum = words.sum::<u32>() + 6 + u32::try_from(departure.packet.len() - 20).unwrap();
        let folded = (sum & 0xffff) + (sum >> 16);
        assert_eq!(u32::from(u16::from_be_bytes([departure.packet[36], departure.packet[37]])), folded);
        sizes.push((departure.packet.len() - 40, departure.segment.map(NonZeroU16::get)));
    });
    // How much leaves at first is up to congestion control.
    assert!(matches!(sizes[..], [(1_241.., Some(1_240))]), "{sizes:?}");
}

#[test]
fn whoever_is_abandoned_hears_no_more() {
    let mut pair = Pair::new(false, || false);
    pair.ours.admit();
    pair.turn_until("open", |pair| pair.ours.state() == State::Open && pair.peers.state() == State::Open);
    pair.peers.write(b"nobody reads this");
    for _ in 0..20 {
        pair.turn();
    }
    pair.ours.abandon();
    pair.turn_until("the peer hears it", |pair| pair.peers.read(&mut [0; 64]) == Read::Broken);
}

fn arrived(packet: &[u8]) -> Arrival<'_> {
    read(packet, false).unwrap()
}

#[test]
fn datagrams_are_read_as_they_were_made() {
    for v6 in [false, true] {
        let ends = ends(v6);
        for length in [0, 1, 2, 500, 1_232] {
            let data = contents(length);
            let packets = udp(ends, &data, 7);
            assert_eq!(packets.len(), 1, "{length} bytes");
            assert_eq!(arrived(&packets[0]), Arrival::Udp { ends: turned(ends), payload: &data });
        }
    }
    assert!(udp(ends(false), &contents(65_508), 7).is_empty(), "longer than UDP can be");
}

#[test]
fn long_datagrams_are_cut_up_and_joined_again_in_any_order() {
    for v6 in [false, true] {
        let ends = ends(v6);
        let data = contents(9_001);
        let mut packets = udp(ends, &data, 0x1234_5678);
        assert!(packets.len() > 7 && packets.iter().all(|packet| packet.len() <= MTU), "{v6}");
        packets.rotate_left(3);
        packets.swap(0, 5);
        let mut reassembly = Reassembly::default();
        let mut joined = None;
        for packet in &packets {
            let Arrival::Fragment(fragment) = arrived(packet) else { panic!("a fragment") };
            assert_eq!(joined, None);
            joined = reassembly.add(Time::default(), &fragment).map(|payload| (fragment.of, payload));
        }
        let (of, payload) = joined.unwrap();
        let whole = transport(of.remote, of.local, of.protocol.into(), &payload, false).unwrap();
        assert_eq!(whole, Arrival::Udp { ends: turned(ends), payload: &data });
    }
}

fn piece(id: u32, offset: usize, more: bool, payload: &[u8]) -> Fragment<'_> {
    let of = Whole { remote: IpAddr::from([1, 1, 1, 1]), local: IpAddr::from([2, 2, 2, 2]), protocol: 17, id };
    Fragment { of, offset, more, payload }
}

#[test]
fn fragments_that_overlap_contradict_or_come_too_late_are_not_joined() {
    let at = |seconds| Time::from_start(Duration::from_secs(seconds));
    let mut reassembly = Reassembly::default();
    assert_eq!(reassembly.add(at(0), &piece(1, 0, true, &[1; 16])), None);
    assert_eq!(reassembly.add(at(0), &piece(1, 8, true, &[2; 16])), None, "this overlaps");
    assert_eq!(reassembly.add(at(0), &piece(1, 16, false, &[3; 8])), None, "so the first piece is gone");
    assert_eq!(reassembly.add(at(0), &piece(2, 8, false, &[3; 8])), None);
    assert_eq!(reassembly.add(at(0), &piece(2, 16, true, &[3; 8])), None, "behind the end");
    assert_eq!(reassembly.add(at(0), &piece(3, 0, true, &[1; 8])), None);
    assert_eq!(reassembly.add(at(20), &piece(3, 8, false, &[2; 8])), None, "too late");
    assert_eq!(reassembly.add(at(21), &piece(3, 0, true, &[1; 8])).map(|all| all.len()), Some(16), "but not for this one");
}

#[test]
fn fragments_of_many_packets_do_not_fill_memory() {
    let mut reassembly = Reassembly::default();
    for id in 0..100_000 {
        assert_eq!(reassembly.add(Time::default(), &piece(id, 0, true, &[0; 1_232])), None);
    }
    let text = format!("{reassembly:?}");
    assert!(text.matches("Partial").count() <= 64);
}

#[test]
fn an_echo_reply_repeats_what_was_asked() {
    for v6 in [false, true] {
        let Ends { local, remote } = ends(v6);
        let reply = echo_reply(local.ip(), remote.ip(), b"\x12\x34\x00\x01data", 0);
        assert_eq!(read(&reply[0], false), Err(Useless::Unknown), "a reply is not for us");
        let mut request = reply[0].clone();
        let at = if v6 { 40 } else { 20 };
        let (from, to) = if v6 { (129_u8, 128_u8) } else { (0, 8) };
        assert_eq!(request[at], from);
        request[at] = to;
        assert_eq!(read(&request, false), Err(Useless::Malformed), "its checksum is wrong now");
        // RFC 1624, equation 3.
        let word = |bytes: &[u8], at: usize| u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let sum = (0xffff - word(&request, at + 2)) + (0xffff - word(&reply[0], at)) + word(&request, at);
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        request[at + 2..at + 4].copy_from_slice(&(!folded).to_be_bytes());
        let expected = Arrival::Echo { local: remote.ip(), remote: local.ip(), contents: b"\x12\x34\x00\x01data" };
        assert_eq!(arrived(&request), expected);
    }
}

#[test]
fn what_does_not_get_there_is_answered_in_its_destinations_name() {
    let packet = udp(ends(false), b"hello", 0).remove(0);
    let answer = unreachable(&packet, Unreachable::Port).unwrap();
    assert_eq!((&answer[12..16], &answer[16..20]), (&packet[16..20], &packet[12..16]));
    assert_eq!((answer[9], answer[20], answer[21]), (1, 3, 3));
    assert_eq!(&answer[28..], &packet[..28]);
    let packet = udp(ends(true), &contents(1_200), 0).remove(0);
    let answer = unreachable(&packet, Unreachable::Host).unwrap();
    assert_eq!((answer[6], answer[40], answer[41], answer.len()), (58, 1, 3, MTU));
    assert_eq!(unreachable(&udp(ends(false), &contents(3_000), 9)[1], Unreachable::Port), None, "only the first fragment is");
}

#[test]
fn the_room_for_a_connection_shrinks_as_they_grow_many() {
    assert_eq!(room_for(0), 512 << 10);
    assert!((0..5_000).map(room_for).is_sorted_by(|a, b| a >= b));
    assert!((0..500).all(|open| room_for(open) * 2 * (open + 1) <= 20 << 20 || room_for(open) == 16 << 10));
    assert_eq!(room_for(100_000), 16 << 10);
}

proptest! {
    #[test]
    fn nothing_that_arrives_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), verified: bool) {
        let _ = read(&bytes, verified);
        let _ = unreachable(&bytes, Unreachable::Forbidden);
    }

    /// Real packets with some bytes changed and cut short, to a connection that is open.
    #[test]
    fn a_connection_bears_whatever_its_peer_sends(
        changes in proptest::collection::vec((0_usize..60, any::<u8>()), 0..6),
        cut in 0_usize..80,
        v6: bool,
    ) {
        let mut pair = Pair::new(v6, || false);
        pair.ours.admit();
        pair.turn_until("open", |pair| pair.ours.state() == State::Open && pair.peers.state() == State::Open);
        pair.peers.write(b"twenty bytes or more of data");
        let mut packets = Vec::new();
        pair.peers.depart(pair.now, &|| true, |d| packets.push(d.packet.to_vec()));
        for mut packet in packets {
            for (at, value) in &changes {
                if let Some(byte) = packet.get_mut(*at) {
                    *byte = *value;
                }
            }
            packet.truncate(packet.len() - cut.min(packet.len()));
            if let Ok(Arrival::Tcp { .. }) = read(&packet, true) {
                pair.ours.arrive(pair.now, &packet, &|| true, |_| ());
            }
            pair.ours.depart(pair.now, &|| true, |_| ());
            let _ = pair.ours.deadline(pair.now);
        }
    }
}
