//! What has passed and what was dropped.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::tunnel::Refusal;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Sums since the engine's start, of packets unless a name says otherwise.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// The same, counted by several threads.
        #[derive(Debug, Default)]
        pub(super) struct Shared {
            $(pub(super) $name: AtomicU64,)+
        }

        impl Shared {
            pub(super) fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Read from the TUN, segments of a super-packet counted singly.
    tun_in,
    /// Reads of the TUN that brought something.
    tun_reads,
    /// Written to the TUN, segments counted singly.
    tun_out,
    /// Writes to the TUN.
    tun_writes,
    /// Sent on the socket.
    udp_out,
    /// Sends on the socket; each carries one or more datagrams.
    udp_sends,
    /// Received on the socket.
    udp_in,
    /// Received messages; each carries one or more datagrams.
    udp_receives,
    /// Dropped: to an address no peer has.
    no_peer,
    /// Dropped: no way to the peer is known.
    no_path,
    /// Dropped: not an IP packet, or not one the TUN may bring.
    bad_tun,
    /// Dropped: refused by the socket (too long for the path, no route ...).
    send_failed,
    /// Dropped: refused by the TUN.
    write_failed,
    /// Dropped: sealed with other keys, or changed on the way.
    forged,
    /// Dropped: WireGuard messages that make no sense.
    malformed,
    /// Dropped: for a session that does not exist.
    no_session,
    /// Dropped unopened: of a peer that sent more than its share while more came than could be opened.
    overload,
    /// Dropped: seen before, or too old.
    replayed,
    /// Dropped: from a source address that is not the peer's to use.
    not_allowed,
    /// Dropped: not let in by the packet filter.
    filtered,
    /// Dropped: to or from a machine of a site, and cannot be turned into the other family or may not pass.
    untranslated,
    /// Dropped: from a key that is no peer's.
    stranger,
    /// Dropped: neither WireGuard nor anything else the mesh knows.
    junk,
    /// Dropped: STUN answers, and what peers say inside the tunnel, that nobody here asked for.
    unasked,
    /// Not said to a peer, which had been told enough already: answers to its pings, refusals.
    unsaid,
    /// Handed to relays.
    relay_out,
    /// Brought by relays.
    relay_in,
    /// Dropped: a queue to or from a relay was full.
    relay_full,
    /// Cookies sent because of a flood of handshakes.
    cookies,
    /// Handshake initiations sent, each way to a peer counted singly.
    initiations,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Shared {
    /// Counts a refused packet.
    pub(super) fn refuse(&self, refusal: Refusal) {
        let counter = match refusal {
            Refusal::Forged => &self.forged,
            Refusal::Malformed => &self.malformed,
            Refusal::NoSession => &self.no_session,
            Refusal::Replayed => &self.replayed,
        };
        add(counter, 1);
    }
}
