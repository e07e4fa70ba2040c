//! From the network map to peers and routes.
//!
//! The rules that protect the user: local networks come before the mesh's (an accepted route never covers one, an exit node leaves
//! them alone unless asked otherwise), and a wish for an exit node holds while that node is away: traffic waits rather than leak.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::report::is_reachable;
use super::{AutoChoice, ExitNode, PeerConfig, Prefs, RouterConfig, TUN_MTU, find_exit_node, is_auto};
use crate::coord::client::NetMap;
use crate::filter::{FilterConfig, Forwards};
use crate::ident::{NodeId, QUAD100_V4, QUAD100_V6, RegionId, VIA_V6, Via, is_mesh_address, is_quad100};
use crate::time::Wall;
use crate::tunnel::translate::SitesConfig;
use crate::wire::control::{FilterRule, Node};

/// Link-local networks: they belong to the wire, whatever the exit node.
const LINK_LOCAL: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
];

/// The circumstances on this machine.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The TUN's name.
    pub interface: &'a str,
    /// The networks of the machine's other interfaces.
    pub local_networks: &'a [IpNet],
    /// Where this node's own peer API listens.
    pub peer_api: &'a [SocketAddr],
    /// Which packets this machine forwards, as far as that is known.
    pub forwards: Forwards,
    /// The time by this machine's clock; expiry is judged by the coordinator's.
    pub now: Wall,
    /// The exit node that was chosen, where that is left to the node.
    pub exit: Option<AutoChoice>,
}

/// What the map means here.
#[derive(Debug, Clone, PartialEq)]
pub struct Assembly {
    /// For the packet engine.
    pub peers: Vec<PeerConfig>,
    /// For the router.
    pub router: RouterConfig,
    /// For the packet filter.
    pub filter: FilterConfig,
    /// For the translation between IPv6 and the IPv4 of sites.
    pub sites: SitesConfig,
    /// What became of the wish for an exit node.
    pub exit_node: ExitNode,
    /// What the user should know, one sentence each: routes not taken, an exit node that is not there.
    pub notes: Vec<String>,
}

/// Turns map and preferences into peers and routes.
pub fn assemble(map: &NetMap, prefs: &Prefs, situation: Situation<'_>) -> Assembly {
    let exit_node = find_exit_node(map, &prefs.exit_node, situation.exit);
    let mut notes = Vec::new();
    if is_auto(&prefs.exit_node) {
        note_auto(&mut notes, map, situation.exit);
    } else {
        note_exit_node(&mut notes, map, prefs, exit_node);
    }
    let now = map.control_time(situation.now);
    let usable = !map.node.has_expired(now);
    if !usable {
        notes.push("this node's key has expired, or it was removed at the coordinator; log in again (`pvemesh node up`)".to_owned());
    }
    if situation.interface.is_empty() && !prefs.snat_subnet_routes && !prefs.advertise_routes.is_empty() {
        notes.push("`--snat-subnet-routes=false` has no effect without a TUN: what enters a network has this machine's address".to_owned());
    }
    if situation.interface.is_empty() && prefs.lan_gateway {
        notes
            .push("`--lan-gateway` has no effect without a TUN: machines of the local network cannot come in through this node".to_owned());
    }
    let mut keys = BTreeSet::new();
    let mut candidates: Vec<&Node> = map.peers.values().filter(|peer| usable && is_usable(peer, map, now)).collect();
    // Numbers grow: of two nodes with one key the later one has it, the other is on its way out.
    candidates.reverse();
    candidates.retain(|peer| keys.insert(peer.key));
    candidates.reverse();

    let mut claims = Claims::default();
    let own: Vec<IpNet> = map.node.addresses.clone();
    claim_addresses(&mut claims, &mut notes, &candidates, &own, situation.local_networks);
    if prefs.accept_routes {
        accept_routes(&mut claims, &mut notes, &candidates, &own, situation.local_networks);
    }
    if let ExitNode::Chosen(id) = exit_node {
        for net in candidates.iter().filter(|peer| peer.id == id).flat_map(|peer| peer.routed()).filter(|net| net.prefix_len() == 0) {
            claims.claim(*net, id);
        }
    }

    let router = router(&claims, map, prefs, exit_node, situation);
    let peers = candidates.iter().map(|peer| peer_config(peer, map, &claims)).collect();
    let (filter, sites) = (filter(map, prefs, situation), sites(map, prefs, situation));
    Assembly { peers, router, filter, sites, exit_node, notes }
}

/// Who gets the packets to a prefix. The first to claim it keeps it: one prefix has one owner.
#[derive(Debug, Default)]
struct Claims(BTreeMap<IpNet, NodeId>);

impl Claims {
    fn claim(&mut self, net: IpNet, id: NodeId) {
        self.0.entry(net.trunc()).or_insert(id);
    }

    fn of(&self, id: NodeId) -> Vec<IpNet> {
        self.0.iter().filter(|(_, owner)| **owner == id).map(|(net, _)| *net).collect()
    }
}

