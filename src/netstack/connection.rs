//! One TCP connection (RFC 9293), by smoltcp: an interface with one socket, to which one packet after the other is shown.
//!
//! A connection that a peer opens is held before its SYN is answered, until it is known whether the other side can be had: a peer that
//! knocks at a closed port is to hear that, and not that a door opens and falls shut.

use std::num::{NonZeroU16, NonZeroUsize};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State as Tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber, checksum,
};

use super::{Ends, MTU};
use crate::time::Time;

/// How long a peer may leave data unacknowledged before the connection is given up.
const PATIENCE: Duration = Duration::from_mins(3);
/// What one super-packet may hold at most, headers included.
const SUPER_PACKET: NonZeroUsize = NonZeroUsize::new(65_000).unwrap();

/// A packet on its way to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure<'a> {
    /// The packet. Its TCP checksum is not finished: the field holds the pseudo header's sum.
    pub packet: &'a [u8],
    /// It is a super-packet, to be cut up into segments with so many bytes of data.
    pub segment: Option<NonZeroU16>,
    /// Where the TCP header begins.
    pub transport_at: u16,
}

/// What became of an attempt to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// So many bytes were read.
    Data(usize),
    /// There is nothing yet.
    Nothing,
    /// The peer will send no more.
    End,
    /// The connection broke.
    Broken,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The handshake is not done.
    Opening,
    /// Data may pass.
    Open,
    /// Both ends are done, and it only waits for stray packets: another connection may take its place.
    Waiting,
    /// It is over.
    Over,
}

/// A connection.
pub struct Connection {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Where packets are made.
    scratch: Vec<u8>,
    /// The sequence number after the last that was sent.
    sent: Option<TcpSeqNumber>,
    /// The peer has said that it will send no more, and that was read.
    ended: bool,
    /// Nobody reads any more.
    abandoned: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("state", &self.socket().state()).finish_non_exhaustive()
    }
}

fn instant(time: Time) -> Instant {
    Instant::from_micros(i64::try_from(time.since(Time::default()).as_micros()).unwrap_or(i64::MAX))
}

fn endpoint(address: std::net::SocketAddr) -> IpEndpoint {
    IpEndpoint { addr: address.ip().into(), port: address.port() }
}

fn capabilities() -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = MTU;
    // What arrives has been verified, what leaves is finished where it is cut up.
    capabilities.checksum.tcp = Checksum::None;
    capabilities.segmentation.tcpv4 = Some(SUPER_PACKET);
    // None for IPv6: smoltcp 0.14 takes them for packets in need of fragmentation and drops them.
    capabilities
}

/// The network card that an interface believes in, for one visit.
struct Card<'a, F> {
    arrived: Option<&'a [u8]>,
    scratch: &'a mut Vec<u8>,
    sent: &'a mut Option<TcpSeqNumber>,
    send: F,
    ready: &'a dyn Fn() -> bool,
}

struct Arrived<'a>(&'a [u8]);

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

struct Leaving<'a, F> {
    scratch: &'a mut Vec<u8>,
    sent: &'a mut Option<TcpSeqNumber>,
    send: &'a mut F,
    segment: Option<NonZeroU16>,
}

impl<F: FnMut(Departure<'_>)> TxToken for Leaving<'_, F> {
    fn consume<R, W: FnOnce(&mut [u8]) -> R>(self, length: usize, write: W) -> R {
        if self.scratch.len() < length {
            self.scratch.resize(length, 0);
        }
        let packet = self.scratch.get_mut(..length).unwrap_or_default();
        let result = write(packet);
        if let Some(transport_at) = prepare(packet, self.sent) {
            (self.send)(Departure { packet, segment: self.segment, transport_at });
        }
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}

/// Makes a packet ready to leave: the pseudo header's sum where the checksum will be, and in what has no data the next sequence number
/// (RFC 9293, section 3.4). smoltcp forgets that when it retransmits by timer, and its acknowledgements then look as old as what it retransmits:
/// two ends that do so at once take none of each other's, for ever. `sent` is what follows the last data sent. Says where TCP begins; `None` if
/// this is something else.
fn prepare(packet: &mut [u8], sent: &mut Option<TcpSeqNumber>) -> Option<u16> {
    let (protocol, from, to, transport_at) = match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(&*packet).ok()?;
            (ip.next_header(), IpAddress::from(ip.src_addr()), IpAddress::from(ip.dst_addr()), ip.header_len().into())
        }
        _ => {
            let ip = Ipv6Packet::new_checked(&*packet).ok()?;
            (ip.next_header(), IpAddress::from(ip.src_addr()), IpAddress::from(ip.dst_addr()), ip.header_len())
        }
    };
    if protocol != IpProtocol::Tcp {
        return None;
    }
    let segment = packet.get_mut(transport_at..)?;
    let length = u32::try_from(segment.len()).ok()?;
    let mut tcp = TcpPacket::new_checked(segment).ok()?;
    let end = tcp.seq_number() + tcp.segment_len();
    match *sent {
        Some(next) if tcp.segment_len() == 0 && end < next => tcp.set_seq_number(next),
        Some(next) if end <= next => {}
        _ => *sent = Some(end),
    }
    tcp.set_checksum(checksum::pseudo_header(&from, &to, protocol, length));
    u16::try_from(transport_at).ok()
}

