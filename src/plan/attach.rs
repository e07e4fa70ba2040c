//! Guests without a client: which of their addresses are told in the mesh, and how they are reached.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::ident::{Mac, NodeId, is_mesh_address};
use crate::pve::Properties;
use crate::pve::reply::{ContainerConfig, GuestInterface};
use crate::wire::admin::{DnsSettings, NodeInfo};

/// The hardware addresses of a guest's interfaces, in their order: `hwaddr=` of a container, the model's value of a virtual machine.
pub fn macs(config: &ContainerConfig) -> Vec<Mac> {
    let number = |key: &str| key.strip_prefix("net").and_then(|n| n.parse::<u32>().ok());
    let mut found: Vec<(u32, Mac)> = config
        .values
        .iter()
        .filter_map(|(key, value)| {
            let parts = Properties::parse(value, "name");
            let hardware = parts.value("hwaddr").or_else(|| parts.value("macaddr")).and_then(|text| text.parse().ok());
            let model = || value.split(',').filter_map(|part| part.split_once('=')).find_map(|(_, value)| value.parse().ok());
            Some((number(key)?, hardware.or_else(model)?))
        })
        .collect();
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, mac)| mac).collect()
}

/// Whether others on the guest's network can use an address.
pub fn is_usable(address: &IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast(),
    };
    !local && !is_mesh_address(*address)
}

/// The addresses of a guest that are told in the mesh, of what it reports: those of its own interfaces only, for a guest has inner
/// networks as well (containers, other tunnels), whose interfaces Proxmox does not know. One of each family, the first: further ones
/// come and go (temporary addresses), and a name needs one.
pub fn told(reported: &[GuestInterface], macs: &[Mac]) -> Vec<IpAddr> {
    let own = |interface: &&GuestInterface| interface.mac.is_some_and(|mac| macs.contains(&mac));
    let order = |interface: &GuestInterface| macs.iter().position(|mac| Some(*mac) == interface.mac);
    let mut interfaces: Vec<&GuestInterface> = reported.iter().filter(own).collect();
    interfaces.sort_by_key(|interface| order(interface));
    let all: Vec<IpAddr> = interfaces.iter().flat_map(|i| &i.addresses).map(IpNet::addr).filter(is_usable).collect();
    one_of_each(&all)
}

/// The first IPv4 and the first IPv6 address.
pub fn one_of_each(all: &[IpAddr]) -> Vec<IpAddr> {
    let first = |v6: bool| all.iter().find(|address| address.is_ipv6() == v6).copied();
    first(false).into_iter().chain(first(true)).collect()
}

/// How an address is reached from the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A subnet router carries the whole network.
    Carried(String),
    /// These routers offer a network that it lies in: it alone is approved on them.
    Approve(Vec<NodeId>),
    /// No router that is online offers such a network.
    None,
}

/// Decides by which routers an address is reached. All that can are taken, so that one may go.
pub fn way(address: IpAddr, nodes: &[NodeInfo]) -> Way {
    let covers = |net: &&IpNet| net.prefix_len() > 0 && net.prefix_len() < net.max_prefix_len() && net.contains(&address);
    let routers: Vec<&NodeInfo> = nodes.iter().filter(|node| node.advertised_routes.iter().any(|net| covers(&net))).collect();
    if !routers.iter().any(|node| node.online) {
        return Way::None;
    }
    let whole = |node: &&&NodeInfo| node.advertised_routes.iter().any(|net| covers(&net) && node.approved_routes.contains(net));
    match routers.iter().filter(|node| node.online).find(whole) {
        Some(node) => Way::Carried(node.name.to_string()),
        None => Way::Approve(routers.iter().map(|node| node.id).collect()),
    }
}

