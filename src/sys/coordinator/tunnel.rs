//! Inside a Noise connection: HTTP/2, registration, map requests, administration.
//!
//! The machine key of the connection is the one fact about its requests; the core checks every node key against it. It is a fact only
//! from the first request on: a handshake's first message can be repeated by whoever has seen it, and names the machine all the same, but
//! only the machine itself can make the records that follow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::body::{self, Allowance, Body, json, text};
use super::encoding::Encoding;
use super::patience::Patience;
use super::upgrade::Caller;
use super::{Shared, admin, map_stream};
use crate::coord::server::{MapAnswer, MapRefusal, Registered};
use crate::ident::MachinePublic;
use crate::sys::gate::Place;
use crate::sys::noise_stream::NoiseStream;
use crate::wire::admin::{ADMIN_PREFIX, AdminFailure};
use crate::wire::control::{MAP_PATH, MapRequest, REGISTER_PATH, RegisterRequest, json as lenient};

/// One connection carries a held registration, an endless map stream and short requests, all at once.
const MAX_STREAMS: u32 = 128;
/// Room for one request's worth of data per stream, and for a few streams at once.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
const MAX_HEADERS: u32 = 16 * 1024;
/// How many values a request may hold. A node's own description has some hundred; a router of many networks a few thousand.
const MAX_VALUES: usize = 16 * 1024;
/// A peer that vanished without a word is noticed after these two; healthy ones answer pings at once.
const PING_EVERY: Duration = Duration::from_secs(45);
const PING_TIME: Duration = Duration::from_secs(20);
/// How long a stranger may be connected without any request under way.
const STRANGER_IDLE: Duration = Duration::from_secs(60);
/// How many [`STRANGER_IDLE`] a stranger may stay in all: longer than a registration can wait for approval.
const STRANGER_ROUNDS: u32 = 17;

/// One connection.
struct Tunnel {
    shared: Arc<Shared>,
    place: Arc<Place>,
    patience: Patience,
    machine: MachinePublic,
    /// A request has come, sealed with keys that only the machine can have.
    heard: AtomicBool,
    under_way: AtomicUsize,
    /// A stranger's bodies are read one at a time.
    own_turn: Semaphore,
}

/// Serves a connection until it ends.
pub(super) async fn serve<T>(shared: Arc<Shared>, caller: Caller, machine: MachinePublic, stream: NoiseStream<T>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tunnel = Arc::new(Tunnel {
        shared,
        place: caller.place,
        patience: caller.patience,
        machine,
        heard: AtomicBool::new(false),
        under_way: AtomicUsize::new(0),
        own_turn: Semaphore::new(1),
    });
    let service = {
        let tunnel = tunnel.clone();
        service_fn(move |request| {
            let tunnel = tunnel.clone();
            async move { Ok::<_, std::convert::Infallible>(tunnel.answer(request).await) }
        })
    };
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIME)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "control connection ended");
            }
        }
        () = tunnel.overstay() => tracing::debug!("a stranger's connection is closed"),
        () = tunnel.place.evicted() => tracing::debug!("a half-open connection gives way to another"),
    }
}

/// Counts a request as under way.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tunnel {
    /// Returns when a stranger has been here too long; never for others.
    async fn overstay(&self) {
        for _ in 0..STRANGER_ROUNDS {
            tokio::time::sleep(STRANGER_IDLE).await;
            if !self.place.is_stranger() {
                std::future::pending::<()>().await;
            }
            if self.under_way.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    fn prove_if_known(&self) {
        let known = self.shared.hub.is_admin(&self.machine) || self.shared.hub.call(|server, _| server.knows_machine(&self.machine)).0;
        if known {
            self.place.prove();
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let _under_way = UnderWay(&self.under_way);
        if !self.heard.swap(true, Ordering::Relaxed) {
            self.place.settle();
            self.prove_if_known();
        }
        let (head, incoming) = request.into_parts();
        let path = head.uri.path();
        let allowance = if self.place.is_stranger() { Allowance::stranger(&self.own_turn) } else { Allowance::member(&self.shared.turns) };
        if let Some(rest) = path.strip_prefix(ADMIN_PREFIX) {
            if !self.shared.hub.is_admin(&self.machine) {
                let error = "this machine's key is not one of the coordinator's admin keys: name it in its settings".to_owned();
                return json(StatusCode::FORBIDDEN, &AdminFailure { error });
            }
            return match body::read(incoming, allowance).await {
                Ok(bytes) => admin::answer(&self.shared.hub, admin::Way::Control, &head.method, rest, &bytes).await,
                Err(response) => response,
            };
        }
        match (&head.method, path) {
            (&Method::POST, REGISTER_PATH | MAP_PATH) => match body::read(incoming, allowance).await {
                Ok(bytes) if path == REGISTER_PATH => self.register(&bytes).await,
                Ok(bytes) => self.map(&bytes),
                Err(response) => response,
            },
            (_, REGISTER_PATH | MAP_PATH) => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this is asked for with POST");
                response.headers_mut().insert(hyper::header::ALLOW, hyper::header::HeaderValue::from_static("POST"));
                response
            }
            _ => text(StatusCode::NOT_IMPLEMENTED, "this coordinator does not offer that"),
        }
    }

    async fn register(&self, bytes: &Bytes) -> Response<Body> {
        let request: RegisterRequest = match lenient::from_slice_within(MAX_VALUES, bytes) {
            Ok(request) => request,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("the registration does not read: {error}")),
        };
        let mut decisions = self.shared.hub.decisions();
        loop {
            // Subscribed before asking: a decision between the two is not missed.
            decisions.mark_unchanged();
            match self.shared.hub.call_stored(|server, at| server.register(at, &self.machine, &request)).await {
                Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
                Ok(Registered::Answer(response)) => {
                    self.prove_if_known();
                    return json(StatusCode::OK, &*response);
                }
                Ok(Registered::Hold) => {
                    if decisions.changed().await.is_err() {
                        return text(StatusCode::SERVICE_UNAVAILABLE, "the coordinator is shutting down");
                    }
                }
            }
        }
    }

    fn map(&self, bytes: &Bytes) -> Response<Body> {
        let request: MapRequest = match lenient::from_slice_within(MAX_VALUES, bytes) {
            Ok(request) => request,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("the map request does not read: {error}")),
        };
        let encoding = Encoding::asked(&request.compress);
        // What a node reports need not be on disk before it hears of success: it reports again when it comes back.
        match self.shared.hub.call(|server, at| server.map(at, &self.machine, &request)).0 {
            Ok(MapAnswer::Empty) => Response::new(Body::Whole(None)),
            Ok(MapAnswer::Once(message)) => match encoding.message(&message) {
                Ok(frame) => Response::new(Body::Whole(Some(frame.into_iter().flatten().collect()))),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            Ok(MapAnswer::Stream(session)) => {
                Response::new(map_stream::start(self.shared.hub.clone(), session, encoding, self.patience.clone()))
            }
            Err(refusal) => {
                let status = match refusal {
                    MapRefusal::OtherMachine => StatusCode::UNAUTHORIZED,
                    MapRefusal::TooOld(_) => StatusCode::BAD_REQUEST,
                    MapRefusal::Unknown => StatusCode::NOT_FOUND,
                };
                text(status, refusal.to_string())
            }
        }
    }
}
