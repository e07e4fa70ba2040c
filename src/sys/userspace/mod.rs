//! Userspace mode: a node without a TUN. Packets of the mesh end in an IP stack in this process (`crate::netstack`); what peers send to this
//! machine or through it is carried on by ordinary sockets, and local programs reach the mesh by a proxy.
//!
//! One thread reads what the packet engine brings and keeps the time of all connections; what is said to this machine's side is done by tasks on
//! tokio. A connection is locked by whoever works on it, for a packet or a read; there is no lock for all of them but that of the table.

mod datagrams;
mod dialer;
mod flow;
mod forward;
mod link;
mod thread;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::offload::Tun;
use crate::netstack::{Connection, Ends, State, room_for};
use crate::sys::entropy;
use crate::time::Time;
use datagrams::Datagrams;
pub(in crate::sys) use dialer::Dialer;
use flow::Flow;
pub(in crate::sys) use flow::MeshStream;
use link::Link;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 1024;
/// How long a peer may take to answer a connection of ours.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where ports of our own connections begin (RFC 6335, section 6).
const FIRST_PORT: u16 = 49_152;

/// What is known of this node's own addresses.
#[derive(Debug, Default, Clone)]
struct Own {
    addresses: Vec<IpAddr>,
    /// Ports of this machine that are no peer's business: a proxy there would lead past the packet filter, and into networks nobody offers.
    closed: Vec<u16>,
    /// Where connections are for the peer API.
    doors: Vec<SocketAddr>,
    /// Who serves them.
    knocks: Option<mpsc::Sender<MeshStream>>,
}

#[derive(Debug)]
struct Shared {
    link: Link,
    started: Instant,
    connections: Mutex<HashMap<Ends, Arc<Flow>>>,
    datagrams: Datagrams,
    /// When connections want to be looked at. An entry may be out of date.
    calls: Mutex<BinaryHeap<Reverse<(Time, Ends)>>>,
    /// When the thread wakes by itself, in nanoseconds.
    sleeps_until: AtomicU64,
    blocked: Mutex<Vec<Arc<Flow>>>,
    own: RwLock<Arc<Own>>,
    /// Connections that this machine's side has not answered yet.
    dialing: Arc<Semaphore>,
    /// Echo requests under way.
    echoes: Arc<Semaphore>,
    runtime: tokio::runtime::Handle,
    stopping: AtomicBool,
    wake: OwnedFd,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn now(&self) -> Time {
        Time::from_start(self.started.elapsed())
    }

