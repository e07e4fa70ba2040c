//! Whatever happens, in whatever order: what a client has put together from changes is what a fresh stream would tell it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pvemesh::coord::client::{MapSession, NetMap};
use pvemesh::coord::server::{MapAnswer, Next, SessionId};
use pvemesh::ident::UserId;
use pvemesh::wire::admin::{Expire, SetPolicy};
use pvemesh::wire::control::{MapRequest, MapResponse, json};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::world::*;

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const TAGS: [&str; 3] = ["tag:web", "tag:db", "tag:router"];
const ROUTES: [&str; 4] = ["192.168.1.0/24", "10.0.0.0/8", "0.0.0.0/0", "::/0"];
const SOURCES: [&str; 8] = ["*", "alice@", "bob@", "group:all", "tag:web", "tag:router", "autogroup:member", "100.64.0.2"];
const TARGETS: [&str; 9] = [
    "*:*",
    "alice@:22",
    "bob@:*",
    "tag:db:5432",
    "tag:router:*",
    "192.168.1.0/24:80",
    "autogroup:internet:*",
    "autogroup:self:*",
    "10.0.0.0/8:*",
];

struct Chance(ChaCha8Rng);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0.next_u32() as usize % bound
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn some(&mut self, of: &[&str]) -> Vec<String> {
        of.iter().filter(|_| self.0.next_u32().is_multiple_of(2)).map(|one| (*one).to_owned()).collect()
    }

    fn policy(&mut self) -> String {
        let rules: Vec<String> = (0..self.below(5))
            .map(|_| {
                let target = *self.one(&TARGETS);
                // One's own nodes are a target for users only.
                let source = if target.starts_with("autogroup:self") { "autogroup:member" } else { *self.one(&SOURCES) };
                format!(r#"{{"action": "accept", "src": ["{source}"], "dst": ["{target}"]}}"#)
            })
            .collect();
        let steered = if self.below(3) == 0 {
            r#""grants": [{"src": ["alice@"], "dst": ["192.168.1.0/24"], "ip": ["*"], "via": ["tag:router"]}],"#
        } else {
            ""
        };
        format!(
            r#"{{"groups": {{"group:all": ["alice@", "carol@"]}}, "tagOwners": {{"tag:web": [], "tag:db": [], "tag:router": []}},
                "acls": [{}], {steered}
                "autoApprovers": {{"routes": {{"10.0.0.0/8": ["tag:router"]}}, "exitNode": ["bob@"]}},
                "nodeAttrs": [{{"target": ["tag:router", "bob@"], "attr": ["suggest-exit-node"]}}]}}"#,
            rules.join(",")
        )
    }
}

/// A node as a test plays it.
struct Player {
    machine: u8,
    key: u8,
    stream: Option<(SessionId, MapSession)>,
}

struct Play {
    world: World,
    chance: Chance,
    players: Vec<Player>,
    next: u8,
    messages: usize,
}

impl Play {
    fn new(seed: u64) -> Self {
        Self { world: World::new(), chance: Chance(ChaCha8Rng::seed_from_u64(seed)), players: Vec::new(), next: 1, messages: 0 }
    }

