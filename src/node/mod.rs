//! One mesh member: what the network map means for this machine.

mod config;

pub use config::{PeerConfig, RouterConfig};
