//! Whose packets are given up when more comes than can be opened.
//!
//! What the kernel's queue cannot hold it drops, whoever sent it: a peer that sends without measure would take the others' packets with it.
//! So before the queue is full, those of whoever takes more than an equal share are dropped unopened, which costs a fraction of opening
//! them, until the queue is short again. Whoever stays below an equal share loses nothing, and one peer alone is never cut short.
//!
//! Whose packet it is, its receiver index says, before anything proves it. Who has read one on its way can send enough under that index to have the peer's
//! own given up; he stands where he could keep them back, and would fill the queue otherwise.

use std::collections::HashMap;

/// From here on it is counted who sends what, and given up what is too much, as a part of the queue.
const DEEP: f64 = 0.5;
/// And no more from here on.
const SHALLOW: f64 = 0.25;
/// Bytes after which the counts say something.
const ENOUGH: u64 = 256 << 10;
/// Bytes after which the past counts half.
const LONG: u64 = 8 << 20;

/// What each peer has sent while the queue was deep.
#[derive(Debug, Default)]
pub struct Shares {
    counting: bool,
    total: u64,
    by_peer: HashMap<u32, u64>,
}

impl Shares {
    /// How much of the queue is used, from 0 to 1. To be told now and then while more comes than is taken.
    pub fn note_queue(&mut self, used: f64) {
        if used >= DEEP {
            self.counting = true;
        } else if used < SHALLOW && self.counting {
            self.counting = false;
            self.total = 0;
            self.by_peer.clear();
        }
    }

    /// Whether so many bytes of the peer with this index are to be opened. It must be one of the peers there are: each is remembered.
    pub fn admits(&mut self, index: u32, bytes: usize) -> bool {
        if !self.counting {
            return true;
        }
        let bytes = u64::try_from(bytes).unwrap_or_default();
        if self.total > LONG {
            self.total /= 2;
            for count in self.by_peer.values_mut() {
                *count /= 2;
            }
        }
        let total = self.total;
        let own = self.by_peer.entry(index).or_default();
        let before = *own;
        self.total += bytes;
        *own += bytes;
        let peers = u64::try_from(self.by_peer.len()).unwrap_or(u64::MAX);
        // An eighth more than an equal share, so that equals are left alone. What comes now does not count yet: others may follow it.
        peers == 1 || total < ENOUGH || before.saturating_mul(peers) <= total + total / 8
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is opened of each of these peers' bytes, in rounds, while the queue stays deep.
    fn opened(each: &[usize], rounds: usize) -> Vec<usize> {
        let mut shares = Shares::default();
        shares.note_queue(0.9);
        let mut opened = vec![0; each.len()];
        for _ in 0..rounds {
            for ((index, bytes), opened) in (0..).zip(each).zip(&mut opened) {
                if shares.admits(index, *bytes) {
                    *opened += bytes;
                }
            }
        }
        opened
    }

    #[test]
    fn while_the_queue_is_short_everything_is_opened() {
        let mut shares = Shares::default();
        shares.note_queue(0.4);
        assert!((0..1000).all(|_| shares.admits(1, 65_536) && shares.admits(2, 100)));
    }

    #[test]
    fn one_peer_alone_and_peers_that_send_alike_are_never_cut_short() {
        assert_eq!(opened(&[60_000], 1000), [60_000_000]);
        assert_eq!(opened(&[60_000; 5], 1000), [60_000_000; 5]);
    }

    #[test]
    fn the_heavy_one_is_given_up_until_the_queue_is_short_again() {
        let mut shares = Shares::default();
        shares.note_queue(0.6);
        let heavy = (0..100).filter(|_| shares.admits(1, 60_000) && shares.admits(2, 1000)).count();
        assert!(heavy < 6, "{heavy}");
        shares.note_queue(0.3);
        assert!(!shares.admits(1, 60_000), "not short yet");
        shares.note_queue(0.2);
        assert!(shares.admits(1, 60_000));
    }

    proptest! {
        #[test]
        fn who_stays_below_an_equal_share_loses_nothing(each in prop::collection::vec(1_usize..60_000, 2..20), rounds in 1_usize..200) {
            let mean = each.iter().sum::<usize>() / each.len();
            for (bytes, opened) in each.iter().zip(opened(&each, rounds)).filter(|(bytes, _)| **bytes <= mean) {
                prop_assert_eq!(opened, bytes * rounds);
            }
        }
    }
}
