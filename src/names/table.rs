//! What names mean.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ident::{Via, is_mesh_address, reversed};

const PORT: u16 = 53;
/// Names are not longer (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A server to ask.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// By DNS.
    At(SocketAddr),
    /// By DNS over HTTPS (RFC 8484), or over HTTP to a node of the mesh.
    Url(String),
}

impl Upstream {
    /// As the network map writes it: an address, an address with a port, or a URL. `None` for what is none of these.
    pub fn read(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self::At(SocketAddr::new(ip, PORT)));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(Self::At(address));
        }
        (text.starts_with("https://") || text.starts_with("http://")).then(|| Self::Url(text.to_owned()))
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(address) if address.port() == PORT => address.ip().fmt(f),
            Self::At(address) => address.fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Its whole name.
    pub name: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// It answers for every name below its own, too.
    pub subdomains: bool,
}

/// What a table is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// What the nodes' names end in; empty if they are not to be resolved.
    pub suffix: String,
    /// The nodes.
    pub hosts: Vec<Host>,
    /// Further names; `*.` in front stands for every name below.
    pub extra: Vec<(String, IpAddr)>,
    /// Servers by suffix; none means that what is not known here does not exist.
    pub routes: BTreeMap<String, Vec<Upstream>>,
    /// Servers for everything else.
    pub resolvers: Vec<Upstream>,
    /// Servers for a machine that has none of its own.
    pub last_resort: Vec<Upstream>,
    /// IPv6 addresses of nodes that have IPv4 ones are told, too.
    pub both_families: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// The name of an address.
    Ptr,
    /// Whatever there is.
    Any,
    /// What only a name server of a real zone has: its servers, its start of authority, a copy of it.
    Zone,
    /// Anything else.
    Other,
}

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'a> {
    /// Addresses; never none.
    Addresses(Vec<IpAddr>),
    /// A name, without its final dot.
    Name(&'a str),
    /// The name is known, and has nothing of this kind.
    NoData,
    /// It has an IPv6 address that is not told because it has an IPv4 one.
    Hidden,
    /// The name would be known if it existed.
    NoSuchName,
    /// Zones are not given away.
    NotImplemented,
    /// Others are to be asked; the machine's own servers if there are none here.
    Elsewhere(&'a [Upstream]),
}

/// Everything that is known of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    suffix: String,
    names: HashMap<String, Vec<IpAddr>>,
    /// Every name below these has the addresses.
    below: HashMap<String, Vec<IpAddr>>,
    reverse: HashMap<IpAddr, String>,
    routes: BTreeMap<String, Vec<Upstream>>,
    resolvers: Vec<Upstream>,
    both_families: bool,
}

/// In lower case, without the final dot.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The name itself, then what it is below of, ever shorter.
fn ancestors(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, rest)| rest))
}

impl Table {
    /// From what the map says.
    pub fn new(records: Records) -> Self {
        let mut table = Self {
            suffix: plain(&records.suffix),
            routes: records.routes.into_iter().map(|(suffix, servers)| (plain(suffix.trim_start_matches('.')), servers)).collect(),
            resolvers: records.resolvers,
            both_families: records.both_families,
            ..Self::default()
        };
        for host in records.hosts.into_iter().filter(|host| !host.name.is_empty()) {
            let name = plain(&host.name);
            for address in &host.addresses {
                table.reverse.entry(*address).or_insert_with(|| name.clone());
            }
            if host.subdomains {
                table.below.insert(name.clone(), host.addresses.clone());
            }
            table.names.entry(name).or_insert(host.addresses);
        }
        let mut recorded: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for (name, address) in records.extra {
            let name = plain(&name);
            let (place, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut table.below, parent.to_owned()),
                // A node's name is the node's.
                None if table.names.contains_key(&name) => continue,
                None => {
                    // An address that has several names has the first one backwards, a node's the node's.
                    table.reverse.entry(address).or_insert_with(|| name.clone());
                    (&mut recorded, name)
                }
            };
            let addresses: &mut Vec<IpAddr> = place.entry(name).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        table.names.extend(recorded);
        table
    }

