//! `pvemesh coordinator dns`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::table::joined;
use super::{Place, failure};
use crate::cli::{Exit, Failure, Output};
use crate::wire::admin::{DnsSettings, NameServer};

/// Names: how they are resolved on all nodes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Dns {
    /// Show the settings.
    Show(Place),
    /// Turn things on or off.
    Set {
        /// Nodes answer for each other's names (MagicDNS).
        #[arg(long, value_name = "on|off", value_parser = switch)]
        magic: Option<bool>,
        /// The name servers replace each system's own; off: they are used only where a system cannot keep its own as well.
        #[arg(long = "override", value_name = "on|off", value_parser = switch)]
        override_local: Option<bool>,
        #[command(flatten)]
        place: Place,
    },
    /// Name servers for everything but the mesh's own names.
    #[command(subcommand)]
    Nameservers(Servers),
    /// Name servers for one domain, such as the LAN's.
    #[command(subcommand)]
    Split(Split),
    /// Domains searched for short names.
    #[command(subcommand)]
    Search(Search),
    /// Names of machines that are no nodes: a NAS, a printer, a guest.
    #[command(subcommand, visible_alias = "hosts")]
    Records(Records),
    /// Names that stand for nodes.
    #[command(subcommand)]
    Aliases(Aliases),
}

