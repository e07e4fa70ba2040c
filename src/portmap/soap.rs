//! Talking to a router by UPnP: its description, and the requests of WANIPConnection (UPnP Forum, WANIPConnection:2 Service, section 2.5).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use roxmltree::{Document, Node, ParsingOptions};

/// Nodes of a document that are looked at: descriptions have some hundred.
const MAX_NODES: u32 = 4096;
/// Services of a description that are tried.
const MAX_SERVICES: usize = 8;
/// What the mapping is called in the router's list.
const DESCRIPTION: &str = "pvemesh";
/// The best kinds of service first.
const KINDS: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// A connection to the internet that a router offers to be asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its type.
    pub kind: &'static str,
    /// Where it takes requests: a path, or a whole URL.
    pub control: String,
}

impl Service {
    /// Whether the router may choose the port itself, if the wanted one is taken.
    pub fn has_add_any(&self) -> bool {
        self.kind.ends_with(":2")
    }
}

fn parse(text: &str) -> Option<Document<'_>> {
    // No entities, no DTD: nothing of a document can grow.
    Document::parse_with_options(text, ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() }).ok()
}

fn child<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.children().find(|child| child.tag_name().name() == name)?.text().map(str::trim)
}

/// The services of a device's description, the best first.
pub fn services(description: &str) -> Vec<Service> {
    let Some(document) = parse(description) else { return Vec::new() };
    let mut found: Vec<(usize, Service)> = Vec::new();
    for node in document.descendants().filter(|node| node.tag_name().name() == "service") {
        let kind = child(node, "serviceType").and_then(|kind| KINDS.iter().position(|known| *known == kind));
        if let (Some(rank), Some(control)) = (kind, child(node, "controlURL")) {
            let kind = KINDS.get(rank).copied().unwrap_or_default();
            found.push((rank, Service { kind, control: control.to_owned() }));
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, service)| service).take(MAX_SERVICES).collect()
}

/// What is asked of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The router's public address.
    Address,
    /// This port of the router's for ours.
    Add {
        /// The router's port.
        external: u16,
        /// Ours, with our address.
        internal: SocketAddrV4,
        /// For how long; 0 for ever.
        lease: Duration,
        /// Another port will do, too; only where [`Service::has_add_any`].
        any: bool,
    },
    /// The port is no longer needed.
    Delete {
        /// The router's port.
        external: u16,
    },
}

impl Request {
    /// The name of the action, for the header `SOAPAction`.
    pub const fn action(&self) -> &'static str {
        match self {
            Self::Address => "GetExternalIPAddress",
            Self::Add { any: false, .. } => "AddPortMapping",
            Self::Add { any: true, .. } => "AddAnyPortMapping",
            Self::Delete { .. } => "DeletePortMapping",
        }
    }

    /// The body.
    pub fn body(&self, kind: &str) -> String {
        let arguments = match self {
            Self::Address => String::new(),
            Self::Add { external, internal, lease, .. } => format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort><NewProtocol>UDP</NewProtocol>\
                 <NewInternalPort>{}</NewInternalPort><NewInternalClient>{}</NewInternalClient><NewEnabled>1</NewEnabled>\
                 <NewPortMappingDescription>{DESCRIPTION}</NewPortMappingDescription><NewLeaseDuration>{}</NewLeaseDuration>",
                internal.port(),
                internal.ip(),
                lease.as_secs()
            ),
            Self::Delete { external } => {
                format!("<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort><NewProtocol>UDP</NewProtocol>")
            }
        };
        let action = self.action();
        format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{kind}\">{arguments}</u:{action}></s:Body></s:Envelope>\r\n"
        )
    }
}

/// What a service answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reply {
    /// The public address, if it was asked for.
    pub address: Option<Ipv4Addr>,
    /// The port the router has chosen, if it was free to.
    pub port: Option<u16>,
}

/// Why a service refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its error code (WANIPConnection:2, section 2.5).
    Code(u16),
    /// It answered something else.
    Unread,
}

impl Fault {
    /// It takes permanent mappings only: 725 by the standard, 402 from routers that do not know that one.
    pub fn wants_permanent(self) -> bool {
        matches!(self, Self::Code(402 | 725))
    }

