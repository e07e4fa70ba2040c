//! Tunnels and the gate, without sockets.
#![allow(clippy::indexing_slicing, clippy::disallowed_methods, reason = "test code; boringtun reads the clock itself")]

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::demux::{Kind, classify};
use super::wireguard::INITIATION_GAP;
use super::{Admission, Gate, MIN_ROOM, OVERHEAD, Opened, Refusal, Sealed, Tick, Tunnel};
use crate::ident::NodePrivate;

const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn key(n: u8) -> NodePrivate {
    NodePrivate::from_seed([n; 32])
}

fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; length.max(20)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(length.max(20)).unwrap().to_be_bytes());
    packet[12..16].copy_from_slice(&[100, 64, 0, 1]);
    packet
}

/// Two tunnels to each other, before any handshake.
fn pair() -> (Tunnel, Tunnel) {
    (Tunnel::new(&key(1), &key(2).public(), 7), Tunnel::new(&key(2), &key(1).public(), 0x00ff_ffff))
}

fn seal(tunnel: &mut Tunnel, packet: &[u8]) -> (Sealed, Vec<u8>) {
    let mut room = vec![0; (packet.len() + OVERHEAD).max(MIN_ROOM)];
    let sealed = tunnel.seal(packet, &mut room);
    if let Sealed::Data(length) | Sealed::Initiation(length) = sealed {
        room.truncate(length);
    }
    (sealed, room)
}

/// The handshake up to a session on both sides; `waiting` is what the initiator sends first.
fn handshake(a: &mut Tunnel, b: &mut Tunnel, waiting: &[u8]) -> Vec<u8> {
    let (sealed, initiation) = seal(a, waiting);
    assert_eq!(sealed, Sealed::Initiation(148));
    let (mut room_a, mut room_b) = (vec![0; 2000], vec![0; 2000]);
    let Opened::Reply { message: response, established: false } = b.open(FROM, &initiation, &mut room_b) else { panic!("no response") };
    let Opened::Reply { message: first, established: true } = a.open(FROM, response, &mut room_a) else { panic!("no session") };
    assert_eq!(b.open(FROM, first, &mut room_b), Opened::Nothing);
    let length = a.release(&mut room_a).unwrap();
    room_a.truncate(length);
    room_a
}

#[test]
fn a_packet_waits_for_the_handshake_and_then_arrives() {
    let (mut a, mut b) = pair();
    assert!(!a.has_session() && a.session_age().is_none());
    let waited = handshake(&mut a, &mut b, &packet(99));
    let mut room = vec![0; 2000];
    assert_eq!(b.open(FROM, &waited, &mut room), Opened::Packet(&mut packet(99), [100, 64, 0, 1].into()));
    assert!(a.has_session() && b.has_session());
    assert_eq!(a.release(&mut room), None);
    assert!(!a.has_waiting());
    let (sealed, _) = seal(&mut b, &packet(50));
    assert_eq!(sealed, Sealed::Data(50 + OVERHEAD));
}

