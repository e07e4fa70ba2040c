use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use pvemesh::ident::{DiscoPrivate, NodePrivate};
use pvemesh::wire::disco::*;

use super::hex;

// Made by an independent program (PyNaCl).
const A_PUBLIC: &str = "discokey:7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13";
const B_PUBLIC: &str = "discokey:0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20";
const PING: &str = "5453f09f92ac7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13000102030405060708090a0b0c0d0e0f\
                    101112131415161703 79216e85609b47e1d2198899dddfbc5a8c18945d97ffce3da53ca6da5d09b7a20c26534c0c1019dbe97e155039\
                    5116df47dbc9a704f0a5990f974c383e";
const PONG: &str = "5453f09f92ac0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20000102030405060708090a0b0c0d0e0f\
                    1011121314151617b7c48e8b38c145001705fe6b5330d0ae598c18945d97ffce3da53ca6da5d72bae5d51274b43d01795c0ac9661ee8\
                    6c37";
const CALL: &str = "030000000000000000000000ffffcb007109a2a920010db8000000000000000000000005a2a9";

fn bytes(text: &str) -> Vec<u8> {
    hex(&text.replace(' ', ""))
}

fn a() -> DiscoPrivate {
    DiscoPrivate::from_seed([0x11; 32])
}

fn b() -> DiscoPrivate {
    DiscoPrivate::from_seed([0x22; 32])
}

fn nonce() -> [u8; NONCE_LEN] {
    std::array::from_fn(|n| u8::try_from(n).unwrap())
}

fn tx() -> TxId {
    TxId(std::array::from_fn(|n| u8::try_from(n + 1).unwrap()))
}

fn ping() -> Message {
    Message::Ping { tx: tx(), node: Some(NodePrivate::from_seed([0x33; 32]).public()) }
}

fn pong() -> Message {
    Message::Pong { tx: tx(), observed: "203.0.113.9:41641".parse().unwrap() }
}

#[test]
fn the_recorded_ping_and_pong_are_made_and_read() {
    assert_eq!((a().public().to_string(), b().public().to_string()), (A_PUBLIC.to_owned(), B_PUBLIC.to_owned()));
    let (at_a, at_b) = (SharedKey::new(&a(), &b().public()), SharedKey::new(&b(), &a().public()));
    for (from, maker, reader, message, recorded) in [(a(), &at_a, &at_b, ping(), PING), (b(), &at_b, &at_a, pong(), PONG)] {
        let recorded = bytes(recorded);
        assert_eq!(maker.seal(&from.public(), nonce(), &message.encode()), recorded);
        let envelope = Envelope::parse(&recorded).unwrap();
        assert_eq!(envelope.sender, from.public());
        assert_eq!(Message::decode(&reader.open(&envelope).unwrap()), Ok(message));
        assert!(looks_like(&recorded) && read_anything(&recorded, reader));
    }
}

#[test]
fn offers_to_guess_ports_are_made_and_read_and_are_of_a_type_that_stock_programs_do_not_know() {
    for (message, recorded) in [
        (Message::SpreadOffer { outside: [203, 0, 113, 9].into() }, "70000000000000000000000000ffffcb0071090000"),
        (Message::SpreadAccept { at: "203.0.113.5:41641".parse().unwrap() }, "70000100000000000000000000ffffcb007105a2a9"),
    ] {
        assert_eq!(message.encode(), hex(recorded));
        assert_eq!(Message::decode(&hex(recorded)), Ok(message.clone()));
        // Stock programs have given out the types 1 to 9 so far.
        assert!(message.encode()[0] > 9);
        assert_eq!(Message::decode(&hex(recorded)[..20]), Err(MessageError::Short));
    }
    let v6 = "70000020010db8000000000000000000000005a2a9";
    assert_eq!(Message::decode(&hex(v6)), Err(MessageError::Unknown(0x70)), "there is nothing to guess in IPv6");
}

#[test]
fn a_call_me_maybe_is_read_and_a_list_that_does_not_add_up_is_empty() {
    let endpoints: Vec<SocketAddr> = vec!["203.0.113.9:41641".parse().unwrap(), "[2001:db8::5]:41641".parse().unwrap()];
    assert_eq!(Message::decode(&hex(CALL)), Ok(Message::CallMeMaybe(endpoints.clone())));
    assert_eq!(Message::CallMeMaybe(endpoints).encode(), hex(CALL));
    let mut odd = hex(CALL);
    odd.push(0);
    let mut newer = hex(CALL);
    newer[1] = 1;
    for message in [odd, newer, vec![3, 0]] {
        assert_eq!(Message::decode(&message), Ok(Message::CallMeMaybe(Vec::new())));
    }
    let long = [vec![3, 0], vec![7; 18 * 1000]].concat();
    let Ok(Message::CallMeMaybe(endpoints)) = Message::decode(&long) else { panic!() };
    assert_eq!(endpoints.len(), MAX_ENDPOINTS);
}

