//! How a container's programs come to the names of the mesh: by Proxmox's own keys where Proxmox writes `/etc/resolv.conf`, by the node where it does
//! not. Never both, for then each would undo what the other has written.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::{Record, Seen, Wanted};
use crate::ident::{QUAD100_V4, is_quad100};
use crate::plan::choose::Choice;
use crate::plan::inside::Changed;
use crate::plan::observed::Target;

/// glibc asks no more.
const MAX_SERVERS: usize = 3;
/// Where systemd-resolved listens.
const RESOLVED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Who leads programs to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Naming {
    /// Proxmox, by these values of `nameserver` and `searchdomain`, at the next start.
    ByProxmox { servers: String, search: Option<String> },
    /// The node.
    ByNode(&'static str),
    /// Nobody.
    Off,
}

/// Decides it.
pub(super) fn naming(wanted: &Wanted, seen: &Seen, target: &Target, record: Option<&Record>) -> Naming {
    if !wanted.dns {
        return Naming::Off;
    }
    let value = |key: &str| target.config.values.get(key).map(String::as_str);
    if wanted.userspace {
        return Naming::Off;
    }
    if value("ostype") == Some("unmanaged") {
        return Naming::ByNode("Proxmox does not write its resolv.conf (ostype unmanaged)");
    }
    if seen.resolv_ignored {
        return Naming::ByNode("Proxmox is told to leave its resolv.conf alone (.pve-ignore)");
    }
    if seen.nameservers.contains(&RESOLVED) {
        return Naming::ByNode("systemd-resolved is told, by link");
    }
    let Some(domain) = &wanted.domain else { return Naming::ByNode("the mesh's domain is not known here") };
    // What was there before us: the keys, or what Proxmox has written of the host's own settings.
    let list = |text: Option<&str>| -> Vec<String> {
        text.unwrap_or_default().split([' ', ',', ';']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let configured: Vec<String> = list(value("nameserver"));
    let recorded = record.is_some_and(|record| record.before.contains_key("nameserver"));
    let seen_servers = seen.nameservers.iter().map(ToString::to_string);
    let known: Vec<String> = if configured.is_empty() && !recorded { seen_servers.collect() } else { configured };
    let others = known.into_iter().filter(|server| server.parse::<IpAddr>().is_ok_and(|address| !is_quad100(address)));
    let servers: Vec<String> = std::iter::once(QUAD100_V4.to_string()).chain(others).take(MAX_SERVERS).collect();
    let configured = list(value("searchdomain"));
    let known = if configured.is_empty() { seen.search.clone() } else { configured };
    let search: Vec<String> = std::iter::once(domain.clone()).chain(known.into_iter().filter(|other| other != domain)).collect();
    Naming::ByProxmox { servers: servers.join(" "), search: Some(search.join(" ")) }
}

impl Naming {
    /// Whether the node leads programs itself.
    pub(super) const fn by_node(&self) -> bool {
        matches!(self, Self::ByNode(_))
    }

    pub(super) fn choice(&self) -> Choice {
        let (value, why) = match self {
            Self::ByProxmox { servers, .. } => {
                (format!("nameserver {servers}"), "Proxmox writes its resolv.conf, at the container's next start")
            }
            Self::ByNode(why) => ("by the node".to_owned(), *why),
            Self::Off => ("none".to_owned(), "as asked, or the node has no TUN to answer on"),
        };
        Choice { what: "names", value, why: why.to_owned() }
    }

    /// The keys of the configuration that have to change.
    pub(super) fn keys(&self, target: &Target) -> BTreeMap<String, Changed> {
        let Self::ByProxmox { servers, search } = self else { return BTreeMap::new() };
        let wanted = [("nameserver", Some(servers)), ("searchdomain", search.as_ref())];
        let changed = wanted.into_iter().filter_map(|(key, after)| {
            let (before, after) = (target.config.values.get(key).cloned(), after.cloned());
            (before != after).then(|| (key.to_owned(), Changed { before, after }))
        });
        changed.collect()
    }
}
