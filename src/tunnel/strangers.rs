//! Handshakes that came before the network map did.
//!
//! When a node joins, it learns of the others at once and says hello, often before they have heard of it. Dropped, its handshake
//! comes again after 5 s only; kept for those 5 s, it is answered the moment the map arrives.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::ident::NodePublic;
use crate::time::Time;

/// As many as are kept; a new one pushes the oldest out. More would only serve a flood.
const KEPT: usize = 16;
/// WireGuard's REKEY_TIMEOUT: after it the initiator has sent another.
const AGE: Duration = Duration::from_secs(5);
/// The length of an initiation.
const LENGTH: usize = 148;

/// An initiation from someone who is no peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Who claims to have sent it.
    pub key: NodePublic,
    /// Where it came from.
    pub from: SocketAddr,
    /// The initiation itself.
    pub message: [u8; LENGTH],
    at: Time,
}

/// The last few of them, at most one of each key.
#[derive(Debug, Default)]
pub struct Strangers(VecDeque<Stranger>);

impl Strangers {
    /// Keeps an initiation for a while.
    pub fn keep(&mut self, at: Time, key: NodePublic, from: SocketAddr, message: &[u8]) {
        let Ok(message) = message.try_into() else { return };
        self.0.retain(|s| s.key != key);
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Stranger { key, from, message, at });
    }

    /// Takes out those who are known now; forgets what is too old.
    pub fn take(&mut self, now: Time, known: impl Fn(&NodePublic) -> bool) -> Vec<Stranger> {
        let (known, rest) = self.0.drain(..).filter(|s| now.since(s.at) < AGE).partition(|s| known(&s.key));
        self.0 = rest;
        Vec::from(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> NodePublic {
        NodePublic::from_bytes([n; 32])
    }

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    fn keys(strangers: &[Stranger]) -> Vec<NodePublic> {
        strangers.iter().map(|s| s.key).collect()
    }

    #[test]
    fn who_becomes_known_in_time_is_taken_once() {
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        let mut strangers = Strangers::default();
        for n in 1..=3 {
            strangers.keep(at(u64::from(n)), key(n), from, &[n; LENGTH]);
        }
        assert_eq!(keys(&strangers.take(at(4), |k| *k == key(2))), [key(2)]);
        assert_eq!(keys(&strangers.take(at(4), |k| *k == key(2))), []);
        assert_eq!(keys(&strangers.take(at(7), |_| true)), [key(3)], "the first is too old");
    }

    #[test]
    fn a_flood_pushes_out_the_oldest_and_grows_nothing() {
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        let mut strangers = Strangers::default();
        for n in 0..100 {
            strangers.keep(at(0), key(n), from, &[n; LENGTH]);
            strangers.keep(at(0), key(n), from, &[n; LENGTH]);
        }
        strangers.keep(at(0), key(200), from, &[0; 147]);
        assert_eq!(keys(&strangers.take(at(1), |_| true)), (84..100).map(key).collect::<Vec<_>>());
    }
}