/// wireguard-go does that when two copies of an initiation arrive at the same moment.
#[test]
fn a_peer_that_answers_twice_gets_another_handshake_unless_the_session_is_good() {
    let answers = |a: &mut Tunnel, first: &mut Tunnel, second: &mut Tunnel| {
        let (_, initiation) = seal(a, &packet(99));
        let (mut room, mut room_a) = (vec![0; 2000], vec![0; 2000]);
        let mut empty = Vec::new();
        for (n, b) in [first, second].into_iter().enumerate() {
            let Opened::Reply { message, established: false } = b.open(FROM, &initiation, &mut room) else { panic!("no response") };
            match a.open(FROM, message, &mut room_a) {
                Opened::Reply { message, established: true } if n == 0 => empty = message.to_vec(),
                Opened::Refused(Refusal::NoSession) if n == 1 => {}
                other => panic!("{other:?}"),
            }
        }
        empty
    };
    let ticked = |a: &mut Tunnel| {
        std::thread::sleep(INITIATION_GAP);
        let mut room = vec![0; MIN_ROOM];
        match a.tick(&mut room) {
            Tick::Initiation(length) => Some(room[..length].to_vec()),
            _ => None,
        }
    };
    // What the peer is left with is the session of its second answer.
    let ((mut a, mut first), (_, mut second)) = (pair(), pair());
    let empty = answers(&mut a, &mut first, &mut second);
    let mut room = vec![0; 2000];
    assert!(matches!(second.open(FROM, &empty, &mut room), Opened::Refused(_)), "the peer cannot read what we send");
    let again = ticked(&mut a).expect("another handshake");
    assert_eq!(ticked(&mut a), None, "one is enough");
    let Opened::Reply { message, established: false } = second.open(FROM, &again, &mut room) else { panic!("no response") };
    let response = message.to_vec();
    let mut room_a = vec![0; 2000];
    let Opened::Reply { message, established: true } = a.open(FROM, &response, &mut room_a) else { panic!("no session") };
    assert_eq!(second.open(FROM, message, &mut room), Opened::Nothing);

    // The peer has kept the first: what it sends shows it.
    let ((mut a, mut first), (_, mut second)) = (pair(), pair());
    let empty = answers(&mut a, &mut first, &mut second);
    assert_eq!(first.open(FROM, &empty, &mut room), Opened::Nothing);
    let (sealed, data) = seal(&mut first, &packet(50));
    assert_eq!(sealed, Sealed::Data(50 + OVERHEAD));
    assert!(matches!(a.open(FROM, &data, &mut room), Opened::Packet(..)));
    assert_eq!(ticked(&mut a), None);
}

#[test]
fn messages_carry_the_index_of_the_tunnel_they_are_for() {
    let (mut a, mut b) = pair();
    let data = handshake(&mut a, &mut b, &packet(20));
    let Kind::Data { receiver } = classify(&data) else { panic!("no data") };
    assert_eq!(Tunnel::index_of(receiver), 0x00ff_ffff);
}

#[test]
fn a_replayed_a_changed_and_a_foreign_message_are_refused() {
    let (mut a, mut b) = pair();
    let data = handshake(&mut a, &mut b, &packet(600));
    let mut room = vec![0; 2000];
    for at in [16, 300, data.len() - 1] {
        let mut changed = data.clone();
        changed[at] ^= 1;
        assert_eq!(b.open(FROM, &changed, &mut room), Opened::Refused(Refusal::Forged), "byte {at}");
    }
    assert!(matches!(b.open(FROM, &data, &mut room), Opened::Packet(..)));
    assert_eq!(b.open(FROM, &data, &mut room), Opened::Refused(Refusal::Replayed));
    let (mut c, mut d) = (Tunnel::new(&key(1), &key(3).public(), 1), Tunnel::new(&key(3), &key(1).public(), 2));
    let foreign = handshake(&mut c, &mut d, &packet(600));
    assert_eq!(b.open(FROM, &foreign, &mut room), Opened::Refused(Refusal::NoSession));
}

#[test]
fn what_is_no_ip_packet_inside_is_refused() {
    for (inside, length) in [(0x00_u8, 40), (0x45, 19), (0x60, 39), (0xff, 1)] {
        let (mut a, mut b) = pair();
        handshake(&mut a, &mut b, &packet(20));
        let mut bad = vec![inside; length];
        bad[0] = inside;
        let (_, sealed) = seal(&mut a, &bad);
        let mut room = vec![0; 2000];
        assert_eq!(b.open(FROM, &sealed, &mut room), Opened::Refused(Refusal::Malformed), "{inside:#x}, {length} bytes");
    }
    // A length in the header beyond the packet's end.
    let (mut a, mut b) = pair();
    handshake(&mut a, &mut b, &packet(20));
    let mut long = packet(40);
    long[3] = 41;
    let (_, sealed) = seal(&mut a, &long);
    assert_eq!(b.open(FROM, &sealed, &mut vec![0; 2000]), Opened::Refused(Refusal::Malformed));
}

#[test]
fn too_small_a_room_is_refused_and_never_written_past() {
    let (mut a, mut b) = pair();
    let data = handshake(&mut a, &mut b, &packet(600));
    for length in [0, 147, data.len() - 1] {
        assert_eq!(b.open(FROM, &data, &mut vec![0; length]), Opened::Refused(Refusal::Malformed));
        assert_eq!(b.release(&mut vec![0; length.min(147)]), None);
        assert_eq!(b.tick(&mut vec![0; length.min(147)]), Tick::Nothing);
        assert_eq!(b.keepalive(&mut vec![0; length.min(147)]), None);
    }
}

