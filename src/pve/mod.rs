//! Proxmox VE as values: names, property strings, requests, replies, errors, task ids.
//!
//! Nothing here talks to anything: [`call`] makes [`Request`]s, transports in `sys::pve` carry them, [`reply`] reads what comes back and
//! [`ApiError`] says what a refusal means. "Node" in Proxmox's sense (a machine of the cluster) is called *host* here, its name is
//! [`HostName`]; only paths and parameters keep Proxmox's own word.
//!
//! Sources: the API schema of PVE 9.1 (through the types of the `proxmox-api` crate) and replies recorded from PVE 9.1.9.

pub mod access;
pub mod call;
pub mod conf;
mod error;
pub mod golden;
mod identity;
pub mod machine;
mod name;
pub mod privilege;
mod property;
mod recorder;
pub mod reply;
mod request;
mod upid;
mod version;

pub use conf::GuestFile;
pub use error::{ApiError, ErrorKind};
pub use identity::{Fingerprint, FingerprintError, Principal};
pub use name::{BridgeName, HostName, InvalidName, StorageId, Tag, VolumeId};
pub use property::{Device, Ipv4Config, Ipv6Config, NetworkInterface, Properties, PropertyError, RootVolume};
pub use recorder::BuildError;
pub use request::{Method, Param, Request};
pub use upid::{Upid, UpidError};
pub use version::Version;
