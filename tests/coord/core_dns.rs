//! How names are resolved.

use pvemesh::coord::server::{CommandError, SessionId};
use pvemesh::wire::admin::{DnsSettings, NameServer};
use pvemesh::wire::control::{DnsConfig, Resolver};

use crate::world::*;

fn servers(addresses: &[&str]) -> Vec<NameServer> {
    addresses.iter().map(|address| NameServer { address: (*address).to_owned(), with_exit_node: false }).collect()
}

fn first(world: &mut World, n: u8) -> (SessionId, DnsConfig) {
    let session = world.stream(n);
    let map = world.take(session).unwrap();
    (session, map.dns_config.unwrap())
}

fn addresses(resolvers: &[Resolver]) -> Vec<&str> {
    resolvers.iter().map(|resolver| resolver.addr.as_str()).collect()
}

#[test]
fn trap_31_a_change_is_told_to_all_nodes_and_is_in_no_other_delta() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    let (a, config) = first(&mut world, 1);
    let (b, _) = first(&mut world, 2);
    world.take(a);
    assert!(config.proxied && config.domains == ["mesh.test"] && config.resolvers.is_empty() && config.routes.is_empty());
    let mut dns = world.server.dns();
    dns.nameservers = servers(&["192.168.1.1", "https://dns.example/q?x=1"]);
    dns.split = [("home.lan".to_owned(), servers(&["192.168.1.1:5353"]))].into();
    dns.search = vec!["home.lan".to_owned()];
    world.server.set_dns(&dns).unwrap();
    for session in [a, b] {
        let told = world.take(session).unwrap();
        let config = told.dns_config.unwrap();
        assert_eq!(addresses(&config.fallback_resolvers), ["192.168.1.1", "https://dns.example/q?x=1"]);
        assert!(config.resolvers.is_empty(), "without override each system keeps its own");
        assert_eq!(addresses(&config.routes["home.lan"]), ["192.168.1.1:5353"]);
        assert_eq!(config.domains, ["mesh.test", "home.lan"], "the mesh's own suffix comes first");
        assert!(told.node.is_none() && told.peers_changed.is_empty() && told.derp_map.is_none() && told.packet_filters.is_empty());
    }
    // The same again says nothing; and what nodes do says nothing of DNS.
    world.drain();
    world.writes.clear();
    world.server.set_dns(&dns).unwrap();
    assert!(world.take(a).is_none() && world.drain().is_empty() && world.writes.is_empty());
    world.report(2, |request| request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()]);
    world.join(3, "gamma");
    assert!(world.take(a).unwrap().dns_config.is_none());
}

#[test]
fn settings_outlive_a_restart() {
    let mut world = World::new();
    let mut dns = world.server.dns();
    dns.nameservers = servers(&["9.9.9.9"]);
    dns.override_local = true;
    dns.records = [("nas.home.lan".to_owned(), vec!["192.168.1.9".parse().unwrap()])].into();
    let kept = world.server.set_dns(&dns).unwrap();
    world.restart();
    assert_eq!(world.server.dns(), kept);
    world.join(1, "alpha");
    let (_, config) = first(&mut world, 1);
    assert_eq!((addresses(&config.resolvers), config.fallback_resolvers.len()), (vec!["9.9.9.9"], 0));
}

