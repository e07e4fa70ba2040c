//! The wire between packet engine and stack: a pair of sockets on which the engine's end behaves like a TUN with a virtio-net header.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use crate::netstack::Departure;
use crate::sys::offload::Tun;
use crate::tunnel::{Segmentation, VirtioHeader};

/// What may be under way in one direction, in bytes: a few super-packets. The system may grant less.
const QUEUE: usize = 1 << 20;
/// TCP's checksum in its header.
const CHECKSUM_OFFSET: u16 = 16;

/// The stack's end.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
    /// Packets that did not fit. Few: while there are any, nothing else is sent that could wait.
    waiting: Mutex<VecDeque<Vec<u8>>>,
    full: AtomicBool,
    dropped: AtomicU64,
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Both ends.
///
/// # Errors
/// The system gives no sockets.
pub(super) fn pair() -> io::Result<(Tun, Link)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (engine, stack) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [&engine, &stack] {
        if sockopt::set_socket_send_buffer_size_force(end, QUEUE).is_err() {
            sockopt::set_socket_send_buffer_size(end, QUEUE)?;
        }
    }
    let link = Link { fd: stack, waiting: Mutex::default(), full: AtomicBool::new(false), dropped: AtomicU64::new(0) };
    Ok((Tun::in_process(engine), link))
}

impl Link {
    /// Whether more can be sent without waiting.
    pub(super) fn is_ready(&self) -> bool {
        !self.full.load(Ordering::Acquire)
    }

    /// Reads the next packet, behind its header; `None` if there is none now.
    pub(super) fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<(VirtioHeader, &'b [u8])>> {
        let length = match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let read = buffer.get(..length).unwrap_or_default();
        let parts = read.split_first_chunk().and_then(|(header, packet)| Some((VirtioHeader::read(*header)?, packet)));
        Ok(parts)
    }

    /// Sends a TCP packet, which is kept if there is no room just now.
    pub(super) fn depart(&self, departure: Departure<'_>) {
        let v6 = departure.transport_at == 40;
        let segmentation = match departure.segment {
            None => Segmentation::None,
            Some(_) if v6 => Segmentation::Tcp6,
            Some(_) => Segmentation::Tcp4,
        };
        let header = VirtioHeader {
            needs_checksum: true,
            segmentation,
            header_length: 0,
            segment_size: departure.segment.map_or(0, std::num::NonZeroU16::get),
            checksum_start: departure.transport_at,
            checksum_offset: CHECKSUM_OFFSET,
        };
        self.send(header, departure.packet, true);
    }

    /// Sends a packet that may be lost.
    pub(super) fn datagram(&self, packet: &[u8]) {
        self.send(VirtioHeader::default(), packet, false);
    }

    fn send(&self, header: VirtioHeader, packet: &[u8], keep: bool) {
        let header = header.bytes();
        if self.is_ready() {
            match rustix::io::writev(&self.fd, &[IoSlice::new(&header), IoSlice::new(packet)]) {
                Ok(_) => return,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) if keep => {}
                Err(_) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        } else if !keep {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back([&header, packet].concat());
        self.full.store(true, Ordering::Release);
    }

    /// Sends what has waited; `true` if there is room again.
    pub(super) fn flush(&self) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(first) = waiting.front() {
            if let Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) = rustix::io::write(&self.fd, first) {
                return false;
            }
            waiting.pop_front();
        }
        self.full.store(false, Ordering::Release);
        true
    }
}
