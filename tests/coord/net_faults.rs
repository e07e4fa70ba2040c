//! Strangers' bytes, half-open and slow peers, kills.

use std::time::Duration;

use pvemesh::ident::MachinePrivate;
use pvemesh::wire::control::noise::Initiator;
use pvemesh::wire::control::{MAP_PATH, REGISTER_PATH};
use rand_core::{RngCore as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::net::*;

fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand_chacha::ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Sends bytes, reads whatever comes back, until the server closes or a moment has passed.
async fn throw(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let Ok(mut stream) = TcpStream::connect(address).await else { return answer };
    let _ = tokio::time::timeout(Duration::from_secs(2), async {
        let _ = stream.write_all(bytes).await;
        let _ = stream.read_to_end(&mut answer).await;
    })
    .await;
    answer
}

fn upgrade_head(header: &str) -> String {
    format!(
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\nX-Tailscale-Handshake: {header}\r\n\r\n"
    )
}

#[tokio::test]
async fn kill_9_loses_nothing_that_was_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let process = Process::start(dir.path(), port).await;
    let (used, unused) = (new_key(&process.admin(), |_| {}).await, new_key(&process.admin(), |_| {}).await);
    let client = Client::connect(&process.url, 1).await;
    assert_eq!(client.register(Some(&used), "alpha").await.error, "");
    let first = client.stream("zstd").await.next().await.unwrap().node.unwrap();
    let key = process.admin().info().await.unwrap().server_key;
    process.kill();

    let process = Process::start(dir.path(), port).await;
    assert_eq!(process.admin().info().await.unwrap().server_key, key);
    let client = Client::connect(&process.url, 1).await;
    let again = client.stream("zstd").await.next().await.unwrap().node.unwrap();
    assert_eq!((again.id, again.addresses, again.stable_id), (first.id, first.addresses, first.stable_id));
    let other = Client::connect(&process.url, 2).await;
    assert!(other.register(Some(&used), "beta").await.error.contains("already been used"));
    assert_eq!(other.register(Some(&unused), "beta").await.error, "");
}

#[tokio::test]
async fn sigterm_ends_it_cleanly_and_promptly_with_streams_open() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path(), free_port()).await;
    let key = new_key(&process.admin(), |_| {}).await;
    let client = Client::connect(&process.url, 1).await;
    client.register(Some(&key), "alpha").await;
    let mut stream = client.stream("").await;
    stream.next().await.unwrap();
    let socket = process.socket.clone();
    let (took, status, log) = process.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    assert!(stream.next().await.is_none() && !socket.exists());
    assert!(!log.contains("pvmkey") && !log.contains("privkey"), "{log}");
}

#[tokio::test]
async fn garbage_floods_neither_stop_nor_grow_it() {
    let seed = 20_260_801;
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), free_port()).await;
    let address = process.url.strip_prefix("http://").unwrap().to_owned();
    let server = pvemesh::sys::dial::fetch_server_key(&process.url).await.unwrap();
    let initiation = |n: u8| {
        use base64::Engine as _;
        let machine = MachinePrivate::from_seed([n; 32]);
        let initiator = Initiator::new([n; 32], &server, &machine, 130).unwrap();
        base64::prelude::BASE64_STANDARD.encode(initiator.message())
    };
    let mut grown = Vec::new();
    for round in 0..6u64 {
        let mut throws = Vec::new();
        for n in 0..40u64 {
            let at = seed + round * 1000 + n;
            let mut bytes = match n % 5 {
                0 => Vec::new(),
                1 => b"GET /key?v=145 HTTP/1.1\r\nHost: x\r\n".to_vec(),
                2 => upgrade_head("AAAA").into_bytes(),
                // A valid handshake, and then no records.
                3 => upgrade_head(&initiation(n as u8)).into_bytes(),
                _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            };
            bytes.extend(random(at, 64 * 1024));
            let address = address.clone();
            throws.push(tokio::spawn(async move { throw(&address, &bytes).await }));
        }
        for one in throws {
            one.await.unwrap();
        }
        grown.push(process.resident_kib());
    }
    assert!(process.is_running());
    let (warm, end) = (grown[1], grown[5]);
    assert!(end < warm + 4096, "resident KiB after each round: {grown:?}");
    // It still serves.
    let key = new_key(&process.admin(), |_| {}).await;
    let client = Client::connect(&process.url, 1).await;
    assert_eq!(client.register(Some(&key), "alpha").await.error, "");
    let (_, _, log) = process.terminate().await;
    assert!(!log.contains("panicked") && log.lines().count() < 20, "strangers do not fill the log: {log}");
}

