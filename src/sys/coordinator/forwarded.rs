//! From whom a request is that came through a reverse proxy.

use std::net::IpAddr;

use hyper::HeaderMap;
use ipnet::IpNet;

/// The header proxies add the address to that they were asked from.
const HEADER: &str = "x-forwarded-for";

/// Whether an address is one of the proxies that are believed.
pub(super) fn is_trusted(proxies: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    proxies.iter().any(|net| net.contains(&address))
}

/// The client's address as the proxies say. Each proxy appends whom it was asked by, so reading starts at the end and stops at the first
/// address that is no proxy's: what stands before it came from the client and may be anything.
pub(super) fn client(proxies: &[IpNet], proxy: IpAddr, headers: &HeaderMap) -> IpAddr {
    let lines: Vec<&str> = headers.get_all(HEADER).iter().filter_map(|line| line.to_str().ok()).collect();
    let mut nearest = proxy;
    for text in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let Some(address) = parse(text.trim()) else { return nearest };
        nearest = address;
        if !is_trusted(proxies, address) {
            return address;
        }
    }
    nearest
}

/// An address, in brackets or with a port as some proxies write it.
fn parse(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(bare).or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(lines: &[&str]) -> String {
        let proxies = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(HEADER, line.parse().unwrap());
        }
        client(&proxies, "10.0.0.1".parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_last_address_that_is_no_proxys_counts() {
        assert_eq!(ask(&["192.0.2.7"]), "192.0.2.7");
        assert_eq!(ask(&["203.0.113.9, 192.0.2.7"]), "192.0.2.7", "what the client claims is not believed");
        assert_eq!(ask(&["203.0.113.9", "192.0.2.7, 10.0.0.2"]), "192.0.2.7", "through two proxies, in two lines");
        assert_eq!(ask(&["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(ask(&["::ffff:192.0.2.7"]), "192.0.2.7");
    }

    #[test]
    fn without_a_usable_line_the_proxy_itself_counts() {
        assert_eq!(ask(&[]), "10.0.0.1");
        assert_eq!(ask(&["192.0.2.7, unknown"]), "10.0.0.1");
        assert_eq!(ask(&["10.0.0.9"]), "10.0.0.9");
    }

    #[test]
    fn a_mapped_address_is_the_one_it_maps() {
        let proxies = ["127.0.0.0/8".parse().unwrap()];
        assert!(is_trusted(&proxies, "::ffff:127.0.0.1".parse().unwrap()));
        assert!(!is_trusted(&proxies, "::1".parse().unwrap()));
    }
}
