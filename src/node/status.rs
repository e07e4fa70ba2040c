//! The node's state as it is shown, with the field names of `tailscale status --json` where both have the thing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::health::health;
use super::refused::RefusedConnection;
use super::{Assembly, AutoChoice, ExitNode, Prefs};
use crate::coord::client::NetMap;
use crate::filter::RefusedFlow;
use crate::ident::{NodeId, NodePublic, RegionId, StableId, UserId};
use crate::time::Wall;
use crate::wire::control::{DnsRecord, Node, UserProfile};

/// Keys that were agreed on within this time are in use (WireGuard agrees on new ones every two minutes while there is traffic).
const ACTIVE: SignedDuration = SignedDuration::from_secs(180);

/// How far the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BackendState {
    /// No coordinator has been named yet.
    #[default]
    NoState,
    /// The coordinator does not let the node in: a join key or a visit to a page is missing, or its key has expired.
    NeedsLogin,
    /// The coordinator knows the node, and an admin has yet to let it take part.
    NeedsMachineAuth,
    /// The user has switched it off.
    Stopped,
    /// On its way: no network map yet.
    Starting,
    /// It has its addresses, and traffic may flow.
    Running,
}

/// What the packet engine knows of one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The address data goes to.
    pub endpoint: Option<SocketAddr>,
    /// The region of the relay it goes through, if there is no such address.
    pub relay: Option<RegionId>,
    /// Since when it goes that way, and what has brought that about.
    pub since: Option<(Wall, &'static str)>,
    /// The last handshake.
    pub last_handshake: Option<Wall>,
    /// What it says it has not let in, and when it said so last.
    pub refused: Vec<(RefusedFlow, Wall)>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// The state of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Status {
    /// Program version.
    pub version: String,
    /// Whether packets go through a TUN interface.
    #[serde(rename = "TUN")]
    pub tun: bool,
    /// How far it is.
    pub backend_state: BackendState,
    /// Whether it has a node key, which is always.
    pub have_node_key: bool,
    /// The coordinator.
    pub login_server: String,
    /// Whether the coordinator is reached.
    pub coordinator_online: bool,
    /// Where the user has to go; empty if nowhere.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Why the coordinator refuses the node; empty if it does not.
    pub refusal: String,
    /// Own addresses.
    #[serde(rename = "TailscaleIPs")]
    pub addresses: Vec<IpAddr>,
    /// The TUN interface; empty if there is none.
    pub interface: String,
    /// Where a proxy (SOCKS5 and HTTP) leads local programs into the mesh. Ours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxies: Vec<SocketAddr>,
    /// The UDP port in use; 0 if none.
    pub port: u16,
    /// Which of the kernel's offloads carry packets, while the node takes part. Ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offloads: Option<Offloads>,
    /// This node.
    #[serde(rename = "Self", skip_serializing_if = "Option::is_none")]
    pub node: Option<PeerStatus>,
    /// What the user should know, one sentence each.
    pub health: Vec<String>,
    /// What had to be put right because another program had changed it. Ours.
    #[serde(skip_serializing_if = "Repairs::is_none")]
    pub repairs: Repairs,
    /// The suffix of the nodes' names.
    #[serde(rename = "MagicDNSSuffix")]
    pub suffix: String,
    /// The network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_tailnet: Option<Network>,
    /// Names this node may get certificates for.
    pub cert_domains: Vec<String>,
    /// Names of the coordinator's beside the nodes'.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_records: Vec<DnsRecord>,
    /// The exit node in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_node_status: Option<ExitNodeStatus>,
    /// The others by node key.
    pub peer: BTreeMap<String, PeerStatus>,
    /// Whose nodes there are.
    pub user: BTreeMap<UserId, UserProfile>,
}

/// What one read or write of the TUN may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunOffload {
    /// One packet.
    #[default]
    None,
    /// Many packets of one TCP connection.
    Tcp,
    /// Of one UDP flow, too (Linux 6.2).
    TcpAndUdp,
}

