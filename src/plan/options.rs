//! What the admin asked for: texts from the command line, checked and typed.
//!
//! Every text ends up in a property string, a path, a TOML file or on a screen. None is passed on as it came: each becomes a type that
//! cannot hold what would be special there, and a refusal names the option.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ident::{MachinePublic, NodeName, Secret, Vmid};
use crate::pve::{BridgeName, HostName, StorageId};
use crate::settings::{Ipv4Setup, Ipv6Setup};

/// Memory of a new guest in MiB unless asked otherwise.
pub const DEFAULT_MEMORY: u32 = 64;
/// Cores of a new guest unless asked otherwise: one for each direction of the traffic.
pub const DEFAULT_CORES: u16 = 2;
/// Root volume of a new guest in MiB: a few MB of program, the rest for state and logs.
pub const ROOT_VOLUME: u32 = 256;
/// The DNS suffix of a new coordinator's node names unless asked otherwise.
pub const DEFAULT_BASE_DOMAIN: &str = "mesh.internal";

/// An option whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {why}")]
pub struct OptionError {
    /// The option, as in `--bridge`.
    pub option: &'static str,
    /// What is wrong with its value.
    pub why: String,
}

impl OptionError {
    /// An option refused for this reason.
    pub fn new(option: &'static str, why: impl ToString) -> Self {
        Self { option, why: why.to_string() }
    }
}

/// The options of every command that makes a guest, as typed.
#[derive(Debug, Clone, Default)]
pub struct GuestTexts {
    /// The positional VMID.
    pub vmid: String,
    /// `--name`
    pub name: Option<String>,
    /// `--node`
    pub node: Option<String>,
    /// `--storage`
    pub storage: Option<String>,
    /// `--template-storage`
    pub template_storage: Option<String>,
    /// `--bridge`
    pub bridge: Option<String>,
    /// `--memory`
    pub memory: Option<u32>,
    /// `--cores`
    pub cores: Option<u16>,
    /// `--ip`
    pub ip: Option<String>,
    /// `--gw`
    pub gw: Option<String>,
    /// `--ip6`
    pub ip6: Option<String>,
    /// `--gw6`
    pub gw6: Option<String>,
    /// `--dns`
    pub dns: Vec<String>,
}

/// How a new guest gets its addresses on the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lan {
    /// IPv4.
    pub ipv4: Ipv4Setup,
    /// IPv4 gateway, only with a fixed address.
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6.
    pub ipv6: Ipv6Setup,
    /// IPv6 gateway, only with a fixed address.
    pub gateway6: Option<Ipv6Addr>,
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
}

/// The options of every command that makes a guest, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestOptions {
    /// The guest's number.
    pub vmid: Vmid,
    /// Its name; chosen if absent.
    pub name: Option<NodeName>,
    /// The host; chosen if absent.
    pub host: Option<HostName>,
    /// Where its root volume goes; chosen if absent.
    pub storage: Option<StorageId>,
    /// Where the image is uploaded; chosen if absent.
    pub template_storage: Option<StorageId>,
    /// The bridge; chosen if absent.
    pub bridge: Option<BridgeName>,
    /// Memory in MiB.
    pub memory: u32,
    /// Cores.
    pub cores: u16,
    /// Addresses on the LAN.
    pub lan: Lan,
}

impl GuestTexts {
    /// Checks the texts.
    ///
    /// # Errors
    /// At the first option that cannot be used.
    pub fn check(&self) -> Result<GuestOptions, OptionError> {
        let memory = self.memory.unwrap_or(DEFAULT_MEMORY);
        if !(32..=1 << 20).contains(&memory) {
            return Err(OptionError::new("--memory", "32 MiB to 1 TiB, in MiB"));
        }
        let cores = self.cores.unwrap_or(DEFAULT_CORES);
        if !(1..=512).contains(&cores) {
            return Err(OptionError::new("--cores", "1 to 512"));
        }
        Ok(GuestOptions {
            vmid: self.vmid.parse().map_err(|e| OptionError::new("ID", e))?,
            name: parsed("--name", self.name.as_deref())?,
            host: parsed("--node", self.node.as_deref())?,
            storage: parsed("--storage", self.storage.as_deref())?,
            template_storage: parsed("--template-storage", self.template_storage.as_deref())?,
            bridge: parsed("--bridge", self.bridge.as_deref())?,
            memory,
            cores,
            lan: self.lan()?,
        })
    }

