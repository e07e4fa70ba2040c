//! Joining and being told, over real connections.

use std::time::Duration;

use pvemesh::ident::{MachinePrivate, NodePrivate, Secret};
use pvemesh::wire::control::{MAP_PATH, MapRequest, REGISTER_PATH, RegisterRequest, RegisterResponse};

use crate::net::*;
use crate::world::{disco, net};

#[tokio::test]
async fn a_node_joins_with_a_single_use_key_which_then_works_for_nobody_else() {
    let server = Running::start().await;
    let key = server.key(|_| {}).await;
    let alpha = Client::connect(&server.url(), 1).await;
    let answer = alpha.register(Some(&key), "alpha").await;
    assert_eq!((answer.error.as_str(), answer.machine_authorized), ("", true));
    let beta = Client::connect(&server.url(), 2).await;
    assert!(beta.register(Some(&key), "beta").await.error.contains("already been used"));
    // The node itself may come again with it, as containers do on every start.
    let again = Client::connect(&server.url(), 1).await;
    assert_eq!(again.register(Some(&key), "alpha").await.error, "");
    let map = again.stream("").await.next().await.unwrap();
    assert_eq!(map.node.unwrap().addresses, [net("100.64.0.1/32"), net("fd7a:115c:a1e0::1/128")]);
}

