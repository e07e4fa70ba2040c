use std::time::Duration;

use pvemesh::ident::{NodePrivate, NodePublic, RelayPrivate};
use pvemesh::relay::client::{Client, Ended, Event, HANDSHAKE, PING, QUEUE, SILENCE};
use pvemesh::wire::derp::{ClientInfo, Decoder, Frame, FrameError, GoneReason, NONCE_LEN, ServerInfo, SharedKey};
use pvemesh::wire::disco;

use super::at;

/// A client and the relay's side of the conversation.
struct Talk {
    client: Client,
    node: NodePrivate,
    relay: RelayPrivate,
}

impl Talk {
    fn new(fast: bool) -> Self {
        let (node, relay) = (NodePrivate::from_seed([1; 32]), RelayPrivate::from_seed([2; 32]));
        let known = fast.then(|| relay.public());
        Self { client: Client::new(at(0), [3; 32], node.clone(), ClientInfo::new(None), known), node, relay }
    }

    fn ready(info: ServerInfo) -> Self {
        let mut talk = Self::new(false);
        talk.hear(0, &Frame::ServerKey(talk.relay.public()));
        assert_eq!(talk.said().len(), 1);
        talk.welcome(info);
        assert_eq!(talk.client.poll_event(), Some(Event::Ready { info }));
        talk
    }

    fn shared(&self) -> SharedKey {
        SharedKey::of_relay(&self.relay, &self.node.public())
    }

    fn welcome(&mut self, info: ServerInfo) {
        let frame = self.shared().server_info([9; NONCE_LEN], &info);
        self.client.handle_bytes(at(0), &frame);
    }

    fn hear(&mut self, millis: u64, frame: &Frame<'_>) {
        self.client.handle_bytes(at(millis), &frame.to_bytes());
    }

    /// What it wants to write.
    fn said(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.client.poll_transmit()).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.client.poll_event()).collect()
    }
}