    fn lan(&self) -> Result<Lan, OptionError> {
        let ipv4 = match self.ip.as_deref() {
            None | Some("dhcp") => Ipv4Setup::Dhcp,
            Some("none") => Ipv4Setup::None,
            Some(text) => {
                Ipv4Setup::Fixed(host_address("--ip", text, "dhcp, none or an address with its prefix length, as in 192.168.1.50/24")?)
            }
        };
        let gateway4: Option<Ipv4Addr> = address("--gw", self.gw.as_deref())?;
        match (ipv4, gateway4) {
            (Ipv4Setup::Fixed(net), Some(gateway)) if !net.contains(&gateway) || gateway == net.addr() => {
                return Err(OptionError::new("--gw", format!("{gateway} is not another address of {net}")));
            }
            (Ipv4Setup::Dhcp | Ipv4Setup::None, Some(_)) => return Err(OptionError::new("--gw", "goes with a fixed --ip only")),
            _ => {}
        }
        let ipv6 = match self.ip6.as_deref() {
            None | Some("auto") => Ipv6Setup::Auto,
            Some("none") => Ipv6Setup::None,
            Some(text) => {
                Ipv6Setup::Fixed(host_address("--ip6", text, "auto, none or an address with its prefix length, as in fd00::50/64")?)
            }
        };
        let gateway6: Option<Ipv6Addr> = address("--gw6", self.gw6.as_deref())?;
        if gateway6.is_some() && !matches!(ipv6, Ipv6Setup::Fixed(_)) {
            return Err(OptionError::new("--gw6", "goes with a fixed --ip6 only"));
        }
        if self.dns.len() > 8 {
            return Err(OptionError::new("--dns", "at most 8 name servers"));
        }
        let nameservers = self.dns.iter().map(|text| one("--dns", text, "an IP address")).collect::<Result<_, _>>()?;
        Ok(Lan { ipv4, gateway4, ipv6, gateway6, nameservers })
    }
}

/// An address with its prefix length that a host may have.
trait HostNet: FromStr {
    fn is_host(&self) -> bool;
}

impl HostNet for Ipv4Net {
    fn is_host(&self) -> bool {
        let address = self.addr();
        let special = address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast();
        !special && (self.prefix_len() >= 31 || (address != self.network() && address != self.broadcast())) && self.prefix_len() > 0
    }
}

impl HostNet for Ipv6Net {
    fn is_host(&self) -> bool {
        let address = self.addr();
        !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && self.prefix_len() > 0
    }
}

fn host_address<T: HostNet>(option: &'static str, text: &str, rule: &str) -> Result<T, OptionError> {
    let net: T = one(option, text, rule)?;
    if net.is_host() { Ok(net) } else { Err(OptionError::new(option, format!("`{}` is no address a host can have", shown(text)))) }
}

fn address<T: FromStr>(option: &'static str, text: Option<&str>) -> Result<Option<T>, OptionError> {
    text.map(|text| one(option, text, "an IP address of the right family")).transpose()
}

fn one<T: FromStr>(option: &'static str, text: &str, rule: &str) -> Result<T, OptionError> {
    text.parse().map_err(|_| OptionError::new(option, format!("it is {rule}, not `{}`", shown(text))))
}

fn parsed<T: FromStr>(option: &'static str, text: Option<&str>) -> Result<Option<T>, OptionError>
where
    T::Err: std::fmt::Display,
{
    text.map(|text| text.parse().map_err(|e: T::Err| OptionError::new(option, e))).transpose()
}

fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(60).flat_map(char::escape_default).collect();
    if text.chars().nth(60).is_some() {
        out.push_str("...");
    }
    out
}

/// A list of `address:port`.
///
/// # Errors
/// If one of them is something else, or there are more than 16.
pub fn endpoints(option: &'static str, texts: &[String]) -> Result<Vec<SocketAddr>, OptionError> {
    if texts.len() > 16 {
        return Err(OptionError::new(option, "at most 16"));
    }
    texts.iter().map(|text| one(option, text, "ADDRESS:PORT, as in 203.0.113.7:41641")).collect()
}

/// A list of networks, each written with its first address.
///
/// # Errors
/// If one of them is something else, a default route, or there are more than 64.
pub fn routes(option: &'static str, texts: &[String]) -> Result<Vec<IpNet>, OptionError> {
    if texts.len() > 64 {
        return Err(OptionError::new(option, "at most 64"));
    }
    let route = |text: &String| {
        let net: IpNet = one(option, text, "a network, as in 192.168.1.0/24")?;
        match net {
            _ if net.prefix_len() == 0 => {
                Err(OptionError::new(option, "the whole internet is the job of an exit node: pvemesh create-exit-node"))
            }
            _ if net.addr() != net.network() => {
                Err(OptionError::new(option, format!("{net} has bits set after its prefix; did you mean {}?", net.trunc())))
            }
            _ => Ok(net),
        }
    };
    texts.iter().map(route).collect()
}