#[test]
fn without_a_session_there_is_no_keepalive_and_with_one_it_is_empty() {
    let (mut a, mut b) = pair();
    let mut room = vec![0; 2000];
    assert_eq!(a.keepalive(&mut room), None);
    handshake(&mut a, &mut b, &packet(20));
    assert_eq!(a.keepalive(&mut room), Some(OVERHEAD));
    let mut other = vec![0; 2000];
    assert_eq!(b.open(FROM, &room[..OVERHEAD], &mut other), Opened::Nothing);
}

#[test]
fn a_handshake_is_started_once() {
    let (mut a, _) = pair();
    let mut room = vec![0; MIN_ROOM];
    assert_eq!(a.initiate(&mut room), Some(148));
    assert_eq!(a.initiate(&mut room), None);
    assert_eq!(seal(&mut a, &packet(30)).0, Sealed::Waiting);
}

#[test]
fn the_gate_names_the_sender_of_an_initiation_and_refuses_a_wrong_checksum() {
    let gate = Gate::new(&key(2));
    let (mut a, _) = pair();
    let (_, initiation) = seal(&mut a, &packet(20));
    let mut room = [0; MIN_ROOM];
    assert_eq!(gate.admit(FROM, &initiation, &mut room), Admission::Initiation(key(1).public()));
    for at in [4, 20, 60, 100, 120] {
        let mut changed = initiation.clone();
        changed[at] ^= 1;
        assert_eq!(gate.admit(FROM, &changed, &mut room), Admission::Refused(Refusal::Forged), "byte {at}");
    }
    let other = Gate::new(&key(3));
    assert_eq!(other.admit(FROM, &initiation, &mut room), Admission::Refused(Refusal::Forged));
    assert_eq!(gate.admit(FROM, &initiation[..100], &mut room), Admission::Refused(Refusal::Malformed));
}

#[test]
fn under_a_flood_senders_must_show_a_cookie() {
    let gate = Gate::new(&key(2));
    let (mut a, _) = pair();
    let (_, initiation) = seal(&mut a, &packet(20));
    let mut room = [0; MIN_ROOM];
    let mut cookie = None;
    for _ in 0..200 {
        match gate.admit(FROM, &initiation, &mut room) {
            Admission::Cookie(message) => cookie = Some(message.to_vec()),
            admission => assert_eq!(admission, Admission::Initiation(key(1).public())),
        }
    }
    let cookie = cookie.expect("two hundred handshakes within a second are a flood");
    assert!(matches!(classify(&cookie), Kind::Cookie { .. }));
    // Only who gets what is sent to that address, and sent the initiation itself, can use it.
    let (mut other, _) = pair();
    let mut room = [0; 200];
    assert_eq!(other.open(FROM, &cookie, &mut room), Opened::Refused(Refusal::NoSession));
    assert_eq!(a.open(FROM, &cookie, &mut room), Opened::Nothing);
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic_and_open_nothing(kind in 0..6_u8, length in prop_oneof![0..200_usize, Just(148), Just(92), Just(64)], seed in any::<u8>()) {
        let (mut a, mut b) = pair();
        handshake(&mut a, &mut b, &packet(20));
        let mut message: Vec<u8> = (0..length).map(|n| (n as u8).wrapping_mul(seed)).collect();
        if length >= 4 {
            message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        }
        let mut room = vec![0; 2000];
        prop_assert!(matches!(b.open(FROM, &message, &mut room), Opened::Refused(_)));
        prop_assert!(matches!(Gate::new(&key(2)).admit(FROM, &message, &mut room), Admission::Refused(_)));
    }
}

#[test]
fn each_session_begins_once_however_late_packets_of_the_one_before_come() {
    let (mut a, _) = pair();
    let at = |session: u32| 7 << 8 | session;
    let begins: Vec<bool> = [1, 1, 2, 1, 2, 200, 2, 200, 255, 0, 255, 0, 1].map(|session| a.begins(at(session))).into();
    assert_eq!(begins, [true, false, true, false, false, true, false, false, true, true, false, false, true]);
    a.forget_sessions(&NodePrivate::from_seed([1; 32]));
    assert!(a.begins(at(1)), "the sessions of before are gone");
}
