//! What a packet from a peer is, with everything checked that its handling relies on.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpAddress, IpProtocol, IpVersion, Ipv4Packet, Ipv6FragmentHeader, Ipv6Packet, TcpPacket, UdpPacket, checksum};

use super::Ends;

/// A packet that can be dealt with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival<'a> {
    /// A segment of TCP; the packet is to be given to its connection.
    Tcp {
        /// Whose.
        ends: Ends,
        /// It asks for a new connection: SYN and neither ACK nor RST.
        opens: bool,
        /// It has RST.
        resets: bool,
    },
    /// A datagram.
    Udp {
        /// Whose.
        ends: Ends,
        /// What is in it.
        payload: &'a [u8],
    },
    /// An ICMP echo request.
    Echo {
        /// Who is asked.
        local: IpAddr,
        /// Who asks.
        remote: IpAddr,
        /// Identifier, sequence number and data: all that the reply repeats.
        contents: &'a [u8],
    },
    /// A piece of a packet.
    Fragment(Fragment<'a>),
}

/// A piece of a packet (RFC 791, section 3.2; RFC 8200, section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// What all pieces of a packet share.
    pub of: Whole,
    /// Where in the packet's payload it belongs.
    pub offset: usize,
    /// It is not the last.
    pub more: bool,
    /// The piece itself.
    pub payload: &'a [u8],
}

/// A packet that comes in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whole {
    /// Where it comes from.
    pub remote: IpAddr,
    /// Where it goes.
    pub local: IpAddr,
    /// The protocol of what is in it.
    pub protocol: u8,
    /// Its number.
    pub id: u32,
}

/// Why a packet is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Useless {
    /// Lengths or checksums are wrong.
    #[error("malformed")]
    Malformed,
    /// Of a kind that nothing is done with: replies and errors of ICMP, other protocols, IPv6 extension headers.
    #[error("of no known kind")]
    Unknown,
}

/// Reads a packet. `verified` says that whoever opened it has checked the transport checksum already, or is to make one.
///
/// # Errors
/// It is not one that anything can be done with.
pub fn read(packet: &[u8], verified: bool) -> Result<Arrival<'_>, Useless> {
    let malformed = |_| Useless::Malformed;
    if packet.is_empty() {
        return Err(Useless::Malformed);
    }
    match IpVersion::of_packet(packet).map_err(malformed)? {
        IpVersion::Ipv4 => {
            let ip = Ipv4Packet::new_checked(packet).map_err(malformed)?;
            let header_is_right = usize::from(ip.header_len()) >= 20 && ip.verify_checksum();
            if !header_is_right || usize::from(ip.total_len()) != packet.len() {
                return Err(Useless::Malformed);
            }
            let (remote, local) = (IpAddr::V4(ip.src_addr()), IpAddr::V4(ip.dst_addr()));
            if ip.more_frags() || ip.frag_offset() != 0 {
                let of = Whole { remote, local, protocol: ip.next_header().into(), id: ip.ident().into() };
                return fragment(of, ip.frag_offset().into(), ip.more_frags(), ip.payload());
            }
            transport(remote, local, ip.next_header(), ip.payload(), verified)
        }
        IpVersion::Ipv6 => {
            let ip = Ipv6Packet::new_checked(packet).map_err(malformed)?;
            if ip.total_len() != packet.len() {
                return Err(Useless::Malformed);
            }
            let (remote, local) = (IpAddr::V6(ip.src_addr()), IpAddr::V6(ip.dst_addr()));
            if ip.next_header() != IpProtocol::Ipv6Frag {
                return transport(remote, local, ip.next_header(), ip.payload(), verified);
            }
            let (&protocol, _) = ip.payload().split_first().ok_or(Useless::Malformed)?;
            let (start, rest) = ip.payload().split_at_checked(8).ok_or(Useless::Malformed)?;
            let header = Ipv6FragmentHeader::new_checked(start.get(2..).unwrap_or_default()).map_err(malformed)?;
            let of = Whole { remote, local, protocol, id: header.ident() };
            let offset = usize::from(header.frag_offset()) * 8;
            if offset == 0 && !header.more_frags() {
                return transport(remote, local, protocol.into(), rest, verified);
            }
            fragment(of, offset, header.more_frags(), rest)
        }
    }
}

fn fragment(of: Whole, offset: usize, more: bool, payload: &[u8]) -> Result<Arrival<'_>, Useless> {
    let whole_words = payload.len().is_multiple_of(8) || !more;
    let fits = offset + payload.len() <= usize::from(u16::MAX);
    if payload.is_empty() || !whole_words || !fits {
        return Err(Useless::Malformed);
    }
    Ok(Arrival::Fragment(Fragment { of, offset, more, payload }))
}

/// Reads what is in a packet, or in one that was joined from its fragments.
///
/// # Errors
/// See [`read`].
pub fn transport(remote: IpAddr, local: IpAddr, protocol: IpProtocol, payload: &[u8], verified: bool) -> Result<Arrival<'_>, Useless> {
    let malformed = |_| Useless::Malformed;
    let (from, to) = (IpAddress::from(remote), IpAddress::from(local));
    let ends = |local_port, remote_port| Ends { local: SocketAddr::new(local, local_port), remote: SocketAddr::new(remote, remote_port) };
    match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).map_err(malformed)?;
            let has_ports = tcp.src_port() != 0 && tcp.dst_port() != 0;
            if !has_ports || !(verified || tcp.verify_checksum(&from, &to)) {
                return Err(Useless::Malformed);
            }
            let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
            Ok(Arrival::Tcp { ends: ends(tcp.dst_port(), tcp.src_port()), opens, resets: tcp.rst() })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).map_err(malformed)?;
            let has_ports = udp.src_port() != 0 && udp.dst_port() != 0;
            let whole = usize::from(udp.len()) == payload.len();
            // None at all is allowed over IPv4 (RFC 768), not over IPv6 (RFC 8200, section 8.1).
            let sum = verified || if udp.checksum() == 0 { remote.is_ipv4() } else { udp.verify_checksum(&from, &to) };
            if !has_ports || !whole || !sum {
                return Err(Useless::Malformed);
            }
            Ok(Arrival::Udp { ends: ends(udp.dst_port(), udp.src_port()), payload: payload.get(8..).unwrap_or_default() })
        }
        IpProtocol::Icmp if remote.is_ipv4() => echo(remote, local, payload, 8, checksum::data(payload)),
        IpProtocol::Icmpv6 if remote.is_ipv6() => {
            let length = u32::try_from(payload.len()).map_err(|_| Useless::Malformed)?;
            let sum = checksum::combine(&[checksum::pseudo_header(&from, &to, protocol, length), checksum::data(payload)]);
            echo(remote, local, payload, 128, sum)
        }
        _ => Err(Useless::Unknown),
    }
}

fn echo(remote: IpAddr, local: IpAddr, message: &[u8], request: u8, sum: u16) -> Result<Arrival<'_>, Useless> {
    match message {
        [kind, 0, _, _, contents @ ..] if *kind == request && contents.len() >= 4 && sum == u16::MAX => {
            Ok(Arrival::Echo { local, remote, contents })
        }
        [kind, ..] if *kind == request => Err(Useless::Malformed),
        _ => Err(Useless::Unknown),
    }
}
