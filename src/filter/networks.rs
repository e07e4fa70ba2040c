//! Sources and destinations as rules write them: an address, a network, `a-b`, or `*`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

/// The networks that make up an entry; `None` if it does not read. A network with host bits does not, as with stock clients.
pub(super) fn networks(text: &str) -> Option<Vec<IpNet>> {
    if text == "*" {
        return Some(vec![Ipv4Net::default().into(), Ipv6Net::default().into()]);
    }
    if let Some((first, last)) = text.split_once('-') {
        return match (first.parse().ok()?, last.parse().ok()?) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => Some(Ipv4Subnets::new(first, last, 0).map(IpNet::from).collect()),
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => Some(Ipv6Subnets::new(first, last, 0).map(IpNet::from).collect()),
            _ => None,
        };
    }
    if text.contains('/') {
        return text.parse::<IpNet>().ok().filter(|net| net.trunc() == *net).map(|net| vec![net]);
    }
    text.parse::<IpAddr>().ok().map(|address| vec![address.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_an_address_a_network_a_range_or_everything() {
        let read = |text: &str| networks(text).map(|nets| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        for (text, nets) in [
            ("*", "0.0.0.0/0 ::/0"),
            ("100.64.0.1", "100.64.0.1/32"),
            ("fd7a::1", "fd7a::1/128"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("100.64.0.1-100.64.0.4", "100.64.0.1/32 100.64.0.2/31 100.64.0.4/32"),
            ("fd7a::4-fd7a::7", "fd7a::4/126"),
        ] {
            assert_eq!(read(text).as_deref(), Some(nets), "{text}");
        }
        for wrong in ["", "10.0.0.1/8", "10.0.0.0/33", "b-a", "10.0.0.2-10.0.0.1", "10.0.0.1-fd7a::1", "10.0.0.1-", "tag:web", "cap:x"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
