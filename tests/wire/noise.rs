use proptest::prelude::*;
use pvemesh::ident::{MachinePrivate, MachinePublic};
use pvemesh::wire::control::noise::*;

use super::hex;

const CLIENT: &str = "privkey:0002030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f60";
const SERVER: &str = "privkey:2022232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40";
const CLIENT_EPHEMERAL: &str = "4042434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f60";
const SERVER_EPHEMERAL: &str = "6062636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f40";
const INITIATION: &str = "009101006064b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d48466822e8514e6389169bdfd10afecae5bded9cda3f0157ac1d03cd3620b3bb73a8615320e365a7604f176544eb4cfbf64d3d2e36dffa1acb4d163edc30d49fc1fcc";
const RESPONSE: &str = "020030244fe3b963e899dd295baffce248d3530f3a9a7479ba063002680ebfe7adad49674687cdc3782c4afd7b5e19331d1bbf";
const CHANNEL: &str = "694b758dd5d2d31e157dd70ebf648b87dd6d915774645a9ecb5dcedf1650ab69";

fn client() -> MachinePrivate {
    CLIENT.parse().unwrap()
}

fn server() -> MachinePrivate {
    SERVER.parse().unwrap()
}

fn seed(text: &str) -> [u8; 32] {
    hex(text).try_into().unwrap()
}

fn initiator() -> Initiator {
    Initiator::new(seed(CLIENT_EPHEMERAL), &server().public(), &client(), 145).unwrap()
}

fn accept(message: &[u8]) -> Result<Accepted, HandshakeError> {
    Responder::accept(seed(SERVER_EPHEMERAL), &server(), message)
}

#[test]
fn trap_01_both_sides_give_the_recorded_bytes_whose_nonces_count_big_endian() {
    let initiator = initiator();
    assert_eq!(initiator.message().as_slice(), hex(INITIATION));
    let accepted = accept(initiator.message()).unwrap();
    assert_eq!(accepted.response.as_slice(), hex(RESPONSE));
    assert_eq!((accepted.machine, accepted.version), (client().public(), 145));
    let mut keys = initiator.finish(&accepted.response).unwrap();
    assert_eq!(keys.channel.as_slice(), hex(CHANNEL));
    assert_eq!(accepted.keys.channel, keys.channel);

    let mut records = Vec::new();
    keys.sealer.seal(b"hello", &mut records).unwrap();
    keys.sealer.seal(b"world", &mut records).unwrap();
    let recorded = "040015110d0d69ba1fbe6a445193b903672412015188ce9d040015894179742a8d5ebdab01014917e5546a62f013ee8c";
    assert_eq!(records, hex(recorded));

    let mut opener = accepted.keys.opener;
    let (first, second) = records.split_at_mut(24);
    assert_eq!(opener.open(&mut first[3..]).unwrap(), b"hello");
    assert_eq!(opener.open(&mut second[3..]).unwrap(), b"world");
}

#[test]
fn the_servers_records_open_on_the_client() {
    let initiator = initiator();
    let mut accepted = accept(initiator.message()).unwrap();
    let mut keys = initiator.finish(&accepted.response).unwrap();
    let mut record = Vec::new();
    accepted.keys.sealer.seal(b"welcome", &mut record).unwrap();
    assert_eq!(keys.opener.open(&mut record[3..]).unwrap(), b"welcome");
}

#[test]
fn trap_04_the_version_of_the_header_is_bound_to_the_handshake() {
    let mut message = *initiator().message();
    message[1] ^= 1;
    assert_eq!(accept(&message).unwrap_err(), HandshakeError::Rejected);
}

#[test]
fn trap_04_the_server_takes_the_prologue_from_the_header_whatever_version_it_names() {
    for version in [0, 113, 145, u16::MAX] {
        let initiator = Initiator::new([5; 32], &server().public(), &client(), version).unwrap();
        let accepted = accept(initiator.message()).unwrap();
        assert_eq!(accepted.version, version);
        initiator.finish(&accepted.response).unwrap();
    }
}

#[test]
fn another_servers_key_is_noticed_by_both_sides() {
    let other = MachinePrivate::from_seed([9; 32]);
    let initiator = Initiator::new([1; 32], &other.public(), &client(), 130).unwrap();
    assert_eq!(accept(initiator.message()).unwrap_err(), HandshakeError::Rejected);
    let answered = accept(self::initiator().message()).unwrap();
    assert_eq!(initiator.finish(&answered.response).unwrap_err(), HandshakeError::Rejected);
}

#[test]
fn a_low_order_server_key_is_refused() {
    let mut one = [0; 32];
    one[0] = 1;
    for key in [[0; 32], one] {
        let refused = Initiator::new([1; 32], &MachinePublic::from_bytes(key), &client(), 130);
        assert_eq!(refused.unwrap_err(), HandshakeError::Rejected);
    }
}

#[test]
fn a_low_order_ephemeral_is_refused() {
    let mut message = *initiator().message();
    message[5..37].fill(0);
    assert_eq!(accept(&message).unwrap_err(), HandshakeError::Rejected);
}

#[test]
fn a_servers_error_text_is_shown_escaped() {
    let refusal = Responder::refusal("too old\x1b[31m");
    assert_eq!(response_len(refusal[..3].try_into().unwrap()).unwrap(), refusal.len());
    let HandshakeError::Refused(text) = initiator().finish(&refusal).unwrap_err() else { panic!("not refused") };
    assert_eq!(text, "too old\\u{1b}[31m");
}

#[test]
fn trap_09_the_early_payload_is_told_from_http2() {
    let bytes = encode_early(&EarlyPayload { node_key_challenge: "chalpub:00".to_owned() }).unwrap();
    assert_eq!(parse_early_header(bytes[..9].try_into().unwrap()).unwrap(), Some(bytes.len() - 9));
    assert_eq!(parse_early_header([0, 0, 18, 4, 0, 0, 0, 0, 0]).unwrap(), None);
    assert!(parse_early_header([0xff, 0xff, 0xff, b'T', b'S', 0x7f, 0, 0, 0]).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(accept(&bytes).is_err());
        prop_assert!(initiator().finish(&bytes).is_err());
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed(at in 0..INITIATION_LEN * 8) {
        // Bit 255 of the ephemeral key is masked by X25519 but still hashed into the handshake.
        let mut message = *initiator().message();
        message[at / 8] ^= 1 << (at % 8);
        prop_assert!(accept(&message).is_err());
    }

    #[test]
    fn a_cut_handshake_is_refused(keep in 0..RESPONSE_LEN) {
        let initiator = initiator();
        let accepted = accept(initiator.message()).unwrap();
        prop_assert!(initiator.finish(&accepted.response[..keep]).is_err());
    }
}
