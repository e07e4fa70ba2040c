//! The packet engine: TUN and UDP sockets, three threads, no tokio.
//!
//! * *outbound* reads the TUN, seals and sends: one read may bring a super-packet, one send carries all its segments;
//! * *inbound* receives, opens and writes to the TUN, joined again into super-packets;
//! * *timers* wakes four times a second for WireGuard's timers, and for the deadlines of the path probes.
//!
//! What is decided is decided in `tunnel` and `path`; here it is put to work. The threads share a table of peers that is
//! replaced whole, and lock a peer for a batch of its packets. No packet allocates (but those that wait for a session).
//! The core that finds the ways has a lock of its own, which data meets about once a second for each peer: what it has decided
//! lies with the peer. It may be taken while a peer is locked, never the other way round.
//! Relays are reached by others, on tokio, through [`Door`]; the queues between them and the threads drop rather than wait.
//! Nothing that arrives can stop the engine: what is bad is counted in [`Counters`] and dropped.

mod announce;
mod counters;
mod door;
mod inbound;
mod opening;
mod outbound;
mod probes;
mod reception;
mod relays;
mod socket;
mod sockets;
mod table;
mod timers;
mod translation;
mod tsmp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use tokio::sync::{Notify, mpsc, oneshot};

pub use crate::node::{Offloads, TunOffload};
pub use counters::Counters;
pub use door::Door;
use probes::Probing;
pub use relays::Outgoing;
use relays::Relays;
use sockets::Sockets;
use table::{Registry, Table};
use translation::Translation;
use tsmp::Pings;
pub use tsmp::{InsidePong, Unpinged};

use super::offload::Tun;
use crate::filter::{Filter, Flows, RefusedFlow};
use crate::ident::{DiscoPrivate, NodePrivate, NodePublic};
use crate::node::PeerConfig;
use crate::path::{self, Pong, Unreached, Way};
use crate::time::{Time, Wall};
use crate::tunnel::translate::SitesConfig;
use crate::tunnel::{Gate, Strangers};

/// What an engine is started with.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The name of the TUN interface.
    pub interface: String,
    /// The MTU inside the tunnel, in bytes (1280 in the mesh).
    pub mtu: u16,
    /// The UDP port to listen on; 0, or a port already in use, takes a free one.
    pub port: u16,
    /// The node's WireGuard key.
    pub key: NodePrivate,
    /// The key of this run's path probes.
    pub disco: DiscoPrivate,
    /// The firewall mark of the engine's own datagrams, which keeps them out of the mesh's routes.
    pub mark: Option<u32>,
    /// The most of the kernel's offloads to use; with none on the TUN, the UDP sockets send singly, too. What the kernel lacks is done without.
    pub offload: TunOffload,
}

/// How one peer is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer's WireGuard key.
    pub key: NodePublic,
    /// The address data goes to, once one has answered.
    pub endpoint: Option<SocketAddr>,
    /// How long an answer takes on the way there and back, if the address is proven by probes at this moment.
    pub latency: Option<Duration>,
    /// How it is reached, for how long, and why so; `None` if nobody has talked to it.
    pub way: Option<(Way, Duration)>,
    /// When the keys in use, or the last ones, were agreed on.
    pub last_handshake: Option<Wall>,
    /// What the peer says it has not let in, and how long ago it said so last.
    pub refused: Vec<(RefusedFlow, Duration)>,
    /// Bytes of IP packets received from the peer.
    pub rx_bytes: u64,
    /// Bytes of IP packets sent to the peer.
    pub tx_bytes: u64,
}

/// A datagram that looks like STUN, and when it came.
pub type StunAnswer = (Time, Vec<u8>);
/// STUN answers that wait to be looked at; whoever floods us with more keeps us from our own, no more.
const STUN_QUEUE: usize = 64;

/// Why there is no TUN. The kernel's own words do not say that the name is taken.
fn no_tun(interface: &str, error: &io::Error) -> io::Error {
    let tried = format!("cannot make the TUN interface {interface} through /dev/net/tun");
    let (kind, happened) = match error.kind() {
        io::ErrorKind::ResourceBusy => (error.kind(), "another program holds an interface of this name".to_owned()),
        io::ErrorKind::InvalidInput if link_exists(interface) => {
            (io::ErrorKind::AlreadyExists, "an interface of this name exists, and is no TUN".to_owned())
        }
        kind => (kind, error.to_string()),
    };
    io::Error::new(kind, format!("{tried}: {happened}"))
}

fn link_exists(interface: &str) -> bool {
    let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    links.lines().any(|line| line.trim_start().strip_prefix(interface).is_some_and(|rest| rest.starts_with(':')))
}

