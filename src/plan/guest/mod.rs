//! What a guest says of itself when the provisioner has our program look around in it, and how its service is steered.

mod facts;
mod service;

pub use facts::{Clock, Forwarding, GuestFacts, NodeFacts, ProgramFacts, TunFacts};
pub use service::{Command, Service, ServiceError};

/// Where our program is in an appliance.
pub const APPLIANCE_PROGRAM: &str = "/sbin/init";
/// A node's settings in a guest that is not an appliance.
pub const SETTINGS: &str = "/etc/pvemesh/guest.toml";
/// What `enroll` did in such a guest.
pub const RECORD: &str = "/etc/pvemesh/enrolled.json";
/// Where a node's bounded log is.
pub const LOG: &str = "/var/lib/pvemesh/log";
