//! A coordinator that answers by a script and remembers what it was asked.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pvemesh::ident::MachinePrivate;
use pvemesh::sys::noise_stream::NoiseStream;
use pvemesh::wire::control::noise::Responder;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::client::LIMIT;

pub(crate) const ADMITTED: &str = r#"{"User":{},"Login":{},"NodeKeyExpired":false,"MachineAuthorized":true,"AuthURL":"","Error":""}"#;
pub(crate) const MAP: &str = r#"{"Node":{"ID":1,"Name":"a.x.","Addresses":["100.64.0.1/32"]}}"#;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Bytes,
    pub(crate) at: Instant,
    /// Which control connection it came through, from 1; 0 for none.
    pub(crate) connection: usize,
    /// How many like it (path, and whether it is a stream) came before.
    pub(crate) before: usize,
}

impl Asked {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(crate) fn is_stream(&self) -> bool {
        self.path == "/machine/map" && self.json()["Stream"] == true
    }

    pub(crate) fn is_report(&self) -> bool {
        self.path == "/machine/map" && self.json()["OmitPeers"] == true
    }

    pub(crate) fn is_registration(&self) -> bool {
        self.path == "/machine/register"
    }
}

/// A piece of a map stream.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    Message(String),
    Pause(Duration),
    /// It stays open and says nothing more.
    Silence,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Json(String),
    Status(u16, Option<(&'static str, &'static str)>),
    Stream(Vec<Piece>),
    /// Empty, after this time.
    Late(Duration),
    Never,
}

/// What an ordinary coordinator says: let in, an open stream with one map, and success.
pub(crate) fn ordinary(asked: &Asked) -> Reply {
    if asked.is_registration() {
        Reply::Json(ADMITTED.to_owned())
    } else if asked.is_stream() {
        Reply::Stream(vec![Piece::Message(MAP.to_owned()), Piece::Silence])
    } else {
        Reply::Json(String::new())
    }
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

/// The server; ends with the test's runtime.
pub(crate) struct Scripted {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    script: Box<Script>,
    asked: Mutex<Vec<Asked>>,
    versions: Mutex<Vec<u16>>,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    most_reports_at_once: AtomicUsize,
}

impl Scripted {
    pub(crate) async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self::detached(url, script);
        let shared = server.shared.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(shared.clone().serve(stream));
            }
        });
        server
    }

    /// One that listens nowhere; connections are handed to [`Self::serve`].
    pub(crate) fn detached(url: String, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let shared = Shared {
            script: Box::new(script),
            asked: Mutex::default(),
            versions: Mutex::default(),
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            most_reports_at_once: AtomicUsize::new(0),
        };
        Self { url, shared: Arc::new(shared) }
    }

    pub(crate) fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S) -> impl Future<Output = ()> + Send + use<S> {
        self.shared.clone().serve(stream)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    pub(crate) fn of(&self, wanted: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| wanted(asked)).collect()
    }

    /// Control connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The versions of the Noise initiations.
    pub(crate) fn versions(&self) -> Vec<u16> {
        self.shared.versions.lock().unwrap().clone()
    }

    pub(crate) fn most_reports_at_once(&self) -> usize {
        self.shared.most_reports_at_once.load(Ordering::Relaxed)
    }

    /// Waits until what was asked satisfies a condition.
    pub(crate) async fn until<T>(&self, what: &str, mut condition: impl FnMut(&[Asked]) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let asked = self.asked();
            if let Some(found) = condition(&asked) {
                return found;
            }
            assert!(Instant::now() < end, "waited for {what}; asked was {:?}", asked.iter().map(|a| &a.path).collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Shared {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self: Arc<Self>, stream: S) {
        let _ = self.connection(stream).await;
    }

    async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self: Arc<Self>, mut stream: S) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap();
        let key = MachinePrivate::from_seed([7; 32]);
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap().parse().unwrap(), words.next().unwrap().to_owned());
        if path != "/ts2021" {
            let body = format!(r#"{{"publicKey":"{}","legacyPublicKey":"mkey:{}"}}"#, key.public(), "0".repeat(64));
            self.note(Asked { method, path, body: Bytes::new(), at: Instant::now(), connection: 0, before: 0 });
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            stream.write_all(reply.as_bytes()).await?;
            return stream.shutdown().await;
        }
        let header = head.lines().find_map(|line| line.to_ascii_lowercase().starts_with("x-tailscale-handshake:").then(|| &line[22..]));
        let message = base64::prelude::BASE64_STANDARD.decode(header.unwrap().trim()).unwrap();
        self.versions.lock().unwrap().push(u16::from_be_bytes([message[0], message[1]]));
        let Ok(accepted) = Responder::accept([9; 32], &key, &message) else { return Ok(()) };
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let mut answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n".to_vec();
        answer.extend(accepted.response);
        stream.write_all(&answer).await?;
        let noise = NoiseStream::new(stream, accepted.keys, &[]);
        let service = hyper::service::service_fn(move |request| self.clone().respond(connection, request));
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(noise), service).await;
        Ok(())
    }

    fn note(&self, mut asked: Asked) -> Asked {
        let mut all = self.asked.lock().unwrap();
        asked.before = all.iter().filter(|other| other.path == asked.path && other.is_stream() == asked.is_stream()).count();
        all.push(asked.clone());
        asked
    }

    async fn respond(
        self: Arc<Self>,
        connection: usize,
        request: Request<Incoming>,
    ) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
        let (method, path) = (request.method().clone(), request.uri().path_and_query().unwrap().to_string());
        let at = Instant::now();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let asked = self.note(Asked { method, path, body, at, connection, before: 0 });
        let counted = asked.is_report();
        if counted {
            let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_reports_at_once.fetch_max(now, Ordering::Relaxed);
        }
        let response = answer((self.script)(&asked)).await;
        if counted {
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(response)
    }
}

async fn answer(reply: Reply) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    match reply {
        Reply::Json(json) => Response::new(Full::from(json).boxed_unsync()),
        Reply::Status(status, header) => {
            let mut response = Response::builder().status(status);
            if let Some((name, value)) = header {
                response = response.header(name, value);
            }
            response.body(Full::from(format!("status {status}")).boxed_unsync()).unwrap()
        }
        Reply::Stream(pieces) => {
            let frames = stream::iter(pieces).then(|piece| async move {
                match piece {
                    Piece::Message(message) => Some(Ok(Frame::data(framed(message.as_bytes())))),
                    Piece::Pause(time) => {
                        tokio::time::sleep(time).await;
                        None
                    }
                    Piece::Silence => std::future::pending().await,
                }
            });
            Response::new(StreamBody::new(frames.filter_map(std::future::ready)).boxed_unsync())
        }
        Reply::Late(time) => {
            tokio::time::sleep(time).await;
            Response::new(Full::default().boxed_unsync())
        }
        Reply::Never => std::future::pending().await,
    }
}

fn framed(message: &[u8]) -> Bytes {
    [&u32::try_from(message.len()).unwrap().to_le_bytes()[..], message].concat().into()
}
