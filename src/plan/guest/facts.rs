//! A guest's facts as values. Read by `sys::chores` inside, judged by `doctor` and `upgrade` outside; both may be of different versions, so what
//! is unknown is passed over and what is missing is a default.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Service;

/// What a guest says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestFacts {
    /// The version of the program that looked.
    pub version: String,
    /// The machine's kind, as in `x86_64`.
    pub machine: String,
    /// The kernel's release.
    pub kernel: String,
    /// Who keeps our service running.
    pub service: Option<Service>,
    /// The program's file and process.
    pub program: ProgramFacts,
    /// `/dev/net/tun`.
    pub tun: TunFacts,
    /// Forwarding of packets.
    pub forwarding: Forwarding,
    /// Why the kernel's packet filter (nftables) cannot be used; absent if it can.
    pub nft_trouble: Option<String>,
    /// The largest packet of the interface with the default route, bytes; absent without one.
    pub mtu: Option<u32>,
    /// The hardware addresses of its interfaces.
    pub hardware: Vec<String>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// The clock.
    pub clock: Clock,
    /// Free bytes where our state is; absent if the file system does not say.
    pub free_bytes: Option<u64>,
    /// Other mesh programs that run here.
    pub others: Vec<String>,
    /// The node; absent if none answers.
    pub node: Option<NodeFacts>,
    /// Why none answers.
    pub node_trouble: String,
}

/// The program's file and process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgramFacts {
    /// Where it is installed.
    pub path: String,
    /// The SHA-256 of the installed file, hex.
    pub installed: String,
    /// The SHA-256 of what runs as service, hex; empty if nothing does.
    pub running: String,
    /// Another program is on trial.
    pub trial: bool,
}

/// `/dev/net/tun`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TunFacts {
    /// There is something of this name.
    pub exists: bool,
    /// It is the device it should be (character device 10:200).
    pub is_device: bool,
    /// Permission bits, owner and group.
    pub mode: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Why root cannot open it; absent if root can.
    pub trouble: Option<String>,
}

/// Whether the kernel forwards packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`
    pub v4: bool,
    /// `net.ipv6.conf.all.forwarding`
    pub v6: bool,
    /// `accept_ra` of the interface with the default route; with forwarding on, 2 is needed to hear router advertisements.
    pub accept_ra: Option<u8>,
}

/// The clock, to be compared with another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clock {
    /// Seconds since 1970.
    pub unix: i64,
}

/// The node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    /// How far it is, as in `Running`.
    pub state: String,
    /// Its name.
    pub name: String,
    /// Its node key.
    pub key: String,
    /// Own addresses.
    pub addresses: Vec<IpAddr>,
    /// The coordinator.
    pub login_server: String,
    /// Whether the coordinator is reached.
    pub coordinator_online: bool,
    /// Why the coordinator refuses it; empty if it does not.
    pub refusal: String,
    /// What its user should know.
    pub health: Vec<String>,
    /// How often another program took away what the mesh needs.
    pub repairs: u64,
    /// It offers to carry others' traffic.
    pub carries: bool,
    /// It uses the networks that others offer.
    pub accepts_routes: bool,
    /// It resolves names as the coordinator says.
    pub accepts_dns: bool,
    /// It has no TUN.
    pub userspace: bool,
    /// The program version of the process.
    pub version: String,
}
