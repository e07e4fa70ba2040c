//! Two nodes' path cores on a network of given latency, jitter and loss, in simulated time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use pvemesh::ident::{DiscoPrivate, NodePrivate, NodePublic, RegionId};
use pvemesh::path::{Event, Local, Outside, Path, Paths, Peer, RelayState, Route};
use pvemesh::time::Time;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::nat::Nat;

/// How often a node with traffic sends some.
const DATA_EVERY: Duration = Duration::from_millis(50);

/// One way through the network: all addresses that start alike are on it.
#[derive(Clone, Copy)]
pub struct Wire {
    pub prefix: &'static str,
    pub latency: Duration,
    pub jitter: Duration,
    /// Of a thousand packets.
    pub lost: u32,
}

enum Packet {
    Probe(Vec<u8>),
    /// With its number.
    Data(u64),
}

/// Where both hosts are at home.
const REGION: RegionId = RegionId(901);
/// A STUN server's address.
const STUN: &str = "203.0.113.250:3478";

enum Step {
    Arrive { to: usize, from: SocketAddr, at: SocketAddr, packet: Packet },
    Relayed { to: usize, packet: Packet },
    Talk(usize),
}

pub struct Host {
    pub paths: Paths,
    pub addresses: Vec<SocketAddr>,
    pub talks: bool,
    pub key: NodePublic,
    disco: DiscoPrivate,
    route: Route,
    /// When data last arrived, and how much was sent and arrived.
    pub heard: Option<Time>,
    /// When data last arrived without the relay.
    pub heard_directly: Option<Time>,
    pub first: Option<Time>,
    /// The numbers of what arrived.
    pub distinct: BTreeSet<u64>,
    /// Where a STUN server has seen it.
    seen: Option<SocketAddr>,
    pub sent: u64,
    pub received: u64,
    /// When the way to the peer changed.
    pub moves: Vec<(Time, Option<Path>)>,
    pub restarts: usize,
    /// Those beside the main one.
    pub sockets: BTreeSet<Local>,
    pub probes: Vec<Time>,
}

pub struct Network {
    pub now: Time,
    pub hosts: [Host; 2],
    pub nats: [Option<Nat>; 2],
    /// How long the relay takes, if there is one.
    pub relay: Option<Duration>,
    relay_works: bool,
    /// Whether nodes may guess ports.
    pub guessing: bool,
    wires: Vec<Wire>,
    random: ChaCha12Rng,
    steps: BTreeMap<(Time, u64), Step>,
    count: u64,
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn host(n: u8, seed: u64, addresses: &[&str]) -> Host {
    let mut core_seed = [n; 32];
    core_seed[..8].copy_from_slice(&seed.to_le_bytes());
    let (key, disco) = (NodePrivate::from_seed([n; 32]).public(), DiscoPrivate::from_seed([100 + n; 32]));
    Host {
        paths: Paths::new(key, disco.clone(), core_seed),
        addresses: addresses.iter().map(|a| address(a)).collect(),
        talks: false,
        key,
        disco,
        route: Route::default(),
        heard: None,
        heard_directly: None,
        first: None,
        distinct: BTreeSet::new(),
        seen: None,
        sent: 0,
        received: 0,
        moves: Vec::new(),
        restarts: 0,
        sockets: BTreeSet::new(),
        probes: Vec::new(),
    }
}

impl Host {
    pub fn best(&self) -> Option<Path> {
        self.route.direct().map(Path::Direct)
    }

    /// How often the address in use changed.
    pub fn changes(&self) -> usize {
        let mut direct: Vec<_> = self.moves.iter().map(|(_, path)| *path).collect();
        direct.dedup();
        direct.len()
    }