    fn own(&self) -> Arc<Own> {
        Arc::clone(&self.own.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn wake(&self) {
        // It can only be full of wishes to be woken.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// A connection wants to be looked at then.
    fn call_at(&self, at: Time, ends: Ends) {
        locked(&self.calls).push(Reverse((at, ends)));
        let nanoseconds = u64::try_from(at.since(Time::default()).as_nanos()).unwrap_or(u64::MAX);
        if nanoseconds < self.sleeps_until.load(Ordering::Acquire) {
            self.wake();
        }
    }

    /// A connection waits for room on the link.
    fn block(&self, flow: Arc<Flow>) {
        locked(&self.blocked).push(flow);
        self.wake();
    }

    /// A connection is over.
    fn forget(&self, flow: &Arc<Flow>) {
        let mut connections = locked(&self.connections);
        if connections.get(&flow.ends).is_some_and(|known| Arc::ptr_eq(known, flow)) {
            connections.remove(&flow.ends);
        }
    }

    /// Breaks all connections: nothing comes or goes any more.
    fn end(&self) {
        let flows: Vec<Arc<Flow>> = locked(&self.connections).drain().map(|(_, flow)| flow).collect();
        flows.iter().for_each(|flow| flow.reset(self));
        self.datagrams.end();
    }

    fn flow(&self, ends: &Ends) -> Option<Arc<Flow>> {
        locked(&self.connections).get(ends).cloned()
    }
}

/// Unpredictable, for initial sequence numbers.
fn seed() -> io::Result<u64> {
    entropy::bytes().map(u64::from_ne_bytes)
}

/// A running stack. Clones are the same; it ends with the last, or with the engine at the other end of its wire.
#[derive(Debug, Clone)]
pub(in crate::sys) struct Stack(Arc<Running>);

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = locked(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the stack's thread had panicked");
        }
    }
}

impl Stack {
    /// Starts a stack, and gives the engine's end of the wire to it. Needs a running tokio.
    ///
    /// # Errors
    /// The system gives no sockets or no thread.
    pub(in crate::sys) fn start() -> io::Result<(Self, Tun)> {
        let (tun, link) = link::pair()?;
        let shared = Arc::new(Shared {
            link,
            started: Instant::now(),
            connections: Mutex::default(),
            datagrams: Datagrams::default(),
            calls: Mutex::default(),
            sleeps_until: AtomicU64::new(u64::MAX),
            blocked: Mutex::default(),
            own: RwLock::default(),
            dialing: Arc::new(Semaphore::new(forward::MAX_DIALING)),
            echoes: Arc::new(Semaphore::new(datagrams::MAX_ECHOES)),
            runtime: tokio::runtime::Handle::current(),
            stopping: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let works = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("mesh-stack".to_owned()).spawn(move || thread::run(&works))?;
        Ok((Self(Arc::new(Running { shared, thread: Mutex::new(Some(thread)) })), tun))
    }

    /// This node's own addresses in the mesh.
    pub(in crate::sys) fn set_addresses(&self, addresses: Vec<IpAddr>) {
        self.change(|own| own.addresses = addresses);
    }

    /// Ports at which no peer reaches this machine's programs.
    pub(in crate::sys) fn set_closed(&self, ports: Vec<u16>) {
        self.change(|own| own.closed = ports);
    }

    /// Connections to these addresses come out of the receiver; the ones of before are closed by nobody.
    pub(in crate::sys) fn set_doors(&self, doors: Vec<SocketAddr>) -> mpsc::Receiver<MeshStream> {
        let (knocks, receiver) = mpsc::channel(16);
        self.change(|own| (own.doors, own.knocks) = (doors, Some(knocks)));
        receiver
    }

    fn change(&self, act: impl FnOnce(&mut Own)) {
        let mut own = self.0.shared.own.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Own::clone(&own);
        act(&mut changed);
        *own = Arc::new(changed);
    }

    /// Connects to an address in the mesh, from this node's own.
    ///
    /// # Errors
    /// This node has no address of that family, all ports are taken, or the peer refuses or does not answer in time.
    pub(in crate::sys) async fn connect(&self, to: SocketAddr) -> io::Result<MeshStream> {
        let shared = &self.0.shared;
        let own = shared.own().addresses.iter().copied().find(|own| own.is_ipv4() == to.is_ipv4());
        let ip = own.ok_or_else(|| io::Error::new(io::ErrorKind::AddrNotAvailable, "this node has no mesh address of that family"))?;
        let stream = {
            let mut connections = locked(&shared.connections);
            let ends = (connections.len() < MAX_CONNECTIONS).then(|| free_port(&connections, ip, to)).transpose()?.flatten();
            let ends = ends.ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "too many connections"))?;
            let connection = Connection::open(ends, room_for(connections.len()), seed()?, shared.now());
            let flow = Flow::new(ends, connection);
            connections.insert(ends, Arc::clone(&flow));
            MeshStream { flow, shared: Arc::clone(shared) }
        };
        stream.flow.attend(shared, false);
        match timeout(PATIENCE, stream.opened()).await {
            Ok(opened) => opened.map(|()| stream),
            Err(_) => {
                stream.flow.reset(shared);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

/// A port that no connection to that address has, chosen at random (RFC 6056).
fn free_port(connections: &HashMap<Ends, Arc<Flow>>, ip: IpAddr, to: SocketAddr) -> io::Result<Option<Ends>> {
    let start = entropy::bytes().map(u16::from_ne_bytes)?;
    let range = u16::MAX - FIRST_PORT;
    let port = |step: u16| FIRST_PORT + start.wrapping_add(step) % range;
    let mut all = (0..range).map(|step| Ends { local: SocketAddr::new(ip, port(step)), remote: to });
    Ok(all.find(|ends| connections.get(ends).is_none_or(|flow| flow.state() == State::Over)))
}
