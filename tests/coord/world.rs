//! A coordinator's core with a hand-driven clock, and the few things tests ask of it.

use std::time::Duration;

use ipnet::IpNet;
use pvemesh::coord::server::{
    Event, MapAnswer, MapRefusal, Moment, Next, NodeRecord, Registered, Server, SessionId, Settings, Snapshot, Write,
};
use pvemesh::ident::{DiscoPrivate, DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic, Secret};
use pvemesh::time::{Time, Wall};
use pvemesh::wire::admin::{CreateKey, DnsSettings, NodeInfo};
use pvemesh::wire::control::{Hostinfo, MapRequest, MapResponse, NetInfo, RegisterAuth, RegisterRequest, RegisterResponse, json};

pub fn machine(n: u8) -> MachinePublic {
    MachinePrivate::from_seed([n; 32]).public()
}

pub fn node_key(n: u8) -> NodePublic {
    NodePrivate::from_seed([n; 32]).public()
}

pub fn disco(n: u8) -> DiscoPublic {
    DiscoPrivate::from_seed([n; 32]).public()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn hostinfo(name: &str) -> Hostinfo {
    Hostinfo { hostname: name.to_owned(), os: "linux".to_owned(), ..Hostinfo::default() }
}

/// A registration as a stock client sends it on its first login.
pub fn registration(key: u8, auth: Option<&str>, name: &str) -> RegisterRequest {
    RegisterRequest {
        version: 130,
        node_key: node_key(key),
        auth: auth.map(|text| RegisterAuth { auth_key: Secret::new(text) }),
        hostinfo: Some(hostinfo(name)),
        ..RegisterRequest::default()
    }
}

/// A lite update without contents.
pub fn lite(key: u8) -> MapRequest {
    MapRequest { version: 130, node_key: node_key(key), omit_peers: true, ..MapRequest::default() }
}

pub fn key_wanted() -> CreateKey {
    CreateKey {
        user: "alice".to_owned(),
        reusable: false,
        ephemeral: false,
        expires_in_secs: 3600,
        tags: Vec::new(),
        approve_routes: Vec::new(),
        only_for: None,
        address: None,
    }
}

pub struct World {
    pub server: Server,
    pub at: Moment,
    pub writes: Vec<Write>,
    pub stored: Snapshot,
}

pub fn settings() -> Settings {
    Settings::new("https://coord.example.test", "mesh.test")
}

impl World {
    pub fn new() -> Self {
        let at = Moment { now: Time::from_start(Duration::from_secs(1000)), wall: "2026-08-01T12:00:00Z".parse::<Wall>().unwrap() };
        let server = Server::new(settings(), [9; 32], Snapshot::default(), at).unwrap();
        Self { server, at, writes: Vec::new(), stored: Snapshot::default() }
    }

    /// Drains the core, as its caller has to; says which streams were woken.
    pub fn drain(&mut self) -> Vec<Event> {
        self.server.publish(self.at.now);
        let events = std::iter::from_fn(|| self.server.poll_event()).collect();
        for write in self.server.take_writes() {
            self.store(&write);
            self.writes.push(write);
        }
        events
    }

    /// What the database would hold: a model of the store, so that restarts can be played.
    fn store(&mut self, write: &Write) {
        let stored = &mut self.stored;
        match write {
            Write::Counters(counters) => stored.counters = *counters,
            Write::Dns(dns) => stored.dns = DnsSettings::clone(dns),
            Write::Policy(policy) => stored.policy = policy.as_deref().cloned(),
            Write::Key(key) => {
                stored.keys.retain(|k| k.id != key.id);
                stored.keys.push(key.clone());
            }
            Write::Node(node) => {
                stored.nodes.retain(|n| n.id != node.id);
                stored.nodes.push(NodeRecord::clone(node));
            }
            Write::Relay(region) => {
                stored.relays.retain(|r| r.region_id != region.region_id);
                stored.relays.push(pvemesh::wire::control::DerpRegion::clone(region));
                stored.relays.sort_by_key(|r| r.region_id);
            }
            Write::RemoveRelay(number) => stored.relays.retain(|r| r.region_id != *number),
            Write::RemoveKey(id) => stored.keys.retain(|k| k.id != *id),
            Write::RemoveNode(id) => stored.nodes.retain(|n| n.id != *id),
            Write::RemoveUser(id) => stored.users.retain(|u| u.id != *id),
            Write::User(user) => {
                stored.users.retain(|u| u.id != user.id);
                stored.users.push(user.clone());
            }
        }
    }

    /// The process dies and starts again with what was stored.
    pub fn restart(&mut self) {
        self.drain();
        // Through text, as the database keeps it.
        let nodes = self.stored.nodes.iter().map(|n| serde_json::from_str(&serde_json::to_string(n).unwrap()).unwrap()).collect();
        let snapshot = Snapshot { nodes, ..self.stored.clone() };
        self.server = Server::new(settings(), [10; 32], snapshot, self.at).unwrap();
    }

    /// Lets time pass, waking the core at its deadlines and at no other time.
    pub fn pass(&mut self, duration: Duration) {
        let end = self.at.now + duration;
        while let Some(due) = self.server.poll_timeout().map(|deadline| deadline.at).filter(|due| *due <= end) {
            let step = due.since(self.at.now);
            self.at = Moment { now: self.at.now + step, wall: self.at.wall.checked_add(step).unwrap() };
            self.server.handle_timeout(self.at);
            assert!(
                self.server.poll_timeout().is_none_or(|next| next.at > self.at.now),
                "a deadline stays due: {:?}",
                self.server.poll_timeout()
            );
        }
        let rest = end.since(self.at.now);
        self.at = Moment { now: end, wall: self.at.wall.checked_add(rest).unwrap() };
    }

    pub fn key(&mut self, change: impl FnOnce(&mut CreateKey)) -> String {
        let mut wanted = key_wanted();
        change(&mut wanted);
        let made = self.server.create_key(self.at, &wanted).unwrap();
        self.drain();
        made.key.expose().to_owned()
    }

    pub fn register(&mut self, machine_n: u8, request: &RegisterRequest) -> RegisterResponse {
        match self.ask(machine_n, request) {
            Registered::Answer(answer) => *answer,
            Registered::Hold => panic!("held"),
        }
    }

    pub fn ask(&mut self, machine_n: u8, request: &RegisterRequest) -> Registered {
        let registered = self.server.register(self.at, &machine(machine_n), request);
        self.drain();
        registered
    }

    /// Node `n` joins with a fresh single-use key.
    pub fn join(&mut self, n: u8, name: &str) -> NodeInfo {
        self.join_with(n, name, |_| {})
    }

    pub fn join_with(&mut self, n: u8, name: &str, change: impl FnOnce(&mut CreateKey)) -> NodeInfo {
        let key = self.key(change);
        let answer = self.register(n, &registration(n, Some(&key), name));
        assert_eq!((answer.error.as_str(), answer.auth_url.as_str(), answer.machine_authorized), ("", "", true));
        self.info(n)
    }

    /// A machine joins or logs in with a node key and a fresh join key.
    pub fn log_in_with(&mut self, machine_n: u8, key_n: u8, name: &str, change: impl FnOnce(&mut CreateKey)) {
        let key = self.key(change);
        assert_eq!(self.register(machine_n, &registration(key_n, Some(&key), name)).error, "");
    }

    pub fn info(&self, n: u8) -> NodeInfo {
        self.server.nodes().into_iter().find(|node| node.key == node_key(n)).expect("a node with this key")
    }

    pub fn map(&mut self, n: u8, request: &MapRequest) -> Result<MapAnswer, MapRefusal> {
        let answer = self.server.map(self.at, &machine(n), request);
        self.drain();
        answer
    }

    /// A lite update that has to succeed.
    pub fn report(&mut self, n: u8, change: impl FnOnce(&mut MapRequest)) {
        let mut request = lite(n);
        change(&mut request);
        assert!(matches!(self.map(n, &request), Ok(MapAnswer::Empty)));
    }

    pub fn stream(&mut self, n: u8) -> SessionId {
        let request = MapRequest { version: 130, node_key: node_key(n), stream: true, disco_key: disco(n), ..MapRequest::default() };
        match self.map(n, &request) {
            Ok(MapAnswer::Stream(session)) => session,
            other => panic!("no stream: {other:?}"),
        }
    }

    /// A stream whose first message has been taken.
    pub fn settled(&mut self, n: u8) -> SessionId {
        let session = self.stream(n);
        self.take(session).expect("a first message");
        session
    }

    /// The next message as JSON text.
    pub fn text(&mut self, session: SessionId) -> Option<String> {
        self.server.publish(self.at.now);
        match self.server.next_message(session, self.at) {
            Next::Message(message) | Next::Last(message) => Some(String::from_utf8(message.to_json().unwrap()).unwrap()),
            Next::Idle | Next::End => None,
        }
    }

    pub fn take(&mut self, session: SessionId) -> Option<MapResponse> {
        self.text(session).map(|text| json::from_slice(text.as_bytes()).unwrap())
    }

    pub fn ended(&mut self, session: SessionId) -> bool {
        matches!(self.server.next_message(session, self.at), Next::End)
    }

    pub fn hang_up(&mut self, session: SessionId) {
        self.server.close_session(session, self.at);
        self.drain();
    }
}

pub fn with_home(region: i32, name: &str) -> Option<Hostinfo> {
    Some(Hostinfo { net_info: Some(NetInfo { preferred_derp: region, ..NetInfo::default() }), ..hostinfo(name) })
}
