//! From the site to the peer.

use super::*;
use crate::tunnel::{Segmentation, Segments, VirtioHeader};

const DF: u16 = 0x4000;

/// Turns a packet in place, with a virtio-net header.
fn in_place(header: &mut VirtioHeader, packet: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = [&[0xee; GROWTH][..], packet].concat();
    let start = to_v6_in_place(header, &mut buffer, GROWTH, &ORIGIN, &sites())?;
    Some(buffer[start..].to_vec())
}

fn super_header(segmentation: Segmentation, segment_size: u16) -> VirtioHeader {
    let checksum_offset = if segmentation == Segmentation::Udp { 6 } else { 16 };
    VirtioHeader { needs_checksum: true, segmentation, header_length: 40, segment_size, checksum_start: 20, checksum_offset }
}

#[test]
fn tcp_udp_and_pings_arrive_as_the_site_would_have_sent_them_in_ipv6() {
    let bodies = [
        (TCP, tcp((80, 4000), 0x18, None, &payload(1001)), TCP, tcp((80, 4000), 0x18, None, &payload(1001))),
        (TCP, tcp((80, 4000), 0x12, Some(1460), &[]), TCP, tcp((80, 4000), 0x12, Some(1220), &[])),
        (UDP, udp((53, 4000), &payload(33)), UDP, udp((53, 4000), &payload(33))),
        (ICMP, icmp(0, 0, 0x0102_0003, &payload(57)), ICMPV6, icmp(129, 0, 0x0102_0003, &payload(57))),
        (ICMP, icmp(8, 0, 0x0102_0003, &payload(56)), ICMPV6, icmp(128, 0, 0x0102_0003, &payload(56))),
    ];
    for (protocol, body, next, expected) in bodies {
        let packet = back_v4(protocol, DF, &body);
        let expected = apart_from_id(back_v6(next, &expected));
        let found = answered(&packet).unwrap();
        assert!(found.len() == 1 && is_right(&found[0]), "{found:x?}");
        assert_eq!(apart_from_id(found[0].clone()), expected);
        let mut header = VirtioHeader::default();
        let in_place = in_place(&mut header, &packet).map(apart_from_id);
        assert_eq!((in_place, header), ((protocol != ICMP).then_some(expected), VirtioHeader::default()));
    }
}

#[test]
fn what_is_turned_and_turned_back_is_what_it_was() {
    for (protocol, body) in [(TCP, tcp((80, 4000), 0x18, None, &payload(700))), (UDP, udp((53, 4000), &payload(701)))] {
        let packet = back_v4(protocol, 0, &body);
        let there = &answered(&packet).unwrap()[0];
        // The way back of the way back: ends exchanged.
        let mut forth = there.clone();
        forth[8..24].copy_from_slice(&PEER_V6.octets());
        forth[24..40].copy_from_slice(&MACHINE_V6.octets());
        assert!(is_right(&turned(forth).unwrap().0));
    }
}

#[test]
fn options_of_the_header_are_left_out_unless_they_change_the_way() {
    let with = |options: [u8; 4]| {
        let mut packet = back_v4(UDP, 0, &udp((53, 4000), &payload(20)));
        packet[0] = 0x46;
        packet.splice(20..20, options);
        let length = short(packet.len());
        packet[2..4].copy_from_slice(&length);
        packet
    };
    let expected = apart_from_id(back_v6(UDP, &udp((53, 4000), &payload(20))));
    for harmless in [[148, 4, 0, 0], [1, 1, 1, 0], [131, 3, 4, 0]] {
        let packet = with(harmless);
        assert_eq!(apart_from_id(answered(&packet).unwrap().remove(0)), expected, "{harmless:?}");
        assert_eq!(in_place(&mut VirtioHeader::default(), &packet).map(apart_from_id), Some(expected.clone()), "{harmless:?}");
    }
    for routed in [[131, 3, 3, 0], [1, 137, 3, 2]] {
        assert_eq!(answered(&with(routed)), Err(Refusal::Malformed), "{routed:?}");
    }
}

