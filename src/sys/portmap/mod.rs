//! A port of the home router's for the engine's socket, kept as long as the node runs.
//!
//! One task looks whether the router offers anything, asks for a mapping, renews it at half of its life, gives it up when the network or the
//! port changes and when the node stops. It holds nothing up: without a router that answers, all it costs is a few datagrams every ten minutes.

mod datagram;
mod upnp;

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::portmap::{LOOK_AGAIN, Mapping, Ports, Protocol, Services, is_worth_asking, renew_after};
use datagram::Router;

/// How long giving a port up may hold up the end of a node.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a port is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sys) struct Wish {
    /// The router of the default route.
    pub(in crate::sys) gateway: Ipv4Addr,
    /// The engine's UDP port.
    pub(in crate::sys) port: u16,
}

/// The task. Dropping it ends it at once and leaves a mapping to lapse; [`PortMapper::stop`] gives it up.
#[derive(Debug)]
pub(in crate::sys) struct PortMapper {
    wish: watch::Sender<Option<Wish>>,
    ports: watch::Receiver<Ports>,
    task: Option<JoinHandle<()>>,
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl PortMapper {
    /// Starts without a wish.
    pub(in crate::sys) fn start() -> Self {
        let (wish, wishes) = watch::channel(None);
        let (ports, seen) = watch::channel(Ports::default());
        Self { wish, ports: seen, task: Some(tokio::spawn(run(wishes, ports))) }
    }

    /// From now on this is wanted; the same again changes nothing.
    pub(in crate::sys) fn set(&self, wish: Option<Wish>) {
        self.wish.send_if_modified(|known| std::mem::replace(known, wish) != wish);
    }

    /// What there is, and when that changes.
    pub(in crate::sys) fn ports(&self) -> watch::Receiver<Ports> {
        self.ports.clone()
    }

    /// Gives the port up and ends.
    pub(in crate::sys) async fn stop(mut self) {
        let Some(mut task) = self.task.take() else { return };
        // The task ends with its sender.
        let (closed, _) = watch::channel(None);
        self.wish = closed;
        if timeout(FAREWELL, &mut task).await.is_err() {
            task.abort();
        }
    }
}

/// A mapping and what it takes to renew it or to give it up.
#[derive(Debug, Clone)]
struct Held {
    mapping: Mapping,
    /// Where UPnP was asked.
    control: Option<upnp::Control>,
}

async fn run(mut wishes: watch::Receiver<Option<Wish>>, ports: watch::Sender<Ports>) {
    loop {
        let wish = *wishes.borrow_and_update();
        let changed = match wish {
            Some(wish) => keep(wish, &mut wishes, &ports).await,
            None => wishes.changed().await.is_ok(),
        };
        ports.send_if_modified(|known| std::mem::take(known) != Ports::default());
        if !changed {
            return;
        }
    }
}

/// Keeps a port until the wish changes; says whether there will be another one.
async fn keep(wish: Wish, wishes: &mut watch::Receiver<Option<Wish>>, ports: &watch::Sender<Ports>) -> bool {
    let router = match Router::open(wish) {
        Ok(router) if is_worth_asking(router.own(), wish.gateway) => router,
        Ok(_) => return wishes.changed().await.is_ok(),
        Err(error) => {
            tracing::debug!(%error, gateway = %wish.gateway, "the router cannot be asked for a port");
            return wishes.changed().await.is_ok();
        }
    };
    let mut held: Option<Held> = None;
    let changed = loop {
        let (services, found) = tokio::select! {
            found = obtain(&router, held.clone()) => found,
            changed = wishes.changed() => break changed.is_ok(),
        };
        let mapping = found.as_ref().map(|held| held.mapping);
        if let Some(mapping) = mapping.filter(|new| held.as_ref().is_none_or(|old| old.mapping.external != new.external)) {
            tracing::info!(by = mapping.protocol.name(), "the router has mapped a port");
            tracing::debug!(external = %mapping.external, lifetime = ?mapping.lifetime, "the mapping");
        }
        held = found;
        ports.send_replace(Ports { services: Some(services), mapping });
        let rest = mapping.map_or(LOOK_AGAIN, |mapping| renew_after(mapping.lifetime));
        tokio::select! {
            () = sleep(rest) => {}
            changed = wishes.changed() => break changed.is_ok(),
        }
    };
    if let Some(held) = held {
        let _ = timeout(FAREWELL / 2, release(&router, &held)).await;
    }
    changed
}

/// Looks what the router offers and asks for a mapping, for the one there is if it can be.
async fn obtain(router: &Router, held: Option<Held>) -> (Services, Option<Held>) {
    let offer = router.probe().await;
    let before = held.as_ref().map(|held| held.mapping.external);
    let mut order: Vec<Protocol> = offer.services.in_order().collect();
    // The one that gave the mapping renews it; another would give a second.
    order.sort_by_key(|protocol| held.as_ref().is_none_or(|held| held.mapping.protocol != *protocol));
    for protocol in order {
        let found = match protocol {
            Protocol::Pmp => router.map_by_pmp(before, offer.address).await.map(|mapping| Held { mapping, control: None }),
            Protocol::Pcp => router.map_by_pcp(before).await.map(|mapping| Held { mapping, control: None }),
            Protocol::Upnp => upnp::map(router, &offer.locations, before).await,
        };
        if let Some(held) = found.filter(|held| held.mapping.is_usable()) {
            return (offer.services, Some(held));
        }
    }
    (offer.services, None)
}

async fn release(router: &Router, held: &Held) {
    match (held.mapping.protocol, &held.control) {
        (Protocol::Pmp, _) => router.release_by_pmp().await,
        (Protocol::Pcp, _) => router.release_by_pcp(held.mapping.external).await,
        (Protocol::Upnp, Some(control)) => upnp::release(router, control, held.mapping.external.port()).await,
        (Protocol::Upnp, None) => {}
    }
}
