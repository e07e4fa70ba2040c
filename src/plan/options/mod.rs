//! What the admin asked for: texts from the command line, checked and typed.
//!
//! Every text ends up in a property string, a path, a TOML file or on a screen. None is passed on as it came: each becomes a type that
//! cannot hold what would be special there, and a refusal names the option.

mod role;
mod value;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ident::{NodeName, Vmid};
use crate::plan::mark::FleetName;
use crate::pve::{BridgeName, HostName, StorageId};
use crate::settings::{Ipv4Setup, Ipv6Setup};
pub use role::{Join, KnownCoordinator, NodeKind, Role};
use value::{address, host_address, one, parsed};
pub use value::{auth_key, base_domain, endpoints, relay_address, routes, server_url};

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
    /// IPv4, if said; else DHCP for a new guest.
    pub ipv4: Option<Ipv4Setup>,
    /// IPv4 gateway, only with a fixed address.
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6, if said; else router advertisements for a new guest.
    pub ipv6: Option<Ipv6Setup>,
    /// IPv6 gateway, only with a fixed address.
    pub gateway6: Option<Ipv6Addr>,
    /// Name servers; none if not said.
    pub nameservers: Vec<IpAddr>,
}

impl Lan {
    /// IPv4 of a new guest.
    pub fn new_ipv4(&self) -> Ipv4Setup {
        self.ipv4.unwrap_or(Ipv4Setup::Dhcp)
    }

    /// IPv6 of a new guest.
    pub fn new_ipv6(&self) -> Ipv6Setup {
        self.ipv6.unwrap_or_default()
    }
}

/// The options of every command that makes a guest, checked. What was not said is chosen for a new guest, and left alone for one that is there.
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
    /// Memory in MiB; [`DEFAULT_MEMORY`] for a new guest if absent.
    pub memory: Option<u32>,
    /// Cores; [`DEFAULT_CORES`] for a new guest if absent.
    pub cores: Option<u16>,
    /// Addresses on the LAN.
    pub lan: Lan,
    /// The fleet it belongs to, if a new guest is made for one.
    pub fleet: Option<FleetName>,
}

impl GuestTexts {
    /// Checks the texts.
    ///
    /// # Errors
    /// At the first option that cannot be used.
    pub fn check(&self) -> Result<GuestOptions, OptionError> {
        if self.memory.is_some_and(|memory| !(32..=1 << 20).contains(&memory)) {
            return Err(OptionError::new("--memory", "32 MiB to 1 TiB, in MiB"));
        }
        if self.cores.is_some_and(|cores| !(1..=512).contains(&cores)) {
            return Err(OptionError::new("--cores", "1 to 512"));
        }
        Ok(GuestOptions {
            vmid: self.vmid.parse().map_err(|e| OptionError::new("ID", e))?,
            name: parsed("--name", self.name.as_deref())?,
            host: parsed("--node", self.node.as_deref())?,
            storage: parsed("--storage", self.storage.as_deref())?,
            template_storage: parsed("--template-storage", self.template_storage.as_deref())?,
            bridge: parsed("--bridge", self.bridge.as_deref())?,
            memory: self.memory,
            cores: self.cores,
            lan: self.lan()?,
            fleet: None,
        })
    }

    fn lan(&self) -> Result<Lan, OptionError> {
        let ipv4 = match self.ip.as_deref() {
            None => None,
            Some("dhcp") => Some(Ipv4Setup::Dhcp),
            Some("none") => Some(Ipv4Setup::None),
            Some(text) => {
                let rule = "dhcp, none or an address with its prefix length, as in 192.168.1.50/24";
                Some(Ipv4Setup::Fixed(host_address("--ip", text, rule)?))
            }
        };
        let gateway4: Option<Ipv4Addr> = address("--gw", self.gw.as_deref())?;
        match (ipv4, gateway4) {
            (Some(Ipv4Setup::Fixed(net)), Some(gateway)) if !net.contains(&gateway) || gateway == net.addr() => {
                return Err(OptionError::new("--gw", format!("{gateway} is not another address of {net}")));
            }
            (Some(Ipv4Setup::Dhcp | Ipv4Setup::None) | None, Some(_)) => {
                return Err(OptionError::new("--gw", "goes with a fixed --ip only"));
            }
            _ => {}
        }
        let ipv6 = match self.ip6.as_deref() {
            None => None,
            Some("auto") => Some(Ipv6Setup::Auto),
            Some("none") => Some(Ipv6Setup::None),
            Some(text) => {
                let rule = "auto, none or an address with its prefix length, as in fd00::50/64";
                Some(Ipv6Setup::Fixed(host_address("--ip6", text, rule)?))
            }
        };
        let gateway6: Option<Ipv6Addr> = address("--gw6", self.gw6.as_deref())?;
        if gateway6.is_some() && !matches!(ipv6, Some(Ipv6Setup::Fixed(_))) {
            return Err(OptionError::new("--gw6", "goes with a fixed --ip6 only"));
        }
        if self.dns.len() > 8 {
            return Err(OptionError::new("--dns", "at most 8 name servers"));
        }
        let nameservers = self.dns.iter().map(|text| one("--dns", text, "an IP address")).collect::<Result<_, _>>()?;
        Ok(Lan { ipv4, gateway4, ipv6, gateway6, nameservers })
    }
}

#[cfg(test)]
mod tests;
