//! DNS of the mesh: what an admin may set, and what clients are told of it.
//!
//! Clients answer for names of nodes and for extra records themselves; the coordinator serves no DNS.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::session::Part;
use super::{CommandError, Server};
use crate::ident::{NodeName, is_mesh_address, reverse_name};
use crate::wire::admin::{DnsSettings, NameServer};
use crate::wire::control::{DnsConfig, DnsRecord, Resolver};

/// Most entries of each list: every client holds all of them.
const MAX_ENTRIES: usize = 256;
/// In front of a record's name.
const BELOW: &str = "*.";
/// Longest name.
const MAX_DOMAIN: usize = 253;
/// Longest URL of a name server.
const MAX_URL: usize = 200;

impl Server {
    /// How names are resolved.
    pub fn dns(&self) -> DnsSettings {
        self.dns.clone()
    }

    /// Changes how names are resolved, and tells all nodes if that makes a difference. Gives the settings as they are kept.
    ///
    /// # Errors
    /// A name or an address is none, a list is too long, a split takes the nodes' own names away, or a new name is a node's.
    pub fn set_dns(&mut self, wanted: &DnsSettings) -> Result<DnsSettings, CommandError> {
        let dns = checked(wanted, &self.settings.base_domain)?;
        let named = |dns: &DnsSettings, name: &String| dns.records.contains_key(name) || dns.aliases.contains_key(name);
        for name in dns.records.keys().chain(dns.aliases.keys()).filter(|name| !named(&self.dns, name)) {
            if let Some(short) = self.node_name(name).filter(|short| self.registry.name_holder(short).is_some()) {
                let text = format!("{name} is the name of the node {short}: choose another one, or rename the node first");
                return Err(CommandError::Conflict(text));
            }
        }
        if self.dns != dns {
            let before = self.dns_config();
            self.dns = dns;
            self.unsaved_dns = true;
            self.aliased = self.alias_records();
            if self.dns_config() != before {
                self.tell_part_to_all(Part::Dns);
            }
        }
        Ok(self.dns.clone())
    }

    /// The name that a node would have to have for this to be its whole name.
    fn node_name(&self, name: &str) -> Option<NodeName> {
        name.strip_suffix(&self.settings.base_domain)?.strip_suffix('.')?.parse().ok()
    }

    /// Whether a record or an alias has the name that a node would have.
    pub(super) fn is_recorded(&self, name: &NodeName) -> bool {
        let whole = format!("{name}.{}", self.settings.base_domain);
        self.dns.records.contains_key(&whole) || self.dns.aliases.contains_key(&whole)
    }

    /// What the aliases stand for: nothing, if a node or a record is not there (any more).
    pub(super) fn alias_records(&self) -> Vec<DnsRecord> {
        let addresses = |target: &str| -> Vec<IpAddr> {
            let recorded = self.dns.records.get(target).or_else(|| self.dns.records.get(&complete(target, &self.settings.base_domain)));
            if let Some(addresses) = recorded {
                return addresses.clone();
            }
            let holder = target.parse::<NodeName>().ok().and_then(|name| self.registry.name_holder(&name));
            holder.and_then(|id| self.registry.node(id)).map_or_else(Vec::new, |node| vec![node.v4.into(), node.v6.into()])
        };
        let records = |(name, target): (&String, &String)| {
            let name = name.clone();
            addresses(target).into_iter().map(move |address| record(&name, &address))
        };
        self.dns.aliases.iter().flat_map(records).collect()
    }

    /// Tells all nodes if a node that has aliases has come, gone, or got another name or address.
    pub(super) fn renew_aliases(&mut self) {
        if self.dns.aliases.is_empty() {
            return;
        }
        let aliased = self.alias_records();
        if self.aliased != aliased {
            self.aliased = aliased;
            self.tell_part_to_all(Part::Dns);
        }
    }