#[tokio::test]
async fn unknown_expired_and_revoked_keys_are_refused_with_their_reason() {
    let server = Running::start().await;
    let client = Client::connect(&server.url(), 1).await;
    let unknown = Secret::new(format!("pvmkey-auth-0123456789ab-{}", "0".repeat(64)));
    assert!(client.register(Some(&unknown), "alpha").await.error.contains("not known here"));
    let revoked = server.key(|_| {}).await;
    server.admin().revoke_key(1).await.unwrap();
    assert!(client.register(Some(&revoked), "alpha").await.error.contains("was revoked"));
    let short = server.key(|k| (k.expires_in_secs, k.only_for) = (1, Some("other".parse().unwrap()))).await;
    within("the key's end", async {
        // Until it expires it is refused for the wrong name, which does not use it up.
        while !client.register(Some(&short), "alpha").await.error.contains("expired at") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(server.admin().nodes().await.unwrap().is_empty());
}

#[tokio::test]
async fn nodes_see_each_other_join_move_and_leave_as_deltas() {
    let server = Running::start().await;
    let alpha = server.joined(1, "alpha").await;
    for compress in ["", "zstd"] {
        let mut stream = alpha.stream(compress).await;
        let first = stream.next().await.unwrap();
        assert!(first.node.is_some() && first.control_time.is_some());
        let n = if compress.is_empty() { 2 } else { 3 };
        let beta = server.joined(n, &format!("n{n}")).await;
        let joined = stream.until("the join", |told| !told.peers_changed.is_empty()).await;
        let id = joined.peers_changed[0].id;
        assert_eq!(joined.peers_changed[0].name, format!("n{n}.mesh.test."));
        let mut other = beta.stream("").await;
        assert!(other.next().await.unwrap().peers.iter().any(|peer| peer.name == "alpha.mesh.test."));
        let online = |told: &pvemesh::wire::control::MapResponse, wanted| {
            told.peers_changed_patch.iter().any(|patch| patch.node_id == id && patch.online == Some(wanted))
        };
        stream.until("being online", |told| online(told, true)).await;
        let begun = std::time::Instant::now();
        beta.report(|request| {
            request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()];
            request.disco_key = disco(n);
        })
        .await
        .unwrap();
        let moved = stream.until("the endpoint", |told| !told.peers_changed_patch.is_empty()).await;
        let patch = &moved.peers_changed_patch[0];
        assert_eq!((patch.node_id, patch.disco_key), (id, Some(disco(n))));
        assert_eq!(patch.endpoints.as_deref(), Some(&["192.0.2.7:41641".parse().unwrap()][..]));
        assert!(begun.elapsed() < Duration::from_secs(8), "a change took {:?}", begun.elapsed());
        if compress == "zstd" {
            drop((other, beta));
            let left = stream.until("its leaving", |told| online(told, false)).await;
            assert!(left.peers_changed_patch[0].last_seen.is_some());
        }
    }
}

#[tokio::test]
async fn a_node_key_of_another_machine_is_refused_in_every_request() {
    let server = Running::start().await;
    let _alpha = server.joined(1, "alpha").await;
    let thief = Client::connect_with(&server.url(), &MachinePrivate::from_seed([2; 32]), NodePrivate::from_seed([1; 32]).public()).await;
    assert!(thief.register(None, "alpha").await.error.contains("another machine"));
    let refused = thief.report(|request| request.endpoints = vec!["203.0.113.1:1".parse().unwrap()]).await.unwrap_err();
    assert_eq!(refused.status(), Some(401));
    let request = MapRequest { version: 130, node_key: thief.node, stream: true, ..MapRequest::default() };
    assert_eq!(thief.connection.post_stream(MAP_PATH, &request).await.unwrap_err().status(), Some(401));
    let stranger = Client::connect(&server.url(), 3).await;
    assert_eq!(stranger.report(|_| {}).await.unwrap_err().status(), Some(404));
}

#[tokio::test]
async fn a_restart_keeps_numbers_addresses_and_keys_and_nodes_come_back() {
    let server = Running::start().await;
    let unused = server.key(|_| {}).await;
    let alpha = server.joined(1, "alpha").await;
    let mut stream = alpha.stream("zstd").await;
    let before = stream.next().await.unwrap().node.unwrap();
    let (server_key, nodes) = (server.coordinator.server_key(), server.admin().nodes().await.unwrap());
    let server = server.restart().await;
    assert_eq!(server.coordinator.server_key(), server_key);
    assert!(stream.next().await.is_none(), "the old stream has to end");
    let again = server.admin().nodes().await.unwrap();
    assert_eq!((again[0].id, &again[0].addresses, &again[0].name), (nodes[0].id, &nodes[0].addresses, &nodes[0].name));
    assert!(again[0].online, "it has not had time to come back");
    let alpha = Client::connect(&server.url(), 1).await;
    // A stock client asks for the map at once, without registering.
    let after = alpha.stream("").await.next().await.unwrap().node.unwrap();
    assert_eq!((after.id, after.stable_id, after.addresses, after.key), (before.id, before.stable_id, before.addresses, before.key));
    let beta = Client::connect(&server.url(), 2).await;
    assert_eq!(beta.register(Some(&unused), "beta").await.error, "");
}

#[tokio::test]
async fn trap_17_a_held_login_does_not_hold_up_its_connection_and_ends_with_the_approval() {
    let server = Running::start().await;
    let phone = Client::connect(&server.url(), 1).await;
    let request = phone.registration(None, "phone");
    let url = phone.send_registration(&request).await.auth_url;
    assert!(url.starts_with("http://coord.example.test:8080/register/"), "{url}");
    let followup = RegisterRequest { followup: url.clone(), ..request };
    let connection = phone.connection.clone();
    let held = tokio::spawn(async move { connection.post_json::<_, RegisterResponse>(REGISTER_PATH, &followup).await });
    // Others are served on the same connection meanwhile.
    for _ in 0..20 {
        assert_eq!(phone.report(|_| {}).await.unwrap_err().status(), Some(404));
    }
    assert!(!held.is_finished());
    let node = server.admin().approve(url.rsplit('/').next().unwrap(), "carol").await.unwrap();
    let answer = within("the held answer", held).await.unwrap().unwrap();
    assert_eq!((answer.error.as_str(), answer.auth_url.as_str(), answer.login.login_name.as_str()), ("", "", "carol@mesh.test"));
    assert_eq!(node.key, phone.node);
    phone.stream("").await.next().await.unwrap();
}

#[tokio::test]
async fn one_connection_carries_a_hundred_streams() {
    let server = Running::start().await;
    let alpha = server.joined(1, "alpha").await;
    let request = alpha.registration(None, "x");
    let mut held = Vec::new();
    // A hundred logins that wait, each on a stream of its own. A fresh node key makes each a new one.
    for n in 0..100u8 {
        let mut seed = [0x77; 32];
        seed[5] = n;
        let key = NodePrivate::from_seed(seed).public();
        let wanted = RegisterRequest { node_key: key, ..request.clone() };
        let url = alpha.send_registration(&wanted).await.auth_url;
        let (connection, followup) = (alpha.connection.clone(), RegisterRequest { followup: url, ..wanted });
        held.push(tokio::spawn(async move { connection.post_json::<_, RegisterResponse>(REGISTER_PATH, &followup).await }));
    }
    alpha.stream("").await.next().await.unwrap();
    assert!(held.iter().all(|one| !one.is_finished()));
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn trap_33_what_is_not_offered_is_answered_with_501() {
    let server = Running::start().await;
    let alpha = server.joined(1, "alpha").await;
    for path in ["/machine/set-dns", "/machine/tka/init/begin", "/machine/update-health", "/nothing"] {
        let refused = alpha.connection.post::<serde_json::Value>(path, &serde_json::json!({})).await.unwrap_err();
        assert_eq!(refused.status(), Some(501), "{path}");
    }
}

#[tokio::test]
async fn traps_05_and_28_a_request_as_another_program_writes_it_is_served() {
    let server = Running::start().await;
    let alpha = server.joined(1, "alpha").await;
    let mut stream = alpha.stream("").await;
    stream.next().await.unwrap();
    let beta = server.joined(2, "beta").await;
    stream.until("the join", |told| !told.peers_changed.is_empty()).await;
    // No content type, other cases of field names, unknown fields, null.
    let body = format!(
        r#"{{"Version":130,"NodeKey":"{}","HostInfo":{{"Hostname":"beta","IpnVersion":"x","NetInfo":{{"PreferredDerp":900}}}},"OmitPeers":true,"Stream":null,"Unknown":[{{}}]}}"#,
        beta.node
    );
    within("the update", beta.connection.post_bytes(MAP_PATH, body.into_bytes())).await.unwrap();
    let told = stream.until("the home relay", |told| !told.peers_changed_patch.is_empty() || !told.peers_changed.is_empty()).await;
    let derp = told.peers_changed.iter().map(|peer| peer.home_derp).chain(told.peers_changed_patch.iter().map(|patch| patch.derp_region));
    assert!(derp.into_iter().any(|region| region == 900), "{told:?}");
}

#[tokio::test]
async fn forty_nodes_join_at_once_and_all_see_each_other() {
    let server = Running::start().await;
    let key = server.key(|k| k.reusable = true).await;
    let url = server.url();
    let joins = (1..=40u8).map(|n| {
        let (url, key) = (url.clone(), key.clone());
        tokio::spawn(async move {
            let client = Client::connect(&url, n).await;
            assert_eq!(client.register(Some(&key), "same").await.error, "");
            let stream = client.stream("zstd").await;
            (client, stream)
        })
    });
    let mut nodes = Vec::new();
    for join in joins.collect::<Vec<_>>() {
        nodes.push(join.await.unwrap());
    }
    for (_, stream) in &mut nodes {
        let mut peers = std::collections::BTreeSet::new();
        while peers.len() < 39 {
            let told = stream.next().await.unwrap();
            peers.extend(told.peers.iter().chain(&told.peers_changed).map(|peer| peer.name.clone()));
        }
    }
    let listed = server.admin().nodes().await.unwrap();
    let distinct: std::collections::BTreeSet<_> = listed.iter().map(|node| (node.addresses.clone(), node.name.clone())).collect();
    assert_eq!((listed.len(), distinct.len()), (40, 40));
}
