//! Thousands of cores on one network: each is real, and time passes only where something happens. Who does not talk costs nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pvemesh::ident::{DiscoPrivate, DiscoPublic, NodePublic, RegionId};
use pvemesh::path::{Event, Local, Path, Paths, Peer, RelayState, Route};
use pvemesh::time::Time;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::nat::{Depends, Nat};
use super::network::address;

/// How often somebody who talks asks something; each question is answered at once.
const ASK_EVERY: Duration = Duration::from_millis(400);
/// What a packet takes through a relay, and at least and at most directly.
const RELAYED: Duration = Duration::from_millis(20);
const DIRECT: [u64; 2] = [10, 30];
/// Of a thousand packets, directly.
const LOST: u32 = 10;
pub const REGIONS: u16 = 4;
const STUN: &str = "203.0.113.250:3478";

/// How a node is connected: a NAT's mapping and filter, or none.
pub type Kind = Option<(Depends, Depends)>;

pub struct Member {
    pub paths: Paths,
    pub kind: Kind,
    pub home: RegionId,
    key: NodePublic,
    disco: DiscoPrivate,
    disco_public: DiscoPublic,
    own: SocketAddr,
    seen: Option<SocketAddr>,
    nat: Option<Nat>,
    /// Whom the map shows it, as the map has them.
    map: Vec<Peer>,
    due: Option<Time>,
    /// How often it has been started, and when it last sent a probe.
    runs: u8,
    pub sent: Option<Time>,
}

/// Two members, of whom the first asks the second.
pub struct Talk {
    pub ends: [usize; 2],
    pub start: Time,
    until: Time,
    routes: [Route; 2],
    /// Questions that have been asked, and those that came and were answered.
    pub asked: u64,
    pub answers: BTreeSet<u64>,
    came: BTreeSet<u64>,
    pub first: Option<Time>,
    /// When something first came directly, at each end.
    pub direct: [Option<Time>; 2],
}

impl Talk {
    fn end(&self, member: usize) -> usize {
        usize::from(self.ends[1] == member)
    }
}

#[derive(Clone)]
enum Packet {
    Probe(Vec<u8>),
    Question(usize, u64),
    Answer(usize, u64),
}

enum Step {
    Ask(usize),
    Arrive { from: SocketAddr, at: SocketAddr, packet: Packet },
    Relayed { region: RegionId, from: usize, to: usize, packet: Packet },
}

pub struct Crowd {
    pub now: Time,
    pub members: Vec<Member>,
    pub talks: Vec<Talk>,
    /// The number of what has been done, as a measure of the work.
    pub steps_done: u64,
    by_key: HashMap<NodePublic, usize>,
    by_ip: HashMap<IpAddr, usize>,
    /// The last talk between two members, from either.
    between: HashMap<(usize, usize), usize>,
    /// Which run of the second the first has heard of inside the tunnel.
    told: HashMap<(usize, usize), u8>,
    dead: BTreeSet<RegionId>,
    steps: BTreeMap<(Time, u64), Step>,
    due: BTreeSet<(Time, usize)>,
    count: u64,
    random: ChaCha12Rng,
}

fn numbered(n: usize, run: u8) -> [u8; 32] {
    let mut bytes = [run; 32];
    // Not the first byte: a private key's lowest bits do not count.
    bytes[8..16].copy_from_slice(&(n as u64 + 1).to_le_bytes());
    bytes
}

fn member(n: usize, kind: Kind, seed: u64) -> Member {
    let ip = IpAddr::from([100 + (n >> 16) as u8, (n >> 8) as u8, n as u8, 1]);
    let own = if kind.is_some() { address("192.168.1.2:41641") } else { SocketAddr::new(ip, 41641) };
    let (key, disco) = (NodePublic::from_bytes(numbered(n, 1)), DiscoPrivate::from_seed(numbered(n, 0)));
    let mut core_seed = numbered(n, 2);
    core_seed[16..24].copy_from_slice(&seed.to_le_bytes());
    Member {
        paths: Paths::new(key, disco.clone(), core_seed),
        kind,
        home: RegionId(900 + n as u16 % REGIONS),
        key,
        disco_public: disco.public(),
        disco,
        own,
        seen: None,
        nat: kind.map(|(mapping, filtering)| Nat::new(ip, mapping, filtering)),
        map: Vec::new(),
        due: None,
        runs: 0,
        sent: None,
    }
}

