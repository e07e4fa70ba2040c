//! What the node's core tells the shell to set up: peers for the packet engine, addresses and routes for the router.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use crate::ident::{DiscoPublic, NodeId, NodePublic, RegionId};

/// One peer, as the packet engine needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The peer's number in the coordinator.
    pub id: NodeId,
    /// The peer's WireGuard key; the engine keeps a session as long as this stays the same.
    pub key: NodePublic,
    /// The key of the peer's path probes, if it has one.
    pub disco: Option<DiscoPublic>,
    /// The peer's name, for logs.
    pub name: String,
    /// Where packets to the peer may go, and the sources it may send from.
    pub allowed_ips: Vec<IpNet>,
    /// Addresses the coordinator knows the peer by, best guess first.
    pub endpoints: Vec<SocketAddr>,
    /// The region of the relay where the peer always listens, if it has one that the relay map knows.
    pub home: Option<RegionId>,
    /// Our own mesh address and the peer's, of one family: what is said to it inside the tunnel comes from and goes to. Absent if there is
    /// no such pair, or the peer has no disco key and so nothing is said to it.
    pub ends: Option<(IpAddr, IpAddr)>,
    /// The peer's own IPv4 address, by which a site behind this node knows it.
    pub v4: Option<Ipv4Addr>,
}

/// Addresses, routes and forwarding of this machine while it is a mesh member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// The TUN interface the mesh goes through.
    pub interface: String,
    /// This node's own addresses.
    pub addresses: Vec<IpNet>,
    /// Prefixes reached through the mesh (table 52).
    pub routes: Vec<IpNet>,
    /// Prefixes that stay on the local network even where a mesh route covers them ("throw" routes, LAN-first).
    pub local_routes: Vec<IpNet>,
    /// Whether what the machine reaches by itself stays as it is (LAN-first); without, only the node's own packets go beside the mesh's routes.
    pub lan_first: bool,
    /// Whether this node forwards packets, of other nodes or for machines on its networks.
    pub forward: bool,
    /// Whether packets from the mesh leave with this machine's own address.
    pub masquerade: bool,
    /// Whether packets that go from this machine's networks into the mesh have this node's mesh address there.
    pub lan_gateway: bool,
    /// Whether other nodes may open no connections to this machine or what is behind it.
    pub shields_up: bool,
    /// The interface's MTU in bytes.
    pub mtu: u16,
}
