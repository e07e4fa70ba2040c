//! The peer API: an HTTP server on this node's own mesh addresses, which answers the name questions of those who use it as their exit
//! (`node::peer_api` says who may ask; RFC 8484 how).

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::NameServer;
use crate::names::MAX_MESSAGE;
use crate::netstack::Ends;
use crate::node::peer_api::{DNS_PATH, is_a_programs, ports};
use crate::sys::dial::Stream;
use crate::sys::userspace::{MeshStream, Stack};

/// Connections at a time: one for each node that uses this exit, and some.
const MAX_CONNECTIONS: usize = 128;
/// How long a request's head may take, and its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection is kept, busy or not: clients open another.
const LIFE: Duration = Duration::from_mins(5);
const MESSAGE: &str = "application/dns-message";

/// Nodes, and whether each may have names resolved.
pub(in crate::sys) type Callers = HashMap<IpAddr, bool>;

#[derive(Debug)]
struct Shared {
    callers: RwLock<Arc<Callers>>,
    names: super::Questions,
    connections: Arc<Semaphore>,
}

/// A running server. Dropping it ends it, and its connections.
#[derive(Debug)]
pub(in crate::sys) struct PeerApi {
    shared: Arc<Shared>,
    listeners: Vec<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for PeerApi {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A listener on an address of the tunnel's, which need not be there yet, at the first port that is free.
fn listen(interface: &str, ip: IpAddr) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in ports(ip).chain([0]) {
        let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if ip.is_ipv4() {
            socket.set_freebind_v4(true)?;
        } else {
            socket.set_freebind_v6(true)?;
        }
        // What comes by another interface is not from a peer, whatever address it bears.
        socket.bind_device(Some(interface.as_bytes()))?;
        match socket.bind(&SocketAddr::new(ip, port).into()).and_then(|()| socket.listen(64)) {
            Ok(()) => {
                socket.set_nonblocking(true)?;
                return TcpListener::from_std(socket.into());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl PeerApi {
    /// Listens on these addresses; nobody may ask anything yet.
    ///
    /// # Errors
    /// The system gives no such sockets.
    pub(in crate::sys) fn start(interface: &str, addresses: &[IpAddr], names: &NameServer) -> io::Result<Self> {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let shared = Arc::new(Shared { callers: RwLock::default(), names: names.questions(), connections });
        let mut api = Self { shared, listeners: Vec::new(), tasks: Vec::new() };
        for ip in addresses {
            let listener = listen(interface, *ip)?;
            api.listeners.push(listener.local_addr()?);
            api.tasks.push(tokio::spawn(accept(api.shared.clone(), listener)));
        }
        Ok(api)
    }

    /// The same for a node without a TUN.
    pub(in crate::sys) fn start_in(stack: &Stack, addresses: &[IpAddr], names: &NameServer) -> Self {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let shared = Arc::new(Shared { callers: RwLock::default(), names: names.questions(), connections });
        let listeners: Vec<SocketAddr> = addresses.iter().filter_map(|ip| Some(SocketAddr::new(*ip, ports(*ip).next()?))).collect();
        let tasks = vec![tokio::spawn(take(shared.clone(), stack.set_doors(listeners.clone())))];
        Self { shared, listeners, tasks }
    }

    /// Where it listens.
    pub(in crate::sys) fn listeners(&self) -> &[SocketAddr] {
        &self.listeners
    }

    /// Who may ask from now on.
    pub(in crate::sys) fn set_callers(&self, callers: Callers) {
        *self.shared.callers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(callers);
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let Ok(own) = listener.local_addr() else { return };
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = shared.connections.clone().try_acquire_owned() else { continue };
        let shared = shared.clone();
        tasks.spawn(async move {
            let _ = timeout(LIFE, serve(&shared, stream, own, from.ip())).await;
            drop(permit);
        });
    }
}

/// Takes connections that the stack brings, which are as good as accepted.
async fn take(shared: Arc<Shared>, mut knocks: mpsc::Receiver<MeshStream>) {
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(stream) = knocks.recv().await {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = shared.connections.clone().try_acquire_owned() else { continue };
        let shared = shared.clone();
        tasks.spawn(async move {
            let Ends { local, remote } = stream.ends();
            let _ = timeout(LIFE, serve(&shared, stream, local, remote.ip())).await;
            drop(permit);
        });
    }
}

async fn serve(shared: &Arc<Shared>, stream: impl Stream, own: SocketAddr, from: IpAddr) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(shared.answer(request, own, from).await) });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, %from, "a peer's connection ended");
    }
}

fn said(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>, own: SocketAddr, from: IpAddr) -> Response<Full<Bytes>> {
        let callers = Arc::clone(&self.callers.read().unwrap_or_else(PoisonError::into_inner));
        let Some(may_ask) = callers.get(&from.to_canonical()).copied() else {
            return said(StatusCode::FORBIDDEN, "this is no node of the mesh\n");
        };
        let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        let has_origin = request.headers().contains_key(header::ORIGIN) || request.headers().contains_key(header::REFERER);
        if !is_a_programs(text(header::HOST), own, has_origin) {
            return said(StatusCode::FORBIDDEN, "this is for nodes of the mesh, not for web pages\n");
        }
        match request.uri().path() {
            "/" => said(StatusCode::OK, "a node of the mesh, by pvemesh\n"),
            DNS_PATH if !may_ask => said(StatusCode::FORBIDDEN, "policy does not let this node use the internet through this one\n"),
            DNS_PATH => self.resolve(request).await,
            _ => said(StatusCode::NOT_FOUND, "there is nothing here\n"),
        }
    }

    async fn resolve(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let question = match *request.method() {
            Method::GET => asked_in(request.uri().query().unwrap_or_default()),
            Method::POST => {
                let is_message = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == MESSAGE);
                if !is_message {
                    return said(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is to be application/dns-message\n");
                }
                let body = Limited::new(request.into_body(), MAX_MESSAGE).collect();
                match timeout(PATIENCE, body).await {
                    Ok(Ok(body)) => Some(body.to_bytes().to_vec()),
                    Ok(Err(_)) => return said(StatusCode::PAYLOAD_TOO_LARGE, "no question is that long\n"),
                    Err(_) => return said(StatusCode::REQUEST_TIMEOUT, "the question did not come\n"),
                }
            }
            _ => return said(StatusCode::METHOD_NOT_ALLOWED, "ask by GET or POST\n"),
        };
        let Some(question) = question else { return said(StatusCode::BAD_REQUEST, "there is no question in `dns`\n") };
        let Some(reply) = self.names.of_others(&question).await else {
            return said(StatusCode::BAD_REQUEST, "this is no question\n");
        };
        let mut response = Response::new(Full::new(Bytes::from(reply)));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(MESSAGE));
        response
    }
}

/// The question in a query string (RFC 8484, section 4.1).
fn asked_in(query: &str) -> Option<Vec<u8>> {
    let (_, text) = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "dns")?;
    let question = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=').as_bytes()).ok()?;
    (question.len() <= MAX_MESSAGE).then_some(question)
}