/// The address of a coordinator: `http://` or `https://`, a host, perhaps a port, nothing more.
///
/// # Errors
/// If it is anything else.
pub fn server_url(option: &'static str, text: &str) -> Result<String, OptionError> {
    let wrong = || OptionError::new(option, format!("it is http(s)://HOST[:PORT] and nothing more, not `{}`", shown(text)));
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    let authority = trimmed.strip_prefix("http://").or_else(|| trimmed.strip_prefix("https://")).ok_or_else(wrong)?;
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(wrong)?;
            address.parse::<Ipv6Addr>().map_err(|_| wrong())?;
            ("ip6", after.strip_prefix(':').or_else(|| after.is_empty().then_some("80")))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("80")),
        },
    };
    let port_fits = port.and_then(|port| port.parse::<u16>().ok()).is_some_and(|port| port != 0);
    if port_fits && is_dns_name(host) { Ok(trimmed.to_owned()) } else { Err(wrong()) }
}

/// The DNS suffix of node names.
///
/// # Errors
/// If it is no DNS name of at least one label.
pub fn base_domain(option: &'static str, text: &str) -> Result<String, OptionError> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    // Room for the longest node name and a dot before it.
    if is_dns_name(&name) && name.len() <= 189 {
        Ok(name)
    } else {
        Err(OptionError::new(option, format!("it is a DNS name, as in mesh.example.org, not `{}`", shown(text))))
    }
}

fn is_dns_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// A join key as its file holds it: one word.
///
/// # Errors
/// If it is empty, longer than 512 bytes, or has anything but printable ASCII. The error does not show it.
pub fn auth_key(option: &'static str, text: &str) -> Result<Secret, OptionError> {
    let key = text.trim();
    let clean = (1..=512).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
    if clean { Ok(Secret::new(key)) } else { Err(OptionError::new(option, "a join key is one word of printable characters")) }
}

/// A coordinator of ours, as the admin's configuration knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownCoordinator {
    /// Its guest, if we made it.
    pub vmid: Option<Vmid>,
    /// The address guests on the LAN use, and this program.
    pub lan_url: String,
    /// The address other clients are told.
    pub url: String,
    /// Its key.
    pub server_key: MachinePublic,
}

/// How a new node joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Join {
    /// Our coordinator: a join key is made for this guest alone.
    Ours(KnownCoordinator),
    /// Any ts2021 coordinator, with a key the admin has.
    Other {
        /// Its address.
        login_server: String,
        /// The key.
        auth_key: Secret,
    },
}

/// What a new guest is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Key exchange, addresses, names.
    Coordinator {
        /// The address clients are told; absent if it is the guest's own address.
        url: Option<String>,
        /// The DNS suffix.
        base_domain: String,
        /// Who may administer it.
        admin_key: MachinePublic,
    },
    /// A mesh node.
    Node {
        /// What it offers.
        kind: NodeKind,
        /// How it joins.
        join: Join,
        /// Addresses under which it is reachable from outside.
        endpoints: Vec<SocketAddr>,
    },
}

/// What a node offers the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// Itself.
    Member,
    /// The internet.
    ExitNode,
    /// Networks.
    SubnetRouter(Vec<IpNet>),
}

