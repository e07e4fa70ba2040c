//! Bad input over the real sockets: wrong keys, broken records, broken and enormous bodies, handshakes played again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pvemesh::ident::{MachinePrivate, NodePrivate};
use pvemesh::wire::admin::NodeInfo;
use pvemesh::wire::control::noise::{HEADER_LEN, RESPONSE_LEN};
use pvemesh::wire::control::{MAP_PATH, REGISTER_PATH};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::net::*;
use crate::raw::{self, Tunnel};

fn machine(n: u8) -> MachinePrivate {
    MachinePrivate::from_seed([n; 32])
}

fn node(n: u8) -> String {
    NodePrivate::from_seed([n; 32]).public().to_string()
}

/// Every request there is, of node `n`, harmful if it were believed.
fn requests(n: u8) -> Vec<(&'static str, String)> {
    let node = node(n);
    vec![
        (REGISTER_PATH, format!(r#"{{"Version":130,"NodeKey":"{node}","Expiry":"1970-01-01T00:02:03Z"}}"#)),
        (REGISTER_PATH, format!(r#"{{"Version":130,"NodeKey":"{node}","Hostinfo":{{"Hostname":"stolen"}}}}"#)),
        (MAP_PATH, format!(r#"{{"Version":130,"NodeKey":"{node}","OmitPeers":true,"Endpoints":["203.0.113.9:1"]}}"#)),
        (MAP_PATH, format!(r#"{{"Version":130,"NodeKey":"{node}","Stream":true,"Hostinfo":{{"Hostname":"stolen"}}}}"#)),
        (MAP_PATH, format!(r#"{{"Version":130,"NodeKey":"{node}"}}"#)),
    ]
}

/// What must not change: everything but the time a node was last seen.
async fn state(server: &Running) -> Vec<NodeInfo> {
    let mut nodes = server.admin().nodes().await.unwrap();
    nodes.iter_mut().for_each(|node| node.last_seen = None);
    nodes
}

#[tokio::test]
async fn requests_sealed_with_another_session_end_the_connection_and_change_nothing() {
    let server = Running::start().await;
    server.joined(1, "alpha").await;
    let before = state(&server).await;
    let key = server.coordinator.server_key();
    for (path, body) in requests(1) {
        // Two sessions of the node's own machine: what is sealed for one is sent on the other.
        let stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
        let (mut noise, _) = raw::upgrade(stream, &key, &machine(1), 145).await;
        let (ours, mut sealed) = tokio::io::duplex(1 << 16);
        let (other, _) = raw::upgrade(TcpStream::connect(server.coordinator.address()).await.unwrap(), &key, &machine(1), 145).await;
        let (other, _kept) = other.replaced(ours);
        tokio::spawn(async move { Tunnel::over(other).await.post(path, body).await });
        let mut bytes = vec![0; 4096];
        let count = within("sealed bytes", sealed.read(&mut bytes)).await.unwrap();
        noise.inner_mut().write_all(&bytes[..count]).await.unwrap();
        let mut rest = Vec::new();
        let ended = within("the connection's end", noise.inner_mut().read_to_end(&mut rest)).await;
        assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
    assert_eq!(state(&server).await, before);
}

#[tokio::test]
async fn a_node_key_that_is_not_the_sessions_machines_changes_nothing_in_any_request() {
    let server = Running::start().await;
    server.joined(1, "alpha").await;
    server.joined(2, "beta").await;
    let before = state(&server).await;
    // A member and a stranger, each with the other's node key, and with one that nobody has.
    for thief in [2, 3] {
        let tunnel = Tunnel::connect(server.coordinator.address(), &server.coordinator.server_key(), &machine(thief)).await;
        for (path, body) in requests(1) {
            let answer = tunnel.post(path, body.clone()).await;
            let refused = if path == MAP_PATH { answer.status == 401 } else { answer.text.contains("another machine") };
            assert!(refused, "{body}: {answer:?}");
        }
        for (path, body) in requests(99).into_iter().filter(|(path, _)| *path == MAP_PATH) {
            assert_eq!(tunnel.post(path, body).await.status, 404);
        }
        let admin = tunnel.ask(raw::request(http::Method::GET, "/machine/pvemesh/admin/nodes"), "").await;
        assert!(admin.status == 403 || admin.status == 501, "{admin:?}");
    }
    assert_eq!(state(&server).await, before);
}

/// Sends raw bytes behind a handshake of node 1's machine; the server has to close.
async fn behind_a_handshake(server: &Running, bytes: &[u8], close: bool) {
    let stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
    let (mut noise, _) = raw::upgrade(stream, &server.coordinator.server_key(), &machine(1), 145).await;
    let stream = noise.inner_mut();
    let _ = stream.write_all(bytes).await;
    if close {
        let _ = stream.shutdown().await;
    }
    let mut rest = Vec::new();
    let begun = Instant::now();
    let _ = within("the connection's end", stream.read_to_end(&mut rest)).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "it kept the connection for {:?}", begun.elapsed());
}

#[tokio::test]
async fn broken_records_end_their_connection_at_once() {
    let server = Running::start().await;
    let alpha = server.joined(1, "alpha").await;
    let before = state(&server).await;
    let record = |kind: u8, length: u16, body: usize| {
        let mut bytes = vec![kind];
        bytes.extend(length.to_be_bytes());
        bytes.extend(std::iter::repeat_n(0xa5, body));
        bytes
    };
    let cases = [
        ("longer than a record may be", record(4, 4094, 4094), false),
        ("the longest length there is", record(4, u16::MAX, 100), false),
        ("too short for its tag", record(4, 15, 15), false),
        ("of length zero", record(4, 0, 0), false),
        ("another handshake", record(1, 96, 96), false),
        ("a handshake's answer", record(2, 48, 48), false),
        ("an error", record(3, 5, 5), false),
        ("an unknown type", record(9, 32, 32), false),
        ("not sealed", record(4, 32, 32), false),
        ("HTTP/2 without records", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), false),
        ("cut in its header", record(4, 32, 0)[..2].to_vec(), true),
        ("cut in its body", record(4, 32, 7), true),
        ("nothing at all", Vec::new(), true),
    ];
    for (what, bytes, close) in cases {
        println!("{what}");
        behind_a_handshake(&server, &bytes, close).await;
    }
    alpha.report(|_| {}).await.unwrap();
    assert_eq!(state(&server).await, before);
}

#[tokio::test]
async fn a_record_sent_twice_or_out_of_order_ends_its_connection() {
    let server = Running::start().await;
    server.joined(1, "alpha").await;
    let key = server.coordinator.server_key();
    for swap in [false, true] {
        let stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
        let (noise, _) = raw::upgrade(stream, &key, &machine(1), 145).await;
        let (ours, mut sealed) = tokio::io::duplex(1 << 16);
        let (mut noise, mut stream) = noise.replaced(ours);
        let mut records = Vec::new();
        for text in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]] {
            noise.write_all(text).await.unwrap();
            noise.flush().await.unwrap();
            let mut record = vec![0; HEADER_LEN + text.len() + 16];
            sealed.read_exact(&mut record).await.unwrap();
            records.push(record);
        }
        if swap {
            records.swap(0, 1);
        } else {
            records[1] = records[0].clone();
        }
        stream.write_all(&records.concat()).await.unwrap();
        let mut rest = Vec::new();
        let _ = within("the connection's end", stream.read_to_end(&mut rest)).await;
    }
}

#[tokio::test]
async fn a_handshake_played_again_gives_no_session_no_members_place_and_changes_nothing() {
    let server = Running::start().await;
    let alpha = server.joined(1, "alpha").await;
    let mut stream = alpha.stream("").await;
    stream.next().await.unwrap();
    let before = state(&server).await;
    let initiator = raw::initiator(&server.coordinator.server_key(), &machine(1), 145);
    let head = raw::upgrade_head("x", &raw::base64(initiator.message()));
    let play = async || {
        let mut stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = within("an answer", raw::read_head(&mut stream)).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let mut response = [0; RESPONSE_LEN];
        stream.read_exact(&mut response).await.unwrap();
        (stream, response)
    };
    let (mut first, response) = play().await;
    let (mut replayed, other_response) = play().await;
    // Each answer has keys of its own: what was sealed for the first session is of no use in the second.
    assert_ne!(response, other_response);
    let keys = initiator.finish(&response).unwrap();
    let (mut sealer, mut record) = (keys.sealer, Vec::new());
    sealer.seal(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", &mut record).unwrap();
    replayed.write_all(&record).await.unwrap();
    let mut rest = Vec::new();
    let _ = within("the replayed connection's end", replayed.read_to_end(&mut rest)).await;
    first.write_all(&record).await.unwrap();
    let mut settings = [0; 64];
    assert!(within("the first session's answer", first.read(&mut settings)).await.unwrap() > 0);

    // However often it is played, whoever plays it stays a stranger: an address has only so many places for those.
    let (answered, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(server.coordinator.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let (answered, open) = (answered.clone(), open.clone());
        held.spawn(async move {
            let mut bytes = [0; 512];
            if matches!(stream.read(&mut bytes).await, Ok(1..)) {
                answered.fetch_add(1, Ordering::Relaxed);
                open.fetch_add(1, Ordering::Relaxed);
                while let Ok(1..) = stream.read(&mut bytes).await {}
                open.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
    within("all but an address's places to be closed", async {
        while answered.load(Ordering::Relaxed) < 128 || !(1..=128).contains(&open.load(Ordering::Relaxed)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    drop(held);
    assert_eq!(state(&server).await, before);
    alpha.report(|request| request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()]).await.unwrap();
}

#[tokio::test]
async fn wrong_types_are_refused_unknown_fields_are_not_and_cut_bodies_change_nothing() {
    let server = Running::start().await;
    server.joined(1, "alpha").await;
    let tunnel = Tunnel::connect(server.coordinator.address(), &server.coordinator.server_key(), &machine(1)).await;
    let before = state(&server).await;
    let node = node(1);
    for field in ["Version", "NodeKey", "Hostinfo", "Ephemeral", "Auth", "Followup", "Expiry", "OldNodeKey", "NLKey", "Tailnet"] {
        for value in ["[[]]", "{\"a\":[]}", "-1", "1e300", "\"\\u0000\"", "18446744073709551616", "true"] {
            if field == "Hostinfo" && value.starts_with('{') {
                continue;
            }
            let body = format!(r#"{{"Version":130,"NodeKey":"{node}","{field}":{value}}}"#);
            let answer = tunnel.post(REGISTER_PATH, body.clone()).await;
            assert!(answer.status == 400 || answer.status == 200, "{body}: {answer:?}");
            assert!(!answer.text.is_empty() && answer.text.len() < 2000, "{body}: {answer:?}");
        }
    }
    for field in
        ["Version", "Compress", "NodeKey", "DiscoKey", "Stream", "Hostinfo", "Endpoints", "EndpointTypes", "OmitPeers", "DebugFlags"]
    {
        for value in ["[[]]", "{\"a\":[]}", "-1", "1e300", "18446744073709551616"] {
            // An object is what the description of a node is; this one says nothing that is known.
            if field == "Hostinfo" && value.starts_with('{') {
                continue;
            }
            let body = format!(r#"{{"Version":130,"NodeKey":"{node}","OmitPeers":true,"{field}":{value}}}"#);
            let answer = tunnel.post(MAP_PATH, body.clone()).await;
            assert!((400..500).contains(&answer.status), "{body}: {answer:?}");
        }
    }
    let whole =
        format!(r#"{{"Version":130,"NodeKey":"{node}","OmitPeers":true,"Endpoints":["203.0.113.9:1"],"Hostinfo":{{"Hostname":"x"}}}}"#);
    for cut in 0..whole.len() {
        assert_eq!(tunnel.post(MAP_PATH, whole[..cut].to_owned()).await.status, 400, "cut to {cut}");
    }
    assert_eq!(state(&server).await, before);
    let unknown = format!(
        r#"{{"Nope":[{{"x":null}}],"Version":130,"NodeKey":"{node}","OmitPeers":true,"Hostinfo":{{"Nope":1,"NetInfo":{{"Nope":{{}}}}}}}}"#
    );
    assert_eq!(tunnel.post(MAP_PATH, unknown).await.status, 200);
}

/// A list as long as fits into a body of a megabyte.
fn filled(before: &str, item: &str, after: &str) -> String {
    let room = (1 << 20) - before.len() - after.len();
    let count = room / (item.len() + 1);
    format!("{before}{}{item}{after}", format!("{item},").repeat(count - 1))
}

#[tokio::test]
async fn enormous_lists_are_refused_in_little_time_and_memory() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path(), free_port()).await;
    let server_key = process.admin().info().await.unwrap().server_key;
    let key = new_key(&process.admin(), |_| {}).await;
    let alpha = Client::connect(&process.url, 1).await;
    assert_eq!(alpha.register(Some(&key), "alpha").await.error, "");
    let address = process.url.strip_prefix("http://").unwrap().parse().unwrap();
    let tunnel = Tunnel::connect(address, &server_key, &machine(1)).await;
    let (before, node) = (process.resident_kib(), node(1));
    let head = format!(r#"{{"Version":130,"NodeKey":"{node}","OmitPeers":true,"#);
    let mut slowest = Duration::ZERO;
    for (start, item, end) in [
        ("\"Endpoints\":[", "\"\"", "]}"),
        ("\"Endpoints\":[", "\"1.2.3.4:5\"", "]}"),
        ("\"EndpointTypes\":[", "1", "]}"),
        ("\"DebugFlags\":[", "\"\"", "]}"),
        ("\"Hostinfo\":{\"RoutableIPs\":[", "\"::/0\"", "]}}"),
        ("\"Hostinfo\":{\"RequestTags\":[", "\"\"", "]}}"),
        ("\"Hostinfo\":{\"Services\":[", "{}", "]}}"),
        ("\"Hostinfo\":{\"sshHostKeys\":[", "\"\"", "]}}"),
        ("\"Hostinfo\":{\"Location\":[", "{\"\":0}", "]}}"),
        ("\"Hostinfo\":{\"TPM\":[", "[]", "]}}"),
        ("\"Hostinfo\":{\"NetInfo\":{\"DERPLatency\":{", "\"\":0", "}}}}"),
    ] {
        for path in [MAP_PATH, REGISTER_PATH] {
            if path == REGISTER_PATH && !start.starts_with("\"Hostinfo") {
                continue;
            }
            let begun = process.cpu_time();
            let answer = tunnel.post(path, filled(&format!("{head}{start}"), item, end)).await;
            slowest = slowest.max(process.cpu_time().saturating_sub(begun));
            assert_eq!(answer.status, 400, "{start}{item}: {answer:?}");
            assert!(answer.text.contains("more values"), "{answer:?}");
        }
        let million = format!("{head}{start}{}{item}{end}", format!("{item},").repeat(1_000_000));
        assert_eq!(tunnel.post(MAP_PATH, million).await.status, 413, "{start}");
    }
    // In a field that is not known it is passed over.
    assert_eq!(tunnel.post(MAP_PATH, filled(&format!("{head}\"Nope\":["), "{}", "]}")).await.status, 200);
    let grown = process.resident_kib().saturating_sub(before);
    println!("the most costly answer took {slowest:?} of computing, resident memory grew by {grown} KiB");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(grown < 24 * 1024, "{grown} KiB");
    alpha.report(|_| {}).await.unwrap();
}

#[tokio::test]
async fn bodies_that_never_end_hold_up_nobody_else() {
    let server = Running::start().await;
    let alpha = server.joined(1, "alpha").await;
    let (address, key) = (server.coordinator.address(), server.coordinator.server_key());
    let mut held = Vec::new();
    // Strangers and a member, on many connections, each with many requests that do not go on.
    for n in [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1] {
        let mut tunnel = Tunnel::connect(address, &key, &machine(n)).await;
        for _ in 0..60 {
            let (answer, mut body) = tunnel.begin(raw::request(http::Method::POST, REGISTER_PATH)).await;
            let _ = body.send_data(vec![b' '; 64].into(), false);
            held.push((answer, body));
        }
    }
    let begun = Instant::now();
    alpha.report(|request| request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()]).await.unwrap();
    server.joined(2, "beta").await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}
