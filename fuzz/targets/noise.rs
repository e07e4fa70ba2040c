//! The Noise layer: handshake messages of both sides, records, the early payload. The keys are those of the golden vectors, so that the
//! corpus begins with messages that are accepted.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pvemesh::ident::MachinePrivate;
use pvemesh::wire::control::noise::{
    EARLY_HEADER_LEN, HEADER_LEN, INITIATION_LEN, Initiator, Keys, MAX_CIPHERTEXT, MAX_EARLY_LEN, RESPONSE_HEADER_LEN, RESPONSE_LEN,
    Responder, parse_early_header, record_len, response_len,
};

const CLIENT: &str = "privkey:0002030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f60";
const SERVER: &str = "privkey:2022232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40";
const VERSION: u16 = 145;

static KEYS: LazyLock<(MachinePrivate, MachinePrivate)> = LazyLock::new(|| (CLIENT.parse().unwrap(), SERVER.parse().unwrap()));

fn ephemeral(first: u8, last: u8) -> [u8; 32] {
    let mut seed: [u8; 32] = std::array::from_fn(|at| first + u8::try_from(at).unwrap());
    // As in the vectors, where private keys are clamped and the second byte is one higher.
    seed[31] = last;
    seed
}

fn initiator() -> Initiator {
    let (client, server) = &*KEYS;
    Initiator::new(ephemeral(0x40, 0x60), &server.public(), client, VERSION).unwrap()
}

/// A session, client's and server's side.
fn session() -> (Keys, Keys) {
    let initiator = initiator();
    let accepted = Responder::accept(ephemeral(0x60, 0x40), &KEYS.1, initiator.message()).unwrap();
    (initiator.finish(&accepted.response).unwrap(), accepted.keys)
}

fuzz_target!(|data: &[u8]| {
    let Some((what, data)) = data.split_first() else { return };
    match what % 4 {
        0 => {
            let accepted = Responder::accept(ephemeral(0x60, 0x40), &KEYS.1, data);
            assert!(accepted.is_err() || data.len() == INITIATION_LEN);
        }
        1 => {
            if let Some(header) = data.first_chunk::<RESPONSE_HEADER_LEN>()
                && let Ok(length) = response_len(*header)
            {
                assert!(length <= usize::from(u16::MAX) + RESPONSE_HEADER_LEN);
            }
            assert!(initiator().finish(data).is_err() || data.len() == RESPONSE_LEN);
        }
        2 => records(data),
        _ => {
            if let Some(header) = data.first_chunk::<EARLY_HEADER_LEN>()
                && let Ok(Some(length)) = parse_early_header(*header)
            {
                assert!(length <= MAX_EARLY_LEN && header.starts_with(b"\xff\xff\xffTS"));
            }
        }
    }
});

/// Records as they come; then the data sealed and opened again, whole and with one bit turned.
fn records(data: &[u8]) {
    let (mut client, mut server) = session();
    let mut rest = data.to_vec();
    while let Some(header) = rest.first_chunk::<HEADER_LEN>() {
        let Ok(length) = record_len(*header) else { break };
        assert!(length <= MAX_CIPHERTEXT);
        let Some(record) = rest.get_mut(HEADER_LEN..HEADER_LEN + length) else { break };
        if server.opener.open(record).is_err() {
            break;
        }
        rest.drain(..HEADER_LEN + length);
    }

    let (mut sealed, mut opened) = (Vec::new(), Vec::new());
    client.sealer.seal(data, &mut sealed).unwrap();
    let mut fresh = session().1;
    let mut at = 0;
    while let Some(header) = sealed.get(at..).and_then(|rest| rest.first_chunk::<HEADER_LEN>()) {
        let length = record_len(*header).unwrap();
        let record = &mut sealed[at + HEADER_LEN..at + HEADER_LEN + length];
        let mut turned = record.to_vec();
        turned[data.len() % length] ^= 1 << (data.len() % 8);
        assert!(session().1.opener.open(&mut turned).is_err());
        opened.extend_from_slice(fresh.opener.open(record).unwrap());
        at += HEADER_LEN + length;
    }
    assert_eq!(opened, data);
}
