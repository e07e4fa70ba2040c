//! The typed configuration a guest is given, one structure per role.
//!
//! Templates render it, the provisioner delivers it, the appliance's init reads it. It travels as TOML. Unknown keys are refused, so a
//! mistyped setting is named instead of ignored.

mod renewal;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::ident::{MachinePublic, NodeName, Secret, Vmid};
pub use renewal::{RENEWAL_FILE, RENEWAL_VARIABLE, Renewal};

/// The WireGuard UDP port, the one stock Tailscale nodes use.
pub const DEFAULT_PORT: u16 = 41641;
/// The TCP port a coordinator listens on in its container.
pub const DEFAULT_COORDINATOR_PORT: u16 = 8080;
/// The TCP port of the relay in a coordinator whose own listener has no certificate.
pub const DEFAULT_RELAY_PORT: u16 = 8443;
/// The UDP port of a relay's STUN server.
pub const DEFAULT_STUN_PORT: u16 = 3478;
/// The number of the region of the relay in a coordinator.
pub const DEFAULT_RELAY_REGION: i32 = 900;

/// Everything one appliance guest is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Which guest this was made for.
    pub vmid: Vmid,
    /// The host name, also the node's name in the mesh.
    pub hostname: NodeName,
    /// How the guest's own interface is set up.
    pub network: Network,
    /// Present when the guest is a mesh node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    /// Present when the guest is a coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<Coordinator>,
    /// Present when the guest is a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<Relay>,
}

/// A relay's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// The name or address that its certificate is for; clients are told it with the address.
    pub hostname: String,
    /// Where the coordinator says whom to serve.
    pub verify_url: String,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where STUN is answered.
    pub stun: SocketAddr,
}

/// Why a guest's configuration was refused. Says where and what, but quotes nothing of it: it may hold a join key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the guest configuration, line {line}: {message}")]
pub struct GuestError {
    /// The line, counted from 1; 0 when the fault is of the whole text.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl Guest {
    /// Reads the TOML form.
    ///
    /// # Errors
    ///
    /// When it is not TOML, or a key is missing, unknown or of the wrong kind.
    pub fn from_toml(text: &str) -> Result<Self, GuestError> {
        toml::from_str(text).map_err(|error| GuestError::in_text(text, &error))
    }
}

impl GuestError {
    fn in_text(text: &str, error: &toml::de::Error) -> Self {
        let line = error.span().and_then(|span| text.get(..span.start)).map_or(0, |before| before.matches('\n').count() + 1);
        Self { line, message: error.message().to_owned() }
    }
}

/// The guest's interface to the LAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Interface name inside the guest.
    #[serde(default = "eth0")]
    pub interface: String,
    /// IPv4: `dhcp`, `none`, or an address with its prefix length.
    pub ipv4: Ipv4Setup,
    /// The IPv4 default gateway; only with a fixed address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6: `auto` (router advertisements), `none`, or an address with its prefix length.
    #[serde(default)]
    pub ipv6: Ipv6Setup,
    /// The IPv6 default gateway; only with a fixed address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// Name servers; with `dhcp` they come before those of the lease.
    #[serde(default)]
    pub nameservers: Vec<IpAddr>,
}

fn eth0() -> String {
    "eth0".to_owned()
}

/// How IPv4 is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv4Setup {
    /// Ask a DHCP server.
    Dhcp,
    /// This address.
    Fixed(Ipv4Net),
    /// No IPv4.
    None,
}

/// How IPv6 is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ipv6Setup {
    /// Router advertisements, as the kernel does them.
    #[default]
    Auto,
    /// This address.
    Fixed(Ipv6Net),
    /// No IPv6 beyond link-local.
    None,
}

macro_rules! setup_as_text {
    ($setup:ident, $word:literal => $variant:ident) => {
        impl Serialize for $setup {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    Self::$variant => serializer.serialize_str($word),
                    Self::None => serializer.serialize_str("none"),
                    Self::Fixed(net) => serializer.collect_str(net),
                }
            }
        }

        impl<'de> Deserialize<'de> for $setup {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match &*String::deserialize(deserializer)? {
                    $word => Ok(Self::$variant),
                    "none" => Ok(Self::None),
                    text => text.parse().map(Self::Fixed).map_err(|_| {
                        serde::de::Error::custom(concat!("expected `", $word, "`, `none` or an address with its prefix length"))
                    }),
                }
            }
        }
    };
}

setup_as_text!(Ipv4Setup, "dhcp" => Dhcp);
setup_as_text!(Ipv6Setup, "auto" => Auto);

