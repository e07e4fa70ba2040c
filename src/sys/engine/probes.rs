//! The core that finds the ways (`path`), driven by all threads: whoever brings it something also carries out what it says.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFlags, Timespec, eventfd};
use tokio::sync::oneshot;

use super::counters::add;
use super::outbound::initiate;
use super::{EngineOptions, Shared};
use crate::ident::{DiscoPublic, NodePrivate, NodePublic};
use crate::path::{Event, Local, Path, Paths, Pong, Transmit, Unreached, Ways};
use crate::time::{Deadline, Time};
use crate::tunnel::MIN_ROOM;

/// The core and what belongs to driving it.
pub(super) struct Probing {
    paths: Mutex<Paths>,
    /// Those who wait for the answer to a ping, by its token.
    waiting: Mutex<HashMap<u64, oneshot::Sender<Pong>>>,
    next_token: AtomicU64,
    /// When the timer thread wakes next, in nanoseconds; changed only while the core is locked.
    wakes: AtomicU64,
    /// Wakes it earlier.
    nudge: OwnedFd,
    /// For a tunnel that starts anew.
    key: NodePrivate,
    /// What the probes are known by.
    disco: DiscoPublic,
}

impl Probing {
    pub(super) fn new(options: &EngineOptions) -> io::Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self {
            paths: Mutex::new(Paths::new(options.key.public(), options.disco.clone(), seed)),
            waiting: Mutex::default(),
            next_token: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
            nudge: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            key: options.key.clone(),
            disco: options.disco.public(),
        })
    }

    /// The public key of our probes.
    pub(super) fn disco(&self) -> &DiscoPublic {
        &self.disco
    }
}

fn nanoseconds(time: Time) -> u64 {
    u64::try_from(time.since(Time::default()).as_nanos()).unwrap_or(u64::MAX)
}

impl Shared {
    /// The core, to ask or tell it something; what it has to say then is heard at the next [`Shared::attend`].
    pub(super) fn paths(&self) -> MutexGuard<'_, Paths> {
        self.probing.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the core something, and does what it says. Not to be called while a peer is locked.
    pub(super) fn attend(&self, tell: impl FnOnce(&mut Paths, Time)) {
        let mut paths = self.paths();
        tell(&mut paths, self.now());
        let transmits: Vec<Transmit> = std::iter::from_fn(|| paths.poll_transmit()).collect();
        let events: Vec<Event> = std::iter::from_fn(|| paths.poll_event()).collect();
        let earlier = paths.poll_timeout().is_some_and(|Deadline { at, .. }| nanoseconds(at) < self.probing.wakes.load(Ordering::Relaxed));
        drop(paths);
        if events.contains(&Event::Sockets) {
            self.adjust_sockets();
        }
        for Transmit { to, from, peer, contents } in transmits {
            self.send_by(to, from, &peer, &contents);
        }
        for event in events {
            self.happened(event);
        }
        if earlier && let Err(error) = rustix::io::write(&self.probing.nudge, &1_u64.to_ne_bytes()) {
            tracing::debug!(%error, "the timer thread cannot be woken");
        }
    }

    /// Sends one message by one way, from this socket if that is an address, or drops it.
    pub(super) fn send_by(&self, path: Path, from: Local, peer: &NodePublic, message: &[u8]) {
        match path {
            Path::Direct(to) => {
                self.sockets.with(from, |socket| socket.send_now(self, to, message));
            }
            Path::Relay(region) => {
                add(&self.counters.relay_out, 1);
                add(&self.counters.relay_full, self.relays.send(region, *peer, message));
            }
        }
    }

    /// Sends one message by each of these ways.
    pub(super) fn send_on(&self, ways: Ways, peer: &NodePublic, message: &[u8]) {
        let all = ways.direct.map(Path::Direct).into_iter().chain(ways.relay.map(Path::Relay));
        all.for_each(|path| self.send_by(path, ways.local, peer, message));
    }

    fn happened(&self, event: Event) {
        match event {
            Event::Refresh => self.refresh.notify_one(),
            // They are there already.
            Event::Sockets => {}
            Event::Moved(key) => {
                let table = self.table();
                let Some(peer) = table.by_key(&key) else { return };
                let mut state = peer.lock();
                state.follow(&self.paths(), &key);
                tracing::debug!(peer = peer.name, ways = ?state.route.ways(self.now()), "the way is another one");
            }
            Event::Restarted(key) => {
                let table = self.table();
                let Some(peer) = table.by_key(&key) else { return };
                tracing::debug!(peer = peer.name, "the peer has restarted, its session is dropped");
                peer.lock().tunnel.forget_sessions(&self.probing.key);
            }
            Event::Meet(key) => {
                let table = self.table();
                let Some(peer) = table.by_key(&key) else { return };
                let mut room = [0; MIN_ROOM];
                let mut state = peer.lock();
                if let Some(length) = state.tunnel.meet(&mut room) {
                    initiate(self, peer, &mut state, room.get(..length).unwrap_or_default());
                }
            }
            Event::Answered { token, pong } => {
                let waiting = self.probing.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
                if let (Some(waiting), Some(pong)) = (waiting, pong) {
                    // Whoever asked may have gone.
                    let _ = waiting.send(pong);
                }
            }
        }
    }

    /// Lets the timer thread wait until this moment, or the core's next deadline, or a nudge.
    pub(super) fn rest(&self, until: Time) {
        let paths = self.paths();
        let due = paths.poll_timeout().map_or(until, |deadline| deadline.at.min(until));
        self.probing.wakes.store(nanoseconds(due), Ordering::Relaxed);
        drop(paths);
        let limit = due.since(self.now()).max(Duration::from_micros(100));
        let limit = Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
        self.wait([(self.probing.nudge.as_fd(), PollFlags::IN)], Some(limit));
        let mut count = [0; 8];
        // Nothing to read is the usual case.
        let _ = rustix::io::read(&self.probing.nudge, &mut count);
    }

    pub(super) fn ping(&self, peer: &NodePublic) -> Result<oneshot::Receiver<Pong>, Unreached> {
        self.ask_for_pong(|paths, now, token| paths.ping(now, peer, token))
    }

    pub(super) fn measure(&self, peer: &NodePublic) -> Result<oneshot::Receiver<Pong>, Unreached> {
        self.ask_for_pong(|paths, now, token| paths.measure(now, peer, token))
    }

    fn ask_for_pong(&self, ask: impl FnOnce(&mut Paths, Time, u64) -> Result<(), Unreached>) -> Result<oneshot::Receiver<Pong>, Unreached> {
        let token = self.probing.next_token.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.probing.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(token, sender);
        let mut result = Ok(());
        self.attend(|paths, now| result = ask(paths, now, token));
        if let Err(error) = result {
            self.probing.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
            return Err(error);
        }
        Ok(receiver)
    }
}
