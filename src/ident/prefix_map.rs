//! What belongs to an address: longest prefix match.
//!
//! One hash table per prefix length in use, asked from the longest to the shortest. A mesh has many single addresses and few
//! other lengths, so most lookups end at the first table.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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

    fn entry(&mut self, network: u128, length: u8) -> Option<Entry<'_, u128, T>> {
        let key = self.key(network, length);
        let at = self.tables.partition_point(|(l, _)| *l > length);
        if self.tables.get(at).is_none_or(|(l, _)| *l != length) {
            self.tables.insert(at, (length, HashMap::new()));
        }
        self.tables.get_mut(at).map(|(_, table)| table.entry(key))
    }

    fn covering(&self, address: u128) -> impl Iterator<Item = &T> {
        self.tables.iter().filter_map(move |(length, table)| table.get(&self.key(address, *length)))
    }
}

/// Prefixes and what belongs to each.
#[derive(Debug, Clone)]
pub struct PrefixMap<T> {
    v4: Family<T>,
    v6: Family<T>,
}

impl<T> Default for PrefixMap<T> {
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

impl<T> PrefixMap<T> {
    fn family(&self, address: IpAddr) -> &Family<T> {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    fn entry(&mut self, prefix: IpNet) -> Option<Entry<'_, u128, T>> {
        let family = if prefix.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        family.entry(bits(prefix.network()), prefix.prefix_len())
    }

    /// Adds a prefix. One that is already there stays as it is (the first wins) and `false` is returned.
    pub fn insert(&mut self, prefix: IpNet, value: T) -> bool {
        match self.entry(prefix) {
            Some(Entry::Vacant(place)) => {
                place.insert(value);
                true
            }
            Some(Entry::Occupied(_)) | None => false,
        }
    }

    /// Changes what belongs to a prefix, which is added if it is missing.
    pub fn update(&mut self, prefix: IpNet, change: impl FnOnce(&mut T))
    where
        T: Default,
    {
        if let Some(entry) = self.entry(prefix) {
            change(entry.or_default());
        }
    }

    /// Changes what belongs to every prefix, in no order.
    pub fn for_each(&mut self, change: impl FnMut(&mut T)) {
        let tables = self.v4.tables.iter_mut().chain(&mut self.v6.tables);
        tables.flat_map(|(_, table)| table.values_mut()).for_each(change);
    }

    /// What belongs to the longest prefix that covers the address.
    pub fn find(&self, address: IpAddr) -> Option<&T> {
        self.covering(address).next()
    }

    /// What belongs to the prefixes that cover the address, the longest first.
    pub fn covering(&self, address: IpAddr) -> impl Iterator<Item = &T> {
        self.family(address).covering(bits(address))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_families_stay_apart() {
        let mut routes = PrefixMap::default();
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
    fn what_belongs_to_a_prefix_can_be_added_to() {
        let mut map: PrefixMap<Vec<u8>> = PrefixMap::default();
        for n in [1, 2] {
            map.update("10.1.2.3/8".parse().unwrap(), |list| list.push(n));
        }
        assert_eq!(map.find("10.0.0.1".parse().unwrap()), Some(&vec![1, 2]));
    }

    #[test]
    fn the_first_owner_of_a_prefix_keeps_it() {
        let mut routes = PrefixMap::default();
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
            let mut routes = PrefixMap::default();
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
                let mut slow: Vec<_> = list.iter().filter(|(p, _)| p.contains(&address)).collect();
                slow.sort_by_key(|(p, _)| std::cmp::Reverse(p.prefix_len()));
                let slow: Vec<_> = slow.into_iter().map(|(_, n)| n).collect();
                prop_assert_eq!(routes.find(address), slow.first().copied());
                prop_assert_eq!(routes.covering(address).collect::<Vec<_>>(), slow);
            }
        }
    }
}
