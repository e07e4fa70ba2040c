//! Who is who: keys, addresses, names and ids.
//!
//! Values only. Nothing here draws randomness: a private key is made from 32 bytes the caller supplies.

mod address;
mod id;
mod key;
mod mac;
mod name;
mod prefix_map;
mod reverse;
mod via;

pub use address::{AddressPlan, CGNAT_V4, CHROMEOS_V4, QUAD100_V4, QUAD100_V6, ULA_V6, is_mesh_address, is_quad100};
pub use id::{NodeId, RegionId, StableId, UserId, Vmid};
pub use key::{
    DiscoPrivate, DiscoPublic, KeyError, MachinePrivate, MachinePublic, MeshKey, NodePrivate, NodePublic, RelayPrivate, RelayPublic, Secret,
};
pub use mac::{Mac, MacError};
pub use name::{NameError, NodeName};
pub use prefix_map::PrefixMap;
pub use reverse::{reverse_name, reversed};
pub use via::{VIA_V6, Via};