    /// The port is somebody else's.
    pub fn is_conflict(self) -> bool {
        matches!(self, Self::Code(718 | 727 | 729))
    }
}

/// Reads the answer to a request.
///
/// # Errors
/// The service has refused, or the answer does not read.
pub fn read_reply(text: &str) -> Result<Reply, Fault> {
    let document = parse(text).ok_or(Fault::Unread)?;
    let find = |name: &str| document.descendants().find(|node| node.tag_name().name() == name);
    let text_of = |name: &str| find(name).and_then(|node| node.text()).map(str::trim);
    if find("Fault").is_some() {
        return Err(text_of("errorCode").and_then(|code| code.parse().ok()).map_or(Fault::Unread, Fault::Code));
    }
    find("Body").ok_or(Fault::Unread)?;
    Ok(Reply {
        address: text_of("NewExternalIPAddress").and_then(|address| address.parse().ok()),
        port: text_of("NewReservedPort").and_then(|port| port.parse().ok()),
    })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_services_of_a_description_are_found_the_best_first() {
        let service =
            |kind: &str, control: &str| format!("<service><serviceType>{kind}</serviceType><controlURL> {control} </controlURL></service>");
        let description = format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><serviceList>{}{}</serviceList>\
             <deviceList><device><serviceList>{}</serviceList></device></deviceList></device></root>",
            service("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/ctl/L3F"),
            service(KINDS[2], "/ctl/ppp"),
            service(KINDS[1], "/ctl/IPConn"),
        );
        let found = services(&description);
        assert_eq!(found.iter().map(|s| s.control.as_str()).collect::<Vec<_>>(), ["/ctl/IPConn", "/ctl/ppp"]);
        assert!(!found[0].has_add_any());
        assert_eq!(services("<root><service>"), []);
    }

    #[test]
    fn documents_that_would_grow_are_not_read() {
        let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbbbbbb\"><!ENTITY c \"&b;&b;&b;&b;\">]><root>&c;</root>";
        assert!(parse(bomb).is_none());
        let wide = format!("<root>{}</root>", "<a/>".repeat(100_000));
        assert!(parse(&wide).is_none());
        // Deeper than any stack has to bear.
        let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
        assert!(parse(&deep).is_none());
    }

    #[test]
    fn requests_hold_what_the_standard_asks_for() {
        let internal = "192.168.1.2:41641".parse().unwrap();
        let add = Request::Add { external: 4500, internal, lease: Duration::from_secs(7200), any: false };
        let body = add.body(KINDS[1]);
        let document = parse(&body).unwrap();
        let order: Vec<&str> = document.descendants().map(|node| node.tag_name().name()).filter(|name| name.starts_with("New")).collect();
        // Routers that read by position want this order (section 2.5.16).
        let standard = ["NewRemoteHost", "NewExternalPort", "NewProtocol", "NewInternalPort", "NewInternalClient", "NewEnabled"];
        assert_eq!(order[..6], standard);
        assert_eq!(order[6..], ["NewPortMappingDescription", "NewLeaseDuration"]);
        assert!(body.contains("<NewInternalClient>192.168.1.2<") && body.contains(KINDS[1]));
    }

    #[test]
    fn answers_and_faults_are_told_apart() {
        let envelope =
            |body: &str| format!("<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{body}</s:Body></s:Envelope>");
        let address = envelope(
            "<u:GetExternalIPAddressResponse xmlns:u=\"x\"><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></u:GetExternalIPAddressResponse>",
        );
        assert_eq!(read_reply(&address), Ok(Reply { address: Some(Ipv4Addr::new(203, 0, 113, 7)), port: None }));
        let fault =
            |code: u16| envelope(&format!("<s:Fault><detail><UPnPError><errorCode>{code}</errorCode></UPnPError></detail></s:Fault>"));
        assert_eq!(read_reply(&fault(718)), Err(Fault::Code(718)));
        assert!(Fault::Code(718).is_conflict() && Fault::Code(725).wants_permanent() && !Fault::Unread.is_conflict());
        assert_eq!(read_reply("<html>router</html>"), Err(Fault::Unread));
        assert_eq!(read_reply(""), Err(Fault::Unread));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,300}") {
            let _ = (read_reply(&text), services(&text));
        }
    }
}
