//! Coordinators that answer wrongly, late, or not at all. After each, the node comes back to one that answers rightly.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pvemesh::ident::MachinePrivate;
use pvemesh::sys::dial::ControlConnection;
use pvemesh::sys::noise_stream::NoiseStream;
use pvemesh::wire::control::noise::{EarlyPayload, Responder, encode_early};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::client::{LIMIT, Session, identity, machine};

/// What a server does on one connection.
#[derive(Clone, Debug)]
enum Manner {
    /// Everything right, with or without an early payload; the map stream stays open.
    Right { early: bool },
    /// These bytes as the map stream, which ends then.
    Stream(Vec<u8>),
    /// These bytes right behind the 101.
    Behind(Vec<u8>),
    /// This instead of a 101.
    Instead(Vec<u8>),
    /// Accepts and says nothing.
    Silence,
}

const ADMITTED: &str = r#"{"User":{},"Login":{},"NodeKeyExpired":false,"MachineAuthorized":true,"AuthURL":"","Error":""}"#;
const MAP: &str = r#"{"Node":{"ID":1,"Name":"a.x.","Addresses":["100.64.0.1/32"]}}"#;

fn framed(message: &[u8]) -> Vec<u8> {
    [&u32::try_from(message.len()).unwrap().to_le_bytes()[..], message].concat()
}

/// Serves connections in the manners given, the last of them for all that follow. Gives the URL.
async fn server(manners: Vec<Manner>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let count = Arc::new(AtomicUsize::new(0));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (manners, count) = (manners.clone(), count.clone());
            tokio::spawn(async move {
                let _ = connection(stream, &manners, &count).await;
            });
        }
    });
    url
}

async fn connection(mut stream: TcpStream, manners: &[Manner], count: &AtomicUsize) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let key = MachinePrivate::from_seed([7; 32]);
    if head.starts_with("GET /key") {
        let body = format!(r#"{{"publicKey":"{}","legacyPublicKey":"mkey:{}"}}"#, key.public(), "0".repeat(64));
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        return stream.write_all(reply.as_bytes()).await;
    }
    let manner = &manners[count.fetch_add(1, Ordering::Relaxed).min(manners.len() - 1)];
    match manner {
        Manner::Silence => {
            tokio::time::sleep(LIMIT * 10).await;
            return Ok(());
        }
        Manner::Instead(bytes) => {
            stream.write_all(bytes).await?;
            return stream.shutdown().await;
        }
        _ => {}
    }
    let header =
        head.lines().find_map(|line| line.to_ascii_lowercase().starts_with("x-tailscale-handshake:").then(|| &line[22..])).unwrap();
    let message = base64::prelude::BASE64_STANDARD.decode(header.trim()).unwrap();
    let Ok(accepted) = Responder::accept([9; 32], &key, &message) else { return Ok(()) };
    let mut answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n".to_vec();
    if let Manner::Behind(bytes) = manner {
        answer.extend(bytes);
        stream.write_all(&answer).await?;
        return stream.shutdown().await;
    }
    let mut keys = accepted.keys;
    answer.extend(accepted.response);
    if matches!(manner, Manner::Right { early: true }) {
        let payload = EarlyPayload { node_key_challenge: format!("chalpub:{}", "0".repeat(64)) };
        keys.sealer.seal(&encode_early(&payload).unwrap(), &mut answer).unwrap();
    }
    // All in one write, as a corking server does.
    stream.write_all(&answer).await?;
    let noise = NoiseStream::new(stream, keys, &[]);
    let manner = manner.clone();
    let service = hyper::service::service_fn(move |request| respond(request, manner.clone()));
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(noise), service).await;
    Ok(())
}

