//! From an address to a proven connection: the key fetch, and the HTTP/1.1 upgrade to Noise, tried in more than one way.

use std::net::SocketAddr;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;

use super::connection::{MAX_ERROR_TEXT, closed, read_reply, within};
use super::race::first_success;
use super::{ControlConnection, DIAL_LIMIT, DialError, Dialer, Origin};
use crate::coord::client::{Attempt, attempts};
use crate::ident::{MachinePrivate, MachinePublic};
use crate::sys::entropy;
use crate::sys::noise_stream::NoiseStream;
use crate::wire::control::noise::{Initiator, RESPONSE_HEADER_LEN, response_len};
use crate::wire::control::{CAPABILITY_VERSION, HANDSHAKE_HEADER, ServerKeys, UPGRADE_PATH, UPGRADE_PROTOCOL, json};

/// The longest answer of `/key` read.
const MAX_KEY_REPLY: usize = 64 * 1024;

/// A connection after the handshake.
pub(super) struct Upgraded {
    pub(super) noise: NoiseStream<TokioIo<hyper::upgrade::Upgraded>>,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

impl Dialer {
    /// Asks a coordinator for its Noise key. This is the only step that the certificate of an `https` address protects.
    ///
    /// # Errors
    /// It cannot be reached, or does not answer like a coordinator.
    pub async fn fetch_server_key(&self, url: &str) -> Result<MachinePublic, DialError> {
        let origin: Origin = url.parse()?;
        let tried = format!("ask {origin} for its key");
        let reply = within(DIAL_LIMIT, "ask the coordinator for its key", async {
            let response = self.plain(&origin, &tried, Method::GET, &format!("/key?v={CAPABILITY_VERSION}"), Bytes::new()).await?;
            read_reply(&tried, response, MAX_KEY_REPLY).await
        })
        .await?;
        let protocol = |reason: String| DialError::Protocol { tried: tried.clone(), reason };
        let keys: ServerKeys = json::from_slice(&reply).map_err(|e| protocol(format!("not a coordinator's answer: {e}")))?;
        if keys.public_key.is_zero() {
            return Err(protocol("it has no Noise key; it is too old or no coordinator".to_owned()));
        }
        Ok(keys.public_key)
    }

    /// Sends `HEAD` to a URL outside any control connection and gives the status.
    ///
    /// # Errors
    /// It is no URL, or nothing answers within the limit.
    pub async fn head(&self, url: &str) -> Result<u16, DialError> {
        self.outside(url, Method::HEAD, Bytes::new()).await
    }

    /// Posts JSON to a URL outside any control connection and gives the status.
    ///
    /// # Errors
    /// As [`Self::head`].
    pub async fn post(&self, url: &str, json: Vec<u8>) -> Result<u16, DialError> {
        self.outside(url, Method::POST, json.into()).await
    }

    async fn outside(&self, url: &str, method: Method, body: Bytes) -> Result<u16, DialError> {
        let uri: http::Uri = url.parse().map_err(|_| DialError::Url(url.chars().take(200).flat_map(char::escape_debug).collect()))?;
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let origin: Origin = url.strip_suffix(path).unwrap_or(url).parse()?;
        let tried = format!("ask {origin}");
        within(DIAL_LIMIT, "ask", self.plain(&origin, &tried, method, path, body)).await.map(|response| response.status().as_u16())
    }

    /// Connects, upgrades, and proves both keys, in whichever of the ways to this address succeeds first.
    ///
    /// # Errors
    /// The server cannot be reached, is no coordinator, or has another key than `server`.
    pub async fn open(&self, url: &str, server: &MachinePublic, machine: &MachinePrivate) -> Result<ControlConnection, DialError> {
        let origin: Origin = url.parse()?;
        within(DIAL_LIMIT, "connect to the coordinator", async {
            let tried = format!("open a control connection to {origin}");
            let ways = attempts(origin.tls, origin.port, origin.port_named, self.is_hasty());
            let ways = ways.into_iter().map(|way| (way.delay, self.upgrade(&origin, way, &tried, server, machine))).collect();
            let upgraded = first_success(ways).await.unwrap_or_else(|| Err(DialError::Url(url.to_owned())))?;
            self.note_opened();
            ControlConnection::begin(origin.clone(), upgraded).await
        })
        .await
    }

    /// One HTTP/1.1 request, on a connection of its own.
    async fn plain(&self, origin: &Origin, tried: &str, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, DialError> {
        let stream = self.connect(origin).await?.stream;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| closed(tried, &e))?;
        // Ends by itself with the answer's body.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, origin.authority())
            .header(CONNECTION, "close")
            .body(Full::<Bytes>::from(body))
            .map_err(|e| DialError::Protocol { tried: tried.to_owned(), reason: e.to_string() })?;
        sender.send_request(request).await.map_err(|e| closed(tried, &e))
    }

    /// The HTTP/1.1 upgrade and the handshake. Bytes that came behind the server's 101 stay in the stream.
    async fn upgrade(
        &self,
        origin: &Origin,
        way: Attempt,
        tried: &str,
        server: &MachinePublic,
        machine: &MachinePrivate,
    ) -> Result<Upgraded, DialError> {
        let initiator = Initiator::new(entropy::seed().map_err(DialError::Entropy)?, server, machine, CAPABILITY_VERSION)?;
        let connected = self.attempt(origin, way).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(connected.stream)).await.map_err(|e| closed(tried, &e))?;
        tokio::spawn(connection.with_upgrades());
        let request = Request::post(UPGRADE_PATH)
            .header(HOST, origin.authority())
            .header(UPGRADE, UPGRADE_PROTOCOL)
            .header(CONNECTION, "upgrade")
            .header(HANDSHAKE_HEADER, base64::prelude::BASE64_STANDARD.encode(initiator.message()))
            .body(Full::<Bytes>::default())
            .map_err(|e| DialError::Protocol { tried: tried.to_owned(), reason: e.to_string() })?;
        let response = sender.send_request(request).await.map_err(|e| closed(tried, &e))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            read_reply(tried, response, MAX_ERROR_TEXT).await?;
            let reason = "the server did not switch to the control protocol; a proxy in front of it may not pass the upgrade".to_owned();
            return Err(DialError::Protocol { tried: tried.to_owned(), reason });
        }
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.map_err(|e| closed(tried, &e))?);
        let mut answer = vec![0; RESPONSE_HEADER_LEN];
        stream.read_exact(&mut answer).await.map_err(|e| closed(tried, &e))?;
        let header: [u8; RESPONSE_HEADER_LEN] = answer.as_slice().try_into().unwrap_or_default();
        answer.resize(response_len(header)?, 0);
        stream.read_exact(answer.get_mut(RESPONSE_HEADER_LEN..).unwrap_or_default()).await.map_err(|e| closed(tried, &e))?;
        let noise = NoiseStream::new(stream, initiator.finish(&answer)?, &[]);
        Ok(Upgraded { noise, local: connected.local, remote: connected.remote })
    }
}