impl Crowd {
    pub fn new(seed: u64, kinds: impl IntoIterator<Item = Kind>) -> Self {
        let members: Vec<Member> = kinds.into_iter().enumerate().map(|(n, kind)| member(n, kind, seed)).collect();
        let by_key = members.iter().enumerate().map(|(n, member)| (member.key, n)).collect();
        let ip = |member: &Member| member.nat.as_ref().map_or(member.own.ip(), |nat| nat.ip);
        let by_ip = members.iter().enumerate().map(|(n, member)| (ip(member), n)).collect();
        let mut crowd = Self {
            now: Time::default(),
            members,
            talks: Vec::new(),
            steps_done: 0,
            by_key,
            by_ip,
            between: HashMap::new(),
            told: HashMap::new(),
            dead: BTreeSet::new(),
            steps: BTreeMap::new(),
            due: BTreeSet::new(),
            count: 0,
            random: ChaCha12Rng::seed_from_u64(seed),
        };
        (0..crowd.members.len()).for_each(|n| crowd.look(n));
        crowd
    }

    /// Any of so many.
    pub fn any(&mut self, of: u64) -> u64 {
        self.random.next_u64() % of
    }

    /// A member finds out where others see it.
    fn look(&mut self, n: usize) {
        let now = self.now;
        let member = &mut self.members[n];
        member.seen = member.nat.as_mut().map(|nat| nat.leaves(now, Local::MAIN, address(STUN)));
        member.paths.set_endpoints(now, std::iter::once(member.own).chain(member.seen).collect());
    }

    /// The coordinator shows a member these others.
    pub fn show(&mut self, n: usize, others: impl IntoIterator<Item = usize>) {
        let peer = |other: &Member| Peer {
            key: other.key,
            disco: Some(other.disco_public),
            addresses: std::iter::once(other.own).chain(other.seen).collect(),
            home: Some(other.home),
        };
        self.members[n].map = others.into_iter().filter(|other| *other != n).map(|other| peer(&self.members[other])).collect();
        self.map(n);
    }

    fn map(&mut self, n: usize) {
        let now = self.now;
        let member = &mut self.members[n];
        member.paths.set_peers(now, &member.map);
        self.drain(n);
    }

    /// The coordinator says where everybody is at home now.
    pub fn tell_homes(&mut self) {
        let homes: HashMap<NodePublic, RegionId> = self.members.iter().map(|member| (member.key, member.home)).collect();
        for n in 0..self.members.len() {
            for peer in &mut self.members[n].map {
                peer.home = homes.get(&peer.key).copied();
            }
            self.map(n);
        }
    }

    /// A region's relays die, and everybody notices.
    pub fn kill_region(&mut self, region: RegionId) {
        self.dead.insert(region);
        for n in 0..self.members.len() {
            let now = self.now;
            self.members[n].paths.set_relay(now, region, RelayState::Down);
            self.drain(n);
        }
    }

    /// A member's program is started anew with the map it has kept. Nobody tells the others.
    pub fn restart(&mut self, n: usize) {
        let now = self.now;
        let member = &mut self.members[n];
        member.runs += 1;
        member.disco = DiscoPrivate::from_seed(numbered(n, 100 + member.runs));
        member.disco_public = member.disco.public();
        member.paths = Paths::new(member.key, member.disco.clone(), numbered(n, 200));
        for region in &self.dead {
            member.paths.set_relay(now, *region, RelayState::Down);
        }
        self.look(n);
        self.map(n);
    }

    /// Somebody will talk to somebody for a while.
    pub fn talk(&mut self, ends: [usize; 2], start: Time, duration: Duration) {
        let id = self.talks.len();
        let talk = Talk {
            ends,
            start,
            until: start + duration,
            routes: Default::default(),
            asked: 0,
            answers: BTreeSet::new(),
            came: BTreeSet::new(),
            first: None,
            direct: [None; 2],
        };
        self.talks.push(talk);
        self.add(start, Step::Ask(id));
    }

    /// What was said is said and done.
    pub fn forget_talks(&mut self) {
        (self.talks, self.between) = (Vec::new(), HashMap::new());
    }

    fn add(&mut self, at: Time, step: Step) {
        self.count += 1;
        self.steps.insert((at, self.count), step);
    }

    fn send(&mut self, n: usize, to: SocketAddr, packet: Packet) {
        let now = self.now;
        let member = &mut self.members[n];
        let from = member.nat.as_mut().map_or(member.own, |nat| nat.leaves(now, Local::MAIN, to));
        let [least, most] = DIRECT;
        let latency = Duration::from_millis(least + self.any(most - least));
        if self.any(1000) >= LOST.into() && self.by_ip.contains_key(&to.ip()) {
            self.add(now + latency, Step::Arrive { from, at: to, packet });
        }
    }

    fn send_relayed(&mut self, region: RegionId, from: usize, to: usize, packet: Packet) {
        if !self.dead.contains(&region) {
            self.add(self.now + RELAYED, Step::Relayed { region, from, to, packet });
        }
    }