impl Role {
    /// The role's name in tags, marks and the interface.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Coordinator { .. } => "coordinator",
            Self::Node { kind: NodeKind::Member, .. } => "node",
            Self::Node { kind: NodeKind::ExitNode, .. } => "exit-node",
            Self::Node { kind: NodeKind::SubnetRouter(_), .. } => "subnet-router",
        }
    }

    /// Whether it opens a TUN device, which has to be passed through.
    pub const fn needs_tun(&self) -> bool {
        matches!(self, Self::Node { .. })
    }

    /// The role in words.
    pub const fn words(&self) -> &'static str {
        match self {
            Self::Coordinator { .. } => "coordinator",
            Self::Node { kind: NodeKind::Member, .. } => "mesh node",
            Self::Node { kind: NodeKind::ExitNode, .. } => "exit node",
            Self::Node { kind: NodeKind::SubnetRouter(_), .. } => "subnet router",
        }
    }

    /// The first part of a chosen name; `None` if the role's name is used without a number.
    pub(super) const fn name_stem(&self) -> &'static str {
        match self {
            Self::Coordinator { .. } => "coordinator",
            Self::Node { kind: NodeKind::Member, .. } => "node",
            Self::Node { kind: NodeKind::ExitNode, .. } => "exit",
            Self::Node { kind: NodeKind::SubnetRouter(_), .. } => "router",
        }
    }

    /// The command that makes one.
    pub const fn command(&self) -> &'static str {
        match self {
            Self::Coordinator { .. } => "create-coordinator",
            Self::Node { kind: NodeKind::Member, .. } => "create-node",
            Self::Node { kind: NodeKind::ExitNode, .. } => "create-exit-node",
            Self::Node { kind: NodeKind::SubnetRouter(_), .. } => "create-subnet-router",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(change: impl FnOnce(&mut GuestTexts)) -> Result<GuestOptions, OptionError> {
        let mut texts = GuestTexts { vmid: "101".to_owned(), ..GuestTexts::default() };
        change(&mut texts);
        texts.check()
    }

    #[test]
    fn hostile_values_are_refused_and_the_option_is_named() {
        let long = "x".repeat(10_000);
        for bad in ["a\nb", "a,b", "a;b", "a=b", "größe", "a b", "a\0b", "$(id)", "a\u{202e}b", &long, ""] {
            let bad = || Some(bad.to_owned());
            let refused = |option: &str, result: Result<GuestOptions, OptionError>| {
                let error = result.unwrap_err();
                assert_eq!(error.option, option);
                assert!(error.to_string().len() < 500 && !error.to_string().chars().any(char::is_control), "{error}");
            };
            refused("ID", texts(|t| t.vmid = bad().unwrap()));
            refused("--name", texts(|t| t.name = bad()));
            refused("--node", texts(|t| t.node = bad()));
            refused("--storage", texts(|t| t.storage = bad()));
            refused("--template-storage", texts(|t| t.template_storage = bad()));
            refused("--bridge", texts(|t| t.bridge = bad()));
            refused("--ip", texts(|t| t.ip = bad()));
            refused("--gw", texts(|t| t.gw = bad()));
            refused("--ip6", texts(|t| t.ip6 = bad()));
            refused("--gw6", texts(|t| t.gw6 = bad()));
            refused("--dns", texts(|t| t.dns = vec![bad().unwrap()]));
            assert_eq!(server_url("--url", &bad().unwrap()).unwrap_err().option, "--url");
            assert_eq!(server_url("--url", &format!("http://{}", bad().unwrap())).unwrap_err().option, "--url");
            assert_eq!(base_domain("--base-domain", &bad().unwrap()).unwrap_err().option, "--base-domain");
            assert_eq!(endpoints("--endpoint", &[bad().unwrap()]).unwrap_err().option, "--endpoint");
            assert_eq!(routes("--route", &[bad().unwrap()]).unwrap_err().option, "--route");
        }
    }

    #[test]
    fn addresses_that_no_host_can_have_are_refused() {
        for ip in ["0.0.0.0/0", "192.168.1.0/24", "192.168.1.255/24", "127.0.0.1/8", "224.0.0.1/4", "192.168.1.5/33", "192.168.1.5"] {
            assert_eq!(texts(|t| t.ip = Some(ip.to_owned())).unwrap_err().option, "--ip", "{ip}");
        }
        for gw in ["192.168.2.1", "192.168.1.5", "fd00::1"] {
            let result = texts(|t| (t.ip, t.gw) = (Some("192.168.1.5/24".to_owned()), Some(gw.to_owned())));
            assert_eq!(result.unwrap_err().option, "--gw", "{gw}");
        }
        assert_eq!(texts(|t| t.gw = Some("192.168.1.1".to_owned())).unwrap_err().option, "--gw");
        assert_eq!(texts(|t| t.ip6 = Some("::1/128".to_owned())).unwrap_err().option, "--ip6");
        let fixed = texts(|t| (t.ip, t.gw) = (Some("192.168.1.5/24".to_owned()), Some("192.168.1.1".to_owned()))).unwrap();
        assert_eq!(fixed.lan.gateway4, Some(Ipv4Addr::new(192, 168, 1, 1)));
    }

    #[test]
    fn server_addresses_have_a_host_and_nothing_after_it() {
        for good in ["http://192.168.1.5:8080", "https://mesh.example.org", "http://[fd00::5]:8080", "https://mesh.example.org/"] {
            assert_eq!(server_url("--url", good).unwrap(), good.trim_end_matches('/'));
        }
        for bad in [
            "mesh.example.org",
            "ftp://x",
            "http://",
            "http://x/y",
            "http://x:0",
            "http://x:99999",
            "http://u@x",
            "http://x?y",
            "http://[::1",
            "http://[::1]x",
        ] {
            assert!(server_url("--url", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_route_is_a_network_and_not_the_internet() {
        assert!(routes("--route", &["192.168.1.0/24".to_owned(), "fd00::/64".to_owned()]).is_ok());
        let error = routes("--route", &["192.168.1.7/24".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("did you mean 192.168.1.0/24?"), "{error}");
        assert!(routes("--route", &["0.0.0.0/0".to_owned()]).unwrap_err().to_string().contains("create-exit-node"));
    }

    #[test]
    fn a_refused_join_key_is_not_shown() {
        let error = auth_key("--auth-key-file", "tskey-secret with space").unwrap_err().to_string();
        assert!(!error.contains("tskey"));
        assert_eq!(auth_key("--auth-key-file", " tskey-1\n").unwrap().expose(), "tskey-1");
    }
}
