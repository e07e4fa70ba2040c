//! Guessing ports.

use std::net::{Ipv4Addr, SocketAddr};

use super::{BURST, GUESSES, LINGER, PACE};
use crate::ident::NodePublic;
use crate::time::Time;
use crate::wire::disco::TxId;

/// The ports that NATs give: all but the privileged ones.
const FIRST_PORT: u32 = 1024;
const ALL_PORTS: u32 = 65_536 - FIRST_PORT;

/// Pings to ports of one address, each port at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::path) struct Spray {
    pub(in crate::path) peer: NodePublic,
    ip: Ipv4Addr,
    /// What the ids of these pings begin with.
    mark: [u8; 8],
    /// The first port, and the distance of each from the one before: together they reach every port once.
    first: u32,
    step: u32,
    sent: u32,
    next: Time,
}

impl Spray {
    /// What `seed` is decides which ports, and in which order.
    pub(in crate::path) fn new(now: Time, peer: NodePublic, ip: Ipv4Addr, seed: [u8; 16]) -> Self {
        let [mark @ .., a, b, c, d, e, f, g, h] = seed;
        let first = u32::from_le_bytes([a, b, c, d]) % ALL_PORTS;
        // The number of ports is 2^10 * 3^2 * 7.
        let shares_a_factor = |step: &u32| step.is_multiple_of(2) || step.is_multiple_of(3) || step.is_multiple_of(7);
        let mut step = u32::from_le_bytes([e, f, g, h]) % ALL_PORTS;
        while shares_a_factor(&step) {
            step += 1;
        }
        Self { peer, ip, mark, first, step, sent: 0, next: now }
    }

    fn address(&self, n: u32) -> SocketAddr {
        let offset = (u64::from(self.first) + u64::from(n) * u64::from(self.step)) % u64::from(ALL_PORTS);
        let port = u16::try_from(u64::from(FIRST_PORT) + offset).unwrap_or(u16::MAX);
        SocketAddr::new(self.ip.into(), port)
    }

    /// The pings to send now. Who comes late does not send more at a time.
    pub(in crate::path) fn due(&mut self, now: Time) -> Vec<(TxId, SocketAddr)> {
        if self.next > now || self.sent >= GUESSES {
            return Vec::new();
        }
        self.next = now + PACE;
        let from = self.sent;
        self.sent = GUESSES.min(from + BURST);
        (from..self.sent)
            .map(|n| {
                let mut id = [0; 12];
                let (mark, number) = id.split_at_mut(self.mark.len());
                mark.copy_from_slice(&self.mark);
                number.copy_from_slice(&n.to_be_bytes());
                (TxId(id), self.address(n))
            })
            .collect()
    }

    /// Where the ping went that has this id.
    pub(in crate::path) fn hit(&self, TxId(id): TxId) -> Option<SocketAddr> {
        let (mark, number) = id.split_first_chunk::<8>()?;
        let n = u32::from_be_bytes(number.try_into().ok()?);
        (*mark == self.mark && n < self.sent).then(|| self.address(n))
    }

    pub(in crate::path) fn deadline(&self) -> Time {
        if self.sent < GUESSES { self.next } else { self.next + LINGER }
    }

    /// Whether all is sent, and nothing can come of it any more.
    pub(in crate::path) fn is_over(&self, now: Time) -> bool {
        self.sent >= GUESSES && self.deadline() <= now
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    fn spray(seed: [u8; 16]) -> Spray {
        Spray::new(Time::default(), NodePublic::from_bytes([2; 32]), Ipv4Addr::new(203, 0, 113, 9), seed)
    }

    #[test]
    fn every_port_is_reached_once_whatever_the_seed() {
        for n in 0..=40_u8 {
            let spray = spray([n.wrapping_mul(59); 16]);
            let ports: BTreeSet<u16> = (0..ALL_PORTS).map(|n| spray.address(n).port()).collect();
            assert_eq!((ports.len(), ports.first()), (ALL_PORTS as usize, Some(&1024)), "seed {n}");
        }
    }

    #[test]
    fn guesses_go_out_at_their_pace_and_end() {
        let mut spray = spray([7; 16]);
        let mut now = Time::default();
        let mut sent = BTreeSet::new();
        while !spray.is_over(now) {
            let burst = spray.due(now);
            assert!(burst.len() <= BURST as usize && spray.due(now).is_empty());
            for (tx, address) in burst {
                assert_eq!(spray.hit(tx), Some(address));
                sent.insert(address);
            }
            // A busy machine comes late now and then.
            now = spray.deadline() + Duration::from_millis(u64::from(sent.len() % 7 == 0) * 300);
        }
        assert_eq!(sent.len(), GUESSES as usize);
    }

    #[test]
    fn no_other_answer_is_taken_for_a_hit() {
        let mut spray = spray([7; 16]);
        let mut id = spray.due(Time::default()).first().unwrap().0;
        assert!(spray.hit(id).is_some());
        id.0[11] = 200;
        assert_eq!(spray.hit(id), None, "that was not sent yet");
        id.0[11] = 0;
        id.0[0] ^= 1;
        assert_eq!(spray.hit(id), None);
    }
}
