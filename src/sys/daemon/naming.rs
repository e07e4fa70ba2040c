//! Names for this machine's programs and for other nodes, while an engine runs.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::DaemonError;
use super::resolver::Resolver;
use super::userspace::{Ground, Listeners, Userspace};
use crate::coord::client::NetMap;
use crate::node::{ExitNode, Prefs};
use crate::sys::names::PeerApi;

/// The resolver, and what answers other nodes. Dropping it ends both.
#[derive(Debug, Default)]
pub(super) struct Naming {
    /// Absent where the system gives it no place.
    resolver: Option<Resolver>,
    /// What other nodes may ask, while this is an exit node.
    peer_api: Option<PeerApi>,
}

impl Naming {
    /// Starts the resolver; without a TUN also the proxies, which ask it.
    pub(super) fn start(ground: &Ground, userspace: Option<&mut Userspace>, listeners: &Listeners) -> Result<Self, DaemonError> {
        let resolver = match userspace {
            None => Resolver::start(ground.interface()),
            Some(userspace) => {
                let resolver = Resolver::in_process(userspace.dialer().clone());
                userspace.serve(listeners, resolver.server()).map_err(DaemonError::Engine)?;
                Some(resolver)
            }
        };
        Ok(Self { resolver, peer_api: None })
    }

    /// Takes over what map and preferences mean for names.
    pub(super) async fn set(&mut self, map: &NetMap, prefs: &Prefs, exit: ExitNode) {
        if let Some(resolver) = &mut self.resolver {
            resolver.set(map, prefs, exit).await;
        }
    }

    /// Puts right what another program has changed; says whether one had.
    pub(super) async fn keep(&mut self) -> bool {
        match &mut self.resolver {
            Some(resolver) => resolver.keep().await,
            None => false,
        }
    }

    /// The resolver, for what the user is told of it.
    pub(super) fn resolver(&self) -> Option<&Resolver> {
        self.resolver.as_ref()
    }

    /// What answers other nodes.
    pub(super) fn peer_api(&self) -> Option<&PeerApi> {
        self.peer_api.as_ref()
    }

    /// Where other nodes may ask.
    pub(super) fn doors(&self) -> &[SocketAddr] {
        self.peer_api.as_ref().map(PeerApi::listeners).unwrap_or_default()
    }

    /// Listens for what other nodes ask, at the addresses the map gives this node, while it offers to be their exit.
    pub(super) fn offer(&mut self, map: &NetMap, prefs: &Prefs, ground: &Ground, userspace: Option<&Userspace>) {
        let offers = prefs.advertise_exit_node && !prefs.shields_up;
        let wanted: Vec<IpAddr> = map.node.addresses.iter().map(IpNet::addr).filter(|_| offers).collect();
        if self.doors().iter().map(SocketAddr::ip).eq(wanted.iter().copied()) {
            return;
        }
        let server = self.resolver.as_ref().filter(|_| !wanted.is_empty()).map(Resolver::server);
        self.peer_api = server.and_then(|server| match userspace {
            Some(userspace) => Some(PeerApi::start_in(userspace.stack(), &wanted, server)),
            None => PeerApi::start(ground.interface(), &wanted, server)
                .inspect_err(|error| tracing::warn!("names are not resolved for other nodes: {error}"))
                .ok(),
        });
    }
}
