//! Where connections and datagrams of peers are carried on to: this machine's own programs, the peer API, or a network behind it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::flow::{Flow, MeshStream};
use super::{MAX_CONNECTIONS, Own, Shared, locked, seed};
use crate::netstack::{Connection, Ends, State, room_for};

/// Connections at a time that this machine's side has not answered.
pub(super) const MAX_DIALING: usize = 256;
/// How long this machine's side may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time of one peer: it leaves others a third.
const MAX_OF_ONE: usize = MAX_CONNECTIONS * 2 / 3;
/// What is read of a connection at a time, in bytes.
const CHUNK: usize = 32 * 1024;

/// Where something for an address is carried on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// The peer API.
    Door,
    /// This machine's own programs: the loopback address of the family, and the other one.
    Here(SocketAddr, SocketAddr),
    /// A network behind it.
    Beyond(SocketAddr),
}

/// Where something for this address goes; `None` if it goes nowhere. The packet filter has let it in: it is one of our own addresses, or in a network that
/// we offer to carry. Beyond that a kernel would refuse what this refuses.
pub(super) fn destination(own: &Own, to: SocketAddr) -> Option<Destination> {
    if own.doors.contains(&to) {
        return Some(Destination::Door);
    }
    let here = |ip: IpAddr| SocketAddr::new(ip, to.port());
    if own.addresses.contains(&to.ip()) {
        if own.closed.contains(&to.port()) {
            return None;
        }
        let (v4, v6) = (here(Ipv4Addr::LOCALHOST.into()), here(Ipv6Addr::LOCALHOST.into()));
        return Some(if to.is_ipv4() { Destination::Here(v4, v6) } else { Destination::Here(v6, v4) });
    }
    let routed = match to.ip() {
        IpAddr::V4(ip) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_link_local())
                && ip.octets().first() != Some(&0)
        }
        IpAddr::V6(ip) => {
            let mapped = ip.to_ipv4_mapped().is_some();
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local() || mapped)
        }
    };
    routed.then_some(Destination::Beyond(to))
}

/// Whether another connection may take a connection's place.
pub(super) fn may_be_replaced(flow: &Flow) -> bool {
    matches!(flow.state(), State::Waiting | State::Over)
}

/// A peer asks for a connection.
pub(super) fn asked(shared: &Arc<Shared>, ends: Ends, packet: &[u8]) {
    let Some(destination) = destination(&shared.own(), ends.local) else { return stray(shared, ends, packet) };
    let flow = {
        let mut connections = locked(&shared.connections);
        let of_this_peer = connections.values().filter(|flow| flow.ends.remote.ip() == ends.remote.ip()).count();
        if connections.len() >= MAX_CONNECTIONS || of_this_peer >= MAX_OF_ONE {
            tracing::debug!(?ends, "too many connections");
            return;
        }
        let Ok(seed) = seed() else { return };
        let flow = Flow::new(ends, Connection::asked_for(ends, room_for(connections.len()), seed, shared.now()));
        connections.insert(ends, Arc::clone(&flow));
        flow
    };
    flow.arrive(shared, packet);
    let Ok(permit) = Arc::clone(&shared.dialing).try_acquire_owned() else { return flow.reset(shared) };
    let shared = Arc::clone(shared);
    shared.clone().runtime.spawn(async move {
        let dialed = timeout(PATIENCE, dial(&shared, &flow, destination)).await;
        drop(permit);
        match dialed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Some((mut outer, mut inner))) => {
                // How it ends is the business of the two.
                let _ = copy_bidirectional_with_sizes(&mut outer, &mut inner, CHUNK, CHUNK).await;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, ends = ?flow.ends, "a connection of a peer's leads nowhere");
                flow.reset(&shared);
            }
        }
    });
}

/// Has a connection answered by this machine's side; its two halves, unless somebody else has taken it.
async fn dial(shared: &Arc<Shared>, flow: &Arc<Flow>, destination: Destination) -> io::Result<Option<(MeshStream, TcpStream)>> {
    let admitted = || {
        flow.admit(shared);
        MeshStream { flow: Arc::clone(flow), shared: Arc::clone(shared) }
    };
    let inner = match destination {
        Destination::Door => {
            let knocks = shared.own().knocks.clone().ok_or(io::ErrorKind::ConnectionRefused)?;
            let place = knocks.reserve_owned().await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
            place.send(admitted());
            return Ok(None);
        }
        Destination::Here(first, second) => match TcpStream::connect(first).await {
            Ok(stream) => stream,
            Err(_) => TcpStream::connect(second).await?,
        },
        Destination::Beyond(to) => TcpStream::connect(to).await?,
    };
    inner.set_nodelay(true)?;
    Ok(Some((admitted(), inner)))
}

/// A segment of no connection: its sender hears so.
pub(super) fn stray(shared: &Shared, ends: Ends, packet: &[u8]) {
    Connection::refuse(ends, shared.now(), packet, |departure| shared.link.depart(departure));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_this_machine_goes_to_its_programs_and_nothing_else_does() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own = Own {
            addresses: vec!["100.64.0.1".parse().unwrap(), "fd7a:115c:a1e0::1".parse().unwrap()],
            closed: vec![1055],
            doors: vec![at("100.64.0.1:9000")],
            knocks: None,
        };
        let to = |text: &str| destination(&own, at(text));
        assert_eq!(to("100.64.0.1:22"), Some(Destination::Here(at("127.0.0.1:22"), at("[::1]:22"))));
        assert_eq!(to("[fd7a:115c:a1e0::1]:22"), Some(Destination::Here(at("[::1]:22"), at("127.0.0.1:22"))));
        assert_eq!(to("100.64.0.1:9000"), Some(Destination::Door));
        assert_eq!(to("192.168.1.9:80"), Some(Destination::Beyond(at("192.168.1.9:80"))));
        assert_eq!(to("[2001:db8::1]:80"), Some(Destination::Beyond(at("[2001:db8::1]:80"))));
        let nowhere = [
            "100.64.0.1:1055",
            "127.0.0.1:22",
            "127.9.9.9:22",
            "0.0.0.0:22",
            "0.1.2.3:22",
            "224.0.0.1:22",
            "255.255.255.255:22",
            "169.254.1.1:22",
            "[::1]:22",
            "[::]:22",
            "[ff02::1]:22",
            "[fe80::1]:22",
            "[::ffff:127.0.0.1]:22",
        ];
        for text in nowhere {
            assert_eq!(to(text), None, "{text}");
        }
    }
}
