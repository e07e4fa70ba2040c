//! One mesh member: what the network map means for this machine.
//!
//! Pure: `assemble` turns map, preferences and the machine's own networks into peers for the packet engine and routes for the
//! router, `hostinfo` and `endpoints` make what is reported to the coordinator, `status` and `NetworkReport` what is shown, `resolve` answers names.

mod assemble;
mod auto_exit;
pub mod binding;
mod config;
pub mod direction;
mod exit;
mod health;
mod names;
mod network;
pub mod peer_api;
pub mod policy_routing;
mod prefs;
mod refused;
mod renewal;
mod report;
mod status;
pub mod trial;

pub use assemble::{Assembly, Situation, assemble};
pub use auto_exit::{AutoChoice, AutoExit, MAX_CANDIDATES, PATIENCE, ROUND, SILENCE, STEADY, Why};
pub use config::{PeerConfig, RouterConfig};
pub use exit::{ExitNode, find_exit_node, is_auto};
pub use health::health;
pub use names::{DnsStatus, NameAnswer, Outcome, RecordType, dns_status, names, resolve};
pub use network::{NetworkReport, PingReply, worth_telling};
pub use prefs::{Prefs, PrefsChange, Tag, TagError};
pub use refused::RefusedConnection;
pub use renewal::{Renewal, renewal};
pub use report::{Endpoint, EndpointKind, Machine, Whereabouts, endpoints, hostinfo};
pub use status::{
    BackendState, ExitNodeStatus, Network, Offloads, PeerStatus, Progress, Repairs, Sources, Status, Traffic, TunOffload, status,
};

/// The TUN's MTU, bytes: the IPv6 minimum, so that sealed packets fit any link.
pub const TUN_MTU: u16 = 1280;
/// The TUN's name unless told otherwise.
pub const DEFAULT_INTERFACE: &str = "pvemesh0";
