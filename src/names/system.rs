//! How a machine resolves names, and what is told to whoever has that in hand: values, no files.

use std::net::{IpAddr, Ipv4Addr};

use super::Records;
use crate::ident::{CGNAT_V4, is_mesh_address, is_quad100, reverse_name};

/// glibc reads no more.
const MAX_SEARCH: usize = 6;
/// systemd-resolved takes 256 for a link; the reverse names of records come last and go without.
const MAX_DOMAINS: usize = 200;
/// The mesh's IPv6 addresses backwards.
const REVERSE_V6: &str = "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa";
/// Where systemd-resolved listens.
const STUBS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// What a `resolv.conf` says (resolv.conf(5)), without what it says of this resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Whom to ask.
    pub servers: Vec<IpAddr>,
    /// What is appended to short names.
    pub search: Vec<String>,
    /// How.
    pub options: Vec<String>,
    /// Whether this resolver is the one that is asked first.
    pub leads_here: bool,
}

impl ResolvConf {
    /// Reads a file; what does not read is left out.
    pub fn parse(text: &str) -> Self {
        let mut contents = Self::default();
        for line in text.lines().map(|line| line.split(['#', ';']).next().unwrap_or_default()) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => contents.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
                // The last one counts.
                Some("search" | "domain") => contents.search = words.map(str::to_owned).collect(),
                Some("options") => contents.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        contents.leads_here = contents.servers.first().copied().is_some_and(is_quad100);
        contents.servers.retain(|server| !is_quad100(*server));
        contents
    }

    /// Whether systemd-resolved is asked, and nobody else.
    pub fn asks_resolved(&self) -> bool {
        !self.leads_here && !self.servers.is_empty() && self.servers.iter().all(|server| STUBS.contains(server))
    }
}

/// Search domains for a file: the mesh's in front of the machine's own.
pub fn search_list<'a>(domains: &'a [String], own: &'a [String]) -> Vec<&'a str> {
    let mut search: Vec<&str> = Vec::new();
    for domain in domains.iter().chain(own).map(|domain| domain.trim_end_matches('.')) {
        if is_domain(domain) && !search.contains(&domain) && search.len() < MAX_SEARCH {
            search.push(domain);
        }
    }
    search
}

/// Whether a text is a domain and nothing else, such as an option or another line of a file.
fn is_domain(text: &str) -> bool {
    let plain = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    text.len() <= 253 && text.split('.').all(plain)
}

/// What the machine is to ask this resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lead {
    /// Domains that are appended to short names. Names in them are asked here.
    pub search: Vec<String>,
    /// Further domains, names in which are asked here.
    pub suffixes: Vec<String>,
    /// All names are asked here: there are servers for everything.
    pub everything: bool,
}

impl Lead {
    /// What follows from what is known, with these search domains.
    pub fn new(records: &Records, search: &[String]) -> Self {
        let [_, first, ..] = CGNAT_V4.network().octets();
        let [_, last, ..] = CGNAT_V4.broadcast().octets();
        let mesh = (first..=last).map(|octet| format!("{octet}.100.in-addr.arpa")).chain([REVERSE_V6.to_owned()]);
        let of_records = records.extra.iter().map(|(_, address)| *address).filter(|address| !is_mesh_address(*address)).map(reverse_name);
        let mut lead = Self { search: Vec::new(), suffixes: Vec::new(), everything: !records.resolvers.is_empty() };
        let plain = |domain: &str| domain.trim_start_matches('.').trim_end_matches('.').to_ascii_lowercase();
        lead.search = search_list(search, &[]).into_iter().map(plain).collect();
        let names = [records.suffix.clone()].into_iter().chain(records.routes.keys().cloned());
        for domain in names.chain(mesh).chain(of_records).map(|domain| plain(&domain)) {
            let known = lead.search.contains(&domain) || lead.suffixes.contains(&domain);
            if is_domain(&domain) && !known && lead.suffixes.len() < MAX_DOMAINS {
                lead.suffixes.push(domain);
            }
        }
        lead
    }

    /// The domains of a link in systemd-resolved's notation: `~` in front of those that are not searched (resolvectl(1), `domain`).
    pub fn link_domains(&self) -> Vec<String> {
        let routing = self.suffixes.iter().map(String::as_str).chain(self.everything.then_some("."));
        self.search.iter().cloned().chain(routing.map(|domain| format!("~{domain}"))).collect()
    }
}

/// The two programs of the name `resolvconf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolvconf {
    /// Debian's: records in an order of its own, the first three servers count.
    Debian,
    /// openresolv: a record can be the only one that counts.
    Open,
}

/// Who has the machine's resolving of names in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Nobody, or somebody who writes the file now and then: the file is ours to write.
    File,
    /// systemd-resolved, which has servers and domains for each link.
    Resolved,
    /// A program that puts the file together from what others hand in.
    Resolvconf(Resolvconf),
}

