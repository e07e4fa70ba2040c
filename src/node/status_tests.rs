#![allow(clippy::indexing_slicing, reason = "test code")]

use super::*;
use crate::coord::client::MapSession;
use crate::time::Time;
use crate::wire::control::json::from_slice;
use crate::wire::tsmp::Reason;

fn now() -> Wall {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn map() -> NetMap {
    let json = format!(
        r#"{{"Node":{{"ID":1,"StableID":"n1","Name":"laptop.mesh.test.","User":7,"Addresses":["100.64.0.1/32"],"MachineAuthorized":true,
              "Hostinfo":{{"Hostname":"Laptop of Al"}},"KeyExpiry":"2026-08-01T00:00:00Z"}},
            "Peers":[{{"ID":2,"StableID":"n2","Name":"exit-1.mesh.test.","User":7,"Key":"nodekey:{}","Addresses":["100.64.0.2/32"],
              "AllowedIPs":["100.64.0.2/32","0.0.0.0/0","::/0"],"HomeDERP":900,"Online":true,"LastSeen":"2026-04-01T00:00:00Z"}},
             {{"ID":3,"StableID":"n3","Name":"nas.mesh.test.","User":9,"Key":"nodekey:{}","Addresses":["100.64.0.3/32"],"Online":false,
              "LastSeen":"2026-04-01T00:00:00Z","DERP":"127.3.3.40:900","KeyExpiry":"2026-04-02T00:00:00Z"}}],
            "Domain":"al's","UserProfiles":[{{"ID":7,"LoginName":"al@mesh.test","DisplayName":"Al"}}],"DNSConfig":{{"Proxied":true}},
            "DERPMap":{{"Regions":{{"900":{{"RegionID":900,"RegionCode":"own"}}}}}}}}"#,
        "11".repeat(32),
        "22".repeat(32)
    );
    let mut session = MapSession::default();
    session.apply(from_slice(json.as_bytes()).unwrap(), now()).unwrap();
    session.netmap().unwrap().clone()
}

fn shown(prefs: &Prefs, progress: &Progress, map: Option<&NetMap>) -> Status {
    let traffic = |key: &NodePublic| {
        let busy = key.as_bytes()[0] == 0x11;
        let at = if busy { "2026-05-01T11:59:00Z" } else { "2026-05-01T11:00:00Z" };
        let endpoint = busy.then(|| ([192, 0, 2, 1], 7).into());
        let since = at.parse().ok().map(|at| (at, "it has answered"));
        let flow = |port, reason| RefusedFlow { protocol: 6, to: ([100, 64, 0, 2], port).into(), reason, at: Time::default(), times: 2 };
        let flows = [(flow(22, Reason::Policy), now()), (flow(80, Reason::Policy), "2026-05-01T11:00:00Z".parse().unwrap())];
        let refused = if busy { flows.to_vec() } else { Vec::new() };
        let relay = (!busy).then_some(RegionId(900));
        Traffic { endpoint, relay, since, last_handshake: at.parse().ok(), refused, rx_bytes: 5, tx_bytes: 6 }
    };
    status(Sources { prefs, progress, map, assembly: None, auto: None, now: now() }, traffic)
}

fn wanted() -> Prefs {
    Prefs { login_server: "http://c".to_owned(), want_running: true, ..Default::default() }
}

#[test]
fn states_follow_what_is_known() {
    let mut prefs = Prefs::default();
    let mut progress = Progress::default();
    let state = |prefs: &Prefs, progress: &Progress, map: Option<&NetMap>| shown(prefs, progress, map).backend_state;
    assert_eq!(state(&prefs, &progress, None), BackendState::NoState);
    prefs.login_server = "http://c".to_owned();
    assert_eq!(state(&prefs, &progress, None), BackendState::Stopped);
    prefs.want_running = true;
    assert_eq!(state(&prefs, &progress, None), BackendState::Starting);
    let mut map = map();
    // No relay map at all, and the coordinator away: still running.
    map.derp = Default::default();
    assert_eq!(state(&prefs, &progress, Some(&map)), BackendState::Running);
    map.node.machine_authorized = false;
    assert_eq!(state(&prefs, &progress, Some(&map)), BackendState::NeedsMachineAuth);
    map.node.key_expiry = Some("2026-05-01T11:00:00Z".parse().unwrap());
    assert_eq!(state(&prefs, &progress, Some(&map)), BackendState::NeedsLogin);
    map.clock_skew_secs = -86_400;
    assert_eq!(state(&prefs, &progress, Some(&map)), BackendState::NeedsMachineAuth, "by the coordinator's clock it is still good");
    progress.refusal = "authkey expired".to_owned();
    assert_eq!(state(&prefs, &progress, None), BackendState::NeedsLogin);
}