/// Which of the kernel's offloads are in use. Without them everything works, with a fraction of the throughput.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Offloads {
    /// Towards the mesh and from it.
    #[serde(rename = "TUN")]
    pub tun: TunOffload,
    /// Whether received packets are joined for the TUN; a kernel may turn out to refuse those.
    pub joining: bool,
    /// Whether one send on the UDP socket takes many datagrams (`UDP_SEGMENT`).
    pub send: bool,
    /// Whether one receive brings many (`UDP_GRO`).
    pub receive: bool,
}

impl Offloads {
    /// What is missing of the most there is, in words; empty if nothing. UDP on the TUN is no loss worth a word.
    pub fn missing(&self) -> Vec<&'static str> {
        let parts = [
            (self.tun == TunOffload::None, "segmentation on the TUN"),
            (self.tun != TunOffload::None && !self.joining, "joined packets on the TUN"),
            (!self.send, "UDP segmentation"),
            (!self.receive, "UDP GRO"),
        ];
        parts.into_iter().filter_map(|(lacks, what)| lacks.then_some(what)).collect()
    }
}

/// Routes, rules, addresses, firewall and kernel settings that another program took away, and the node put back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Repairs {
    /// How often, since the node's process started.
    pub count: u64,
    /// When the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Wall>,
    /// What, the last time.
    pub what: String,
}

impl Repairs {
    /// Whether there were none.
    pub fn is_none(&self) -> bool {
        self.count == 0
    }
}

/// The network a node is in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    /// Its name for people.
    pub name: String,
    /// The suffix of its nodes' names.
    #[serde(rename = "MagicDNSSuffix")]
    pub suffix: String,
    /// The coordinator wants these names to be resolved.
    #[serde(rename = "MagicDNSEnabled")]
    pub names_enabled: bool,
}

/// The exit node in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExitNodeStatus {
    /// Its stable id.
    #[serde(rename = "ID")]
    pub id: StableId,
    /// It is connected to the coordinator.
    pub online: bool,
    /// Its addresses.
    #[serde(rename = "TailscaleIPs")]
    pub addresses: Vec<IpNet>,
    /// The node has chosen it itself. Ours, as the next three.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto: bool,
    /// Why it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Whether it answers; absent unless the choice was the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<bool>,
    /// How long its answers took when it was last asked, in milliseconds.
    #[serde(rename = "LatencyMS", default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
}

/// A node in a [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerStatus {
    /// Stable id.
    #[serde(rename = "ID")]
    pub id: StableId,
    /// Number.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// Public node key.
    pub public_key: NodePublic,
    /// What the machine calls itself. Its name in the mesh is the first label of `DNSName`.
    pub host_name: String,
    /// Full name with its final dot.
    #[serde(rename = "DNSName")]
    pub dns_name: String,
    /// Operating system.
    #[serde(rename = "OS")]
    pub os: String,
    /// Its owner's number.
    #[serde(rename = "UserID")]
    pub user_id: UserId,
    /// Its owner.
    pub user: String,
    /// Addresses.
    #[serde(rename = "TailscaleIPs")]
    pub addresses: Vec<IpAddr>,
    /// What may be routed to it.
    #[serde(rename = "AllowedIPs")]
    pub allowed_ips: Vec<IpNet>,
    /// Its tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The networks it carries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub primary_routes: Vec<IpNet>,
    /// Where it may be reached.
    pub addrs: Vec<SocketAddr>,
    /// Where data goes now; empty if nothing has answered.
    pub cur_addr: String,
    /// The region of its home relay; empty if it has none.
    pub relay: String,
    /// `direct` or `relay`; empty if nobody has talked to it. Ours, as the next three.
    pub path: String,
    /// The region of the relay data goes through, if it does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path_relay: String,
    /// Since when data goes that way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_since: Option<Wall>,
    /// What has brought that about.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path_reason: String,
    /// Connections of this machine's, or through it, that the node says it has not let in, in the last minutes. Ours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedConnection>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Wall>,
    /// When it was last connected to the coordinator; not told while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Wall>,
    /// The last handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<Wall>,
    /// It is connected to the coordinator.
    pub online: bool,
    /// It is the exit node in use.
    pub exit_node: bool,
    /// It could be.
    pub exit_node_option: bool,
    /// There has been traffic lately.
    pub active: bool,
    /// It is in the network map, which all are.
    pub in_network_map: bool,
    /// The packet engine has it.
    pub in_engine: bool,
    /// Its key has expired.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
    /// When its key expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Wall>,
    /// Its attributes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: BTreeMap<String, Vec<serde_json::Value>>,
}