/// Name servers for everything but the mesh's own names.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Servers {
    /// Add name servers.
    Add {
        /// Addresses, ADDRESS:PORT, or https:// URLs.
        #[arg(value_name = "SERVER", required = true)]
        servers: Vec<String>,
        /// Nodes go on using them while their internet traffic goes through an exit node.
        #[arg(long)]
        with_exit_node: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Remove name servers.
    Remove {
        /// Those to remove.
        #[arg(value_name = "SERVER", required = true)]
        servers: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
}

/// Name servers for one domain.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Split {
    /// Let name servers answer for a domain; without any, nodes answer from the records alone.
    Add {
        /// The domain, such as home.lan or 1.168.192.in-addr.arpa.
        domain: String,
        /// Addresses, ADDRESS:PORT, or https:// URLs.
        #[arg(value_name = "SERVER")]
        servers: Vec<String>,
        /// Nodes go on using them while their internet traffic goes through an exit node.
        #[arg(long)]
        with_exit_node: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Remove a domain, or some of its name servers.
    Remove {
        /// The domain.
        domain: String,
        /// Those to remove; none named means the whole domain.
        #[arg(value_name = "SERVER")]
        servers: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
}

/// Domains searched for short names.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Search {
    /// Add domains.
    Add {
        /// Domains, after the mesh's own and those there are.
        #[arg(value_name = "DOMAIN", required = true)]
        domains: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Remove domains.
    Remove {
        /// Those to remove.
        #[arg(value_name = "DOMAIN", required = true)]
        domains: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
}

/// Names of machines that are no nodes: a NAS, a printer, a guest.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Records {
    /// List the names and their addresses.
    List(Place),
    /// Give a name addresses, in addition to those it has.
    Add {
        /// The full name, such as nas.home.lan, or a short one, which lies beside the nodes' names; `*.` in front stands for every name below.
        name: String,
        /// IPv4 or IPv6 addresses.
        #[arg(value_name = "ADDRESS", required = true)]
        addresses: Vec<IpAddr>,
        #[command(flatten)]
        place: Place,
    },
    /// Remove a name, or some of its addresses.
    Remove {
        /// The full name, or a short one.
        name: String,
        /// Those to remove; none named means the whole name.
        #[arg(value_name = "ADDRESS")]
        addresses: Vec<IpAddr>,
        #[command(flatten)]
        place: Place,
    },
}

/// Names that stand for a node, or for a name of `records`, whatever its addresses are.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Aliases {
    /// Let a name stand for a node; one that it stood for before is replaced.
    Add {
        /// The full name, such as git.home.lan, or a short one; `*.` in front stands for every name below.
        name: String,
        /// The node's name, or a name of the records.
        #[arg(value_name = "NODE")]
        target: String,
        #[command(flatten)]
        place: Place,
    },
    /// Remove names.
    Remove {
        /// The full names, or short ones.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
}

pub(super) fn run(command: Dns, output: &Output) -> Result<(), Failure> {
    match command {
        Dns::Show(place) => {
            let dns = place.ask("show the DNS settings", async |admin| admin.dns().await)?;
            output.result(&dns, shown(&dns));
            Ok(())
        }
        Dns::Set { magic: None, override_local: None, .. } => {
            let next = "give --magic on|off or --override on|off; --help shows more";
            Err(Failure::new("change the DNS settings", "nothing to change is named", next).exit(Exit::Usage))
        }
        Dns::Set { magic, override_local, place } => edit(&place, output, |dns| {
            dns.magic = magic.unwrap_or(dns.magic);
            dns.override_local = override_local.unwrap_or(dns.override_local);
            Ok(())
        }),
        Dns::Nameservers(Servers::Add { servers, with_exit_node, place }) => {
            edit(&place, output, |dns| add_servers(&mut dns.nameservers, servers, with_exit_node))
        }
        Dns::Nameservers(Servers::Remove { servers, place }) => edit(&place, output, |dns| {
            remove(&mut dns.nameservers, &servers, |server| server.address.clone())?;
            // Nothing is left to replace the systems' own with.
            dns.override_local &= !dns.nameservers.is_empty();
            Ok(())
        }),
        Dns::Split(Split::Add { domain, servers, with_exit_node, place }) => {
            edit(&place, output, |dns| add_servers(dns.split.entry(plain(&domain)).or_default(), servers, with_exit_node))
        }
        Dns::Split(Split::Remove { domain, servers, place }) => edit(&place, output, |dns| {
            let domain = plain(&domain);
            let list = dns.split.get_mut(&domain).ok_or_else(|| missing(&domain))?;
            if !servers.is_empty() {
                remove(list, &servers, |server| server.address.clone())?;
            }
            // Without servers the domain would be answered from the records alone, which is not what removing asks for.
            if servers.is_empty() || list.is_empty() {
                dns.split.remove(&domain);
            }
            Ok(())
        }),
        Dns::Search(Search::Add { domains, place }) => edit(&place, output, |dns| {
            dns.search.extend(domains);
            Ok(())
        }),
        Dns::Search(Search::Remove { domains, place }) => {
            let domains: Vec<String> = domains.iter().map(|domain| plain(domain)).collect();
            edit(&place, output, |dns| remove(&mut dns.search, &domains, String::clone))
        }
        Dns::Records(Records::List(place)) => {
            let records = place.ask("list the records", async |admin| admin.dns().await)?.records;
            output.result(
                &records,
                records.iter().map(|(name, addresses)| format!("{name}  {}", joined(addresses))).collect::<Vec<_>>().join("\n"),
            );
            Ok(())
        }
        Dns::Records(Records::Add { name, addresses, place }) => edit(&place, output, |dns| {
            dns.records.entry(plain(&name)).or_default().extend(addresses);
            Ok(())
        }),
        Dns::Records(Records::Remove { name, addresses, place }) => edit_named(&place, output, |dns, base| {
            let name = recorded(&dns.records, &name, base);
            let list = dns.records.get_mut(&name).ok_or_else(|| missing(&name))?;
            if addresses.is_empty() {
                list.clear();
                return Ok(());
            }
            let named: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            remove(list, &named, ToString::to_string)
        }),
        Dns::Aliases(Aliases::Add { name, target, place }) => edit_named(&place, output, |dns, base| {
            dns.aliases.insert(recorded(&dns.aliases, &name, base), plain(&target));
            Ok(())
        }),
        Dns::Aliases(Aliases::Remove { names, place }) => edit_named(&place, output, |dns, base| {
            for name in names.iter().map(|name| recorded(&dns.aliases, name, base)).collect::<Vec<_>>() {
                dns.aliases.remove(&name).ok_or_else(|| missing(&name))?;
            }
            Ok(())
        }),
    }
}

/// Reads the settings, changes them, and gives them back.
fn edit(place: &Place, output: &Output, change: impl FnOnce(&mut DnsSettings) -> Result<(), Failure>) -> Result<(), Failure> {
    edit_named(place, output, |dns, _| change(dns))
}

/// The same for who has to know what the nodes' names end in.
fn edit_named(place: &Place, output: &Output, change: impl FnOnce(&mut DnsSettings, &str) -> Result<(), Failure>) -> Result<(), Failure> {
    const TRIED: &str = "change the DNS settings";
    let dns = place.run(TRIED, async |admin| {
        let base = admin.info().await.map_err(|e| failure(TRIED, &e))?.base_domain;
        let mut dns = admin.dns().await.map_err(|e| failure(TRIED, &e))?;
        change(&mut dns, &base)?;
        admin.set_dns(&dns).await.map_err(|e| failure(TRIED, &e))
    })?;
    output.result(&dns, shown(&dns));
    Ok(())
}

fn add_servers(list: &mut Vec<NameServer>, servers: Vec<String>, with_exit_node: bool) -> Result<(), Failure> {
    list.extend(servers.into_iter().map(|address| NameServer { address, with_exit_node }));
    Ok(())
}

/// Removes entries by their text; one that is not there is named.
fn remove<T>(list: &mut Vec<T>, named: &[String], text: impl Fn(&T) -> String) -> Result<(), Failure> {
    if let Some(absent) = named.iter().find(|name| !list.iter().any(|entry| text(entry) == **name)) {
        return Err(missing(absent));
    }
    list.retain(|entry| !named.contains(&text(entry)));
    Ok(())
}

fn missing(what: &str) -> Failure {
    Failure::new("change the DNS settings", format!("{what} is not among them"), "see `pvemesh coordinator dns show`").exit(Exit::Conflict)
}

/// A domain name as the coordinator keeps it.
fn plain(domain: &str) -> String {
    domain.trim_end_matches('.').to_ascii_lowercase()
}

/// A name as it is among these: whole, or a short one with what the nodes' names end in.
fn recorded<T>(names: &BTreeMap<String, T>, name: &str, base: &str) -> String {
    let name = plain(name);
    let whole = format!("{name}.{base}");
    if names.contains_key(&whole) { whole } else { name }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

fn shown(dns: &DnsSettings) -> String {
    let on = |yes| if yes { "on" } else { "off" };
    let server = |server: &NameServer| format!("{}{}", server.address, if server.with_exit_node { " (with exit node)" } else { "" });
    let mut lines = vec![
        format!("magic        {}", on(dns.magic)),
        format!("override     {}", on(dns.override_local)),
        format!("nameservers  {}", joined(dns.nameservers.iter().map(server))),
        format!("search       {}", joined(&dns.search)),
    ];
    for (domain, servers) in &dns.split {
        let by = if servers.is_empty() { "the records below".to_owned() } else { joined(servers.iter().map(server)) };
        lines.push(format!("split        {domain}: {by}"));
    }
    for (name, addresses) in &dns.records {
        lines.push(format!("record       {name}: {}", joined(addresses)));
    }
    for (name, target) in &dns.aliases {
        lines.push(format!("alias        {name}: {target}"));
    }
    lines.join("\n")
}
