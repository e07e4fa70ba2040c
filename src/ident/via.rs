//! IPv4 networks of sites as IPv6 prefixes ("4via6"): fd7a:115c:a1e0:b1a:0:SITE:a.b.c.d, with the site's number in 32 bits.
//!
//! To everybody but the router that carries it such a prefix is a network like any other, so two sites may use the same IPv4 addresses.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// fd7a:115c:a1e0:b1a::/64, where all sites are.
pub const VIA_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0x0b1a, 0, 0, 0, 0), 64);
/// What precedes the IPv4 address, in bits.
const BEFORE_V4: u8 = 96;

/// An IPv4 network at a site; a machine alone is a /32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Via {
    /// The site's number.
    pub site: u32,
    /// The network there.
    pub v4: Ipv4Net,
}

impl Via {
    /// What a prefix stands for; `None` if it is no site's, or wider than one site (shorter than /96).
    pub fn of(prefix: Ipv6Net) -> Option<Self> {
        let length = prefix.prefix_len().checked_sub(BEFORE_V4)?;
        let (site, address) = Self::parts(prefix.addr())?;
        Ipv4Net::new(address, length).ok().map(|v4| Self { site, v4 })
    }

    /// Whether a network has to do with sites and is none of one site: nothing can be carried by it.
    pub fn is_too_wide(net: &IpNet) -> bool {
        matches!(net, IpNet::V6(prefix) if VIA_V6.contains(prefix) && Self::of(*prefix).is_none())
    }

    /// The prefix that stands for it.
    pub fn prefix(self) -> Ipv6Net {
        let address = Self::address(self.site, self.v4.addr());
        // At most 96 + 32.
        Ipv6Net::new(address, BEFORE_V4 + self.v4.prefix_len()).unwrap_or(Ipv6Net::from(address))
    }

    /// The IPv6 address of an IPv4 address at a site.
    pub fn address(site: u32, v4: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(VIA_V6.network()) | u128::from(site) << 32 | u128::from(u32::from(v4)))
    }

    /// Site and IPv4 address in an IPv6 address; `None` if it is no site's.
    pub fn parts(address: Ipv6Addr) -> Option<(u32, Ipv4Addr)> {
        let [.., s0, s1, s2, s3, a, b, c, d] = address.octets();
        VIA_V6.contains(&address).then(|| (u32::from_be_bytes([s0, s1, s2, s3]), Ipv4Addr::new(a, b, c, d)))
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at site {}", self.v4, self.site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sites_network_is_a_prefix_and_back() {
        for (site, v4, prefix) in [
            (7, "192.168.1.2/32", "fd7a:115c:a1e0:b1a:0:7:c0a8:102/128"),
            (7, "192.168.1.0/24", "fd7a:115c:a1e0:b1a:0:7:c0a8:100/120"),
            (0x1_0002, "0.0.0.0/0", "fd7a:115c:a1e0:b1a:1:2::/96"),
        ] {
            let via = Via { site, v4: v4.parse().unwrap() };
            assert_eq!(via.prefix(), prefix.parse().unwrap());
            assert_eq!(Via::of(prefix.parse().unwrap()), Some(via));
        }
    }

    #[test]
    fn what_is_wider_than_a_site_or_elsewhere_stands_for_none() {
        for prefix in ["fd7a:115c:a1e0:b1a::/64", "fd7a:115c:a1e0:b1a::/95", "fd7a:115c:a1e0:b1b::/96", "fd7a:115c:a1e0::1/128"] {
            assert_eq!(Via::of(prefix.parse().unwrap()), None, "{prefix}");
            assert_eq!(Via::is_too_wide(&prefix.parse().unwrap()), prefix.contains("b1a::"), "{prefix}");
        }
        let address = "fd7a:115c:a1e0:b1a:0:7:c0a8:102".parse().unwrap();
        assert_eq!(Via::parts(address), Some((7, Ipv4Addr::new(192, 168, 1, 2))));
        assert_eq!(Via::address(7, Ipv4Addr::new(192, 168, 1, 2)), address);
        assert_eq!(Via::parts("fd7a:115c:a1e0::1".parse().unwrap()), None);
    }
}
