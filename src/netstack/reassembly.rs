//! Joining fragments (RFC 791, section 3.2; RFC 8200, section 4.5; RFC 5722).

use std::collections::BTreeMap;
use std::time::Duration;

use super::arrival::{Fragment, Whole};
use crate::time::Time;

/// Packets that may be incomplete at a time.
const MAX_WHOLES: usize = 64;
/// Bytes that may be kept of them together.
const MAX_BYTES: usize = 1 << 20;
/// Pieces of one packet: 64 KiB in pieces of a small link.
const MAX_PIECES: usize = 128;
/// How long is waited for the rest.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Partial {
    since: Time,
    /// By where they belong.
    pieces: BTreeMap<usize, Vec<u8>>,
    /// How long the packet's payload is, once the last piece has come.
    length: Option<usize>,
    bytes: usize,
}

/// Packets of which pieces have come. Bounded: the oldest go first.
#[derive(Debug, Default)]
pub struct Reassembly {
    partials: BTreeMap<Whole, Partial>,
    bytes: usize,
}

impl Reassembly {
    /// Takes a piece; the packet's payload if it was the last one missing. Pieces that overlap spoil their packet: somebody is at
    /// mischief.
    pub fn add(&mut self, now: Time, fragment: &Fragment<'_>) -> Option<Vec<u8>> {
        self.forget(now);
        let partial =
            self.partials.entry(fragment.of).or_insert_with(|| Partial { since: now, pieces: BTreeMap::new(), length: None, bytes: 0 });
        let end = fragment.offset + fragment.payload.len();
        let before = partial.pieces.range(..=fragment.offset).next_back();
        let overlaps = before.is_some_and(|(at, piece)| at + piece.len() > fragment.offset)
            || partial.pieces.range(fragment.offset..end).next().is_some();
        let last = if fragment.more { partial.length } else { Some(end) };
        let contradicts = partial.length.is_some_and(|length| last != Some(length)) || last.is_some_and(|length| end > length);
        let beyond = last.is_some_and(|length| partial.pieces.last_key_value().is_some_and(|(at, piece)| at + piece.len() > length));
        if overlaps || contradicts || beyond || partial.pieces.len() >= MAX_PIECES {
            self.remove(fragment.of);
            return None;
        }
        partial.length = last;
        partial.pieces.insert(fragment.offset, fragment.payload.to_vec());
        partial.bytes += fragment.payload.len();
        self.bytes += fragment.payload.len();
        let complete = partial.length == Some(partial.bytes);
        let joined = complete.then(|| partial.pieces.values().flatten().copied().collect());
        if complete {
            self.remove(fragment.of);
        }
        joined
    }

    fn remove(&mut self, whole: Whole) {
        if let Some(partial) = self.partials.remove(&whole) {
            self.bytes -= partial.bytes;
        }
    }

    /// Drops what has waited too long, and the oldest if there is too much.
    fn forget(&mut self, now: Time) {
        let late: Vec<Whole> = self.partials.iter().filter(|(_, p)| now.since(p.since) >= PATIENCE).map(|(whole, _)| *whole).collect();
        late.into_iter().for_each(|whole| self.remove(whole));
        while self.partials.len() >= MAX_WHOLES || self.bytes >= MAX_BYTES {
            let Some((&oldest, _)) = self.partials.iter().min_by_key(|(_, partial)| partial.since) else { break };
            self.remove(oldest);
        }
    }
}
