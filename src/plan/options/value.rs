//! Single values: addresses, networks, URLs, names, keys, each refused under its option's name.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::OptionError;
use crate::ident::{Secret, Via};

/// An address with its prefix length that a host may have.
pub(super) trait HostNet: FromStr {
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

pub(super) fn host_address<T: HostNet>(option: &'static str, text: &str, rule: &str) -> Result<T, OptionError> {
    let net: T = one(option, text, rule)?;
    if net.is_host() { Ok(net) } else { Err(OptionError::new(option, format!("`{}` is no address a host can have", shown(text)))) }
}

pub(super) fn address<T: FromStr>(option: &'static str, text: Option<&str>) -> Result<Option<T>, OptionError> {
    text.map(|text| one(option, text, "an IP address of the right family")).transpose()
}

pub(super) fn one<T: FromStr>(option: &'static str, text: &str, rule: &str) -> Result<T, OptionError> {
    text.parse().map_err(|_| OptionError::new(option, format!("it is {rule}, not `{}`", shown(text))))
}

pub(super) fn parsed<T: FromStr>(option: &'static str, text: Option<&str>) -> Result<Option<T>, OptionError>
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
            _ if Via::is_too_wide(&net) => Err(OptionError::new(
                option,
                format!("{net} is wider than a site; `pvemesh node via` prints the prefix of a site's network"),
            )),
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

/// The name or address under which clients reach a relay.
///
/// # Errors
/// If it is neither.
pub fn relay_address(option: &'static str, text: &str) -> Result<String, OptionError> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let fits = bare.parse::<IpAddr>().is_ok() || is_dns_name(bare);
    if fits { Ok(bare.to_owned()) } else { Err(OptionError::new(option, format!("it is a name or an IP address, not `{}`", shown(text)))) }
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