#[test]
fn udp_without_a_checksum_gets_one() {
    let mut packet = back_v4(UDP, 0, &udp((53, 4000), &payload(20)));
    packet[26..28].fill(0);
    assert_eq!(in_place(&mut VirtioHeader::default(), &packet), None);
    assert!(is_right(&answered(&packet).unwrap()[0]));
    // But not for the first of several fragments.
    let mut packet = v4(MACHINE, PEER_V4, UDP, 0x2000, &udp((53, 4000), &payload(16)));
    packet[26..28].fill(0);
    assert_eq!(answered(&packet), Err(Refusal::Untranslatable));
}

#[test]
fn an_unfinished_checksum_is_right_once_it_is_finished() {
    for (protocol, body) in [(TCP, tcp((80, 4000), 0x12, Some(1460), &payload(301))), (UDP, udp((53, 4000), &payload(302)))] {
        let mut packet = back_v4(protocol, DF, &body);
        let offset = if protocol == TCP { 16 } else { 6 };
        let partial = slow(&pseudo(&packet, protocol, packet.len() - 20));
        packet[20 + offset..22 + offset].copy_from_slice(&partial.to_be_bytes());
        let mut header = VirtioHeader {
            needs_checksum: true,
            checksum_start: 20,
            checksum_offset: u16::try_from(offset).unwrap(),
            ..VirtioHeader::default()
        };
        let mut turned = in_place(&mut header, &packet).unwrap();
        assert_eq!(header.checksum_start, 40);
        let mut segments = Segments::new(&header, &mut turned).unwrap();
        let turned = segments.next().unwrap();
        assert!(is_right(turned), "{turned:x?}");
        if protocol == TCP {
            assert_eq!(turned[63..65], 1220_u16.to_be_bytes());
        }
    }
}

#[test]
fn a_super_packet_is_cut_into_packets_that_fit() {
    for (size, expected) in [(1000, 1000), (1220, 1220), (1240, 1220)] {
        let data = payload(65_000);
        let packet = back_v4(TCP, DF, &tcp((80, 4000), 0x18, None, &data));
        let mut header = super_header(Segmentation::Tcp4, size);
        let mut turned = in_place(&mut header, &packet).unwrap();
        assert_eq!((header.segmentation, header.header_length, header.segment_size), (Segmentation::Tcp6, 60, expected));
        let mut segments = Segments::new(&header, &mut turned).unwrap();
        let mut joined = Vec::new();
        while let Some(segment) = segments.next() {
            assert!(segment.len() <= usize::from(MTU) && is_right(segment));
            joined.extend_from_slice(&segment[60..]);
        }
        assert_eq!(joined, data);
    }
}

#[test]
fn the_largest_super_packet_there_is_gets_through() {
    let data = payload(65_535 - 40);
    let packet = back_v4(TCP, DF, &tcp((80, 4000), 0x10, None, &data));
    assert_eq!(packet.len(), 65_535);
    let mut header = super_header(Segmentation::Tcp4, 1220);
    let mut turned = in_place(&mut header, &packet).unwrap();
    let mut segments = Segments::new(&header, &mut turned).unwrap();
    let mut length = 0;
    while let Some(segment) = segments.next() {
        length += segment.len() - 60;
    }
    assert_eq!(length, data.len());
}

#[test]
fn datagrams_of_a_super_packet_keep_their_size_or_are_turned_one_by_one() {
    let packet = back_v4(UDP, DF, &udp((53, 4000), &payload(5000)));
    let mut header = super_header(Segmentation::Udp, 1232);
    let mut turned = in_place(&mut header, &packet).unwrap();
    let mut segments = Segments::new(&header, &mut turned).unwrap();
    while let Some(segment) = segments.next() {
        assert!(segment.len() <= usize::from(MTU) && is_right(segment));
    }
    let mut header = super_header(Segmentation::Udp, 1233);
    assert_eq!(in_place(&mut header, &packet), None);
    assert_eq!(header, super_header(Segmentation::Udp, 1233), "nothing is changed where nothing is turned");
}

