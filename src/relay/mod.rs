//! Relaying: packets by node key, for nodes that have no direct way to each other yet, or never get one.
//!
//! [`client`] is one connection of a node to a relay, [`server`] the relay: cores that take the bytes of a stream and give bytes, events
//! and deadlines.

mod bucket;
pub mod client;
pub mod region;
pub mod server;