fn peer(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

#[test]
fn it_introduces_itself_once_the_relay_told_its_key_and_sends_without_waiting() {
    let mut talk = Talk::new(false);
    talk.client.send(at(0), peer(7), b"early");
    talk.client.note_preferred(true);
    assert_eq!(talk.said().len(), 0, "nothing before the relay's key");
    talk.hear(1, &Frame::ServerKey(talk.relay.public()));
    let said = talk.said();
    let mut decoder = Decoder::default();
    let mut bytes = said[0].as_slice();
    let Ok(Some(Frame::ClientInfo { key, sealed })) = decoder.next(&mut bytes).unwrap().unwrap().frame() else { panic!() };
    assert_eq!(key, talk.node.public());
    let info: ClientInfo = talk.shared().open(sealed).unwrap();
    assert!(info.can_ack_pings && info.version == 2);
    assert_eq!(said[1..], [Frame::NotePreferred(true).to_bytes(), Frame::SendPacket { to: peer(7), packet: b"early" }.to_bytes()]);
    assert!(!talk.client.is_ready());
    talk.welcome(ServerInfo::default());
    assert!(talk.client.is_ready());
}

#[test]
fn trap_16_after_a_fast_start_the_relays_key_is_passed_over() {
    let mut talk = Talk::new(true);
    assert_eq!(talk.said().len(), 1, "it introduces itself at once");
    talk.hear(1, &Frame::ServerKey(talk.relay.public()));
    assert_eq!(talk.said().len(), 0);
    talk.welcome(ServerInfo::default());
    assert!(talk.client.is_ready());
}

#[test]
fn a_relay_that_cannot_prove_its_key_or_is_none_ends_it() {
    let mut talk = Talk::new(false);
    talk.hear(0, &Frame::ServerKey(RelayPrivate::from_seed([99; 32]).public()));
    talk.welcome(ServerInfo::default());
    assert!(matches!(talk.events()[..], [Event::Ended(Ended::Unproven(_))]));
    let mut talk = Talk::new(false);
    talk.client.handle_bytes(at(0), &[&[1, 0, 0, 0, 40][..], &[7; 40]].concat());
    assert_eq!(talk.events(), [Event::Ended(Ended::Greeting(FrameError::Magic))]);
    let mut talk = Talk::ready(ServerInfo::default());
    talk.client.handle_bytes(at(0), &[5, 0xff, 0, 0, 0]);
    assert!(matches!(talk.events()[..], [Event::Ended(Ended::Stream(_))]));
    talk.client.send(at(0), peer(1), b"x");
    assert_eq!((talk.said().len(), talk.client.poll_timeout()), (0, None));
}

#[test]
fn trap_17_a_relay_is_given_two_minutes_of_silence_and_any_frame_counts() {
    let mut talk = Talk::ready(ServerInfo::default());
    let silence = u64::try_from(SILENCE.as_millis()).unwrap();
    assert_eq!(talk.client.poll_timeout().unwrap().at, at(silence));
    talk.client.handle_timeout(at(silence - 1));
    talk.hear(65_000, &Frame::KeepAlive);
    talk.client.handle_timeout(at(silence));
    assert_eq!(talk.events(), []);
    // One of a type that is not known is a sign of life only if it is read; a packet is.
    talk.hear(100_000, &Frame::RecvPacket { from: peer(1), packet: b"x" });
    assert_eq!(talk.client.poll_timeout().unwrap().at, at(100_000 + silence));
    talk.client.handle_timeout(at(100_000 + silence));
    assert_eq!(talk.events(), [Event::Packet { from: peer(1), bytes: b"x".to_vec() }, Event::Ended(Ended::Silence)]);
}

#[test]
fn a_relay_that_does_not_let_us_in_is_left() {
    for introduced in [false, true] {
        let mut talk = Talk::new(introduced);
        let limit = talk.client.poll_timeout().unwrap();
        assert_eq!(limit.at, at(u64::try_from(HANDSHAKE.as_millis()).unwrap()));
        talk.client.handle_timeout(limit.at);
        assert_eq!(talk.events(), [Event::Ended(Ended::Handshake)]);
    }
}

#[test]
fn trap_18_a_slow_relay_holds_nobody_up_and_probes_overtake_data() {
    let mut talk = Talk::ready(ServerInfo::default());
    let probe = [&disco::MAGIC[..], &[0; 100]].concat();
    for n in 0..200u8 {
        talk.client.send(at(0), peer(1), &[n; 10]);
    }
    talk.client.send(at(0), peer(1), &probe);
    let said = talk.said();
    assert_eq!(said.len(), QUEUE + 1);
    assert_eq!(said[0], Frame::SendPacket { to: peer(1), packet: &probe }.to_bytes());
    assert_eq!(
        said[1],
        Frame::SendPacket { to: peer(1), packet: &[200 - u8::try_from(QUEUE).unwrap(); 10] }.to_bytes(),
        "the oldest are dropped"
    );
    assert_eq!(talk.client.counters().queue_full, 200 - QUEUE as u64);
}

#[test]
fn trap_19_the_sender_is_the_one_the_relay_names() {
    let mut talk = Talk::ready(ServerInfo::default());
    // The packet begins with another key: nothing inside it counts.
    talk.hear(0, &Frame::RecvPacket { from: peer(1), packet: peer(2).as_bytes() });
    assert_eq!(talk.events(), [Event::Packet { from: peer(1), bytes: peer(2).as_bytes().to_vec() }]);
}

#[test]
fn pings_are_answered_both_ways_or_lost() {
    let mut talk = Talk::ready(ServerInfo::default());
    talk.hear(0, &Frame::Ping([5; 8]));
    assert_eq!(talk.said(), [Frame::Pong([5; 8]).to_bytes()]);
    let first = talk.client.ping(at(1000)).unwrap();
    let second = talk.client.ping(at(2000)).unwrap();
    assert_eq!(talk.said(), [first, second].map(|ping| Frame::Ping(ping.to_be_bytes()).to_bytes()));
    assert_eq!(talk.client.poll_timeout().unwrap().at, at(1000) + PING);
    talk.hear(2030, &Frame::Pong(second.to_be_bytes()));
    talk.hear(2030, &Frame::Pong([0; 8]));
    talk.client.handle_timeout(at(1000) + PING);
    assert_eq!(talk.events(), [Event::Pong { ping: second, after: Duration::from_millis(30) }, Event::PingLost { ping: first }]);
    assert_eq!(talk.client.counters().stray_frames, 1);
    assert_eq!((0..20).filter_map(|_| talk.client.ping(at(9000))).count(), 8, "no more are under way at once");
}

#[test]
fn it_polices_itself_by_what_the_relay_allows() {
    let burst = 64 * 1024 + 37;
    let mut talk = Talk::ready(ServerInfo { version: 2, bytes_per_second: 1000, bytes_burst: burst });
    talk.client.send(at(0), peer(1), &vec![0; 64 * 1024]);
    talk.client.send(at(0), peer(1), b"one too many");
    assert_eq!((talk.said().len(), talk.client.counters().over_limit), (1, 1));
    talk.client.send(at(500), peer(1), &[0; 463]);
    talk.client.send(at(500), peer(1), b"");
    assert_eq!((talk.said().len(), talk.client.counters().over_limit), (1, 2), "500 bytes came back, headers included");
    talk.client.send(at(600_000), peer(1), &vec![0; 64 * 1024 + 1]);
    assert_eq!((talk.said().len(), talk.client.counters().over_limit), (0, 3), "longer than any packet");
}

#[test]
fn what_the_relay_says_of_peers_and_of_itself_is_told() {
    let mut talk = Talk::ready(ServerInfo::default());
    talk.hear(0, &Frame::PeerGone { key: peer(1), reason: GoneReason::NotHere });
    talk.hear(0, &Frame::Health(&[b'x'; 1000]));
    talk.hear(0, &Frame::Health(b""));
    let (reconnect_in, try_for) = (Duration::from_secs(1), Duration::from_secs(30));
    talk.hear(0, &Frame::Restarting { reconnect_in, try_for });
    talk.hear(0, &Frame::NotePreferred(true));
    talk.client.handle_bytes(at(0), &[0x08, 0, 0, 0, 1, 0]);
    let events = talk.events();
    assert_eq!(events[0], Event::PeerGone { peer: peer(1), reason: GoneReason::NotHere });
    assert_eq!(events[1], Event::Health(Some("x".repeat(512))));
    assert_eq!(events[2..], [Event::Health(None), Event::Restarting { reconnect_in, try_for }]);
    assert_eq!(talk.client.counters().stray_frames, 2);
}

#[test]
fn the_home_is_told_once_per_change() {
    let mut talk = Talk::ready(ServerInfo::default());
    talk.client.note_preferred(true);
    talk.client.note_preferred(true);
    assert_eq!(talk.said(), [Frame::NotePreferred(true).to_bytes()]);
    talk.client.note_preferred(false);
    talk.client.note_preferred(true);
    assert_eq!(talk.said().len(), 0);
    talk.client.note_preferred(false);
    assert_eq!(talk.said(), [Frame::NotePreferred(false).to_bytes()]);
}
