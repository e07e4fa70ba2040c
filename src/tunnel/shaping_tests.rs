//! Splitting and joining, against a slow reference and against each other.
#![allow(clippy::indexing_slicing, reason = "test code")]

use std::io::IoSlice;

use proptest::prelude::*;

use super::checksum::tests::slow;
use super::packet::Layout;
use super::{Coalescer, Joining, MAX_PACKET, Segmentation, Segments, VirtioHeader};

/// How a test packet is made.
#[derive(Debug, Clone)]
struct Recipe {
    v4: bool,
    tcp: bool,
    options: usize,
    flags: u8,
    sequence: u32,
    id: u16,
    may_not_fragment: bool,
    port: u16,
}

impl Recipe {
    fn tcp4() -> Self {
        Self { v4: true, tcp: true, options: 12, flags: 0x10, sequence: 1000, id: 7, may_not_fragment: true, port: 4000 }
    }

    fn headers(&self) -> usize {
        (if self.v4 { 20 } else { 40 }) + if self.tcp { 20 + self.options } else { 8 }
    }

    fn header(&self, size: usize) -> VirtioHeader {
        VirtioHeader {
            needs_checksum: true,
            segmentation: match (self.tcp, self.v4) {
                (true, true) => Segmentation::Tcp4,
                (true, false) => Segmentation::Tcp6,
                (false, _) => Segmentation::Udp,
            },
            header_length: 0,
            segment_size: u16::try_from(size).unwrap(),
            checksum_start: if self.v4 { 20 } else { 40 },
            checksum_offset: if self.tcp { 16 } else { 6 },
        }
    }

