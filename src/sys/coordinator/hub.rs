//! The core behind a lock, and what drains it: writes go to the store, events wake the tasks that wait for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot, watch};
use zeroize::Zeroizing;

use crate::coord::server::{Event, Moment, Next, Server, SessionId};
use crate::ident::{MachinePrivate, MachinePublic};
use crate::sys::clock;
use crate::sys::store::backup::BackupError;
use crate::sys::store::{NotStored, Store, stored};
use crate::time::Time;

/// The coordinator's core and its surroundings, shared by all connections.
#[derive(Debug)]
pub(super) struct Hub {
    state: Mutex<State>,
    store: Store,
    key: MachinePrivate,
    server_key: MachinePublic,
    admin_keys: Vec<MachinePublic>,
    /// Counts decisions on held registrations; whoever holds one looks again when it moves.
    decided: watch::Sender<u64>,
    /// The next deadline may have moved.
    rescheduled: Notify,
}

#[derive(Debug)]
struct State {
    server: Server,
    wakers: HashMap<SessionId, Arc<Notify>>,
    /// Up to when the timekeeper sleeps.
    sleeps_until: Option<Time>,
}

/// Whether what a call changed has reached the disk.
pub(super) type Commit = Option<oneshot::Receiver<Result<(), NotStored>>>;

impl Hub {
    pub(super) fn new(server: Server, store: Store, key: MachinePrivate, admin_keys: Vec<MachinePublic>) -> Self {
        Self {
            state: Mutex::new(State { server, wakers: HashMap::new(), sleeps_until: None }),
            store,
            server_key: key.public(),
            key,
            admin_keys,
            decided: watch::Sender::new(0),
            rescheduled: Notify::new(),
        }
    }

    pub(super) fn key(&self) -> &MachinePrivate {
        &self.key
    }

    pub(super) fn server_key(&self) -> MachinePublic {
        self.server_key
    }

    pub(super) fn is_admin(&self, machine: &MachinePublic) -> bool {
        self.admin_keys.contains(machine)
    }

    pub(super) fn decisions(&self) -> watch::Receiver<u64> {
        self.decided.subscribe()
    }

    /// One call into the core, drained. The commit need not be waited for.
    pub(super) fn call<T>(&self, act: impl FnOnce(&mut Server, Moment) -> T) -> (T, Commit) {
        let mut state = self.lock();
        let result = act(&mut state.server, moment());
        let mut woken: Vec<Arc<Notify>> = Vec::new();
        while let Some(event) = state.server.poll_event() {
            match event {
                Event::Decided => self.decided.send_modify(|count| *count += 1),
                Event::Wake(session) => woken.push(state.wakers.entry(session).or_default().clone()),
            }
        }
        let writes = state.server.take_writes();
        // Handed over under the lock: the store has to see changes in the order they were made.
        let commit = (!writes.is_empty()).then(|| self.store.write(writes));
        let due = state.server.poll_timeout().map(|deadline| deadline.at);
        let earlier = due.is_some_and(|due| state.sleeps_until.is_none_or(|until| due < until));
        drop(state);
        // One permit is kept if nobody waits yet.
        woken.iter().for_each(|waker| waker.notify_one());
        if earlier {
            self.rescheduled.notify_one();
        }
        (result, commit)
    }

    /// One call into the core, and its changes stored before it returns.
    pub(super) async fn call_stored<T>(&self, act: impl FnOnce(&mut Server, Moment) -> T) -> Result<T, NotStored> {
        let (result, commit) = self.call(act);
        if let Some(commit) = commit {
            stored(commit).await?;
        }
        Ok(result)
    }

    /// What wakes a stream.
    pub(super) fn waker(&self, session: SessionId) -> Arc<Notify> {
        self.lock().wakers.entry(session).or_default().clone()
    }

    pub(super) fn next_message(&self, session: SessionId) -> Next {
        self.call(|server, at| server.next_message(session, at)).0
    }

    /// Whether a stream's end has to be noticed soon.
    pub(super) fn is_watched(&self, session: SessionId) -> bool {
        self.lock().server.is_watched(session)
    }

    pub(super) fn close_session(&self, session: SessionId) {
        let _ = self.call(|server, at| server.close_session(session, at));
        self.lock().wakers.remove(&session);
    }

    /// Calls the core when its deadlines are due, for ever.
    pub(super) async fn keep_time(&self) {
        loop {
            let due = {
                let mut state = self.lock();
                let due = state.server.poll_timeout();
                state.sleeps_until = due.map(|deadline| deadline.at);
                due
            };
            let sleep = async {
                match due {
                    Some(deadline) => tokio::time::sleep_until(clock::instant(deadline.at).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => { let _ = self.call(|server, at| server.handle_timeout(at)); }
                () = self.rescheduled.notified() => {}
            }
        }
    }

    /// A backup of everything there is now, the server's key included.
    pub(super) async fn backup(&self) -> Result<Zeroizing<Vec<u8>>, BackupError> {
        self.store.backup(&self.key).await
    }

    /// Writes what waits and closes the database. Blocks.
    pub(super) fn close(&self) {
        self.store.close();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in the core is a defect, but one request must not take the whole mesh down with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn moment() -> Moment {
    Moment { now: clock::now(), wall: clock::wall() }
}
