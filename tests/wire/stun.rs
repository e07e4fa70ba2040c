use std::net::SocketAddr;

use proptest::prelude::*;
use pvemesh::wire::stun::*;

use super::hex;

// Made by an independent program (zlib's CRC).
const REQUEST: &str = "000100142112a4420102030405060708090a0b0c802200087461696c6e6f646580280004b32c370f";
const REPLY_V4: &str = "0101000c2112a4420102030405060708090a0b0c00200008000183bbea12d54b";
const REPLY_V6: &str = "010100182112a4420102030405060708090a0b0c00200014000283bb0113a9fa0102030405060708090a0b09";

fn tx() -> TxId {
    TxId(std::array::from_fn(|n| u8::try_from(n + 1).unwrap()))
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A message with these attributes, each with its padding.
fn message(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend(kind.to_be_bytes());
        body.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = kind.to_be_bytes().to_vec();
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(hex("2112a442"));
    message.extend(tx().0);
    message.extend(body);
    message
}

#[test]
fn the_recorded_request_and_answers_are_made_and_read() {
    assert_eq!(request(tx()), hex(REQUEST));
    assert_eq!(request(tx()).len(), REQUEST_LEN);
    assert_eq!(read_request(&hex(REQUEST)), Ok(tx()));
    for (seen, recorded) in [("203.0.113.9:41641", REPLY_V4), ("[2001:db8::5]:41641", REPLY_V6)] {
        assert_eq!(response(tx(), address(seen)), hex(recorded));
        assert_eq!(read_response(&hex(recorded)), Ok((tx(), address(seen))));
    }
}

#[test]
fn a_request_without_the_nodes_software_or_with_anything_behind_the_fingerprint_is_not_answered() {
    let fingerprint = &hex(REQUEST)[36..40];
    let stranger = message(1, &[(0x8022, b"otherone"), (0x8028, fingerprint)]);
    assert_eq!(read_request(&stranger), Err(StunError::Stranger));
    assert_eq!(read_request(&message(1, &[])), Err(StunError::Stranger));
    assert_eq!(read_request(&message(1, &[(0x8022, b"tailnode")])), Err(StunError::Fingerprint));
    // The checksum is right for these bytes, but something follows it.
    let followed = message(1, &[(0x8022, b"tailnode"), (0x8028, fingerprint), (0x8055, b"more")]);
    assert_eq!(read_request(&followed), Err(StunError::Fingerprint));
    // A checksum over the header as it would be without the fingerprint.
    let mut early = message(1, &[(0x8022, b"tailnode")]);
    let sum = crc32fast::hash(&early) ^ 0x5354_554e;
    early[3] = 20;
    early.extend(hex("80280004"));
    early.extend(sum.to_be_bytes());
    assert_eq!(read_request(&early), Err(StunError::Fingerprint));
    assert_eq!(read_request(&hex(REPLY_V4)), Err(StunError::OtherKind));
}

#[test]
fn a_request_with_further_attributes_is_answered() {
    let mut longer = message(1, &[(0x8055, b"later"), (0x8022, b"tailnode")]);
    let length = u8::try_from(longer.len() - 20 + 8).unwrap();
    longer[3] = length;
    let sum = crc32fast::hash(&longer) ^ 0x5354_554e;
    longer.extend(hex("80280004"));
    longer.extend(sum.to_be_bytes());
    assert_eq!(read_request(&longer), Ok(tx()));
}

#[test]
fn a_mapped_ipv4_address_is_told_and_read_as_the_plain_one() {
    assert_eq!(response(tx(), address("[::ffff:203.0.113.9]:41641")), hex(REPLY_V4));
    let mapped = message(0x0101, &[(1, &hex("0002a2a900000000000000000000ffffcb007109"))]);
    assert_eq!(read_response(&mapped), Ok((tx(), address("203.0.113.9:41641"))));
}

#[test]
fn other_servers_attributes_are_understood_or_passed_over() {
    let plain: &[u8] = &hex("0001a2a9cb007107");
    let masked: &[u8] = &hex("000183bbea12d54b");
    let software: &[u8] = b"odd";
    for (attributes, seen) in [
        (vec![(0x8022, software), (1, plain)], Ok("203.0.113.7:41641")),
        (vec![(1, plain), (0x0020, masked)], Ok("203.0.113.9:41641")),
        (vec![(0x8020, masked)], Ok("203.0.113.9:41641")),
        (vec![(0x0020, &plain[..5]), (1, plain)], Ok("203.0.113.7:41641")),
        (vec![(0x8022, software)], Err(StunError::NoAddress)),
        (vec![(1, &hex("0003a2a9cb007107")[..])], Err(StunError::NoAddress)),
        (vec![], Err(StunError::NoAddress)),
    ] {
        assert_eq!(read_response(&message(0x0101, &attributes)), seen.map(|seen| (tx(), address(seen))), "{attributes:?}");
    }
    assert_eq!(read_response(&hex(REQUEST)), Err(StunError::OtherKind));
}

#[test]
fn lengths_that_do_not_add_up_are_refused() {
    for length in 0..REQUEST_LEN {
        assert_eq!(read_request(&hex(REQUEST)[..length]), Err(StunError::Malformed), "{length}");
    }
    let long = [hex(REPLY_V4), vec![0]].concat();
    assert_eq!(read_response(&long), Err(StunError::Malformed));
    let huge = message(0x0101, &[(0x8022, &[0; 2000])]);
    assert_eq!(read_response(&huge), Err(StunError::Malformed));
}

proptest! {
    #[test]
    fn what_is_told_is_read(id: [u8; 12], v4: Option<[u8; 4]>, v6: [u16; 8], port: u16) {
        let seen = v4.map_or_else(|| SocketAddr::from((v6, port)), |v4| SocketAddr::from((v4, port)));
        let seen = SocketAddr::new(seen.ip().to_canonical(), port);
        prop_assert_eq!(read_response(&response(TxId(id), seen)), Ok((TxId(id), seen)));
        prop_assert_eq!(read_request(&request(TxId(id))), Ok(TxId(id)));
    }

    #[test]
    fn one_changed_bit_of_a_request_is_noticed(at in 0usize..REQUEST_LEN, bit in 0u32..8) {
        let mut changed = hex(REQUEST);
        changed[at] ^= 1 << bit;
        prop_assert!(read_request(&changed).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(junk in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u16..0x200) {
        let _ = (read_request(&junk), read_response(&junk));
        // The same with a good header in front.
        let mut message = message(kind, &[]);
        message[2..4].copy_from_slice(&u16::try_from(junk.len()).unwrap().to_be_bytes());
        message.extend(&junk);
        let _ = (read_request(&message), read_response(&message));
        message[..2].copy_from_slice(&[1, 1]);
        let _ = read_response(&message);
    }
}
