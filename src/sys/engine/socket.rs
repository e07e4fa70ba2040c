//! The engine's one UDP socket, for both address families, with segmentation offload where the kernel has it.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFlags, Timespec};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use socket2::{Domain, Protocol, Type};

use super::Shared;
use super::counters::add;
use crate::sys::offload;

/// Enough for a quarter of a second at 200 Mbit/s, as stock clients ask for. The kernel gives less without CAP_NET_ADMIN.
const BUFFER: usize = 7 << 20;
/// How long a port that is in use is waited for.
const HELD: Duration = Duration::from_millis(200);
/// How long a full send buffer is waited for before the batch is dropped.
const FULL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// The most bytes one send may carry: the largest IPv4 datagram (65,535) less IP and UDP headers.
pub(super) const MAX_SEND: usize = 65_507;
/// The most datagrams one send may carry (UDP_MAX_SEGMENTS of the oldest kernels with segmentation).
pub(super) const MAX_SEGMENTS: usize = 64;

/// The socket. All threads use it at once.
pub(super) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    both_families: bool,
    segmentation: AtomicBool,
    /// Whether the kernel joins datagrams of one sender into one message.
    receives_many: bool,
    port: u16,
}

fn open(family: Domain, port: u16, mark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(family, Type::DGRAM, Some(Protocol::UDP))?;
    let any: IpAddr = if family == Domain::IPV6 {
        socket.set_only_v6(false)?;
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    if let Some(mark) = mark
        && let Err(error) = socket.set_mark(mark)
    {
        tracing::debug!(%error, "the socket goes without a firewall mark");
    }
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, BUFFER).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    let address = SocketAddr::new(any, port);
    match bind(&socket, address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && port != 0 => {
            tracing::warn!(port, "the UDP port is in use, taking a free one");
            socket.bind(&SocketAddr::new(any, 0).into())?;
        }
        other => other?,
    }
    Ok(socket.into())
}

/// Binds, and waits a moment for a port that is in use: an engine that has just ended leaves it to a program that is being started meanwhile,
/// until that begins.
fn bind(socket: &socket2::Socket, address: SocketAddr) -> io::Result<()> {
    let patience = Instant::now() + HELD;
    loop {
        match socket.bind(&address.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < patience => std::thread::sleep(HELD / 10),
            bound => return bound,
        }
    }
}

impl Socket {
    pub(super) fn open(port: u16, mark: Option<u32>, offload: bool) -> io::Result<Self> {
        let (socket, both_families) = match open(Domain::IPV6, port, mark) {
            Ok(socket) => (socket, true),
            // IPv6 switched off in the kernel.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable => {
                (open(Domain::IPV4, port, mark)?, false)
            }
            Err(error) => return Err(error),
        };
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // A path with a small MTU must carry the mesh too, if in fragments; quinn-udp has just forbidden that.
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)?;
        if both_families {
            sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DONT)?;
            offload::allow_fragments_v6(&socket)?;
        }
        let segmentation = AtomicBool::new(offload && state.max_gso_segments() > 1);
        let port = socket.local_addr()?.port();
        let receives_many = state.gro_segments() > 1;
        Ok(Self { socket, state, both_families, segmentation, receives_many, port })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether it can send to IPv6 addresses.
    pub(super) fn has_v6(&self) -> bool {
        self.both_families
    }

    /// Whether one send may carry several datagrams.
    pub(super) fn segmentation(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    /// Whether one receive may bring several datagrams.
    pub(super) fn receives_many(&self) -> bool {
        self.receives_many
    }

    /// Receives up to as many messages as there are buffers. Does not block.
    pub(super) fn receive(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv(UdpSockRef::from(&self.socket), buffers, meta)
    }

    /// How much of the kernel's queue of received datagrams is used, from 0 to 1; 0 if it does not say.
    pub(super) fn queue_used(&self) -> f64 {
        offload::queue(&self.socket).map_or(0.0, |(used, limit)| f64::from(used) / f64::from(limit.max(1)))
    }

    fn try_send(&self, to: SocketAddr, contents: &[u8], segment: Option<usize>) -> io::Result<()> {
        let destination = match to.ip() {
            IpAddr::V4(v4) if self.both_families => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        let transmit = Transmit { destination, ecn: None, contents, segment_size: segment, src_ip: None };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }

    fn send_waiting(&self, shared: &Shared, to: SocketAddr, contents: &[u8], segment: Option<usize>) -> io::Result<()> {
        match self.try_send(to, contents, segment) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                shared.wait([(self.as_fd(), PollFlags::OUT)], Some(FULL));
                self.try_send(to, contents, segment)
            }
            other => other,
        }
    }

    /// Sends one datagram, or drops it if the kernel's buffer is full: for handshakes, keepalives and probes, which come again.
    pub(super) fn send_now(&self, shared: &Shared, to: SocketAddr, message: &[u8]) {
        let counters = &shared.counters;
        add(&counters.udp_sends, 1);
        match self.try_send(to, message, None) {
            Ok(()) => add(&counters.udp_out, 1),
            Err(error) => {
                tracing::trace!(%error, %to, "a message was refused");
                add(&counters.send_failed, 1);
            }
        }
    }

    /// Sends datagrams of `segment` bytes each, the last may be shorter. Waits while the kernel's buffer is full; what the kernel
    /// refuses is counted.
    ///
    /// If it refuses several at once, they go one by one: for good after EIO (a network card without checksums), this time only
    /// after other errors, such as a path too narrow for them. `false` if the kernel knows no way to the address.
    pub(super) fn send(&self, shared: &Shared, to: SocketAddr, contents: &[u8], segment: usize) -> bool {
        let count = contents.len().div_ceil(segment.max(1));
        let mut sends = 1;
        let mut failed = 0;
        let mut reachable = true;
        if count > 1 {
            if let Err(error) = self.send_waiting(shared, to, contents, Some(segment)) {
                if error.raw_os_error() == Some(libc::EIO) && self.segmentation.swap(false, Ordering::Relaxed) {
                    tracing::info!("the network card cannot segment, sending datagrams one by one");
                }
                reachable = !is_unreachable(&error);
                sends += count;
                failed = contents.chunks(segment).filter(|one| self.send_waiting(shared, to, one, None).is_err()).count();
            }
        } else if let Err(error) = self.send_waiting(shared, to, contents, None) {
            tracing::trace!(%error, %to, "a datagram was refused");
            reachable = !is_unreachable(&error);
            failed = 1;
        }
        let counters = &shared.counters;
        add(&counters.udp_sends, sends as u64);
        add(&counters.udp_out, (count - failed) as u64);
        add(&counters.send_failed, failed as u64);
        reachable
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
