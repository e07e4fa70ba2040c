//! What provisioning needs of a coordinator, as a trait, so that the order of steps and undoing can be tested without one.

use std::net::{Ipv4Addr, SocketAddr};

use futures_util::future::BoxFuture;
use ipnet::IpNet;

use crate::ident::{MachinePublic, NodeId, NodeName};
use crate::wire::admin::{CoordinatorInfo, CreateKey, CreatedKey, DnsSettings, Drain, NodeInfo};
use crate::wire::control::DerpRegion;

/// Why a coordinator did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MeshError(pub String);

type Answer<'a, T> = BoxFuture<'a, Result<T, MeshError>>;

fn unable() -> MeshError {
    MeshError("this coordinator cannot do that".to_owned())
}

/// A coordinator we may administer.
pub trait Mesh: Send + Sync {
    /// Its key.
    fn server_key(&self) -> MachinePublic;

    /// What it says of itself.
    fn info(&self) -> Answer<'_, CoordinatorInfo>;

    /// Makes a join key.
    fn create_key<'a>(&'a self, key: &'a CreateKey) -> Answer<'a, CreatedKey>;

    /// Revokes a join key.
    fn revoke_key(&self, id: i64) -> Answer<'_, ()>;

    /// The nodes it knows.
    fn nodes(&self) -> Answer<'_, Vec<NodeInfo>>;

    /// Removes a node.
    fn delete_node(&self, id: NodeId) -> Answer<'_, ()>;

    /// Renames a node.
    fn rename_node<'a>(&'a self, _id: NodeId, _name: &'a NodeName) -> Answer<'a, ()> {
        Box::pin(async { Err(unable()) })
    }

    /// Says that a node is about to stop, or has stopped.
    fn drain(&self, _id: NodeId, _wanted: Drain) -> Answer<'_, NodeInfo> {
        Box::pin(async { Err(unable()) })
    }

    /// Replaces the routes a node may carry.
    fn approve_routes<'a>(&'a self, _id: NodeId, _routes: &'a [IpNet]) -> Answer<'a, NodeInfo> {
        Box::pin(async { Err(unable()) })
    }

    /// How names are resolved.
    fn dns(&self) -> Answer<'_, DnsSettings> {
        Box::pin(async { Err(unable()) })
    }

    /// Replaces how names are resolved.
    fn set_dns<'a>(&'a self, _dns: &'a DnsSettings) -> Answer<'a, DnsSettings> {
        Box::pin(async { Err(unable()) })
    }

    /// Gives a node another address.
    fn set_address(&self, _id: NodeId, _address: Ipv4Addr) -> Answer<'_, ()> {
        Box::pin(async { Err(unable()) })
    }

    /// The relays added to its relay map.
    fn relays(&self) -> Answer<'_, Vec<DerpRegion>>;

    /// Adds a relay's region; without a number it gets one.
    fn add_relay<'a>(&'a self, region: &'a DerpRegion) -> Answer<'a, DerpRegion>;

    /// Takes a region out again.
    fn remove_relay(&self, number: i32) -> Answer<'_, ()>;
}

/// A way to coordinators, and to relays that are being made.
pub trait Door: Send + Sync {
    /// Connects to the coordinator at `url`; without `pinned`, whatever key it shows is believed.
    fn open<'a>(&'a self, url: &'a str, pinned: Option<MachinePublic>) -> Answer<'a, Box<dyn Mesh>>;

    /// Connects to a new relay; gives its certificate as a relay map names it.
    fn meet_relay<'a>(&'a self, address: SocketAddr, host: &'a str) -> Answer<'a, String>;
}
