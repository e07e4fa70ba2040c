#![allow(clippy::indexing_slicing, reason = "test code")]

use super::*;
use crate::ident::{DiscoPublic, NodeId, NodePublic, StableId, UserId};
use crate::wire::control::json::from_slice;
use crate::wire::control::{Node, PeerChange};

fn now() -> Wall {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

/// A session after a full first message with peers 2 and 3.
fn started() -> MapSession {
    let mut session = MapSession::default();
    let first = r#"{"Node":{"ID":1,"StableID":"n1","Name":"a.x.","Addresses":["100.64.0.1/32"]},
        "Peers":[{"ID":2,"Name":"b.x.","Endpoints":["192.0.2.1:1"],"HomeDERP":7},{"ID":3,"Name":"c.x."}],"Domain":"x",
        "DERPMap":{"Regions":{"1":{"RegionID":1},"2":null},"HomeParams":{"RegionScore":{"1":0.5}}},
        "DNSConfig":{"Domains":["x"]},"PacketFilters":{"base":[{"SrcIPs":["*"]}],"more":[]},"UserProfiles":[{"ID":1,"LoginName":"al"}],
        "Health":["slow"],"DisplayMessages":{"m":{"Title":"T"}}}"#;
    assert!(session.apply(from_slice(first.as_bytes()).unwrap(), now()).unwrap().changed);
    session
}

/// The map after the first message and then `json`.
fn after(json: &str) -> NetMap {
    let mut session = started();
    assert!(session.apply(from_slice(json.as_bytes()).unwrap(), now()).unwrap().changed, "{json}");
    session.netmap().unwrap().clone()
}

fn ids(map: &NetMap) -> Vec<i64> {
    map.peers.keys().map(|id| id.0).collect()
}

