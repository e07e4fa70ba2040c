//! The routes of our table over netlink.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::RouterError;
use super::link::{address_family, code, failed, unless};
use crate::node::policy_routing::{Family, ORIGIN, TABLE, Via};

fn route_message(net: IpNet, via: Via, index: u32) -> RouteMessage {
    let kind = match via {
        Via::Mesh => RouteType::Unicast,
        Via::Throw => RouteType::Throw,
        Via::Unreachable => RouteType::Unreachable,
    };
    let scope = match (net, via) {
        (IpNet::V4(_), Via::Mesh) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    let builder = RouteMessageBuilder::<IpAddr>::new().table_id(TABLE).protocol(RouteProtocol::Other(ORIGIN)).scope(scope).kind(kind);
    let builder = match via {
        Via::Mesh => builder.output_interface(index),
        Via::Throw | Via::Unreachable => builder,
    };
    let mut message = match builder.destination_prefix(net.addr(), net.prefix_len()) {
        Ok(builder) => builder.build(),
        // The prefix length comes from an `IpNet`, so it fits.
        Err(_) => RouteMessage::default(),
    };
    message.header.address_family = address_family(Family::of(net.addr()));
    message
}

/// One of our routes: its prefix, what it does, and the interface it goes to.
fn route_of(message: &RouteMessage, family: Family) -> Option<(IpNet, Via, Option<u32>)> {
    let mut table = u32::from(message.header.table);
    let (mut destination, mut output) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => destination = Some(IpAddr::V6(*address)),
            RouteAttribute::Oif(index) => output = Some(*index),
            _ => {}
        }
    }
    if table != TABLE || u8::from(message.header.protocol) != ORIGIN {
        return None;
    }
    let any = match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    let net = IpNet::new(destination.unwrap_or(any), message.header.destination_prefix_length).ok()?;
    Some(match message.header.kind {
        RouteType::Throw => (net, Via::Throw, None),
        RouteType::Unicast => (net, Via::Mesh, output),
        _ => (net, Via::Unreachable, None),
    })
}

/// Makes our routes of one family exactly these: new ones go in before old ones go out. Says how many had to be set or removed.
pub(super) async fn set(handle: &Handle, family: Family, index: u32, wanted: &[(IpNet, Via)]) -> Result<usize, RouterError> {
    let mut changed = 0;
    let mut query = RouteMessage::default();
    query.header.address_family = address_family(family);
    // Only ours: a machine may have the routes of the whole internet, and this is looked at every second.
    query.header.table = u8::try_from(TABLE).unwrap_or_default();
    let listed: Vec<RouteMessage> = match handle.route().get(query).execute().try_collect().await {
        // A table comes to be with its first route.
        Err(error) if code(&error) == libc::ENOENT => Vec::new(),
        other => other.map_err(failed(format!("list the {family:?} routes")))?,
    };
    let present: Vec<_> = listed.into_iter().filter_map(|message| Some((route_of(&message, family)?, message))).collect();
    let as_present = |&(net, via): &(IpNet, Via)| (net, via, matches!(via, Via::Mesh).then_some(index));
    for route in wanted {
        if present.iter().any(|(other, _)| *other == as_present(route)) {
            continue;
        }
        let (net, via) = *route;
        // An IPv6 "replace" keeps a route of another kind beside the new one, so that kind of change is a removal first.
        if family == Family::V6 {
            for (_, message) in present.iter().filter(|((other, ..), _)| *other == net) {
                let removed = handle.route().del(message.clone()).execute().await;
                unless(&[libc::ESRCH], removed).map_err(failed(format!("replace route {net}")))?;
            }
        }
        let request = handle.route().add(route_message(net, via, index)).replace();
        request.execute().await.map_err(failed(format!("add route {net} to table {TABLE}")))?;
        changed += 1;
    }
    for ((net, ..), message) in present.into_iter().filter(|((net, ..), _)| wanted.iter().all(|(other, _)| other != net)) {
        let removed = handle.route().del(message).execute().await;
        unless(&[libc::ESRCH, libc::ENODEV], removed).map_err(failed(format!("remove route {net} from table {TABLE}")))?;
        changed += 1;
    }
    Ok(changed)
}
