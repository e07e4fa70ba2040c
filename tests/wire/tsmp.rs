//! What mesh nodes say to one another inside the tunnel: the packets byte by byte, as stock clients write them.

use std::net::IpAddr;

use proptest::prelude::*;
use pvemesh::ident::DiscoPublic;
use pvemesh::wire::tsmp::{Message, Packet, Reason, Reject};

fn hex(text: &str) -> Vec<u8> {
    crate::hex(&text.replace(' ', ""))
}

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// From 100.64.0.1 to 100.64.1.2, or from fd7a:115c:a1e0::1 to fd7a:115c:a1e0::2.
fn packet(v4: bool, message: Message) -> Packet {
    let (from, to) = if v4 { ("100.64.0.1", "100.64.1.2") } else { ("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2") };
    Packet { from: at(from), to: at(to), message }
}

const V4: &str = "0000000040630000 64400001 64400102";
const V6: &str = "6340 fd7a115ca1e000000000000000000001 fd7a115ca1e000000000000000000002";

/// Each kind with its body.
fn vectors() -> Vec<(Message, String)> {
    let key = [7; 32];
    let reject = Reject { protocol: 6, reason: Reason::Policy, source_port: 40_000, port: 22, maybe_broken: false };
    vec![
        (Message::DiscoKey(DiscoPublic::from_bytes(key)), format!("61{}", "07".repeat(32))),
        (Message::Ping(*b"abcdefgh"), "70 6162636465666768".to_owned()),
        (Message::Pong { token: *b"abcdefgh", peer_api: 58_436 }, "6f 6162636465666768 e444".to_owned()),
        (Message::Reject(reject), "21 06 41 9c40 0016".to_owned()),
        (Message::Reject(Reject { reason: Reason::ShieldsUp, ..reject }), "21 06 53 9c40 0016".to_owned()),
        (Message::Reject(Reject { reason: Reason::NotForwarded, maybe_broken: true, ..reject }), "21 06 46 9c40 0016 01".to_owned()),
        (Message::Reject(Reject { reason: Reason::HostFirewall, ..reject }), "21 06 57 9c40 0016".to_owned()),
        (Message::Reject(Reject { reason: Reason::UnknownTransit, ..reject }), "21 06 54 9c40 0016".to_owned()),
        (Message::Reject(Reject { reason: Reason::Other(b'z'), ..reject }), "21 06 7a 9c40 0016".to_owned()),
    ]
}

#[test]
fn each_message_is_a_whole_ip_packet_of_either_family_and_is_read_back() {
    for (message, body) in vectors() {
        let body = hex(&body);
        let length = u16::try_from(body.len()).unwrap();
        let v4 = packet(true, message).write().unwrap();
        let mut expected = [hex("4500"), (20 + length).to_be_bytes().to_vec(), hex(V4), body.clone()].concat();
        let mut sum: u32 = v4[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff, "the header's checksum");
        expected[10..12].copy_from_slice(&v4[10..12]);
        assert_eq!(v4, expected, "{message:?}");
        let v6 = packet(false, message).write().unwrap();
        assert_eq!(v6, [hex("60000000"), length.to_be_bytes().to_vec(), hex(V6), body].concat(), "{message:?}");
        assert_eq!((Packet::read(&v4), Packet::read(&v6)), (Some(packet(true, message)), Some(packet(false, message))));
        // Later versions may say more.
        let more = [v6, vec![0; 40]].concat();
        assert_eq!(Packet::read(&more), Some(packet(false, message)));
    }
}

#[test]
fn what_is_cut_short_in_pieces_or_unknown_is_of_the_protocol_and_says_nothing() {
    for (message, _) in vectors() {
        for (v4, header) in [(true, 20), (false, 40)] {
            let whole = packet(v4, message).write().unwrap();
            // A pong without a port is one all the same, as are a refusal's absent flags.
            let least = header + if matches!(message, Message::Pong { .. }) { 9 } else { whole.len().min(header + 7) - header };
            let least = if matches!(message, Message::DiscoKey(_) | Message::Ping(_)) { whole.len() } else { least };
            for length in header..least {
                assert_eq!(Packet::read(&whole[..length]).unwrap().message, Message::Unknown, "{message:?} of {length} bytes");
            }
            assert_ne!(Packet::read(&whole[..least]).unwrap().message, Message::Unknown, "{message:?}");
            for length in 0..header {
                assert!(Packet::read(&whole[..length]).is_none_or(|read| read.message == Message::Unknown));
            }
            let mut other = whole.clone();
            other[header] = b'x';
            assert_eq!(Packet::read(&other).unwrap().message, Message::Unknown);
            other[if v4 { 9 } else { 6 }] = 17;
            assert_eq!(Packet::read(&other), None, "another protocol");
        }
        let mut piece = packet(true, message).write().unwrap();
        for field in [[0x20, 0], [0, 1], [0x20, 9]] {
            piece[6..8].copy_from_slice(&field);
            assert_eq!(Packet::read(&piece).unwrap().message, Message::Unknown, "a fragment");
        }
        // Options are passed over; a header that ends within itself holds nothing.
        let mut options = packet(true, message).write().unwrap();
        options.splice(20..20, [1, 1, 1, 1]);
        options[0] = 0x46;
        assert_eq!(Packet::read(&options), Some(packet(true, message)));
        options[0] = 0x44;
        assert_eq!(Packet::read(&options).unwrap().message, Message::Unknown);
    }
}

#[test]
fn nothing_is_said_between_two_families_and_an_unknown_message_cannot_be_said() {
    let mixed = Packet { from: at("100.64.0.1"), to: at("fd7a:115c:a1e0::2"), message: Message::Ping([0; 8]) };
    assert_eq!(mixed.write(), None);
    assert_eq!(packet(true, Message::Unknown).write(), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(junk in proptest::collection::vec(any::<u8>(), 0..100), first: u8, v4: bool) {
        let _ = Packet::read(&junk);
        let mut body = packet(v4, Message::Ping([0; 8])).write().unwrap();
        body[0] = if v4 { 0x40 | first & 0xf } else { 0x60 | first & 0xf };
        body.truncate(if v4 { 20 } else { 40 });
        body.extend(&junk);
        let read = Packet::read(&body).unwrap();
        if read.message != Message::Unknown {
            let again = read.write().unwrap();
            prop_assert_eq!(Packet::read(&again), Some(read));
        }
    }
}
