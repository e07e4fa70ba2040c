//! Which peer an address belongs to: longest prefix match.
//!
//! One hash table per prefix length in use, asked from the longest to the shortest. A mesh has many single addresses and few
//! other lengths, so most lookups end at the first table.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// The tables of one address family, longest prefix first.
#[derive(Debug, Clone)]
struct Family<T> {
    bits: u8,
    tables: Vec<(u8, HashMap<u128, T>)>,
}

impl<T> Family<T> {
    fn key(&self, address: u128, length: u8) -> u128 {
        let drop = self.bits.saturating_sub(length);
        address.checked_shr(drop.into()).unwrap_or(0)
    }

    fn insert(&mut self, network: u128, length: u8, value: T) -> bool {
        let key = self.key(network, length);
        let at = self.tables.partition_point(|(l, _)| *l > length);
        if self.tables.get(at).is_none_or(|(l, _)| *l != length) {
            self.tables.insert(at, (length, HashMap::new()));
        }
        let Some((_, table)) = self.tables.get_mut(at) else { return false };
        let free = !table.contains_key(&key);
        table.entry(key).or_insert(value);
        free
    }

    fn find(&self, address: u128) -> Option<&T> {
        self.tables.iter().find_map(|(length, table)| table.get(&self.key(address, *length)))
    }
}

/// Prefixes and what they lead to.
#[derive(Debug, Clone)]
pub struct Routes<T> {
    v4: Family<T>,
    v6: Family<T>,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self { v4: Family { bits: 32, tables: Vec::new() }, v6: Family { bits: 128, tables: Vec::new() } }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

impl<T> Routes<T> {
    fn family(&self, address: IpAddr) -> &Family<T> {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    /// Adds a prefix. A prefix that is already there stays as it is (the first peer wins) and `false` is returned.
    pub fn insert(&mut self, prefix: IpNet, value: T) -> bool {
        let family = if prefix.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        family.insert(bits(prefix.network()), prefix.prefix_len(), value)
    }

    /// What the longest prefix that covers the address leads to.
    pub fn find(&self, address: IpAddr) -> Option<&T> {
        self.family(address).find(bits(address))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_families_stay_apart() {
        let mut routes = Routes::default();
        for (prefix, name) in [("0.0.0.0/0", "exit"), ("100.64.0.7/32", "node"), ("192.168.0.0/16", "wide"), ("192.168.1.0/24", "lan")] {
            assert!(routes.insert(prefix.parse().unwrap(), name));
        }
        let find = |a: &str| routes.find(a.parse().unwrap()).copied();
        assert_eq!(find("100.64.0.7"), Some("node"));
        assert_eq!(find("192.168.1.9"), Some("lan"));
        assert_eq!(find("192.168.2.9"), Some("wide"));
        assert_eq!(find("1.1.1.1"), Some("exit"));
        assert_eq!(find("::1"), None);
    }

    #[test]
    fn the_first_owner_of_a_prefix_keeps_it() {
        let mut routes = Routes::default();
        assert!(routes.insert("10.0.0.0/8".parse().unwrap(), 1));
        assert!(!routes.insert("10.1.2.3/8".parse().unwrap(), 2));
        assert_eq!(routes.find("10.9.9.9".parse().unwrap()), Some(&1));
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        // Few distinct bits, so that prefixes cover addresses often.
        prop_oneof![
            (0_u32..4, 0_u32..4).prop_map(|(a, b)| IpAddr::V4(Ipv4Addr::from(a << 30 | b))),
            (0_u128..4, 0_u128..4).prop_map(|(a, b)| IpAddr::V6(Ipv6Addr::from(a << 126 | b))),
        ]
    }

    proptest! {
        #[test]
        fn a_lookup_agrees_with_a_search_through_all_prefixes(
            prefixes in proptest::collection::vec((address(), 0_u8..=128), 0..40),
            asked in proptest::collection::vec(address(), 20),
        ) {
            let mut routes = Routes::default();
            let mut list: Vec<(IpNet, usize)> = Vec::new();
            for (n, (address, length)) in prefixes.into_iter().enumerate() {
                let Ok(prefix) = IpNet::new(address, length.min(if address.is_ipv4() { 32 } else { 128 })) else { continue };
                let prefix = prefix.trunc();
                let new = list.iter().all(|(p, _)| *p != prefix);
                prop_assert_eq!(routes.insert(prefix, n), new);
                if new {
                    list.push((prefix, n));
                }
            }
            for address in asked {
                let slow = list.iter().filter(|(p, _)| p.contains(&address)).max_by_key(|(p, _)| p.prefix_len()).map(|(_, n)| n);
                prop_assert_eq!(routes.find(address), slow);
            }
        }
    }
}
