//! Thousands of steps of a whole network at random, without sockets: after each calm every node's own map, as our client's core has merged
//! it from what came over its streams, is what the registry says.

use std::collections::BTreeMap;
use std::time::Duration;

use pvemesh::coord::client::MapSession;
use pvemesh::coord::server::{MAX_REMOVED, MapAnswer, Next, SessionId};
use pvemesh::ident::NodeId;
use pvemesh::wire::control::{MapRequest, MapResponse, Node, json};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::world::*;

const NODES: u8 = 40;
const STEPS: u32 = 2_000;
/// Steps from one calm to the next.
const CALM_EVERY: u32 = 400;

/// A node with its stream, if it has one.
#[derive(Default)]
struct Client {
    joined: bool,
    stream: Option<(SessionId, MapSession)>,
    /// It does not read: what it has not been told adds up.
    stalled: bool,
}

struct Network {
    world: World,
    rng: ChaCha8Rng,
    clients: Vec<Client>,
    key: String,
    messages: u32,
}

impl Network {
    fn new(seed: u64) -> Self {
        let mut world = World::new();
        let key = world.key(|k| {
            k.reusable = true;
            k.expires_in_secs = 10 * 365 * 24 * 3600;
        });
        let clients = (0..=NODES).map(|_| Client::default()).collect();
        Self { world, rng: ChaCha8Rng::seed_from_u64(seed), clients, key, messages: 0 }
    }

    fn pick(&mut self, bound: u32) -> u32 {
        self.rng.next_u32() % bound
    }

    /// The numbers of nodes that have joined.
    fn any_joined(&mut self) -> Option<u8> {
        let joined: Vec<u8> = (1..=NODES).filter(|n| self.clients[usize::from(*n)].joined).collect();
        (!joined.is_empty()).then(|| joined[self.pick(joined.len() as u32) as usize])
    }

    fn step(&mut self) {
        let what = self.pick(100);
        let Some(n) = (if what < 8 { Some(1 + self.pick(u32::from(NODES)) as u8) } else { self.any_joined() }) else { return };
        match what {
            0..8 => self.join(n),
            8..11 => self.delete(n),
            11..40 => self.report(n),
            40..46 => {
                let name = format!("chosen{}", self.pick(1000)).parse().unwrap();
                let id = self.world.info(n).id;
                let _ = self.world.server.rename(self.world.at, id, &name);
            }
            46..50 => {
                let id = self.world.info(n).id;
                let tags: &[String] = &[format!("tag:t{}", self.pick(3))];
                let _ = self.world.server.tag_node(self.world.at, id, tags);
            }
            50..60 => self.hang_up(n),
            60..80 => self.open(n),
            80..84 => self.clients[usize::from(n)].stalled ^= true,
            84..98 => {
                let pause = Duration::from_millis(u64::from(self.pick(3_000)));
                self.world.pass(pause);
            }
            98 => {
                let user = self.world.server.users()[0].id;
                let name = format!("user{}", self.pick(1000));
                let _ = self.world.server.rename_user(user, &name);
            }
            _ => self.restart(),
        }
        // Streams read when they come to it, some always later than others.
        for n in 1..=NODES {
            if !self.clients[usize::from(n)].stalled && self.pick(4) == 0 {
                self.read(n);
            }
        }
    }

    fn join(&mut self, n: u8) {
        let answer = self.world.register(n, &registration(n, Some(&self.key.clone()), &format!("n{}", n % 7)));
        assert_eq!(answer.error, "");
        self.clients[usize::from(n)].joined = true;
    }

    fn delete(&mut self, n: u8) {
        let id = self.world.info(n).id;
        self.world.server.delete_node(self.world.at, id).unwrap();
        self.clients[usize::from(n)].joined = false;
    }

    fn report(&mut self, n: u8) {
        let (what, port) = (self.pick(6), 1 + self.pick(60_000) as u16);
        self.world.report(n, |request| match what {
            0 => request.disco_key = disco(port as u8),
            1 => request.hostinfo = with_home(i32::from(port % 5), &format!("n{}", n % 7)),
            2 => request.hostinfo = Some(hostinfo(&format!("host{}", port % 10))),
            _ => request.endpoints = vec![std::net::SocketAddr::from(([192, 0, 2, n], port))],
        });
    }

    fn open(&mut self, n: u8) {
        let session = self.world.stream(n);
        if let Some((old, _)) = self.clients[usize::from(n)].stream.replace((session, MapSession::default())) {
            self.world.hang_up(old);
        }
    }

    fn hang_up(&mut self, n: u8) {
        if let Some((session, _)) = self.clients[usize::from(n)].stream.take() {
            self.world.hang_up(session);
        }
    }

    fn restart(&mut self) {
        self.world.restart();
        self.clients.iter_mut().for_each(|client| client.stream = None);
    }

