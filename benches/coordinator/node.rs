//! One simulated node: our client's connection, and a light look at what comes over the map stream.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pvemesh::coord::client::MapSession;
use pvemesh::ident::{DiscoPrivate, MachinePrivate, MachinePublic, NodePrivate, NodePublic, Secret};
use pvemesh::sys::dial::{BodyStream, ControlConnection, DialError};
use pvemesh::time::Wall;
use pvemesh::wire::control::frame::Deframer;
use pvemesh::wire::control::{
    Hostinfo, MAP_PATH, MapRequest, NetInfo, REGISTER_PATH, RegisterAuth, RegisterRequest, RegisterResponse, json,
};

use crate::board::{Bits, Board};
use crate::scan::unpack;

/// Attempts to get in: connections may be turned away while thousands arrive.
const ATTEMPTS: u32 = 40;
/// The first pause before a stream is opened again, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The second of the epoch stock clients log out with.
const LOGOUT_SECOND: i64 = 123;

/// Where the coordinator is.
#[derive(Debug, Clone)]
pub struct Place {
    pub url: String,
    pub server: MachinePublic,
}

/// One node.
#[derive(Debug)]
pub struct Member {
    connection: ControlConnection,
    key: NodePublic,
    disco: pvemesh::ident::DiscoPublic,
    name: String,
    pub endpoint: Mutex<SocketAddr>,
    /// Its number, once it has seen itself; zero before.
    pub id: AtomicI64,
    /// The map as our client's core has it, of nodes that are checked.
    pub map: Option<Arc<Mutex<MapSession>>>,
    left: AtomicBool,
}

fn seed(n: u64, kind: u8) -> [u8; 32] {
    let mut seed = [kind; 32];
    seed[..8].copy_from_slice(&n.to_be_bytes());
    seed
}

impl Member {
    /// Connects and registers.
    pub async fn join(place: &Place, n: u64, name: String, key: &Secret, checked: bool) -> Result<Arc<Self>, String> {
        let (machine, node) = (MachinePrivate::from_seed(seed(n, 1)), NodePrivate::from_seed(seed(n, 2)).public());
        let mut pause = Duration::from_millis(20);
        for _ in 0..ATTEMPTS {
            match Self::enter(place, &machine, node, &name, key).await {
                Ok((connection, response)) if response.error.is_empty() && response.auth_url.is_empty() => {
                    let [_, _, a, b] = u32::try_from(n % (1 << 32)).unwrap().to_be_bytes();
                    return Ok(Arc::new(Self {
                        connection: connection.for_node(&node),
                        key: node,
                        disco: DiscoPrivate::from_seed(seed(n, 3)).public(),
                        name,
                        endpoint: Mutex::new(SocketAddr::from(([172, 16, a, b], 41641))),
                        id: AtomicI64::new(0),
                        map: checked.then(Arc::default),
                        left: AtomicBool::new(false),
                    }));
                }
                Ok((_, response)) => return Err(format!("{name} is refused: {} {}", response.error, response.auth_url)),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_secs(2));
        }
        Err(format!("{name} does not get in"))
    }

    async fn enter(
        place: &Place,
        machine: &MachinePrivate,
        node: NodePublic,
        name: &str,
        key: &Secret,
    ) -> Result<(ControlConnection, RegisterResponse), DialError> {
        let connection = ControlConnection::connect(&place.url, &place.server, machine).await?;
        let request = RegisterRequest {
            version: 130,
            node_key: node,
            auth: Some(RegisterAuth { auth_key: key.clone() }),
            hostinfo: Some(hostinfo(name)),
            ..RegisterRequest::default()
        };
        let limit = Duration::from_secs(120);
        let response = connection.clone().for_node(&node).post_json_within(limit, REGISTER_PATH, &request).await?;
        Ok((connection, response))
    }

    fn request(&self) -> MapRequest {
        MapRequest {
            version: 130,
            keep_alive: true,
            node_key: self.key,
            disco_key: self.disco,
            hostinfo: Some(hostinfo(&self.name)),
            endpoints: vec![*self.endpoint.lock().unwrap()],
            endpoint_types: vec![1],
            ..MapRequest::default()
        }
    }

    /// Opens the map stream.
    pub async fn stream(&self) -> Result<BodyStream, DialError> {
        let request = MapRequest { stream: true, compress: "zstd".to_owned(), ..self.request() };
        self.connection.post_stream(MAP_PATH, &request).await
    }

