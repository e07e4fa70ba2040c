//! What other programs' clients do that a strict server would refuse, each by hand.

use http::{Method, Request};
use pvemesh::ident::{MachinePrivate, NodePrivate};
use pvemesh::wire::control::noise::{MAX_PLAINTEXT, Responder};
use pvemesh::wire::control::{MAP_PATH, REGISTER_PATH};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::net::*;
use crate::raw::{self, Tunnel};

fn machine(n: u8) -> MachinePrivate {
    MachinePrivate::from_seed([n; 32])
}

fn registration(n: u8, key: &str) -> String {
    let node = NodePrivate::from_seed([n; 32]).public();
    format!(r#"{{"Version":130,"NodeKey":"{node}","Auth":{{"AuthKey":"{key}"}},"Hostinfo":{{"Hostname":"alpha","OS":"linux"}}}}"#)
}

#[tokio::test]
async fn trap_28_scheme_http_a_host_that_differs_from_the_authority_and_no_content_type_are_served() {
    let server = Running::start().await;
    let (address, key) = (server.coordinator.address(), server.key(|_| {}).await);
    let tunnel = Tunnel::connect(address, &server.coordinator.server_key(), &machine(1)).await;
    let odd = |path: &str| {
        Request::builder().method(Method::POST).uri(format!("http://{address}{path}")).header("host", "127.0.0.1").body(()).unwrap()
    };
    let answer = tunnel.ask(odd(REGISTER_PATH), registration(1, key.expose())).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text.contains("\"MachineAuthorized\":true") && answer.text.contains("\"Error\":\"\""), "{answer:?}");
    let node = NodePrivate::from_seed([1; 32]).public();
    let map = tunnel.ask(odd(MAP_PATH), format!(r#"{{"Version":130,"NodeKey":"{node}","HostInfo":{{"Hostname":"probe"}}}}"#)).await;
    assert_eq!(map.status, 200);
    assert!(map.text.contains("\"Node\":"), "{map:?}");
}

#[tokio::test]
async fn trap_08_every_field_of_a_registrations_answer_is_there_even_of_a_refusal() {
    let server = Running::start().await;
    let tunnel = Tunnel::connect(server.coordinator.address(), &server.coordinator.server_key(), &machine(1)).await;
    let key = server.key(|_| {}).await;
    for (body, refused) in [(registration(1, "pvmkey-auth-none"), true), (registration(1, key.expose()), false)] {
        let answer = tunnel.post(REGISTER_PATH, body).await;
        assert_eq!(answer.status, 200, "refusals are answers, not HTTP errors: {answer:?}");
        let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
        for field in ["User", "Login", "NodeKeyExpired", "MachineAuthorized", "AuthURL", "Error"] {
            assert!(value.get(field).is_some_and(|value| !value.is_null()), "{field} in {value}");
        }
        assert!(value["Login"]["Provider"].is_string() && value["Login"]["LoginName"].is_string(), "{value}");
        assert_eq!(value["Error"] != "", refused, "{value}");
    }
}

#[tokio::test]
async fn trap_04_the_handshake_is_bound_to_the_version_the_client_names_whatever_it_is() {
    let server = Running::start().await;
    for version in [113, 130, 145, 9999, u16::MAX] {
        let stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
        let (noise, _) = raw::upgrade(stream, &server.coordinator.server_key(), &machine(1), version).await;
        let tunnel = Tunnel::over(noise).await;
        assert_eq!(tunnel.post("/machine/none", "{}").await.status, 501, "version {version}");
    }
}

#[tokio::test]
async fn trap_09_the_early_payload_comes_first_and_is_shorter_than_1024_bytes() {
    let server = Running::start().await;
    let stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
    let (_noise, length) = raw::upgrade(stream, &server.coordinator.server_key(), &machine(1), 145).await;
    assert!((1..1024).contains(&length), "{length}");
}

/// A server that sends no early payload: its first nine bytes are an HTTP/2 frame's header.
#[tokio::test]
async fn trap_09_our_client_takes_a_server_without_an_early_payload() {
    let key = MachinePrivate::from_seed([66; 32]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let public = key.public();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = raw::read_head(&mut stream).await;
        let handshake =
            head.lines().find_map(|line| line.to_ascii_lowercase().starts_with("x-tailscale-handshake: ").then(|| line[23..].to_owned()));
        let initiation = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, handshake.unwrap()).unwrap();
        let accepted = Responder::accept([7; 32], &key, &initiation).unwrap();
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n")
            .await
            .unwrap();
        stream.write_all(&accepted.response).await.unwrap();
        let noise = pvemesh::sys::noise_stream::NoiseStream::new(stream, accepted.keys, &[]);
        let mut connection = h2::server::handshake(noise).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let answer = http::Response::builder().status(200).body(()).unwrap();
            respond.send_response(answer, false).unwrap().send_data("{\"hello\":1}".into(), true).unwrap();
        }
    });
    let connection = within("connecting", pvemesh::sys::dial::ControlConnection::connect(&url, &public, &machine(1))).await.unwrap();
    let answer: serde_json::Value = within("asking", connection.get_json("/machine/x")).await.unwrap();
    assert_eq!(answer["hello"], 1);
    server.abort();
}

