//! Property strings: `net0`, `dev0`, `rootfs`.
//!
//! They are `key=value` pairs joined by commas, one key may go without its name, and nothing can be escaped (PVE::JSONSchema). So every
//! value written here is of a type that has no comma, and nothing else can be written.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::name::shown;
use super::{BridgeName, StorageId};

/// A property string taken apart, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties(Vec<(String, String)>);

/// A property string that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a property string with the keys wanted here")]
pub struct PropertyError(String);

impl Properties {
    /// Takes a property string apart; a part without `=` gets `default_key`.
    pub fn parse(text: &str, default_key: &str) -> Self {
        let pair = |part: &str| match part.split_once('=') {
            Some((key, value)) => (key.trim().to_owned(), value.to_owned()),
            None => (default_key.to_owned(), part.to_owned()),
        };
        Self(text.split(',').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Gives a key another value, in its place; a new key comes last. The value must be of a type without commas.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        let value = value.into();
        match self.0.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    /// The same, or takes the key out.
    pub fn set_or_remove(&mut self, key: &str, value: Option<String>) {
        match value {
            Some(value) => self.set(key, value),
            None => self.0.retain(|(k, _)| k != key),
        }
    }
}

impl fmt::Display for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|(key, value)| format!("{key}={value}")).collect();
        f.write_str(&pairs.join(","))
    }
}

/// How Proxmox shows (and for managed system types sets) an interface's IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv4Config {
    /// `dhcp`
    Dhcp,
    /// An address with its prefix length, and the gateway.
    Fixed(Ipv4Net, Option<Ipv4Addr>),
    /// Nothing.
    Manual,
}

/// How Proxmox shows an interface's IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6Config {
    /// Router advertisements.
    Auto,
    /// An address with its prefix length, and the gateway.
    Fixed(Ipv6Net, Option<Ipv6Addr>),
    /// Nothing.
    Manual,
}

/// A container's `net[n]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkInterface {
    /// The name inside the guest.
    pub name: String,
    /// The bridge it is plugged into.
    pub bridge: BridgeName,
    /// IPv4.
    pub ipv4: Ipv4Config,
    /// IPv6.
    pub ipv6: Ipv6Config,
    /// Whether Proxmox's firewall is put before it.
    pub firewall: bool,
}

impl fmt::Display for NetworkInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An interface name is made by us from letters and digits; anything else is dropped rather than let it add a key.
        let name: String = self.name.chars().filter(char::is_ascii_alphanumeric).collect();
        write!(f, "name={name},bridge={},firewall={}", self.bridge, u8::from(self.firewall))?;
        match self.ipv4 {
            Ipv4Config::Dhcp => f.write_str(",ip=dhcp")?,
            Ipv4Config::Fixed(net, gateway) => {
                write!(f, ",ip={net}")?;
                if let Some(gateway) = gateway {
                    write!(f, ",gw={gateway}")?;
                }
            }
            Ipv4Config::Manual => {}
        }
        match self.ipv6 {
            Ipv6Config::Auto => f.write_str(",ip6=auto")?,
            Ipv6Config::Fixed(net, gateway) => {
                write!(f, ",ip6={net}")?;
                if let Some(gateway) = gateway {
                    write!(f, ",gw6={gateway}")?;
                }
            }
            Ipv6Config::Manual => {}
        }
        f.write_str(",type=veth")
    }
}

impl FromStr for NetworkInterface {
    type Err = PropertyError;

    /// Reads the parts that this type has; others (`hwaddr`, `tag` ...) are passed over.
    fn from_str(text: &str) -> Result<Self, PropertyError> {
        let invalid = || PropertyError(shown(text));
        let parts = Properties::parse(text, "name");
        let ipv4 = match parts.value("ip") {
            None | Some("manual") => Ipv4Config::Manual,
            Some("dhcp") => Ipv4Config::Dhcp,
            Some(net) => {
                let gateway = parts.value("gw").map(str::parse).transpose().map_err(|_| invalid())?;
                Ipv4Config::Fixed(net.parse().map_err(|_| invalid())?, gateway)
            }
        };
        let ipv6 = match parts.value("ip6") {
            None | Some("manual" | "dhcp") => Ipv6Config::Manual,
            Some("auto") => Ipv6Config::Auto,
            Some(net) => {
                let gateway = parts.value("gw6").map(str::parse).transpose().map_err(|_| invalid())?;
                Ipv6Config::Fixed(net.parse().map_err(|_| invalid())?, gateway)
            }
        };
        Ok(Self {
            name: parts.value("name").ok_or_else(invalid)?.to_owned(),
            bridge: parts.value("bridge").ok_or_else(invalid)?.parse().map_err(|_| invalid())?,
            ipv4,
            ipv6,
            firewall: parts.value("firewall") == Some("1"),
        })
    }
}

