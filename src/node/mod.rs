//! One mesh member: what the network map means for this machine.
//!
//! Pure: `assemble` turns map, preferences and the machine's own networks into peers for the packet engine and routes for the
//! router, `hostinfo` and `endpoints` make what is reported to the coordinator.

mod assemble;
mod config;
mod exit;
pub mod policy_routing;
mod prefs;
mod report;
mod status;

pub use assemble::{Assembly, Situation, assemble};
pub use config::{PeerConfig, RouterConfig};
pub use exit::{ExitNode, find_exit_node};
pub use prefs::{Prefs, PrefsChange};
pub use report::{Endpoint, EndpointKind, Machine, endpoints, hostinfo};
pub use status::{BackendState, ExitNodeStatus, PeerStatus, Progress, Status, Traffic, status};

/// The TUN's MTU, bytes: the IPv6 minimum, so that sealed packets fit any link.
pub const TUN_MTU: u16 = 1280;
/// The TUN's name unless told otherwise.
pub const DEFAULT_INTERFACE: &str = "pvemesh0";
