//! Which traffic: protocols and ports.

use super::document::Field;
use super::error::{PolicyError, listed, quoted};
use crate::wire::control::PortRange;

/// All ports; also what stands for protocols without ports.
pub(super) const ALL_PORTS: PortRange = PortRange { first: 0, last: u16::MAX };
/// Most ranges in one list of ports.
const MAX_RANGES: usize = 64;

/// TCP, UDP, SCTP: the protocols that have ports.
const WITH_PORTS: [u8; 3] = [6, 17, 132];
/// What clients take for a rule without protocols: TCP, UDP, ICMP and ICMPv6.
pub(super) const DEFAULT: [u8; 4] = [6, 17, 1, 58];

/// IANA's numbers of the protocols that policies may name.
const NAMES: [(&str, u8); 14] = [
    ("ah", 51),
    ("egp", 8),
    ("esp", 50),
    ("fc", 133),
    ("gre", 47),
    ("icmp", 1),
    ("igmp", 2),
    ("igp", 9),
    ("ip-in-ip", 4),
    ("ipv4", 4),
    ("ipv6-icmp", 58),
    ("sctp", 132),
    ("tcp", 6),
    ("udp", 17),
];

/// A protocol (`None` for the default ones) and a range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Service {
    /// IANA's number.
    pub protocol: Option<u8>,
    /// Ports.
    pub ports: PortRange,
}

impl Service {
    /// Whether it covers a packet. Ports count only for protocols that have some.
    pub(super) fn covers(self, protocol: u8, port: u16) -> bool {
        let spoken = self.protocol.map_or_else(|| DEFAULT.contains(&protocol), |own| own == protocol);
        let ports = !WITH_PORTS.contains(&protocol) || (self.ports.first <= port && port <= self.ports.last);
        spoken && ports
    }
}

/// Reads a protocol by name or number.
pub(super) fn protocol(field: &Field<'_>, text: &str) -> Result<u8, PolicyError> {
    if let Some((_, number)) = NAMES.iter().find(|(name, _)| *name == text) {
        return Ok(*number);
    }
    let plain = text == "0" || !text.starts_with('0');
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u8>().ok()).flatten().filter(|_| plain);
    number.ok_or_else(|| {
        let names = listed(NAMES.iter().map(|(name, _)| name));
        field.error(format!("{} is not a protocol (allowed: a number from 0 to 255, {names})", quoted(text)))
    })
}

/// Reads ports: `*`, `22`, `80,443`, `1000-2000`.
pub(super) fn ports(field: &Field<'_>, text: &str) -> Result<Vec<PortRange>, PolicyError> {
    if text == "*" {
        return Ok(vec![ALL_PORTS]);
    }
    if text.split(',').count() > MAX_RANGES {
        return Err(field.error(format!("more than {MAX_RANGES} ranges of ports in one entry")));
    }
    text.split(',').map(|range| port_range(field, range, text)).collect()
}

fn port_range(field: &Field<'_>, range: &str, text: &str) -> Result<PortRange, PolicyError> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten().filter(|port| *port > 0);
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(PortRange { first, last }),
        _ => Err(field.error(format!("{} are not ports; write `*`, `22`, `80,443` or `1000-2000`, each from 1 to 65535", quoted(text)))),
    }
}

/// Refuses ports for a protocol that has none.
pub(super) fn check_ports(field: &Field<'_>, protocol: Option<u8>, ports: &[PortRange]) -> Result<(), PolicyError> {
    match protocol {
        Some(number) if !WITH_PORTS.contains(&number) && ports.iter().any(|range| *range != ALL_PORTS) => {
            Err(field.error(format!("protocol {number} has no ports; only tcp, udp and sctp do; write `*`")))
        }
        _ => Ok(()),
    }
}

/// Reads an entry of a grant's `ip`: `*`, `443`, `tcp:80-90`, `icmp:*`.
pub(super) fn grant_service(field: &Field<'_>, text: &str) -> Result<Vec<Service>, PolicyError> {
    let (protocol, ports_text) = match text.split_once(':') {
        Some((name, ports)) => (Some(protocol(field, name)?), ports),
        None => (None, text),
    };
    let ports = ports(field, ports_text)?;
    check_ports(field, protocol, &ports)?;
    Ok(ports.into_iter().map(|ports| Service { protocol, ports }).collect())
}