    /// The settings as clients are told.
    pub(super) fn dns_config(&self) -> DnsConfig {
        let dns = &self.dns;
        let mut routes: BTreeMap<String, Vec<Resolver>> =
            dns.split.iter().map(|(domain, servers)| (domain.clone(), resolvers(servers))).collect();
        let base = &self.settings.base_domain;
        for name in dns.records.keys().chain(dns.aliases.keys()) {
            // Older clients ask the system for a record's name unless a route brings the question to them.
            let name = name.strip_prefix(BELOW).unwrap_or(name);
            let covered = (dns.magic && within(name, base)) || dns.split.keys().any(|domain| within(name, domain));
            if !covered {
                routes.insert(name.to_owned(), Vec::new());
            }
        }
        // Addresses backwards, too: the systems of some clients ask them only what a route brings there.
        for name in dns.records.values().flatten().filter(|address| is_local(**address)).map(|address| reverse_name(*address)) {
            let name = name.trim_end_matches('.');
            if !dns.split.keys().any(|domain| within(name, domain)) {
                routes.insert(name.to_owned(), Vec::new());
            }
        }
        let (primary, fallback) = if dns.override_local { (&dns.nameservers[..], &[][..]) } else { (&[][..], &dns.nameservers[..]) };
        let records = dns.records.iter().flat_map(|(name, all)| all.iter().map(move |address| record(name, address)));
        DnsConfig {
            resolvers: resolvers(primary),
            fallback_resolvers: resolvers(fallback),
            routes,
            domains: dns.magic.then(|| base.clone()).into_iter().chain(dns.search.iter().cloned()).collect(),
            proxied: dns.magic,
            extra_records: records.chain(self.alias_records()).collect(),
            ..DnsConfig::default()
        }
    }
}

/// Whether an address is in a network of somebody's own (RFC 1918, RFC 4193), so that the public DNS knows no name of it. Those of the mesh go
/// without saying.
fn is_local(address: IpAddr) -> bool {
    let private = match address {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    private && !is_mesh_address(address)
}

/// As clients want it: the type follows from the address.
fn record(name: &str, address: &IpAddr) -> DnsRecord {
    DnsRecord { name: name.to_owned(), r#type: String::new(), value: address.to_string() }
}

fn resolvers(servers: &[NameServer]) -> Vec<Resolver> {
    let resolver =
        |server: &NameServer| Resolver { addr: server.address.clone(), use_with_exit_node: server.with_exit_node, ..Resolver::default() };
    servers.iter().map(resolver).collect()
}

/// Whether a name is a domain or lies in it.
fn within(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The settings in the form that is kept: names in lower case without a dot at their end, nothing twice.
fn checked(wanted: &DnsSettings, base: &str) -> Result<DnsSettings, CommandError> {
    let invalid = |text: String| CommandError::Invalid(text);
    let records: usize = wanted.records.values().map(Vec::len).sum();
    let lengths = [wanted.nameservers.len(), wanted.split.len(), wanted.search.len(), records, wanted.aliases.len()];
    if lengths.into_iter().chain(wanted.split.values().map(Vec::len)).any(|length| length > MAX_ENTRIES) {
        return Err(invalid(format!("each list of the DNS settings has at most {MAX_ENTRIES} entries")));
    }
    let mut kept = DnsSettings { magic: wanted.magic, override_local: wanted.override_local, ..DnsSettings::default() };
    kept.nameservers = servers(&wanted.nameservers)?;
    if kept.override_local && kept.nameservers.is_empty() {
        return Err(invalid("without name servers there is nothing to replace each system's own with: add one first".to_owned()));
    }
    for (domain, list) in &wanted.split {
        let domain = name_of(domain)?;
        if within(base, &domain) {
            return Err(invalid(format!("the nodes' own names lie in {domain}: name servers for it would take them away")));
        }
        kept.split.insert(domain, servers(list)?);
    }
    for domain in &wanted.search {
        let domain = name_of(domain)?;
        if domain != base && !kept.search.contains(&domain) {
            kept.search.push(domain);
        }
    }
    for (name, addresses) in &wanted.records {
        let name = record_name(name, base)?;
        let list = kept.records.entry(name).or_default();
        for address in addresses {
            if !list.contains(address) {
                list.push(*address);
            }
        }
    }
    kept.records.retain(|_, addresses| !addresses.is_empty());
    for (name, target) in &wanted.aliases {
        let (name, target) = (record_name(name, base)?, name_of(target)?);
        let target = target.strip_suffix(base).and_then(|short| short.strip_suffix('.')).unwrap_or(&target).to_owned();
        if kept.records.contains_key(&name) {
            return Err(invalid(format!("{name} has addresses of its own; it cannot stand for {target} as well")));
        }
        let whole = complete(&target, base);
        if name == target || name == whole || [&target, &whole].into_iter().any(|target| wanted.aliases.contains_key(target)) {
            return Err(invalid(format!("{name} would stand for another alias: name the node or the record")));
        }
        kept.aliases.insert(name, target);
    }
    Ok(kept)
}

fn servers(wanted: &[NameServer]) -> Result<Vec<NameServer>, CommandError> {
    let mut kept: Vec<NameServer> = Vec::new();
    for server in wanted {
        let address = address_of(&server.address).ok_or_else(|| {
            let shown: String = server.address.escape_default().take(80).collect();
            CommandError::Invalid(format!("{shown} is no name server: give an address, ADDRESS:PORT or an https:// URL"))
        })?;
        match kept.iter_mut().find(|other| other.address == address) {
            Some(other) => other.with_exit_node = server.with_exit_node,
            None => kept.push(NameServer { address, with_exit_node: server.with_exit_node }),
        }
    }
    Ok(kept)
}

fn address_of(text: &str) -> Option<String> {
    let url = |rest: &str| {
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        let plain = rest.len() <= MAX_URL && rest.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'<' | b'>'));
        plain && !host.is_empty()
    };
    if let Some(rest) = text.strip_prefix("https://") {
        return url(rest).then(|| text.to_owned());
    }
    let address = text.parse::<IpAddr>().map(|ip| ip.to_string());
    address.or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.to_string())).ok()
}

