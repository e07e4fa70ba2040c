//! Changes of the machine's links, addresses, rules and routes, told by the kernel as they happen.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::node::policy_routing::TABLE;

/// Changes come in flocks: an address, its route, a carrier. They are told as one.
const SETTLE: Duration = Duration::from_millis(50);

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Links or addresses: the machine may be in another network.
    Networks,
    /// Policy rules, or routes of our table: perhaps our own doing, perhaps another program's.
    Routing,
}

/// Listens to the kernel. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Changes {
    networks: mpsc::Receiver<()>,
    routing: mpsc::Receiver<()>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Changes {
    /// Begins to listen. Where the kernel does not tell, the look around every few seconds has to do.
    pub(super) fn listen() -> Self {
        // One that waits says all there is to say.
        let (tell_networks, networks) = mpsc::channel(1);
        let (tell_routing, routing) = mpsc::channel(1);
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let task = match rtnetlink::new_multicast_connection(&groups) {
            Ok((connection, _, mut messages)) => Some(tokio::spawn(async move {
                let follow = async {
                    while let Some((first, _)) = messages.next().await {
                        let mut changed = vec![kind(&first)];
                        if changed == [None] {
                            continue;
                        }
                        tokio::time::sleep(SETTLE).await;
                        while let Some((message, _)) = messages.next().now_or_never().flatten() {
                            let kind = kind(&message);
                            if !changed.contains(&kind) {
                                changed.push(kind);
                            }
                        }
                        for kind in changed.into_iter().flatten() {
                            let _ = match kind {
                                Change::Networks => tell_networks.try_send(()),
                                Change::Routing => tell_routing.try_send(()),
                            };
                        }
                    }
                };
                tokio::join!(connection, follow);
            })),
            Err(error) => {
                tracing::debug!(%error, "the kernel does not tell of changed links");
                None
            }
        };
        Self { networks, routing, task }
    }

    /// Waits for a change.
    pub(super) async fn next(&mut self) -> Change {
        tokio::select! {
            Some(()) = self.networks.recv() => Change::Networks,
            Some(()) = self.routing.recv() => Change::Routing,
            else => std::future::pending().await,
        }
    }
}

/// What a message is about; `None` if it is nothing to us, like the routes of everybody else. One that does not read, as when the kernel
/// had to leave some out, may be about anything.
fn kind(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<Change> {
    match &message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_)) => Some(Change::Routing),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) => {
            (table(route) == TABLE).then_some(Change::Routing)
        }
        _ => Some(Change::Networks),
    }
}

fn table(route: &RouteMessage) -> u32 {
    let long = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    long.unwrap_or_else(|| route.header.table.into())
}