    fn step(&mut self) {
        if self.players.len() < 3 || (self.players.len() < 9 && self.chance.below(12) == 0) {
            return self.join();
        }
        let at = self.world.at;
        let which = self.chance.below(self.players.len());
        let (machine_n, key) = (self.players[which].machine, self.players[which].key);
        let Some(info) = self.world.server.nodes().into_iter().find(|node| node.key == node_key(key)) else { return };
        let id = info.id;
        match self.chance.below(19) {
            0 => {
                self.world.server.delete_node(at, id).unwrap();
                let gone = self.players.remove(which);
                if let Some((session, _)) = gone.stream {
                    self.world.hang_up(session);
                }
            }
            1 | 2 => {
                let tags = self.chance.some(&TAGS);
                self.world.server.tag_node(at, id, &tags).unwrap();
            }
            3 => {
                let user = *self.chance.one(&USERS);
                let _ = self.world.server.move_node(at, id, user);
            }
            4 => {
                let address = format!("100.64.0.{}", 1 + self.chance.below(40)).parse().unwrap();
                let _ = self.world.server.set_address(at, id, address);
            }
            5..=7 => {
                let routes = self.chance.some(&ROUTES);
                self.world.report(machine_n, |request| {
                    request.node_key = node_key(key);
                    let mut info = hostinfo(&format!("n{machine_n}"));
                    info.routable_ips = routes.iter().map(|route| net(route)).collect();
                    request.hostinfo = Some(info);
                });
            }
            8 => {
                let routes: Vec<_> = self.chance.some(&ROUTES).iter().map(|route| net(route)).collect();
                self.world.server.approve_routes(at, id, &routes).unwrap();
            }
            9 | 10 => {
                let text = self.chance.policy();
                let wanted = SetPolicy { text, force: true, check_only: false };
                self.world.server.set_policy(at, &wanted).unwrap();
            }
            11 => drop(self.world.server.remove_policy()),
            12 => self.log_in_again(which, info.user.clone()),
            13 => {
                let when = *self.chance.one(&[
                    Expire::default(),
                    Expire { in_secs: Some(1_000_000), never: false },
                    Expire { in_secs: None, never: true },
                ]);
                if when != Expire::default() {
                    self.world.server.expire_node(at, id, when).unwrap();
                }
            }
            14 => {
                let (user, name) = (UserId(1 + self.chance.below(3) as i64), *self.chance.one(&["alice", "bob", "carol", "dave"]));
                let _ = self.world.server.rename_user(user, name);
            }
            15 => {
                let name = format!("r{}", self.chance.below(30)).parse().unwrap();
                let _ = self.world.server.rename(at, id, &name);
            }
            16 => {
                let port = 1 + self.chance.below(60_000);
                self.world.report(machine_n, |request| {
                    request.node_key = node_key(key);
                    request.endpoints = vec![format!("192.0.2.7:{port}").parse().unwrap()];
                    request.disco_key = disco(machine_n);
                });
            }
            _ => match self.players[which].stream.take() {
                Some((session, _)) => self.world.hang_up(session),
                None => self.open(which),
            },
        }
        self.world.drain();
    }

    fn join(&mut self) {
        let n = self.next;
        self.next += 1;
        let (user, tags) = (*self.chance.one(&USERS), if self.chance.below(3) == 0 { self.chance.some(&TAGS) } else { Vec::new() });
        self.world.log_in_with(n, n, &format!("n{n}"), |k| (k.user, k.tags) = (user.to_owned(), tags));
        self.players.push(Player { machine: n, key: n, stream: None });
        let last = self.players.len() - 1;
        self.open(last);
    }

    /// The same machine and user, a new key.
    fn log_in_again(&mut self, which: usize, user: String) {
        let (n, machine_n) = (self.next, self.players[which].machine);
        self.next += 1;
        self.world.log_in_with(machine_n, n, &format!("n{machine_n}"), |k| k.user = user);
        let player = &mut self.players[which];
        player.key = n;
        if let Some((session, _)) = player.stream.take() {
            self.world.hang_up(session);
        }
    }

    fn open(&mut self, which: usize) {
        let player = &self.players[which];
        let request = MapRequest { version: 130, node_key: node_key(player.key), stream: true, ..MapRequest::default() };
        match self.world.server.map(self.world.at, &machine(player.machine), &request) {
            Ok(MapAnswer::Stream(session)) => self.players[which].stream = Some((session, MapSession::default())),
            other => panic!("no stream: {other:?}"),
        }
        self.world.drain();
    }

    /// A stream takes what there is.
    fn read(&mut self, which: usize) {
        let Some((session, mut map)) = self.players[which].stream.take() else { return };
        loop {
            match self.world.server.next_message(session, self.world.at) {
                Next::Message(message) => {
                    let told: MapResponse = json::from_slice(&message.to_json().unwrap()).unwrap();
                    map.apply(told, self.world.at.wall).unwrap();
                    consistent(map.netmap().unwrap());
                    self.messages += 1;
                }
                Next::Idle => break self.players[which].stream = Some((session, map)),
                Next::End | Next::Last(_) => {
                    self.world.hang_up(session);
                    break self.open(which);
                }
            }
        }
    }

