//! Where a coordinator is looked for: which ports with and without TLS, and which of its addresses first.

use std::net::SocketAddr;
use std::time::Duration;

/// How long plain HTTP is tried alone before TLS joins in.
const HEAD_START: Duration = Duration::from_millis(500);
/// More addresses of one host are not tried.
const MAX_ADDRESSES: usize = 16;

/// One way to open a control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// TLS around the connection. What runs inside is encrypted and authenticated by itself.
    pub tls: bool,
    /// The port.
    pub port: u16,
    /// When it begins, unless the ones before have failed sooner.
    pub delay: Duration,
}

/// The ways to a coordinator, in order.
///
/// For `https` without a port, plain HTTP on port 80 comes first, as in the stock client: it costs less, and a coordinator behind a
/// proxy that does not pass the upgrade often answers there. `hasty` says that the last such connection was opened moments ago and did
/// not last: something on the way may break what it does not understand, so it is TLS alone. A port that was named is the only one.
pub fn attempts(tls: bool, port: u16, port_named: bool, hasty: bool) -> Vec<Attempt> {
    let named = Attempt { tls, port, delay: Duration::ZERO };
    if !tls || port_named || hasty {
        return vec![named];
    }
    vec![Attempt { tls: false, port: 80, delay: Duration::ZERO }, Attempt { delay: HEAD_START, ..named }]
}

/// Addresses in the order to try them: as the resolver gave them, but with the families taking turns (RFC 8305, section 4), so that a
/// family that leads nowhere costs one attempt and not all of its addresses. A bounded number, each once.
pub fn interleaved(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut families: [Vec<SocketAddr>; 2] = Default::default();
    let mut first = None;
    for address in addresses {
        let first = *first.get_or_insert(address.is_ipv4());
        let [same, other] = &mut families;
        let family = if address.is_ipv4() == first { same } else { other };
        if !family.contains(&address) && family.len() < MAX_ADDRESSES {
            family.push(address);
        }
    }
    let [mut same, mut other] = families.map(Vec::into_iter);
    let mut turns = Vec::new();
    loop {
        let before = turns.len();
        turns.extend(same.next());
        turns.extend(other.next());
        if turns.len() == before || turns.len() >= MAX_ADDRESSES {
            return turns;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_gets_a_head_start_only_where_no_port_was_named() {
        let ways = |tls, port, named, hasty| -> Vec<(bool, u16, u64)> {
            attempts(tls, port, named, hasty).iter().map(|a| (a.tls, a.port, u64::try_from(a.delay.as_millis()).unwrap())).collect()
        };
        assert_eq!(ways(true, 443, false, false), [(false, 80, 0), (true, 443, 500)]);
        assert_eq!(ways(true, 443, false, true), [(true, 443, 0)]);
        assert_eq!(ways(true, 8443, true, false), [(true, 8443, 0)]);
        assert_eq!(ways(false, 80, false, false), [(false, 80, 0)]);
        assert_eq!(ways(false, 8080, true, true), [(false, 8080, 0)]);
    }

    #[test]
    fn families_take_turns_beginning_with_the_resolvers_choice() {
        let order = |texts: &[&str]| -> Vec<String> {
            interleaved(texts.iter().map(|t| t.parse().unwrap())).iter().map(|a| a.ip().to_string()).collect()
        };
        assert_eq!(order(&["[2::1]:1", "[2::2]:1", "[2::1]:1", "1.0.0.1:1", "1.0.0.2:1"]), ["2::1", "1.0.0.1", "2::2", "1.0.0.2"]);
        assert_eq!(order(&["1.0.0.1:1", "1.0.0.2:1", "[2::1]:1"]), ["1.0.0.1", "2::1", "1.0.0.2"]);
        assert!(order(&[]).is_empty());
        let many = (0..1000u16).map(|n| SocketAddr::from(([10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]], 1)));
        assert_eq!(interleaved(many).len(), MAX_ADDRESSES);
    }
}
