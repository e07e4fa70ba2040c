//! The mesh's address ranges and which addresses a node may get.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// 100.64.0.0/10, shared address space (RFC 6598): the nodes' IPv4 addresses.
pub const CGNAT_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// fd7a:115c:a1e0::/48, the unique local prefix that stock clients expect: the nodes' IPv6 addresses.
pub const ULA_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);
/// 100.115.92.0/23: ChromeOS uses it for its own virtual machines, so no node may have it.
pub const CHROMEOS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);
/// The service address on every node: DNS and local services.
pub const QUAD100_V4: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 100);
/// The IPv6 form of the service address.
pub const QUAD100_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53);

/// Whether this is the service address in either form, also written as an IPv6 address (RFC 4291, section 2.5.5.2).
pub fn is_quad100(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4 == QUAD100_V4,
        IpAddr::V6(v6) => v6 == QUAD100_V6,
    }
}

/// Whether an address lies in the mesh's own ranges.
pub fn is_mesh_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => CGNAT_V4.contains(&v4),
        IpAddr::V6(v6) => ULA_V6.contains(&v6),
    }
}

/// Which addresses a coordinator hands out: a pair per slot, IPv4 and IPv6 with the same last 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPlan {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

impl Default for AddressPlan {
    fn default() -> Self {
        Self { v4: CGNAT_V4, v6: ULA_V6 }
    }
}

impl AddressPlan {
    /// A plan within a part of the mesh's IPv4 range; `None` if the prefix is not inside 100.64.0.0/10.
    pub fn within(v4: Ipv4Net) -> Option<Self> {
        CGNAT_V4.contains(&v4).then_some(Self { v4, v6: ULA_V6 })
    }

    /// The pair of addresses of a slot (1, 2, ...); `None` where the slot is reserved or past the end of the range.
    ///
    /// Reserved are the network and broadcast addresses, all of 100.100.100.0/24 and the ChromeOS range.
    pub fn pair(&self, slot: u32) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let v4 = Ipv4Addr::from(u32::from(self.v4.network()).checked_add(slot)?);
        let reserved = slot == 0
            || !self.v4.contains(&v4)
            || v4 == self.v4.broadcast()
            || CHROMEOS_V4.contains(&v4)
            || v4.octets()[..3] == QUAD100_V4.octets()[..3];
        // The slot's number in the low 32 bits never reaches ::53 alone unless the slot is 0x53, which is skipped.
        let v6 = Ipv6Addr::from(u128::from(self.v6.network()) | u128::from(slot));
        (!reserved && v6 != QUAD100_V6).then_some((v4, v6))
    }

    /// The pair that a given IPv4 address belongs to; `None` where it is outside the plan or reserved.
    pub fn pair_of(&self, v4: Ipv4Addr) -> Option<(Ipv4Addr, Ipv6Addr)> {
        u32::from(v4).checked_sub(u32::from(self.v4.network())).and_then(|slot| self.pair(slot))
    }

    /// The IPv4 range addresses are taken from.
    pub fn range(&self) -> Ipv4Net {
        self.v4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_skip_what_is_reserved() {
        let plan = AddressPlan::default();
        assert_eq!(plan.pair(0), None);
        assert_eq!(plan.pair(1).unwrap().0, Ipv4Addr::new(100, 64, 0, 1));
        assert_eq!(plan.pair(0x53), None);
        let slot = |a: Ipv4Addr| u32::from(a) - u32::from(CGNAT_V4.network());
        for address in [QUAD100_V4, Ipv4Addr::new(100, 115, 92, 7), Ipv4Addr::new(100, 127, 255, 255)] {
            assert_eq!(plan.pair(slot(address)), None, "{address}");
        }
        assert_eq!(plan.pair(u32::MAX), None);
    }

    #[test]
    fn an_address_names_its_slot() {
        let plan = AddressPlan::within("100.80.0.0/24".parse().unwrap()).unwrap();
        assert_eq!(plan.pair_of(Ipv4Addr::new(100, 80, 0, 7)), plan.pair(7));
        for outside in [[100, 79, 255, 255], [100, 80, 1, 1], [100, 80, 0, 0], [100, 80, 0, 255], [10, 0, 0, 1]] {
            assert_eq!(plan.pair_of(Ipv4Addr::from(outside)), None, "{outside:?}");
        }
    }

    #[test]
    fn a_plan_outside_the_mesh_range_is_refused() {
        assert!(AddressPlan::within("10.0.0.0/8".parse().unwrap()).is_none());
        let plan = AddressPlan::within("100.80.0.0/24".parse().unwrap()).unwrap();
        assert_eq!(plan.pair(255), None);
        assert_eq!(plan.pair(254).unwrap().0, Ipv4Addr::new(100, 80, 0, 254));
    }
}
