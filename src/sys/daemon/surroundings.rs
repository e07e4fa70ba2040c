//! What the machine is and which networks it is in.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader};
use rtnetlink::RouteMessageBuilder;

use crate::ident::is_mesh_address;
use crate::node::Machine;

/// The networks and addresses of the machine's own interfaces, of those that are switched on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// Networks that are reached without a router.
    pub(super) networks: Vec<IpNet>,
    /// Own addresses on them, without those that come and go.
    pub(super) addresses: Vec<IpAddr>,
    /// The router of the IPv4 default route.
    pub(super) gateway: Option<Ipv4Addr>,
}

/// Reads them. `tunnel` is our own interface, which does not count.
pub(super) async fn look(tunnel: &str) -> Result<Surroundings, rtnetlink::Error> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|e| rtnetlink::Error::NamespaceError(format!("open a routing socket: {e}")))?;
    let driver = tokio::spawn(connection);
    let found = read(&handle, tunnel).await;
    driver.abort();
    found
}

async fn read(handle: &rtnetlink::Handle, tunnel: &str) -> Result<Surroundings, rtnetlink::Error> {
    let (mut ours, mut off) = (Vec::new(), Vec::new());
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        if link.attributes.iter().any(|a| matches!(a, LinkAttribute::IfName(name) if name == tunnel)) {
            ours.push(link.header.index);
        }
        if !link.header.flags.contains(LinkFlags::Up) {
            off.push(link.header.index);
        }
    }
    let mut found = Surroundings::default();
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await? {
        // What is switched off has addresses still, but leads nowhere.
        if ![&ours, &off].iter().any(|links| links.contains(&message.header.index)) {
            add(&mut found, &message);
        }
    }
    found.gateway = gateway(handle, &ours).await?;
    found.networks.sort();
    found.networks.dedup();
    Ok(found)
}

/// The router of the main table's best default route that does not go into a tunnel of ours.
async fn gateway(handle: &rtnetlink::Handle, ours: &[u32]) -> Result<Option<Ipv4Addr>, rtnetlink::Error> {
    let mut best: Option<(u32, Ipv4Addr)> = None;
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await? {
        if route.header.destination_prefix_length != 0 || route.header.table != RouteHeader::RT_TABLE_MAIN {
            continue;
        }
        let (mut via, mut metric, mut own) = (None, 0, false);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
                RouteAttribute::Priority(value) => metric = *value,
                RouteAttribute::Oif(index) => own = ours.contains(index),
                _ => {}
            }
        }
        if let Some(via) = via.filter(|_| !own && best.is_none_or(|(known, _)| metric < known)) {
            best = Some((metric, via));
        }
    }
    Ok(best.map(|(_, via)| via))
}

fn add(found: &mut Surroundings, message: &AddressMessage) {
    if !matches!(message.header.scope, AddressScope::Universe | AddressScope::Site) {
        return;
    }
    // For IPv4 the interface's own address is `Local`; `Address` may be the other end of a point-to-point link.
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = find(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
    let address = find(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None });
    let Some(ip) = local.or(address) else { return };
    let family_matches =
        matches!((message.header.family, ip), (AddressFamily::Inet, IpAddr::V4(_)) | (AddressFamily::Inet6, IpAddr::V6(_)));
    let Some(net) = IpNet::new(ip, message.header.prefix_len).ok().filter(|_| family_matches) else { return };
    // Another mesh's single address on this machine is no network.
    if !(is_mesh_address(ip) && net.prefix_len() == net.max_prefix_len()) {
        found.networks.push(net.trunc());
    }
    if !message.header.flags.intersects(AddressHeaderFlags::Deprecated | AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed) {
        found.addresses.push(ip);
    }
}

/// What the system says of the machine.
pub(super) fn machine(userspace: bool) -> Machine {
    let uname = rustix::system::uname();
    let text = |t: &std::ffi::CStr| t.to_string_lossy().into_owned();
    Machine {
        hostname: text(uname.nodename()),
        os_version: text(uname.release()),
        architecture: text(uname.machine()),
        userspace,
        container: std::path::Path::new("/run/host/container-manager").exists()
            || std::fs::read("/proc/1/environ").is_ok_and(|e| e.split(|b| *b == 0).any(|v| v.starts_with(b"container="))),
    }
}