    fn compare(&mut self) {
        self.world.server.publish(self.world.at.now);
        self.world.drain();
        for which in 0..self.players.len() {
            self.read(which);
            // A stream that was opened instead of one that ended still has all to read.
            self.read(which);
            let player = &self.players[which];
            let Some((_, held)) = &player.stream else { continue };
            let request = MapRequest { version: 130, node_key: node_key(player.key), ..MapRequest::default() };
            let Ok(MapAnswer::Once(message)) = self.world.server.map(self.world.at, &machine(player.machine), &request) else { panic!() };
            let mut fresh = MapSession::default();
            fresh.apply(json::from_slice(&message.to_json().unwrap()).unwrap(), self.world.at.wall).unwrap();
            let (held, fresh) = (plain(held.netmap().unwrap()), plain(fresh.netmap().unwrap()));
            assert_eq!(held.peers.keys().collect::<Vec<_>>(), fresh.peers.keys().collect::<Vec<_>>(), "peers of {}", held.node.name);
            assert_eq!(held.peers, fresh.peers, "peers of {}", held.node.name);
            assert_eq!(held.node, fresh.node);
            assert_eq!((held.filters, held.dns), (fresh.filters, fresh.dns), "filter of {}", held.node.name);
            for (id, profile) in fresh.users {
                assert_eq!(held.users.get(&id), Some(&profile), "profiles told to {}", held.node.name);
            }
        }
    }
}

/// A map without what may differ: the last contact of a node that is online is of no meaning.
fn plain(map: &NetMap) -> NetMap {
    let mut map = map.clone();
    // What a node says of itself it is not told back.
    let own = &mut map.node;
    (own.hostinfo, own.endpoints, own.home_derp, own.last_seen) = (None, Vec::new(), 0, None);
    own.disco_key = pvemesh::ident::DiscoPublic::ZERO;
    for peer in map.peers.values_mut().filter(|peer| peer.online == Some(true)) {
        peer.last_seen = None;
    }
    map
}

/// What no client may ever hold.
fn consistent(map: &NetMap) {
    let mut nets: BTreeMap<_, _> = BTreeMap::new();
    for peer in map.peers.values() {
        for route in peer.routed().iter().filter(|route| route.prefix_len() > 0) {
            if let Some(other) = nets.insert(*route, peer.id) {
                panic!("{route} belongs to {other} and {} (trap 23)", peer.id);
            }
        }
    }
    let keys: BTreeSet<_> = map.peers.values().map(|peer| peer.key).collect();
    let names: BTreeSet<_> = map.peers.values().map(|peer| &peer.name).collect();
    assert_eq!((keys.len(), names.len()), (map.peers.len(), map.peers.len()));
    assert!(!map.peers.contains_key(&map.node.id), "a node is not its own peer");
    for peer in map.peers.values() {
        assert!(map.users.contains_key(&peer.user), "no profile of {}", peer.user);
    }
}

#[test]
fn traps_23_and_35_what_deltas_add_up_to_is_what_a_fresh_stream_tells() {
    let seeds: Vec<u64> = match std::env::var("PVEMESH_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=16).collect(),
    };
    let mut messages = 0;
    for seed in seeds {
        println!("seed {seed}");
        let mut play = Play::new(seed);
        for step in 0..120 {
            play.step();
            if play.chance.below(3) == 0 {
                let which = play.chance.below(play.players.len());
                play.world.server.publish(play.world.at.now);
                play.read(which);
            }
            if play.chance.below(6) == 0 {
                let pause = play.chance.below(4000) as u64;
                play.world.pass(Duration::from_millis(pause));
                play.world.drain();
            }
            if step % 10 == 9 {
                play.compare();
            }
        }
        messages += play.messages;
    }
    // So that it compares something: changes of one moment are told in one message.
    assert!(messages > 500, "{messages} messages");
}
