//! The node's connections to relays: the home's is always kept, another region's is opened by the first packet for it and closed after a
//! minute of silence.
//!
//! Each connection is a task of its own that drives a [`crate::relay`] client; [`RelayLinks`] starts them. Packets come from and go to the
//! packet engine through its [`Door`]. What fails is told to the engine, which then uses other ways, and is dialled again.

mod dial;
mod link;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use link::Link;

use crate::ident::{NodePrivate, RegionId};
use crate::netcheck::Region;
use crate::path::RelayState;
use crate::sys::engine::Door;

/// What the connections go by.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// The relays.
    pub regions: Arc<Vec<Region>>,
    /// A certificate authority of the user's, beside those that everybody trusts.
    pub authority: Option<PathBuf>,
    /// Addresses of this machine; a connection from another one is dead.
    pub addresses: Vec<IpAddr>,
    /// Counts changes of this machine's networks: each connection has to prove then that it lives.
    pub changes: u64,
}

/// What the check of the network wants to know of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Something came from a relay.
    Heard(RegionId),
    /// A relay does not answer.
    Lost(RegionId),
}

/// How one connection is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    /// It is open.
    pub up: bool,
    /// Why it is not, as far as that is known.
    pub trouble: String,
    /// What the relay says is wrong with it.
    pub health: String,
}

/// How all are doing, by region.
pub type LinkStates = BTreeMap<RegionId, LinkState>;

/// What each connection's task is given.
#[derive(Clone)]
struct Surroundings {
    door: Door,
    key: NodePrivate,
    settings: watch::Receiver<Settings>,
    home: watch::Receiver<Option<RegionId>>,
    news: mpsc::Sender<News>,
    states: Arc<Mutex<LinkStates>>,
}

impl Surroundings {
    fn note(&self, region: RegionId, change: impl FnOnce(&mut LinkState)) {
        change(self.states.lock().unwrap_or_else(PoisonError::into_inner).entry(region).or_default());
    }
}

/// All connections. Dropping it ends them.
#[derive(Debug)]
pub struct RelayLinks {
    settings: watch::Sender<Settings>,
    states: Arc<Mutex<LinkStates>>,
    task: JoinHandle<()>,
}

impl Drop for RelayLinks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RelayLinks {
    /// Starts without any. `home` says which region is home, `news` hears what becomes of connections.
    pub fn start(door: Door, key: NodePrivate, home: watch::Receiver<Option<RegionId>>, news: mpsc::Sender<News>) -> Self {
        let (settings, receiver) = watch::channel(Settings::default());
        let states = Arc::<Mutex<LinkStates>>::default();
        let surroundings = Surroundings { door, key, settings: receiver, home, news, states: Arc::clone(&states) };
        Self { settings, states, task: tokio::spawn(run(surroundings)) }
    }

    /// Changes what the connections go by.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        self.settings.send_if_modified(|settings| {
            let before = settings.clone();
            change(settings);
            *settings != before
        });
    }

    /// How they are doing.
    pub fn states(&self) -> LinkStates {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A connection's task.
struct Running {
    packets: Arc<Notify>,
    abort: AbortHandle,
}

async fn run(mut surroundings: Surroundings) {
    let mut tasks = JoinSet::new();
    let mut running = BTreeMap::<RegionId, Running>::new();
    loop {
        let wanted = tokio::select! {
            regions = surroundings.door.packets_for() => regions.into_iter().collect(),
            changed = surroundings.settings.changed() => {
                if changed.is_err() {
                    return;
                }
                let regions = Arc::clone(&surroundings.settings.borrow_and_update().regions);
                running.retain(|id, link| {
                    let stays = regions.iter().any(|region| region.id == *id);
                    if !stays {
                        link.abort.abort();
                        surroundings.door.set_relay(*id, RelayState::Idle);
                        surroundings.note(*id, |state| *state = LinkState::default());
                    }
                    stays
                });
                Vec::from_iter(*surroundings.home.borrow())
            }
            Ok(()) = surroundings.home.changed() => Vec::from_iter(*surroundings.home.borrow_and_update()),
            Some(ended) = tasks.join_next() => {
                let Ok(id) = ended else { continue };
                running.remove(&id);
                // A packet that came at the last moment, or the home has become this one.
                let needed = surroundings.door.has_packets(id) || *surroundings.home.borrow() == Some(id);
                if needed { vec![id] } else { Vec::new() }
            }
        };
        for id in wanted {
            let known = surroundings.settings.borrow().regions.iter().any(|region| region.id == id);
            match running.get(&id) {
                Some(link) => link.packets.notify_one(),
                None if known => {
                    let packets = Arc::new(Notify::new());
                    let link = Link::new(id, surroundings.clone(), Arc::clone(&packets));
                    let abort = tasks.spawn(link.run());
                    running.insert(id, Running { packets, abort });
                }
                // Nobody will ever fetch them.
                None => while surroundings.door.next_packet(id).is_some() {},
            }
        }
    }
}