#[test]
fn what_gets_too_long_is_fragmented_or_its_sender_told() {
    let body = udp((53, 4000), &payload(1280 - 28));
    let packet = back_v4(UDP, 0, &body);
    assert_eq!(packet.len(), 1280);
    let parts = answered(&packet).unwrap();
    assert_eq!(parts.len(), 2);
    let mut joined = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        assert!(part.len() <= 1280);
        assert_eq!((part[6], part[40], usize::from(u16::from_be_bytes([part[4], part[5]]))), (44, UDP, part.len() - 40));
        let place = u16::from_be_bytes([part[42], part[43]]);
        assert_eq!((usize::from(place >> 3) * 8, place & 1), (joined.len(), u16::from(n == 0)));
        assert_eq!(part[44..48], [0, 0, 0x12, 0x34]);
        joined.extend_from_slice(&part[48..]);
    }
    assert!(is_right(&v6(MACHINE_V6, PEER_V6, UDP, &joined)));

    let packet = back_v4(UDP, DF, &body);
    assert_eq!(answered(&packet), Err(Refusal::TooBig));
    let mut room = [0; 600];
    let length = too_big(&packet, &sites(), &mut room).unwrap();
    let error = &room[..length];
    assert!(length <= 576 && is_right(error));
    assert_eq!(error[12..20], [PEER_V4.octets(), MACHINE.octets()].concat());
    assert_eq!(error[20..22], [3, 4]);
    assert_eq!(error[24..28], [0, 0, 0x04, 0xec], "1260 is what fits");
    assert_eq!(error[28..], packet[..length - 28]);
    // One byte less is fine.
    assert_eq!(answered(&back_v4(UDP, DF, &udp((53, 4000), &payload(1260 - 28)))).map(|p| p[0].len()), Ok(1280));
}

#[test]
fn fragments_that_get_too_long_are_fragmented_further() {
    let datagram = back_v4(UDP, 0, &udp((53, 4000), &payload(2000)))[20..].to_vec();
    let mut joined = vec![0; datagram.len()];
    let mut count = 0;
    for (at, more) in [(0, true), (1256, false)] {
        let end = if more { 1256 } else { datagram.len() };
        let flags = u16::try_from(at / 8).unwrap() | if more { 0x2000 } else { 0 };
        for part in answered(&v4(MACHINE, PEER_V4, UDP, flags, &datagram[at..end])).unwrap() {
            assert!(part.len() <= 1280);
            let place = u16::from_be_bytes([part[42], part[43]]);
            let offset = usize::from(place >> 3) * 8;
            assert_eq!(place & 1 == 1, offset + part.len() - 48 < datagram.len());
            joined[offset..offset + part.len() - 48].copy_from_slice(&part[48..]);
            count += 1;
        }
    }
    assert_eq!(count, 3);
    assert!(is_right(&v6(MACHINE_V6, PEER_V6, UDP, &joined)));
}

#[test]
fn no_error_answers_an_error_or_the_middle_of_a_packet() {
    let mut room = [0; 600];
    let error = back_v4(ICMP, DF, &icmp(3, 1, 0, &payload(28)));
    let middle = v4(MACHINE, PEER_V4, UDP, 20, &payload(64));
    for packet in [error, middle, vec![0x45; 10], Vec::new()] {
        assert_eq!(too_big(&packet, &sites(), &mut room), None);
    }
    assert!(too_big(&back_v4(ICMP, DF, &icmp(0, 0, 1, &payload(28))), &sites(), &mut room).is_some());
}

#[test]
fn what_is_no_carried_machines_is_not_turned() {
    let packet = whole(v4(Ipv4Addr::new(192, 168, 2, 2), PEER_V4, UDP, 0, &udp((53, 4000), &[])));
    assert_eq!(answered(&packet), Err(Refusal::Untranslatable));
    assert_eq!(in_place(&mut VirtioHeader::default(), &packet), None);
}
