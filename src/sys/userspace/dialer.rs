//! Connections of this machine's own: into the mesh by the stack, elsewhere by the system.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Stack;
use crate::node::RouterConfig;
use crate::node::direction::leads_into_mesh;
use crate::sys::dial::Stream;

/// How long an address may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What connects. Clones are the same.
#[derive(Debug, Clone)]
pub(in crate::sys) struct Dialer {
    stack: Stack,
    ways: Arc<RwLock<Option<Arc<Ways>>>>,
}

#[derive(Debug)]
struct Ways {
    config: RouterConfig,
    local: Vec<IpNet>,
}

impl Dialer {
    /// Without a map of the mesh everything goes by the system.
    pub(in crate::sys) fn new(stack: Stack) -> Self {
        Self { stack, ways: Arc::default() }
    }

    /// Which ways lead into the mesh from now on.
    pub(in crate::sys) fn set_ways(&self, config: RouterConfig, local: Vec<IpNet>) {
        *self.ways.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(Ways { config, local }));
    }

    /// Whether this address is reached by the mesh.
    pub(in crate::sys) fn leads_into_mesh(&self, to: IpAddr) -> bool {
        let ways = self.ways.read().unwrap_or_else(PoisonError::into_inner).clone();
        ways.is_some_and(|ways| leads_into_mesh(&ways.config, &ways.local, to))
    }

    /// Connects to the first of these addresses that answers, one after the other.
    ///
    /// # Errors
    /// None does; the error is that of the first.
    pub(in crate::sys) async fn connect(&self, addresses: &[SocketAddr]) -> io::Result<Box<dyn Stream>> {
        let mut first = None;
        for to in addresses {
            match self.connect_to(*to).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    }

    async fn connect_to(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        if self.leads_into_mesh(to.ip()) {
            return Ok(Box::new(self.stack.connect(to).await?));
        }
        let stream = timeout(PATIENCE, TcpStream::connect(to)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