/// The name of a record as it is kept: `*.` in front stands for every name below, and a name of one label lies beside the nodes'.
fn record_name(text: &str, base: &str) -> Result<String, CommandError> {
    match text.strip_prefix(BELOW) {
        Some(domain) => name_of(domain).map(|domain| format!("{BELOW}{domain}")),
        None => name_of(&complete(&name_of(text)?, base)),
    }
}

/// A name with the nodes' domain, if it has none.
fn complete(name: &str, base: &str) -> String {
    if name.contains('.') { name.to_owned() } else { format!("{name}.{base}") }
}

/// A domain name as it is kept.
fn name_of(text: &str) -> Result<String, CommandError> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| label.parse::<NodeName>().is_ok() || label.strip_prefix('_').is_some_and(|l| l.parse::<NodeName>().is_ok());
    if name.len() > MAX_DOMAIN || !name.split('.').all(label) {
        let shown: String = text.escape_default().take(80).collect();
        return Err(CommandError::Invalid(format!("{shown} is not a domain name")));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_lies_in_a_domain_by_whole_labels() {
        assert!(within("a.b.c", "b.c") && within("b.c", "b.c"));
        assert!(!within("ab.c", "b.c") && !within("c", "b.c"));
    }

    #[test]
    fn name_servers_are_addresses_sockets_or_https_urls() {
        for good in ["192.168.1.1", "fd00::1", "[fd00::1]:5353", "10.0.0.1:54", "https://dns.nextdns.io/abc?device=x"] {
            assert_eq!(address_of(good).as_deref(), Some(good));
        }
        for bad in ["", "dns.home", "https://", "https:///x", "https://a\"b", "http://x", "tls://1.1.1.1", "1.1.1.1:x"] {
            assert_eq!(address_of(bad), None, "{bad}");
        }
    }
}
