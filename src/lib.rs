//! pvemesh: a Tailscale-compatible mesh for the homelab, run from Proxmox VE.
//!
//! The crate is layered; a module uses lower ranks only and modules of one rank do not see each other
//! (`tests/architecture.rs` checks it). Ranks 0 to 3 are pure: no I/O, no clock, no OS randomness.
//! `ARCHITECTURE.md` holds the picture.

// rank 0
pub mod ident;
pub mod time;
// rank 1
pub mod settings;
pub mod wire;
// rank 2
pub mod coord;
pub mod dhcp;
pub mod filter;
pub mod names;
pub mod netcheck;
pub mod netstack;
pub mod path;
pub mod portmap;
pub mod pve;
pub mod relay;
pub mod tunnel;
// rank 3
pub mod node;
pub mod plan;
// rank 4
#[cfg(feature = "sys")]
pub mod sys;
// rank 5
#[cfg(feature = "sys")]
pub mod cli;