impl std::fmt::Display for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File => "/etc/resolv.conf",
            Self::Resolved => "systemd-resolved",
            Self::Resolvconf(Resolvconf::Debian) => "resolvconf",
            Self::Resolvconf(Resolvconf::Open) => "openresolv",
        })
    }
}

/// What is seen of a machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen<'a> {
    /// What `/etc/resolv.conf` says, behind all links; empty if there is none.
    pub text: &'a str,
    /// The file is the one this program has written.
    pub ours: bool,
    /// Where it leads, if it is a link.
    pub target: &'a str,
    /// What `/etc/nsswitch.conf` says.
    pub nsswitch: &'a str,
    /// systemd-resolved runs, and there is `resolvectl` to tell it something.
    pub resolved: bool,
    /// Which `resolvconf` there is.
    pub resolvconf: Option<Resolvconf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Resolved,
    NetworkManager,
    Resolvconf,
}

impl Seen<'_> {
    /// Who has the file in hand: by where it leads, else by the first of its leading comments that names somebody.
    fn owner(&self) -> Option<Owner> {
        let leads_to = |places: &[&str]| places.iter().any(|place| self.target.starts_with(place));
        if leads_to(&["/run/systemd/resolve/", "/usr/lib/systemd/", "/lib/systemd/"]) {
            return Some(Owner::Resolved);
        }
        if leads_to(&["/run/resolvconf/", "/etc/resolvconf/"]) {
            return Some(Owner::Resolvconf);
        }
        let comments = self.text.lines().map(str::trim).take_while(|line| line.is_empty() || line.starts_with('#'));
        let names = [("systemd-resolved", Owner::Resolved), ("NetworkManager", Owner::NetworkManager), ("resolvconf", Owner::Resolvconf)];
        comments.filter_map(|line| names.iter().find(|(name, _)| line.contains(name))).map(|(_, owner)| *owner).next()
    }

    /// Whether what programs ask really comes to systemd-resolved: by its address, or by its module of the C library (nss-resolve(8)).
    fn asks_resolved(&self) -> bool {
        let hosts = self.nsswitch.lines().find_map(|line| line.trim_start().strip_prefix("hosts:")).unwrap_or_default();
        let first = hosts.split_whitespace().find(|word| matches!(*word, "resolve" | "dns"));
        first == Some("resolve") || ResolvConf::parse(self.text).asks_resolved()
    }

    /// Whom to tell. NetworkManager is not told anything: it leaves a link that is not its own alone, and what it tells systemd-resolved of its
    /// own links stays beside ours; where it writes the file itself, that is treated like any other.
    pub fn manager(&self) -> Manager {
        if self.ours {
            return Manager::File;
        }
        match self.owner() {
            Some(Owner::Resolved | Owner::NetworkManager) if self.resolved && self.asks_resolved() => Manager::Resolved,
            Some(Owner::Resolvconf) => self.resolvconf.map_or(Manager::File, Manager::Resolvconf),
            _ => Manager::File,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Upstream;

    const STUB: &str =
        "# This is /run/systemd/resolve/stub-resolv.conf managed by man:systemd-resolved(8).\n#\n\nnameserver 127.0.0.53\nsearch .\n";
    const UPLINKS: &str = "# This is /run/systemd/resolve/resolv.conf managed by man:systemd-resolved(8).\nnameserver 192.168.1.1\n";
    const NM_PLAIN: &str = "# Generated by NetworkManager\nnameserver 192.168.1.1\n";
    const NM_STUB: &str = "# Generated by NetworkManager\nnameserver 127.0.0.53\n";
    const DEBIAN: &str = "# Dynamic resolv.conf(5) file for glibc resolver(3) generated by resolvconf(8)\n#     DO NOT EDIT\n# 127.0.0.53 is the systemd-resolved stub resolver.\nnameserver 192.168.1.1\n";
    const OPEN: &str = "# Generated by resolvconf\nnameserver 192.168.1.1\n";
    const PLAIN: &str = "nameserver 192.168.1.1\n# systemd-resolved is not used here\n";
    const NSS: &str = "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n";
    const NO_NSS: &str = "hosts: files dns resolve\n";

    #[test]
    fn who_has_resolving_in_hand_is_told_by_the_file_and_by_what_runs() {
        let link = "/run/systemd/resolve/stub-resolv.conf";
        let seen =
            |text, target, nsswitch, resolved, resolvconf| Seen { text, ours: false, target, nsswitch, resolved, resolvconf }.manager();
        let (debian, open) = (Some(Resolvconf::Debian), Some(Resolvconf::Open));
        let by = Manager::Resolvconf;
        for (number, (found, expected)) in [
            (seen("", "", "", true, open), Manager::File),
            (seen(PLAIN, "", NSS, true, debian), Manager::File),
            (seen(STUB, link, "", true, None), Manager::Resolved),
            (seen(STUB, "", NO_NSS, true, None), Manager::Resolved),
            (seen(STUB, link, "", false, None), Manager::File),
            (seen("nameserver 127.0.0.53\n", link, "", true, None), Manager::Resolved),
            (seen("", link, "", true, None), Manager::File),
            (seen(UPLINKS, "/run/systemd/resolve/resolv.conf", NO_NSS, true, None), Manager::File),
            (seen(UPLINKS, "/run/systemd/resolve/resolv.conf", NSS, true, None), Manager::Resolved),
            (seen(NM_PLAIN, "", NO_NSS, true, None), Manager::File),
            (seen(NM_PLAIN, "/run/NetworkManager/resolv.conf", NSS, true, None), Manager::Resolved),
            (seen(NM_STUB, "", "", true, None), Manager::Resolved),
            (seen(NM_STUB, "", "", false, None), Manager::File),
            (seen(DEBIAN, "/run/resolvconf/resolv.conf", "", true, debian), by(Resolvconf::Debian)),
            (seen("", "/run/resolvconf/resolv.conf", "", false, debian), by(Resolvconf::Debian)),
            (seen(DEBIAN, "/run/resolvconf/resolv.conf", "", false, None), Manager::File),
            (seen(OPEN, "", NSS, true, open), by(Resolvconf::Open)),
            (seen(OPEN, "", "", false, None), Manager::File),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(found, expected, "case {number}");
        }
        assert_eq!(Seen { text: OPEN, ours: true, resolvconf: open, ..Seen::default() }.manager(), Manager::File);
    }

    #[test]
    fn a_link_is_told_what_is_searched_and_what_is_only_asked_here() {
        let mut records = Records {
            suffix: "mesh.test".to_owned(),
            extra: vec![("nas.lan".to_owned(), "192.168.1.9".parse().unwrap()), ("x".to_owned(), "100.64.0.9".parse().unwrap())],
            routes: [("corp.test".to_owned(), Vec::new())].into(),
            ..Records::default()
        };
        let search = ["mesh.test".to_owned(), "home.lan".to_owned()];
        let domains = Lead::new(&records, &search).link_domains();
        assert!(domains.starts_with(&["mesh.test", "home.lan", "~corp.test", "~64.100.in-addr.arpa"].map(str::to_owned)), "{domains:?}");
        assert!(["~127.100.in-addr.arpa", "~9.1.168.192.in-addr.arpa"].iter().all(|domain| domains.contains(&(*domain).to_owned())));
        assert!(domains.iter().all(|domain| domain != "~." && domain != "~9.0.64.100.in-addr.arpa"), "{domains:?}");
        assert!(domains.contains(&format!("~{REVERSE_V6}")));
        records.resolvers = vec![Upstream::read("9.9.9.9").unwrap()];
        records.extra = (0..1000u32).map(|n| ("x".to_owned(), IpAddr::from((0x0a00_0000 + n).to_be_bytes()))).collect();
        let all = Lead::new(&records, &search).link_domains();
        assert_eq!((all.last().map(String::as_str), all.len()), (Some("~."), 2 + MAX_DOMAINS + 1));
    }

    #[test]
    fn what_is_no_domain_gets_into_no_file_and_no_command() {
        let wrong = ["evil\nnameserver 6.6.6.6", "", "-x", "--help", "a b", "a..b", "~.", "ä.test", &"x".repeat(64), &"x.".repeat(200)];
        let search: Vec<String> = wrong.iter().map(|text| (*text).to_owned()).chain(["mesh.test.".to_owned()]).collect();
        assert_eq!(search_list(&search, &[]), ["mesh.test"]);
        let routes = wrong.iter().map(|text| ((*text).to_owned(), Vec::new())).collect();
        let lead = Lead::new(&Records { suffix: "-o.test".to_owned(), routes, ..Records::default() }, &search);
        assert!(lead.suffixes.iter().all(|suffix| suffix.ends_with(".arpa")), "{lead:?}");
    }

    #[test]
    fn a_file_is_read_without_what_leads_here() {
        let text = "search a\ndomain home.lan\nnameserver 100.100.100.100\nnameserver ::ffff:100.100.100.100\nnameserver fd7a:115c:a1e0::53\n\
                    nameserver 192.168.1.1 # the router\nnameserver x\noptions edns0 rotate\n";
        let read = ResolvConf::parse(text);
        assert_eq!((read.servers.len(), read.leads_here, read.asks_resolved()), (1, true, false));
        assert_eq!((read.search, read.options), (vec!["home.lan".to_owned()], vec!["edns0".to_owned(), "rotate".to_owned()]));
        assert!(ResolvConf::parse("nameserver 127.0.0.53").asks_resolved() && !ResolvConf::parse("").asks_resolved());
        assert!(!ResolvConf::parse("nameserver 127.0.0.53\nnameserver 9.9.9.9").asks_resolved());
    }
}
