//! The relay over real sockets.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use pvemesh::ident::{NodePrivate, NodePublic};
use pvemesh::relay::client::{Client, Event};
use pvemesh::sys::clock;
use pvemesh::sys::relay::dial::{Dialed, dial};
use pvemesh::sys::relay::{Admission, Asked, Mesh, Options, Relay, Tls};
use pvemesh::wire::control::DerpNode;
use pvemesh::wire::derp::ClientInfo;
use pvemesh::wire::stun;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::world::node;

const LIMIT: Duration = Duration::from_secs(20);

fn options(directory: &Path, tls: Tls) -> Options {
    let local = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    Options {
        listen: local,
        tls,
        listen_http: local,
        stun: local,
        state_dir: directory.join("relay"),
        admission: Admission::Anyone,
        mesh: None,
        rate: None,
    }
}

/// The relay's entry in a relay map.
fn entry(relay: &Relay) -> DerpNode {
    let pin = relay.pin().unwrap_or_default().to_owned();
    DerpNode { host_name: "127.0.0.1".into(), derp_port: relay.address().unwrap().port(), cert_name: pin, ..DerpNode::default() }
}

/// A node connected to a relay.
struct Member {
    key: NodePublic,
    client: Client,
    dialed: Dialed,
}

impl Member {
    async fn try_join(entry: &DerpNode, plain: bool, key: NodePrivate) -> Result<Self, String> {
        let mut dialed = dial(entry, None, plain).await.map_err(|e| e.to_string())?;
        let client = Client::new(clock::now(), [7; 32], key.clone(), ClientInfo::new(None), dialed.relay);
        let mut member = Self { key: key.public(), client, dialed: Dialed { first: Vec::new(), stream: dialed.stream, ..dialed } };
        member.client.handle_bytes(clock::now(), &std::mem::take(&mut dialed.first));
        match member.next().await? {
            Event::Ready { .. } => Ok(member),
            other => Err(format!("{other:?}")),
        }
    }

    async fn join(entry: &DerpNode, n: u64) -> Self {
        tokio::time::timeout(LIMIT, Self::try_join(entry, entry.cert_name.is_empty(), node(n))).await.unwrap().unwrap()
    }

    async fn flush(&mut self) -> Result<(), String> {
        while let Some(frame) = self.client.poll_transmit() {
            self.dialed.stream.write_all(&frame).await.map_err(|e| e.to_string())?;
        }
        self.dialed.stream.flush().await.map_err(|e| e.to_string())
    }

