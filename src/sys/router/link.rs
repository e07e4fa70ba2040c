//! A link, its addresses and its default route over netlink, read and changed one by one; and what the kernel's refusals say.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_core::ErrorMessage;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use netlink_packet_route::route::{RouteAttribute, RouteProtocol};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::RouterError;
use crate::ident::is_quad100;
use crate::node::policy_routing::Family;

/// A lifetime without end (RFC 4862, section 5.5.3).
const FOR_EVER: u32 = u32::MAX;

/// What is known of a link.
#[derive(Debug, Clone, Copy)]
pub(in crate::sys) struct Link {
    pub(in crate::sys) index: u32,
    pub(in crate::sys) mtu: Option<u32>,
    pub(in crate::sys) up: bool,
    /// Its Ethernet address, if it has one.
    pub(in crate::sys) hardware: Option<[u8; 6]>,
    pub(in crate::sys) is_tun: bool,
    /// Something is at its other end; of a TUN, the program that made it.
    pub(in crate::sys) running: bool,
}

/// The kernel's error number of a netlink failure, positive; zero when it is none of the kernel's.
pub(super) fn code(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }) => code.get().saturating_neg(),
        _ => 0,
    }
}

pub(super) fn failed(tried: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> RouterError {
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
pub(super) fn unless(codes: &[i32], result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
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
    let is_tun = message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Tun)),
        _ => false,
    });
    let running = message.header.flags.contains(netlink_packet_route::link::LinkFlags::LowerUp);
    Ok(Some(Link { index: message.header.index, mtu, up, hardware, is_tun, running }))
}

/// Sets the link up, and its MTU if one is wanted. Says whether that was needed.
pub(in crate::sys) async fn bring_up(handle: &Handle, name: &str, link: Link, mtu: Option<u32>) -> Result<bool, RouterError> {
    if link.up && (mtu.is_none() || link.mtu == mtu) {
        return Ok(false);
    }
    let builder = LinkUnspec::new_with_index(link.index);
    let message = match mtu {
        Some(mtu) => builder.mtu(mtu),
        None => builder,
    };
    handle.link().set(message.up().build()).execute().await.map_err(failed(format!("bring up interface {name}")))?;
    Ok(true)
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

/// Gives the interface exactly these addresses, as far as these families go. Link-local ones, which the kernel makes, stay. Says how many
/// had to be added or removed.
pub(in crate::sys) async fn set_addresses(
    handle: &Handle,
    name: &str,
    index: u32,
    families: &[Family],
    wanted: &[IpNet],
) -> Result<usize, RouterError> {
    let mut changed = 0;
    let list = handle.address().get().set_link_index_filter(index).execute();
    let present: Vec<AddressMessage> = list.try_collect().await.map_err(failed(format!("list the addresses of {name}")))?;
    let present: Vec<(IpNet, AddressMessage)> = present
        .into_iter()
        .filter(|message| message.header.index == index && message.header.scope != AddressScope::Link)
        .filter_map(|message| Some((address_of(&message)?, message)))
        .filter(|(net, _)| families.contains(&Family::of(net.addr())))
        .collect();
    // The kernel does not change what an address is for: a wrong one goes first.
    let is_right = |(net, message): &(IpNet, AddressMessage)| !is_quad100(net.addr()) || is_no_source(message);
    let (present, wrong): (Vec<_>, Vec<_>) = present.into_iter().partition(is_right);
    for (net, message) in wrong {
        remove(handle, name, net, message).await?;
        changed += 1;
    }
    for net in wanted.iter().filter(|net| present.iter().all(|(other, _)| other != *net)) {
        let mut request = handle.address().add(index, net.addr(), net.prefix_len());
        if is_quad100(net.addr()) {
            make_no_source(request.message_mut());
        }
        let added = request.execute().await;
        unless(&[libc::EEXIST], added).map_err(failed(format!("add address {net} to {name}")))?;
        changed += 1;
    }
    for (net, message) in present.into_iter().filter(|(net, _)| !wanted.contains(net)) {
        remove(handle, name, net, message).await?;
        changed += 1;
    }
    Ok(changed)
}

async fn remove(handle: &Handle, name: &str, net: IpNet, message: AddressMessage) -> Result<(), RouterError> {
    let removed = handle.address().del(message).execute().await;
    unless(&[libc::EADDRNOTAVAIL, libc::ENODEV], removed).map_err(failed(format!("remove address {net} from {name}")))
}

/// Makes an address one that the kernel does not take as the source of what this machine sends: for IPv4 one of this machine alone, for IPv6, which
/// knows no such thing, one that is deprecated from the beginning (RFC 6724, section 5, rule 3).
fn make_no_source(message: &mut AddressMessage) {
    match message.header.family {
        AddressFamily::Inet6 => {
            let mut lifetime = CacheInfo::default();
            (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, FOR_EVER);
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        _ => message.header.scope = AddressScope::Host,
    }
}

/// Whether an address is such a one.
fn is_no_source(message: &AddressMessage) -> bool {
    match message.header.family {
        AddressFamily::Inet6 => message.header.flags.contains(AddressHeaderFlags::Deprecated),
        _ => message.header.scope == AddressScope::Host,
    }
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

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