    /// Takes one message, if there is one. Says whether there was.
    fn read(&mut self, n: u8) -> bool {
        let Some((session, mut map)) = self.clients[usize::from(n)].stream.take() else { return false };
        let message = match self.world.server.next_message(session, self.world.at) {
            Next::Message(message) => message,
            Next::Idle => {
                self.clients[usize::from(n)].stream = Some((session, map));
                return false;
            }
            // A client that is thrown out comes back by itself.
            Next::Last(_) | Next::End => {
                self.world.hang_up(session);
                return false;
            }
        };
        let response: MapResponse = json::from_slice(&message.to_json().unwrap()).unwrap();
        let own = self.world.info(n).id;
        check(&response, own);
        map.apply(response, self.world.at.wall).unwrap();
        self.messages += 1;
        self.clients[usize::from(n)].stream = Some((session, map));
        true
    }

    /// Everybody reads to the end; then nobody may believe anything but the truth.
    fn calm(&mut self, context: &str) {
        for n in 1..=NODES {
            let client = &self.clients[usize::from(n)];
            if client.joined && client.stream.is_none() {
                self.open(n);
            }
        }
        self.world.drain();
        let mut checked = 0;
        for n in 1..=NODES {
            while self.read(n) {}
            if !self.clients[usize::from(n)].joined {
                continue;
            }
            let truth = self.truth(n);
            let Some((_, map)) = &self.clients[usize::from(n)].stream else { continue };
            let map = map.netmap().unwrap_or_else(|| panic!("{context}: node {n} has no map"));
            assert_eq!(own(&map.node), own(&truth.node), "{context}: node {n} about itself");
            let peers = |map: &pvemesh::coord::client::NetMap| map.peers.values().map(plain).collect::<Vec<_>>();
            assert_eq!(peers(map), peers(&truth), "{context}: node {n} about its peers");
            for peer in map.peers.values().chain([&map.node]) {
                assert_eq!(map.users.get(&peer.user), truth.users.get(&peer.user), "{context}: node {n} about a user");
            }
            self.against_the_registry(n, context);
            checked += 1;
        }
        assert!(checked > 0, "{context}: nobody had a stream");
    }

    /// The map of a node as a request outside any stream gets it.
    fn truth(&mut self, n: u8) -> pvemesh::coord::client::NetMap {
        let request = MapRequest { version: 130, node_key: node_key(n), read_only: true, ..MapRequest::default() };
        let MapAnswer::Once(message) = self.world.map(n, &request).unwrap() else { panic!("not one message") };
        let mut map = MapSession::default();
        map.apply(json::from_slice(&message.to_json().unwrap()).unwrap(), self.world.at.wall).unwrap();
        map.netmap().unwrap().clone()
    }

    /// The same against what an admin is shown, which no message is made from.
    fn against_the_registry(&self, n: u8, context: &str) {
        let map = self.clients[usize::from(n)].stream.as_ref().and_then(|(_, map)| map.netmap()).unwrap();
        let known: BTreeMap<NodeId, _> = self.world.server.nodes().into_iter().map(|node| (node.id, node)).collect();
        let ids: Vec<NodeId> = known.keys().copied().filter(|id| *id != map.node.id).collect();
        assert!(map.peers.keys().eq(&ids), "{context}: node {n} knows {:?}, there are {ids:?}", map.peers.keys());
        for (id, peer) in &map.peers {
            let node = &known[id];
            assert_eq!(
                (peer.short_name(), peer.key, &peer.endpoints, peer.home_derp, peer.online, &peer.tags),
                (node.name.as_str(), node.key, &node.endpoints, node.home_relay, Some(node.online), &node.tags),
                "{context}: node {n} about {id}"
            );
        }
    }
}

/// What no message may do.
fn check(response: &MapResponse, own: NodeId) {
    for list in [&response.peers, &response.peers_changed] {
        assert!(list.is_sorted_by(|a, b| a.id < b.id), "a node twice in a list, or out of order");
        assert!(list.iter().all(|peer| peer.id != own), "a node among its own peers");
    }
    assert!(response.peers_changed_patch.iter().all(|patch| patch.node_id != own) && !response.peers_removed.contains(&own));
    assert!(response.peers.is_empty() || response.peers_changed.is_empty(), "a list voids the changes beside it");
    assert!(response.peers_changed.len() + response.peers_removed.len() <= usize::from(NODES) + MAX_REMOVED);
}

/// A node without what clients do not forget: a patch cannot take "last seen" away when a node is back.
fn plain(node: &Node) -> Node {
    Node { last_seen: node.last_seen.filter(|_| node.online != Some(true)), ..node.clone() }
}

/// What a node is told of itself when it changes: not what it has reported, which it knows.
fn own(node: &Node) -> Node {
    let reported = Node { disco_key: disco(0), endpoints: Vec::new(), home_derp: 0, hostinfo: None, online: None, ..node.clone() };
    Node { last_seen: None, ..reported }
}

fn play(seed: u64) {
    println!("seed {seed}");
    let mut network = Network::new(seed);
    for step in 1..=STEPS {
        network.step();
        if step % CALM_EVERY == 0 {
            network.calm(&format!("seed {seed}, step {step}"));
        }
    }
    assert!(network.messages > STEPS / 4, "seed {seed}: only {} messages", network.messages);
}

#[test]
fn whatever_happens_everybody_ends_up_knowing_the_truth() {
    for seed in 1..=2 {
        play(seed);
    }
    // One that nobody has tried.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    play(now.subsec_nanos().into());
}