#[test]
fn trap_10_the_first_message_must_describe_the_node_and_nothing_carries_over() {
    let mut session = MapSession::default();
    let peers = MapResponse { peers: vec![Node::default()], ..Default::default() };
    assert_eq!(session.apply(peers, now()), Err(MapError::NoNode));
    assert!(session.netmap().is_none());
    // What a first message leaves out is empty, whatever an earlier stream said.
    session.apply(from_slice(br#"{"Node":{"ID":1}}"#).unwrap(), now()).unwrap();
    let expected = NetMap { node: Node { id: NodeId(1), ..Default::default() }, ..Default::default() };
    assert_eq!(session.netmap(), Some(&expected));
}

#[test]
fn a_keep_alive_changes_no_part_of_the_map_whatever_else_it_says() {
    let mut session = started();
    let before = session.netmap().unwrap().clone();
    let json = br#"{"KeepAlive":true,"PeersRemoved":[2],"Domain":"y","Health":["x"],"Node":{"ID":5},"DERPMap":{"Regions":{}}}"#;
    assert_eq!(session.apply(from_slice(json).unwrap(), now()), Ok(Applied::default()));
    assert_eq!(session.netmap(), Some(&before));
    let mut fresh = MapSession::default();
    assert_eq!(fresh.apply(MapResponse { keep_alive: true, ..Default::default() }, now()), Ok(Applied::default()));
    assert!(fresh.netmap().is_none());
}

#[test]
fn a_keep_alive_may_ask_something_and_tell_the_time() {
    let mut session = started();
    let json =
        br#"{"KeepAlive":true,"PingRequest":{"URL":"https://c/1"},"ControlTime":"2026-05-02T12:00:00Z","PopBrowserURL":"https://c/p"}"#;
    let applied = session.apply(from_slice(json).unwrap(), now()).unwrap();
    assert_eq!(applied.ping.unwrap().url, "https://c/1");
    let map = session.netmap().unwrap();
    assert_eq!((map.clock_skew_secs, map.page.as_str()), (86_400, "https://c/p"));
}

#[test]
fn a_question_is_answered_once() {
    let mut session = started();
    let mut ask = |url: &str| {
        let json = format!(r#"{{"KeepAlive":true,"PingRequest":{{"URL":"{url}"}}}}"#);
        session.apply(from_slice(json.as_bytes()).unwrap(), now()).unwrap().ping.is_some()
    };
    assert_eq!([ask("https://c/1"), ask("https://c/1"), ask("https://c/2"), ask("https://c/1")], [true, false, true, true]);
}

#[test]
fn trap_29_the_coordinators_clock_counts_for_expiry() {
    let mut session = started();
    let expiring = |control_time: &str| {
        format!(r#"{{"Node":{{"ID":1,"Name":"a.x.","KeyExpiry":"2026-05-01T18:00:00Z"}},"ControlTime":"{control_time}"}}"#)
    };
    let mut expired = |control_time: &str| {
        session.apply(from_slice(expiring(control_time).as_bytes()).unwrap(), now()).unwrap();
        let map = session.netmap().unwrap();
        (map.clock_skew_secs, map.has_expired(now()))
    };
    // Our clock says noon, and the key is good until six.
    assert_eq!(expired("2026-05-01T12:00:59Z"), (0, false), "less than a minute is no difference");
    assert_eq!(expired("2026-05-02T12:00:00Z"), (86_400, true), "our clock is a day late");
    assert_eq!(expired("2026-04-30T12:00:00Z"), (-86_400, false), "our clock is a day early");
    assert_eq!(expired("1970-01-01T00:00:00Z"), (-86_400, false), "a coordinator without a clock is not believed");
    assert_eq!(expired("2026-05-01T12:00:00Z"), (0, false));
}

#[test]
fn trap_11_an_empty_list_of_peers_and_null_change_nothing() {
    assert_eq!(after("{}"), started().netmap().unwrap().clone());
    let nothing = r#"{"Peers":[],"PeersChanged":null,"PeersChangedPatch":null,"PeersRemoved":null,"PeerSeenChange":null,"OnlineChange":null,
        "Node":null,"DERPMap":null,"DNSConfig":null,"Domain":"","CollectServices":null,"PacketFilter":null,"PacketFilters":null,
        "UserProfiles":null,"Health":null,"DisplayMessages":null,"SSHPolicy":null,"Debug":null,"PingRequest":null,
        "ControlTime":"0001-01-01T00:00:00Z","FieldOfTheFuture":{"a":[1]}}"#;
    assert_eq!(after(nothing), started().netmap().unwrap().clone());
}

#[test]
fn trap_11_a_full_list_of_peers_replaces_and_voids_the_other_changes() {
    let map = after(r#"{"Peers":[{"ID":9}],"PeersRemoved":[9],"PeersChanged":[{"ID":10}],"OnlineChange":{"9":true}}"#);
    assert_eq!(ids(&map), [9]);
    assert_eq!(map.peers[&NodeId(9)].online, None);
}

#[test]
fn removals_come_first_then_whole_nodes_then_patches() {
    let map = after(
        r#"{"PeersRemoved":[2,77],"PeersChanged":[{"ID":2,"Name":"new.x."},{"ID":4}],
            "PeersChangedPatch":[{"NodeID":2,"DERPRegion":5,"Online":true},{"NodeID":99,"DERPRegion":5}]}"#,
    );
    assert_eq!(ids(&map), [2, 3, 4]);
    let peer = &map.peers[&NodeId(2)];
    assert_eq!((peer.name.as_str(), peer.home_derp, peer.endpoints.len(), peer.online), ("new.x.", 5, 0, Some(true)));
}

#[test]
fn a_patch_changes_only_what_it_names() {
    let map = after(r#"{"PeersChangedPatch":[{"NodeID":2,"Online":false,"LastSeen":"2026-04-01T00:00:00Z"}]}"#);
    let peer = &map.peers[&NodeId(2)];
    assert_eq!((peer.home_derp, peer.endpoints.len(), peer.online), (7, 1, Some(false)));
    assert!(peer.last_seen.is_some());
    let map = after(r#"{"PeersChangedPatch":[{"NodeID":2,"Endpoints":[]}]}"#);
    assert!(map.peers[&NodeId(2)].endpoints.is_empty());
    let (key, disco) = (NodePublic::from_bytes([5; 32]), DiscoPublic::from_bytes([6; 32]));
    let map = after(&format!(
        r#"{{"PeersChangedPatch":[{{"NodeID":2,"Key":"{key}","DiscoKey":"{disco}","KeyExpiry":"2027-01-01T00:00:00Z","CapMap":{{"x":null}},"Cap":140}}]}}"#
    ));
    let peer = &map.peers[&NodeId(2)];
    assert_eq!((peer.key, peer.disco_key, peer.cap, peer.cap_map.len()), (key, disco, 140, 1));
}

#[test]
fn trap_30_an_old_processs_disco_key_does_not_come_back() {
    let mut session = started();
    let (new, old) = (DiscoPublic::from_bytes([1; 32]), DiscoPublic::from_bytes([2; 32]));
    for (key, online, seen) in [(new, true, "2026-04-02T00:00:00Z"), (old, false, "2026-04-01T00:00:00Z")] {
        let patch = format!(r#"{{"PeersChangedPatch":[{{"NodeID":2,"DiscoKey":"{key}","Online":{online},"LastSeen":"{seen}"}}]}}"#);
        session.apply(from_slice(patch.as_bytes()).unwrap(), now()).unwrap();
    }
    let peer = &session.netmap().unwrap().peers[&NodeId(2)];
    assert_eq!((peer.disco_key, peer.online), (new, Some(true)));
    // Nor by a full list.
    let mut full = |seen: &str| {
        let list = format!(r#"{{"Peers":[{{"ID":2,"DiscoKey":"{old}","Online":false,"LastSeen":"{seen}"}}]}}"#);
        session.apply(from_slice(list.as_bytes()).unwrap(), now()).unwrap();
        session.netmap().unwrap().peers[&NodeId(2)].disco_key
    };
    assert_eq!(full("2026-04-01T00:00:00Z"), new);
    assert_eq!(full("2026-04-03T00:00:00Z"), old);
}

#[test]
fn presence_is_told_per_peer() {
    let map = after(r#"{"PeerSeenChange":{"2":true,"3":false},"OnlineChange":{"2":true,"3":false,"8":true}}"#);
    assert_eq!(map.peers[&NodeId(2)].last_seen, Some(now()));
    assert_eq!((map.peers[&NodeId(3)].last_seen, map.peers[&NodeId(3)].online), (None, Some(false)));
    assert_eq!(ids(&map), [2, 3]);
}

#[test]
fn trap_12_an_empty_list_is_not_null() {
    let map = after(r#"{"PacketFilter":[],"DNSConfig":{"Routes":{"a.b":[],"c.d":[{"Addr":"10.0.0.53"}]}}}"#);
    assert!(map.filters["base"].is_empty(), "an empty filter blocks, it is not absent");
    assert!(map.dns.routes["a.b"].is_empty() && map.dns.routes["c.d"].len() == 1);
    let map = after(r#"{"PacketFilters":{"base":[],"more":null}}"#);
    assert!(map.filters["base"].is_empty() && !map.filters.contains_key("more"));
    let map = after(r#"{"PeersChangedPatch":[{"NodeID":2,"Endpoints":null}]}"#);
    assert_eq!(map.peers[&NodeId(2)].endpoints.len(), 1, "null is unchanged");
    let map = after(r#"{"PeersChangedPatch":[{"NodeID":2,"Endpoints":[]}]}"#);
    assert!(map.peers[&NodeId(2)].endpoints.is_empty(), "[] is none");
    let routed = |json: &str| {
        let map = after(&format!(r#"{{"PeersChanged":[{{"ID":5,"Addresses":["100.64.0.5/32"]{json}}}]}}"#));
        map.peers[&NodeId(5)].routed().len()
    };
    assert_eq!([routed(""), routed(r#","AllowedIPs":null"#), routed(r#","AllowedIPs":[]"#)], [1, 1, 0]);
}

#[test]
fn trap_13_a_zero_key_is_none_and_an_empty_text_is_no_key() {
    let zero = format!("discokey:{}", "0".repeat(64));
    let map = after(&format!(r#"{{"PeersChanged":[{{"ID":5,"DiscoKey":"{zero}","Key":null,"CapMap":{{"x":null}},"Online":null}}]}}"#));
    let peer = &map.peers[&NodeId(5)];
    assert!(peer.disco_key.is_zero() && peer.key.is_zero() && peer.cap_map.contains_key("x") && peer.online.is_none());
    let patched = after(&format!(r#"{{"PeersChangedPatch":[{{"NodeID":2,"DiscoKey":"{zero}","DERPRegion":0}}]}}"#));
    assert_eq!((patched.peers[&NodeId(2)].disco_key.is_zero(), patched.peers[&NodeId(2)].home_derp), (true, 7));
    assert!(from_slice::<MapResponse>(br#"{"PeersChanged":[{"ID":5,"DiscoKey":""}]}"#).is_err());
}

#[test]
fn filters_are_replaced_by_name() {
    let names = |map: &NetMap| map.filters.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after(r#"{"PacketFilters":{"base":null}}"#)), ["more"]);
    assert_eq!(names(&after(r#"{"PacketFilters":{"*":null,"new":[]}}"#)), ["new"]);
    // The old form is a part like any other, and the named ones come after it.
    assert_eq!(after(r#"{"PacketFilter":[{"SrcIPs":["a"]}],"PacketFilters":{"base":[]}}"#).filters["base"], []);
}

#[test]
fn relays_are_updated_in_parts() {
    let regions = |map: &NetMap| map.derp.regions.as_ref().unwrap().keys().copied().collect::<Vec<_>>();
    let first = started().netmap().unwrap().clone();
    assert_eq!(regions(&first), [1], "a region without value is none");
    let map = after(r#"{"DERPMap":{"HomeParams":{"RegionScore":{}}}}"#);
    assert_eq!(regions(&map), [1]);
    assert!(map.derp.home_params.unwrap().region_score.unwrap().is_empty());
    let map = after(r#"{"DERPMap":{"Regions":{"3":{"RegionID":3}},"HomeParams":{}}}"#);
    assert_eq!(regions(&map), [3]);
    assert_eq!(map.derp.home_params.unwrap().region_score.unwrap().len(), 1);
}

#[test]
fn users_are_added_and_names_replaced() {
    let map =
        after(r#"{"UserProfiles":[{"ID":2,"LoginName":"bo"},{"ID":1,"LoginName":"alice"}],"DNSConfig":{"Proxied":true},"Domain":"y"}"#);
    assert_eq!((map.users.len(), map.users[&UserId(1)].login_name.as_str()), (2, "alice"));
    assert!(map.dns.domains.is_empty() && map.dns.proxied);
    assert_eq!(map.domain, "y");
}

#[test]
fn the_node_itself_and_its_messages_are_replaced() {
    let map = after(r#"{"Node":{"ID":1,"StableID":"n9"},"Health":[],"DisplayMessages":{"*":null,"n":{"Title":"N"}}}"#);
    assert_eq!(map.node.stable_id, StableId("n9".to_owned()));
    assert!(map.node.addresses.is_empty() && map.health.is_empty());
    assert_eq!(map.messages.keys().collect::<Vec<_>>(), ["n"]);
}

#[test]
fn messages_replace_each_other_by_id() {
    let titles = |map: &NetMap| map.messages.values().map(|m| m.title.clone()).collect::<Vec<_>>();
    assert_eq!(titles(&after(r#"{"DisplayMessages":{"m":{"Title":"U"},"n":{"Title":"N"}}}"#)), ["U", "N"]);
    assert!(titles(&after(r#"{"DisplayMessages":{"m":null,"unknown":null}}"#)).is_empty());
}

#[test]
fn a_map_beyond_every_bound_is_given_up() {
    let many = |from: i64| (from..).take(60_000).map(|n| Node { id: NodeId(n), ..Default::default() }).collect();
    let mut session = started();
    session.apply(MapResponse { peers_changed: many(10), ..Default::default() }, now()).unwrap();
    assert_eq!(session.apply(MapResponse { peers_changed: many(70_000), ..Default::default() }, now()), Err(MapError::TooLarge));

    let list = |count: usize| format!(r#"{{"Peers":[{}{{}}]}}"#, "{},".repeat(count - 1));
    assert!(from_slice::<MapResponse>(list(MAX_ENTRIES).as_bytes()).is_ok());
    assert!(from_slice::<MapResponse>(list(MAX_ENTRIES + 1).as_bytes()).is_err());
    assert!(is_bounded(list(1000).as_bytes()) && !is_bounded(list(MAX_VALUES).as_bytes()));
}

/// The rules once more, as plainly as can be, over a list and without any of the merger's parts.
mod naive {
    use super::*;

    pub(super) fn merge(peers: &mut Vec<Node>, message: &MapResponse, now: Wall) {
        if !message.peers.is_empty() {
            peers.clear();
            for peer in &message.peers {
                peers.retain(|p| p.id != peer.id);
                peers.push(peer.clone());
            }
            return;
        }
        peers.retain(|p| !message.peers_removed.contains(&p.id));
        for peer in &message.peers_changed {
            peers.retain(|p| p.id != peer.id);
            peers.push(peer.clone());
        }
        for peer in peers.iter_mut() {
            match message.peer_seen_change.get(&peer.id) {
                Some(true) => peer.last_seen = Some(now),
                Some(false) => peer.last_seen = None,
                None => {}
            }
            if let Some(online) = message.online_change.get(&peer.id) {
                peer.online = Some(*online);
            }
            for patch in message.peers_changed_patch.iter().filter(|patch| patch.node_id == peer.id) {
                if patch.derp_region != 0 {
                    peer.home_derp = patch.derp_region;
                }
                peer.endpoints = patch.endpoints.clone().unwrap_or_else(|| peer.endpoints.clone());
                peer.online = patch.online.or(peer.online);
                peer.disco_key = patch.disco_key.unwrap_or(peer.disco_key);
            }
        }
    }
}

use proptest::prelude::*;

fn a_node() -> impl Strategy<Value = Node> {
    (1i64..12, 0i32..4, any::<Option<bool>>(), 0u8..3).prop_map(|(id, home_derp, online, endpoints)| Node {
        id: NodeId(id),
        home_derp,
        online,
        endpoints: (0..endpoints).map(|n| ([192, 0, 2, n], 1).into()).collect(),
        ..Default::default()
    })
}

fn a_patch() -> impl Strategy<Value = PeerChange> {
    (1i64..12, 0i32..4, any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<u8>>()).prop_map(
        |(id, derp_region, online, endpoints, disco)| PeerChange {
            node_id: NodeId(id),
            derp_region,
            online,
            endpoints: endpoints.map(|some| if some { vec![([192, 0, 2, 9], 9).into()] } else { vec![] }),
            disco_key: disco.map(|n| DiscoPublic::from_bytes([n.max(1); 32])),
            ..Default::default()
        },
    )
}

fn a_message() -> impl Strategy<Value = MapResponse> {
    let few = 0..4usize;
    let presence = || proptest::collection::btree_map((1i64..12).prop_map(NodeId), any::<bool>(), 0..3);
    (
        // A full list is rare.
        prop_oneof![6 => Just(vec![]), 1 => proptest::collection::vec(a_node(), few.clone())],
        proptest::collection::vec(a_node(), few.clone()),
        proptest::collection::vec((1i64..12).prop_map(NodeId), few.clone()),
        proptest::collection::vec(a_patch(), few),
        presence(),
        presence(),
    )
        .prop_map(|(peers, peers_changed, peers_removed, peers_changed_patch, peer_seen_change, online_change)| MapResponse {
            peers,
            peers_changed,
            peers_removed,
            peers_changed_patch,
            peer_seen_change,
            online_change,
            ..Default::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_row_of_messages_leads_where_the_plain_rules_lead(messages in proptest::collection::vec(a_message(), 1..12)) {
        let mut session = MapSession::default();
        let mut naive = Vec::new();
        session.apply(MapResponse { node: Some(Node::default()), ..Default::default() }, now()).unwrap();
        for message in messages {
            naive::merge(&mut naive, &message, now());
            // Over the wire, as the real ones come.
            let json = serde_json::to_vec(&message).unwrap();
            session.apply(from_slice(&json).unwrap(), now()).unwrap();
            naive.sort_by_key(|peer| peer.id);
            let merged: Vec<Node> = session.netmap().unwrap().peers.values().cloned().collect();
            prop_assert_eq!(&merged, &naive);
        }
    }

    #[test]
    fn mangled_messages_never_panic(message in a_message(), cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), keep in any::<prop::sample::Index>()) {
        let mut json = serde_json::to_vec(&MapResponse { node: Some(Node::default()), ..message }).unwrap();
        for (at, byte) in cuts {
            let at = at.index(json.len());
            json[at] = byte;
        }
        json.truncate(keep.index(json.len()) + 1);
        let mut session = started();
        for session in [&mut MapSession::default(), &mut session] {
            if let Ok(message) = from_slice(&json) {
                let _ = session.apply(message, now());
            }
        }
    }
}