/// What the threads share.
struct Shared {
    tun: Tun,
    sockets: Sockets,
    gate: Gate,
    table: RwLock<Arc<Table>>,
    filter: RwLock<Arc<Filter>>,
    flows: Mutex<Flows>,
    translation: Translation,
    counters: counters::Shared,
    strangers: Mutex<Strangers>,
    probing: Probing,
    pings: Pings,
    relays: Relays,
    /// STUN answers, with the time they came.
    stun: mpsc::Sender<StunAnswer>,
    /// The own addresses are to be found out anew.
    refresh: Arc<Notify>,
    /// When data last went to some peer, in nanoseconds; 0 is never.
    traffic: AtomicU64,
    started: Instant,
    stopping: AtomicBool,
    /// The kernel would not take joined packets.
    joining_refused: AtomicBool,
    wake: OwnedFd,
}

impl Shared {
    fn now(&self) -> Time {
        Time::from_start(self.started.elapsed())
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn filter(&self) -> Arc<Filter> {
        Arc::clone(&self.filter.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was sent lately. May be locked while a peer is.
    fn flows(&self) -> MutexGuard<'_, Flows> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_traffic(&self) -> Option<Time> {
        let at = self.traffic.load(Ordering::Relaxed);
        (at != 0).then(|| Time::from_start(Duration::from_nanos(at)))
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Waits until one of the descriptors is ready, the time is up or the engine stops. Whoever calls tries again either way.
    fn wait<const N: usize>(&self, fds: [(BorrowedFd<'_>, PollFlags); N], limit: Option<Timespec>) {
        const { assert!(N < 4, "there is a place for each, and one for the stop") };
        // A lone packet is waited for anew each time: no allocation for that.
        let mut all: [PollFd<'_>; 4] = std::array::from_fn(|_| PollFd::new(&self.wake, PollFlags::IN));
        for (place, (fd, flags)) in all.iter_mut().skip(1).zip(fds) {
            *place = PollFd::from_borrowed_fd(fd, flags);
        }
        if let Err(error) = rustix::event::poll(all.get_mut(..=N).unwrap_or_default(), limit.as_ref())
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "cannot wait for the TUN or the socket");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A running packet engine. Dropping it stops its threads and removes the TUN.
pub struct Engine {
    shared: Arc<Shared>,
    registry: Mutex<Registry>,
    threads: Vec<JoinHandle<()>>,
    stun: Mutex<Option<mpsc::Receiver<StunAnswer>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("port", &self.port()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes the TUN and the socket and starts the threads; no peers yet.
    ///
    /// # Errors
    ///
    /// If the TUN cannot be made (no /dev/net/tun, no rights, name in use) or no UDP socket can be opened.
    pub fn start(options: EngineOptions) -> io::Result<Self> {
        let tun = Tun::open(&options.interface, options.mtu, options.offload).map_err(|error| no_tun(&options.interface, &error))?;
        Self::start_on(tun, options)
    }

    /// The same with something that behaves like a TUN.
    ///
    /// # Errors
    ///
    /// No UDP socket can be opened, or no thread started.
    pub(in crate::sys) fn start_on(tun: Tun, options: EngineOptions) -> io::Result<Self> {
        let sockets = Sockets::open(options.port, options.mark, options.offload != TunOffload::None)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot open a UDP socket: {error}")))?;
        tracing::info!(interface = options.interface, port = sockets.main.port(), offload = ?tun.offload, "packet engine started");
        let probing = Probing::new(&options)?;
        let (stun, answers) = mpsc::channel(STUN_QUEUE);
        let shared = Arc::new(Shared {
            tun,
            sockets,
            gate: Gate::new(&options.key),
            table: RwLock::default(),
            filter: RwLock::default(),
            flows: Mutex::default(),
            translation: Translation::new(options.mtu),
            counters: counters::Shared::default(),
            strangers: Mutex::default(),
            probing,
            pings: Pings::default(),
            relays: Relays::new()?,
            stun,
            refresh: Arc::default(),
            traffic: AtomicU64::new(0),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            joining_refused: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let mut first_index = [0; 4];
        getrandom::fill(&mut first_index).map_err(|error| io::Error::other(error.to_string()))?;
        let registry = Mutex::new(Registry::new(options.key, u32::from_le_bytes(first_index)));
        let mut engine = Self { shared, registry, threads: Vec::new(), stun: Mutex::new(Some(answers)) };
        engine.spawn("mesh-out", outbound::run)?;
        engine.spawn("mesh-in", reception::run)?;
        engine.spawn("mesh-timers", timers::run)?;
        Ok(engine)
    }

    fn spawn(&mut self, name: &str, run: fn(&Shared)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared))?);
        Ok(())
    }

    /// Replaces the peers. Those whose key stays keep their session and what was learned about them.
    pub fn set_peers(&self, peers: &[PeerConfig]) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let (table, ways) = registry.update(peers);
        *self.shared.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        self.shared.attend(|paths, now| paths.set_peers(now, &ways));
        for peer in self.shared.table().peers() {
            let mut state = peer.lock();
            state.follow(&self.shared.paths(), &peer.key);
        }
        inbound::meet_strangers(&self.shared);
    }

    /// Replaces the packet filter. Before the first one nothing is let in but answers.
    pub fn set_filter(&self, filter: impl Into<Arc<Filter>>) {
        *self.shared.filter.write().unwrap_or_else(PoisonError::into_inner) = filter.into();
    }

    /// Replaces the sites whose networks this node carries. Before the first ones nothing is translated.
    pub fn set_sites(&self, config: &SitesConfig) {
        self.shared.translation.set(config);
    }

    /// How each peer is doing.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let now = Wall::now();
        let at = self.shared.now();
        let known = |peer: &table::Peer| {
            let paths = self.shared.paths();
            (paths.latency(at, &peer.key), paths.way(&peer.key).map(|way| (way, at.since(way.since))))
        };
        self.shared.table().peers().map(|peer| peer.status(&self.shared, now, known(peer))).collect()
    }

    /// For those who carry packets to relays and ask STUN servers on behalf of this engine.
    pub fn door(&self) -> Door {
        Door::new(&self.shared)
    }

    /// STUN answers as they come; for one listener.
    pub fn take_stun_answers(&self) -> Option<mpsc::Receiver<StunAnswer>> {
        self.stun.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where this node may be reached, as found out just now: what peers are told directly.
    pub fn set_endpoints(&self, addresses: Vec<SocketAddr>) {
        self.shared.attend(|paths, now| paths.set_endpoints(now, addresses));
    }

    /// What is known of the NAT in front of this node; without it, or where it is not to be, no ports are guessed.
    pub fn set_outside(&self, outside: Option<path::Outside>) {
        self.shared.attend(|paths, _| paths.set_outside(outside));
    }

    /// Pings a peer by the probes of the path (disco), not through the tunnel. The answer comes within five seconds; if none does, the
    /// sender is dropped. It counts as data: the way is kept for a while.
    ///
    /// # Errors
    ///
    /// There is nothing to ping: no such peer, none with a disco key, or none with an address.
    pub fn ping(&self, peer: &NodePublic) -> Result<oneshot::Receiver<Pong>, Unreached> {
        self.shared.ping(peer)
    }

    /// The same for one who only wants to know whether and how fast a peer answers: it does not count as data, so nothing is kept for it.
    ///
    /// # Errors
    ///
    /// See [`Engine::ping`].
    pub fn measure(&self, peer: &NodePublic) -> Result<oneshot::Receiver<Pong>, Unreached> {
        self.shared.measure(peer)
    }

    /// Pings the mesh program that packets to an address go to, inside the tunnel (TSMP), as from this address of our own. The answer comes when
    /// it comes: whoever waits gives up in time. It counts as data.
    ///
    /// # Errors
    ///
    /// Packets to the address go to no peer.
    pub fn ping_inside(&self, from: IpAddr, to: IpAddr) -> Result<oneshot::Receiver<InsidePong>, Unpinged> {
        self.shared.ping_inside(from, to)
    }

    /// Bytes of IP packets sent to a peer and received from it; `None` if there is no such peer.
    pub fn carried(&self, peer: &NodePublic) -> Option<(u64, u64)> {
        let table = self.shared.table();
        let peer = table.by_key(peer)?;
        Some((peer.tx_bytes.load(Ordering::Relaxed), peer.rx_bytes.load(Ordering::Relaxed)))
    }

    /// This machine's networks have changed: what was known of ways is to be proven anew.
    pub fn network_changed(&self) {
        self.shared.attend(|paths, now| paths.network_changed(now));
    }

    /// What path probes came, went and were dropped since the start.
    pub fn probe_counters(&self) -> path::Counters {
        self.shared.paths().counters()
    }

    /// The UDP port in use.
    pub fn port(&self) -> u16 {
        self.shared.sockets.main.port()
    }

    /// Which of the kernel's offloads are in use by now.
    pub fn offloads(&self) -> Offloads {
        let Shared { tun, sockets, joining_refused, .. } = &*self.shared;
        Offloads {
            tun: tun.offload,
            joining: tun.offload != TunOffload::None && !joining_refused.load(Ordering::Relaxed),
            send: sockets.main.segmentation(),
            receive: sockets.main.receives_many(),
        }
    }

    /// What has passed and what was dropped since the start.
    pub fn counters(&self) -> Counters {
        self.shared.counters.read()
    }

    /// Stops the threads and removes the TUN; the same as dropping the engine.
    pub fn stop(self) {}
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Err(error) = rustix::io::write(self.shared.wake.as_fd(), &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot wake the packet engine's threads");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the packet engine had panicked");
            }
        }
        // Somebody may be standing in the door, for some microseconds. After that TUN and port are free.
        let patience = Instant::now() + Duration::from_millis(100);
        while Arc::strong_count(&self.shared) > 1 && Instant::now() < patience {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
