#![allow(clippy::indexing_slicing, reason = "test code")]

use super::*;
use crate::coord::client::MapSession;
use crate::wire::control::json::from_slice;

fn key(n: u8) -> String {
    crate::ident::NodePublic::from_bytes([n; 32]).to_string()
}

/// A home: 1 is this node, 2 a plain peer, 3 an exit node that also routes 10.1.0.0/16 and the home LAN, 4 another router of 10.1.0.0/16.
fn map() -> NetMap {
    let json = format!(
        r#"{{"Node":{{"ID":1,"Name":"laptop.mesh.","Key":"{}","Addresses":["100.64.0.1/32","fd7a:115c:a1e0::1/128"]}},
        "Peers":[
          {{"ID":2,"StableID":"nTwo","Name":"nas.mesh.","Key":"{}","Addresses":["100.64.0.2/32","fd7a:115c:a1e0::2/128"],
            "Endpoints":["192.168.1.7:41641","100.64.0.2:41641","127.0.0.1:1","0.0.0.0:1"]}},
          {{"ID":3,"StableID":"nThree","Name":"exit-1.mesh.","Key":"{}","Addresses":["100.64.0.3/32","fd7a:115c:a1e0::3/128"],"Online":true,
            "AllowedIPs":["100.64.0.3/32","fd7a:115c:a1e0::3/128","10.1.0.0/16","192.168.1.0/24","0.0.0.0/0","::/0"]}},
          {{"ID":4,"StableID":"nFour","Name":"old.mesh.","Key":"{}","Addresses":["100.64.0.4/32"],"Online":false,
            "AllowedIPs":["100.64.0.4/32","10.1.0.0/16","100.64.0.1/32"]}}]}}"#,
        key(1),
        key(2),
        key(3),
        key(4)
    );
    let mut session = MapSession::default();
    session.apply(from_slice(json.as_bytes()).unwrap(), now()).unwrap();
    session.netmap().unwrap().clone()
}