impl<F: FnMut(Departure<'_>)> Device for Card<'_, F> {
    type RxToken<'t>
        = Arrived<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Leaving<'t, F>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let arrived = self.arrived.take()?;
        Some((Arrived(arrived), Leaving { scratch: self.scratch, sent: self.sent, send: &mut self.send, segment: None }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        (self.ready)().then_some(Leaving { scratch: self.scratch, sent: self.sent, send: &mut self.send, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

impl Connection {
    /// `room` is what is kept for each direction, in bytes; `seed` must be unpredictable, for initial sequence numbers (RFC 6528).
    fn new(ends: Ends, room: usize, seed: u64, now: Time) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let never: &dyn Fn() -> bool = &|| false;
        let (mut scratch, mut sent) = (Vec::new(), None);
        let mut card = Card { arrived: None, scratch: &mut scratch, sent: &mut sent, send: |_: Departure<'_>| (), ready: never };
        let mut interface = Interface::new(config, &mut card, instant(now));
        let own = ends.local.ip();
        interface.update_ip_addrs(|addresses| {
            // An interface has room for more than one.
            let _ = addresses.push(IpCidr::new(own.into(), if own.is_ipv4() { 32 } else { 128 }));
        });
        let buffer = || SocketBuffer::new(vec![0; room]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_timeout(Some(PATIENCE.into()));
        // The program on the other side has decided what is sent at once.
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, scratch, sent, ended: false, abandoned: false }
    }

    /// A connection that a peer asks for. Show it the packet that asked; it is not answered until [`Connection::admit`].
    pub fn asked_for(ends: Ends, room: usize, seed: u64, now: Time) -> Self {
        let mut connection = Self::new(ends, room, seed, now);
        let socket = connection.socket_mut();
        socket.pause_synack(true);
        // It cannot fail: the socket is new, and the port not zero (`arrival::read`).
        let _ = socket.listen(endpoint(ends.local));
        connection
    }

    /// A connection of our own.
    pub fn open(ends: Ends, room: usize, seed: u64, now: Time) -> Self {
        let mut connection = Self::new(ends, room, seed, now);
        let (interface, sockets) = (&mut connection.interface, &mut connection.sockets);
        let socket = sockets.get_mut::<Socket<'_>>(connection.handle);
        if let Err(error) = socket.connect(interface.context(), endpoint(ends.remote), endpoint(ends.local)) {
            tracing::debug!(%error, ?ends, "a connection cannot be opened");
        }
        connection
    }

    /// Answers a segment that belongs to no connection with RST (RFC 9293, section 3.10.7.1), unless it is one itself.
    pub fn refuse(ends: Ends, now: Time, packet: &[u8], send: impl FnMut(Departure<'_>)) {
        // A socket that is closed takes nothing, so it needs no room and its numbers are never used.
        Self::new(ends, 1, 0, now).arrive(now, packet, &|| true, send);
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Answers the peer's SYN: the other side is there.
    pub fn admit(&mut self) {
        self.socket_mut().pause_synack(false);
    }

    /// Breaks the connection: the peer gets RST.
    pub fn reset(&mut self) {
        self.socket_mut().pause_synack(false);
        self.socket_mut().abort();
    }

    /// Takes a packet of this connection, and sends what is due while `ready` says that it can be. A packet may be a super-packet.
    pub fn arrive(&mut self, now: Time, packet: &[u8], ready: &dyn Fn() -> bool, send: impl FnMut(Departure<'_>)) {
        self.visit(now, Some(packet), ready, send);
    }

    /// Sends what is due, while `ready` says that it can be.
    pub fn depart(&mut self, now: Time, ready: &dyn Fn() -> bool, send: impl FnMut(Departure<'_>)) {
        self.visit(now, None, ready, send);
    }

    fn visit(&mut self, now: Time, arrived: Option<&[u8]>, ready: &dyn Fn() -> bool, mut send: impl FnMut(Departure<'_>)) {
        self.poll(now, arrived, ready, &mut send);
        if self.abandoned && self.socket().recv_queue() > 0 {
            self.reject_data();
            self.poll(now, None, ready, &mut send);
        }
        // The next one may come much later; many connections are not to hold 64 KiB each.
        if self.scratch.capacity() > 2 * MTU && self.socket().send_queue() == 0 {
            self.scratch = Vec::new();
        }
    }

    fn poll(&mut self, now: Time, arrived: Option<&[u8]>, ready: &dyn Fn() -> bool, send: &mut impl FnMut(Departure<'_>)) {
        let mut card = Card { arrived, scratch: &mut self.scratch, sent: &mut self.sent, send, ready };
        self.interface.poll(instant(now), &mut card, &mut self.sockets);
    }

    /// When [`Connection::depart`] is to be called next though nothing has happened.
    pub fn deadline(&mut self, now: Time) -> Option<Time> {
        let delay = self.interface.poll_delay(instant(now), &self.sockets)?;
        Some(now + Duration::from_micros(delay.total_micros()))
    }

    /// How far it is.
    pub fn state(&self) -> State {
        match self.socket().state() {
            Tcp::Listen | Tcp::SynSent | Tcp::SynReceived => State::Opening,
            Tcp::Established | Tcp::FinWait1 | Tcp::FinWait2 | Tcp::CloseWait | Tcp::Closing | Tcp::LastAck => State::Open,
            Tcp::TimeWait => State::Waiting,
            // A connection that was broken has its RST to send yet.
            Tcp::Closed if self.socket().remote_endpoint().is_some() => State::Waiting,
            Tcp::Closed => State::Over,
        }
    }

    /// Reads what the peer has sent.
    pub fn read(&mut self, into: &mut [u8]) -> Read {
        let ended = self.ended;
        let socket = self.socket_mut();
        match socket.recv_slice(into) {
            Ok(0) if into.is_empty() => Read::Data(0),
            Ok(0) => Read::Nothing,
            Ok(length) => Read::Data(length),
            Err(RecvError::Finished) => {
                self.ended = true;
                Read::End
            }
            Err(RecvError::InvalidState) if ended => Read::End,
            Err(RecvError::InvalidState) if matches!(socket.state(), Tcp::Listen | Tcp::SynSent | Tcp::SynReceived) => Read::Nothing,
            Err(RecvError::InvalidState) => Read::Broken,
        }
    }

    /// Takes data for the peer, as much as there is room for; `None` if it can be told nothing any more.
    pub fn write(&mut self, data: &[u8]) -> Option<usize> {
        let socket = self.socket_mut();
        match socket.send_slice(data) {
            Ok(length) => Some(length),
            Err(_) => matches!(socket.state(), Tcp::Listen | Tcp::SynSent | Tcp::SynReceived).then_some(0),
        }
    }

    /// Whether all that was written has been acknowledged.
    pub fn is_flushed(&self) -> bool {
        self.socket().send_queue() == 0
    }

    /// Tells the peer that nothing more will come, once all that was written has been sent.
    pub fn close(&mut self) {
        self.socket_mut().close();
    }

    /// Nobody will read or write here any more: what was written is still sent, but a peer that sends more gets RST.
    pub fn abandon(&mut self) {
        self.abandoned = true;
        self.socket_mut().close();
        self.reject_data();
    }

    /// Breaks an abandoned connection if data has come that nobody will read (RFC 9293, section 3.10.7.4; RFC 1122, section 4.2.2.13).
    fn reject_data(&mut self) {
        if self.abandoned && self.socket().recv_queue() > 0 {
            self.socket_mut().abort();
        }
    }
}
