use std::time::Duration;

use proptest::prelude::*;
use pvemesh::ident::{MeshKey, NodePrivate, NodePublic, RelayPrivate, RelayPublic};
use pvemesh::wire::derp::http::{Reply, ReplyError, Request, challenge_response, key_digits, metacert_key};
use pvemesh::wire::derp::*;

use super::hex;

// Made by an independent program (PyNaCl).
const B_KEY: &str = "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20";

fn b() -> NodePublic {
    NodePublic::from_bytes(hex(B_KEY).try_into().unwrap())
}

fn nonce() -> [u8; NONCE_LEN] {
    std::array::from_fn(|n| u8::try_from(n).unwrap())
}

/// All frames in `bytes` when they arrive in pieces of this size, each as (type, payload).
fn cut(bytes: &[u8], piece: usize) -> Result<Vec<(u8, Vec<u8>)>, StreamError> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for mut piece in bytes.chunks(piece) {
        while let Some(raw) = decoder.next(&mut piece)? {
            frames.push((raw.kind, raw.payload.to_vec()));
        }
    }
    Ok(frames)
}

#[test]
fn the_recorded_frames_are_made_and_read() {
    let key = RelayPublic::from_bytes([0x44; 32]);
    let server_key = format!("010000002844455250f09f9491{}", "44".repeat(32));
    let send = format!("0400000024{B_KEY}deadbeef");
    let packet = [0xde, 0xad, 0xbe, 0xef];
    for (frame, recorded) in [
        (Frame::KeepAlive, "0600000000".to_owned()),
        (Frame::SendPacket { to: b(), packet: &packet }, send),
        (Frame::ServerKey(key), server_key),
    ] {
        assert_eq!(frame.to_bytes(), hex(&recorded));
        let mut bytes = hex(&recorded);
        let (kind, payload) = cut(&bytes, 1000).unwrap().remove(0);
        assert_eq!(Frame::decode(kind, &payload), Ok(Some(frame)));
        // What stands behind the known fields is of later versions.
        if !matches!(frame, Frame::SendPacket { .. }) {
            bytes.extend([9, 9, 9]);
            assert_eq!(Frame::decode(kind, &bytes[HEADER_LEN..]), Ok(Some(frame)));
        }
    }
    assert_eq!(packet_frame(&b(), &packet), Frame::RecvPacket { from: b(), packet: &packet }.to_bytes());
}

fn one_of_each() -> Vec<Frame<'static>> {
    let key = b();
    vec![
        Frame::ServerKey(RelayPublic::from_bytes([7; 32])),
        Frame::ClientInfo { key, sealed: &[1; 90] },
        Frame::ServerInfo { sealed: &[2; 60] },
        Frame::SendPacket { to: key, packet: &[3; 1400] },
        Frame::RecvPacket { from: key, packet: &[] },
        Frame::KeepAlive,
        Frame::NotePreferred(true),
        Frame::NotePreferred(false),
        Frame::PeerGone { key, reason: GoneReason::Disconnected },
        Frame::PeerGone { key, reason: GoneReason::NotHere },
        Frame::PeerPresent {
            key,
            address: Some("203.0.113.9:41641".parse().unwrap()),
            flags: PresentFlags::REGULAR.and(PresentFlags::NOT_IDEAL),
        },
        Frame::PeerPresent { key, address: None, flags: PresentFlags::MESH_PEER },
        Frame::ForwardPacket { from: key, to: NodePublic::from_bytes([8; 32]), packet: &[4; 70] },
        Frame::WatchConns,
        Frame::ClosePeer(key),
        Frame::Ping([1, 2, 3, 4, 5, 6, 7, 8]),
        Frame::Pong([8; 8]),
        Frame::Health(b"too busy"),
        Frame::Health(b""),
        Frame::Restarting { reconnect_in: Duration::from_millis(1500), try_for: Duration::from_secs(60) },
    ]
}

#[test]
fn every_frame_survives_the_way_however_the_stream_is_cut() {
    let frames = one_of_each();
    let mut stream = Vec::new();
    for frame in &frames {
        frame.encode(&mut stream);
        // A type of later days, passed over.
        stream.extend(hex("7f00000003aabbcc"));
    }
    for piece in [1, 2, 3, 5, 7, 64, 1000, stream.len()] {
        let read = cut(&stream, piece).unwrap();
        let read: Vec<_> = read.iter().map(|(kind, payload)| Frame::decode(*kind, payload).unwrap().unwrap()).collect();
        assert_eq!(read, frames, "in pieces of {piece}");
    }
}

