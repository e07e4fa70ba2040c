//! The guest's own interface: up, with an address, a default route and name servers, and kept so.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::Handle;
use tokio::sync::Notify;

use crate::ident::NodeName;
use crate::node::policy_routing::Family;
use crate::settings::{Guest, Ipv4Setup, Ipv6Setup, Network};
use crate::sys::dhcp::{Client, Event, Lease};
use crate::sys::router::link::{self, Link};
use crate::sys::router::{RouterError, is_interface_name};
use crate::sys::{entropy, sysctl};

/// The C library reads no more name servers than that.
const MAX_NAMESERVERS: usize = 3;
/// Pauses between tries to set up an interface that is missing or refused.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why the network is not up.
#[derive(Debug, thiserror::Error)]
enum NetworkError {
    #[error(transparent)]
    Link(#[from] RouterError),
    #[error(transparent)]
    Sysctl(#[from] sysctl::SysctlError),
    #[error("DHCP on {interface}: {error}")]
    Dhcp { interface: String, error: io::Error },
}

/// Sets up the network and keeps its lease; never ends. `ready` is notified when the guest has what its configuration promises: at
/// once with fixed addresses, with the first lease else.
pub(super) async fn run(guest: &Guest, ready: &Notify) -> std::convert::Infallible {
    let mut pause = FIRST_PAUSE;
    loop {
        let Err(error) = set_up(guest, ready).await;
        tracing::error!("network: {error}; trying again in {pause:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn set_up(guest: &Guest, ready: &Notify) -> Result<std::convert::Infallible, NetworkError> {
    let network = &guest.network;
    let name = network.interface.as_str();
    if !is_interface_name(name) {
        return Err(RouterError::Name(name.escape_default().to_string()).into());
    }
    let (connection, handle, _) = rtnetlink::new_connection().map_err(RouterError::Open)?;
    let connection = tokio::spawn(connection);
    let result = configure(guest, &handle, ready).await;
    connection.abort();
    result
}

async fn configure(guest: &Guest, handle: &Handle, ready: &Notify) -> Result<std::convert::Infallible, NetworkError> {
    let network = &guest.network;
    let name = network.interface.as_str();
    if let Some(lo) = link::find(handle, "lo").await? {
        link::bring_up(handle, "lo", lo, None).await?;
    }
    let found = link::find(handle, name).await?.ok_or_else(|| RouterError::NoInterface(name.to_owned()))?;
    // Before the link comes up, so that no advertisement is missed or heard against the settings.
    sysctl::accept_advertisements(name, network.ipv6 == Ipv6Setup::Auto)?;
    if network.ipv4 == Ipv4Setup::Dhcp {
        sysctl::hear_before_address(name);
    }
    link::bring_up(handle, name, found, None).await?;
    if let Ipv6Setup::Fixed(net) = network.ipv6 {
        link::set_addresses(handle, name, found.index, &[Family::V6], &[IpNet::V6(net)]).await?;
        link::set_default_route(handle, found.index, Family::V6, network.gateway6.map(IpAddr::V6)).await?;
    }
    write_resolver(network, None);
    if network.ipv4 != Ipv4Setup::Dhcp && network.nameservers.is_empty() {
        tracing::warn!("no name servers are configured, so names such as the coordinator's will not resolve; set `nameservers`");
    }
    match network.ipv4 {
        Ipv4Setup::Fixed(net) => {
            link::set_addresses(handle, name, found.index, &[Family::V4], &[IpNet::V4(net)]).await?;
            link::set_default_route(handle, found.index, Family::V4, network.gateway4.map(IpAddr::V4)).await?;
            tracing::info!("{name} has {net}");
        }
        Ipv4Setup::None => {
            link::set_addresses(handle, name, found.index, &[Family::V4], &[]).await?;
        }
        Ipv4Setup::Dhcp => return keep_lease(guest, handle, found, ready).await,
    }
    ready.notify_one();
    std::future::pending().await
}

async fn keep_lease(guest: &Guest, handle: &Handle, found: Link, ready: &Notify) -> Result<std::convert::Infallible, NetworkError> {
    let network = &guest.network;
    let name = network.interface.as_str();
    let failed = |error| NetworkError::Dhcp { interface: name.to_owned(), error };
    let hardware = found.hardware.ok_or_else(|| failed(io::Error::other("the interface has no Ethernet address")))?;
    let seed = entropy::seed().map_err(failed)?;
    let mut client = Client::start(name, hardware, guest.hostname.clone(), seed).await.map_err(failed)?;
    let mut held: Option<Lease> = None;
    loop {
        match client.next().await {
            Event::Bound(lease) => {
                if held.as_ref() != Some(&lease) {
                    link::set_addresses(handle, name, found.index, &[Family::V4], &[IpNet::V4(lease.address)]).await?;
                    link::set_default_route(handle, found.index, Family::V4, lease.router.map(IpAddr::V4)).await?;
                    write_resolver(network, Some(&lease));
                    tracing::info!("{name} has {} from DHCP server {}", lease.address, lease.server);
                    held = Some(lease);
                }
                ready.notify_one();
            }
            Event::Lost { address, why } => {
                tracing::warn!("{name} lost {address}: {why}; asking for another");
                held = None;
                link::set_addresses(handle, name, found.index, &[Family::V4], &[]).await?;
            }
        }
    }
}

/// Writes `/etc/hosts` and `/etc/hostname`, and tells the kernel the name where it lets us.
pub(super) fn write_names(hostname: &NodeName) {
    let hosts = format!(
        "127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
    );
    write_etc("hosts", &hosts);
    write_etc("hostname", &format!("{hostname}\n"));
    if let Err(error) = rustix::system::sethostname(hostname.as_str().as_bytes()) {
        tracing::debug!(%error, "the host keeps the container's name");
    }
}

/// Writes `/etc/resolv.conf`, unless nothing is known: then what is there is better.
fn write_resolver(network: &Network, lease: Option<&Lease>) {
    if let Some(text) = resolver(network, lease) {
        write_etc("resolv.conf", &text);
    }
}

fn resolver(network: &Network, lease: Option<&Lease>) -> Option<String> {
    let leased = lease.map(|lease| lease.nameservers.as_slice()).unwrap_or_default().iter().copied().map(IpAddr::V4);
    let mut servers: Vec<IpAddr> = Vec::new();
    for server in network.nameservers.iter().copied().chain(leased) {
        if !servers.contains(&server) && servers.len() < MAX_NAMESERVERS {
            servers.push(server);
        }
    }
    if servers.is_empty() {
        return None;
    }
    let mut text = String::from("# written by pvemesh\n");
    if let Some(domain) = lease.and_then(|lease| lease.domain.as_ref()) {
        let _ = writeln!(text, "search {domain}");
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    Some(text)
}

fn write_etc(name: &str, text: &str) {
    let path = Path::new("/etc").join(name);
    if std::fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return;
    }
    let fresh = path.with_extension("pvemesh-new");
    // A file that is a mount of its own cannot be replaced, only rewritten.
    let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)).or_else(|_| {
        let _ = std::fs::remove_file(&fresh);
        std::fs::write(&path, text)
    });
    if let Err(error) = written {
        tracing::warn!("write {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_name_servers_come_before_leased_ones() {
        let network: Network = serde_json::from_str(r#"{"ipv4":"dhcp","nameservers":["9.9.9.9","192.168.1.1"]}"#).unwrap();
        let lease = Lease {
            address: "192.168.1.50/24".parse().unwrap(),
            router: None,
            nameservers: vec!["192.168.1.1".parse().unwrap(), "192.168.1.2".parse().unwrap(), "192.168.1.3".parse().unwrap()],
            domain: Some("lan".to_owned()),
            server: "192.168.1.1".parse().unwrap(),
            length: None,
        };
        let text = resolver(&network, Some(&lease)).unwrap();
        assert_eq!(text, "# written by pvemesh\nsearch lan\nnameserver 9.9.9.9\nnameserver 192.168.1.1\nnameserver 192.168.1.2\n");
        let none: Network = serde_json::from_str(r#"{"ipv4":"dhcp"}"#).unwrap();
        assert_eq!(resolver(&none, None), None);
    }
}
