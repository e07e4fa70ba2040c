//! What waits to be written to one connection.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::Closed;

/// Packets that wait, of each of the two kinds (path discovery, and the rest).
pub const QUEUE: usize = 32;
/// Bytes that wait, of each kind: 32 packets of the usual size are a fifth of it. Ten thousand clients that never read hold a bounded amount.
pub const QUEUE_BYTES: usize = 256 * 1024;
/// Answers and notices that wait for a client; one that does not read them misses some.
const CONTROL: usize = 64;

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Queue {
    /// Adds a frame; the oldest give way. How many did.
    fn push(&mut self, frame: Vec<u8>) -> u64 {
        let mut dropped = 0;
        while self.frames.len() >= QUEUE || (self.bytes + frame.len() > QUEUE_BYTES && !self.frames.is_empty()) {
            self.bytes -= self.frames.pop_front().map_or(0, |old| old.len());
            dropped += 1;
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        dropped
    }

    fn drain(&mut self, into: &mut Vec<Vec<u8>>) {
        self.bytes = 0;
        into.extend(self.frames.drain(..));
    }
}

#[derive(Debug)]
struct Waiting {
    control: VecDeque<Vec<u8>>,
    control_limit: usize,
    disco: Queue,
    data: Queue,
    waker: Option<Waker>,
    closed: Option<Closed>,
}

/// Filled by other connections, emptied by the one it belongs to.
#[derive(Debug)]
pub(super) struct Mailbox {
    waiting: Mutex<Waiting>,
    /// Of several connections with one key, this is the one that packets go to.
    pub(super) active: AtomicBool,
    /// It is another relay's.
    trusted: AtomicBool,
}

/// What became of a packet.
pub(super) enum Pushed {
    /// It waits; so many older ones gave way, and this one is to be told.
    Waits(u64, Option<Waker>),
    /// The connection is over.
    Gone,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        let waiting = Waiting {
            control: VecDeque::new(),
            control_limit: CONTROL,
            disco: Queue::default(),
            data: Queue::default(),
            waker: None,
            closed: None,
        };
        Self { waiting: Mutex::new(waiting), active: AtomicBool::new(false), trusted: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    pub(super) fn set_trusted(&self, trusted: bool) {
        self.trusted.store(trusted, Ordering::Relaxed);
    }

    /// Adds a packet's frame.
    pub(super) fn push(&self, frame: Vec<u8>, is_disco: bool) -> Pushed {
        let mut waiting = self.lock();
        if waiting.closed.is_some() {
            return Pushed::Gone;
        }
        let queue = if is_disco { &mut waiting.disco } else { &mut waiting.data };
        let dropped = queue.push(frame);
        Pushed::Waits(dropped, waiting.waker.take())
    }

    /// Adds a notice. One that finds no room is lost; a relay that watches and does not read is ended, for it would have gaps.
    pub(super) fn tell(&self, frame: Vec<u8>) {
        let mut waiting = self.lock();
        if waiting.closed.is_some() {
            return;
        }
        if waiting.control.len() < waiting.control_limit {
            waiting.control.push_back(frame);
        } else if waiting.control_limit > CONTROL {
            waiting.closed = Some(Closed::Slow);
        } else {
            return;
        }
        let waker = waiting.waker.take();
        drop(waiting);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Makes room for what a relay that watches is told.
    pub(super) fn widen(&self, notices: usize) {
        let mut waiting = self.lock();
        waiting.control_limit = waiting.control_limit.max(notices.saturating_add(CONTROL));
    }

    /// Ends the connection from outside; what waits is lost.
    pub(super) fn close(&self, why: Closed) {
        let mut waiting = self.lock();
        waiting.closed.get_or_insert(why);
        let waker = waiting.waker.take();
        drop(waiting);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Moves everything that waits to `into`: notices, then path discovery, then the rest. If there is nothing, `waker` will be
    /// woken once there is.
    pub(super) fn take(&self, into: &mut Vec<Vec<u8>>, waker: &Waker) -> Result<(), Closed> {
        let mut waiting = self.lock();
        if let Some(why) = waiting.closed {
            return Err(why);
        }
        into.extend(waiting.control.drain(..));
        waiting.disco.drain(into);
        waiting.data.drain(into);
        if into.is_empty() && !waiting.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            waiting.waker = Some(waker.clone());
        }
        Ok(())
    }
}