async fn respond(request: Request<Incoming>, manner: Manner) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let streams = String::from_utf8_lossy(&body).contains(r#""Stream":true"#);
    let reply = match (path.as_str(), manner) {
        ("/machine/register", _) => Full::from(ADMITTED).boxed(),
        ("/machine/map", Manner::Stream(bytes)) if streams => Full::from(bytes).boxed(),
        ("/machine/map", _) if streams => {
            let map = Ok(Frame::data(Bytes::from(framed(MAP.as_bytes()))));
            BodyExt::boxed(StreamBody::new(stream::iter([map]).chain(stream::pending())))
        }
        _ => Full::default().boxed(),
    };
    Ok(Response::new(reply))
}

async fn joins(manners: Vec<Manner>) {
    let shown = format!("{manners:.80?}");
    let url = server(manners).await;
    let mut session = Session::start(&identity(&url, None), "alpha");
    let map = session.map().await;
    assert_eq!(map.node.name, "a.x.", "{shown}");
}

#[tokio::test]
async fn trap_09_an_early_payload_is_skipped_and_its_absence_is_no_matter() {
    for early in [true, false] {
        joins(vec![Manner::Right { early }]).await;
    }
}

#[tokio::test]
async fn a_bad_map_stream_is_given_up_and_the_node_comes_back() {
    let bomb = zstd::stream::encode_all(std::io::repeat(b' ').take_bytes(80 << 20), 1).unwrap();
    let mut cut = framed(MAP.as_bytes());
    cut.truncate(20);
    let streams = [
        vec![],
        vec![0, 0, 0, 0],
        vec![0xff; 64],
        cut,
        framed(b"garbage"),
        framed(b"{\"Node\":[]}"),
        framed(br#"{"PeersChanged":[{"ID":2}]}"#),
        framed(&[0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3]),
        framed(&bomb),
    ];
    for bytes in streams {
        let url = server(vec![Manner::Stream(bytes), Manner::Right { early: true }]).await;
        let mut session = Session::start(&identity(&url, None), "alpha");
        let reason = session.offline().await;
        assert!(!reason.is_empty());
        session.map().await;
    }
}

/// The first bytes of an endless reader.
trait TakeBytes: std::io::Read + Sized {
    fn take_bytes(self, count: u64) -> std::io::Take<Self> {
        self.take(count)
    }
}

impl<T: std::io::Read> TakeBytes for T {}

#[tokio::test]
async fn garbage_instead_of_the_protocol_is_survived() {
    let noise: Vec<u8> = (0..65_536u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for manner in [
        Manner::Instead(vec![]),
        Manner::Instead(noise.clone()),
        Manner::Instead(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnope\n".to_vec()),
        Manner::Instead(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n".to_vec()),
        Manner::Behind(vec![]),
        Manner::Behind(noise),
        Manner::Behind(vec![2, 0, 48]),
        Manner::Behind(Responder::refusal("go away")),
    ] {
        joins(vec![manner, Manner::Right { early: false }]).await;
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let url = server(vec![Manner::Silence]).await;
    let key = MachinePrivate::from_seed([7; 32]).public();
    let begun = std::time::Instant::now();
    let error = ControlConnection::connect(&url, &key, &machine(1)).await.unwrap_err();
    assert!(error.to_string().contains("no answer"), "{error}");
    assert!(begun.elapsed() < LIMIT);
}

#[tokio::test]
async fn a_refusal_in_the_handshake_is_shown() {
    let url = server(vec![Manner::Behind(Responder::refusal("go away"))]).await;
    let key = MachinePrivate::from_seed([7; 32]).public();
    let error = ControlConnection::connect(&url, &key, &machine(1)).await.unwrap_err();
    assert!(error.to_string().contains("go away"), "{error}");
}

#[tokio::test]
async fn a_pinned_key_other_than_the_servers_is_refused() {
    let url = server(vec![Manner::Right { early: false }]).await;
    let mut identity = identity(&url, None);
    identity.pin = Some(pvemesh::sys::control::Pin { key: MachinePrivate::from_seed([8; 32]).public(), strict: true });
    let text = Session::start(&identity, "alpha").refusal().await;
    assert!(text.contains("another key"), "{text}");
}
