//! Datagrams of peers, carried on by a socket for each pair of ends, and their echo requests.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::forward::{Destination, destination};
use super::{Shared, locked};
use crate::netstack::Ends;
use crate::netstack::datagram::{Unreachable, echo_reply, udp, unreachable};
use crate::sys::ping::Pinger;
use crate::time::Time;

/// Pairs of ends at a time; each costs a socket.
const MAX_FLOWS: usize = 512;
/// How long a pair is kept without a datagram (RFC 4787, REQ-5), and for questions to name servers.
const IDLE: Duration = Duration::from_mins(2);
const IDLE_DNS: Duration = Duration::from_secs(30);
/// Echo requests under way at a time.
pub(super) const MAX_ECHOES: usize = 20;
/// How long is waited for an echo reply.
const ECHO_PATIENCE: Duration = Duration::from_secs(3);
const MAX_DATAGRAM: usize = 65_535;

/// The pairs of ends between which there is traffic.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    flows: Mutex<HashMap<Ends, Arc<Pair>>>,
    /// What the fragments of the next long datagram are numbered.
    id: AtomicU32,
}

impl Datagrams {
    /// Forgets all pairs; their tasks notice.
    pub(super) fn end(&self) {
        locked(&self.flows).clear();
    }
}

#[derive(Debug)]
struct Pair {
    socket: UdpSocket,
    /// When a datagram last passed, in nanoseconds.
    used: AtomicU64,
}

impl Pair {
    fn touch(&self, now: Time) {
        self.used.store(u64::try_from(now.since(Time::default()).as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn idle(&self, now: Time) -> Duration {
        now.since(Time::from_start(Duration::from_nanos(self.used.load(Ordering::Relaxed))))
    }
}

/// A datagram has come from a peer.
pub(super) fn arrived(shared: &Arc<Shared>, ends: Ends, payload: &[u8]) {
    let known = locked(&shared.datagrams.flows).get(&ends).cloned();
    let pair = match known.map_or_else(|| open(shared, ends), Ok) {
        Ok(pair) => pair,
        Err(error) => {
            tracing::debug!(%error, ?ends, "a peer's datagrams lead nowhere");
            return tell(
                shared,
                ends,
                if error.kind() == io::ErrorKind::PermissionDenied { Unreachable::Forbidden } else { Unreachable::Host },
            );
        }
    };
    pair.touch(shared.now());
    // Past tokio, which does not know of a new socket that it can be written to.
    match socket2::SockRef::from(&pair.socket).send(payload) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => tell(shared, ends, Unreachable::Port),
        // A full socket loses a datagram, as any link may.
        _ => {}
    }
}

/// Tells a peer that its datagrams do not get there.
fn tell(shared: &Shared, ends: Ends, why: Unreachable) {
    let sent = udp(Ends { local: ends.remote, remote: ends.local }, &[], 0);
    if let Some(answer) = sent.first().and_then(|packet| unreachable(packet, why)) {
        shared.link.datagram(&answer);
    }
}

fn open(shared: &Arc<Shared>, ends: Ends) -> io::Result<Arc<Pair>> {
    let to = match destination(&shared.own(), ends.local) {
        Some(Destination::Here(to, _) | Destination::Beyond(to)) => to,
        Some(Destination::Door) | None => return Err(io::ErrorKind::PermissionDenied.into()),
    };
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    let _runtime = shared.runtime.enter();
    let pair = Arc::new(Pair { socket: UdpSocket::from_std(socket)?, used: AtomicU64::new(0) });
    pair.touch(shared.now());
    {
        let mut flows = locked(&shared.datagrams.flows);
        if flows.len() >= MAX_FLOWS {
            let now = shared.now();
            let oldest = flows.iter().max_by_key(|(_, pair)| pair.idle(now)).map(|(ends, _)| *ends);
            // Its task hears that it is not there any more at its next datagram, or when it has been idle.
            oldest.and_then(|ends| flows.remove(&ends));
        }
        flows.insert(ends, Arc::clone(&pair));
    }
    shared.runtime.spawn(answers(Arc::clone(shared), ends, Arc::clone(&pair)));
    Ok(pair)
}

/// Brings back what comes for a pair of ends, until nothing has passed for long.
async fn answers(shared: Arc<Shared>, ends: Ends, pair: Arc<Pair>) {
    let limit = if ends.local.port() == 53 { IDLE_DNS } else { IDLE };
    // As much as a datagram needs, once one has needed it.
    let mut buffer = vec![0; 2048];
    loop {
        let left = limit.saturating_sub(pair.idle(shared.now()));
        let is_known = locked(&shared.datagrams.flows).get(&ends).is_some_and(|known| Arc::ptr_eq(known, &pair));
        if left.is_zero() || !is_known {
            break;
        }
        match timeout(left, pair.socket.recv(&mut buffer)).await {
            Ok(Ok(length)) if length == buffer.len() && length < MAX_DATAGRAM => {
                // Its end is lost; the next one will fit.
                buffer.resize(MAX_DATAGRAM, 0);
            }
            Ok(Ok(length)) => {
                pair.touch(shared.now());
                let id = shared.datagrams.id.fetch_add(1, Ordering::Relaxed);
                for packet in udp(ends, buffer.get(..length).unwrap_or_default(), id) {
                    shared.link.datagram(&packet);
                }
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => tell(&shared, ends, Unreachable::Port),
            Ok(Err(error)) => {
                tracing::debug!(%error, ?ends, "a socket for a peer's datagrams failed");
                break;
            }
            Err(_) => {}
        }
    }
    let mut flows = locked(&shared.datagrams.flows);
    if flows.get(&ends).is_some_and(|known| Arc::ptr_eq(known, &pair)) {
        flows.remove(&ends);
    }
}

/// A peer asks for an echo: of this node, which answers itself, or of a machine behind it, which is asked.
pub(super) fn echo(shared: &Arc<Shared>, local: IpAddr, remote: IpAddr, contents: &[u8]) {
    let contents = contents.to_vec();
    let reply = move |shared: &Shared| {
        let id = shared.datagrams.id.fetch_add(1, Ordering::Relaxed);
        for packet in echo_reply(local, remote, &contents, id) {
            shared.link.datagram(&packet);
        }
    };
    match destination(&shared.own(), SocketAddr::new(local, 0)) {
        Some(Destination::Here(..)) => reply(shared),
        Some(Destination::Beyond(_)) => {
            let Ok(permit) = Arc::clone(&shared.echoes).try_acquire_owned() else { return };
            let shared = Arc::clone(shared);
            shared.clone().runtime.spawn_blocking(move || {
                match Pinger::new(local).and_then(|pinger| pinger.ping(1, ECHO_PATIENCE)) {
                    Ok(Some(_)) => reply(&shared),
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, %local, "a peer's echo request is not sent on"),
                }
                drop(permit);
            });
        }
        Some(Destination::Door) | None => {}
    }
}
