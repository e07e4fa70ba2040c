//! Control connections through a WebSocket, as clients in browsers make them.

use pvemesh::ident::{MachinePrivate, NodePrivate};
use pvemesh::sys::web_socket::WebSocket;
use pvemesh::wire::control::frame::Deframer;
use pvemesh::wire::control::{MAP_PATH, MapResponse, REGISTER_PATH, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::net::*;
use crate::raw::{self, Tunnel, http};

/// The URL a client in a browser opens, its handshake in the query.
fn url(server: &Running, handshake: &[u8]) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("X-Tailscale-Handshake", &raw::base64(handshake)).finish();
    format!("ws://{}/ts2021?{query}", server.coordinator.address())
}

#[tokio::test]
async fn a_client_in_a_browser_registers_and_gets_its_map_through_a_web_socket() {
    let server = Running::start().await;
    let key = server.key(|_| {}).await;
    let initiator = raw::initiator(&server.coordinator.server_key(), &MachinePrivate::from_seed([1; 32]), 145);
    let mut request = url(&server, initiator.message()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "tailscale-control-protocol".parse().unwrap());
    request.headers_mut().insert("origin", "https://elsewhere.example".parse().unwrap());
    let stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
    let (socket, response) = within("the WebSocket", tokio_tungstenite::client_async(request, stream)).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "tailscale-control-protocol");

    let mut noise = within("the handshake", raw::finish(WebSocket::over(socket), initiator)).await;
    // No early payload: the first bytes inside are the server's HTTP/2 settings, whose frame header says 4 in its fourth byte.
    let mut first = [0; 9];
    within("HTTP/2", noise.read_exact(&mut first)).await.unwrap();
    assert_eq!((first[3], &first[5..]), (4, &[0; 4][..]), "{first:?}");
    let (read, write) = tokio::io::split(noise);
    let stream = tokio::io::join(std::io::Cursor::new(first).chain(read), write);
    let tunnel = Tunnel::over(stream).await;
    let node = NodePrivate::from_seed([1; 32]).public();
    let body = format!(r#"{{"Version":145,"NodeKey":"{node}","Auth":{{"AuthKey":"{}"}},"Hostinfo":{{"Hostname":"tab"}}}}"#, key.expose());
    let answer = tunnel.post(REGISTER_PATH, body).await;
    assert!(answer.status == 200 && answer.text.contains("\"Error\":\"\""), "{answer:?}");
    let wanted = format!(r#"{{"Version":145,"NodeKey":"{node}","Stream":true}}"#);
    let mut body = within("the stream", tunnel.send(raw::request(http::Method::POST, MAP_PATH), wanted)).await.unwrap().into_body();
    let mut deframer = Deframer::default();
    let next = async |body: &mut h2::RecvStream, deframer: &mut Deframer| loop {
        if let Some(message) = deframer.next_message().unwrap() {
            return json::from_slice::<MapResponse>(&message).unwrap();
        }
        let bytes = within("a message", body.data()).await.unwrap().unwrap();
        body.flow_control().release_capacity(bytes.len()).unwrap();
        deframer.push(&bytes);
    };
    assert_eq!(next(&mut body, &mut deframer).await.node.unwrap().name, "tab.mesh.test.");
    // A change arrives, too.
    server.joined(2, "beta").await;
    while next(&mut body, &mut deframer).await.peers_changed.is_empty() {}
}

#[tokio::test]
async fn a_web_socket_that_does_not_speak_the_control_protocol_is_refused() {
    let server = Running::start().await;
    let initiator = raw::initiator(&server.coordinator.server_key(), &MachinePrivate::from_seed([1; 32]), 145);
    let good = url(&server, initiator.message());
    let none = format!("ws://{}/ts2021", server.coordinator.address());
    for (url, protocol, status) in [(&good, None, 400), (&good, Some("chat"), 400), (&none, Some("tailscale-control-protocol"), 400)] {
        let mut request = url.clone().into_client_request().unwrap();
        if let Some(protocol) = protocol {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
        match within("the refusal", tokio_tungstenite::client_async(request, stream)).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), status, "{url} {protocol:?}"),
            other => panic!("{other:?}"),
        }
    }
    let target = good.split_once("/ts2021").unwrap().1;
    let head = |more: &str| {
        format!(
            "GET /ts2021{target} HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: tailscale-control-protocol\r\n{more}\r\n"
        )
    };
    let old =
        http(server.coordinator.address(), &head("Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n")).await;
    assert!(old.starts_with("HTTP/1.1 426 ") && old.to_ascii_lowercase().contains("sec-websocket-version: 13"), "{old}");
    for key in ["", "Sec-WebSocket-Key: AAAA\r\n"] {
        let refused = http(server.coordinator.address(), &head(&format!("Sec-WebSocket-Version: 13\r\n{key}"))).await;
        assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    }
}

#[tokio::test]
async fn garbage_in_a_web_socket_ends_it_and_nothing_else() {
    use futures_util::{SinkExt as _, StreamExt as _};
    let server = Running::start().await;
    for message in [
        Message::text("hello"),
        Message::binary(vec![0xff; 3000]),
        Message::binary(vec![4, 0xff, 0xff, 0]),
        Message::binary(vec![0; 100_000]),
        Message::Close(None),
    ] {
        let initiator = raw::initiator(&server.coordinator.server_key(), &MachinePrivate::from_seed([1; 32]), 145);
        let mut request = url(&server, initiator.message()).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "tailscale-control-protocol".parse().unwrap());
        let stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
        let (mut socket, _) = within("the WebSocket", tokio_tungstenite::client_async(request, stream)).await.unwrap();
        let _ = socket.send(message.clone()).await;
        within("its end", async { while let Some(Ok(_)) = socket.next().await {} }).await;
    }
    assert!(raw::get(server.coordinator.address(), "/health").await.contains("pass"));
}