#[test]
fn a_frame_that_is_cut_short_is_told_and_a_missing_reason_is_none() {
    for frame in one_of_each() {
        let bytes = frame.to_bytes();
        let least = match frame {
            Frame::ServerKey(_) => 40,
            Frame::ForwardPacket { .. } => 64,
            Frame::Ping(_) | Frame::Pong(_) | Frame::Restarting { .. } => 8,
            Frame::NotePreferred(_) => 1,
            Frame::KeepAlive | Frame::WatchConns | Frame::Health(_) | Frame::ServerInfo { .. } => 0,
            _ => 32,
        };
        for length in 0..least {
            assert_eq!(Frame::decode(bytes[0], &bytes[HEADER_LEN..][..length]), Err(FrameError::Short(bytes[0])), "{frame:?}");
        }
    }
    let gone = Frame::PeerGone { key: b(), reason: GoneReason::Disconnected };
    assert_eq!(Frame::decode(0x08, b().as_bytes()), Ok(Some(gone)), "old relays give no reason");
    let present = Frame::PeerPresent { key: b(), address: None, flags: PresentFlags::default() };
    assert_eq!(Frame::decode(0x09, b().as_bytes()), Ok(Some(present)), "old relays tell the key alone");
    assert_eq!(Frame::decode(0x01, &[7; 40]), Err(FrameError::Magic));
}

#[test]
fn lengths_beyond_the_limit_of_a_type_end_the_stream() {
    for (kind, length) in
        [(0x04, 32 + MAX_PACKET), (0x05, 32 + MAX_PACKET), (0x0a, 64 + MAX_PACKET), (0x02, 8192), (0x12, 1024), (0x7f, MAX_PAYLOAD)]
    {
        let head = |length: usize| [&[kind][..], &u32::try_from(length).unwrap().to_be_bytes()].concat();
        let fits = [head(length), vec![0; length]].concat();
        assert_eq!(cut(&fits, 4096).unwrap().len(), usize::from(kind != 0x7f));
        let expected = StreamError::TooLong { kind, length: u32::try_from(length + 1).unwrap() };
        assert_eq!(cut(&head(length + 1), 1), Err(expected), "type {kind:#x}");
        assert_eq!(cut(&head(length + 1), 5), Err(expected), "type {kind:#x}");
    }
}

