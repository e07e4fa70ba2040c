//! A relay's entry in the relay map.

use std::net::IpAddr;

use crate::wire::control::{DerpNode, DerpRegion};

/// What a relay map says for "not this family".
const NONE: &str = "none";
/// The ports that a relay map leaves out.
const HTTPS_PORT: u16 = 443;
const STUN_PORT: u16 = 3478;

/// A region with one relay. `host`: the name or address clients reach it under; `pin`: the certificate's fingerprint as
/// relay maps have it, if it is none of an authority.
pub fn with_one_relay(number: i32, host: &str, port: u16, stun: Option<u16>, pin: Option<&str>) -> DerpRegion {
    let mut node = DerpNode {
        name: format!("{number}a"),
        region_id: number,
        host_name: host.to_owned(),
        cert_name: pin.unwrap_or_default().to_owned(),
        stun_port: match stun {
            Some(STUN_PORT) => 0,
            Some(port) => i32::from(port),
            None => -1,
        },
        derp_port: if port == HTTPS_PORT { 0 } else { port },
        ..DerpNode::default()
    };
    if let Ok(ip) = host.parse() {
        place_at(&mut node, ip);
    }
    let (region_code, region_name) = (format!("own-{number}"), format!("Own relay {number}"));
    DerpRegion { region_id: number, region_code, region_name, nodes: vec![node], ..DerpRegion::default() }
}

/// Says where a relay is: clients ask no name server then.
pub fn place_at(node: &mut DerpNode, ip: IpAddr) {
    (node.ipv4, node.ipv6) = match ip {
        IpAddr::V4(v4) => (v4.to_string(), NONE.to_owned()),
        IpAddr::V6(v6) => (NONE.to_owned(), v6.to_string()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_told_by_address_where_it_has_one_and_usual_ports_are_left_out() {
        let node = |host: &str, port, stun| with_one_relay(900, host, port, stun, Some("sha256-raw:00")).nodes.remove(0);
        let v4 = node("192.168.1.5", 8443, Some(3478));
        assert_eq!((v4.host_name.as_str(), v4.ipv4.as_str(), v4.ipv6.as_str()), ("192.168.1.5", "192.168.1.5", "none"));
        assert_eq!((v4.derp_port, v4.stun_port, v4.name.as_str()), (8443, 0, "900a"));
        let v6 = node("2001:db8::1", 443, None);
        assert_eq!((v6.ipv4.as_str(), v6.ipv6.as_str(), v6.derp_port, v6.stun_port), ("none", "2001:db8::1", 0, -1));
        let named = node("mesh.example.com", 443, Some(5000));
        assert_eq!((named.ipv4.as_str(), named.ipv6.as_str(), named.stun_port), ("", "", 5000));
    }
}
