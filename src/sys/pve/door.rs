//! The way to real coordinators: our administration messages inside their control protocol.

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::mesh::{Door, Mesh, MeshError};
use crate::ident::{MachinePrivate, MachinePublic, NodeId};
use crate::sys::dial::{ControlConnection, DialError, fetch_server_key};
use crate::wire::admin::{ADMIN_PREFIX, CoordinatorInfo, CreateKey, CreatedKey, NodeInfo};

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

struct Opened {
    connection: ControlConnection,
    server_key: MachinePublic,
}

fn failed(error: &DialError) -> MeshError {
    MeshError(error.to_string())
}

fn path(rest: &str) -> String {
    format!("{ADMIN_PREFIX}{rest}")
}

impl Door for AdminDoor {
    fn open<'a>(&'a self, url: &'a str, pinned: Option<MachinePublic>) -> BoxFuture<'a, Result<Box<dyn Mesh>, MeshError>> {
        Box::pin(async move {
            let shown = fetch_server_key(url).await.map_err(|e| failed(&e))?;
            if let Some(pinned) = pinned.filter(|pinned| *pinned != shown) {
                return Err(MeshError(format!("{url} shows the key {shown}, but {pinned} was pinned when it was made")));
            }
            let connection = ControlConnection::connect(url, &shown, &self.key).await.map_err(|e| failed(&e))?;
            Ok(Box::new(Opened { connection, server_key: shown }) as Box<dyn Mesh>)
        })
    }
}

type Answer<'a, T> = BoxFuture<'a, Result<T, MeshError>>;

impl Mesh for Opened {
    fn server_key(&self) -> MachinePublic {
        self.server_key
    }

    fn info(&self) -> Answer<'_, CoordinatorInfo> {
        Box::pin(async { self.connection.get_json(&path("info")).await.map_err(|e| failed(&e)) })
    }

    fn create_key<'a>(&'a self, key: &'a CreateKey) -> Answer<'a, CreatedKey> {
        Box::pin(async move { self.connection.post_json(&path("keys"), key).await.map_err(|e| failed(&e)) })
    }

    fn revoke_key(&self, id: i64) -> Answer<'_, ()> {
        Box::pin(
            async move { self.connection.delete_json::<Value>(&path(&format!("keys/{id}"))).await.map(|_| ()).map_err(|e| failed(&e)) },
        )
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeInfo>> {
        Box::pin(async { self.connection.get_json(&path("nodes")).await.map_err(|e| failed(&e)) })
    }

    fn delete_node(&self, id: NodeId) -> Answer<'_, ()> {
        Box::pin(
            async move { self.connection.delete_json::<Value>(&path(&format!("nodes/{id}"))).await.map(|_| ()).map_err(|e| failed(&e)) },
        )
    }
}