    /// The next event.
    async fn next(&mut self) -> Result<Event, String> {
        let work = async {
            loop {
                if let Some(event) = self.client.poll_event() {
                    return Ok(event);
                }
                self.flush().await?;
                let mut bytes = vec![0; 16 * 1024];
                match self.dialed.stream.read(&mut bytes).await {
                    Ok(0) => return Err("the relay closed".to_owned()),
                    Ok(count) => self.client.handle_bytes(clock::now(), &bytes[..count]),
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        tokio::time::timeout(LIMIT, work).await.map_err(|_| "nothing happened".to_owned())?
    }

    async fn send(&mut self, to: NodePublic, packet: &[u8]) {
        self.client.send(clock::now(), to, packet);
        self.flush().await.unwrap();
    }
}

async fn exchange(a: &mut Member, b: &mut Member) {
    a.send(b.key, b"there").await;
    assert_eq!(b.next().await, Ok(Event::Packet { from: a.key, bytes: b"there".to_vec() }));
    b.send(a.key, &[9; 3000]).await;
    assert_eq!(a.next().await, Ok(Event::Packet { from: b.key, bytes: vec![9; 3000] }));
}

/// Sends a request as it is and reads until the relay closes.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_talk_through_a_relay_with_a_certificate_of_its_own_which_tells_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(options(directory.path(), Tls::SelfSigned("127.0.0.1".into()))).await.unwrap();
    let entry = entry(&relay);
    let (mut a, mut b) = (Member::join(&entry, 1).await, Member::join(&entry, 2).await);
    assert_eq!(a.dialed.relay, Some(relay.key()), "its certificate told its key: no round trip for the upgrade");
    exchange(&mut a, &mut b).await;
    assert_eq!((relay.nodes(), relay.counters().packets), (2, 2));
    let key = a.key;
    drop(a);
    assert!(matches!(b.next().await, Ok(Event::PeerGone { peer, .. }) if peer == key));
    relay.stop().await;
    assert!(matches!(b.next().await, Ok(Event::Restarting { .. })), "it says that it will be back");
    assert!(b.next().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_22_another_certificate_than_the_pinned_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(options(directory.path(), Tls::SelfSigned("127.0.0.1".into()))).await.unwrap();
    let mut wrong = entry(&relay);
    wrong.cert_name = format!("sha256-raw:{}", "00".repeat(32));
    assert!(dial(&wrong, None, false).await.unwrap_err().to_string().contains("TLS"));
    wrong.cert_name = String::new();
    assert!(dial(&wrong, None, false).await.unwrap_err().to_string().contains("TLS"), "nor is it one of an authority");
    let other = Relay::start(options(&directory.path().join("2"), Tls::SelfSigned("relay.example".into()))).await.unwrap();
    let mut other_name = entry(&other);
    assert!(dial(&other_name, None, false).await.unwrap_err().to_string().contains("TLS"), "the right one, for another name");
    other_name.host_name = "relay.example".into();
    other_name.ipv4 = "127.0.0.1".into();
    assert!(dial(&other_name, None, false).await.is_ok());
    relay.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_the_answer_is_read_and_frames_behind_it_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(options(directory.path(), Tls::None)).await.unwrap();
    let entry = entry(&relay);
    let (mut a, mut b) = (Member::join(&entry, 1).await, Member::join(&entry, 2).await);
    assert_eq!(a.dialed.relay, None);
    exchange(&mut a, &mut b).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whom_the_coordinator_knows_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("nodes");
    std::fs::write(&list, format!("# mine\n{}\n", node(1).public())).unwrap();
    let relay = Relay::start(Options { admission: Admission::List(list.clone()), ..options(directory.path(), Tls::None) }).await.unwrap();
    let place = entry(&relay);
    assert!(Member::try_join(&place, true, node(1)).await.is_ok());
    assert!(Member::try_join(&place, true, node(2)).await.is_err());
    std::fs::write(&list, format!("{}\n", node(2).public())).unwrap();
    assert!(Member::try_join(&place, true, node(2)).await.is_ok(), "the list is read each time");
    relay.stop().await;

    // A coordinator that knows node 1, and then goes away.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/verify", listener.local_addr().unwrap());
    let known = node(1).public().to_string();
    let coordinator = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let mut length = 0;
            while !request[..length].ends_with(b"}") {
                length += stream.read(&mut request[length..]).await.unwrap();
            }
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let allow = request.contains(&known) && request.contains(r#""Source":"127.0.0.1""#);
            let body = format!(r#"{{"Allow":{allow}}}"#);
            let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let asking = Options { admission: Admission::Ask(Asked::new(&url, None).unwrap()), ..options(directory.path(), Tls::None) };
    let relay = Relay::start(asking).await.unwrap();
    let entry = entry(&relay);
    assert!(Member::try_join(&entry, true, node(1)).await.is_ok());
    assert!(Member::try_join(&entry, true, node(2)).await.is_err());
    coordinator.abort();
    let _ = coordinator.await;
    assert!(Member::try_join(&entry, true, node(1)).await.is_ok(), "whom it allowed before, while it is away");
    assert!(Member::try_join(&entry, true, node(3)).await.is_err());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checks_of_clients_are_answered_and_the_rest_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(options(directory.path(), Tls::None)).await.unwrap();
    let ask = async |line: &str, more: &str| {
        raw(relay.address().unwrap(), &format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n")).await
    };
    for path in ["/derp/probe", "/derp/latency-check"] {
        for method in ["GET", "HEAD"] {
            let answer = ask(&format!("{method} {path}"), "").await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("access-control-allow-origin: *"), "{answer}");
        }
        assert!(ask(&format!("PUT {path}"), "").await.starts_with("HTTP/1.1 405"));
    }
    assert!(ask("GET /derp", "").await.starts_with("HTTP/1.1 426"), "no upgrade asked for");
    assert!(ask("GET /robots.txt", "").await.contains("Disallow: /"));
    assert!(ask("GET /", "").await.contains("relay"));
    assert!(ask("GET /debug/vars", "").await.starts_with("HTTP/1.1 404"));
    let answer = ask("GET /generate_204", "X-Tailscale-Challenge: ts_relay.example\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 204") && answer.contains("x-tailscale-response: response ts_relay.example\r\n"), "{answer}");
    assert!(!ask("GET /generate_204", "X-Tailscale-Challenge: <b>\r\n").await.contains("x-tailscale-response"));
    let beside = raw(relay.http_address().unwrap(), "GET /generate_204 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(beside.starts_with("HTTP/1.1 204"), "{beside}");
    let beside = raw(relay.http_address().unwrap(), "GET /derp HTTP/1.1\r\nHost: relay.example:80\r\nUpgrade: DERP\r\n\r\n").await;
    assert!(beside.starts_with("HTTP/1.1 308") && beside.contains("location: https://relay.example/derp\r\n"), "{beside}");
    for junk in ["\x16\x03\x01\x02", "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"] {
        assert_eq!(raw(relay.address().unwrap(), junk).await, "", "cut off without a word");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_12_stun_is_answered_for_nodes_and_for_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(options(directory.path(), Tls::None)).await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (server, own) = (relay.stun_address().unwrap(), socket.local_addr().unwrap());
    let tx = stun::TxId([5; 12]);
    let good = stun::request(tx);
    let mut without_name = good.clone();
    without_name[24] ^= 1;
    // A plain binding request as strangers send it, a wrong checksum, an answer, nothing at all; then a good one, which is the one answered.
    let plain = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[1; 12]].concat();
    for datagram in [plain, without_name, good[..39].to_vec(), stun::response(tx, own), Vec::new(), vec![0; 1400], good] {
        socket.send_to(&datagram, server).await.unwrap();
    }
    let mut answer = [0; 1500];
    let (length, from) = tokio::time::timeout(LIMIT, socket.recv_from(&mut answer)).await.unwrap().unwrap();
    assert_eq!((from, &answer[..length]), (server, stun::response(tx, own).as_slice()));
    assert!(socket.try_recv_from(&mut answer).is_err(), "one answer");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_come_in_through_a_web_socket() {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(options(directory.path(), Tls::None)).await.unwrap();
    let mut stream = TcpStream::connect(relay.address().unwrap()).await.unwrap();
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let request = format!(
        "GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains("sec-websocket-protocol: derp") && head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{head}"
    );
    // The relay's key in one binary message.
    let mut frame = [0; 2 + 45];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!((frame[0], usize::from(frame[1]), frame[2]), (0x82, 45, 1));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_that_never_reads_is_cut_off_and_others_do_not_notice() {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(options(directory.path(), Tls::None)).await.unwrap();
    let entry = entry(&relay);
    let (mut a, stuck, mut b) = (Member::join(&entry, 1).await, Member::join(&entry, 2).await, Member::join(&entry, 3).await);
    let begun = std::time::Instant::now();
    let gone = stuck.key;
    loop {
        assert!(begun.elapsed() < LIMIT, "it is still there");
        for _ in 0..20 {
            a.send(gone, &[0; 1400]).await;
        }
        exchange(&mut a, &mut b).await;
        if relay.nodes() == 2 {
            break;
        }
    }
    drop(stuck);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_two_relays_of_a_region_reach_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let tls = || Tls::SelfSigned("127.0.0.1".into());
    // The first start is for the ports and certificates, which both have to know of each other.
    let (mut places, mut listening) = (Vec::new(), Vec::new());
    for name in ["1", "2"] {
        let relay = Relay::start(options(&directory.path().join(name), tls())).await.unwrap();
        places.push(entry(&relay));
        listening.push(relay.address());
        relay.stop().await;
    }
    let mut relays = Vec::new();
    for (name, listen) in ["1", "2"].into_iter().zip(listening) {
        let mesh = Mesh { key: super::world::mesh_key(), relays: places.clone() };
        relays.push(Relay::start(Options { mesh: Some(mesh), listen, ..options(&directory.path().join(name), tls()) }).await.unwrap());
    }
    let (mut a, mut b) = (Member::join(&places[0], 1).await, Member::join(&places[1], 2).await);
    // Each relay learns of the other's clients a moment later; until then packets are lost.
    let both = async {
        loop {
            a.send(b.key, b"there").await;
            match tokio::time::timeout(Duration::from_millis(100), b.next()).await {
                Ok(event) => return event,
                Err(_) => continue,
            }
        }
    };
    assert_eq!(tokio::time::timeout(LIMIT, both).await.unwrap(), Ok(Event::Packet { from: a.key, bytes: b"there".to_vec() }));
    b.send(a.key, b"and back").await;
    assert_eq!(a.next().await, Ok(Event::Packet { from: b.key, bytes: b"and back".to_vec() }));
    for relay in relays {
        relay.stop().await;
    }
}