#[tokio::test]
async fn trap_03_http2_frames_may_lie_across_any_number_of_records() {
    let server = Running::start().await;
    let key = server.key(|_| {}).await;
    let stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
    let (mut noise, _) = raw::upgrade(stream, &server.coordinator.server_key(), &machine(1), 145).await;
    // Through a pipe that hands the codec's bytes on in pieces of one and a few: each piece becomes a record of its own.
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let carrier = tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(theirs);
        let (mut size, mut upstream, mut downstream) = (0, [0; 64], [0; 2 * MAX_PLAINTEXT]);
        loop {
            size = size % 7 + 1;
            tokio::select! {
                read = read.read(&mut upstream[..size]) => match read {
                    Ok(count @ 1..) => {
                        noise.write_all(&upstream[..count]).await.unwrap();
                        noise.flush().await.unwrap();
                    }
                    _ => return,
                },
                read = noise.read(&mut downstream) => match read {
                    Ok(count @ 1..) => write.write_all(&downstream[..count]).await.unwrap(),
                    _ => return,
                },
            }
        }
    });
    let tunnel = Tunnel::over(ours).await;
    let answer = tunnel.post(REGISTER_PATH, registration(1, key.expose())).await;
    assert!(answer.status == 200 && answer.text.contains("\"Error\":\"\""), "{answer:?}");
    carrier.abort();
}

#[tokio::test]
async fn trap_17_a_hundred_requests_at_once_on_one_connection_wait_for_none_of_each_other() {
    let server = Running::start().await;
    server.joined(1, "alpha").await;
    let tunnel = Tunnel::connect(server.coordinator.address(), &server.coordinator.server_key(), &machine(1)).await;
    let node = NodePrivate::from_seed([1; 32]).public();
    let stream = format!(r#"{{"Version":130,"NodeKey":"{node}","Stream":true}}"#);
    let open = within("the stream", tunnel.send(raw::request(Method::POST, MAP_PATH), stream)).await.unwrap();
    assert_eq!(open.status(), 200);
    // Requests whose bodies never end hold their streams, and nobody else.
    let mut unfinished = Vec::new();
    let mut sender = tunnel.clone();
    for _ in 0..20 {
        unfinished.push(sender.begin(raw::request(Method::POST, MAP_PATH)).await);
    }
    let lite = format!(r#"{{"Version":130,"NodeKey":"{node}","OmitPeers":true}}"#);
    let asked = (0..100).map(|_| {
        let (tunnel, lite) = (tunnel.clone(), lite.clone());
        tokio::spawn(async move { tunnel.post(MAP_PATH, lite).await })
    });
    for one in asked.collect::<Vec<_>>() {
        let answer = within("a lite update", one).await.unwrap();
        assert_eq!((answer.status, answer.text.as_str()), (200, ""));
    }
}

#[tokio::test]
async fn trap_33_requests_that_are_get_with_a_body_and_all_others_not_offered_are_answered_with_501_and_a_text() {
    let server = Running::start().await;
    let tunnel = Tunnel::connect(server.coordinator.address(), &server.coordinator.server_key(), &machine(1)).await;
    for (method, path) in [
        (Method::GET, "/machine/tka/sync/offer"),
        (Method::GET, "/machine/tka/bootstrap"),
        (Method::POST, "/machine/set-dns"),
        (Method::PATCH, "/machine/set-device-attr"),
        (Method::POST, "/machine/audit-log"),
        (Method::POST, "/machine/id-token"),
        (Method::GET, "/machine/ssh/action/1"),
        (Method::POST, "/machine/webclient/init"),
        (Method::POST, "/machine/c2n-reply/1"),
        (Method::GET, "/machine/whoami"),
        (Method::POST, "/machine/"),
        (Method::POST, "/"),
    ] {
        let answer = tunnel.ask(raw::request(method.clone(), path), r#"{"Version":145,"NodeKey":"nodekey:00"}"#).await;
        assert!(answer.status == 501 && !answer.text.is_empty(), "{method} {path}: {answer:?}");
    }
    for path in [REGISTER_PATH, MAP_PATH] {
        let answer = tunnel.ask(raw::request(Method::GET, path), "").await;
        assert!(answer.status == 405 && !answer.text.is_empty(), "{path}: {answer:?}");
        assert_eq!(answer.headers["allow"], "POST");
    }
}

#[tokio::test]
async fn registrations_and_streams_are_never_answered_with_an_empty_success() {
    let server = Running::start().await;
    server.joined(1, "alpha").await;
    let tunnel = Tunnel::connect(server.coordinator.address(), &server.coordinator.server_key(), &machine(1)).await;
    let node = NodePrivate::from_seed([1; 32]).public();
    let other = NodePrivate::from_seed([9; 32]).public();
    for body in ["", "{}", "null", "[]", r#"{"Version":130}"#, &format!(r#"{{"Version":130,"NodeKey":"{other}"}}"#)] {
        let answer = tunnel.post(REGISTER_PATH, body.to_owned()).await;
        assert!(!answer.text.is_empty(), "{body}: {answer:?}");
    }
    for body in [
        String::new(),
        r#"{"Stream":true}"#.to_owned(),
        format!(r#"{{"Version":130,"NodeKey":"{other}","Stream":true}}"#),
        format!(r#"{{"Version":100,"NodeKey":"{node}","Stream":true}}"#),
    ] {
        let answer = tunnel.post(MAP_PATH, body.clone()).await;
        assert!((400..500).contains(&answer.status) && !answer.text.is_empty(), "{body}: {answer:?}");
    }
    let once = tunnel.post(MAP_PATH, format!(r#"{{"Version":130,"NodeKey":"{node}"}}"#)).await;
    assert!(once.status == 200 && once.text.contains("\"Node\":"), "{once:?}");
}