    fn drain(&mut self, n: usize) {
        let mut refresh = false;
        while let Some(transmit) = self.members[n].paths.poll_transmit() {
            self.members[n].sent = Some(self.now);
            let packet = Packet::Probe(transmit.contents);
            match transmit.to {
                Path::Direct(to) => self.send(n, to, packet),
                Path::Relay(region) => self.send_relayed(region, n, self.by_key[&transmit.peer], packet),
            }
        }
        while let Some(event) = self.members[n].paths.poll_event() {
            match event {
                Event::Moved(key) => {
                    if let Some(id) = self.between.get(&(n, self.by_key[&key])).copied() {
                        self.follow(id, n);
                    }
                }
                Event::Refresh => refresh = true,
                Event::Restarted(_) | Event::Sockets | Event::Meet(_) | Event::Answered { .. } => {}
            }
        }
        let due = self.members[n].paths.poll_timeout().map(|deadline| deadline.at);
        let before = std::mem::replace(&mut self.members[n].due, due);
        if before != due {
            if let Some(before) = before {
                self.due.remove(&(before, n));
            }
            self.due.extend(due.map(|due| (due, n)));
        }
        if refresh {
            self.look(n);
            self.drain(n);
        }
    }

    /// A member's packets in a talk go where its core says.
    fn follow(&mut self, id: usize, n: usize) {
        let end = self.talks[id].end(n);
        let other = self.talks[id].ends[1 - end];
        let choice = self.members[n].paths.route(&self.members[other].key);
        self.talks[id].routes[end].set(choice);
    }

    fn say(&mut self, id: usize, n: usize, packet: &Packet) {
        let now = self.now;
        let end = self.talks[id].end(n);
        let other = self.talks[id].ends[1 - end];
        if self.between.insert((n, other), id) != Some(id) {
            self.follow(id, n);
        }
        if self.talks[id].routes[end].tell_sending(now) {
            let key = self.members[other].key;
            self.members[n].paths.sending(now, &key);
            self.drain(n);
            self.follow(id, n);
        }
        let ways = self.talks[id].routes[end].ways(now);
        if let Some(to) = ways.direct {
            self.send(n, to, packet.clone());
        }
        if let Some(region) = ways.relay {
            self.send_relayed(region, n, other, packet.clone());
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Ask(id) => {
                let talk = &mut self.talks[id];
                if now < talk.until {
                    talk.asked += 1;
                    let (asker, number) = (talk.ends[0], talk.asked);
                    self.add(now + ASK_EVERY, Step::Ask(id));
                    self.say(id, asker, &Packet::Question(id, number));
                }
            }
            Step::Arrive { from, at, packet } => {
                let n = self.by_ip[&at.ip()];
                let member = &self.members[n];
                let arrives = member.nat.as_ref().map_or(member.own == at, |nat| nat.lets_in(now, at, from).is_some());
                match packet {
                    _ if !arrives => {}
                    Packet::Probe(contents) => {
                        self.members[n].paths.handle_datagram(now, Local::MAIN, from, &contents);
                        self.drain(n);
                    }
                    data => self.heard(n, Path::Direct(from), &data),
                }
            }
            Step::Relayed { region, from, to: n, packet } => match packet {
                Packet::Probe(contents) => {
                    let key = self.members[from].key;
                    self.members[n].paths.handle_relayed(now, region, key, &contents);
                    self.drain(n);
                }
                data => self.heard(n, Path::Relay(region), &data),
            },
        }
    }

    /// Data has come, which only a session brings: whatever way it came, its sender is who it says.
    fn heard(&mut self, n: usize, from: Path, packet: &Packet) {
        let (Packet::Question(id, number) | Packet::Answer(id, number)) = *packet else { return };
        let now = self.now;
        let end = self.talks[id].end(n);
        let other = self.talks[id].ends[1 - end];
        let (key, run) = (self.members[other].key, self.members[other].runs);
        if run > 0 && self.told.insert((n, other), run) != Some(run) {
            let disco = self.members[other].disco_public;
            self.members[n].paths.told_disco(now, &key, disco);
        }
        if from.direct().is_some() {
            self.talks[id].direct[end].get_or_insert(now);
        }
        if self.talks[id].routes[end].tell_heard(now, from) {
            self.members[n].paths.heard(now, &key, from);
        }
        self.drain(n);
        match packet {
            Packet::Question(..) if self.talks[id].came.insert(number) => self.say(id, n, &Packet::Answer(id, number)),
            Packet::Answer(..) => {
                self.talks[id].first.get_or_insert(now);
                self.talks[id].answers.insert(number);
            }
            _ => {}
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, end: Time) {
        loop {
            let step = self.steps.first_key_value().map(|((at, _), _)| *at);
            let due = self.due.first().copied();
            let next = step.into_iter().chain(due.map(|(at, _)| at.max(self.now))).min().filter(|at| *at <= end);
            let Some(next) = next else { break };
            self.now = next;
            self.steps_done += 1;
            if let Some((_, n)) = due.filter(|(at, _)| *at <= next) {
                self.members[n].paths.handle_timeout(next);
                self.drain(n);
            } else if let Some((_, step)) = self.steps.pop_first() {
                self.step(step);
            }
        }
        self.now = end;
    }
}
