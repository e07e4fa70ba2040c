//! Pings of peers, of all kinds, for the user and for the coordinator.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::member::Member;
use crate::node::{PingReply, peer_api};
use crate::path::{PING_LOST, Path};
use crate::sys::engine::Engine;
use crate::sys::ping::Pinger;
use crate::sys::survey::Outlook;
use crate::wire::control::{Node, PingKind, PingResponse};

/// An unanswered probe of the path is repeated after so long.
const AGAIN: Duration = Duration::from_millis(500);

pub(super) const STOPPED: &str = "the node does not take part in a mesh at this moment; start it with `pvemesh node up`";

/// What came of a ping.
pub(super) struct Pinged {
    latency: Duration,
    /// The way the answer came, if it says.
    path: Option<Path>,
    /// The port of the peer's peer API, if the answer says.
    peer_api: Option<u16>,
    /// Where the request went, if it was one.
    url: String,
}

/// A ping under way; nothing comes of it if no answer does within [`PING_LOST`].
type Pinging = BoxFuture<'static, Result<Option<Pinged>, String>>;

impl Member {
    /// Sends a ping.
    pub(super) fn ping(&self, kind: PingKind, address: IpAddr) -> Result<Pinging, String> {
        let engine = self.engine().ok_or(STOPPED)?;
        match kind {
            PingKind::Disco => self.peer_at(address).and_then(|peer| probe(engine, peer)),
            PingKind::Tsmp => self.inside(engine, address),
            PingKind::Icmp => self.peer_at(address).map(|_| echo(address)),
            PingKind::PeerApi => self.request(address),
        }
    }

    fn peer_at(&self, address: IpAddr) -> Result<&Node, String> {
        let has = |node: &Node| node.addresses.iter().any(|net| net.addr() == address);
        let mut peers = self.netmap().into_iter().flat_map(|map| map.peers.values());
        peers.find(|peer| has(peer)).ok_or_else(|| format!("no other node has the address {address}"))
    }

    fn inside(&self, engine: &Engine, address: IpAddr) -> Result<Pinging, String> {
        let own = self.netmap().into_iter().flat_map(|map| &map.node.addresses).map(ipnet::IpNet::addr);
        let own = own.clone().find(|own| own.is_ipv4() == address.is_ipv4());
        let own = own.ok_or_else(|| format!("this node has no address of the family of {address}"))?;
        let answer = engine.ping_inside(own, address).map_err(|error| error.to_string())?;
        Ok(Box::pin(async {
            let pong = timeout(PING_LOST, answer).await.ok().and_then(Result::ok);
            Ok(pong.map(|pong| Pinged { latency: pong.latency, path: Some(pong.path), peer_api: pong.peer_api, url: String::new() }))
        }))
    }

    fn request(&self, address: IpAddr) -> Result<Pinging, String> {
        let peer = self.peer_at(address)?;
        let own = &self.netmap().ok_or(STOPPED)?.node;
        let name = peer.short_name().escape_debug();
        let to = peer_api::address(own, peer).ok_or_else(|| format!("{name} tells of no peer API; ping it by --tsmp"))?;
        Ok(Box::pin(async move {
            match timeout(PING_LOST, head(to)).await {
                Ok(Ok(latency)) => Ok(Some(Pinged { latency, path: None, peer_api: Some(to.port()), url: format!("http://{to}/") })),
                Ok(Err(error)) => Err(format!("the peer API at {to} does not answer: {error}")),
                Err(_) => Ok(None),
            }
        }))
    }

    /// The same for the coordinator, which gets what came of it in its own form.
    pub(super) fn ping_for_coordinator(&self, kind: PingKind, address: IpAddr) -> BoxFuture<'static, PingResponse> {
        let mut response = PingResponse { kind, ip: address.to_string(), ..PingResponse::default() };
        if self.netmap().is_some_and(|map| map.node.addresses.iter().any(|net| net.addr() == address)) {
            response.is_local = true;
            response.err = format!("{address} is the node's own address");
            return Box::pin(std::future::ready(response));
        }
        if let Ok(peer) = self.peer_at(address) {
            response.node_ip = peer.addresses.first().map(|net| net.addr().to_string()).unwrap_or_default();
            response.node_name = peer.short_name().to_owned();
        }
        let regions = self.outside().map(|outside| outside.outlook());
        let pinging = self.ping(kind, address);
        Box::pin(async move {
            let pinged = match pinging {
                Ok(pinging) => pinging.await,
                Err(error) => Err(error),
            };
            match pinged {
                Err(error) => response.err = error,
                Ok(None) => response.err = format!("no answer within {} s", PING_LOST.as_secs()),
                Ok(Some(pinged)) => {
                    response.latency_seconds = pinged.latency.as_secs_f64();
                    response.peer_api_port = pinged.peer_api.unwrap_or_default();
                    match pinged.path {
                        Some(Path::Direct(address)) => response.endpoint = address.to_string(),
                        Some(Path::Relay(region)) => {
                            response.relay = region.0.into();
                            response.relay_code = regions.map(|outlook| code(&outlook.borrow(), region)).unwrap_or_default();
                        }
                        None => {}
                    }
                }
            }
            response
        })
    }
}

/// By the probes of the path. A way may open at any moment, the peer's relay be known only now: whoever waits for an answer wants that one,
/// too.
fn probe(engine: &Engine, peer: &Node) -> Result<Pinging, String> {
    let (door, key) = (engine.door(), peer.key);
    let mut waiting = FuturesUnordered::from_iter([engine.ping(&key).map_err(|error| error.to_string())?]);
    Ok(Box::pin(async move {
        let first = timeout(PING_LOST, async {
            loop {
                tokio::select! {
                    Some(Ok(pong)) = waiting.next() => return pong,
                    () = sleep(AGAIN) => waiting.extend(door.ping(&key).and_then(Result::ok)),
                }
            }
        });
        let pong = first.await.ok();
        Ok(pong.map(|pong| Pinged { latency: pong.latency, path: Some(pong.path), peer_api: None, url: String::new() }))
    }))
}

/// By ICMP, as this machine's own system sends it.
fn echo(address: IpAddr) -> Pinging {
    Box::pin(async move {
        let rtt = tokio::task::spawn_blocking(move || Pinger::new(address)?.ping(1, PING_LOST)).await;
        let rtt = rtt.map_err(std::io::Error::other).flatten().map_err(|error| error.to_string())?;
        Ok(rtt.map(|latency| Pinged { latency, path: None, peer_api: None, url: String::new() }))
    })
}

/// Asks a peer API for its front page, through the tunnel; how long that took, the connection included.
async fn head(to: SocketAddr) -> std::io::Result<Duration> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(format!("HEAD / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut start = [0; 5];
    stream.read_exact(&mut start).await?;
    if start == *b"HTTP/" { Ok(started.elapsed()) } else { Err(std::io::Error::other("what came is not HTTP")) }
}

fn code(outlook: &Outlook, region: crate::ident::RegionId) -> String {
    outlook.regions.iter().find(|(id, ..)| *id == region).map_or_else(|| region.to_string(), |(_, code, _)| code.clone())
}

/// What came of a ping, for the user.
pub(super) fn shown(pinged: Pinged, outlook: &Outlook) -> PingReply {
    let (path, via) = match pinged.path {
        Some(Path::Direct(address)) => ("direct", address.to_string()),
        Some(Path::Relay(region)) => ("relay", code(outlook, region)),
        None => ("", pinged.url),
    };
    PingReply { path: path.to_owned(), via, latency_ms: pinged.latency.as_secs_f64() * 1000.0, peer_api_port: pinged.peer_api }
}