#[tokio::test]
async fn half_open_and_slow_strangers_leave_room_for_members() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), free_port()).await;
    let address = process.url.strip_prefix("http://").unwrap().to_owned();
    let key = new_key(&process.admin(), |_| {}).await;
    let member = Client::connect(&process.url, 1).await;
    member.register(Some(&key), "alpha").await;
    let mut stream = member.stream("").await;
    stream.next().await.unwrap();
    let before = process.resident_kib();
    let mut idle = Vec::new();
    for n in 0..400 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(b"POST /ts2021 HTTP/1.1\r\nHost:").await.unwrap();
        }
        idle.push(stream);
    }
    // A member is served as if nothing was: on its connection, and on a new one as soon as strangers of its address have timed out.
    let begun = std::time::Instant::now();
    member.report(|request| request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()]).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let grown = process.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "400 idle connections cost {grown} KiB");
    within("a new connection", async {
        loop {
            if let Ok(server) = pvemesh::sys::dial::fetch_server_key(&process.url).await {
                return server;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    // The idle ones are thrown out by the server.
    let mut last = idle.remove(0);
    let mut answer = Vec::new();
    within("the idle connection's end", last.read_to_end(&mut answer)).await.ok();
    assert!(process.is_running());
}

#[tokio::test]
async fn bodies_are_bounded_and_malformed_ones_refused() {
    let server = Running::start().await;
    let client = server.joined(1, "alpha").await;
    let big = vec![b' '; 1024 * 1024 + 1];
    for path in [REGISTER_PATH, MAP_PATH] {
        let refused = within("the refusal", client.connection.post_bytes(path, big.clone())).await.unwrap_err();
        assert!(refused.status().is_none_or(|status| status == 413), "{refused}");
        for body in [&b"{"[..], b"true", b"{\"NodeKey\":5}", b"{\"NodeKey\":\"nodekey:12\"}", &random(1, 5000)] {
            let refused = within("the refusal", client.connection.post_bytes(path, body.to_vec())).await.unwrap_err();
            assert_eq!(refused.status(), Some(400), "{path}: {refused}");
        }
    }
    client.report(|_| {}).await.unwrap();
}

#[tokio::test]
async fn trap_28_absolute_targets_are_served_and_wrong_upgrades_refused() {
    let server = Running::start().await;
    let address = server.coordinator.address().to_string();
    let ask = async |head: String| String::from_utf8_lossy(&throw(&address, head.as_bytes()).await).into_owned();
    let close = "Host: x\r\nConnection: close\r\n\r\n";
    let absolute = ask(format!("GET http://{address}/key?v=130 HTTP/1.1\r\n{close}")).await;
    assert!(absolute.starts_with("HTTP/1.1 200") && absolute.contains("\"publicKey\":\"mkey:"), "{absolute}");
    assert!(ask(format!("GET /key HTTP/1.1\r\n{close}")).await.starts_with("HTTP/1.1 400"));
    assert!(ask(format!("GET /health HTTP/1.1\r\n{close}")).await.contains("pass"));
    assert!(ask(format!("GET /nothing HTTP/1.1\r\n{close}")).await.starts_with("HTTP/1.1 404"));
    assert!(ask(format!("POST /ts2021 HTTP/1.1\r\n{close}")).await.starts_with("HTTP/1.1 400"));
    for header in ["", "AAAA", "!!!!", &"A".repeat(136), &"A".repeat(4000)] {
        let refused = ask(upgrade_head(header)).await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{header}: {refused}");
    }
}
