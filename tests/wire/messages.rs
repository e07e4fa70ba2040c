use proptest::prelude::*;
use pvemesh::ident::{NodeId, NodePrivate};
use pvemesh::wire::control::json::from_slice;
use pvemesh::wire::control::*;

const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn key() -> String {
    NodePrivate::from_seed([3; 32]).public().to_string()
}

/// A first message of the map stream with everything a stock coordinator sends.
fn full_map() -> String {
    let key = key();
    format!(
        r#"{{"Node":{{"ID":9007199254740993,"StableID":"n1","Name":"alpha.example.test.","User":1,"Key":"{key}","Machine":"mkey:{ZERO}",
        "DiscoKey":"discokey:{ZERO}","KeyExpiry":"0001-01-01T00:00:00Z","Addresses":["100.64.0.1/32","fd7a:115c:a1e0::1/128"],"AllowedIPs":null,
        "HomeDERP":900,"Hostinfo":{{"Hostname":"alpha","OS":"linux"}},"Created":"2026-01-01T00:00:00Z","MachineAuthorized":true,
        "CapMap":{{"https://tailscale.com/cap/ssh":[],"https://tailscale.com/cap/SSH":null,"x":[{{"a":1}}]}}}},
        "Peers":[{{"ID":2,"Name":"beta.example.test.","Key":"{key}","Addresses":["100.64.0.2/32"],"AllowedIPs":["100.64.0.2/32","10.1.0.0/16"],
          "PrimaryRoutes":["10.1.0.0/16"],"Endpoints":["198.51.100.7:41641","[fe80::1%eth0]:1"],"Online":true,"LastSeen":null,"Tags":null}}],
        "DERPMap":{{"Regions":{{"900":{{"RegionID":900,"RegionCode":"own","RegionName":"Own","Nodes":[{{"Name":"900a","RegionID":900,"HostName":"derp.example.test"}}]}},"901":null}}}},
        "DNSConfig":{{"Proxied":true,"Domains":["example.test"],"Routes":{{"Corp.Example":[],"c.d":null}}}},
        "PacketFilters":{{"base":[{{"SrcIPs":["*"],"DstPorts":[{{"IP":"*","Ports":{{"First":0,"Last":65535}}}}]}}],"x":null}},
        "UserProfiles":[{{"ID":1,"LoginName":"alice@example.com","DisplayName":"alice \u00e9 \"q\""}}],
        "Domain":"example.test","CollectServices":false,"Debug":{{"DisableLogTail":true}},"SSHPolicy":{{"rules":[]}},"Unknown":[1,{{}}],
        "ControlTime":"2026-08-22T12:00:00Z"}}"#
    )
}

#[test]
fn a_full_map_is_read() {
    let map: MapResponse = from_slice(full_map().as_bytes()).unwrap();
    let node = map.node.unwrap();
    assert_eq!(node.id, NodeId(9_007_199_254_740_993));
    assert_eq!((node.key_expiry, node.allowed_ips.as_ref(), node.routed().len()), (None, None, 2));
    // Map keys keep their case, field names do not matter.
    assert_eq!(node.cap_map.len(), 3);
    assert_eq!(node.cap_map["https://tailscale.com/cap/SSH"].len(), 0);
    let peer = &map.peers[0];
    assert_eq!(peer.endpoints, ["198.51.100.7:41641".parse().unwrap()], "an endpoint with a zone is left out, the rest stays");
    assert_eq!((peer.online, peer.short_name()), (Some(true), "beta"));
    let dns = map.dns_config.unwrap();
    assert!(dns.routes.contains_key("Corp.Example") && dns.routes["c.d"].is_empty());
    assert_eq!(map.packet_filters["x"], None);
    let regions = map.derp_map.unwrap().regions.unwrap();
    assert!(regions[&900].is_some() && regions[&901].is_none());
    assert_eq!(map.user_profiles[0].display_name, "alice é \"q\"");
}

#[test]
fn trap_05_field_names_match_in_any_case() {
    let request = format!(
        r#"{{"Version":130,"KEEPALIVE":true,"nodekey":"{}","Stream":true,"HostInfo":{{"Hostname":"probe","IpnVersion":"1","NetInfo":{{"PreferredDerp":7}}}}}}"#,
        key()
    );
    let request: MapRequest = from_slice(request.as_bytes()).unwrap();
    let hostinfo = request.hostinfo.unwrap();
    assert_eq!((hostinfo.hostname.as_str(), hostinfo.ipn_version.as_str()), ("probe", "1"));
    assert_eq!(hostinfo.net_info.unwrap().preferred_derp, 7);
    assert!(request.keep_alive && request.disco_key.is_zero());
}

#[test]
fn null_is_the_empty_value_everywhere() {
    let map: MapResponse = from_slice(
        br#"{"Node":null,"Peers":null,"PeersRemoved":null,"OnlineChange":null,"PacketFilter":null,"Domain":null,"KeepAlive":null,
            "PeersChangedPatch":[{"NodeID":null,"Endpoints":null,"DERPRegion":null,"Key":null}],"PeersChanged":[{"ID":4,"Key":null,"Hostinfo":null}]}"#,
    )
    .unwrap();
    assert_eq!(map.peers_changed_patch, [PeerChange::default()]);
    assert!(map.packet_filter.is_none() && map.peers_changed[0].key.is_zero());
}