#[test]
fn extra_records_are_answered_by_the_nodes_whatever_their_domain() {
    let mut world = World::new();
    let mut dns = world.server.dns();
    dns.split = [("corp.test".to_owned(), servers(&["10.0.0.53"]))].into();
    dns.records = [
        ("printer.mesh.test".to_owned(), vec!["192.168.1.8".parse().unwrap()]),
        ("nas.home.lan".to_owned(), vec!["192.168.1.9".parse().unwrap(), "fd00::9".parse().unwrap()]),
        ("wiki.corp.test".to_owned(), vec!["10.0.0.8".parse().unwrap()]),
    ]
    .into();
    world.server.set_dns(&dns).unwrap();
    world.join(1, "alpha");
    let session = world.stream(1);
    let text = world.text(session).unwrap();
    // trap_12: an empty list means "answer this yourself"; no list would mean nothing.
    let routes: std::collections::BTreeMap<_, _> = [
        ("corp.test", r#"[{"Addr":"10.0.0.53"}]"#),
        ("nas.home.lan", "[]"),
        // Their addresses backwards.
        ("8.0.0.10.in-addr.arpa", "[]"),
        ("8.1.168.192.in-addr.arpa", "[]"),
        ("9.1.168.192.in-addr.arpa", "[]"),
        ("9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", "[]"),
    ]
    .into();
    let routes: Vec<String> = routes.into_iter().map(|(name, servers)| format!(r#""{name}":{servers}"#)).collect();
    assert!(text.contains(&format!(r#""Routes":{{{}}}"#, routes.join(","))), "{text}");
    for record in [("printer.mesh.test", "192.168.1.8"), ("nas.home.lan", "192.168.1.9"), ("nas.home.lan", "fd00::9")] {
        assert!(text.contains(&format!(r#"{{"Name":"{}","Value":"{}"}}"#, record.0, record.1)), "{record:?} in {text}");
    }
}

#[test]
fn without_magic_dns_nodes_names_are_not_searched() {
    let mut world = World::new();
    let dns = DnsSettings { magic: false, search: vec!["home.lan".to_owned()], ..world.server.dns() };
    world.server.set_dns(&dns).unwrap();
    world.join(1, "alpha");
    let (_, config) = first(&mut world, 1);
    assert!(!config.proxied && config.domains == ["home.lan"]);
}

#[test]
fn a_name_server_may_stay_in_use_with_an_exit_node() {
    let mut world = World::new();
    let mut dns = world.server.dns();
    dns.split = [("home.lan".to_owned(), vec![NameServer { address: "192.168.1.1".to_owned(), with_exit_node: true }])].into();
    world.server.set_dns(&dns).unwrap();
    world.join(1, "alpha");
    let (_, config) = first(&mut world, 1);
    assert!(config.routes["home.lan"][0].use_with_exit_node);
}

#[test]
fn names_are_kept_in_one_form_and_nothing_twice() {
    let mut world = World::new();
    let wanted = DnsSettings {
        nameservers: servers(&["192.168.001.1", "1.1.1.1", "1.1.1.1"].map(|a| if a.contains("001") { "192.168.1.1" } else { a })),
        search: vec!["Home.LAN.".to_owned(), "home.lan".to_owned(), "mesh.test".to_owned()],
        records: [
            ("NAS.home.lan.".to_owned(), vec!["10.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()]),
            ("x.lan".to_owned(), vec![]),
        ]
        .into(),
        ..DnsSettings::default()
    };
    let kept = world.server.set_dns(&wanted).unwrap();
    assert_eq!(kept.nameservers, servers(&["192.168.1.1", "1.1.1.1"]));
    assert_eq!(kept.search, ["home.lan"], "the mesh's own suffix is searched anyway");
    assert_eq!(kept.records, [("nas.home.lan".to_owned(), vec!["10.0.0.1".parse().unwrap()])].into());
}

#[test]
fn trap_25_settings_that_would_break_names_are_refused_and_change_nothing() {
    let mut world = World::new();
    let before = world.server.dns();
    let with = |change: &dyn Fn(&mut DnsSettings)| {
        let mut dns = DnsSettings::default();
        change(&mut dns);
        dns
    };
    let cases: Vec<(DnsSettings, &str)> = vec![
        (with(&|dns| dns.nameservers = servers(&["dns.home"])), "dns.home is no name server"),
        (with(&|dns| dns.nameservers = servers(&["https://x\"y"])), "no name server"),
        (with(&|dns| dns.override_local = true), "nothing to replace"),
        (with(&|dns| dns.split = [("mesh.test".to_owned(), servers(&["1.1.1.1"]))].into()), "nodes' own names"),
        (with(&|dns| dns.split = [("test".to_owned(), servers(&["1.1.1.1"]))].into()), "nodes' own names"),
        (with(&|dns| dns.split = [("a b".to_owned(), servers(&["1.1.1.1"]))].into()), "not a domain name"),
        (with(&|dns| dns.search = vec!["\"".to_owned()]), "not a domain name"),
        (with(&|dns| dns.records = [("-x.lan".to_owned(), vec!["10.0.0.1".parse().unwrap()])].into()), "not a domain name"),
        (with(&|dns| dns.search = (0..300).map(|n| format!("d{n}.lan")).collect()), "at most 256"),
    ];
    for (dns, reason) in cases {
        match world.server.set_dns(&dns) {
            Err(CommandError::Invalid(text)) => assert!(text.contains(reason), "{text}"),
            other => panic!("{reason}: {other:?}"),
        }
    }
    assert_eq!(world.server.dns(), before);
}

fn records(config: &DnsConfig) -> Vec<(&str, &str)> {
    config.extra_records.iter().map(|record| (record.name.as_str(), record.value.as_str())).collect()
}

#[test]
fn an_alias_stands_for_its_node_through_renames_and_vanishes_with_it() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    let mut dns = world.server.dns();
    dns.records = [("nas.home.lan".to_owned(), vec!["192.168.1.9".parse().unwrap()])].into();
    dns.aliases = [("Git.home.lan.", "beta.mesh.test"), ("*.apps.home.lan", "beta"), ("files.lan", "nas.home.lan"), ("gone.lan", "nobody")]
        .map(|(name, target)| (name.to_owned(), target.to_owned()))
        .into();
    let kept = world.server.set_dns(&dns).unwrap();
    assert_eq!(kept.aliases["git.home.lan"], "beta");
    let (a, config) = first(&mut world, 1);
    let node = world.server.nodes().into_iter().find(|node| node.name.as_str() == "beta").unwrap();
    let [v4, v6] = [node.addresses[0].to_string(), node.addresses[1].to_string()];
    let mut expected = vec![("nas.home.lan", "192.168.1.9"), ("files.lan", "192.168.1.9")];
    for name in ["*.apps.home.lan", "git.home.lan"] {
        expected.extend([(name, v4.as_str()), (name, v6.as_str())]);
    }
    let mut told = records(&config);
    told.sort_unstable();
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert!(config.routes.contains_key("apps.home.lan") && config.routes.contains_key("gone.lan"), "{:?}", config.routes);

    // It is the name that counts: another node by this name takes over, and without one there is nothing.
    world.server.rename(world.at, node.id, &"gamma".parse().unwrap()).unwrap();
    let config = world.take(a).unwrap().dns_config.unwrap();
    assert_eq!(records(&config).iter().filter(|(name, _)| *name == "git.home.lan").count(), 0);
    world.join(3, "beta");
    let config = world.take(a).unwrap().dns_config.unwrap();
    let now: Vec<_> = records(&config).into_iter().filter(|(name, _)| *name == "git.home.lan").collect();
    assert!(now.len() == 2 && now.iter().all(|(_, address)| ![&v4, &v6].contains(&&(*address).to_owned())), "{now:?}");
    world.restart();
    assert_eq!(world.server.dns().aliases, kept.aliases);
}

#[test]
fn an_alias_of_an_alias_or_of_a_name_with_addresses_is_refused() {
    let world = World::new();
    let mut server = world.server;
    for (records, aliases) in [
        (vec![], vec![("a.lan", "b.lan"), ("b.lan", "beta")]),
        (vec![], vec![("a.lan", "a.lan")]),
        (vec!["a.lan"], vec![("a.lan", "beta")]),
        (vec![], vec![("a b.lan", "beta")]),
        (vec![], vec![("a.*.lan", "beta")]),
    ] {
        let mut dns = server.dns();
        dns.records = records.into_iter().map(|name: &str| (name.to_owned(), vec!["10.0.0.1".parse().unwrap()])).collect();
        dns.aliases = aliases.iter().map(|(name, target)| ((*name).to_owned(), (*target).to_owned())).collect();
        assert!(matches!(server.set_dns(&dns), Err(CommandError::Invalid(_))), "{aliases:?}");
    }
}

#[test]
fn a_short_name_lies_beside_the_nodes_names_and_is_nobody_elses() {
    let mut world = World::new();
    world.join(1, "alpha");
    let mut dns = world.server.dns();
    dns.records = [("Printer".to_owned(), vec!["192.168.1.8".parse().unwrap()])].into();
    dns.aliases = [("paper", "printer"), ("*.apps", "alpha")].map(|(name, target)| (name.to_owned(), target.to_owned())).into();
    let kept = world.server.set_dns(&dns).unwrap();
    assert_eq!(kept.records.keys().collect::<Vec<_>>(), ["printer.mesh.test"]);
    assert_eq!(kept.aliases.keys().collect::<Vec<_>>(), ["*.apps", "paper.mesh.test"]);
    let (a, config) = first(&mut world, 1);
    assert!(["printer.mesh.test", "paper.mesh.test"].iter().all(|name| records(&config).contains(&(name, "192.168.1.8"))), "{config:?}");

    // A node that comes by such a name gets another one; one that is there keeps its own, and the record is refused.
    world.join(2, "printer");
    world.join(3, "paper");
    let names = |world: &World| world.server.nodes().into_iter().map(|node| node.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&world), ["alpha", "printer-1", "paper-1"]);
    let refused = |world: &mut World, change: &dyn Fn(&mut DnsSettings)| {
        let mut dns = world.server.dns();
        change(&mut dns);
        match world.server.set_dns(&dns) {
            Err(CommandError::Conflict(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    let text = refused(&mut world, &|dns| drop(dns.records.insert("alpha".to_owned(), vec!["192.168.1.7".parse().unwrap()])));
    assert!(text.contains("alpha.mesh.test is the name of the node alpha"), "{text}");
    refused(&mut world, &|dns| drop(dns.aliases.insert("paper-1.mesh.test".to_owned(), "alpha".to_owned())));
    let printer = world.server.nodes().into_iter().find(|node| node.name.as_str() == "printer-1").unwrap();
    match world.server.rename(world.at, printer.id, &"printer".parse().unwrap()) {
        Err(CommandError::Conflict(text)) => assert!(text.contains("printer"), "{text}"),
        other => panic!("{other:?}"),
    }
    // Once the record is gone, the name is free.
    while world.take(a).is_some() {}
    world.server.set_dns(&DnsSettings::default()).unwrap();
    assert_eq!(records(&world.take(a).unwrap().dns_config.unwrap()), []);
    world.server.rename(world.at, printer.id, &"printer".parse().unwrap()).unwrap();
}

#[test]
fn addresses_of_public_networks_and_of_domains_with_servers_are_not_answered_backwards_for() {
    let mut world = World::new();
    let mut dns = world.server.dns();
    dns.split = [("168.192.in-addr.arpa".to_owned(), servers(&["192.168.1.1"]))].into();
    let addresses = ["192.168.1.8", "203.0.113.8", "100.64.0.77", "fd7a:115c:a1e0::77", "2001:db8::8", "172.16.0.8"];
    dns.records = [("many".to_owned(), addresses.map(|address| address.parse().unwrap()).to_vec())].into();
    world.server.set_dns(&dns).unwrap();
    world.join(1, "alpha");
    let (_, config) = first(&mut world, 1);
    assert_eq!(config.routes.keys().collect::<Vec<_>>(), ["168.192.in-addr.arpa", "8.0.16.172.in-addr.arpa"]);
}
