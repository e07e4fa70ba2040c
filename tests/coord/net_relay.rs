//! The relay in the coordinator.

use std::time::Duration;

use pvemesh::ident::NodePrivate;
use pvemesh::relay::client::{Client as RelayClient, Event};
use pvemesh::sys::clock;
use pvemesh::sys::relay::dial::{Dialed, dial};
use pvemesh::wire::control::{DerpNode, MapResponse};
use pvemesh::wire::derp::ClientInfo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::net::*;
use crate::raw::get;
use crate::tls;

fn relay_of(map: &MapResponse) -> DerpNode {
    let regions = map.derp_map.as_ref().unwrap().regions.as_ref().unwrap();
    regions[&900].as_ref().unwrap().nodes[0].clone()
}

/// A node at the relay.
struct Relayed {
    client: RelayClient,
    dialed: Dialed,
}

impl Relayed {
    /// Connects as node `n` and waits until it is let in; the error is how it ended.
    async fn join(relay: &DerpNode, n: u8) -> Result<Self, String> {
        let mut dialed = within("dialling", dial(relay, None, false)).await.map_err(|e| e.to_string())?;
        let mut client = RelayClient::new(clock::now(), [n; 32], NodePrivate::from_seed([n; 32]), ClientInfo::new(None), dialed.relay);
        client.handle_bytes(clock::now(), &std::mem::take(&mut dialed.first));
        let mut relayed = Self { client, dialed };
        match relayed.next().await? {
            Event::Ready { .. } => Ok(relayed),
            other => Err(format!("{other:?}")),
        }
    }

    async fn next(&mut self) -> Result<Event, String> {
        let work = async {
            loop {
                if let Some(event) = self.client.poll_event() {
                    return Ok(event);
                }
                while let Some(frame) = self.client.poll_transmit() {
                    self.dialed.stream.write_all(&frame).await.map_err(|e| e.to_string())?;
                }
                self.dialed.stream.flush().await.map_err(|e| e.to_string())?;
                let mut bytes = [0; 4096];
                match self.dialed.stream.read(&mut bytes).await.map_err(|e| e.to_string())? {
                    0 => return Err("the relay closed".to_owned()),
                    count => self.client.handle_bytes(clock::now(), &bytes[..count]),
                }
            }
        };
        within("the relay's word", work).await
    }
}