#[test]
fn the_names_of_the_stock_clients_status_are_kept() {
    let value = serde_json::to_value(shown(&wanted(), &Progress { online: true, ..Default::default() }, Some(&map()))).unwrap();
    let has = |value: &serde_json::Value, names: &[&str]| names.iter().all(|name| value.get(name).is_some());
    assert!(has(
        &value,
        &[
            "Version",
            "TUN",
            "BackendState",
            "HaveNodeKey",
            "AuthURL",
            "TailscaleIPs",
            "Self",
            "Health",
            "MagicDNSSuffix",
            "CurrentTailnet",
            "CertDomains",
            "Peer",
            "User"
        ]
    ));
    assert_eq!(value["CurrentTailnet"], serde_json::json!({ "Name": "al's", "MagicDNSSuffix": "mesh.test", "MagicDNSEnabled": true }));
    assert_eq!(value["User"]["7"]["LoginName"], "al@mesh.test");
    assert_eq!(value["Self"]["HostName"], "Laptop of Al");
    let peer = &value["Peer"][format!("nodekey:{}", "11".repeat(32))];
    assert!(has(
        peer,
        &[
            "ID",
            "NodeID",
            "PublicKey",
            "HostName",
            "DNSName",
            "OS",
            "UserID",
            "TailscaleIPs",
            "AllowedIPs",
            "Addrs",
            "CurAddr",
            "Relay",
            "RxBytes",
            "TxBytes",
            "LastHandshake",
            "Online",
            "ExitNode",
            "ExitNodeOption",
            "Active",
            "InNetworkMap",
            "InEngine"
        ]
    ));
    assert_eq!((&peer["CurAddr"], &peer["Relay"]), (&serde_json::json!("192.0.2.1:7"), &serde_json::json!("own")));
    assert_eq!((&peer["RxBytes"], &peer["Active"], &peer["ExitNodeOption"]), (&5.into(), &true.into(), &true.into()));
    let read: Status = serde_json::from_value(value).unwrap();
    assert_eq!(read.peer.len(), 2);
}

#[test]
fn trap_30_when_a_peer_was_last_seen_is_told_only_while_it_is_offline() {
    let status = shown(&wanted(), &Progress::default(), Some(&map()));
    let peer = |id: &str| status.peer.values().find(|peer| peer.id.0 == id).unwrap();
    assert_eq!((peer("n2").online, peer("n2").last_seen), (true, None));
    assert!(!peer("n3").online && peer("n3").last_seen.is_some());
    assert_eq!((peer("n3").relay.as_str(), peer("n3").expired, peer("n3").active), ("own", true, false), "the old form of the relay, too");
    assert!(!status.node.unwrap().online, "this node is online if its coordinator is reached");
}

#[test]
fn what_a_peer_has_refused_is_shown_while_somebody_may_wonder() {
    let status = shown(&wanted(), &Progress::default(), Some(&map()));
    let value = serde_json::to_value(&status).unwrap();
    let expected = serde_json::json!([{
        "Protocol": "TCP", "To": "100.64.0.2:22", "Reason": "the policy does not allow it", "At": "2026-05-01T12:00:00Z", "Times": 2
    }]);
    assert_eq!(value["Peer"][format!("nodekey:{}", "11".repeat(32))]["Refused"], expected, "not the one of an hour ago");
    assert_eq!(value["Peer"][format!("nodekey:{}", "22".repeat(32))].get("Refused"), None);
}
