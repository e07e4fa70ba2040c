//! Relaying: packets by node key, for nodes that have no direct way to each other yet, or never get one.
//!
//! [`client`] is one connection of a node to a relay, a core that takes the bytes of the stream and gives bytes, events and deadlines.

mod bucket;
pub mod client;
