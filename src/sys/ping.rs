//! ICMP echo, by an unprivileged ping socket where the system allows it, else by a raw one.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::entropy;

/// Bytes of the echo header: type, code, checksum, identifier, sequence number (RFC 792, RFC 4443 section 4.1).
const HEADER: usize = 8;
const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

/// Sends echo requests to one address.
#[derive(Debug)]
pub struct Pinger {
    socket: Socket,
    address: IpAddr,
    /// Raw IPv4 sockets receive the IP header and leave checksum and identifier to us.
    raw: bool,
    /// Tells our replies from those of other programs.
    token: [u8; 16],
}

impl Pinger {
    /// Opens a socket for an address.
    ///
    /// # Errors
    /// The system allows neither kind of socket, or has no route to the address.
    pub fn new(address: IpAddr) -> io::Result<Self> {
        Self::with(address, |_| Ok(()))
    }

    /// The same past the mesh's routes, as the node's own packets go.
    ///
    /// # Errors
    /// As there.
    pub fn past_the_tunnel(address: IpAddr) -> io::Result<Self> {
        Self::with(address, super::dial::mark_socket)
    }

    /// `prepare` comes before the system chooses a way, and by it the address that the packets come from.
    fn with(address: IpAddr, prepare: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<Self> {
        let (domain, protocol) = if address.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
        let (socket, raw) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
            Ok(socket) => (socket, false),
            Err(_) => (Socket::new(domain, Type::RAW, Some(protocol))?, true),
        };
        prepare(&socket)?;
        // Connected, it receives from this address only, and hears when the address cannot be reached.
        socket.connect(&SocketAddr::new(address, 0).into())?;
        Ok(Self { socket, address, raw, token: entropy::bytes()? })
    }

    /// Sends one request and waits for its reply; `None` if none came in time.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn ping(&self, sequence: u16, limit: Duration) -> io::Result<Option<Duration>> {
        let started = Instant::now();
        self.socket.send(&self.request(sequence))?;
        let mut buffer = [0; 1500];
        loop {
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match (&self.socket).read(&mut buffer) {
                Ok(length) if self.is_reply(buffer.get(..length).unwrap_or_default(), sequence) => return Ok(Some(started.elapsed())),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn request(&self, sequence: u16) -> Vec<u8> {
        let kind = if self.address.is_ipv4() { REQUEST_V4 } else { REQUEST_V6 };
        let [high, low] = sequence.to_be_bytes();
        let [id1, id2, ..] = self.token;
        let mut packet = vec![kind, 0, 0, 0, id1, id2, high, low];
        packet.extend_from_slice(&self.token);
        // The kernel fills the checksum in for ping sockets and for IPv6.
        if self.raw && self.address.is_ipv4() {
            let sum = checksum(&packet).to_be_bytes();
            if let Some(place) = packet.get_mut(2..4) {
                place.copy_from_slice(&sum);
            }
        }
        packet
    }

    fn is_reply(&self, received: &[u8], sequence: u16) -> bool {
        let skip = if self.raw && self.address.is_ipv4() { usize::from(received.first().copied().unwrap_or(0) & 0xf) * 4 } else { 0 };
        let kind = if self.address.is_ipv4() { REPLY_V4 } else { REPLY_V6 };
        let Some(message) = received.get(skip..) else { return false };
        message.first() == Some(&kind)
            && message.get(6..HEADER) == Some(&sequence.to_be_bytes())
            && message.get(HEADER..) == Some(&self.token)
    }
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair.first().copied().unwrap_or(0)) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_answers_itself() {
        // Without the right to either socket there is nothing to test.
        let Ok(pinger) = Pinger::new(IpAddr::from([127, 0, 0, 1])) else { return };
        for sequence in 1..4 {
            assert!(pinger.ping(sequence, Duration::from_secs(5)).unwrap().is_some());
        }
    }

    #[test]
    fn the_checksum_is_the_internets() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0x220d);
        assert_eq!(checksum(&[0xff]), 0x00ff);
    }
}
