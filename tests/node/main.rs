//! A node against coordinators: the real one, hostile ones, and the whole program in network namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "test code"
)]

mod auto;
mod client;
mod dial;
mod failover;
mod flows;
mod gateway;
mod hostile;
mod kept;
mod lan;
mod lan_carrier;
mod lan_leaks;
mod life;
mod machine;
mod manners;
mod names;
mod pings;
mod quad100;
mod scripted;
mod session;
mod sites;
mod subnet;
mod surroundings;
mod system;
mod trial;
mod upstreams;
mod userspace;
mod world;
