//! How nodes and users are described to clients.
//!
//! A node's description is encoded once and shared by all viewers that are told the same of it. Viewers differ in the routes of a peer
//! that they may use, and in nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::piece::Message;
use super::sight::Audience;
use super::{NodeRecord, Server, TAGGED_USER, is_exit};
use crate::ident::{NodeId, UserId};
use crate::time::Wall;
use crate::wire::control::{MapResponse, Node, UserProfile};

/// Allows what clients call Taildrop, sending files to each other; the traffic goes between the nodes.
const FILE_SHARING: &str = "https://tailscale.com/cap/file-sharing";

/// A node's descriptions, by the routes that are told with them; none means all there are.
type ByRoutes = Vec<(Option<Vec<IpNet>>, Arc<str>)>;

/// Each node as its peers are told.
#[derive(Debug, Default)]
pub(super) struct Descriptions {
    encoded: BTreeMap<NodeId, ByRoutes>,
}

impl Descriptions {
    /// The node has changed.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.encoded.remove(&id);
    }

    /// All have changed.
    pub(super) fn clear(&mut self) {
        self.encoded.clear();
    }
}

impl Server {
    /// A node as an audience sees it.
    pub(super) fn described(&mut self, id: NodeId, audience: &Audience, wall: Wall) -> Option<Arc<str>> {
        let node = self.registry.node(id)?;
        let restricted = *audience != Audience::Everyone && !node.advertised.is_empty();
        let routes = restricted.then(|| self.routes_shown(&self.sight, audience, node));
        let known = self.descriptions.encoded.get(&id).and_then(|known| known.iter().find(|(told, _)| *told == routes));
        if let Some((_, encoded)) = known {
            return Some(encoded.clone());
        }
        let all = || self.routes_shown(&self.sight, &Audience::Everyone, node);
        let mut peer = self.wire_node(node, &routes.clone().unwrap_or_else(all), wall);
        peer.cap_map = self.sight.compiled().peer_attributes(id);
        let json: Arc<str> = serde_json::to_string(&peer).ok()?.into();
        self.descriptions.encoded.entry(id).or_default().push((routes, json.clone()));
        Some(json)
    }

    /// A node as it sees itself.
    pub(super) fn own_node(&self, node: &NodeRecord, wall: Wall) -> Node {
        let mut own = self.wire_node(node, &self.routes_shown(&self.sight, &Audience::Everyone, node), wall);
        own.cap_map = BTreeMap::from([(FILE_SHARING.to_owned(), Vec::new())]);
        own.cap_map.extend(self.sight.compiled().attributes(node.id).iter().map(|(name, values)| (name.clone(), values.clone())));
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

    fn wire_node(&self, node: &NodeRecord, routes: &[IpNet], wall: Wall) -> Node {
        let online = self.presences.is_online(node.id);
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
            allowed_ips: Some(addresses(node).into_iter().chain(routes.iter().copied()).collect()),
            primary_routes: routes.iter().filter(|net| !is_exit(net)).copied().collect(),
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