/// A mesh node's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The coordinator: ours, Headscale or Tailscale.
    pub login_server: String,
    /// The coordinator's Noise key, when the provisioner already knows it; a different one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_key: Option<MachinePublic>,
    /// The join key; dropped from the stored settings once the node has registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_key: Option<Secret>,
    /// The WireGuard UDP port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Addresses under which this node is reachable from outside, such as a forwarded port of the home router.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// Offer to carry other nodes' internet traffic.
    #[serde(default)]
    pub advertise_exit_node: bool,
    /// Networks behind this node that it offers to carry.
    #[serde(default)]
    pub advertise_routes: Vec<IpNet>,
    /// Use the networks that other nodes offer.
    #[serde(default)]
    pub accept_routes: bool,
    /// Resolve names as the coordinator says.
    #[serde(default = "yes")]
    pub accept_dns: bool,
    /// What enters a carried network has this node's own address there.
    #[serde(default = "yes")]
    pub snat_subnet_routes: bool,
    /// It has no TUN: packets of the mesh end in the process, and ordinary sockets carry on what peers send.
    #[serde(default)]
    pub userspace: bool,
    /// Machines on this machine's networks use the mesh through it, in its name.
    #[serde(default)]
    pub lan_gateway: bool,
}

fn yes() -> bool {
    true
}

fn default_port() -> u16 {
    DEFAULT_PORT
}

/// A coordinator's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coordinator {
    /// The address clients are told, `http(s)://host[:port]`.
    pub url: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Machine keys whose owners may administer the coordinator through its own protocol. Public keys only: nothing secret is delivered.
    #[serde(default)]
    pub admin_keys: Vec<MachinePublic>,
    /// The DNS suffix of node names, without a dot at either end.
    pub base_domain: String,
    /// How it meets the internet; nothing of it is needed on a LAN or behind a reverse proxy.
    #[serde(default, skip_serializing_if = "Front::is_default")]
    pub front: Front,
    /// The relay in it.
    #[serde(default, skip_serializing_if = "EmbeddedRelay::is_default")]
    pub relay: EmbeddedRelay,
}

/// The relay in a coordinator, so that a mesh needs nothing else for its nodes to reach each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddedRelay {
    /// Whether there is one.
    pub enabled: bool,
    /// Where it listens with a certificate that we make, if the coordinator's own listener has none.
    pub listen: SocketAddr,
    /// Where it answers STUN (UDP).
    pub stun: SocketAddr,
    /// Its region's number in the relay map; 900 to 999 are for private ones.
    pub region: i32,
}

impl Default for EmbeddedRelay {
    fn default() -> Self {
        let all = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self { enabled: true, listen: all(DEFAULT_RELAY_PORT), stun: all(DEFAULT_STUN_PORT), region: DEFAULT_RELAY_REGION }
    }
}

impl EmbeddedRelay {
    /// None.
    pub fn off() -> Self {
        Self { enabled: false, ..Self::default() }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A coordinator's network face: its certificate, port 80, the proxies before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Front {
    /// Certificate and key in files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateFiles>,
    /// A certificate from an ACME authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acme: Option<Acme>,
    /// A second listener without TLS, normally port 80: stock clients try it first even for `https` addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_http: Option<SocketAddr>,
    /// Networks of reverse proxies: only theirs is `X-Forwarded-For` believed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<IpNet>,
}

impl Front {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A certificate in files (PEM). They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate and those between it and its authority.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// How a certificate is had by ACME (RFC 8555; the challenge is TLS-ALPN-01, RFC 8737).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// The name the certificate is for.
    pub domain: String,
    /// Where the authority may write to its account's holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The authority's directory; Let's Encrypt's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The certificate (PEM) of a private authority's own server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_setups_read_as_words_or_addresses() {
        let network: Network = serde_json::from_str(r#"{"ipv4":"192.168.1.5/24","gateway4":"192.168.1.1","ipv6":"none"}"#).unwrap();
        assert_eq!(network.ipv4, Ipv4Setup::Fixed("192.168.1.5/24".parse().unwrap()));
        assert_eq!(network.interface, "eth0");
        let dhcp: Network = serde_json::from_str(r#"{"ipv4":"dhcp"}"#).unwrap();
        assert_eq!((dhcp.ipv4, dhcp.ipv6), (Ipv4Setup::Dhcp, Ipv6Setup::Auto));
        assert!(serde_json::from_str::<Network>(r#"{"ipv4":"192.168.1.5"}"#).is_err());
        assert!(serde_json::from_str::<Network>(r#"{"ipv4":"dhcp","gatway4":"192.168.1.1"}"#).is_err());
    }
}
