//! The STUN server beside a relay: it tells nodes under which address they are seen.

use std::net::SocketAddr;

use tokio::net::UdpSocket;

use crate::wire::stun;

/// Longer datagrams are no requests.
const MAX_DATAGRAM: usize = 1500;

/// Answers well-formed requests of nodes, and nothing else, for ever. An answer is no longer than its request's datagram, but for 4 bytes
/// with IPv6: nobody gains anything by asking in another's name.
pub(super) async fn serve(socket: UdpSocket) {
    let mut datagram = [0; MAX_DATAGRAM];
    loop {
        let (length, from) = match socket.recv_from(&mut datagram).await {
            Ok(received) => received,
            Err(error) => {
                // Mostly an ICMP message about an earlier answer.
                tracing::debug!(%error, "nothing received");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Ok(tx) = stun::read_request(datagram.get(..length).unwrap_or_default()) else { continue };
        let seen = SocketAddr::new(from.ip().to_canonical(), from.port());
        // If there is no room now, the node asks again.
        let _ = socket.try_send_to(&stun::response(tx, seen), from);
    }
}