async fn with_relay() -> Running {
    Running::start_with(tempfile::tempdir().unwrap(), |options| {
        options.settings.url = "http://127.0.0.1:8080".to_owned();
        options.settings.relay.enabled = true;
        options.settings.relay.listen = ([127, 0, 0, 1], 0).into();
        options.settings.relay.stun = ([127, 0, 0, 1], 0).into();
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_14_a_fresh_mesh_has_a_relay_that_its_nodes_find_in_the_map_and_nobody_else_may_use() {
    let server = with_relay().await;
    let (a, b) = (server.joined(1, "a").await, server.joined(2, "b").await);
    let map = a.stream("").await.next().await.unwrap();
    let relay = relay_of(&map);
    assert_eq!((relay.host_name.as_str(), relay.ipv4.as_str()), ("127.0.0.1", "127.0.0.1"));
    assert!(relay.cert_name.starts_with("sha256-raw:") && relay.derp_port != 0 && relay.stun_port > 0, "{relay:?}");
    let (mut at_a, mut at_b) = (Relayed::join(&relay, 1).await.unwrap(), Relayed::join(&relay, 2).await.unwrap());
    at_a.client.send(clock::now(), b.node, b"through the relay");
    let heard = tokio::select! {
        heard = at_b.next() => heard,
        other = at_a.next() => panic!("{other:?}"),
    };
    assert_eq!(heard, Ok(Event::Packet { from: a.node, bytes: b"through the relay".to_vec() }));
    assert!(Relayed::join(&relay, 99).await.is_err(), "a stranger");
    server.coordinator.stop().await;
    assert!(matches!(at_b.next().await, Ok(Event::Restarting { .. } | Event::PeerGone { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_removed_loses_the_relay_too() {
    let server = with_relay().await;
    let a = server.joined(1, "a").await;
    let map = a.stream("").await.next().await.unwrap();
    let mut relayed = Relayed::join(&relay_of(&map), 1).await.unwrap();
    let id = server.admin().nodes().await.unwrap()[0].id;
    server.admin().delete_node(id).await.unwrap();
    assert!(relayed.next().await.is_err());
    assert!(Relayed::join(&relay_of(&map), 1).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate_of_its_own_the_coordinator_relays_on_the_same_port() {
    let (dir, made) = (tempfile::tempdir().unwrap(), tls::make());
    let files = tls::files(dir.path());
    made.write(&files);
    let server = Running::start_with(dir, |options| {
        options.settings.url = format!("https://{}", tls::NAME);
        options.settings.front.certificate = Some(files);
        options.settings.front.listen_http = Some(([127, 0, 0, 1], 0).into());
        options.settings.relay.enabled = true;
        options.settings.relay.stun = ([127, 0, 0, 1], 0).into();
    })
    .await;
    assert_eq!(server.coordinator.relay().unwrap().address(), None, "no other port");
    let probe = get(server.coordinator.http_address().unwrap(), "/generate_204").await;
    assert!(probe.starts_with("HTTP/1.1 204 "), "{probe}");
    let place = DerpNode {
        host_name: tls::NAME.to_owned(),
        ipv4: "127.0.0.1".to_owned(),
        derp_port: server.coordinator.address().port(),
        insecure_for_tests: true,
        ..DerpNode::default()
    };
    assert!(Relayed::join(&place, 1).await.is_err(), "it has not joined the mesh");
    let key = server.key(|_| {}).await;
    let tunnel = crate::raw::Tunnel::connect(
        server.coordinator.http_address().unwrap(),
        &server.coordinator.server_key(),
        &pvemesh::ident::MachinePrivate::from_seed([1; 32]),
    )
    .await;
    let node = NodePrivate::from_seed([1; 32]).public();
    let body = format!(r#"{{"Version":130,"NodeKey":"{node}","Auth":{{"AuthKey":"{}"}},"Hostinfo":{{"Hostname":"a"}}}}"#, key.expose());
    assert_eq!(tunnel.post(pvemesh::wire::control::REGISTER_PATH, body).await.status, 200);
    let mut relayed = Relayed::join(&place, 1).await.unwrap();
    relayed.client.send(clock::now(), node, b"to myself");
    assert_eq!(relayed.next().await, Ok(Event::Packet { from: node, bytes: b"to myself".to_vec() }));
    assert_eq!(relayed.dialed.relay, None);
    drop(relayed);
    let begun = std::time::Instant::now();
    server.coordinator.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_map_in_a_file_and_the_relay_go_together_and_the_file_wins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("derp.json");
    std::fs::write(&file, r#"{"Regions":{"901":{"RegionID":901,"RegionCode":"x","RegionName":"X","Nodes":[]}}}"#).unwrap();
    let server = Running::start_with(dir, |options| {
        options.settings.url = "http://127.0.0.1:8080".to_owned();
        options.derp_map = Some(file.clone());
        options.settings.relay.enabled = true;
        options.settings.relay.listen = ([127, 0, 0, 1], 0).into();
        options.settings.relay.stun = ([127, 0, 0, 1], 0).into();
    })
    .await;
    let a = server.joined(1, "a").await;
    let mut stream = a.stream("").await;
    let regions = |map: &MapResponse| map.derp_map.as_ref().unwrap().regions.as_ref().unwrap().keys().copied().collect::<Vec<_>>();
    assert_eq!(regions(&stream.next().await.unwrap()), [900, 901]);
    std::fs::write(&file, r#"{"Regions":{"900":{"RegionID":900,"RegionCode":"mine","RegionName":"Mine","Nodes":[]}}}"#).unwrap();
    server.coordinator.reread_derp_map().unwrap();
    let told = stream.until("another relay map", |map| map.derp_map.is_some()).await;
    assert_eq!(told.derp_map.unwrap().regions.unwrap()[&900].as_ref().unwrap().region_code, "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_coordinators_name_has_no_domain_the_address_is_told_with_it() {
    let Ok(socket) = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9").map(|()| socket)) else {
        println!("skipped: this machine has no way to others");
        return;
    };
    let address = socket.local_addr().unwrap().ip().to_string();
    let server = Running::start_with(tempfile::tempdir().unwrap(), |options| {
        options.settings.url = "http://coordinator:8080".to_owned();
        options.settings.relay.enabled = true;
        options.settings.relay.listen = ([0, 0, 0, 0], 0).into();
        options.settings.relay.stun = ([0, 0, 0, 0], 0).into();
    })
    .await;
    let a = server.joined(1, "a").await;
    let relay = relay_of(&a.stream("").await.next().await.unwrap());
    assert_eq!((relay.host_name.as_str(), &relay.ipv4, relay.ipv6.as_str()), ("coordinator", &address, "none"));
    assert!(Relayed::join(&relay, 1).await.is_ok());
}