#[test]
fn empty_fields_are_left_out_where_null_would_hurt() {
    assert_eq!(serde_json::to_string(&MapResponse { keep_alive: true, ..Default::default() }).unwrap(), r#"{"KeepAlive":true}"#);
    let json = serde_json::to_string(&MapResponse { node: Some(Node::default()), ..Default::default() }).unwrap();
    for field in ["Endpoints", "PrimaryRoutes", "CapMap", "HomeDERP", "DiscoKey", "Peers", "OnlineChange", "null"] {
        assert!(!json.contains(field), "{field} in {json}");
    }
    let patch = PeerChange { node_id: NodeId(2), endpoints: Some(vec![]), ..Default::default() };
    assert_eq!(serde_json::to_string(&patch).unwrap(), r#"{"NodeID":2,"Endpoints":[]}"#);
}

#[test]
fn trap_08_a_registration_answer_has_every_field() {
    let json = serde_json::to_string(&RegisterResponse { machine_authorized: true, ..Default::default() }).unwrap();
    for field in ["User", "Login", "Provider", "LoginName", "NodeKeyExpired", "MachineAuthorized", "AuthURL", "Error", "NodeKeySignature"] {
        assert!(json.contains(&format!("\"{field}\":")), "{field} in {json}");
    }
    let request: RegisterRequest = from_slice(
        format!(r#"{{"Version":145,"NodeKey":"{}","OldNodeKey":"nodekey:{ZERO}","Auth":{{"AuthKey":"k"}},"Expiry":"0001-01-01T00:00:00Z","NodeKeySignature":null}}"#, key()).as_bytes(),
    )
    .unwrap();
    assert_eq!(request.expiry, None);
    assert_eq!(request.auth.unwrap().auth_key.expose(), "k");
    let logout: RegisterRequest = from_slice(br#"{"Expiry":"1970-01-01T00:02:03Z"}"#).unwrap();
    assert_eq!(logout.expiry.unwrap().as_second(), 123);
}

#[test]
fn what_is_written_is_read_back() {
    let map: MapResponse = from_slice(full_map().as_bytes()).unwrap();
    let again: MapResponse = from_slice(&serde_json::to_vec(&map).unwrap()).unwrap();
    assert_eq!(again, map);
}

#[test]
fn more_values_than_allowed_are_refused_wherever_they_are() {
    use pvemesh::wire::control::json::from_slice_within;
    let list = |count: usize| format!(r#"{{"DebugFlags":[{}]}}"#, vec!["\"\""; count].join(","));
    assert_eq!(from_slice_within::<MapRequest>(11, list(10).as_bytes()).unwrap().debug_flags.len(), 10);
    let spread = r#"{"Hostinfo":{"Location":[{"a":1},{"b":[2,3]}],"NetInfo":{"DERPLatency":{"x":1}}}}"#;
    for (limit, text) in [(10, list(10)), (10, list(500_000)), (10, spread.to_owned())] {
        let error = from_slice_within::<MapRequest>(limit, text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("more values"), "{error}");
    }
    assert!(from_slice_within::<MapRequest>(11, spread.as_bytes()).is_ok());
    // What nobody reads costs nothing.
    assert!(from_slice_within::<MapRequest>(1, format!(r#"{{"Nope":[{}]}}"#, vec!["0"; 1000].join(",")).as_bytes()).is_ok());
}

#[test]
fn a_list_is_no_structure() {
    assert!(from_slice::<MapRequest>(b"[130]").is_err());
    assert!(from_slice::<MapRequest>(br#"{"Hostinfo":["1"]}"#).is_err());
    assert!(from_slice::<MapResponse>(br#"{"Peers":[[1]]}"#).is_err());
}

#[test]
fn deep_nesting_is_refused_without_overflow() {
    let deep = format!("{}{}", r#"{"SSHPolicy":"#, "[".repeat(100_000));
    assert!(from_slice::<MapResponse>(deep.as_bytes()).is_err());
    let ignored = format!("{}{}", r#"{"Nope":"#, "[".repeat(100_000));
    assert!(from_slice::<MapResponse>(ignored.as_bytes()).is_err());
}

proptest! {
    #[test]
    fn mangled_maps_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), keep in any::<prop::sample::Index>()) {
        let mut bytes = full_map().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = from_slice::<MapResponse>(&bytes);
        bytes.truncate(keep.index(bytes.len()));
        prop_assert!(from_slice::<MapResponse>(&bytes).is_err(), "a cut message is no message");
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = from_slice::<MapResponse>(&bytes);
        let _ = from_slice::<MapRequest>(&bytes);
        let _ = from_slice::<RegisterRequest>(&bytes);
        let _ = from_slice::<RegisterResponse>(&bytes);
    }
}