/// Gives the peers their addresses. Those that the coordinator has given them come first, whoever else offers them; the others, of services,
/// are not believed where they would take the resolver or a machine on a local network, a carrier's gateway above all: mesh addresses win
/// over local networks.
fn claim_addresses(claims: &mut Claims, notes: &mut Vec<String>, candidates: &[&Node], own: &[IpNet], local: &[IpNet]) {
    let offers = candidates.iter().flat_map(|peer| peer.routed().iter().map(move |net| (*peer, *net)));
    let offers = offers.filter(|(peer, net)| is_own_address(peer, net) && !own.contains(net));
    let (given, services): (Vec<_>, Vec<_>) = offers.partition(|(peer, net)| peer.addresses.contains(net));
    for (peer, net) in given {
        claims.claim(net, peer.id);
    }
    for (peer, net) in services.into_iter().filter(|(_, net)| !is_quad100(net.addr())) {
        match local.iter().find(|local| local.contains(&net)) {
            Some(local) => note_overlap(notes, peer, net, *local),
            None => claims.claim(net, peer.id),
        }
    }
}

/// Takes other nodes' networks, those of peers that are online first, none that touches a local network or an own address.
fn accept_routes(claims: &mut Claims, notes: &mut Vec<String>, candidates: &[&Node], own: &[IpNet], local: &[IpNet]) {
    let mut offers: Vec<(bool, &Node, IpNet)> = Vec::new();
    for peer in candidates {
        let subnets = peer.routed().iter().filter(|net| net.prefix_len() != 0 && !is_own_address(peer, net));
        offers.extend(subnets.map(|net| (peer.online == Some(false), *peer, net.trunc())));
    }
    offers.sort_by_key(|(offline, ..)| *offline);
    for (_, peer, net) in offers {
        let touched = local.iter().find(|local| overlap(local, &net));
        if let Some(local) = touched {
            note_overlap(notes, peer, net, *local);
        } else if !own.iter().any(|own| net.contains(own)) {
            claims.claim(net, peer.id);
        }
    }
}

fn router(claims: &Claims, map: &NetMap, prefs: &Prefs, exit_node: ExitNode, situation: Situation<'_>) -> RouterConfig {
    let mut routes: Vec<IpNet> = claims.0.keys().copied().collect();
    routes.extend([IpNet::from(IpAddr::V4(QUAD100_V4)), IpNet::from(IpAddr::V6(QUAD100_V6))]);
    let mut local_routes = Vec::new();
    if exit_node != ExitNode::Unwanted {
        // Both families always, even if the exit node is missing or carries only one: nothing may leak past it.
        routes.extend([IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]);
        local_routes.extend(LINK_LOCAL);
        if prefs.exit_node_allow_lan_access {
            local_routes.extend(situation.local_networks.iter().map(IpNet::trunc));
        }
    }
    for list in [&mut routes, &mut local_routes] {
        list.sort();
        list.dedup();
    }
    local_routes.retain(|net| !routes.contains(net));
    let carries = carries(prefs);
    RouterConfig {
        interface: situation.interface.to_owned(),
        addresses: interface_addresses(&map.node.addresses),
        routes,
        local_routes,
        lan_first: exit_node == ExitNode::Unwanted || prefs.exit_node_allow_lan_access,
        forward: carries || prefs.lan_gateway,
        masquerade: carries && (prefs.snat_subnet_routes || prefs.advertise_exit_node),
        lan_gateway: prefs.lan_gateway,
        shields_up: prefs.shields_up,
        mtu: TUN_MTU,
    }
}

/// This node's addresses, and the resolver's, which only this machine uses. A node without an IPv6 address of its own does not get that of the
/// resolver: the kernel, which prefers any other one as a source, would have no other one.
fn interface_addresses(own: &[IpNet]) -> Vec<IpNet> {
    let v6 = own.iter().any(|net| net.addr().is_ipv6()).then_some(IpAddr::V6(QUAD100_V6));
    own.iter().copied().chain([IpAddr::V4(QUAD100_V4)].into_iter().chain(v6).map(IpNet::from)).collect()
}

/// Whether the node carries packets for others.
fn carries(prefs: &Prefs) -> bool {
    prefs.advertise_exit_node || !prefs.advertise_routes.is_empty()
}

fn filter(map: &NetMap, prefs: &Prefs, situation: Situation<'_>) -> FilterConfig {
    let rules: Vec<FilterRule> = map.filters.values().flatten().filter(|rule| !rule.dst_ports.is_empty()).cloned().collect();
    let named: BTreeSet<&str> = rules.iter().flat_map(|rule| &rule.src_ips).filter_map(|source| source.strip_prefix("cap:")).collect();
    let with = |capability: &str| {
        let having = map.peers.values().filter(|peer| peer.cap_map.contains_key(capability));
        having.flat_map(|peer| peer.addresses.iter().map(IpNet::addr)).collect()
    };
    let capable = named.into_iter().map(|capability| (capability.to_owned(), with(capability))).collect();
    FilterConfig {
        capable,
        rules,
        addresses: map.node.addresses.clone(),
        subnets: prefs.advertise_routes.clone(),
        exit: prefs.advertise_exit_node,
        machine: situation.local_networks.iter().map(IpNet::trunc).collect(),
        doors: situation.peer_api.to_vec(),
        forwards: if carries(prefs) { situation.forwards } else { Forwards::default() },
        shields_up: prefs.shields_up,
    }
}