    /// Whether nothing at all is answered from here.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.below.is_empty()
    }

    /// What the nodes' names end in.
    pub fn suffix(&self) -> &str {
        &self.suffix
    }

    /// Looks a whole name up, with or without its final dot.
    pub fn look_up(&self, name: &str, want: Want) -> Found<'_> {
        let name = plain(name);
        if name.is_empty() {
            // The root is somebody else's.
            return Found::Elsewhere(&self.resolvers);
        }
        // What is no name is nobody's. One with characters that are written as several (RFC 1035, section 5.1) has been measured when it was read.
        let is_short = |name: &str| name.len() <= MAX_NAME && name.split('.').all(|label| !label.is_empty() && label.len() <= MAX_LABEL);
        if !name.contains('\\') && !is_short(&name) {
            return Found::NoSuchName;
        }
        if name == "onion" || name.ends_with(".onion") {
            return Found::NoSuchName;
        }
        if let Some(address) = self.via(&name) {
            return if matches!(want, Want::Aaaa | Want::Any) { Found::Addresses(vec![address.into()]) } else { Found::NoData };
        }
        let below = || ancestors(&name).skip(1).find_map(|parent| self.below.get(parent));
        if let Some(addresses) = self.names.get(&name).or_else(below) {
            return self.of_kind(addresses, want);
        }
        if let Some(address) = reversed(&name) {
            match self.reverse.get(&address) {
                Some(_) if !matches!(want, Want::Ptr | Want::Any) => return Found::NoData,
                Some(known) => return Found::Name(known),
                None if is_mesh_address(address) => return Found::NoSuchName,
                None => {}
            }
        }
        self.elsewhere(&name)
    }

    fn of_kind(&self, addresses: &[IpAddr], want: Want) -> Found<'_> {
        let has_v4 = addresses.iter().any(IpAddr::is_ipv4);
        let hidden = has_v4 && !self.both_families;
        let found: Vec<IpAddr> = match want {
            Want::A => addresses.iter().copied().filter(IpAddr::is_ipv4).collect(),
            Want::Aaaa => addresses.iter().copied().filter(|ip| ip.is_ipv6() && !hidden).collect(),
            Want::Any => addresses.first().copied().into_iter().collect(),
            Want::Zone => return Found::NotImplemented,
            Want::Ptr | Want::Other => Vec::new(),
        };
        match found.is_empty() {
            false => Found::Addresses(found),
            true if want == Want::Aaaa && hidden && addresses.iter().any(IpAddr::is_ipv6) => Found::Hidden,
            true => Found::NoData,
        }
    }

    /// Nothing here has the name: whose business it is. The longest suffix decides.
    fn elsewhere(&self, name: &str) -> Found<'_> {
        for parent in ancestors(name) {
            match self.routes.get(parent) {
                Some(servers) if servers.is_empty() => return Found::NoSuchName,
                Some(servers) => return Found::Elsewhere(servers),
                None if parent == self.suffix => return Found::NoSuchName,
                None => {}
            }
        }
        Found::Elsewhere(&self.resolvers)
    }

    /// The address of `a-b-c-d-via-N`, alone or below the suffix: a machine with that IPv4 address at site N.
    fn via(&self, name: &str) -> Option<Ipv6Addr> {
        let label = match name.split_once('.') {
            None => name,
            Some((label, rest)) if rest == self.suffix => label,
            Some(_) => return None,
        };
        let (octets, site) = label.split_once("-via-")?;
        let address: Ipv4Addr = octets.replace('-', ".").parse().ok()?;
        let site = match site.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok()?,
            None => site.parse::<u32>().ok()?,
        };
        Some(Via::address(site, address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn table() -> Table {
        let host = |name: &str, addresses: &[&str], subdomains| Host {
            name: name.to_owned(),
            addresses: addresses.iter().map(|a| ip(a)).collect(),
            subdomains,
        };
        Table::new(Records {
            suffix: "mesh.test".to_owned(),
            hosts: vec![
                host("nas.mesh.test.", &["100.64.0.1", "fd7a:115c:a1e0::1"], false),
                host("six.mesh.test.", &["fd7a:115c:a1e0::2"], false),
                host("web.mesh.test.", &["100.64.0.4"], true),
            ],
            extra: vec![
                ("printer.lan.".to_owned(), ip("192.168.1.9")),
                ("*.apps.lan".to_owned(), ip("192.168.1.8")),
                ("nas.mesh.test".to_owned(), ip("6.6.6.6")),
            ],
            routes: [("corp.test".to_owned(), vec![Upstream::read("10.0.0.53").unwrap()]), ("secret.corp.test".to_owned(), vec![])].into(),
            resolvers: vec![Upstream::read("9.9.9.9:5353").unwrap()],
            last_resort: Vec::new(),
            both_families: false,
        })
    }

    #[test]
    fn nodes_and_records_are_found_by_their_whole_names_in_any_case() {
        let table = table();
        assert_eq!(
            table.look_up("NAS.mesh.test.", Want::A),
            Found::Addresses(vec![ip("100.64.0.1")]),
            "a record does not take a node's name"
        );
        assert_eq!(table.look_up("nas.mesh.test", Want::Aaaa), Found::Hidden);
        assert_eq!(table.look_up("six.mesh.test", Want::Aaaa), Found::Addresses(vec![ip("fd7a:115c:a1e0::2")]));
        assert_eq!(table.look_up("six.mesh.test", Want::A), Found::NoData);
        assert_eq!(table.look_up("nas.mesh.test", Want::Other), Found::NoData);
        assert_eq!(table.look_up("nas.mesh.test", Want::Zone), Found::NotImplemented);
        assert_eq!(table.look_up("printer.lan", Want::A), Found::Addresses(vec![ip("192.168.1.9")]));
        let both = Table { both_families: true, ..table.clone() };
        assert_eq!(both.look_up("nas.mesh.test", Want::Aaaa), Found::Addresses(vec![ip("fd7a:115c:a1e0::1")]));
    }

    #[test]
    fn names_below_a_node_or_a_star_have_its_addresses_and_others_do_not() {
        let table = table();
        assert_eq!(table.look_up("a.b.web.mesh.test", Want::A), Found::Addresses(vec![ip("100.64.0.4")]));
        assert_eq!(table.look_up("x.nas.mesh.test", Want::A), Found::NoSuchName);
        assert_eq!(table.look_up("wiki.apps.lan", Want::A), Found::Addresses(vec![ip("192.168.1.8")]));
        assert!(matches!(table.look_up("apps.lan", Want::A), Found::Elsewhere(_)), "a star is not its parent");
    }

    #[test]
    fn what_is_unknown_is_nobodys_or_somebodys_by_its_longest_suffix() {
        let table = table();
        let ask = |text: &str| vec![Upstream::read(text).unwrap()];
        assert_eq!(table.look_up("ghost.mesh.test", Want::A), Found::NoSuchName);
        assert_eq!(table.look_up("mail.corp.test", Want::A), Found::Elsewhere(&ask("10.0.0.53")));
        assert_eq!(table.look_up("x.secret.corp.test", Want::A), Found::NoSuchName);
        assert_eq!(table.look_up("example.com", Want::Other), Found::Elsewhere(&ask("9.9.9.9:5353")));
        assert_eq!(table.look_up("notcorp.test", Want::A), Found::Elsewhere(&ask("9.9.9.9:5353")));
        assert_eq!(table.look_up("hidden.onion", Want::A), Found::NoSuchName);
        assert_eq!(table.look_up(".", Want::Zone), Found::Elsewhere(&ask("9.9.9.9:5353")));
        assert_eq!(table.look_up(&"a.".repeat(200), Want::A), Found::NoSuchName);
    }

    #[test]
    fn addresses_of_the_mesh_have_names_here_and_nowhere_else() {
        let table = table();
        assert_eq!(table.look_up("1.0.64.100.in-addr.arpa", Want::Ptr), Found::Name("nas.mesh.test"));
        assert_eq!(table.look_up("9.9.64.100.in-addr.arpa", Want::Ptr), Found::NoSuchName);
        assert!(matches!(table.look_up("8.8.8.8.in-addr.arpa", Want::Ptr), Found::Elsewhere(_)));
        assert_eq!(table.look_up("9.1.168.192.in-addr.arpa", Want::Ptr), Found::Name("printer.lan"), "a record's, too");
        assert!(matches!(table.look_up("8.1.168.192.in-addr.arpa", Want::Ptr), Found::Elsewhere(_)), "names below a star are many");
        assert_eq!(table.look_up("1.0.64.100.in-addr.arpa", Want::A), Found::NoData);
    }

    #[test]
    fn a_machine_at_another_site_is_found_by_its_ipv4_address_and_the_site() {
        let table = table();
        let expected = Found::Addresses(vec![ip("fd7a:115c:a1e0:b1a:0:7:c0a8:105")]);
        assert_eq!(table.look_up("192-168-1-5-via-7", Want::Aaaa), expected);
        assert_eq!(table.look_up("192-168-1-5-via-0x7.mesh.test", Want::Aaaa), expected);
        assert_eq!(table.look_up("192-168-1-5-via-7", Want::A), Found::NoData);
        assert!(!matches!(table.look_up("300-168-1-5-via-7.mesh.test", Want::Aaaa), Found::Addresses(_)));
        assert!(matches!(table.look_up("192-168-1-5-via-7.example.com", Want::Aaaa), Found::Elsewhere(_)));
    }

    #[test]
    fn servers_are_read_as_the_map_writes_them() {
        assert_eq!(Upstream::read("9.9.9.9"), Some(Upstream::At("9.9.9.9:53".parse().unwrap())));
        assert_eq!(Upstream::read("[2620:fe::fe]:5353"), Some(Upstream::At("[2620:fe::fe]:5353".parse().unwrap())));
        assert_eq!(Upstream::read("https://dns.example/q"), Some(Upstream::Url("https://dns.example/q".to_owned())));
        assert_eq!(Upstream::read("tls://9.9.9.9"), None);
    }
}
