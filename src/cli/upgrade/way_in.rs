//! Which nodes of the mesh this machine reaches Proxmox by: they are upgraded last.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::cli::connect::Session;
use crate::cli::ways::WayArgs;
use crate::ident::NodeName;
use crate::node::Status;
use crate::plan::upgrade;
use crate::pve::HostName;

/// How long looking up a host's name may take.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// The nodes by which this machine reaches Proxmox's API and, by ssh, the guests' hosts, as far as it does so through the mesh.
pub(super) async fn ways_in(session: &Session, way: &WayArgs, hosts: &BTreeSet<HostName>, status: &Status) -> Vec<NodeName> {
    let place = session.executor.place();
    let api = place.strip_prefix("https://").map(|rest| rest.split('/').next().unwrap_or(rest));
    let ssh = way.ssh.as_ref().or(session.config.ssh.as_ref());
    let by_ssh = hosts.iter().filter_map(|host| Some(ssh?.rsplit('@').next()?.replace("{node}", host.as_str())));
    let places: BTreeSet<String> = api.map(|host| bare_host(host).to_owned()).into_iter().chain(by_ssh).collect();
    let mut found = Vec::new();
    for place in places {
        // As the programs that go there have it looked up; a name that is only in ssh's own configuration leads nowhere here.
        let addresses: Vec<IpAddr> = match bare_host(&place).parse() {
            Ok(address) => vec![address],
            Err(_) => match tokio::time::timeout(LOOKUP_LIMIT, tokio::net::lookup_host((place.as_str(), 0))).await {
                Ok(Ok(all)) => all.map(|address| address.ip()).collect(),
                _ => continue,
            },
        };
        for address in addresses {
            let peers = status.peer.values().map(|peer| (peer.name(), peer.allowed_ips.as_slice()));
            found.extend(upgrade::way_in(address, peers).and_then(|name| name.parse().ok()));
        }
    }
    found
}

/// A host without its port and without the brackets of an IPv6 address.
fn bare_host(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        // More than one colon: an address without brackets.
        None => host.rsplit_once(':').filter(|(name, _)| !name.contains(':')).map_or(host, |(name, _)| name),
    }
}

#[cfg(test)]
mod tests {
    use super::bare_host;

    #[test]
    fn a_host_is_told_from_its_port() {
        for (text, host) in [
            ("pve:8006", "pve"),
            ("192.168.1.2:8006", "192.168.1.2"),
            ("[fd00::2]:8006", "fd00::2"),
            ("fd00::2", "fd00::2"),
            ("pve", "pve"),
        ] {
            assert_eq!(bare_host(text), host);
        }
    }
}
