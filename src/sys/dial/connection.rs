//! The key fetch and the control connection: HTTP/1.1 upgraded to Noise, HTTP/2 inside.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;

use super::early::SkipEarly;
use super::{DIAL_LIMIT, DialError, MAX_REPLY, Origin, REPLY_LIMIT, socket};
use crate::ident::{MachinePrivate, MachinePublic, NodePublic};
use crate::sys::entropy;
use crate::sys::noise_stream::NoiseStream;
use crate::wire::control::noise::{Initiator, RESPONSE_HEADER_LEN, response_len};
use crate::wire::control::{CAPABILITY_VERSION, HANDSHAKE_HEADER, LOAD_BALANCER_HEADER, ServerKeys, UPGRADE_PATH, UPGRADE_PROTOCOL, json};

/// The longest answer of `/key` read.
const MAX_KEY_REPLY: usize = 64 * 1024;
/// The longest error text kept.
const MAX_ERROR_TEXT: usize = 64 * 1024;
/// How often a silent connection is asked whether it still lives, and how long it may think about it: a half-open one is noticed
/// long before the map watchdog.
const PING_INTERVAL: Duration = Duration::from_secs(25);
const PING_LIMIT: Duration = Duration::from_secs(20);
/// HTTP/2 windows: a large first map arrives without waiting for window updates.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

async fn within<T>(limit: Duration, tried: &'static str, work: impl Future<Output = Result<T, DialError>>) -> Result<T, DialError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(DialError::Timeout { tried, limit }))
}