fn peer_config(peer: &Node, map: &NetMap, claims: &Claims) -> PeerConfig {
    let known = |region: &RegionId| map.derp.regions.as_ref().is_some_and(|regions| regions.contains_key(&region.0.into()));
    let endpoints: Vec<SocketAddr> = peer.endpoints.iter().copied().filter(|e| is_reachable(*e)).collect();
    PeerConfig {
        id: peer.id,
        key: peer.key,
        disco: Some(peer.disco_key).filter(|key| !key.is_zero()),
        name: peer.short_name().to_owned(),
        allowed_ips: claims.of(peer.id),
        endpoints,
        home: RegionId::new(peer.home_region()).filter(known),
        ends: if peer.disco_key.is_zero() { None } else { ends(&map.node, peer) },
        v4: own_v4(peer).next(),
    }
}

fn own_v4(node: &Node) -> impl Iterator<Item = Ipv4Addr> {
    node.addresses.iter().filter_map(|net| match net {
        IpNet::V4(net) => Some(net.addr()),
        IpNet::V6(_) => None,
    })
}

/// The networks of sites that this node carries ("4via6"). Nobody comes back into the mesh through them, nor to all machines of a network
/// at once.
fn sites(map: &NetMap, prefs: &Prefs, situation: Situation<'_>) -> SitesConfig {
    let v6 = |net: &IpNet| match net {
        IpNet::V6(net) => Some(net.trunc()),
        IpNet::V4(_) => None,
    };
    let routes: Vec<Ipv6Net> = prefs.advertise_routes.iter().filter_map(v6).filter(|net| Via::of(*net).is_some()).collect();
    if routes.is_empty() {
        return SitesConfig::default();
    }
    let broadcast = |net: &IpNet| match net {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast()),
        _ => None,
    };
    let nodes = map.peers.values().chain([&map.node]).flat_map(own_v4);
    let mut kept_out: Vec<Ipv4Addr> = nodes.chain(situation.local_networks.iter().filter_map(broadcast)).chain([QUAD100_V4]).collect();
    kept_out.sort_unstable();
    kept_out.dedup();
    SitesConfig { routes, own: map.node.addresses.iter().find_map(v6).map(|net| net.addr()), kept_out }
}

/// The first of a peer's own addresses whose family we have one of, and that one.
fn ends(own: &Node, peer: &Node) -> Option<(IpAddr, IpAddr)> {
    let ours = |theirs: IpAddr| own.addresses.iter().map(IpNet::addr).find(|ours| ours.is_ipv4() == theirs.is_ipv4());
    peer.addresses.iter().map(IpNet::addr).find_map(|theirs| Some((ours(theirs)?, theirs)))
}

fn note_overlap(notes: &mut Vec<String>, peer: &Node, net: IpNet, local: IpNet) {
    notes.push(format!("the route {net} of {} is not taken: it overlaps the local network {local}", peer.short_name()));
}

fn note_exit_node(notes: &mut Vec<String>, map: &NetMap, prefs: &Prefs, exit_node: ExitNode) {
    let wanted = prefs.exit_node.escape_debug();
    match exit_node {
        ExitNode::Missing => notes.push(format!("the exit node `{wanted}` is not in the mesh; internet traffic is held back until it is")),
        ExitNode::NotOffered(_) => notes.push(format!(
            "the node `{wanted}` does not carry internet traffic: it has to offer it and an admin has to approve; traffic is held back until then"
        )),
        ExitNode::Chosen(id) if map.peers.get(&id).is_some_and(|peer| peer.online == Some(false)) => {
            notes.push(format!("the exit node `{wanted}` is offline"));
        }
        ExitNode::Chosen(_) | ExitNode::Unwanted => {}
    }
}

fn note_auto(notes: &mut Vec<String>, map: &NetMap, choice: Option<AutoChoice>) {
    let offers = |peer: &&Node| peer.online != Some(false) && peer.routed().iter().any(|net| net.prefix_len() == 0);
    if choice.is_some_and(|choice| !choice.answers) {
        notes.push("no exit node answers; internet traffic is held back until one does".to_owned());
    } else if choice.is_none() && !map.peers.values().any(|peer| offers(&peer)) {
        notes.push("no node that is online carries internet traffic; internet traffic is held back until one does".to_owned());
    }
}

/// Whether a prefix is one of the peer's own addresses rather than a network behind it. A single address in the mesh's own range
/// counts too, services have such; one of a site does not, it is a machine behind the peer.
fn is_own_address(peer: &Node, net: &IpNet) -> bool {
    let single = net.prefix_len() == net.max_prefix_len();
    let of_mesh = is_mesh_address(net.addr()) && !IpNet::V6(VIA_V6).contains(net);
    single && (of_mesh || peer.addresses.contains(net))
}

fn is_usable(peer: &Node, map: &NetMap, now: Wall) -> bool {
    !peer.key.is_zero() && peer.key != map.node.key && !peer.has_expired(now)
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
