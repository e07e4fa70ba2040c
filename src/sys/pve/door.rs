//! The way to real coordinators: `sys::admin` with this machine's admin key.

use std::net::{Ipv4Addr, SocketAddr};

use futures_util::future::BoxFuture;
use ipnet::IpNet;

use super::mesh::{Door, Mesh, MeshError};
use crate::ident::{MachinePrivate, MachinePublic, NodeId, NodeName};
use crate::sys::admin::{AdminClient, AdminError};
use crate::sys::relay::dial;
use crate::wire::admin::{CoordinatorInfo, CreateKey, CreatedKey, DnsSettings, Drain, NodeInfo};
use crate::wire::control::DerpRegion;

/// Opens coordinators with this machine's admin key.
#[derive(Debug)]
pub struct AdminDoor {
    key: MachinePrivate,
}

impl AdminDoor {
    /// With this key.
    pub fn new(key: MachinePrivate) -> Self {
        Self { key }
    }
}

type Answer<'a, T> = BoxFuture<'a, Result<T, MeshError>>;

impl From<AdminError> for MeshError {
    fn from(error: AdminError) -> Self {
        Self(error.to_string())
    }
}

impl Door for AdminDoor {
    fn open<'a>(&'a self, url: &'a str, pinned: Option<MachinePublic>) -> Answer<'a, Box<dyn Mesh>> {
        Box::pin(async move { Ok(Box::new(AdminClient::connect(url, pinned, &self.key).await?) as Box<dyn Mesh>) })
    }

    fn meet_relay<'a>(&'a self, address: SocketAddr, host: &'a str) -> Answer<'a, String> {
        Box::pin(async move { dial::certificate(address, host).await.map_err(|e| MeshError(e.to_string())) })
    }
}

impl Mesh for AdminClient {
    fn server_key(&self) -> MachinePublic {
        Self::server_key(self)
    }

    fn info(&self) -> Answer<'_, CoordinatorInfo> {
        Box::pin(async { Ok(Self::info(self).await?) })
    }

    fn create_key<'a>(&'a self, key: &'a CreateKey) -> Answer<'a, CreatedKey> {
        Box::pin(async move { Ok(Self::create_key(self, key).await?) })
    }

    fn revoke_key(&self, id: i64) -> Answer<'_, ()> {
        Box::pin(async move { Ok(Self::revoke_key(self, id).await?) })
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeInfo>> {
        Box::pin(async { Ok(Self::nodes(self).await?) })
    }

    fn delete_node(&self, id: NodeId) -> Answer<'_, ()> {
        Box::pin(async move { Ok(Self::delete_node(self, id).await?) })
    }

    fn rename_node<'a>(&'a self, id: NodeId, name: &'a NodeName) -> Answer<'a, ()> {
        Box::pin(async move { Ok(Self::rename_node(self, id, name).await.map(drop)?) })
    }

    fn drain(&self, id: NodeId, wanted: Drain) -> Answer<'_, NodeInfo> {
        Box::pin(async move { Ok(Self::drain(self, id, wanted).await?) })
    }

    fn approve_routes<'a>(&'a self, id: NodeId, routes: &'a [IpNet]) -> Answer<'a, NodeInfo> {
        Box::pin(async move { Ok(Self::approve_routes(self, id, routes).await?) })
    }

    fn dns(&self) -> Answer<'_, DnsSettings> {
        Box::pin(async { Ok(Self::dns(self).await?) })
    }

    fn set_dns<'a>(&'a self, dns: &'a DnsSettings) -> Answer<'a, DnsSettings> {
        Box::pin(async move { Ok(Self::set_dns(self, dns).await?) })
    }

    fn set_address(&self, id: NodeId, address: Ipv4Addr) -> Answer<'_, ()> {
        Box::pin(async move { Ok(Self::set_address(self, id, address).await.map(drop)?) })
    }

    fn relays(&self) -> Answer<'_, Vec<DerpRegion>> {
        Box::pin(async { Ok(Self::relays(self).await?) })
    }

    fn add_relay<'a>(&'a self, region: &'a DerpRegion) -> Answer<'a, DerpRegion> {
        Box::pin(async move { Ok(Self::add_relay(self, region).await?) })
    }

    fn remove_relay(&self, number: i32) -> Answer<'_, ()> {
        Box::pin(async move { Ok(Self::remove_relay(self, number).await?) })
    }
}
