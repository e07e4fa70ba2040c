//! A client made by hand: the upgrade, the Noise records and the HTTP/2 requests are each in the test's grip, so that they can be as odd
//! as other programs' are, or worse.

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use pvemesh::ident::{MachinePrivate, MachinePublic};
use pvemesh::sys::noise_stream::NoiseStream;
use pvemesh::wire::control::noise::{EARLY_HEADER_LEN, Initiator, RESPONSE_LEN, parse_early_header};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::net::within;

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub fn initiator(server: &MachinePublic, machine: &MachinePrivate, version: u16) -> Initiator {
    Initiator::new(rand_seed(), server, machine, version).unwrap()
}

fn rand_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut seed).unwrap();
    seed
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

/// The head of an upgrade, with a handshake header.
pub fn upgrade_head(host: &str, handshake: &str) -> String {
    format!(
        "POST /ts2021 HTTP/1.1\r\nHost: {host}\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\nX-Tailscale-Handshake: {handshake}\r\n\r\n"
    )
}

/// Reads an HTTP/1.1 head and not one byte more.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&head))));
    }
    String::from_utf8(head).unwrap()
}

/// One HTTP/1.1 request on a connection of its own; the whole answer as text.
pub async fn http(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = within("an answer", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

pub async fn get(address: std::net::SocketAddr, path: &str) -> String {
    http(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
}

pub async fn post(address: std::net::SocketAddr, path: &str, body: &str) -> String {
    let length = body.len();
    http(address, &format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")).await
}

/// Upgrades a stream; gives the records' stream and the early payload's length.
pub async fn upgrade<T: Stream>(mut stream: T, server: &MachinePublic, machine: &MachinePrivate, version: u16) -> (NoiseStream<T>, usize) {
    let initiator = initiator(server, machine, version);
    within("the upgrade", async {
        stream.write_all(upgrade_head("x", &base64(initiator.message())).as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut noise = finish(stream, initiator).await;
        let mut early = [0; EARLY_HEADER_LEN];
        noise.read_exact(&mut early).await.unwrap();
        let length = parse_early_header(early).unwrap().expect("an early payload");
        noise.read_exact(&mut vec![0; length]).await.unwrap();
        (noise, length)
    })
    .await
}

/// Reads the handshake's answer.
pub async fn finish<T: Stream>(mut stream: T, initiator: Initiator) -> NoiseStream<T> {
    let mut response = [0; RESPONSE_LEN];
    stream.read_exact(&mut response).await.unwrap();
    NoiseStream::new(stream, initiator.finish(&response).unwrap(), &[])
}

/// HTTP/2 over a stream.
#[derive(Clone)]
pub struct Tunnel {
    sender: h2::client::SendRequest<Bytes>,
}

impl Tunnel {
    pub async fn over<T: Stream + 'static>(stream: T) -> Self {
        let (sender, connection) = within("HTTP/2", h2::client::handshake(stream)).await.unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { sender }
    }

    /// Upgraded over TCP.
    pub async fn connect(address: std::net::SocketAddr, server: &MachinePublic, machine: &MachinePrivate) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        Self::over(upgrade(stream, server, machine, 145).await.0).await
    }

    /// Sends a request whose URI becomes `:scheme` and `:authority`; gives the beginning of the answer.
    pub async fn send(&self, request: Request<()>, body: impl Into<Bytes>) -> Result<http::Response<h2::RecvStream>, h2::Error> {
        let body = body.into();
        let mut sender = self.sender.clone().ready().await?;
        let (answer, mut stream) = sender.send_request(request, false)?;
        stream.send_data(body, true)?;
        answer.await
    }

    /// As [`Self::send`], with the whole answer.
    pub async fn ask(&self, request: Request<()>, body: impl Into<Bytes>) -> Answer {
        within("an answer", async {
            let answer = self.send(request, body).await.unwrap();
            let (head, mut stream) = answer.into_parts();
            let mut text = Vec::new();
            while let Some(bytes) = stream.data().await {
                let bytes = bytes.unwrap();
                let _ = stream.flow_control().release_capacity(bytes.len());
                text.extend_from_slice(&bytes);
            }
            Answer { status: head.status.as_u16(), headers: head.headers, text: String::from_utf8_lossy(&text).into_owned() }
        })
        .await
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.ask(request(Method::POST, path), body).await
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

/// A request as stock clients make it.
pub fn request(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("https://coord.example.test{path}")).body(()).unwrap()
}

impl Tunnel {
    /// Begins a request and sends no body; it waits for as long as what this gives is kept.
    pub async fn begin(&mut self, request: Request<()>) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let mut sender = within("a free stream", self.sender.clone().ready()).await.unwrap();
        sender.send_request(request, false).unwrap()
    }
}
