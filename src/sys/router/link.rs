//! The netlink side of the router: the link, its addresses, the rules and the routes, read and changed one by one.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_core::ErrorMessage;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

use super::RouterError;
use crate::node::policy_routing::{Family, ORIGIN, Rule, TABLE, Target, Via};

/// What is known of a link.
#[derive(Debug, Clone, Copy)]
pub(in crate::sys) struct Link {
    pub(in crate::sys) index: u32,
    pub(in crate::sys) mtu: Option<u32>,
    pub(in crate::sys) up: bool,
    /// Its Ethernet address, if it has one.
    pub(in crate::sys) hardware: Option<[u8; 6]>,
}

/// The kernel's error number of a netlink failure, positive; zero when it is none of the kernel's.
fn code(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }) => code.get().saturating_neg(),
        _ => 0,
    }
}

fn failed(tried: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> RouterError {
    let tried = tried.into();
    move |error| {
        let reason = match code(&error) {
            0 => error.to_string(),
            code => std::io::Error::from_raw_os_error(code).to_string(),
        };
        RouterError::Netlink { tried, reason }
    }
}

/// What is already gone, or already there, is as wanted.
fn unless(codes: &[i32], result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if codes.contains(&code(&error)) => Ok(()),
        other => other,
    }
}

pub(in crate::sys) async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, RouterError> {
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
    let message = match found {
        Ok(Some(message)) => message,
        Ok(None) => return Ok(None),
        Err(error) if code(&error) == libc::ENODEV => return Ok(None),
        Err(error) => return Err(failed(format!("find interface {name}"))(error)),
    };
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let up = message.header.flags.contains(netlink_packet_route::link::LinkFlags::Up);
    let hardware = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    Ok(Some(Link { index: message.header.index, mtu, up, hardware }))
}

/// Sets the link up, and its MTU if one is wanted.
pub(in crate::sys) async fn bring_up(handle: &Handle, name: &str, link: Link, mtu: Option<u32>) -> Result<(), RouterError> {
    if link.up && (mtu.is_none() || link.mtu == mtu) {
        return Ok(());
    }
    let builder = LinkUnspec::new_with_index(link.index);
    let message = match mtu {
        Some(mtu) => builder.mtu(mtu),
        None => builder,
    };
    handle.link().set(message.up().build()).execute().await.map_err(failed(format!("bring up interface {name}")))
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    // On a point-to-point link `Address` is the far end and `Local` ours.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(local.or(any)?, message.header.prefix_len).ok()
}

/// Gives the interface exactly these addresses, as far as these families go. Link-local ones, which the kernel makes, stay.
pub(in crate::sys) async fn set_addresses(
    handle: &Handle,
    name: &str,
    index: u32,
    families: &[Family],
    wanted: &[IpNet],
) -> Result<(), RouterError> {
    let list = handle.address().get().set_link_index_filter(index).execute();
    let present: Vec<AddressMessage> = list.try_collect().await.map_err(failed(format!("list the addresses of {name}")))?;
    let present: Vec<(IpNet, AddressMessage)> = present
        .into_iter()
        .filter(|message| message.header.index == index && message.header.scope != AddressScope::Link)
        .filter_map(|message| Some((address_of(&message)?, message)))
        .filter(|(net, _)| families.contains(&Family::of(net.addr())))
        .collect();
    for net in wanted.iter().filter(|net| present.iter().all(|(other, _)| other != *net)) {
        let added = handle.address().add(index, net.addr(), net.prefix_len()).execute().await;
        unless(&[libc::EEXIST], added).map_err(failed(format!("add address {net} to {name}")))?;
    }
    for (net, message) in present.into_iter().filter(|(net, _)| !wanted.contains(net)) {
        let removed = handle.address().del(message).execute().await;
        unless(&[libc::EADDRNOTAVAIL, libc::ENODEV], removed).map_err(failed(format!("remove address {net} from {name}")))?;
    }
    Ok(())
}