    /// A packet with right lengths and checksums, byte by byte from the RFCs.
    fn build(&self, payload: &[u8]) -> Vec<u8> {
        let at = if self.v4 { 20 } else { 40 };
        let length = self.headers() + payload.len();
        let mut packet = vec![0; self.headers()];
        let number = if self.tcp { 6 } else { 17 };
        if self.v4 {
            packet[..2].copy_from_slice(&[0x45, 0x02]);
            packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            packet[4..6].copy_from_slice(&self.id.to_be_bytes());
            packet[6] = if self.may_not_fragment { 0x40 } else { 0 };
            packet[8..10].copy_from_slice(&[64, number]);
            packet[12..20].copy_from_slice(&[100, 64, 0, 1, 100, 64, 0, 2]);
            let checksum = !slow(&packet[..20]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            packet[..4].copy_from_slice(&[0x60, 0x20, 0x12, 0x34]);
            packet[4..6].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes());
            packet[6..8].copy_from_slice(&[number, 64]);
            for (n, byte) in packet[8..40].iter_mut().enumerate() {
                *byte = u8::try_from(n).unwrap() * 7;
            }
        }
        packet[at..at + 4].copy_from_slice(&[self.port.to_be_bytes(), 5001_u16.to_be_bytes()].concat());
        if self.tcp {
            packet[at + 4..at + 8].copy_from_slice(&self.sequence.to_be_bytes());
            packet[at + 8..at + 12].copy_from_slice(&77_u32.to_be_bytes());
            packet[at + 12] = u8::try_from((20 + self.options) / 4 * 16).unwrap();
            packet[at + 13] = self.flags;
            packet[at + 14..at + 16].copy_from_slice(&500_u16.to_be_bytes());
            packet[at + 20..].fill(1);
        } else {
            packet[at + 4..at + 6].copy_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        }
        packet.extend_from_slice(payload);
        let mut covered = if self.v4 { packet[12..20].to_vec() } else { packet[8..40].to_vec() };
        covered.extend_from_slice(&[0, number]);
        covered.extend_from_slice(&u16::try_from(length - at).unwrap().to_be_bytes());
        covered.extend_from_slice(&packet[at..]);
        let checksum = match (!slow(&covered), self.tcp) {
            (0, false) => 0xffff,
            (sum, _) => sum,
        };
        let place = at + if self.tcp { 16 } else { 6 };
        packet[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// The packets that a super-packet with this payload stands for.
    fn expected(&self, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(size).max(1);
        (0..count)
            .map(|n| {
                let last = n + 1 == count;
                let flags = self.flags & if last { 0xff } else { !0x09 } & if n == 0 { 0xff } else { !0x80 };
                let part = &payload[(n * size).min(payload.len())..((n + 1) * size).min(payload.len())];
                let sequence = self.sequence.wrapping_add(u32::try_from(n * size).unwrap());
                let id = self.id.wrapping_add(u16::try_from(n & 0xffff).unwrap());
                Self { flags, sequence, id, ..self.clone() }.build(part)
            })
            .collect()
    }

    /// The super-packet as the kernel gives it: the pseudo header's sum in the checksum field.
    fn super_packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = self.build(payload);
        let at = if self.v4 { 20 } else { 40 };
        let place = at + if self.tcp { 16 } else { 6 };
        // What is in the field does not matter for splitting; something wrong makes sure of that.
        packet[place..place + 2].copy_from_slice(&[0xde, 0xad]);
        packet
    }
}

/// An IPv4 TCP packet with its checksums made anew.
fn with_right_checksums(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    let checksum = !slow(&packet[..20]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet[36..38].fill(0);
    let length = u16::try_from(packet.len() - 20).unwrap();
    let checksum = !slow(&[&packet[12..20], &[0, 6], &length.to_be_bytes(), &packet[20..]].concat());
    packet[36..38].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn split(header: &VirtioHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    let mut segments = Segments::new(header, &mut packet).unwrap();
    let mut all = Vec::new();
    while let Some(segment) = segments.next() {
        all.push(segment.to_vec());
    }
    all
}

/// What a kernel would get: each write as header, bytes and how many packets it stands for.
fn join(joining: Joining, packets: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>, usize)> {
    let mut arena = Vec::new();
    let mut coalescer = Coalescer::new(joining);
    let ranges: Vec<_> = packets
        .iter()
        .map(|packet| {
            let start = arena.len();
            arena.extend_from_slice(packet);
            start..arena.len()
        })
        .collect();
    for range in ranges {
        coalescer.push(&arena, range);
    }
    let mut written = Vec::new();
    coalescer.finish(&mut arena, |pieces: &[IoSlice<'_>], count| {
        let header = VirtioHeader::read(<[u8; 10]>::try_from(&*pieces[0]).unwrap()).unwrap();
        written.push((header, pieces[1..].iter().flat_map(|piece| piece.to_vec()).collect(), count));
    });
    assert!(coalescer.is_empty());
    written
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|n| ((n * 31) ^ (n >> 7)) as u8).collect()
}

fn recipe() -> impl Strategy<Value = Recipe> {
    (any::<bool>(), any::<bool>(), 0..=10_usize, any::<u32>(), any::<u16>(), any::<bool>()).prop_map(
        |(v4, tcp, options, sequence, id, may_not_fragment)| Recipe {
            v4,
            tcp,
            options: if tcp { options * 4 } else { 0 },
            flags: if tcp { 0x10 } else { 0 },
            sequence,
            id,
            may_not_fragment,
            port: 4000,
        },
    )
}

#[test]
fn every_length_from_nothing_to_64_kib_splits_as_the_reference_does() {
    // All lengths around every multiple of the segment size, the rest in steps; each family and transport.
    for (v4, tcp) in [(true, true), (false, true), (true, false), (false, false)] {
        let recipe = Recipe { v4, tcp, options: if tcp { 12 } else { 0 }, flags: if tcp { 0x19 } else { 0 }, ..Recipe::tcp4() };
        let most = MAX_PACKET - recipe.headers();
        for size in [1, 536, 1208, 1448] {
            let lengths = (0..most).filter(|n| n % size < 3 || n % size > size - 3 || n % 997 == 0).filter(|n| size > 1 || n % 4096 < 2);
            for length in lengths.chain([most]).step_by(if cfg!(debug_assertions) { 7 } else { 1 }) {
                let body = payload(length);
                let got = split(&recipe.header(size), &recipe.super_packet(&body));
                assert!(got == recipe.expected(&body, size), "v4 {v4}, tcp {tcp}, {length} bytes by {size}");
            }
        }
    }
}

#[test]
fn a_plain_packet_passes_untouched_and_one_without_checksum_gets_it() {
    let recipe = Recipe::tcp4();
    let whole = recipe.build(&payload(333));
    assert_eq!(split(&VirtioHeader::default(), &whole), std::slice::from_ref(&whole));
    let mut unfinished = whole.clone();
    let layout = Layout::of(&whole).unwrap();
    unfinished[36..38].copy_from_slice(&layout.pseudo(&whole, whole.len() - 20).partial());
    let header = VirtioHeader { segmentation: Segmentation::None, ..recipe.header(0) };
    assert_eq!(split(&header, &unfinished), [whole]);
}

#[test]
fn a_header_that_does_not_fit_its_packet_is_refused() {
    let recipe = Recipe::tcp4();
    let packet = recipe.super_packet(&payload(3000));
    let good = recipe.header(1000);
    let bad = [
        VirtioHeader { segment_size: 0, ..good },
        VirtioHeader { checksum_start: 24, ..good },
        VirtioHeader { checksum_start: 65_535, ..good },
        VirtioHeader { checksum_offset: 6, ..good },
        VirtioHeader { segmentation: Segmentation::Tcp6, ..good },
        VirtioHeader { segmentation: Segmentation::Udp, ..good },
        VirtioHeader { segmentation: Segmentation::None, checksum_start: 65_000, ..good },
    ];
    for header in bad {
        assert!(Segments::new(&header, &mut packet.clone()).is_err(), "{header:?}");
    }
    assert!(Segments::new(&VirtioHeader::default(), &mut []).is_err());
    assert_eq!(VirtioHeader::read([0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None, "UFO was not asked for");
    assert_eq!(VirtioHeader::read(good.bytes()), Some(good));
}

#[test]
fn a_run_of_segments_becomes_one_write() {
    let recipe = Recipe { flags: 0x18, ..Recipe::tcp4() };
    let packets = recipe.expected(&payload(10_500), 1000);
    let written = join(Joining::Tcp, &packets);
    assert_eq!(written.len(), 1);
    let (header, packet, count) = &written[0];
    assert_eq!((header.segmentation, header.segment_size, *count), (Segmentation::Tcp4, 1000, 11));
    assert_eq!((header.header_length, header.checksum_start, header.checksum_offset), (52, 20, 16));
    assert_eq!(packet.len(), 52 + 10_500);
    // The checksum field holds what the kernel expects: the pseudo header's sum over the whole.
    let layout = Layout::of(packet).unwrap();
    assert_eq!(packet[36..38], layout.pseudo(packet, packet.len() - 20).partial());
    assert_eq!(packet[33], 0x18, "PSH of the last");
}

#[test]
fn flows_that_alternate_are_joined_each_for_itself() {
    let flows: Vec<_> = (0..4).map(|n| Recipe { port: 4000 + n, ..Recipe::tcp4() }.expected(&payload(8000), 1000)).collect();
    let mixed: Vec<_> = (0..8).flat_map(|n| flows.iter().map(move |f| f[n].clone())).collect();
    let written = join(Joining::Tcp, &mixed);
    assert_eq!(written.iter().map(|w| w.2).collect::<Vec<_>>(), [8; 4]);
}

#[test]
fn what_is_not_a_clean_continuation_stays_by_itself_and_in_order() {
    let base = Recipe::tcp4();
    let next = |r: &Recipe| Recipe { sequence: r.sequence + 1000, id: r.id + 1, ..r.clone() };
    let first = base.build(&payload(1000));
    let good = next(&base).build(&payload(1000));
    assert_eq!(join(Joining::Tcp, &[first.clone(), good.clone()]).len(), 1);
    let change = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        with_right_checksums(packet)
    };
    let longer = next(&base).build(&payload(1001));
    let gap = Recipe { sequence: 2001, ..next(&base) }.build(&payload(1000));
    let fin = Recipe { flags: 0x11, ..next(&base) }.build(&payload(1000));
    let syn = Recipe { flags: 0x12, ..next(&base) }.build(&payload(1000));
    let ack_only = next(&base).build(&[]);
    let options = Recipe { options: 16, ..next(&base) }.build(&payload(1000));
    let fragmentable = Recipe { may_not_fragment: false, ..next(&base) }.build(&payload(1000));
    let (mut wrong, mut wrong_header) = (good.clone(), good.clone());
    wrong[60] ^= 1;
    wrong_header[10] ^= 1;
    let cases = [
        ("longer", longer),
        ("a gap", gap),
        ("FIN", fin),
        ("SYN", syn),
        ("no payload", ack_only),
        ("other options", options),
        ("may be fragmented", fragmentable),
        ("other type of service", change(1, 0)),
        ("other time to live", change(8, 63)),
        ("a wrong checksum", wrong),
        ("a wrong header checksum", wrong_header),
        ("other window", change(34, 9)),
        ("other acknowledgement", change(28, 9)),
    ];
    for (what, second) in cases {
        let written = join(Joining::TcpAndUdp, &[first.clone(), second.clone()]);
        assert_eq!(written.iter().map(|w| w.1.clone()).collect::<Vec<_>>(), [first.clone(), second], "{what}");
        assert!(written.iter().all(|w| w.0 == VirtioHeader::default()), "{what}");
    }
    // A first packet with a wrong checksum, and what comes after a short or pushed one.
    let mut broken = first.clone();
    broken[60] ^= 1;
    assert_eq!(join(Joining::Tcp, &[broken, good.clone()]).len(), 2);
    let pushed = Recipe { flags: 0x18, ..base }.build(&payload(1000));
    assert_eq!(join(Joining::Tcp, &[pushed, good]).len(), 2);
}

#[test]
fn a_packet_between_two_of_its_flow_is_not_overtaken() {
    let packets = Recipe::tcp4().expected(&payload(4000), 1000);
    let ack = Recipe { sequence: 3000, ..Recipe::tcp4() }.build(&[]);
    let order = [packets[0].clone(), packets[1].clone(), ack.clone(), packets[2].clone(), packets[3].clone()];
    let written = join(Joining::Tcp, &order);
    assert_eq!(written.iter().map(|w| w.2).collect::<Vec<_>>(), [2, 1, 2]);
    assert_eq!(written[1].1, ack);
}

#[test]
fn udp_is_joined_only_where_the_kernel_takes_it_and_never_without_checksum() {
    let recipe = Recipe { tcp: false, options: 0, flags: 0, ..Recipe::tcp4() };
    let packets = recipe.expected(&payload(2500), 1000);
    assert_eq!(join(Joining::Tcp, &packets).len(), 3);
    assert_eq!(join(Joining::TcpAndUdp, &packets).len(), 1);
    let without: Vec<_> = packets
        .iter()
        .map(|packet| {
            let mut packet = packet.clone();
            packet[26..28].fill(0);
            packet
        })
        .collect();
    assert_eq!(join(Joining::TcpAndUdp, &without).len(), 3);
}

#[test]
fn a_super_packet_stays_within_64_kib_and_64_segments() {
    let recipe = Recipe::tcp4();
    let mut packets = Vec::new();
    for n in 0..200_u32 {
        packets.push(Recipe { sequence: recipe.sequence + n * 1200, ..recipe.clone() }.build(&payload(1200)));
    }
    let written = join(Joining::Tcp, &packets);
    assert!(written.iter().all(|w| w.1.len() <= MAX_PACKET && w.2 <= 64));
    assert_eq!(written.iter().map(|w| w.2).sum::<usize>(), 200);
    assert_eq!(written.len(), 4);
    let small: Vec<_> = (0..200_u32).map(|n| Recipe { sequence: 1000 + n * 10, ..recipe.clone() }.build(&payload(10))).collect();
    assert_eq!(join(Joining::Tcp, &small).iter().map(|w| w.2).collect::<Vec<_>>(), [64, 64, 64, 8]);
}

proptest! {
    #[test]
    fn splitting_joining_and_splitting_gives_the_same_packets(recipe in recipe(), length in 1..60_000_usize, size in 500..1460_usize, pushed in any::<bool>()) {
        let recipe = Recipe { flags: if recipe.tcp && pushed { 0x18 } else { recipe.flags }, ..recipe };
        let body = payload(length);
        let packets = split(&recipe.header(size), &recipe.super_packet(&body));
        prop_assert_eq!(&packets, &recipe.expected(&body, size));
        let again: Vec<_> = join(Joining::TcpAndUdp, &packets).iter().flat_map(|(header, packet, _)| split(header, packet)).collect();
        prop_assert_eq!(packets, again);
    }

    #[test]
    fn arbitrary_bytes_from_the_tun_never_panic(header in any::<[u8; 10]>(), packet in proptest::collection::vec(any::<u8>(), 0..400), sane in any::<bool>()) {
        let mut packet = packet;
        if sane && packet.len() > 40 {
            packet[0] = 0x45;
            packet[32] = 0x50;
        }
        if let Some(header) = VirtioHeader::read(header)
            && let Ok(mut segments) = Segments::new(&header, &mut packet)
        {
            let mut count = 0;
            while segments.next().is_some() {
                count += 1;
            }
            prop_assert!(count <= 400);
        }
    }

    #[test]
    fn arbitrary_packets_are_written_as_they_came(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..120), 0..40), first in 0..3_usize) {
        let mut packets = packets;
        for packet in &mut packets {
            packet[0] = [0x45, 0x60, packet[0]][first];
        }
        let written: Vec<_> = join(Joining::TcpAndUdp, &packets).into_iter().map(|w| w.1).collect();
        prop_assert_eq!(written, packets);
    }

    #[test]
    fn mangled_segments_are_never_mended(length in 2000..9000_usize, at in 0..1500_usize, bit in 0..8_u32) {
        // One bit of one segment is wrong, in whatever header: the receiver gets it just as wrong.
        let mut packets = Recipe::tcp4().expected(&payload(length), 1000);
        let at = at % packets[1].len();
        packets[1][at] ^= 1 << bit;
        let again: Vec<_> = join(Joining::Tcp, &packets).iter().flat_map(|(header, packet, _)| split(header, packet)).collect();
        prop_assert!(again.contains(&packets[1]), "byte {}", at);
    }
}
