//! The TUN device and the few kernel switches that no crate sets safely. One of the files that may hold `unsafe`.
//!
//! The `tun` crate makes the device; what it lacks is TUNSETOFFLOAD. Reads and writes go through rustix on the same descriptor.

#![allow(unsafe_code, reason = "ioctl and setsockopt without a safe wrapper; each block says why it is sound")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::ioctl;

use crate::node::TunOffload;

/// `TUNSETOFFLOAD` of linux/if_tun.h: `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: ioctl::Opcode = ioctl::opcode::write::<libc::c_uint>(b'T', 208);
/// `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`: unfinished checksums and TCP super-packets may be read from the device.
const TCP_OFFLOAD: usize = 0x01 | 0x02 | 0x04;
/// `TUN_F_USO4`, `TUN_F_USO6` (Linux 6.2): UDP super-packets too.
const UDP_OFFLOAD: usize = 0x20 | 0x40;

/// An open TUN device. Dropping it removes the interface.
#[derive(Debug)]
pub(super) struct Tun {
    fd: OwnedFd,
    /// What the kernel agreed to. Unless it is nothing, a virtio-net header comes before each packet.
    pub(super) offload: TunOffload,
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Tun {
    /// Makes the interface and brings it up, with as much of the offloads wanted as the kernel has. Reads do not block.
    pub(super) fn open(name: &str, mtu: u16, wanted: TunOffload) -> io::Result<Self> {
        if wanted != TunOffload::None {
            match Self::create(name, mtu, true) {
                Ok(fd) => match negotiate(&fd, wanted) {
                    Ok(offload) => return Ok(Self { fd, offload }),
                    Err(error) => tracing::info!(%error, interface = name, "the TUN device has no offloads"),
                },
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    tracing::info!(interface = name, "the TUN device has no virtio-net header");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self { fd: Self::create(name, mtu, false)?, offload: TunOffload::None })
    }

    /// The end of a pair of sockets as a TUN with TCP's offloads: each message is a packet behind its virtio-net header.
    pub(super) fn in_process(fd: OwnedFd) -> Self {
        Self { fd, offload: TunOffload::Tcp }
    }

    fn create(name: &str, mtu: u16, header: bool) -> io::Result<OwnedFd> {
        let mut configuration = tun::Configuration::default();
        configuration.tun_name(name).mtu(mtu).up();
        configuration.platform_config(|platform| {
            platform.vnet_hdr(header);
        });
        let device = tun::create(&configuration).map_err(|error| match error {
            tun::Error::Io(error) => error,
            other => io::Error::other(other.to_string()),
        })?;
        device.set_nonblock()?;
        // SAFETY: the device gives up its descriptor here, open and owned by nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) })
    }
}

fn negotiate(fd: &OwnedFd, wanted: TunOffload) -> io::Result<TunOffload> {
    set_offload(fd, TCP_OFFLOAD)?;
    let udp = wanted == TunOffload::TcpAndUdp && set_offload(fd, TCP_OFFLOAD | UDP_OFFLOAD).is_ok();
    Ok(if udp { TunOffload::TcpAndUdp } else { TunOffload::Tcp })
}

fn set_offload(fd: &OwnedFd, flags: usize) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes an integer by value and touches no memory of ours.
    unsafe { ioctl::ioctl(fd, ioctl::IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags)) }?;
    Ok(())
}

/// Bytes in a socket's queue of received datagrams, with what the kernel keeps about them, and how many it takes (`SO_MEMINFO`, Linux 4.12).
pub(super) fn queue(socket: impl AsFd) -> Option<(u32, u32)> {
    // The first two of nine numbers, see SK_MEMINFO_* of linux/sock_diag.h.
    let mut info = [0_u32; 9];
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or_default();
    let raw = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call; the pointers are to live values, and the length is that of the array.
    let result = unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, libc::SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut length) };
    let [used, limit, ..] = info;
    (result == 0).then_some((used, limit))
}

/// Lets the kernel fragment IPv6 datagrams that are larger than the path's MTU (quinn-udp forbids it for QUIC's sake).
pub(super) fn allow_fragments_v6(socket: impl AsFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    let length = libc::socklen_t::try_from(size_of_val(&off)).unwrap_or_default();
    let raw = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call; the pointer is to a live c_int and the length is its own.
    let result = unsafe { libc::setsockopt(raw, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, (&raw const off).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
