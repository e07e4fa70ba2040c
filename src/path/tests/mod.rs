//! The core by value: what goes in, what comes out.

#![allow(clippy::indexing_slicing, reason = "test code")]

mod choice;
mod messages;
mod probing;
mod relayed;
mod spreading;

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::ident::{DiscoPrivate, DiscoPublic, NodePublic, RegionId};
use crate::time::Time;
use crate::wire::disco::{Envelope, Message, SharedKey, TxId};

const LAN: &str = "192.168.1.5:41641";
const WAN: &str = "203.0.113.5:41641";
const CAFE: &str = "198.51.100.9:1024";

fn ms(milliseconds: u64) -> Time {
    Time::from_start(Duration::from_millis(milliseconds))
}

fn at(seconds: u64) -> Time {
    ms(seconds * 1000)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn direct(text: &str) -> Path {
    Path::Direct(address(text))
}

fn node(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn disco(n: u8) -> DiscoPrivate {
    DiscoPrivate::from_seed([n; 32])
}

/// What our node is in these tests.
const US: u8 = 1;
/// And the peer.
const THEM: u8 = 2;

struct Bench {
    paths: Paths,
    them: DiscoPrivate,
    sent: Vec<(SocketAddr, Message)>,
    relayed: Vec<(RegionId, Message)>,
    events: Vec<Event>,
    next_tx: u8,
}

impl Bench {
    fn with(peers: &[Peer]) -> Self {
        let mut paths = Paths::new(node(US), disco(US), [7; 32]);
        paths.set_peers(at(0), peers);
        Self { paths, them: disco(THEM), sent: Vec::new(), relayed: Vec::new(), events: Vec::new(), next_tx: 0 }
    }

    /// A bench with one peer that has a disco key.
    fn new(addresses: &[&str]) -> Self {
        Self::with(&[peer(addresses)])
    }

    fn key(&self) -> SharedKey {
        SharedKey::new(&self.them, &disco(US).public())
    }

    /// What has been sent since the last look, opened as the peer would.
    fn sent(&mut self) -> Vec<(SocketAddr, Message)> {
        self.drain();
        std::mem::take(&mut self.sent)
    }

    fn drain(&mut self) {
        while let Some(Transmit { to, contents, .. }) = self.paths.poll_transmit() {
            let envelope = Envelope::parse(&contents).unwrap();
            assert_eq!(envelope.sender, disco(US).public());
            let message = Message::decode(&self.key().open(&envelope).unwrap()).unwrap();
            match to {
                Path::Direct(to) => self.sent.push((to, message)),
                Path::Relay(region) => self.relayed.push((region, message)),
            }
        }
        self.events.extend(std::iter::from_fn(|| self.paths.poll_event()));
    }

    fn pings(&mut self) -> Vec<(SocketAddr, TxId)> {
        let ping = |(to, message)| match message {
            Message::Ping { tx, node: Some(key) } => {
                assert_eq!(key, node(US));
                Some((to, tx))
            }
            _ => None,
        };
        self.sent().into_iter().filter_map(ping).collect()
    }

    fn pinged(&mut self) -> Vec<SocketAddr> {
        self.pings().into_iter().map(|(to, _)| to).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        self.drain();
        std::mem::take(&mut self.events)
    }

    fn receive(&mut self, now: Time, from: &str, message: &Message) {
        let packet = self.key().seal(&self.them.public(), [9; 24], &message.encode());
        self.paths.handle_datagram(now, Local::MAIN, address(from), &packet);
    }

    fn pong(&mut self, now: Time, from: &str, tx: TxId) {
        self.receive(now, from, &Message::Pong { tx, observed: address("203.0.113.77:9") });
    }

    fn ping(&mut self, now: Time, from: &str) -> TxId {
        self.next_tx += 1;
        let tx = TxId([self.next_tx; 12]);
        self.receive(now, from, &Message::Ping { tx, node: Some(node(THEM)) });
        tx
    }

    fn send(&mut self, now: Time) {
        self.paths.sending(now, &node(THEM));
    }

    fn hear(&mut self, now: Time, from: &str) {
        self.paths.heard(now, &node(THEM), direct(from));
    }

    fn ask(&mut self, now: Time) -> Vec<Path> {
        self.paths.ask(now, &node(THEM))
    }

    fn answered(&mut self, now: Time, from: &str) {
        self.paths.answered(now, &node(THEM), direct(from));
    }

    fn best(&self) -> Option<Path> {
        self.paths.route(&node(THEM)).direct.map(Path::Direct)
    }

    /// Sends data at `now` and answers the pings to these addresses, each so many milliseconds later.
    fn prove(&mut self, now: Time, answers: &[(&str, u64)]) {
        self.send(now);
        let pings = self.pings();
        for (to, latency) in answers {
            let tx = pings.iter().find(|(address, _)| *address == to.parse().unwrap()).unwrap().1;
            self.pong(now + Duration::from_millis(*latency), to, tx);
        }
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, until: Time) {
        while let Some(deadline) = self.paths.poll_timeout().filter(|deadline| deadline.at <= until) {
            self.paths.handle_timeout(deadline.at);
        }
    }

    fn counters(&self) -> Counters {
        self.paths.counters()
    }
}

fn peer(addresses: &[&str]) -> Peer {
    let addresses = addresses.iter().map(|a| address(a)).collect();
    Peer { key: node(THEM), disco: Some(disco(THEM).public()), addresses, home: None }
}

fn without_disco(addresses: &[&str]) -> Bench {
    Bench::with(&[Peer { disco: None, ..peer(addresses) }])
}
