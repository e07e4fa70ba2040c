//! What all simulated nodes write to: when changes were made, who has heard of them, and how late.

use std::collections::HashMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::scan::Scanner;

/// Changes one run can tell apart.
const MARKERS: usize = 1 << 16;

/// Latencies, to about 3 %.
#[derive(Debug)]
pub struct Latencies(Vec<AtomicU64>);

impl Default for Latencies {
    fn default() -> Self {
        Self((0..64 * 32).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Latencies {
    /// Thirty-two steps for each doubling of the microseconds.
    fn slot(micros: u64) -> usize {
        let power = micros.max(32).ilog2();
        (power as usize) * 32 + (micros.max(32) >> (power - 5)) as usize % 32
    }

    fn add(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0[Self::slot(micros)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|slot| slot.load(Ordering::Relaxed)).sum()
    }

    /// The latency that a part of all stays within, in milliseconds.
    pub fn quantile(&self, part: f64) -> f64 {
        let wanted = (self.count() as f64 * part).ceil() as u64;
        let mut sum = 0;
        for (slot, count) in self.0.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            if sum >= wanted.max(1) {
                let power = slot / 32;
                return ((1u64 << power) + ((slot as u64 % 32) << power.saturating_sub(5))) as f64 / 1000.0;
            }
        }
        f64::NAN
    }
}

/// A change that was made.
#[derive(Debug, Clone, Copy)]
struct Made {
    at: Instant,
    series: usize,
}

/// Everything the nodes of a run share.
#[derive(Debug)]
pub struct Board {
    pub scanner: Scanner,
    /// Nodes that listen, and how many of them have seen that many.
    pub listeners: usize,
    pub complete: AtomicUsize,
    pub bytes: AtomicU64,
    pub messages: AtomicU64,
    /// Streams that ended although nobody wanted it.
    pub broken: AtomicU64,
    pub series: Vec<Latencies>,
    made: RwLock<HashMap<u32, Made>>,
    heard: Vec<AtomicU32>,
    next: AtomicU32,
    /// The changes that removals of these nodes stand for.
    leaving: RwLock<HashMap<i64, u32>>,
}

impl Board {
    pub fn new(listeners: usize, series: usize) -> Self {
        Self {
            scanner: Scanner::default(),
            listeners,
            complete: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            series: (0..series).map(|_| Latencies::default()).collect(),
            made: RwLock::default(),
            heard: (0..MARKERS).map(|_| AtomicU32::new(0)).collect(),
            next: AtomicU32::new(1),
            leaving: RwLock::default(),
        }
    }

    /// A new change, made now.
    pub fn mark(&self, series: usize) -> u32 {
        let marker = self.next.fetch_add(1, Ordering::Relaxed);
        assert!((marker as usize) < MARKERS, "too many changes for one run");
        self.made.write().unwrap().insert(marker, Made { at: Instant::now(), series });
        marker
    }

    /// A node is told to go, now.
    pub fn mark_leaving(&self, series: usize, node: i64) -> u32 {
        let marker = self.mark(series);
        self.leaving.write().unwrap().insert(node, marker);
        marker
    }

    pub fn leaving(&self, node: i64) -> Option<u32> {
        self.leaving.read().unwrap().get(&node).copied()
    }

    /// A listener hears of a change for the first time.
    pub fn hear(&self, marker: u32) {
        let Some(made) = self.made.read().unwrap().get(&marker).copied() else { return };
        self.series[made.series].add(made.at.elapsed());
        self.heard[marker as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn heard(&self, marker: u32) -> usize {
        self.heard[marker as usize].load(Ordering::Relaxed) as usize
    }
}

/// A set of small numbers.
#[derive(Debug, Default, Clone)]
pub struct Bits {
    words: Vec<u64>,
    count: usize,
}

impl Bits {
    /// Says whether it was not there.
    pub fn insert(&mut self, number: usize) -> bool {
        let (word, bit) = (number / 64, 1 << (number % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += usize::from(fresh);
        fresh
    }

    pub fn remove(&mut self, number: usize) {
        let (word, bit) = (number / 64, 1 << (number % 64));
        if self.words.get(word).is_some_and(|held| held & bit != 0) {
            self.words[word] &= !bit;
            self.count -= 1;
        }
    }

    pub fn count(&self) -> usize {
        self.count
    }
}