#[test]
fn the_handshake_opens_for_whom_it_is_meant_and_names_its_fields_as_others_do() {
    let (node, relay) = (NodePrivate::from_seed([1; 32]), RelayPrivate::from_seed([2; 32]));
    let (at_node, at_relay) = (SharedKey::of_client(&node, &relay.public()), SharedKey::of_relay(&relay, &node.public()));
    let mesh: MeshKey = "ab".repeat(32).parse().unwrap();
    let info = ClientInfo::new(Some(&mesh));
    assert_eq!(serde_json::to_string(&info).unwrap(), format!(r#"{{"meshKey":"{}","version":2,"CanAckPings":true}}"#, "ab".repeat(32)));
    let frame = at_node.client_info(node.public(), nonce(), &info);
    let Ok(Some(Frame::ClientInfo { key, sealed })) = Frame::decode(frame[0], &frame[HEADER_LEN..]) else { panic!() };
    assert_eq!(key, node.public());
    let read: ClientInfo = at_relay.open(sealed).unwrap();
    assert!(read == info && read.mesh_key() == Some(mesh));
    assert!(!format!("{read:?} {at_relay:?} {:?}", read.mesh_key()).contains("abab"), "no secret shows");

    let info = ServerInfo { version: 2, bytes_per_second: 0, bytes_burst: 0 };
    assert_eq!(serde_json::to_string(&info).unwrap(), r#"{"version":2}"#);
    let frame = at_relay.server_info(nonce(), &info);
    assert_eq!(at_node.open::<ServerInfo>(&frame[HEADER_LEN..]), Ok(info));
    let mut altered = frame;
    *altered.last_mut().unwrap() ^= 1;
    assert_eq!(at_node.open::<ServerInfo>(&altered[HEADER_LEN..]), Err(HandshakeError::Forged));
    assert_eq!(at_node.open::<ServerInfo>(&[0; NONCE_LEN + TAG_LEN - 1]), Err(HandshakeError::Short));
    let other = SharedKey::of_client(&NodePrivate::from_seed([3; 32]), &relay.public());
    assert_eq!(other.open::<ServerInfo>(&at_relay.seal(nonce(), &info)), Err(HandshakeError::Forged));
    assert_eq!(at_node.open::<ServerInfo>(&at_relay.seal(nonce(), &"text")), Err(HandshakeError::Content));
    // The nonce is in front, as written by PyNaCl's `Box.encrypt`.
    assert_eq!(at_relay.seal(nonce(), &info)[..NONCE_LEN], nonce());
}

#[test]
fn trap_16_the_answer_is_parsed_exactly_and_what_follows_it_is_kept() {
    let key = RelayPublic::from_bytes([0xa5; 32]);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\nDerp-Public-Key: {}\r\n\r\n",
        key_digits(&key)
    );
    let greeting = Frame::ServerKey(key).to_bytes();
    let bytes = [head.as_bytes(), &greeting].concat();
    for length in 0..head.len() {
        assert_eq!(Reply::parse(&bytes[..length]), Ok(None));
    }
    let reply = Reply::parse(&bytes).unwrap().unwrap();
    assert_eq!((reply.key, &bytes[reply.length..]), (Some(key), greeting.as_slice()));
    assert_eq!(Reply::parse(b"HTTP/1.1 403 Forbidden\r\n\r\n"), Err(ReplyError::Status(403)));
    assert_eq!(Reply::parse(b"SSH-2.0"), Err(ReplyError::NoHttp));
    assert_eq!(Reply::parse(&[b"HTTP/1.1 101 x\r\nA: ".as_slice(), &[b'a'; 9000]].concat()), Err(ReplyError::TooLong));
    let plain = Request { host: "relay.example:8443", fast_start: false, ideal_node: None };
    let expected = "GET /derp HTTP/1.1\r\nHost: relay.example:8443\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";
    assert_eq!(String::from_utf8(plain.to_bytes()).unwrap(), expected);
    let fast = Request { host: "a\r\nEvil: 1", fast_start: true, ideal_node: Some("900a") };
    let fast = String::from_utf8(fast.to_bytes()).unwrap();
    assert!(fast.contains("\r\nDerp-Fast-Start: 1\r\n") && fast.contains("\r\nIdeal-Node: 900a\r\n") && !fast.contains("\nEvil"));
}

#[test]
fn a_relays_key_is_read_from_its_certificate_and_challenges_are_answered() {
    let key = RelayPublic::from_bytes([0x5a; 32]);
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, key.to_string());
    let signer = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let cert = params.self_signed(&signer).unwrap();
    assert_eq!(metacert_key(cert.der()), Some(key));
    let other = rcgen::generate_simple_self_signed(vec!["relay.example".into()]).unwrap();
    assert_eq!(metacert_key(other.cert.der()), None);
    assert_eq!(challenge_response("ts_relay.example").as_deref(), Some("response ts_relay.example"));
    let long = "a".repeat(65);
    for bad in ["", "a b", "a\r\nb", "<x>", long.as_str()] {
        assert_eq!(challenge_response(bad), None);
    }
}

proptest! {
    #[test]
    fn mangled_streams_never_panic(at in any::<prop::sample::Index>(), value: u8, piece in 1usize..200, junk in proptest::collection::vec(any::<u8>(), 0..300)) {
        let key = SharedKey::of_relay(&RelayPrivate::from_seed([2; 32]), &b());
        let mut stream: Vec<u8> = one_of_each().iter().flat_map(Frame::to_bytes).collect();
        let at = at.index(stream.len());
        stream[at] = value;
        read_anything(&stream, piece, &key);
        read_anything(&junk, piece, &key);
        stream.splice(at..at, junk);
        read_anything(&stream, piece, &key);
    }

    #[test]
    fn any_cut_gives_the_same_frames(lengths in proptest::collection::vec(0usize..3000, 1..20), piece in 1usize..5000) {
        let packets: Vec<Vec<u8>> = lengths.iter().map(|n| vec![u8::try_from(n % 251).unwrap(); *n]).collect();
        let stream: Vec<u8> = packets.iter().flat_map(|packet| packet_frame(&b(), packet)).collect();
        let read = cut(&stream, piece).unwrap();
        let read: Vec<_> = read.into_iter().map(|(_, payload)| payload[32..].to_vec()).collect();
        prop_assert_eq!(read, packets);
    }
}
