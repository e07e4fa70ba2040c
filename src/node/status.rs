//! The node's state as it is shown, with the field names of `tailscale status --json` where both have the thing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Assembly, ExitNode, Prefs};
use crate::coord::client::NetMap;
use crate::ident::{NodeId, NodePublic, StableId};
use crate::time::Wall;
use crate::wire::control::Node;

/// How far the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendState {
    /// No coordinator has been named yet.
    NoState,
    /// The coordinator does not let the node in: a join key or a visit to a page is missing.
    NeedsLogin,
    /// The user has switched it off.
    Stopped,
    /// On its way: no network map yet.
    Starting,
    /// It has its addresses, and traffic may flow.
    Running,
}

/// What the packet engine knows of one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Where data goes.
    pub endpoint: Option<SocketAddr>,
    /// The last handshake.
    pub last_handshake: Option<Wall>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// The state of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Status {
    /// Program version.
    pub version: String,
    /// How far it is.
    pub backend_state: BackendState,
    /// The coordinator.
    #[serde(rename = "LoginServer")]
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
    /// The TUN interface.
    pub interface: String,
    /// The UDP port in use; 0 if none.
    pub port: u16,
    /// This node.
    #[serde(rename = "Self", skip_serializing_if = "Option::is_none")]
    pub node: Option<PeerStatus>,
    /// The network's name and the suffix of its names.
    #[serde(rename = "MagicDNSSuffix")]
    pub suffix: String,
    /// The exit node in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_node_status: Option<ExitNodeStatus>,
    /// The others by node key.
    pub peer: BTreeMap<String, PeerStatus>,
    /// What the user should know, one sentence each.
    pub health: Vec<String>,
}

/// The exit node in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// A node in a [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerStatus {
    /// Stable id.
    #[serde(rename = "ID")]
    pub id: StableId,
    /// Number.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// Public node key.
    pub public_key: NodePublic,
    /// First label of its name.
    pub host_name: String,
    /// Full name with its final dot.
    #[serde(rename = "DNSName")]
    pub dns_name: String,
    /// Operating system.
    #[serde(rename = "OS")]
    pub os: String,
    /// Its owner.
    pub user: String,
    /// Addresses.
    #[serde(rename = "TailscaleIPs")]
    pub addresses: Vec<IpAddr>,
    /// What may be routed to it.
    #[serde(rename = "AllowedIPs")]
    pub allowed_ips: Vec<IpNet>,
    /// Where it may be reached.
    pub addrs: Vec<SocketAddr>,
    /// Where data goes now; empty if nothing has answered.
    pub cur_addr: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// When it was last connected to the coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Wall>,
    /// The last handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<Wall>,
    /// It is connected to the coordinator.
    pub online: bool,
    /// It is the exit node in use.
    pub exit_node: bool,
    /// It could be.
    pub exit_node_option: bool,
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
    /// The UDP port in use.
    pub port: u16,
    /// The TUN interface.
    pub interface: String,
}

/// Puts together what is shown. `traffic` gives what the engine knows of a peer.
pub fn status(
    prefs: &Prefs,
    progress: &Progress,
    map: Option<&NetMap>,
    assembly: Option<&Assembly>,
    traffic: impl Fn(&NodePublic) -> Traffic,
) -> Status {
    let exit = match assembly.map(|a| a.exit_node) {
        Some(ExitNode::Chosen(id)) => Some(id),
        _ => None,
    };
    let mut health = assembly.map(|a| a.notes.clone()).unwrap_or_default();
    if prefs.want_running && !progress.trouble.is_empty() {
        health.push(format!("the coordinator is not reached: {}", progress.trouble));
    }
    health.extend(map.into_iter().flat_map(|m| &m.health).map(|text| text.escape_debug().take(400).collect()));
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        backend_state: backend_state(prefs, progress, map),
        login_server: prefs.login_server.clone(),
        coordinator_online: progress.online,
        auth_url: progress.auth_url.clone(),
        refusal: progress.refusal.clone(),
        addresses: map.map(|m| m.node.addresses.iter().map(IpNet::addr).collect()).unwrap_or_default(),
        interface: progress.interface.clone(),
        port: progress.port,
        node: map.map(|m| peer_status(m, &m.node, None, Traffic::default())),
        suffix: map.and_then(|m| m.node.name.trim_end_matches('.').split_once('.')).map(|(_, s)| s.to_owned()).unwrap_or_default(),
        exit_node_status: exit.and_then(|id| map?.peers.get(&id)).map(|peer| ExitNodeStatus {
            id: peer.stable_id.clone(),
            online: peer.online != Some(false),
            addresses: peer.addresses.clone(),
        }),
        peer: map
            .map(|m| m.peers.values().map(|p| (p.key.to_string(), peer_status(m, p, exit, traffic(&p.key)))).collect())
            .unwrap_or_default(),
        health,
    }
}

/// How far the node is. Having a map counts, even from before the coordinator went away; having a relay does not.
fn backend_state(prefs: &Prefs, progress: &Progress, map: Option<&NetMap>) -> BackendState {
    if prefs.login_server.is_empty() {
        BackendState::NoState
    } else if !prefs.want_running {
        BackendState::Stopped
    } else if !progress.auth_url.is_empty() || !progress.refusal.is_empty() {
        BackendState::NeedsLogin
    } else if map.is_some_and(|m| !m.node.addresses.is_empty()) {
        BackendState::Running
    } else {
        BackendState::Starting
    }
}

fn peer_status(map: &NetMap, node: &Node, exit: Option<NodeId>, traffic: Traffic) -> PeerStatus {
    PeerStatus {
        id: node.stable_id.clone(),
        node_id: node.id,
        public_key: node.key,
        host_name: node.short_name().to_owned(),
        dns_name: node.name.clone(),
        os: node.hostinfo.as_ref().map(|h| h.os.clone()).unwrap_or_default(),
        user: map.users.get(&node.user).map(|user| user.login_name.clone()).unwrap_or_default(),
        addresses: node.addresses.iter().map(IpNet::addr).collect(),
        allowed_ips: node.routed().to_vec(),
        addrs: node.endpoints.clone(),
        cur_addr: traffic.endpoint.map(|e| e.to_string()).unwrap_or_default(),
        rx_bytes: traffic.rx_bytes,
        tx_bytes: traffic.tx_bytes,
        last_seen: node.last_seen,
        last_handshake: traffic.last_handshake,
        online: node.online != Some(false),
        exit_node: exit == Some(node.id),
        exit_node_option: node.routed().iter().any(|net| net.prefix_len() == 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(prefs: &Prefs, progress: &Progress, map: Option<&NetMap>) -> BackendState {
        status(prefs, progress, map, None, |_| Traffic::default()).backend_state
    }

    #[test]
    fn states_follow_what_is_known() {
        let mut prefs = Prefs::default();
        let mut progress = Progress::default();
        assert_eq!(state(&prefs, &progress, None), BackendState::NoState);
        prefs.login_server = "http://c".to_owned();
        assert_eq!(state(&prefs, &progress, None), BackendState::Stopped);
        prefs.want_running = true;
        assert_eq!(state(&prefs, &progress, None), BackendState::Starting);
        let mut map = NetMap::default();
        map.node.addresses = vec!["100.64.0.1/32".parse().unwrap()];
        // No relay map at all, and the coordinator away: still running.
        assert_eq!(state(&prefs, &progress, Some(&map)), BackendState::Running);
        progress.refusal = "authkey expired".to_owned();
        assert_eq!(state(&prefs, &progress, None), BackendState::NeedsLogin);
    }
}
