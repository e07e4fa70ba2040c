//! Map requests: what a node reports of itself, and the opening of its stream.

use std::net::{IpAddr, SocketAddr};

use super::journal::{Change, Fields};
use super::routes::advertised;
use super::session::{Part, SessionId};
use super::{Message, Moment, Next, NodeRecord, Server};
use crate::ident::{MachinePublic, NodeId, NodeName};
use crate::wire::control::{Hostinfo, MINIMUM_CAPABILITY_VERSION, MapRequest, Service};

/// Most endpoints kept of a node.
const MAX_ENDPOINTS: usize = 32;
/// Longest text kept of what a node says of itself, in characters.
const MAX_TEXT: usize = 200;
/// Most entries kept of its lists.
const MAX_LIST: usize = 64;

/// The answer to a map request.
#[derive(Debug)]
pub enum MapAnswer {
    /// Nothing but success.
    Empty,
    /// One message.
    Once(Box<Message>),
    /// A stream, to be driven with [`Server::next_message`] and closed with [`Server::close_session`].
    Stream(SessionId),
}

/// Why a map request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapRefusal {
    /// The node key belongs to another machine.
    #[error("this node key is registered to another machine")]
    OtherMachine,
    /// The client is too old.
    #[error("capability version {0} is too old: Tailscale 1.80 or newer is needed")]
    TooOld(u32),
    /// No such node.
    #[error("this node is not registered here")]
    Unknown,
}

impl Server {
    /// A map request of a machine whose key the connection has proven.
    ///
    /// # Errors
    /// The node is unknown, belongs to another machine, or its client is too old.
    pub fn map(&mut self, at: Moment, machine: &MachinePublic, request: &MapRequest) -> Result<MapAnswer, MapRefusal> {
        if request.version < u32::from(MINIMUM_CAPABILITY_VERSION) {
            return Err(MapRefusal::TooOld(request.version));
        }
        let node = self.registry.node_with_key(&request.node_key).ok_or(MapRefusal::Unknown)?;
        if node.machine != *machine {
            return Err(MapRefusal::OtherMachine);
        }
        let id = node.id;
        if !request.read_only {
            self.apply(at, id, request);
        }
        Ok(match (request.stream, request.omit_peers) {
            (true, _) => MapAnswer::Stream(self.open_session(id, at)),
            (false, true) => MapAnswer::Empty,
            (false, false) => self.once(id, at),
        })
    }

    fn once(&mut self, id: NodeId, at: Moment) -> MapAnswer {
        let mut passing = super::session::Session::new(id, self.view_of(id));
        match self.take(&mut passing, at) {
            Next::Message(message) => MapAnswer::Once(Box::new(message)),
            Next::End | Next::Idle | Next::Last(_) => MapAnswer::Empty,
        }
    }

    /// Takes over what a request says; absent and empty fields mean unchanged, because both stream requests and lite updates carry state.
    fn apply(&mut self, at: Moment, id: NodeId, request: &MapRequest) {
        let Some(before) = self.registry.node(id) else { return };
        let mut after = before.clone();
        if !request.disco_key.is_zero() {
            after.disco = request.disco_key;
        }
        if !request.endpoints.is_empty() {
            after.endpoints = usable_endpoints(&request.endpoints);
        }
        after.version = request.version;
        self.report(&mut after, request.hostinfo.as_ref());
        self.replace(at, after);
    }

    /// Puts what a node says of itself into its record. The name follows the host name, unless an admin chose it.
    pub(super) fn report(&self, node: &mut NodeRecord, hostinfo: Option<&Hostinfo>) {
        let Some(reported) = hostinfo else { return };
        if let Some(network) = &reported.net_info {
            node.home_derp = network.preferred_derp;
        }
        let mut kept = kept_hostinfo(reported);
        if kept.hostname.is_empty() {
            kept.hostname.clone_from(&node.hostinfo.hostname);
        }
        if kept.hostname != node.hostinfo.hostname && !node.renamed {
            node.name = self.registry.free_name(&NodeName::sanitised(&kept.hostname), Some(node.id), |name| self.is_recorded(name));
        }
        node.advertised = advertised(&reported.routable_ips);
        node.hostinfo = kept;
    }

