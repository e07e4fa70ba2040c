//! Opened packets on their way to the TUN.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Shared;
use super::counters::add;
use super::reception::{MESSAGE, MESSAGES};
use crate::node::TunOffload;
use crate::tunnel::{Coalescer, Joining, Segments, VirtioHeader};

/// What was opened and is to be written: the packets lie in `arena`, in the order they came.
pub(super) struct Opening {
    arena: Box<[u8]>,
    used: usize,
    coalescer: Coalescer,
}

impl Opening {
    pub(super) fn new(shared: &Shared) -> Self {
        let joining = match shared.tun.offload {
            TunOffload::None => Joining::Nothing,
            TunOffload::Tcp => Joining::Tcp,
            TunOffload::TcpAndUdp => Joining::TcpAndUdp,
        };
        // What is opened is shorter than what was received; opening itself needs room for the largest datagram.
        Self { arena: vec![0; (MESSAGES + 1) * MESSAGE].into_boxed_slice(), used: 0, coalescer: Coalescer::new(joining) }
    }

    pub(super) fn room(&mut self) -> &mut [u8] {
        self.arena.get_mut(self.used..).unwrap_or_default()
    }

    /// These bytes of the room are a packet for the TUN.
    pub(super) fn keep(&mut self, within: Range<usize>) {
        let range = self.used + within.start..self.used + within.end;
        self.used = range.end;
        self.coalescer.push(&self.arena, range);
    }

    /// Writes everything to the TUN.
    pub(super) fn write(&mut self, shared: &Shared) {
        if self.coalescer.is_empty() {
            return;
        }
        let plain = shared.tun.offload == TunOffload::None;
        let mut refused = false;
        self.coalescer.finish(&mut self.arena, |pieces, count| {
            let counters = &shared.counters;
            let pieces = if plain { pieces.get(1..).unwrap_or_default() } else { pieces };
            match rustix::io::writev(&shared.tun, pieces) {
                Ok(_) => {
                    add(&counters.tun_writes, 1);
                    add(&counters.tun_out, count as u64);
                }
                Err(error) => {
                    tracing::trace!(%error, count, "the TUN refused a packet");
                    if count > 1 && error == rustix::io::Errno::INVAL {
                        refused = true;
                        write_singly(shared, pieces);
                    } else {
                        add(&counters.write_failed, count as u64);
                    }
                }
            }
        });
        self.used = 0;
        if refused {
            tracing::info!("the kernel refuses joined packets on the TUN, writing them one by one");
            self.coalescer.set_joining(Joining::Nothing);
            shared.joining_refused.store(true, Ordering::Relaxed);
        }
    }
}

/// Cuts up a super-packet that the kernel refused. Rare: it happens once, then nothing is joined any more.
fn write_singly(shared: &Shared, pieces: &[IoSlice<'_>]) {
    let Some((header, rest)) = pieces.split_first() else { return };
    let mut packet: Vec<u8> = rest.iter().flat_map(|piece| piece.iter().copied()).collect();
    let header = <[u8; VirtioHeader::LENGTH]>::try_from(&**header).ok().and_then(VirtioHeader::read);
    let Some(Ok(mut segments)) = header.map(|header| Segments::new(&header, &mut packet)) else { return };
    while let Some(segment) = segments.next() {
        write_one(shared, segment);
    }
}

/// Writes one packet to the TUN.
pub(super) fn write_one(shared: &Shared, packet: &[u8]) {
    let header = VirtioHeader::default().bytes();
    let pieces = [IoSlice::new(&header), IoSlice::new(packet)];
    let skip = usize::from(shared.tun.offload == TunOffload::None);
    let counters = &shared.counters;
    match rustix::io::writev(&shared.tun, pieces.get(skip..).unwrap_or_default()) {
        Ok(_) => {
            add(&counters.tun_writes, 1);
            add(&counters.tun_out, 1);
        }
        Err(_) => add(&counters.write_failed, 1),
    }
}