/// A container's `dev[n]`: a device of the host passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// `/dev/net/tun`, usable by the guest's root (mode 0660, owner 0:0, Proxmox's defaults).
    Tun,
}

impl Device {
    /// Where the TUN device is, on a host and in a guest.
    pub const TUN_PATH: &str = "/dev/net/tun";
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tun => f.write_str(Self::TUN_PATH),
        }
    }
}

/// A new root volume: `STORAGE:SIZE_IN_GIB`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootVolume {
    /// Where.
    pub storage: StorageId,
    /// How large, in MiB.
    pub mebibytes: u32,
}

impl fmt::Display for RootVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Proxmox takes fractions of a GiB; dividing by a power of two prints without rounding.
        write!(f, "{}:{}", self.storage, f64::from(self.mebibytes) / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_written_and_read_back() {
        let fixed = NetworkInterface {
            name: "eth0".to_owned(),
            bridge: "vmbr0".parse().unwrap(),
            ipv4: Ipv4Config::Fixed("192.168.1.5/24".parse().unwrap(), Some("192.168.1.1".parse().unwrap())),
            ipv6: Ipv6Config::Auto,
            firewall: false,
        };
        assert_eq!(fixed.to_string(), "name=eth0,bridge=vmbr0,firewall=0,ip=192.168.1.5/24,gw=192.168.1.1,ip6=auto,type=veth");
        assert_eq!(fixed.to_string().parse::<NetworkInterface>().unwrap(), fixed);
        let dhcp = NetworkInterface { ipv4: Ipv4Config::Dhcp, ipv6: Ipv6Config::Manual, ..fixed };
        assert_eq!(dhcp.to_string(), "name=eth0,bridge=vmbr0,firewall=0,ip=dhcp,type=veth");
        assert_eq!(dhcp.to_string().parse::<NetworkInterface>().unwrap(), dhcp);
    }

    #[test]
    fn a_property_string_is_changed_in_place_and_the_rest_stays() {
        let text = "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:F8:26:A8,ip=dhcp,tag=5,type=veth";
        let mut net = Properties::parse(text, "name");
        assert_eq!(net.to_string(), text);
        net.set("bridge", "vmbr1");
        net.set_or_remove("ip", Some("10.0.0.5/24".to_owned()));
        net.set_or_remove("gw", Some("10.0.0.1".to_owned()));
        net.set_or_remove("tag", None);
        assert_eq!(net.to_string(), "name=eth0,bridge=vmbr1,hwaddr=BC:24:11:F8:26:A8,ip=10.0.0.5/24,type=veth,gw=10.0.0.1");
    }

    #[test]
    fn a_name_cannot_add_a_key() {
        let sly = NetworkInterface {
            name: "eth0,hwaddr=00:00:00:00:00:01".to_owned(),
            bridge: "vmbr0".parse().unwrap(),
            ipv4: Ipv4Config::Manual,
            ipv6: Ipv6Config::Manual,
            firewall: false,
        };
        assert_eq!(Properties::parse(&sly.to_string(), "name").value("hwaddr"), None);
    }

    #[test]
    fn recorded_interfaces_are_read() {
        let net: NetworkInterface = "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:F8:26:A8,ip=10.99.0.123/24,type=veth".parse().unwrap();
        assert_eq!((net.bridge.as_str(), net.ipv4), ("vmbr0", Ipv4Config::Fixed("10.99.0.123/24".parse().unwrap(), None)));
        assert!("bridge=vmbr0".parse::<NetworkInterface>().is_err());
    }

    #[test]
    fn sizes_are_fractions_of_a_gibibyte() {
        for (mebibytes, text) in [(256, "local:0.25"), (128, "local:0.125"), (1024, "local:1"), (64, "local:0.0625")] {
            assert_eq!(RootVolume { storage: "local".parse().unwrap(), mebibytes }.to_string(), text);
        }
    }
}