#[test]
fn padding_later_fields_and_a_missing_node_key_are_no_errors() {
    let mut padded = ping().encode();
    padded.extend([0; 1200]);
    assert_eq!(Message::decode(&padded), Ok(ping()));
    padded[1] = 7;
    assert_eq!(Message::decode(&padded), Ok(ping()), "pings are read whatever their version");
    let old = Message::Ping { tx: tx(), node: None };
    assert_eq!(Message::decode(&ping().encode()[..14]), Ok(old.clone()));
    assert_eq!(Message::decode(&old.encode()), Ok(old));
    let mut grown = pong().encode();
    grown.extend([9; 50]);
    assert_eq!(Message::decode(&grown), Ok(pong()));
}

#[test]
fn what_is_unknown_or_cut_short_is_told_apart() {
    for kind in (4..=9).chain([0, 200]) {
        assert_eq!(Message::decode(&[kind, 0, 1, 2, 3]), Err(MessageError::Unknown(kind)));
    }
    for message in [&[][..], &[1], &[1, 0], &ping().encode()[..13], &pong().encode()[..31]] {
        assert_eq!(Message::decode(message), Err(MessageError::Short), "{message:?}");
    }
    let key = SharedKey::new(&b(), &a().public());
    let recorded = bytes(PING);
    assert_eq!(Envelope::parse(&recorded[..HEADER_LEN - 1]), None);
    for length in HEADER_LEN..HEADER_LEN + TAG_LEN {
        assert_eq!(key.open(&Envelope::parse(&recorded[..length]).unwrap()), Err(OpenError::Short));
    }
    let mut huge = recorded;
    huge.resize(MAX_DATAGRAM + 1, 0);
    assert_eq!(Envelope::parse(&huge), None);
}

#[test]
fn a_shared_key_shows_nothing() {
    assert_eq!(format!("{:?}", SharedKey::new(&a(), &b().public())), "SharedKey(..)");
}

fn any_endpoint() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
        any::<([u16; 8], u16)>().prop_map(|(ip, port)| {
            // A mapped address is the same as the plain one, and is read as that.
            SocketAddr::new(IpAddr::from(ip).to_canonical(), port)
        }),
    ]
}

proptest! {
    #[test]
    fn messages_survive_the_way_there_and_back(
        tx: [u8; 12], node: Option<[u8; 32]>, observed in any_endpoint(), list in proptest::collection::vec(any_endpoint(), 0..20),
        random: [u8; NONCE_LEN], padding in 0usize..100,
    ) {
        let (at_a, at_b) = (SharedKey::new(&a(), &b().public()), SharedKey::new(&b(), &a().public()));
        let node = node.map(pvemesh::ident::NodePublic::from_bytes);
        for message in [Message::Ping { tx: TxId(tx), node }, Message::Pong { tx: TxId(tx), observed }, Message::CallMeMaybe(list)] {
            let mut plain = message.encode();
            if !matches!(message, Message::CallMeMaybe(_) | Message::Ping { node: None, .. }) {
                plain.resize(plain.len() + padding, 0);
            }
            let packet = at_a.seal(&a().public(), random, &plain);
            let opened = at_b.open(&Envelope::parse(&packet).unwrap()).unwrap();
            prop_assert_eq!(Message::decode(&opened), Ok(message));
        }
    }

    #[test]
    fn one_changed_bit_is_noticed(at in 0usize..124, bit in 0u32..8) {
        let mut packet = bytes(PING);
        packet[at] ^= 1 << bit;
        let key = SharedKey::new(&b(), &a().public());
        match Envelope::parse(&packet) {
            None => prop_assert!(at < MAGIC.len()),
            // The sender's key is looked up by whoever receives, and is bound by the box through the shared key alone.
            Some(envelope) if (6..38).contains(&at) => prop_assert_ne!(envelope.sender, a().public()),
            Some(envelope) => prop_assert_eq!(key.open(&envelope), Err(OpenError::Forged)),
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(junk in proptest::collection::vec(any::<u8>(), 0..400), start in 0usize..3) {
        let key = SharedKey::new(&b(), &a().public());
        read_anything(&junk, &key);
        // The same with a beginning that gets past the first look, and inside a good box.
        let start = [Vec::new(), MAGIC.to_vec(), bytes(PING)[..HEADER_LEN].to_vec()][start].clone();
        read_anything(&[start, junk.clone()].concat(), &key);
        let sealed = SharedKey::new(&a(), &b().public()).seal(&a().public(), nonce(), &junk);
        prop_assert_eq!(read_anything(&sealed, &key), Message::decode(&junk).is_ok());
    }
}