fn now() -> Wall {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn assembled(map: &NetMap, prefs: &Prefs, local: &[&str]) -> Assembly {
    let local_networks = &nets(local);
    assemble(
        map,
        prefs,
        Situation { interface: "pvemesh0", local_networks, peer_api: &[], forwards: Forwards::default(), now: now(), exit: None },
    )
}

fn allowed(assembly: &Assembly, id: i64) -> Vec<String> {
    assembly.peers.iter().find(|p| p.id == NodeId(id)).unwrap().allowed_ips.iter().map(ToString::to_string).collect()
}

fn texts(nets: &[IpNet]) -> Vec<String> {
    nets.iter().map(ToString::to_string).collect()
}

#[test]
fn by_default_only_the_nodes_themselves_are_reached() {
    let assembly = assembled(&map(), &Prefs::default(), &["192.168.1.0/24"]);
    assert_eq!(allowed(&assembly, 2), ["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]);
    assert_eq!(allowed(&assembly, 3), ["100.64.0.3/32", "fd7a:115c:a1e0::3/128"]);
    let routes = texts(&assembly.router.routes);
    assert_eq!(
        routes,
        [
            "100.64.0.2/32",
            "100.64.0.3/32",
            "100.64.0.4/32",
            "100.100.100.100/32",
            "fd7a:115c:a1e0::2/128",
            "fd7a:115c:a1e0::3/128",
            "fd7a:115c:a1e0::53/128"
        ]
    );
    assert_eq!(
        texts(&assembly.router.addresses),
        ["100.64.0.1/32", "fd7a:115c:a1e0::1/128", "100.100.100.100/32", "fd7a:115c:a1e0::53/128"]
    );
    let mut v4_only = map();
    v4_only.node.addresses.retain(|net| net.addr().is_ipv4());
    assert_eq!(texts(&assembled(&v4_only, &Prefs::default(), &[]).router.addresses), ["100.64.0.1/32", "100.100.100.100/32"]);
    assert!(assembly.router.local_routes.is_empty() && !assembly.router.forward && !assembly.router.masquerade);
    assert_eq!((assembly.exit_node, assembly.router.mtu), (ExitNode::Unwanted, 1280));
    assert!(assembly.notes.is_empty());
}

#[test]
fn a_peer_cannot_claim_this_nodes_own_address() {
    let assembly = assembled(&map(), &Prefs { accept_routes: true, ..Default::default() }, &[]);
    assert!(!allowed(&assembly, 4).contains(&"100.64.0.1/32".to_owned()));
    assert!(!texts(&assembly.router.routes).contains(&"100.64.0.1/32".to_owned()));
}

#[test]
fn a_single_mesh_address_that_a_peer_offers_takes_no_others_place() {
    let mut map = map();
    let offered = ["100.64.0.2/32", "100.64.0.4/32", "100.72.5.1/32", "100.100.100.100/32", "fd7a:115c:a1e0::53/128", "100.99.0.9/32"];
    map.peers.get_mut(&NodeId(2)).unwrap().allowed_ips = Some(nets(&offered));
    // A local network of the carrier's, with a gateway; and a peer that has an address there.
    map.peers.get_mut(&NodeId(3)).unwrap().addresses = nets(&["100.72.5.3/32"]);
    map.peers.get_mut(&NodeId(3)).unwrap().allowed_ips = None;
    let assembly = assembled(&map, &Prefs::default(), &["100.72.5.0/24"]);
    assert_eq!(allowed(&assembly, 2), ["100.64.0.2/32", "100.99.0.9/32"]);
    assert_eq!(allowed(&assembly, 3), ["100.72.5.3/32"]);
    assert_eq!(allowed(&assembly, 4), ["100.64.0.4/32"]);
    assert_eq!(assembly.notes, ["the route 100.72.5.1/32 of nas is not taken: it overlaps the local network 100.72.5.0/24"]);
}

#[test]
fn endpoints_that_lead_nowhere_are_left_out() {
    let assembly = assembled(&map(), &Prefs::default(), &[]);
    assert_eq!(assembly.peers[0].endpoints, ["192.168.1.7:41641".parse().unwrap()]);
}

#[test]
fn accepted_routes_never_touch_a_local_network() {
    let prefs = Prefs { accept_routes: true, ..Default::default() };
    for local in ["192.168.1.0/24", "192.168.1.128/25", "192.168.0.0/16", "192.168.1.5/32"] {
        let assembly = assembled(&map(), &prefs, &[local]);
        let routes = texts(&assembly.router.routes);
        assert!(!routes.contains(&"192.168.1.0/24".to_owned()), "{local}");
        assert!(routes.contains(&"10.1.0.0/16".to_owned()), "{local}");
        assert!(assembly.notes.iter().any(|n| n.contains("192.168.1.0/24") && n.contains(local)), "{:?}", assembly.notes);
    }
    let elsewhere = assembled(&map(), &prefs, &["172.16.0.0/12"]);
    assert!(texts(&elsewhere.router.routes).contains(&"192.168.1.0/24".to_owned()));
}

#[test]
fn a_network_with_two_routers_goes_to_the_one_online() {
    let prefs = Prefs { accept_routes: true, ..Default::default() };
    let mut map = map();
    assert!(allowed(&assembled(&map, &prefs, &[]), 3).contains(&"10.1.0.0/16".to_owned()));
    map.peers.get_mut(&NodeId(3)).unwrap().online = Some(false);
    map.peers.get_mut(&NodeId(4)).unwrap().online = Some(true);
    let assembly = assembled(&map, &prefs, &[]);
    assert!(allowed(&assembly, 4).contains(&"10.1.0.0/16".to_owned()));
    assert!(!allowed(&assembly, 3).contains(&"10.1.0.0/16".to_owned()));
}

#[test]
fn the_exit_node_is_found_by_name_address_and_stable_id() {
    let map = map();
    for wanted in ["exit-1", "EXIT-1", "exit-1.mesh", "exit-1.mesh.", "100.64.0.3", "fd7a:115c:a1e0::3", "nThree"] {
        assert_eq!(find_exit_node(&map, wanted, None), ExitNode::Chosen(NodeId(3)), "{wanted}");
    }
    assert_eq!(find_exit_node(&map, "nas", None), ExitNode::NotOffered(NodeId(2)));
    assert_eq!(find_exit_node(&map, "nobody", None), ExitNode::Missing);
    assert_eq!(find_exit_node(&map, " ", None), ExitNode::Unwanted);
}

#[test]
fn a_short_name_that_two_peers_share_names_neither() {
    let mut map = map();
    map.peers.get_mut(&NodeId(2)).unwrap().name = "exit-1.other.".to_owned();
    assert_eq!(find_exit_node(&map, "exit-1", None), ExitNode::Missing);
    assert_eq!(find_exit_node(&map, "exit-1.mesh", None), ExitNode::Chosen(NodeId(3)));
}

#[test]
fn an_exit_node_takes_everything_but_the_local_networks() {
    let prefs = Prefs { exit_node: "exit-1".to_owned(), ..Default::default() };
    let assembly = assembled(&map(), &prefs, &["192.168.1.0/24", "2001:db8::/64"]);
    assert_eq!(allowed(&assembly, 3), ["0.0.0.0/0", "100.64.0.3/32", "::/0", "fd7a:115c:a1e0::3/128"]);
    let routes = texts(&assembly.router.routes);
    assert!(routes.contains(&"0.0.0.0/0".to_owned()) && routes.contains(&"::/0".to_owned()));
    assert!(!routes.contains(&"10.1.0.0/16".to_owned()), "its networks are a matter of accept_routes");
    assert_eq!(texts(&assembly.router.local_routes), ["169.254.0.0/16", "192.168.1.0/24", "2001:db8::/64", "fe80::/10"]);
    let strict = Prefs { exit_node_allow_lan_access: false, ..prefs };
    let strict = assembled(&map(), &strict, &["192.168.1.0/24"]).router;
    assert_eq!(texts(&strict.local_routes), ["169.254.0.0/16", "fe80::/10"]);
    assert!(assembly.router.lan_first && !strict.lan_first);
    // Without an exit node there is nothing that could take the local networks.
    let none = Prefs { exit_node_allow_lan_access: false, ..Prefs::default() };
    assert!(assembled(&map(), &none, &["192.168.1.0/24"]).router.lan_first);
}

#[test]
fn traffic_waits_for_an_exit_node_that_is_away() {
    let mut map = map();
    map.peers.get_mut(&NodeId(3)).unwrap().online = Some(false);
    for (wanted, exit_node) in
        [("exit-1", ExitNode::Chosen(NodeId(3))), ("gone", ExitNode::Missing), ("nas", ExitNode::NotOffered(NodeId(2)))]
    {
        let assembly = assembled(&map, &Prefs { exit_node: wanted.to_owned(), ..Default::default() }, &["192.168.1.0/24"]);
        assert_eq!(assembly.exit_node, exit_node);
        let routes = texts(&assembly.router.routes);
        assert!(routes.contains(&"0.0.0.0/0".to_owned()) && routes.contains(&"::/0".to_owned()), "{wanted}");
        assert_eq!(assembly.notes.len(), 1, "{wanted}");
    }
}

#[test]
fn the_word_auto_leaves_the_choice_to_the_node_and_traffic_waits_for_it() {
    let map = map();
    let prefs = Prefs { exit_node: "auto".to_owned(), ..Default::default() };
    let with = |map: &NetMap, exit| {
        assemble(
            map,
            &prefs,
            Situation { interface: "pvemesh0", local_networks: &[], peer_api: &[], forwards: Forwards::default(), now: now(), exit },
        )
    };
    let held = |assembly: &Assembly| texts(&assembly.router.routes).contains(&"0.0.0.0/0".to_owned());
    let none = with(&map, None);
    assert!((none.exit_node, held(&none), none.notes.len()) == (ExitNode::Missing, true, 0), "it is being looked for: {:?}", none.notes);
    let choice = AutoChoice { id: NodeId(3), why: crate::node::Why::Fastest, answers: true, latency: None };
    let chosen = with(&map, Some(choice));
    assert!(allowed(&chosen, 3).contains(&"0.0.0.0/0".to_owned()) && chosen.exit_node == ExitNode::Chosen(NodeId(3)));
    assert!(chosen.notes.is_empty() && held(&chosen));
    let dead = with(&map, Some(AutoChoice { answers: false, ..choice }));
    assert!(held(&dead) && dead.exit_node == chosen.exit_node && dead.notes[0].contains("no exit node answers"), "{:?}", dead.notes);
    let mut nobody = map.clone();
    nobody.peers.get_mut(&NodeId(3)).unwrap().online = Some(false);
    let nobody = with(&nobody, None);
    assert!(held(&nobody) && nobody.notes[0].contains("no node that is online"), "{:?}", nobody.notes);
    assert!(["auto", "AUTO:any", " auto "].iter().all(|word| is_auto(word)) && !is_auto("auto.mesh"));
}

#[test]
fn whoever_offers_networks_forwards_and_masquerades() {
    let exit = Prefs { advertise_exit_node: true, ..Default::default() };
    let subnet = Prefs { advertise_routes: nets(&["192.168.1.0/24"]), ..Default::default() };
    for prefs in [exit, subnet] {
        let router = assembled(&map(), &prefs, &["192.168.1.0/24"]).router;
        assert!(router.forward && router.masquerade);
    }
}

#[test]
fn expired_keys_take_no_part() {
    let mut map = map();
    map.peers.get_mut(&NodeId(2)).unwrap().key_expiry = Some("2026-05-01T11:59:59Z".parse().unwrap());
    map.peers.get_mut(&NodeId(4)).unwrap().expired = true;
    assert_eq!(assembled(&map, &Prefs::default(), &[]).peers.iter().map(|p| p.id.0).collect::<Vec<_>>(), [3]);
    map.node.key_expiry = Some("2026-04-01T00:00:00Z".parse().unwrap());
    let assembly = assembled(&map, &Prefs::default(), &[]);
    assert!(assembly.peers.is_empty());
    assert!(assembly.notes.iter().any(|n| n.contains("expired")));
}

#[test]
fn trap_29_expiry_is_judged_by_the_coordinators_clock() {
    let mut map = map();
    map.node.key_expiry = Some("2026-05-01T18:00:00Z".parse().unwrap());
    map.peers.get_mut(&NodeId(2)).unwrap().key_expiry = Some("2026-05-01T06:00:00Z".parse().unwrap());
    let ids = |map: &NetMap| assembled(map, &Prefs::default(), &[]).peers.iter().map(|p| p.id.0).collect::<Vec<_>>();
    assert_eq!(ids(&map), [3, 4]);
    map.clock_skew_secs = -86_400;
    assert_eq!(ids(&map), [2, 3, 4], "our clock is a day early, and the peer's key still good");
    map.clock_skew_secs = 86_400;
    assert_eq!(ids(&map), [0i64; 0], "our clock is a day late, and our own key has expired");
}

#[test]
fn trap_23_a_key_under_two_numbers_belongs_to_the_later_one() {
    let mut map = map();
    map.peers.get_mut(&NodeId(4)).unwrap().key = map.peers[&NodeId(2)].key;
    let assembly = assembled(&map, &Prefs::default(), &[]);
    assert_eq!(assembly.peers.iter().map(|p| p.id.0).collect::<Vec<_>>(), [3, 4]);
    assert!(!texts(&assembly.router.routes).contains(&"100.64.0.2/32".to_owned()));
}

#[test]
fn the_filter_is_all_parts_of_the_rules_with_the_sources_that_have_a_capability() {
    let mut map = map();
    let rules = |text: &str| from_slice::<Vec<FilterRule>>(text.as_bytes()).unwrap();
    map.filters.insert("base".to_owned(), rules(r#"[{"SrcIPs":["cap:x/admin"],"DstPorts":[{"IP":"*","Ports":{"First":22,"Last":22}}]}]"#));
    map.filters.insert(
        "more".to_owned(),
        rules(r#"[{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":80,"Last":80}}]}, {"SrcIPs":["*"],"CapGrant":[{"Dsts":["*"]}]}]"#),
    );
    map.peers.get_mut(&NodeId(3)).unwrap().cap_map.insert("x/admin".to_owned(), Vec::new());
    let prefs = Prefs { advertise_routes: nets(&["192.168.1.0/24"]), advertise_exit_node: true, ..Prefs::default() };
    let filter = assembled(&map, &prefs, &["192.168.1.5/24"]).filter;
    assert_eq!(
        filter.rules.iter().map(|rule| rule.dst_ports[0].ports.first).collect::<Vec<_>>(),
        [22, 80],
        "a grant of capabilities lets nothing in"
    );
    let having: Vec<IpAddr> = vec!["100.64.0.3".parse().unwrap(), "fd7a:115c:a1e0::3".parse().unwrap()];
    assert_eq!(filter.capable.into_iter().collect::<Vec<_>>(), [("x/admin".to_owned(), having)]);
    assert_eq!(texts(&filter.addresses), ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]);
    assert_eq!((texts(&filter.subnets), texts(&filter.machine)), (vec!["192.168.1.0/24".to_owned()], vec!["192.168.1.0/24".to_owned()]));
    assert!(filter.exit && !filter.shields_up);
}

#[test]
fn what_is_said_to_a_peer_goes_between_addresses_of_one_family_and_only_to_one_with_a_disco_key() {
    let mut map = map();
    for (id, addresses) in [(3, &["fd7a:115c:a1e0::3/128", "100.64.0.3/32"][..]), (4, &["100.64.0.4/32"][..])] {
        let peer = map.peers.get_mut(&NodeId(id)).unwrap();
        (peer.addresses, peer.disco_key) = (nets(addresses), crate::ident::DiscoPublic::from_bytes([9; 32]));
    }
    let ends = |map: &NetMap| {
        let ends = |peer: PeerConfig| peer.ends.map(|(own, peer)| (own.to_string(), peer.to_string()));
        assembled(map, &Prefs::default(), &[]).peers.into_iter().map(ends).collect::<Vec<_>>()
    };
    let pair = |own: &str, peer: &str| Some((own.to_owned(), peer.to_owned()));
    assert_eq!(ends(&map), [None, pair("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::3"), pair("100.64.0.1", "100.64.0.4")]);
    map.node.addresses = nets(&["100.64.0.1/32"]);
    assert_eq!(ends(&map)[1], pair("100.64.0.1", "100.64.0.3"));
    map.node.addresses = nets(&["fd7a:115c:a1e0::1/128"]);
    assert_eq!(ends(&map)[2], None);
}

#[test]
fn the_network_of_a_site_is_forwarded_translated_and_leads_to_no_node_and_no_broadcast() {
    let prefs = Prefs { advertise_routes: nets(&["fd7a:115c:a1e0:b1a:0:7:192.168.1.0/120"]), ..Default::default() };
    let assembly = assembled(&map(), &prefs, &["192.168.1.1/24", "10.0.0.1/31", "fd00::1/64"]);
    assert!(assembly.router.forward && assembly.router.masquerade);
    let sites = assembly.sites;
    assert_eq!(sites.routes, ["fd7a:115c:a1e0:b1a:0:7:c0a8:100/120".parse().unwrap()]);
    assert_eq!(sites.own, "fd7a:115c:a1e0::1".parse().ok());
    let kept_out: Vec<String> = sites.kept_out.iter().map(ToString::to_string).collect();
    assert_eq!(kept_out, ["100.64.0.1", "100.64.0.2", "100.64.0.3", "100.64.0.4", "100.100.100.100", "192.168.1.255"]);
    assert_eq!(assembly.peers.iter().map(|peer| peer.v4).collect::<Vec<_>>(), [2, 3, 4].map(|n| Some(Ipv4Addr::new(100, 64, 0, n))));

    // Nothing of this where no site's network is offered.
    let plain = Prefs { advertise_routes: nets(&["192.168.1.0/24", "fd00::/64"]), ..Default::default() };
    assert_eq!(assembled(&map(), &plain, &["192.168.1.1/24"]).sites, SitesConfig::default());
}

#[test]
fn the_network_of_a_site_is_taken_like_any_other_and_one_machine_is_no_nodes_address() {
    let mut map = map();
    let site = nets(&["fd7a:115c:a1e0:b1a:0:7:192.168.1.0/120", "fd7a:115c:a1e0:b1a:0:8:192.168.1.9/128"]);
    map.peers.get_mut(&NodeId(3)).unwrap().allowed_ips.as_mut().unwrap().extend(&site);
    let with = |accept_routes| assembled(&map, &Prefs { accept_routes, ..Default::default() }, &["192.168.1.0/24"]);
    let routed = |assembly: &Assembly| {
        site.iter().map(|net| (assembly.router.routes.contains(net), allowed(assembly, 3).contains(&net.to_string()))).collect::<Vec<_>>()
    };
    assert_eq!(routed(&with(true)), [(true, true); 2], "although the same IPv4 network is here");
    assert_eq!(routed(&with(false)), [(false, false); 2]);
}
