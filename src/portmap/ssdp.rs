//! Finding a router that speaks UPnP: SSDP (UPnP Device Architecture 2.0, section 1.3).

use std::net::{Ipv4Addr, SocketAddrV4};

/// Where devices listen.
pub const SSDP_PORT: u16 = 1900;
/// The group that they listen to.
pub const SSDP_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);

/// The longest answer that is read.
const MAX_ANSWER: usize = 4096;

/// Searches, and where to. Some routers answer only to the one, some only to the other.
pub fn searches(gateway: Ipv4Addr) -> [(SocketAddrV4, String); 3] {
    let search = |target: &str| {
        format!("M-SEARCH * HTTP/1.1\r\nHOST: {SSDP_GROUP}:{SSDP_PORT}\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {target}\r\n\r\n")
    };
    let (direct, group) = (SocketAddrV4::new(gateway, SSDP_PORT), SocketAddrV4::new(SSDP_GROUP, SSDP_PORT));
    let gateway_device = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
    [(direct, search("ssdp:all")), (group, search("ssdp:all")), (group, search(gateway_device))]
}

/// Where the answer of an internet gateway says its description is; `None` for answers of other devices, and for what is no answer.
pub fn location(datagram: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(datagram.get(..datagram.len().min(MAX_ANSWER))?).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?;
    if !status.starts_with("HTTP/1.") || status.split(' ').nth(1) != Some("200") {
        return None;
    }
    let (mut location, mut is_gateway) = (None, false);
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("location") && value.starts_with("http://") {
            location = Some(value.to_owned());
        } else if name.eq_ignore_ascii_case("st") || name.eq_ignore_ascii_case("usn") {
            is_gateway |= ["InternetGatewayDevice", "WANConnectionDevice", "WANIPConnection", "WANPPPConnection"]
                .iter()
                .any(|kind| value.contains(kind));
        }
    }
    location.filter(|_| is_gateway)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_answer_of_a_gateway_names_its_description() {
        let answer = |st: &str| {
            format!("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {st}\r\nlocation:  http://192.168.1.1:5000/rootDesc.xml\r\n\r\n")
        };
        let gateway = answer("urn:schemas-upnp-org:device:InternetGatewayDevice:2");
        assert_eq!(location(gateway.as_bytes()).as_deref(), Some("http://192.168.1.1:5000/rootDesc.xml"));
        assert_eq!(location(answer("urn:schemas-upnp-org:device:MediaServer:1").as_bytes()), None, "a television");
        assert_eq!(location(b"NOTIFY * HTTP/1.1\r\n\r\n"), None);
        let elsewhere = gateway.replace("http://", "file://");
        assert_eq!(location(elsewhere.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = location(&bytes);
        }
    }
}
