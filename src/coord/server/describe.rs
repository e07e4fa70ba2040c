//! How nodes and users are described to clients.
//!
//! A node's description is encoded once and shared by all viewers that are told the same of it. Viewers differ in the routes of a peer
//! that they may use, and in nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::piece::Message;
use super::{NodeRecord, Server, TAGGED_USER, is_exit};
use crate::ident::{NodeId, UserId};
use crate::time::Wall;
use crate::wire::control::{FilterRule, MapResponse, NetPortRange, Node, PortRange, UserProfile};

/// Allows what clients call Taildrop, sending files to each other; the traffic goes between the nodes.
const FILE_SHARING: &str = "https://tailscale.com/cap/file-sharing";

/// Each node as its peers are told.
#[derive(Debug, Default)]
pub(super) struct Descriptions {
    encoded: BTreeMap<NodeId, Arc<str>>,
}

impl Descriptions {
    /// The node has changed.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.encoded.remove(&id);
    }
}

/// The relation of a node to the routes it offers.
struct Routes {
    /// Everything that may be routed to it: its own addresses first.
    allowed: Vec<IpNet>,
    primary: Vec<IpNet>,
}

impl Server {
    /// A node as a peer sees it.
    pub(super) fn described(&mut self, id: NodeId, wall: Wall) -> Option<Arc<str>> {
        if let Some(encoded) = self.descriptions.encoded.get(&id) {
            return Some(encoded.clone());
        }
        let node = self.registry.node(id)?;
        let json: Arc<str> = serde_json::to_string(&self.wire_node(node, wall)).ok()?.into();
        self.descriptions.encoded.insert(id, json.clone());
        Some(json)
    }

    /// A node as it sees itself.
    pub(super) fn own_node(&self, node: &NodeRecord, wall: Wall) -> Node {
        let mut own = self.wire_node(node, wall);
        own.cap_map = BTreeMap::from([(FILE_SHARING.to_owned(), Vec::new())]);
        own
    }

    /// The last message to a node that is removed: its key has expired, so that its user is asked to log in again instead of the client
    /// retrying for ever.
    pub(super) fn farewell(&self, id: NodeId, wall: Wall) -> Option<Message> {
        let node = self.registry.node(id)?;
        let mut own = self.own_node(node, wall);
        own.key_expiry = Some(wall.checked_sub(Duration::from_secs(3600)).unwrap_or(wall));
        own.expired = true;
        Some(Message::own(MapResponse { node: Some(own), control_time: Some(wall), ..MapResponse::default() }, Vec::new()))
    }

    fn wire_node(&self, node: &NodeRecord, wall: Wall) -> Node {
        let online = self.presences.is_online(node.id);
        let routes = self.routes_of(node);
        Node {
            id: node.id,
            stable_id: node.stable_id.clone(),
            name: format!("{}.{}.", node.name, self.settings.base_domain),
            user: shown_user(node),
            key: node.key,
            key_expiry: node.key_expiry,
            machine: node.machine,
            disco_key: node.disco,
            addresses: addresses(node).to_vec(),
            allowed_ips: Some(routes.allowed),
            primary_routes: routes.primary,
            endpoints: node.endpoints.clone(),
            home_derp: node.home_derp,
            hostinfo: Some(node.hostinfo.clone()),
            created: Some(node.created),
            cap: node.version,
            tags: node.tags.clone(),
            last_seen: if online { None } else { node.last_seen },
            online: Some(online),
            machine_authorized: true,
            expired: node.expired(wall),
            ..Node::default()
        }
    }

    fn routes_of(&self, node: &NodeRecord) -> Routes {
        let primary: Vec<IpNet> = self.primaries.of(node.id).collect();
        let exit = node.effective_routes().filter(is_exit);
        let allowed = addresses(node).into_iter().chain(primary.iter().copied()).chain(exit).collect();
        Routes { allowed, primary }
    }

    /// What a node accepts from others.
    pub(super) fn filter_of(&self, _node: &NodeRecord) -> Arc<[FilterRule]> {
        let any = PortRange { first: 0, last: u16::MAX };
        let everything = FilterRule {
            src_ips: vec!["*".to_owned()],
            dst_ports: vec![NetPortRange { ip: "*".to_owned(), ports: any }],
            ..FilterRule::default()
        };
        Arc::new([everything])
    }

    pub(super) fn profile(&self, id: UserId) -> UserProfile {
        let name = self.registry.user(id).map_or("tagged-devices", |user| user.name.as_str());
        UserProfile { id, login_name: self.login_name(name), display_name: name.to_owned(), ..UserProfile::default() }
    }

    /// The name in the form `user@domain`, which clients expect.
    fn login_name(&self, name: &str) -> String {
        if name.contains('@') || name == "tagged-devices" { name.to_owned() } else { format!("{name}@{}", self.settings.base_domain) }
    }
}

/// A node's own two addresses, IPv4 first: one client needs exactly this.
fn addresses(node: &NodeRecord) -> [IpNet; 2] {
    [IpNet::from(std::net::IpAddr::from(node.v4)), IpNet::from(std::net::IpAddr::from(node.v6))]
}

/// The user clients are told a node belongs to.
pub(super) fn shown_user(node: &NodeRecord) -> UserId {
    if node.tags.is_empty() { node.user } else { TAGGED_USER }
}
