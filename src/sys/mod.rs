//! The shell: everything that touches the operating system. It drives the cores and holds no decisions.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the shell may")]

pub mod admin;
mod certificate;
pub mod chores;
pub mod clock;
pub mod config;
pub mod control;
pub mod coordinator;
pub mod daemon;
pub mod dhcp;
pub mod dial;
pub mod engine;
pub mod entropy;
mod files;
mod gate;
pub mod image;
pub mod init;
pub mod local_api;
pub mod log_ring;
mod names;
pub mod neighbours;
pub mod nft;
pub mod noise_stream;
mod offload;
pub mod ping;
pub mod portmap;
mod proxy;
pub mod pve;
pub mod relay;
pub mod relay_links;
pub mod router;
pub mod store;
pub mod survey;
pub mod sysctl;
mod userspace;
pub mod web_socket;