    fn as_peer(&self) -> Peer {
        let addresses = self.addresses.iter().copied().chain(self.seen).collect();
        Peer { key: self.key, disco: Some(self.disco.public()), addresses, home: None }
    }
}

impl Network {
    pub fn new(seed: u64, wires: &[Wire], addresses: [&[&str]; 2]) -> Self {
        let hosts = [host(1, seed, addresses[0]), host(2, seed, addresses[1])];
        let random = ChaCha12Rng::seed_from_u64(seed);
        let mut network = Self {
            now: Time::default(),
            hosts,
            nats: [None, None],
            relay: None,
            relay_works: true,
            guessing: false,
            wires: wires.to_vec(),
            random,
            steps: BTreeMap::new(),
            count: 0,
        };
        network.tell_map();
        for n in 0..2 {
            network.add(network.now + DATA_EVERY, Step::Talk(n));
        }
        network
    }

    /// The coordinator tells both where the other may be reached.
    pub fn tell_map(&mut self) {
        for n in 0..2 {
            let peer = Peer { home: self.relay.map(|_| REGION), ..self.hosts[1 - n].as_peer() };
            let now = self.now;
            self.hosts[n].paths.set_peers(now, &[peer]);
            self.drain(n);
        }
    }

    /// Both find out where others see them.
    pub fn look_outside(&mut self) {
        (0..2).for_each(|n| self.look(n));
    }

    fn look(&mut self, n: usize) {
        let now = self.now;
        self.hosts[n].seen = self.nats[n].as_mut().map(|nat| nat.leaves(now, Local::MAIN, address(STUN)));
        if let (Some(SocketAddr::V4(seen)), true) = (self.hosts[n].seen, self.guessing) {
            // There is one STUN server only, so what kind of NAT it is remains unknown.
            self.hosts[n].paths.set_outside(Some(Outside { seen, varies: None }));
        }
        let all = self.hosts[n].addresses.iter().copied().chain(self.hosts[n].seen).collect();
        self.hosts[n].paths.set_endpoints(now, all);
    }

    /// Carries out what a host's core says.
    pub fn settle(&mut self, n: usize) {
        self.drain(n);
    }

    /// The relay dies, or comes back.
    pub fn set_relay(&mut self, works: bool) {
        self.relay_works = works;
        for n in 0..2 {
            let now = self.now;
            self.hosts[n].paths.set_relay(now, REGION, if works { RelayState::Up } else { RelayState::Down });
            self.drain(n);
        }
    }

    fn send_relayed(&mut self, n: usize, packet: Packet) {
        if let Some(latency) = self.relay.filter(|_| self.relay_works) {
            self.add(self.now + latency, Step::Relayed { to: 1 - n, packet });
        }
    }

    pub fn wire(&mut self, prefix: &str) -> &mut Wire {
        self.wires.iter_mut().find(|wire| wire.prefix == prefix).unwrap()
    }

    fn add(&mut self, at: Time, step: Step) {
        self.count += 1;
        self.steps.insert((at, self.count), step);
    }

    fn send(&mut self, n: usize, from: Local, to: SocketAddr, packet: Packet) {
        let on = |wire: &Wire, address: &SocketAddr| address.to_string().starts_with(wire.prefix);
        let Some(wire) = self.wires.iter().find(|wire| on(wire, &to)).copied() else { return };
        let outside = self.nats[n].as_mut().map(|nat| nat.leaves(self.now, from, to));
        let inside = || self.hosts[n].addresses.iter().find(|own| on(&wire, own)).copied();
        let Some(from) = outside.or_else(inside) else { return };
        let jitter = wire.jitter.mul_f64(f64::from(self.random.next_u32()) / f64::from(u32::MAX));
        if self.random.next_u32() % 1000 >= wire.lost {
            self.add(self.now + wire.latency + jitter, Step::Arrive { to: 1 - n, from, at: to, packet });
        }
    }

