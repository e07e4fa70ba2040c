//! Those that do not read, and those that do not speak: a client that stalls, a thousand connections that are half open.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Method;
use pvemesh::ident::{MachinePrivate, NodePrivate};
use pvemesh::wire::control::{MAP_PATH, MapRequest};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::net::*;
use crate::raw::{self, Tunnel};

#[tokio::test]
async fn a_client_that_stops_reading_holds_up_no_other_and_costs_a_bounded_amount_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), free_port()).await;
    let server_key = process.admin().info().await.unwrap().server_key;
    let address: SocketAddr = process.url.strip_prefix("http://").unwrap().parse().unwrap();
    let key = new_key(&process.admin(), |wanted| wanted.reusable = true).await;
    let mut members = Vec::new();
    for n in 1..=12u8 {
        let client = Client::connect(&process.url, n).await;
        assert_eq!(client.register(Some(&key), &format!("n{n}")).await.error, "");
        members.push(client);
    }
    // Node 1 asks for its stream over a socket with little room and never reads again: neither HTTP/2 nor TCP goes on.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let (noise, _) = raw::upgrade(stream, &server_key, &MachinePrivate::from_seed([1; 32]), 145).await;
    let (ours, theirs) = tokio::io::duplex(1024);
    let stalled = tokio::spawn(async move {
        // Writes go through, reads never do.
        let (mut from_codec, _held) = tokio::io::split(theirs);
        let (_unread, mut to_server) = tokio::io::split(noise);
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = tokio::io::AsyncReadExt::read(&mut from_codec, &mut bytes).await {
            to_server.write_all(&bytes[..count]).await.unwrap();
            to_server.flush().await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    let tunnel = Tunnel::over(ours).await;
    let node = NodePrivate::from_seed([1; 32]).public();
    let wanted = format!(r#"{{"Version":130,"NodeKey":"{node}","Stream":true}}"#);
    let never = tokio::spawn(async move { tunnel.send(raw::request(Method::POST, MAP_PATH), wanted).await.map(|_| ()) });

    let mut reader = members[1].stream("zstd").await;
    reader.next().await.unwrap();
    within("the stalled node's stream", async {
        while !process.admin().nodes().await.unwrap().iter().any(|listed| listed.key == node && listed.online) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let before = process.resident_kib();
    let (mut latencies, big) = (Vec::new(), "x".repeat(190));
    for round in 0..150u16 {
        let begun = Instant::now();
        // Every other node changes something large; the reader hears of the last one.
        for (n, member) in members.iter().enumerate().skip(2) {
            let port = 1000 + round;
            let change = |request: &mut MapRequest| {
                request.endpoints = (1..=30).map(|at| SocketAddr::from(([192, 0, 2, at], port))).collect();
                let hostinfo = request.hostinfo.insert(crate::world::hostinfo(&format!("n{}", n + 1)));
                hostinfo.os_version = format!("{big}{round}");
            };
            member.report(change).await.unwrap();
        }
        let mark = SocketAddr::from(([192, 0, 2, 1], 1000 + round));
        let name = "n12.mesh.test.";
        reader
            .until("the round's change", |told| {
                let whole = told.peers_changed.iter().any(|peer| peer.name == name && peer.endpoints.contains(&mark));
                whole || told.peers_changed_patch.iter().any(|patch| patch.endpoints.as_ref().is_some_and(|ends| ends.contains(&mark)))
            })
            .await;
        latencies.push(begun.elapsed());
    }
    let grown = process.resident_kib().saturating_sub(before);
    latencies.sort();
    let (median, worst) = (latencies[latencies.len() / 2], latencies[latencies.len() - 1]);
    println!("rounds of ten changes beside a stalled reader: median {median:?}, worst {worst:?}; memory grew by {grown} KiB");
    assert!(worst < Duration::from_secs(3) && grown < 8 * 1024, "{worst:?}, {grown} KiB");
    assert!(process.is_running());
    stalled.abort();
    never.abort();
}

#[tokio::test]
async fn a_thousand_half_open_connections_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), free_port()).await;
    let server_key = process.admin().info().await.unwrap().server_key;
    let address: SocketAddr = process.url.strip_prefix("http://").unwrap().parse().unwrap();
    let key = new_key(&process.admin(), |wanted| wanted.reusable = true).await;
    let before = process.resident_kib();
    // From ten addresses, so that together they could take every stranger's place; silent, in the middle of a head, and with a handshake
    // behind which nothing comes.
    let mut held = Vec::new();
    for n in 0..1000u16 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 1, (n % 10) as u8 + 1], 0))).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        match n % 3 {
            0 => {}
            1 => stream.write_all(b"POST /ts2021 HTTP/1.1\r\nHost:").await.unwrap(),
            _ => {
                let initiator = raw::initiator(&server_key, &MachinePrivate::from_seed([(n % 251) as u8; 32]), 145);
                stream.write_all(raw::upgrade_head("x", &raw::base64(initiator.message())).as_bytes()).await.unwrap();
            }
        }
        held.push(stream);
    }
    let mut waits = Vec::new();
    for n in 1..=5u8 {
        let begun = Instant::now();
        // From an address of its own, and from one of the crowded ones.
        let from = if n % 2 == 0 { [127, 0, 0, 1] } else { [127, 0, 1, n] };
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        let stream = socket.connect(address).await.unwrap();
        let (noise, _) = raw::upgrade(stream, &server_key, &MachinePrivate::from_seed([n; 32]), 145).await;
        let tunnel = Tunnel::over(noise).await;
        let node = NodePrivate::from_seed([n; 32]).public();
        let body = format!(r#"{{"Version":130,"NodeKey":"{node}","Auth":{{"AuthKey":"{}"}},"Hostinfo":{{"Hostname":"n"}}}}"#, key.expose());
        let answer = tunnel.post(pvemesh::wire::control::REGISTER_PATH, body).await;
        assert!(answer.status == 200 && answer.text.contains("\"Error\":\"\""), "{answer:?}");
        waits.push(begun.elapsed());
    }
    let grown = process.resident_kib().saturating_sub(before);
    println!("beside a thousand half-open connections clients got in after {waits:?}; memory grew by {grown} KiB");
    assert!(waits.iter().all(|wait| *wait < Duration::from_secs(4)), "{waits:?}");
    assert!(grown < 48 * 1024, "{grown} KiB");
    assert!(process.is_running());
    drop::<Vec<TcpStream>>(held);
}
