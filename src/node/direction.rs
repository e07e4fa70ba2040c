//! Whether what this machine sends goes into the mesh, decided as the kernel does by the rules and routes of [`super::policy_routing`]: for a node
//! without a TUN, whose connections ask here.

use std::net::IpAddr;

use ipnet::IpNet;

use super::RouterConfig;
use crate::ident::is_mesh_address;

/// Whether a connection to this address goes into the mesh. `local` are the networks that this machine reaches without a router.
pub fn leads_into_mesh(config: &RouterConfig, local: &[IpNet], to: IpAddr) -> bool {
    let longest = |nets: &[IpNet]| nets.iter().filter(|net| net.contains(&to)).map(IpNet::prefix_len).max();
    let mesh = longest(&config.routes);
    // Rule 5255: mesh addresses are the mesh's even where the carrier uses their range, unless only a default route says so.
    if is_mesh_address(to) && mesh.is_some_and(|length| length > 0) {
        return true;
    }
    // Rule 5260: LAN-first.
    if config.lan_first && longest(local).is_some() {
        return false;
    }
    mesh.is_some() && mesh >= longest(&config.local_routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn config(routes: &[&str], local_routes: &[&str], lan_first: bool) -> RouterConfig {
        RouterConfig {
            interface: String::new(),
            addresses: nets(&["100.64.0.1/32"]),
            routes: nets(routes),
            local_routes: nets(local_routes),
            lan_first,
            forward: false,
            masquerade: false,
            lan_gateway: false,
            shields_up: false,
            mtu: 1280,
        }
    }

    #[test]
    fn connections_take_the_way_that_the_kernel_would_take() {
        let local = nets(&["192.168.1.0/24", "100.64.0.0/16"]);
        let plain = config(&["100.64.0.2/32", "192.168.0.0/16", "10.0.0.0/8"], &[], true);
        let exit = config(&["100.64.0.2/32", "0.0.0.0/0", "::/0"], &["192.168.1.0/24", "fe80::/10"], true);
        let all = config(&["100.64.0.2/32", "0.0.0.0/0", "::/0"], &["fe80::/10"], false);
        let cases = [
            ("100.64.0.2", [true, true, true]),
            ("100.64.0.3", [false, false, true]),
            ("192.168.1.9", [false, false, true]),
            ("192.168.7.9", [true, true, true]),
            ("10.1.2.3", [true, true, true]),
            ("8.8.8.8", [false, true, true]),
            ("2001:db8::1", [false, true, true]),
            ("fe80::1", [false, false, false]),
        ];
        for (to, expected) in cases {
            let found = [&plain, &exit, &all].map(|config| leads_into_mesh(config, &local, to.parse().unwrap()));
            assert_eq!(found, expected, "{to}");
        }
    }
}