/// The DNS settings with these addresses under a name, or without the name if there are none; `None` if nothing changes.
pub fn recorded(dns: &DnsSettings, name: &str, addresses: &[IpAddr]) -> Option<DnsSettings> {
    let mut changed = dns.clone();
    if addresses.is_empty() {
        changed.records.remove(name)?;
    } else {
        changed.records.insert(name.to_owned(), addresses.to_vec());
    }
    (changed != *dns).then_some(changed)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;
    use crate::ident::NodePublic;

    fn mac(n: u8) -> Mac {
        Mac::from_bytes([0xbc, 0x24, 0x11, 0, 0, n])
    }

    fn config(values: &[(&str, &str)]) -> ContainerConfig {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ContainerConfig { values, ..ContainerConfig::default() }
    }

    fn interface(name: &str, mac: Option<Mac>, addresses: &[&str]) -> GuestInterface {
        GuestInterface { name: name.to_owned(), mac, addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
    }

    fn router(id: i64, online: bool, advertised: &[&str], approved: &[&str]) -> NodeInfo {
        serde_json::from_value(serde_json::json!({
            "id": id, "name": format!("router-{id}"), "fqdn": "x", "user": "pvemesh", "key": NodePublic::from_bytes([3; 32]), "addresses": [],
            "online": online, "tags": [], "advertised_routes": advertised, "approved_routes": approved, "os": "linux"
        }))
        .unwrap()
    }

    #[test]
    fn hardware_addresses_of_both_kinds_of_guests_are_read_in_order() {
        let machine = config(&[
            ("net10", "virtio=BC:24:11:00:00:03,bridge=vmbr0"),
            ("net2", "model=e1000,macaddr=BC:24:11:00:00:02,bridge=vmbr1"),
            ("net0", "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1"),
            ("name", "nas"),
        ]);
        assert_eq!(macs(&machine), [mac(1), mac(2), mac(3)]);
        let container = config(&[("net0", "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:07,ip=dhcp"), ("nesting", "1")]);
        assert_eq!(macs(&container), [mac(7)]);
        assert_eq!(macs(&config(&[("net0", "name=eth0,bridge=vmbr0")])), []);
    }

    #[test]
    fn only_addresses_of_the_guest_s_own_interfaces_that_others_can_use_are_told() {
        let reported = [
            interface("lo", None, &["127.0.0.1/8", "::1/128"]),
            interface("docker0", Some(mac(99)), &["172.17.0.1/16"]),
            interface("tailscale0", None, &["100.64.0.9/32"]),
            interface("eth1", Some(mac(2)), &["10.9.0.5/24"]),
            interface(
                "eth0",
                Some(mac(1)),
                &["169.254.3.4/16", "192.168.50.20/24", "192.168.50.21/24", "fe80::1/64", "fd00::20/64", "fd00::21/64"],
            ),
        ];
        let told = told(&reported, &[mac(1), mac(2)]);
        assert_eq!(told, ["192.168.50.20".parse::<IpAddr>().unwrap(), "fd00::20".parse().unwrap()]);
        assert_eq!(super::told(&reported, &[]), [] as [IpAddr; 0]);
    }

    #[test]
    fn a_guest_is_reached_by_a_carried_network_or_approved_alone() {
        let address: IpAddr = "192.168.50.20".parse().unwrap();
        let lan = "192.168.50.0/24";
        assert_eq!(way(address, &[router(1, true, &[lan], &[lan])]), Way::Carried("router-1".to_owned()));
        let pair =
            [router(1, true, &[lan], &[]), router(2, false, &["192.168.0.0/16"], &[]), router(3, true, &["10.0.0.0/8"], &["10.0.0.0/8"])];
        assert_eq!(way(address, &pair), Way::Approve(vec![NodeId(1), NodeId(2)]));
        // What was approved for it does not count as the whole network.
        assert_eq!(way(address, &[router(1, true, &[lan], &["192.168.50.20/32"])]), Way::Approve(vec![NodeId(1)]));
        for nobody in
            [vec![], vec![router(1, false, &[lan], &[lan])], vec![router(1, true, &["0.0.0.0/0", "::/0"], &["0.0.0.0/0", "::/0"])]]
        {
            assert_eq!(way(address, &nobody), Way::None);
        }
    }

    #[test]
    fn names_are_changed_only_where_something_differs() {
        let dns = DnsSettings::default();
        let address = ["192.168.50.20".parse().unwrap()];
        let with = recorded(&dns, "nas.mesh.internal", &address).unwrap();
        assert_eq!(recorded(&with, "nas.mesh.internal", &address), None);
        assert_eq!(recorded(&with, "nas.mesh.internal", &[]), Some(dns.clone()));
        assert_eq!(recorded(&dns, "nas.mesh.internal", &[]), None);
    }
}
