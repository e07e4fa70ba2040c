//! Names that stand for addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The name under which an address is looked up (RFC 1035, section 3.5; RFC 3596, section 2.5).
pub fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa."
        }
    }
}

/// The address that a reverse name stands for.
pub fn reversed(name: &str) -> Option<IpAddr> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = labels.split('.').map(str::parse::<u8>);
        let mut next = || octets.next()?.ok();
        let (d, c, b, a) = (next()?, next()?, next()?, next()?);
        return octets.next().is_none().then(|| Ipv4Addr::new(a, b, c, d).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let mut bits: u128 = 0;
    let mut count = 0;
    for label in labels.split('.').rev() {
        let [digit] = label.as_bytes() else { return None };
        bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reverse_name_and_its_address_are_one() {
        for (address, name) in [
            ("100.64.0.1", "1.0.64.100.in-addr.arpa."),
            ("fd7a:115c:a1e0::1", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa."),
        ] {
            assert_eq!(reverse_name(address.parse().unwrap()), name);
            assert_eq!(reversed(&name.to_uppercase()), address.parse().ok());
        }
        for wrong in ["1.2.3.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "x.ip6.arpa", "300.1.1.1.in-addr.arpa", "example.com", ""] {
            assert_eq!(reversed(wrong), None, "{wrong}");
        }
    }
}