    /// A lite update with everything as it is.
    pub async fn report(&self) -> Result<(), DialError> {
        self.connection.post(MAP_PATH, &MapRequest { omit_peers: true, ..self.request() }).await
    }

    /// A lite update with another endpoint.
    pub async fn move_to(&self, endpoint: SocketAddr) -> Result<(), DialError> {
        *self.endpoint.lock().unwrap() = endpoint;
        self.report().await
    }

    /// Logs out; an ephemeral node is gone by that.
    pub async fn leave(&self) -> Result<(), DialError> {
        self.left.store(true, Ordering::Relaxed);
        let request = RegisterRequest {
            version: 130,
            node_key: self.key,
            expiry: Wall::from_second(LOGOUT_SECOND).ok(),
            hostinfo: Some(hostinfo(&self.name)),
            ..RegisterRequest::default()
        };
        self.connection.post_json::<_, serde_json::Value>(REGISTER_PATH, &request).await.map(drop)
    }

    /// Follows the stream until the node leaves; one that the coordinator ends is opened again, as clients do. A listener counts for the board.
    pub async fn follow(&self, mut body: BodyStream, board: &Board, listens: bool) {
        let mut markers = Bits::default();
        let mut complete = false;
        loop {
            self.follow_one(body, board, listens, &mut complete, &mut markers).await;
            if !listens || self.left.load(Ordering::Relaxed) {
                return;
            }
            board.broken.fetch_add(1, Ordering::Relaxed);
            let mut pause = FIRST_PAUSE;
            body = loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                if let Ok(body) = self.stream().await {
                    break body;
                }
            };
            if let Some(map) = &self.map {
                // Nothing carries over from an ended stream.
                *map.lock().unwrap() = MapSession::default();
            }
        }
    }

    async fn follow_one(&self, mut body: BodyStream, board: &Board, listens: bool, complete: &mut bool, markers: &mut Bits) {
        let mut frames = Deframer::default();
        let mut peers = Bits::default();
        while let Ok(Some(bytes)) = body.next().await {
            frames.push(&bytes);
            while let Some(message) = frames.next_message().expect("framing") {
                self.look(&message, board, listens, &mut peers, markers);
            }
            if listens && !*complete && peers.count() >= board.listeners {
                *complete = true;
                board.complete.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn look(&self, message: &[u8], board: &Board, listens: bool, peers: &mut Bits, markers: &mut Bits) {
        if let Some(map) = &self.map {
            let response = json::from_slice(&unpack(message)).expect("a map message");
            map.lock().unwrap().apply(response, Wall::UNIX_EPOCH).expect("a message that fits the map");
        }
        let mut quiet = false;
        board.scanner.scan(message, |summary| {
            quiet |= summary.keepalive;
            if self.id.load(Ordering::Relaxed) == 0
                && let Some(own) = summary.nodes.first()
            {
                // A first message begins with the node itself.
                self.id.store(*own, Ordering::Relaxed);
            }
            for id in &summary.nodes {
                peers.insert(usize::try_from(*id).unwrap());
            }
            for id in &summary.removed {
                peers.remove(usize::try_from(*id).unwrap());
            }
            if listens {
                let gone = summary.removed.iter().filter_map(|id| board.leaving(*id));
                for marker in summary.markers.iter().copied().chain(gone) {
                    if markers.insert(marker as usize) {
                        board.hear(marker);
                    }
                }
            }
        });
        if listens && !quiet {
            board.messages.fetch_add(1, Ordering::Relaxed);
            board.bytes.fetch_add(4 + message.len() as u64, Ordering::Relaxed);
        }
    }
}

fn hostinfo(name: &str) -> Hostinfo {
    Hostinfo {
        hostname: name.to_owned(),
        os: "linux".to_owned(),
        os_version: "6.12.43".to_owned(),
        distro: "debian".to_owned(),
        distro_version: "13".to_owned(),
        ipn_version: "1.102.5-t0123456789".to_owned(),
        machine: "x86_64".to_owned(),
        go_arch: "amd64".to_owned(),
        net_info: Some(NetInfo { preferred_derp: 900, ..NetInfo::default() }),
        ..Hostinfo::default()
    }
}
