//! What means no good, or nothing.

use proptest::prelude::*;

use super::*;
use crate::tunnel::{Segmentation, VirtioHeader};

/// Packets of all kinds that are turned.
fn samples() -> Vec<Vec<u8>> {
    let datagram = udp((4000, 53), &payload(40));
    let answer = udp((53, 4000), &payload(40));
    vec![
        forth_v6(TCP, &tcp((4000, 80), 2, Some(1460), &payload(20))),
        forth_v6(UDP, &datagram),
        forth_v6(ICMPV6, &icmp(128, 0, 1, &payload(20))),
        forth_v6(ICMPV6, &icmp(1, 4, 0, &back_v6(UDP, &answer))),
        forth_v6(ICMPV6, &icmp(3, 0, 0, &back_v6(ICMPV6, &icmp(129, 0, 1, &payload(9))))),
        v6(PEER_V6, MACHINE_V6, 44, &[&[UDP, 0, 0, 1, 0, 0, 0, 9], &datagram[..]].concat()),
        v6(
            PEER_V6,
            MACHINE_V6,
            60,
            &[&[0, 0, 1, 4, 0, 0, 0, 0, 43, 0, 1, 4, 0, 0, 0, 0, UDP, 0, 0, 0, 0, 0, 0, 0], &datagram[..]].concat(),
        ),
        back_v4(TCP, 0x4000, &tcp((80, 4000), 0x12, Some(1460), &payload(20))),
        back_v4(UDP, 0, &udp((53, 4000), &payload(1252))),
        back_v4(ICMP, 0, &icmp(0, 0, 1, &payload(20))),
        back_v4(ICMP, 0, &icmp(3, 4, 1400, &forth_v4(TCP, &tcp((4000, 80), 2, Some(1460), &[])))),
        v4(MACHINE, PEER_V4, UDP, 0x2000, &answer),
        v4(MACHINE, PEER_V4, UDP, 9, &answer),
    ]
}

/// Turns a packet every way there is, whatever it may be, and holds what comes out to what is always true.
fn try_everything(bytes: &[u8]) {
    let sites = sites();
    let mut packet = bytes.to_vec();
    if let Ok(Turned { range, .. }) = to_v4(&mut packet, PEER_V4, &sites, &Identifications::default()) {
        let turned = &packet[range];
        assert_eq!((turned[0], usize::from(u16::from_be_bytes([turned[2], turned[3]]))), (0x45, turned.len()));
        assert_eq!(turned[12..16], PEER_V4.octets());
        assert_eq!(slow(&turned[..20]), 0xffff);
    }
    let fits = |packet: &mut [u8]| {
        assert!(packet.len() <= usize::from(MTU));
        assert_eq!((packet[0] >> 4, usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40), (6, packet.len()));
        assert_eq!(packet[24..40], PEER_V6.octets());
    };
    let mut room = vec![0; ROOM];
    let _ = to_v6(bytes, &ORIGIN, &sites, &mut room, fits);
    let _ = too_big(bytes, &sites, &mut room);
    let mut flows = Flows::default();
    let _ = flows.answered(crate::time::Time::default(), bytes);
    let _ = Flow::of_peer(bytes);
    for segmentation in [Segmentation::None, Segmentation::Tcp4, Segmentation::Tcp6, Segmentation::Udp] {
        for checksum_start in [0, 20, 24, u16::MAX] {
            let mut header = VirtioHeader {
                needs_checksum: checksum_start != 0,
                segmentation,
                header_length: 9,
                segment_size: 1400,
                checksum_start,
                checksum_offset: 16,
            };
            for start in [0, GROWTH] {
                let mut buffer = [&vec![0; start], bytes].concat();
                let before = buffer.clone();
                if to_v6_in_place(&mut header, &mut buffer, start, &ORIGIN, &sites).is_none() {
                    assert_eq!(buffer, before, "what is not turned is left as it is");
                }
            }
        }
    }
}

#[test]
fn packets_cut_short_anywhere_do_no_harm() {
    for sample in samples() {
        for length in 0..=sample.len() {
            try_everything(&sample[..length]);
            // With a length in the header that is right again, it gets further.
            let mut cut = sample[..length].to_vec();
            if length >= 6 {
                if cut[0] >> 4 == 4 {
                    cut[2..4].copy_from_slice(&short(length));
                } else {
                    cut[4..6].copy_from_slice(&short(length.saturating_sub(40)));
                }
            }
            try_everything(&cut);
        }
    }
}

#[test]
fn any_one_byte_may_be_anything() {
    for sample in samples() {
        for at in 0..sample.len().min(120) {
            for value in [0, 1, 4, 5, 6, 8, 15, 16, 17, 44, 58, 60, 128, 255] {
                let mut packet = sample.clone();
                packet[at] = value;
                try_everything(&packet);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        kind in 0_usize..4,
        protocol in proptest::sample::select(vec![0_u8, 1, 6, 17, 43, 44, 58, 60]),
    ) {
        // Mostly not thrown out at the first look.
        if bytes.len() >= 40 && kind > 0 {
            let length = bytes.len();
            if kind == 1 {
                bytes[0] = 0x45;
                bytes[2..4].copy_from_slice(&short(length));
                bytes[9] = protocol;
                bytes[12..20].copy_from_slice(&[MACHINE.octets(), PEER_V4.octets()].concat());
            } else {
                bytes[0] = 0x60;
                bytes[4..6].copy_from_slice(&short(length - 40));
                bytes[6] = protocol;
                bytes[24..40].copy_from_slice(&MACHINE_V6.octets());
            }
        }
        try_everything(&bytes);
    }
}