impl PeerStatus {
    /// Its name in the mesh: the first label of its full name.
    pub fn name(&self) -> &str {
        self.dns_name.split('.').next().unwrap_or_default()
    }
}

/// What a node's process knows beside its map.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// The coordinator is reached.
    pub online: bool,
    /// Where the user has to go.
    pub auth_url: String,
    /// Why the coordinator refuses.
    pub refusal: String,
    /// Why the coordinator is not reached.
    pub trouble: String,
    /// How the coordinator said that it does not know the node any more.
    pub unknown: String,
    /// The user has asked for a login that is not done yet.
    pub logging_in: bool,
    /// The UDP port in use.
    pub port: u16,
    /// The TUN interface; empty if there is none.
    pub interface: String,
    /// Where a proxy leads local programs into the mesh.
    pub proxies: Vec<SocketAddr>,
}

/// What a [`Status`] is made of.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// What the user wants.
    pub prefs: &'a Prefs,
    /// What the process knows.
    pub progress: &'a Progress,
    /// The map, if there is one.
    pub map: Option<&'a NetMap>,
    /// What was made of it, while the node takes part.
    pub assembly: Option<&'a Assembly>,
    /// The exit node the node has chosen itself, if it was to.
    pub auto: Option<AutoChoice>,
    /// This machine's clock.
    pub now: Wall,
}

/// Puts together what is shown. `traffic` gives what the engine knows of a peer.
pub fn status(sources: Sources<'_>, traffic: impl Fn(&NodePublic) -> Traffic) -> Status {
    let Sources { prefs, progress, map, assembly, auto, now } = sources;
    let exit = match assembly.map(|a| a.exit_node) {
        Some(ExitNode::Chosen(id)) => Some(id),
        _ => None,
    };
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tun: !progress.interface.is_empty(),
        backend_state: backend_state(prefs, progress, map, now),
        have_node_key: true,
        login_server: prefs.login_server.clone(),
        coordinator_online: progress.online,
        auth_url: progress.auth_url.clone(),
        refusal: progress.refusal.clone(),
        interface: progress.interface.clone(),
        proxies: progress.proxies.clone(),
        port: progress.port,
        health: health(prefs, progress, map, assembly, now),
        ..Status::default()
    };
    let Some(map) = map else { return status };
    let shown = |node: &Node, traffic| peer_status(map, node, now, traffic);
    let own = shown(&map.node, Traffic::default());
    status.addresses.clone_from(&own.addresses);
    status.node = Some(PeerStatus { online: progress.online, in_engine: false, ..own });
    map.suffix().clone_into(&mut status.suffix);
    status.current_tailnet = Some(Network { name: map.domain.clone(), suffix: status.suffix.clone(), names_enabled: map.dns.proxied });
    status.cert_domains.clone_from(&map.dns.cert_domains);
    status.extra_records.clone_from(&map.dns.extra_records);
    status.user.clone_from(&map.users);
    status.exit_node_status = exit.and_then(|id| map.peers.get(&id)).map(|peer| exit_node_status(map, peer, auto));
    let in_engine: std::collections::BTreeSet<NodeId> = assembly.iter().flat_map(|a| a.peers.iter().map(|peer| peer.id)).collect();
    status.peer = map
        .peers
        .values()
        .map(|peer| {
            let mut peer_status = shown(peer, traffic(&peer.key));
            peer_status.exit_node = exit == Some(peer.id);
            peer_status.in_engine = in_engine.contains(&peer.id);
            (peer.key.to_string(), peer_status)
        })
        .collect();
    status
}

