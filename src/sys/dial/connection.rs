//! The control connection: requests in HTTP/2 inside Noise.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::early::SkipEarly;
use super::upgrade::Upgraded;
use super::{DialError, Dialer, MAX_REPLY, Origin, REPLY_LIMIT};
use crate::ident::{MachinePrivate, MachinePublic, NodePublic};
use crate::wire::control::{LOAD_BALANCER_HEADER, json};

/// The longest error text kept.
pub(super) const MAX_ERROR_TEXT: usize = 64 * 1024;
/// The longest `Retry-After` header kept.
const MAX_RETRY_TEXT: usize = 64;
/// How often a silent connection is asked whether it still lives, and how long it may think about it: a half-open one is noticed
/// long before the map watchdog.
const PING_INTERVAL: Duration = Duration::from_secs(25);
const PING_LIMIT: Duration = Duration::from_secs(20);
/// HTTP/2 windows: a large first map arrives without waiting for window updates.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

pub(super) async fn within<T>(
    limit: Duration,
    tried: &'static str,
    work: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(DialError::Timeout { tried, limit }))
}

/// [`Dialer::fetch_server_key`] without a memory.
///
/// # Errors
/// As there.
pub async fn fetch_server_key(url: &str) -> Result<MachinePublic, DialError> {
    Dialer::default().fetch_server_key(url).await
}

/// A control connection: any number of requests at once.
#[derive(Debug, Clone)]
pub struct ControlConnection {
    origin: Origin,
    sender: http2::SendRequest<Full<Bytes>>,
    ends: (SocketAddr, SocketAddr),
    node: Option<HeaderValue>,
}

impl ControlConnection {
    /// [`Dialer::open`] without a memory.
    ///
    /// # Errors
    /// As there.
    pub async fn connect(url: &str, server: &MachinePublic, machine: &MachinePrivate) -> Result<Self, DialError> {
        Dialer::default().open(url, server, machine).await
    }

    /// Speaks HTTP/2 over a connection whose handshake is done.
    pub(super) async fn begin(origin: Origin, upgraded: Upgraded) -> Result<Self, DialError> {
        let tried = format!("open a control connection to {origin}");
        let Upgraded { noise, local, remote } = upgraded;
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
        Ok(Self { origin, sender, ends: (local, remote), node: None })
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

    /// The addresses it connects: ours and the server's.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        self.ends
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

pub(super) fn closed(tried: &str, error: &dyn std::error::Error) -> DialError {
    // hyper's own text ("http2 error") says little without its cause.
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    DialError::Closed { tried: tried.to_owned(), reason }
}

pub(super) async fn read_reply(tried: &str, response: Response<Incoming>, limit: usize) -> Result<Bytes, DialError> {
    let status = response.status();
    let limit = if status.is_success() { limit } else { MAX_ERROR_TEXT };
    let retry_after =
        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(|t| t.chars().take(MAX_RETRY_TEXT).collect());
    let body = Limited::new(response.into_body(), limit).collect().await;
    if status.is_success() {
        return body.map(http_body_util::Collected::to_bytes).map_err(|e| closed(tried, &*e));
    }
    let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
    Err(DialError::Status { tried: tried.to_owned(), status: status.as_u16(), text, retry_after })
}

fn to_json<B: Serialize>(path: &str, body: &B) -> Result<Bytes, DialError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|e| DialError::Protocol { tried: format!("POST {path}"), reason: e.to_string() })
}

fn read_json<R: DeserializeOwned>(path: &str, reply: &[u8]) -> Result<R, DialError> {
    json::from_slice(reply)
        .map_err(|e| DialError::Protocol { tried: format!("read the answer of {path}"), reason: format!("not the expected JSON: {e}") })
}
