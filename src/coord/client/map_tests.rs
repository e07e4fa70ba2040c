#![allow(clippy::indexing_slicing, reason = "test code")]

use super::*;
use crate::ident::{DiscoPublic, NodePublic, StableId, UserId};
use crate::wire::control::json::from_slice;

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
    assert_eq!(session.apply(from_slice(first.as_bytes()).unwrap(), now()), Ok(true));
    session
}

/// The map after the first message and then `json`.
fn after(json: &str) -> NetMap {
    let mut session = started();
    assert_eq!(session.apply(from_slice(json.as_bytes()).unwrap(), now()), Ok(true), "{json}");
    session.netmap().unwrap().clone()
}

fn ids(map: &NetMap) -> Vec<i64> {
    map.peers.keys().map(|id| id.0).collect()
}

#[test]
fn the_first_message_must_describe_the_node() {
    let mut session = MapSession::default();
    let peers = MapResponse { peers: vec![Node::default()], ..Default::default() };
    assert_eq!(session.apply(peers, now()), Err(MapError::NoNode));
    assert!(session.netmap().is_none());
}

#[test]
fn a_keep_alive_changes_nothing_whatever_else_it_says() {
    let mut session = started();
    let before = session.netmap().unwrap().clone();
    let message = from_slice(br#"{"KeepAlive":true,"PeersRemoved":[2],"Domain":"y"}"#).unwrap();
    assert_eq!(session.apply(message, now()), Ok(false));
    assert_eq!(session.netmap(), Some(&before));
    let mut fresh = MapSession::default();
    assert_eq!(fresh.apply(MapResponse { keep_alive: true, ..Default::default() }, now()), Ok(false));
}

#[test]
fn an_empty_message_changes_nothing() {
    assert_eq!(after("{}"), started().netmap().unwrap().clone());
    assert_eq!(after(r#"{"Peers":[],"PeersChanged":null,"PacketFilter":null,"Domain":""}"#), started().netmap().unwrap().clone());
}

#[test]
fn a_full_list_of_peers_replaces_and_voids_the_other_changes() {
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
fn an_old_processs_disco_key_does_not_come_back() {
    let mut session = started();
    let (new, old) = (DiscoPublic::from_bytes([1; 32]), DiscoPublic::from_bytes([2; 32]));
    for (key, online, seen) in [(new, true, "2026-04-02T00:00:00Z"), (old, false, "2026-04-01T00:00:00Z")] {
        let patch = format!(r#"{{"PeersChangedPatch":[{{"NodeID":2,"DiscoKey":"{key}","Online":{online},"LastSeen":"{seen}"}}]}}"#);
        session.apply(from_slice(patch.as_bytes()).unwrap(), now()).unwrap();
    }
    let peer = &session.netmap().unwrap().peers[&NodeId(2)];
    assert_eq!((peer.disco_key, peer.online), (new, Some(true)));
}

#[test]
fn presence_is_told_per_peer() {
    let map = after(r#"{"PeerSeenChange":{"2":true,"3":false},"OnlineChange":{"2":true,"3":false,"8":true}}"#);
    assert_eq!(map.peers[&NodeId(2)].last_seen, Some(now()));
    assert_eq!((map.peers[&NodeId(3)].last_seen, map.peers[&NodeId(3)].online), (None, Some(false)));
    assert_eq!(ids(&map), [2, 3]);
}

#[test]
fn filters_are_replaced_by_name() {
    let names = |map: &NetMap| map.filters.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after(r#"{"PacketFilters":{"base":null}}"#)), ["more"]);
    assert_eq!(names(&after(r#"{"PacketFilters":{"*":null,"new":[]}}"#)), ["new"]);
    let map = after(r#"{"PacketFilter":[]}"#);
    assert!(map.filters["base"].is_empty(), "an empty filter blocks, it is not absent");
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
