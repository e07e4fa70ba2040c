//! Sets of addresses as sorted ranges of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A set of addresses. Ranges include both ends, are sorted, disjoint and never adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl AddressSet {
    /// The set of some ranges; the ends of each are of one family.
    pub fn of(ranges: impl IntoIterator<Item = (IpAddr, IpAddr)>) -> Self {
        let mut set = Self::default();
        for range in ranges {
            match range {
                (IpAddr::V4(first), IpAddr::V4(last)) => set.v4.push((first.into(), last.into())),
                (IpAddr::V6(first), IpAddr::V6(last)) => set.v6.push((first.into(), last.into())),
                _ => {}
            }
        }
        set.v4.retain(|(first, last)| first <= last);
        set.v6.retain(|(first, last)| first <= last);
        merge(&mut set.v4, |n| n.checked_add(1));
        merge(&mut set.v6, |n| n.checked_add(1));
        set
    }

    /// The set of some networks.
    pub fn of_nets<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Self {
        Self::of(nets.into_iter().map(ends))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => overlaps(&self.v4, v4.into(), v4.into()),
            IpAddr::V6(v6) => overlaps(&self.v6, v6.into(), v6.into()),
        }
    }

    /// Whether it shares an address with a network.
    pub fn overlaps(&self, net: &IpNet) -> bool {
        match ends(net) {
            (IpAddr::V4(first), IpAddr::V4(last)) => overlaps(&self.v4, first.into(), last.into()),
            (IpAddr::V6(first), IpAddr::V6(last)) => overlaps(&self.v6, first.into(), last.into()),
            _ => false,
        }
    }

    /// The set in the notation of packet filters: addresses, networks, and `a-b` for what is no network.
    pub fn texts(&self) -> Vec<String> {
        let v4 = self.v4.iter().map(|&(first, last)| {
            let size = u64::from(last) - u64::from(first) + 1;
            let length = size.is_power_of_two() && u64::from(first) % size == 0;
            shown(Ipv4Addr::from(first).into(), Ipv4Addr::from(last).into(), length.then(|| 32 - size.trailing_zeros()), 32)
        });
        let v6 = self.v6.iter().map(|&(first, last)| {
            let length = match (last - first).checked_add(1) {
                None => Some(0),
                Some(size) => (size.is_power_of_two() && first % size == 0).then(|| 128 - size.trailing_zeros()),
            };
            shown(Ipv6Addr::from(first).into(), Ipv6Addr::from(last).into(), length, 128)
        });
        v4.chain(v6).collect()
    }
}

fn shown(first: IpAddr, last: IpAddr, prefix: Option<u32>, full: u32) -> String {
    match prefix {
        Some(length) if length == full => first.to_string(),
        Some(length) => format!("{first}/{length}"),
        None => format!("{first}-{last}"),
    }
}

fn ends(net: &IpNet) -> (IpAddr, IpAddr) {
    (net.network(), net.broadcast())
}

fn merge<T: Copy + Ord>(ranges: &mut Vec<(T, T)>, after: impl Fn(T) -> Option<T>) {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for &(first, last) in ranges.iter() {
        match merged.last_mut() {
            Some(before) if after(before.1).is_none_or(|next| first <= next) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    *ranges = merged;
}

fn overlaps<T: Copy + Ord>(ranges: &[(T, T)], first: T, last: T) -> bool {
    let at = ranges.partition_point(|range| range.1 < first);
    ranges.get(at).is_some_and(|range| range.0 <= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nets: &[&str]) -> AddressSet {
        let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
        AddressSet::of_nets(&nets)
    }

    #[test]
    fn adjacent_ranges_become_one() {
        assert_eq!(set(&["10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/32"]).texts(), ["10.0.0.0-10.0.1.0"]);
        assert_eq!(set(&["10.0.0.0/25", "10.0.0.128/25"]).texts(), ["10.0.0.0/24"]);
        assert_eq!(set(&["100.64.0.1/32", "fd7a::1/128", "fd7a::3/128"]).texts(), ["100.64.0.1", "fd7a::1", "fd7a::3"]);
        assert_eq!(set(&["0.0.0.0/0", "::/0", "1.2.3.4/32"]).texts(), ["0.0.0.0/0", "::/0"]);
        assert_eq!(set(&["255.255.255.255/32"]).texts(), ["255.255.255.255"]);
    }

    #[test]
    fn membership_respects_the_ends() {
        let set = set(&["10.0.0.0/24", "fd00::/64"]);
        for (net, expected) in [
            ("10.0.0.255/32", true),
            ("10.0.1.0/24", false),
            ("10.0.0.0/8", true),
            ("9.255.255.255/32", false),
            ("fd00::5/128", true),
            ("::/0", true),
        ] {
            assert_eq!(set.overlaps(&net.parse().unwrap()), expected, "{net}");
        }
        assert!(!set.contains("fd00:0:0:1::".parse().unwrap()));
        assert!(AddressSet::default().is_empty());
    }
}