/// Asks a coordinator for its Noise key. This is the only step that the certificate of an `https` address protects.
///
/// # Errors
/// It cannot be reached, or does not answer like a coordinator.
pub async fn fetch_server_key(url: &str) -> Result<MachinePublic, DialError> {
    let origin: Origin = url.parse()?;
    let tried = format!("ask {origin} for its key");
    let reply = within(DIAL_LIMIT, "ask the coordinator for its key", async {
        let response = plain(&origin, &tried, Method::GET, &format!("/key?v={CAPABILITY_VERSION}")).await?;
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
pub async fn head(url: &str) -> Result<u16, DialError> {
    let uri: http::Uri = url.parse().map_err(|_| DialError::Url(url.chars().take(200).flat_map(char::escape_debug).collect()))?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let origin: Origin = url.strip_suffix(path).unwrap_or(url).parse()?;
    let tried = format!("ask {origin}");
    within(DIAL_LIMIT, "send HEAD", plain(&origin, &tried, Method::HEAD, path)).await.map(|response| response.status().as_u16())
}

/// One HTTP/1.1 request without body, on a connection of its own.
async fn plain(origin: &Origin, tried: &str, method: Method, path: &str) -> Result<Response<Incoming>, DialError> {
    let stream = socket::connect(origin).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| closed(tried, &e))?;
    // Ends by itself with the answer's body.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, origin.authority())
        .header(CONNECTION, "close")
        .body(Full::<Bytes>::default())
        .map_err(|e| DialError::Protocol { tried: tried.to_owned(), reason: e.to_string() })?;
    sender.send_request(request).await.map_err(|e| closed(tried, &e))
}

/// A control connection: any number of requests at once.
#[derive(Debug, Clone)]
pub struct ControlConnection {
    origin: Origin,
    sender: http2::SendRequest<Full<Bytes>>,
    node: Option<HeaderValue>,
}

impl ControlConnection {
    /// Connects, upgrades, and proves both keys.
    ///
    /// # Errors
    /// The server cannot be reached, is no coordinator, or has another key than `server`.
    pub async fn connect(url: &str, server: &MachinePublic, machine: &MachinePrivate) -> Result<Self, DialError> {
        let origin: Origin = url.parse()?;
        within(DIAL_LIMIT, "connect to the coordinator", async {
            let tried = format!("open a control connection to {origin}");
            let noise = upgrade(&origin, &tried, server, machine).await?;
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_LIMIT)
                .keep_alive_while_idle(true)
                .handshake(TokioIo::new(SkipEarly::new(noise)))
                .await
                .map_err(|e| closed(&tried, &e))?;
            // Ends by itself once the last sender and stream are gone, or the connection is.
            tokio::spawn(async move {
                if let Err(e) = connection.await {
                    tracing::debug!(error = %e, "control connection ended");
                }
            });
            Ok(Self { origin, sender, node: None })
        })
        .await
    }

    /// Names the node key in a header of every request, as a hint for load balancers.
    #[must_use]
    pub fn for_node(mut self, node: &NodePublic) -> Self {
        self.node = HeaderValue::try_from(node.to_string()).ok();
        self
    }

    /// Where it goes.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether it has ended; requests fail then.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Posts JSON and reads the JSON reply.
    ///
    /// # Errors
    /// The connection ended, the server refused ([`DialError::status`]), or the reply is not what was expected.
    pub async fn post_json<B: Serialize + Sync, R: DeserializeOwned>(&self, path: &str, body: &B) -> Result<R, DialError> {
        self.post_json_within(REPLY_LIMIT, path, body).await
    }

    /// As [`Self::post_json`], for a server that may hold the request for a long time.
    ///
    /// # Errors
    /// As [`Self::post_json`].
    pub async fn post_json_within<B: Serialize + Sync, R: DeserializeOwned>(
        &self,
        limit: Duration,
        path: &str,
        body: &B,
    ) -> Result<R, DialError> {
        let reply = self.exchange(limit, Method::POST, path, to_json(path, body)?).await?;
        read_json(path, &reply)
    }

    /// Posts JSON; only success is of interest.
    ///
    /// # Errors
    /// As [`Self::post_json`].
    pub async fn post<B: Serialize + Sync>(&self, path: &str, body: &B) -> Result<(), DialError> {
        self.exchange(REPLY_LIMIT, Method::POST, path, to_json(path, body)?).await.map(drop)
    }

    /// Posts bytes; only success is of interest.
    ///
    /// # Errors
    /// As [`Self::post_json`].
    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Result<(), DialError> {
        self.exchange(REPLY_LIMIT, Method::POST, path, body.into()).await.map(drop)
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// As [`Self::post_json`].
    pub async fn get_json<R: DeserializeOwned>(&self, path: &str) -> Result<R, DialError> {
        let reply = self.exchange(REPLY_LIMIT, Method::GET, path, Bytes::new()).await?;
        read_json(path, &reply)
    }

    /// Deletes something and reads the JSON reply.
    ///
    /// # Errors
    /// As [`Self::post_json`].
    pub async fn delete_json<R: DeserializeOwned>(&self, path: &str) -> Result<R, DialError> {
        let reply = self.exchange(REPLY_LIMIT, Method::DELETE, path, Bytes::new()).await?;
        read_json(path, &reply)
    }

    /// Sends `HEAD`; any answer will do.
    ///
    /// # Errors
    /// The connection ended or nothing came within the limit.
    pub async fn head(&self, path: &str) -> Result<u16, DialError> {
        let response = within(REPLY_LIMIT, "send HEAD", self.send(Method::HEAD, path, Bytes::new())).await?;
        Ok(response.status().as_u16())
    }

    /// Posts JSON and gives the reply's body as it comes.
    ///
    /// # Errors
    /// As [`Self::post_json`]; the limit holds for the beginning of the reply only.
    pub async fn post_stream<B: Serialize + Sync>(&self, path: &str, body: &B) -> Result<BodyStream, DialError> {
        let body = to_json(path, body)?;
        let response = within(REPLY_LIMIT, "post a request", self.send(Method::POST, path, body)).await?;
        if response.status() == StatusCode::OK {
            return Ok(BodyStream(response.into_body()));
        }
        let tried = format!("POST {path}");
        read_reply(&tried, response, MAX_REPLY).await?;
        Err(DialError::Protocol { tried, reason: "a success other than 200".to_owned() })
    }

    async fn exchange(&self, limit: Duration, method: Method, path: &str, body: Bytes) -> Result<Bytes, DialError> {
        let tried = format!("{method} {path}");
        within(limit, "send a request", async {
            let response = self.send(method, path, body).await?;
            read_reply(&tried, response, MAX_REPLY).await
        })
        .await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, DialError> {
        let tried = format!("{method} {path}");
        let mut request = Request::builder().method(method).uri(self.origin.url(path));
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(node) = &self.node {
            request = request.header(LOAD_BALANCER_HEADER, node);
        }
        let request = request.body(Full::new(body)).map_err(|e| DialError::Protocol { tried: tried.clone(), reason: e.to_string() })?;
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(|e| closed(&tried, &e))?;
        sender.send_request(request).await.map_err(|e| closed(&tried, &e))
    }
}

/// A reply's body as it comes.
#[derive(Debug)]
pub struct BodyStream(Incoming);

impl BodyStream {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection or the stream was cut.
    pub async fn next(&mut self) -> Result<Option<Bytes>, DialError> {
        loop {
            match self.0.frame().await {
                None => return Ok(None),
                Some(Err(e)) => return Err(closed("read a stream", &e)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// The HTTP/1.1 upgrade and the handshake. Bytes that came behind the server's 101 stay in the stream.
async fn upgrade(
    origin: &Origin,
    tried: &str,
    server: &MachinePublic,
    machine: &MachinePrivate,
) -> Result<NoiseStream<Upgraded>, DialError> {
    let initiator = Initiator::new(entropy::seed().map_err(DialError::Entropy)?, server, machine, CAPABILITY_VERSION)?;
    let stream = socket::connect(origin).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| closed(tried, &e))?;
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
    Ok(NoiseStream::new(stream, initiator.finish(&answer)?, &[]))
}

fn closed(tried: &str, error: &dyn std::error::Error) -> DialError {
    // hyper's own text ("http2 error") says little without its cause.
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    DialError::Closed { tried: tried.to_owned(), reason }
}

async fn read_reply(tried: &str, response: Response<Incoming>, limit: usize) -> Result<Bytes, DialError> {
    let status = response.status();
    let limit = if status.is_success() { limit } else { MAX_ERROR_TEXT };
    let body = Limited::new(response.into_body(), limit).collect().await;
    if status.is_success() {
        return body.map(http_body_util::Collected::to_bytes).map_err(|e| closed(tried, &*e));
    }
    let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
    Err(DialError::Status { tried: tried.to_owned(), status: status.as_u16(), text })
}

fn to_json<B: Serialize>(path: &str, body: &B) -> Result<Bytes, DialError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|e| DialError::Protocol { tried: format!("POST {path}"), reason: e.to_string() })
}

fn read_json<R: DeserializeOwned>(path: &str, reply: &[u8]) -> Result<R, DialError> {
    json::from_slice(reply)
        .map_err(|e| DialError::Protocol { tried: format!("read the answer of {path}"), reason: format!("not the expected JSON: {e}") })
}