fn exit_node_status(map: &NetMap, peer: &Node, auto: Option<AutoChoice>) -> ExitNodeStatus {
    let auto = auto.filter(|choice| choice.id == peer.id);
    ExitNodeStatus {
        id: peer.stable_id.clone(),
        online: peer.online != Some(false),
        addresses: peer.addresses.clone(),
        auto: auto.is_some(),
        reason: auto.map(|choice| choice.why.text(map)).unwrap_or_default(),
        answers: auto.map(|choice| choice.answers),
        latency_ms: auto.and_then(|choice| choice.latency).map(|latency| latency.as_secs_f64() * 1000.0),
    }
}

/// How far the node is. Having a map counts, even from before the coordinator went away; having a relay does not.
fn backend_state(prefs: &Prefs, progress: &Progress, map: Option<&NetMap>, now: Wall) -> BackendState {
    let admitted = map.filter(|map| !map.node.addresses.is_empty());
    if prefs.login_server.is_empty() {
        BackendState::NoState
    } else if !prefs.want_running {
        BackendState::Stopped
    } else if !progress.auth_url.is_empty() || !progress.refusal.is_empty() {
        BackendState::NeedsLogin
    } else if progress.logging_in {
        BackendState::Starting
    } else if admitted.is_some_and(|map| map.has_expired(now)) {
        BackendState::NeedsLogin
    } else if admitted.is_some_and(|map| !map.node.machine_authorized) {
        BackendState::NeedsMachineAuth
    } else if admitted.is_some() {
        BackendState::Running
    } else {
        BackendState::Starting
    }
}

fn peer_status(map: &NetMap, node: &Node, now: Wall, traffic: Traffic) -> PeerStatus {
    let hostinfo = node.hostinfo.as_ref();
    let host_name = hostinfo.map_or("", |hostinfo| &hostinfo.hostname);
    let online = node.online != Some(false);
    let code = |number: i32| {
        let region = map.derp.regions.as_ref().and_then(|regions| regions.get(&number)).and_then(Option::as_ref);
        region.map(|region| region.region_code.clone()).unwrap_or_default()
    };
    let path = match (traffic.endpoint, traffic.relay) {
        (Some(_), _) => "direct",
        (None, Some(_)) => "relay",
        (None, None) => "",
    };
    PeerStatus {
        id: node.stable_id.clone(),
        node_id: node.id,
        public_key: node.key,
        host_name: if host_name.is_empty() { node.short_name() } else { host_name }.to_owned(),
        dns_name: node.name.clone(),
        os: hostinfo.map(|hostinfo| hostinfo.os.clone()).unwrap_or_default(),
        user_id: node.user,
        user: map.users.get(&node.user).map(|user| user.login_name.clone()).unwrap_or_default(),
        addresses: node.addresses.iter().map(IpNet::addr).collect(),
        allowed_ips: node.routed().to_vec(),
        tags: node.tags.clone(),
        primary_routes: node.primary_routes.clone(),
        addrs: node.endpoints.clone(),
        cur_addr: traffic.endpoint.map(|e| e.to_string()).unwrap_or_default(),
        relay: code(node.home_region()),
        path: path.to_owned(),
        path_relay: traffic.relay.filter(|_| traffic.endpoint.is_none()).map(|region| code(region.0.into())).unwrap_or_default(),
        path_since: traffic.since.map(|(since, _)| since),
        path_reason: traffic.since.map(|(_, why)| why.to_owned()).unwrap_or_default(),
        refused: RefusedConnection::all(&traffic.refused, now),
        rx_bytes: traffic.rx_bytes,
        tx_bytes: traffic.tx_bytes,
        created: node.created,
        // Some coordinators leave the old time in place when a node comes back.
        last_seen: node.last_seen.filter(|_| !online),
        last_handshake: traffic.last_handshake,
        online,
        exit_node: false,
        exit_node_option: node.routed().iter().any(|net| net.prefix_len() == 0),
        active: traffic.last_handshake.is_some_and(|at| now.duration_since(at) < ACTIVE),
        in_network_map: true,
        in_engine: false,
        expired: node.has_expired(map.control_time(now)),
        key_expiry: node.key_expiry,
        cap_map: node.cap_map.clone(),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
