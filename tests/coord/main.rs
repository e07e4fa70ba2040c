//! The coordinator: its core by value, and the real server over loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    unreachable_pub,
    reason = "test code"
)]

mod core_commands;
mod core_dns;
mod core_drain;
mod core_login;
mod core_maps;
mod core_nodes;
mod core_policy;
mod core_presence;
mod core_random;
mod core_register;
mod core_relays;
mod core_routes;
mod net;
mod net_acme;
mod net_admin;
mod net_backup;
mod net_bad_input;
mod net_faults;
mod net_front;
mod net_join;
mod net_policy;
mod net_proxy;
mod net_quirks;
mod net_relay;
mod net_setup;
mod net_slow;
mod net_web_socket;
mod raw;
mod simulation;
mod store;
mod tls;
mod world;