    fn drain(&mut self, n: usize) {
        while let Some(transmit) = self.hosts[n].paths.poll_transmit() {
            let now = self.now;
            self.hosts[n].probes.push(now);
            match transmit.to {
                Path::Direct(to) => self.send(n, transmit.from, to, Packet::Probe(transmit.contents)),
                Path::Relay(_) => self.send_relayed(n, Packet::Probe(transmit.contents)),
            }
        }
        let (host, peer) = (n, self.hosts[1 - n].key);
        let host = &mut self.hosts[host];
        let mut refresh = false;
        while let Some(event) = host.paths.poll_event() {
            match event {
                Event::Moved(_) => host.moves.push((self.now, host.paths.route(&peer).direct.map(Path::Direct))),
                Event::Restarted(_) => host.restarts += 1,
                Event::Refresh => refresh = true,
                Event::Sockets => host.sockets = host.paths.sockets(),
                Event::Meet(_) | Event::Answered { .. } => {}
            }
        }
        host.route.set(host.paths.route(&peer));
        if refresh {
            self.look(n);
            self.drain(n);
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Talk(n) => {
                self.add(now + DATA_EVERY, Step::Talk(n));
                let peer = self.hosts[1 - n].key;
                let host = &mut self.hosts[n];
                if host.talks {
                    if host.route.tell_sending(now) {
                        host.paths.sending(now, &peer);
                        self.drain(n);
                    }
                    self.hosts[n].sent += 1;
                    let (number, ways) = (self.hosts[n].sent, self.hosts[n].route.ways(now));
                    if let Some(to) = ways.direct {
                        self.send(n, ways.local, to, Packet::Data(number));
                    }
                    if ways.relay.is_some() {
                        self.send_relayed(n, Packet::Data(number));
                    }
                }
            }
            Step::Arrive { to: n, from, at, packet } => {
                let arrives = match &self.nats[n] {
                    Some(nat) => nat.lets_in(now, at, from).filter(|_| nat.ip == at.ip()),
                    None => self.hosts[n].addresses.contains(&at).then_some(Local::MAIN),
                };
                // Sockets that were closed receive nothing.
                if let Some(local) = arrives.filter(|local| *local == Local::MAIN || self.hosts[n].sockets.contains(local)) {
                    self.arrived(n, local, Path::Direct(from), packet);
                }
            }
            Step::Relayed { to: n, packet } => self.arrived(n, Local::MAIN, Path::Relay(REGION), packet),
        }
    }

    fn arrived(&mut self, n: usize, local: Local, from: Path, packet: Packet) {
        let (now, peer) = (self.now, self.hosts[1 - n].key);
        let host = &mut self.hosts[n];
        match (packet, from) {
            (Packet::Probe(contents), Path::Direct(from)) => host.paths.handle_datagram(now, local, from, &contents),
            (Packet::Probe(contents), Path::Relay(region)) => host.paths.handle_relayed(now, region, peer, &contents),
            (Packet::Data(number), from) => {
                host.heard = Some(now);
                if from.direct().is_some() {
                    host.heard_directly = Some(now);
                }
                host.first.get_or_insert(now);
                host.received += 1;
                host.distinct.insert(number);
                if host.route.tell_heard(now, from) {
                    host.paths.heard(now, &peer, from);
                }
            }
        }
        self.drain(n);
    }

    /// Lets time pass.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let step = self.steps.first_key_value().map(|((at, _), _)| *at);
            let due = |n: usize| self.hosts[n].paths.poll_timeout().map(|deadline| deadline.at.max(self.now));
            let next = [step, due(0), due(1)].into_iter().flatten().min().filter(|at| *at <= end);
            let Some(next) = next else { break };
            self.now = next;
            for n in 0..2 {
                if self.hosts[n].paths.poll_timeout().is_some_and(|deadline| deadline.at <= next) {
                    self.hosts[n].paths.handle_timeout(next);
                    self.drain(n);
                }
            }
            if step == Some(next)
                && let Some((_, step)) = self.steps.pop_first()
            {
                self.step(step);
            }
        }
        self.now = end;
    }

    /// Lets time pass until something holds; how long that took, `None` if longer than the limit.
    pub fn until(&mut self, limit: Duration, mut holds: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        while !holds(self) {
            if self.now.since(start) >= limit {
                return None;
            }
            self.run(Duration::from_millis(1));
        }
        Some(self.now.since(start))
    }
}
