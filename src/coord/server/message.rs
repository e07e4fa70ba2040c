//! What a stream is told, made from the state of the moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::session::{Change, Ending, Fields, Session, SessionId};
use super::{Moment, NodeRecord, Server, TAGGED_USER, is_exit};
use crate::ident::{NodeId, UserId};
use crate::time::Wall;
use crate::wire::control::{
    Debug as ClientDebug, DnsConfig, FilterRule, MapResponse, NetPortRange, Node, PeerChange, PortRange, UserProfile,
};

/// A message of the map stream. Peers are encoded once and shared by all streams they are sent to.
#[derive(Debug, Clone, Default)]
pub struct Message {
    head: MapResponse,
    peers: Vec<Arc<str>>,
    changed: Vec<Arc<str>>,
}

impl Message {
    /// The JSON text.
    ///
    /// # Errors
    /// Never for messages made here; the stream should end if it does.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = serde_json::to_vec(&self.head)?;
        json.pop();
        let mut first = json.len() == 1;
        for (name, nodes) in [("Peers", &self.peers), ("PeersChanged", &self.changed)] {
            // An empty list means "no peers" to one client and "unchanged" to another: it is never written.
            for (at, node) in nodes.iter().enumerate() {
                match (at, first) {
                    (0, true) => json.extend_from_slice(format!("\"{name}\":[").as_bytes()),
                    (0, false) => json.extend_from_slice(format!(",\"{name}\":[").as_bytes()),
                    _ => json.push(b','),
                }
                json.extend_from_slice(node.as_bytes());
                first = false;
            }
            if !nodes.is_empty() {
                json.push(b']');
            }
        }
        json.push(b'}');
        Ok(json)
    }
}

/// What a stream does next.
#[derive(Debug)]
pub enum Next {
    /// It ends.
    End,
    /// There is nothing to tell; an event comes when there is.
    Idle,
    /// It sends this and ends.
    Last(Message),
    /// It sends this and asks again.
    Message(Message),
}

/// The relation of a node to the routes it offers.
struct Routes {
    /// Everything that may be routed to it: its own addresses first.
    allowed: Vec<IpNet>,
    primary: Vec<IpNet>,
}

impl Server {
    /// What a stream is to send now.
    pub fn next_message(&mut self, session: SessionId, at: Moment) -> Next {
        let Some(mut open) = self.sessions.remove(&session) else { return Next::End };
        let next = self.take(&mut open, at);
        self.sessions.insert(session, open);
        next
    }

    pub(super) fn take(&mut self, open: &mut Session, at: Moment) -> Next {
        match &open.ending {
            Some(Ending::Now) => return Next::End,
            Some(Ending::After(message)) => {
                let message = Message::clone(message);
                open.ending = Some(Ending::Now);
                return Next::Last(message);
            }
            None => {}
        }
        let Some(node) = self.registry.node(open.node).cloned() else { return Next::End };
        let expired = node.expired(at.wall);
        if expired {
            // Whoever is logged out sees itself and nobody else.
            open.peers.clear();
        }
        if !open.ready() {
            return Next::Idle;
        }
        let pending = std::mem::take(&mut open.peers);
        let mut message = Message::default();
        message.head.control_time = Some(at.wall);
        if std::mem::take(&mut open.full) {
            open.own = false;
            open.users.clear();
            self.fill_whole(&mut message, &node, expired, at.wall);
        } else {
            if std::mem::take(&mut open.own) {
                message.head.node = Some(self.own_node(&node, at.wall));
            }
            self.fill_changes(&mut message, &pending, at.wall);
        }
        self.fill_users(&mut message.head, open, &node, pending.keys(), expired);
        Next::Message(message)
    }

    /// The complete map: what the first message of a stream has to hold.
    fn fill_whole(&mut self, message: &mut Message, node: &NodeRecord, expired: bool, wall: Wall) {
        let base = self.settings.base_domain.clone();
        let any = PortRange { first: 0, last: u16::MAX };
        let everything = FilterRule {
            src_ips: vec!["*".to_owned()],
            dst_ports: vec![NetPortRange { ip: "*".to_owned(), ports: any }],
            ..FilterRule::default()
        };
        let head = &mut message.head;
        head.derp_map.clone_from(&self.settings.derp_map);
        head.dns_config = Some(DnsConfig { proxied: true, domains: vec![base.clone()], ..DnsConfig::default() });
        head.domain = base;
        head.collect_services = Some(false);
        head.packet_filters = BTreeMap::from([("base".to_owned(), Some(vec![everything]))]);
        head.debug = Some(ClientDebug { disable_log_tail: true, ..ClientDebug::default() });
        head.node = Some(self.own_node(node, wall));
        if !expired {
            let others: Vec<NodeId> = self.registry.nodes().map(|peer| peer.id).filter(|id| *id != node.id).collect();
            message.peers = others.into_iter().filter_map(|id| self.encoded(id, wall)).collect();
        }
    }

