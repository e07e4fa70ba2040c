//! What a new guest is for, and how it joins.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::ident::{MachinePublic, Secret, Vmid};

/// A coordinator of ours, as the admin's configuration knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownCoordinator {
    /// Its guest, if we made it.
    pub vmid: Option<Vmid>,
    /// The address guests on the LAN use, and this program.
    pub lan_url: String,
    /// The address other clients are told.
    pub url: String,
    /// Its key.
    pub server_key: MachinePublic,
}

/// How a new node joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Join {
    /// Our coordinator: a join key is made for this guest alone.
    Ours(KnownCoordinator),
    /// Any ts2021 coordinator, with a key the admin has.
    Other {
        /// Its address.
        login_server: String,
        /// The key.
        auth_key: Secret,
    },
}

/// What a new guest is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Key exchange, addresses, names.
    Coordinator {
        /// The address clients are told; absent if it is the guest's own address.
        url: Option<String>,
        /// The DNS suffix; [`DEFAULT_BASE_DOMAIN`](super::DEFAULT_BASE_DOMAIN) for a new one if absent.
        base_domain: Option<String>,
        /// Who may administer it.
        admin_key: MachinePublic,
        /// Networks of the reverse proxies before it: only theirs is `X-Forwarded-For` believed.
        trusted_proxies: Vec<IpNet>,
    },
    /// Packets of nodes that have no direct way to each other.
    Relay {
        /// Whose nodes it serves, and who tells them of it.
        coordinator: KnownCoordinator,
        /// The address clients are told; absent if it is the guest's own address.
        address: Option<String>,
    },
    /// A mesh node.
    Node {
        /// What it offers.
        kind: NodeKind,
        /// How it joins.
        join: Join,
        /// Addresses under which it is reachable from outside.
        endpoints: Vec<SocketAddr>,
        /// Whether it does without a TUN device, which not everybody may pass through; a new one has one if this is absent.
        userspace: Option<bool>,
    },
}

/// What a node offers the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// Itself.
    Member,
    /// The internet.
    ExitNode,
    /// Networks.
    SubnetRouter {
        /// Which.
        routes: Vec<IpNet>,
        /// And the one that the guest stands in.
        lan: bool,
        /// Whether what enters them has the router's own address, as with a new one if this is absent; else their machines need a route back.
        snat: Option<bool>,
        /// Whether it is the gateway of these networks' machines into the mesh; a new one is not if this is absent.
        gateway: Option<bool>,
    },
}

impl Role {
    /// The role's name in tags, marks and the interface.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Coordinator { .. } => "coordinator",
            Self::Relay { .. } => "relay",
            Self::Node { kind: NodeKind::Member, .. } => "node",
            Self::Node { kind: NodeKind::ExitNode, .. } => "exit-node",
            Self::Node { kind: NodeKind::SubnetRouter { .. }, .. } => "subnet-router",
        }
    }

    /// Whether it opens a TUN device, which has to be passed through.
    pub const fn needs_tun(&self) -> bool {
        matches!(self, Self::Node { userspace: None | Some(false), .. })
    }

    /// The role in words.
    pub const fn words(&self) -> &'static str {
        match self {
            Self::Coordinator { .. } => "coordinator",
            Self::Relay { .. } => "relay",
            Self::Node { kind: NodeKind::Member, .. } => "mesh node",
            Self::Node { kind: NodeKind::ExitNode, .. } => "exit node",
            Self::Node { kind: NodeKind::SubnetRouter { .. }, .. } => "subnet router",
        }
    }

    /// The first part of a chosen name; `None` if the role's name is used without a number.
    pub(in crate::plan) const fn name_stem(&self) -> &'static str {
        match self {
            Self::Coordinator { .. } => "coordinator",
            Self::Relay { .. } => "relay",
            Self::Node { kind: NodeKind::Member, .. } => "node",
            Self::Node { kind: NodeKind::ExitNode, .. } => "exit",
            Self::Node { kind: NodeKind::SubnetRouter { .. }, .. } => "router",
        }
    }

    /// The command that makes one.
    pub const fn command(&self) -> &'static str {
        match self {
            Self::Coordinator { .. } => "create-coordinator",
            Self::Relay { .. } => "create-relay",
            Self::Node { kind: NodeKind::Member, .. } => "create-node",
            Self::Node { kind: NodeKind::ExitNode, .. } => "create-exit-node",
            Self::Node { kind: NodeKind::SubnetRouter { .. }, .. } => "create-subnet-router",
        }
    }
}