    /// Stores a changed record and tells whoever has to know. Nothing changed: nothing is stored, nobody hears.
    pub(super) fn replace(&mut self, at: Moment, after: NodeRecord) {
        let id = after.id;
        let Some(before) = self.registry.node(id) else { return };
        if *before == after {
            return;
        }
        let mut after = after;
        if before.advertised != after.advertised || before.tags != after.tags || before.user != after.user {
            self.auto_approve(&mut after);
        }
        let fields = Fields {
            online: false,
            endpoints: before.endpoints != after.endpoints,
            derp: before.home_derp != after.home_derp,
            disco: before.disco != after.disco,
            expiry: before.key_expiry != after.key_expiry,
            key: before.key != after.key,
        };
        // Neither the stored last contact, nor what was approved but not advertised, nor what an admin decided for later is seen by anyone.
        let rest_before = NodeRecord {
            endpoints: after.endpoints.clone(),
            home_derp: after.home_derp,
            disco: after.disco,
            key_expiry: after.key_expiry,
            key: after.key,
            last_seen: after.last_seen,
            connected: after.connected,
            approved: after.approved.clone(),
            renamed: after.renamed,
            tags_chosen: after.tags_chosen,
            never_expires: after.never_expires,
            join_key: after.join_key,
            ..before.clone()
        };
        let whole = rest_before != after;
        let routes = !before.effective_routes().eq(after.effective_routes());
        let own = before.name != after.name
            || before.tags != after.tags
            || before.user != after.user
            || before.v4 != after.v4
            || fields.expiry
            || routes;
        // "Expired" has no short form, nor has its end.
        let expired = before.expired(at.wall) || after.expired(at.wall);
        let regarded = before.tags != after.tags || before.user != after.user || before.v4 != after.v4 || routes;
        self.registry.change_node(id, |node| *node = after);
        if regarded {
            self.regard(id);
        }
        if whole || routes || (expired && (fields.expiry || fields.key)) {
            self.tell_peers(id, Change::Whole);
        } else if fields.any() {
            self.tell_peers(id, Change::Fields(fields));
        }
        if own {
            self.tell_part(id, Part::Own);
        }
        if routes || own {
            self.elect(at.wall);
        }
    }
}

/// Endpoints that mean something to another machine.
fn usable_endpoints(reported: &[SocketAddr]) -> Vec<SocketAddr> {
    let usable = |endpoint: &&SocketAddr| {
        let address = endpoint.ip();
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        endpoint.port() != 0 && !address.is_unspecified() && !address.is_multicast() && !link_local
    };
    let mut kept: Vec<SocketAddr> = Vec::new();
    for endpoint in reported.iter().filter(usable) {
        if !kept.contains(endpoint) && kept.len() < MAX_ENDPOINTS {
            kept.push(*endpoint);
        }
    }
    kept
}

/// What is kept, and told to peers, of what a node says of itself: bounded, no log ids or network measurements, and no character that
/// JSON would escape, because one client cannot read strings with escapes and loses its whole map over them.
pub(super) fn kept_hostinfo(reported: &Hostinfo) -> Hostinfo {
    let text = |text: &String| -> String { text.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\')).take(MAX_TEXT).collect() };
    let service = |service: &Service| Service { proto: text(&service.proto), port: service.port, description: text(&service.description) };
    Hostinfo {
        ipn_version: text(&reported.ipn_version),
        os: text(&reported.os),
        os_version: text(&reported.os_version),
        container: reported.container,
        distro: text(&reported.distro),
        distro_version: text(&reported.distro_version),
        distro_code_name: text(&reported.distro_code_name),
        app: text(&reported.app),
        desktop: reported.desktop,
        device_model: text(&reported.device_model),
        hostname: text(&reported.hostname),
        shields_up: reported.shields_up,
        machine: text(&reported.machine),
        routable_ips: advertised(&reported.routable_ips).into_iter().collect(),
        services: reported.services.iter().take(MAX_LIST).map(service).collect(),
        ssh_host_keys: reported.ssh_host_keys.iter().take(MAX_LIST).map(text).collect(),
        userspace: reported.userspace,
        userspace_router: reported.userspace_router,
        app_connector: reported.app_connector,
        peer_relay: reported.peer_relay,
        ..Hostinfo::default()
    }
}