    fn fill_changes(&mut self, message: &mut Message, pending: &BTreeMap<NodeId, Change>, wall: Wall) {
        for (id, change) in pending {
            match change {
                Change::Removed => message.head.peers_removed.push(*id),
                Change::Whole => message.changed.extend(self.encoded(*id, wall)),
                Change::Fields(fields) => match self.patch(*id, *fields) {
                    Some(patch) => message.head.peers_changed_patch.push(patch),
                    None => message.changed.extend(self.encoded(*id, wall)),
                },
            }
        }
    }

    /// The short form of a change; `None` where it has none.
    fn patch(&self, id: NodeId, fields: Fields) -> Option<PeerChange> {
        let node = self.registry.node(id)?;
        let mut patch = PeerChange { node_id: id, ..PeerChange::default() };
        if fields.derp {
            // Zero means "unchanged" in a patch, so that "none any more" needs the long form.
            patch.derp_region = (node.home_derp != 0).then_some(node.home_derp)?;
        }
        if fields.disco {
            patch.disco_key = (!node.disco.is_zero()).then_some(node.disco);
        }
        patch.endpoints = fields.endpoints.then(|| node.endpoints.clone());
        if fields.online {
            let online = self.presence.get(&id).is_some_and(|presence| presence.online);
            patch.online = Some(online);
            patch.last_seen = if online { None } else { node.last_seen };
        }
        Some(patch)
    }

    /// Profiles of the users a message refers to, as far as the stream has not been told them.
    fn fill_users<'a>(
        &self,
        head: &mut MapResponse,
        open: &mut Session,
        node: &NodeRecord,
        changed: impl Iterator<Item = &'a NodeId>,
        expired: bool,
    ) {
        let mut users: BTreeSet<UserId> = BTreeSet::from([shown_user(node)]);
        if open.users.is_empty() && !expired {
            users.extend(self.registry.nodes().map(shown_user));
        } else {
            users.extend(changed.filter_map(|id| self.registry.node(*id)).map(shown_user));
        }
        head.user_profiles = users.difference(&open.users).map(|id| self.profile(*id)).collect();
        open.users.extend(users);
    }

    pub(super) fn profile(&self, id: UserId) -> UserProfile {
        let name = self.registry.user(id).map_or("tagged-devices", |user| user.name.as_str());
        UserProfile { id, login_name: self.login_name(name), display_name: name.to_owned(), ..UserProfile::default() }
    }

    /// The name in the form `user@domain`, which clients expect.
    pub(super) fn login_name(&self, name: &str) -> String {
        if name.contains('@') || name == "tagged-devices" { name.to_owned() } else { format!("{name}@{}", self.settings.base_domain) }
    }

    /// A node as its peers see it.
    fn encoded(&mut self, id: NodeId, wall: Wall) -> Option<Arc<str>> {
        if let Some(encoded) = self.encoded.get(&id) {
            return Some(encoded.clone());
        }
        let node = self.registry.node(id)?;
        let json: Arc<str> = serde_json::to_string(&self.wire_node(node, wall)).ok()?.into();
        self.encoded.insert(id, json.clone());
        Some(json)
    }

    fn own_node(&self, node: &NodeRecord, wall: Wall) -> Node {
        let mut own = self.wire_node(node, wall);
        own.cap_map = BTreeMap::from([("https://tailscale.com/cap/file-sharing".to_owned(), Vec::new())]);
        own
    }

    /// The last message to a node that is removed: its key has expired, so that its user is asked to log in again instead of the client
    /// retrying for ever.
    pub(super) fn farewell(&self, id: NodeId, wall: Wall) -> Option<Arc<Message>> {
        let node = self.registry.node(id)?;
        let mut own = self.own_node(node, wall);
        own.key_expiry = Some(wall.checked_sub(Duration::from_secs(3600)).unwrap_or(wall));
        own.expired = true;
        let head = MapResponse { node: Some(own), control_time: Some(wall), ..MapResponse::default() };
        Some(Arc::new(Message { head, ..Message::default() }))
    }

    fn wire_node(&self, node: &NodeRecord, wall: Wall) -> Node {
        let online = self.presence.get(&node.id).is_some_and(|presence| presence.online);
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
}

/// A node's own two addresses, IPv4 first: one client needs exactly this.
fn addresses(node: &NodeRecord) -> [IpNet; 2] {
    [IpNet::from(std::net::IpAddr::from(node.v4)), IpNet::from(std::net::IpAddr::from(node.v6))]
}

/// The user clients are told a node belongs to.
pub(super) fn shown_user(node: &NodeRecord) -> UserId {
    if node.tags.is_empty() { node.user } else { TAGGED_USER }
}
