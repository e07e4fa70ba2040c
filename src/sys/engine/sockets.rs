//! The UDP sockets: the main one, and for a while or for some peers others beside it, as the core that finds the ways wants them
//! (`path`, the birthday spread).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::Shared;
use super::socket::Socket;
use crate::path::Local;

/// Sockets looked at after one wait; the others are looked at after the next.
const LOOK: usize = 64;

type Others = BTreeMap<Local, Arc<Socket>>;

/// All sockets. All threads use them at once.
pub(super) struct Sockets {
    pub(super) main: Socket,
    mark: Option<u32>,
    offload: bool,
    others: RwLock<Arc<Others>>,
    /// Whether there are any: what data asks.
    any: AtomicBool,
    /// Says which of the others have something.
    ready: OwnedFd,
    /// Held while sockets are opened and closed.
    changing: Mutex<()>,
}

impl Sockets {
    pub(super) fn open(port: u16, mark: Option<u32>, offload: bool) -> io::Result<Self> {
        let main = Socket::open(port, mark, offload)?;
        let ready = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { main, mark, offload, others: RwLock::default(), any: AtomicBool::new(false), ready, changing: Mutex::default() })
    }

    fn others(&self) -> Arc<Others> {
        Arc::clone(&self.others.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Uses a socket, if it is still there.
    pub(super) fn with<T>(&self, local: Local, act: impl FnOnce(&Socket) -> T) -> Option<T> {
        if local == Local::MAIN { Some(act(&self.main)) } else { self.others().get(&local).map(|socket| act(socket)) }
    }

    /// Whether there are others beside the main one.
    pub(super) fn has_others(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Those of the others that have something to receive.
    pub(super) fn ready(&self) -> Vec<(Local, Arc<Socket>)> {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; LOOK];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = epoll::wait(&self.ready, &mut events, Some(&now)).unwrap_or_default();
        let others = self.others();
        let numbers = events.iter().take(count).filter_map(|event| u16::try_from(event.data.u64()).ok());
        let found = numbers.filter_map(|number| {
            let local = Local::from_number(number);
            others.get(&local).map(|socket| (local, Arc::clone(socket)))
        });
        found.collect()
    }

    /// Opens and closes sockets so that those are there which `wanted` names. One that cannot be opened is done without.
    fn adjust(&self, wanted: impl FnOnce() -> BTreeSet<Local>) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = wanted();
        let before = self.others();
        let mut others: Others =
            before.iter().filter(|(local, _)| wanted.contains(local)).map(|(local, socket)| (*local, Arc::clone(socket))).collect();
        for local in wanted {
            if others.contains_key(&local) {
                continue;
            }
            let opened = Socket::open(0, self.mark, self.offload).and_then(|socket| {
                epoll::add(&self.ready, &socket, EventData::new_u64(local.number().into()), EventFlags::IN)?;
                Ok(socket)
            });
            match opened {
                Ok(socket) => {
                    others.insert(local, Arc::new(socket));
                }
                Err(error) => {
                    tracing::debug!(%error, open = others.len(), "no more sockets can be opened");
                    break;
                }
            }
        }
        // A closed socket leaves the set by itself.
        self.any.store(!others.is_empty(), Ordering::Relaxed);
        *self.others.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(others);
    }
}

impl AsFd for Sockets {
    /// Ready when one of the others is.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Shared {
    /// Has the sockets there that the core wants. Not to be called while the core is locked.
    pub(super) fn adjust_sockets(&self) {
        self.sockets.adjust(|| self.paths().sockets());
    }
}