/// Sets the default route of one family in the main table, or takes it away. The gateway need not be in the interface's own network.
pub(in crate::sys) async fn set_default_route(
    handle: &Handle,
    index: u32,
    family: Family,
    gateway: Option<IpAddr>,
) -> Result<(), RouterError> {
    let mut message = RouteMessageBuilder::<IpAddr>::new().output_interface(index).protocol(RouteProtocol::Boot).onlink().build();
    message.header.address_family = address_family(family);
    let Some(gateway) = gateway else {
        let removed = handle.route().del(message).execute().await;
        return unless(&[libc::ESRCH, libc::ENODEV], removed).map_err(failed("remove the default route"));
    };
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    handle.route().add(message).replace().execute().await.map_err(failed(format!("set the default route via {gateway}")))
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

fn rule_message(family: Family, rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(ORIGIN)));
    if let Some((mark, mask)) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark));
        attributes.push(RuleAttribute::FwMask(mask));
    }
    if let Some(net) = rule.to {
        attributes.push(RuleAttribute::Destination(net.addr()));
        message.header.dst_len = net.prefix_len();
    }
    match rule.target {
        Target::Lookup(table, suppress) => {
            message.header.action = RuleAction::ToTable;
            attributes.push(RuleAttribute::Table(table));
            attributes.extend(suppress.map(RuleAttribute::SuppressPrefixLen));
        }
        Target::Unreachable => message.header.action = RuleAction::Unreachable,
    }
    message
}

/// The rule a message describes; `None` when it is not one of ours.
fn rule_of(message: &RuleMessage) -> Option<Rule> {
    let (mut priority, mut mark, mut mask, mut table) = (0, None, u32::MAX, u32::from(message.header.table));
    let (mut to, mut suppress, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Destination(address) => to = IpNet::new(*address, message.header.dst_len).ok(),
            // The kernel writes "none" as all ones.
            RuleAttribute::SuppressPrefixLen(value) => suppress = (*value != u32::MAX).then_some(*value),
            RuleAttribute::Protocol(origin) => ours = u8::from(*origin) == ORIGIN,
            _ => {}
        }
    }
    let target = match message.header.action {
        RuleAction::ToTable => Target::Lookup(table, suppress),
        _ => Target::Unreachable,
    };
    ours.then_some(Rule { priority, mark: mark.map(|mark| (mark, mask)), to, target })
}

/// Makes our rules of one family exactly these; added from the first to the last, removed from the last to the first.
pub(in crate::sys) async fn set_rules(handle: &Handle, family: Family, wanted: &[Rule]) -> Result<(), RouterError> {
    let list = handle.rule().get(version(family)).execute();
    let listed: Vec<RuleMessage> = list.try_collect().await.map_err(failed(format!("list the {family:?} policy rules")))?;
    let mut present: Vec<(Rule, RuleMessage)> = listed.into_iter().filter_map(|message| Some((rule_of(&message)?, message))).collect();
    for rule in wanted.iter().filter(|rule| present.iter().all(|(other, _)| other != *rule)) {
        let mut request = handle.rule().add();
        *request.message_mut() = rule_message(family, rule);
        let added = request.execute().await;
        unless(&[libc::EEXIST], added).map_err(failed(format!("add {family:?} policy rule {}", rule.priority)))?;
    }
    present.sort_unstable_by_key(|(rule, _)| std::cmp::Reverse(*rule));
    for (rule, message) in present.into_iter().filter(|(rule, _)| !wanted.contains(rule)) {
        let removed = handle.rule().del(message).execute().await;
        unless(&[libc::ENOENT], removed).map_err(failed(format!("remove {family:?} policy rule {}", rule.priority)))?;
    }
    Ok(())
}

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

/// Makes our routes of one family exactly these: new ones go in before old ones go out.
pub(in crate::sys) async fn set_routes(handle: &Handle, family: Family, index: u32, wanted: &[(IpNet, Via)]) -> Result<(), RouterError> {
    let mut query = RouteMessage::default();
    query.header.address_family = address_family(family);
    query.header.table = RouteHeader::RT_TABLE_UNSPEC;
    let list = handle.route().get(query).execute();
    let listed: Vec<RouteMessage> = list.try_collect().await.map_err(failed(format!("list the {family:?} routes")))?;
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
    }
    for ((net, ..), message) in present.into_iter().filter(|((net, ..), _)| wanted.iter().all(|(other, _)| other != net)) {
        let removed = handle.route().del(message).execute().await;
        unless(&[libc::ESRCH, libc::ENODEV], removed).map_err(failed(format!("remove route {net} from table {TABLE}")))?;
    }
    Ok(())
}
