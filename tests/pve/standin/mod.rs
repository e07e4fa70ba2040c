//! A stand-in for the Proxmox VE API: stateful, checked against the real schema, answering as a real host was recorded to answer.
//!
//! The provisioner's tests talk to it over HTTPS exactly as the product talks to a host; the lab puts real LXC containers behind it.
//! Included by `#[path]`, so each includer uses the part it needs.

#![allow(dead_code, unreachable_pub, reason = "included by several programs, each using a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::result_large_err,
    reason = "test code"
)]

pub mod access;
mod accounts;
mod api;
pub mod backend;
pub mod calls;
pub mod certificates;
mod clone;
pub mod cluster;
pub mod factor;
pub mod faults;
mod firewall;
mod formats;
pub mod guest_config;
mod guests;
mod ha;
pub mod http;
mod inventory;
mod lifecycle;
pub mod lxc;
mod migrate;
mod on_host;
pub mod pct;
mod pmxcfs;
pub mod qemu;
pub mod schema;
mod server;
mod snapshot;
mod storage;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use access::{Access, Caller};
use backend::{Backend, Paper};
use calls::Calls;
use cluster::{Condition, Host};
use faults::Faults;
use guest_config::Config;
pub use http::Reply;
#[allow(unused_imports, reason = "for includers with a backend of their own")]
pub use tasks::TaskLog;

/// The PVE release that is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u8, pub u8);

impl Version {
    /// Bridges came under access control.
    pub const V8_0: Self = Self(8, 0);
    /// `dev[n]` and the `interfaces` endpoint came.
    pub const V8_1: Self = Self(8, 1);
    /// `.tar.bz2` came.
    pub const V8_3: Self = Self(8, 3);
    /// `message` came into the bodies of errors, and bodies may have 512 KiB.
    pub const V8_4: Self = Self(8, 4);
    /// Containers are unprivileged unless said otherwise; rules took the place of HA groups.
    pub const V9_0: Self = Self(9, 0);
    /// `env` came.
    pub const V9_1: Self = Self(9, 1);
}

impl std::str::FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || text.split_once('.').and_then(|(a, b)| Some(Self(a.parse().ok()?, b.parse().ok()?)));
        parse().ok_or_else(|| format!("`{text}` is not a version like 9.1"))
    }
}

/// A storage of the host.
#[derive(Debug, Clone)]
pub struct Storage {
    /// Its name.
    pub name: String,
    /// `dir`, `lvmthin`, ...
    pub kind: String,
    /// What may be kept there, as in storage.cfg.
    pub content: String,
}

impl Storage {
    /// Whether it holds this kind of content.
    pub fn holds(&self, content: &str) -> bool {
        self.content.split(',').any(|c| c == content)
    }
}

/// How the stand-in is set up.
pub struct Options {
    /// Where it listens; port 0 picks one.
    pub listen: SocketAddr,
    /// The host's name.
    pub node: String,
    /// The release played.
    pub version: Version,
    /// Its state: storages, configurations, containers.
    pub dir: PathBuf,
    /// The password of root@pam.
    pub password: String,
    /// Bridges and their addresses.
    pub bridges: Vec<(String, String)>,
    /// Storages.
    pub storages: Vec<Storage>,
    /// The hosts of the cluster beside the one above, which takes the calls.
    pub others: Vec<Host>,
    /// The storages that are the same on every host that has them.
    pub shared: Vec<String>,
    /// How long a task waits before it does anything.
    pub task_delay: Duration,
    /// How long 401 replies are held back; 3 s on a real host.
    pub hold_back: Duration,
    /// Where the tools of the hosts are (`pvesh`, `pct`). With it, hookscripts see one host of several: its name, its files, its storages; that
    /// needs root. Without it, they see this machine.
    pub tools: Option<PathBuf>,
    /// What runs the containers.
    pub backend: Box<dyn Backend>,
}

impl Options {
    /// A host `pve` as freshly installed, on a free port of loopback, without containers behind it.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let storage = |name: &str, kind: &str, content: &str| Storage { name: name.into(), kind: kind.into(), content: content.into() };
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            node: "pve".to_owned(),
            version: Version::V9_1,
            dir: dir.into(),
            password: "secret".to_owned(),
            bridges: vec![("vmbr0".to_owned(), "192.168.50.2/24".to_owned())],
            storages: vec![storage("local", "dir", "iso,vztmpl,backup,import"), storage("local-lvm", "lvmthin", "rootdir,images")],
            others: Vec::new(),
            shared: Vec::new(),
            task_delay: Duration::ZERO,
            hold_back: Duration::ZERO,
            tools: None,
            backend: Box::new(Paper::default()),
        }
    }
}

/// What changes.
#[derive(Default)]
struct Inner {
    access: Access,
    guests: BTreeMap<u32, Config>,
    /// Virtual machines, which are on paper only.
    machines: BTreeMap<u32, qemu::Machine>,
    /// The host of every guest.
    places: BTreeMap<u32, String>,
    /// What the files in /etc/pve held when they were written.
    written: BTreeMap<u32, String>,
    condition: Condition,
    firewall: firewall::Firewall,
    /// Free bytes of storages that are limited, by host and name; the host is empty for a shared one.
    room: BTreeMap<(String, String), u64>,
    ha: ha::Ha,
    started: BTreeMap<u32, Instant>,
    tasks: Vec<tasks::Task>,
    next_pid: u32,
    /// Guests whose configuration lock is held.
    flocks: BTreeSet<u32>,
}

/// The stand-in's inside, shared by its threads.
struct Core {
    options: Options,
    inner: Mutex<Inner>,
    changed: Condvar,
    hosts: Vec<Host>,
    faults: Faults,
    calls: Calls,
    /// Of the certificate shown at first.
    fingerprint: String,
    certificates: Arc<certificates::Certificates>,
}

/// One call: who makes it, and what it is to meet.
struct Context {
    core: Arc<Core>,
    caller: Caller,
    /// The host it is for.
    host: String,
    task_fault: Option<String>,
}

impl Core {
    /// Runs something under a guest's configuration lock.
    fn locked<T>(&self, id: u32, body: impl FnOnce() -> T) -> Result<T, String> {
        let limit = Duration::from_secs(10);
        let (mut inner, wait) =
            self.changed.wait_timeout_while(self.inner.lock().unwrap(), limit, |inner| inner.flocks.contains(&id)).unwrap();
        if wait.timed_out() {
            return Err(format!("can't lock file '/run/lock/lxc/pve-config-{id}.lock' - got timeout"));
        }
        inner.flocks.insert(id);
        drop(inner);
        // What works on the file beside the API holds a lock on this one.
        let done = pmxcfs::locked(self, id, limit, body);
        self.inner.lock().unwrap().flocks.remove(&id);
        self.changed.notify_all();
        done.ok_or_else(|| format!("can't lock file '/run/lock/lxc/pve-config-{id}.lock' - got timeout"))
    }
}

/// The inside of a running stand-in: what a test sees and changes of it beside the API.
#[derive(Clone)]
pub struct Inside {
    core: Arc<Core>,
}

/// A running stand-in; it ends, and its containers with it, when dropped.
pub struct Standin {
    inside: Inside,
    address: SocketAddr,
    socket: PathBuf,
    stopping: Arc<std::sync::atomic::AtomicBool>,
}

impl Standin {
    /// Starts one.
    ///
    /// # Errors
    /// If it cannot listen or write its directory.
    pub fn start(options: Options) -> std::io::Result<Self> {
        let first = Host {
            name: options.node.clone(),
            version: options.version,
            bridges: options.bridges.clone(),
            storages: options.storages.clone(),
        };
        let hosts: Vec<Host> = std::iter::once(first).chain(options.others.iter().cloned()).collect();
        pmxcfs::make(&options, &hosts)?;
        std::fs::create_dir_all(options.dir.join("storage"))?;
        for host in &hosts {
            for storage in host.storages.iter().filter(|s| s.kind == "dir") {
                for sub in ["template/cache", "snippets"] {
                    std::fs::create_dir_all(storage::directory(&options, &host.name, &storage.name).join(sub))?;
                }
            }
        }
        server::start(options, hosts)
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The Unix socket that the `pvesh` stand-in speaks to; whoever reaches it is root on the host.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }
}

impl std::ops::Deref for Standin {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Inside {
    /// The SHA-256 fingerprint of the certificate shown at first, as PVE writes it.
    pub fn fingerprint(&self) -> &str {
        &self.core.fingerprint
    }

    /// The certificate of the cluster's authority, PEM.
    pub fn certificate(&self) -> &str {
        &self.core.certificates.authority().pem
    }

    /// What it shows to clients, which can be changed.
    pub fn certificates(&self) -> &certificates::Certificates {
        &self.core.certificates
    }

    /// Changes users, tokens and rights.
    pub fn access<T>(&self, change: impl FnOnce(&mut Access) -> T) -> T {
        change(&mut self.core.inner.lock().unwrap().access)
    }

    /// Faults to inject.
    pub fn faults(&self) -> &Faults {
        &self.core.faults
    }

    /// The calls made so far.
    pub fn calls(&self) -> &Calls {
        &self.core.calls
    }

    /// The containers that exist.
    pub fn guests(&self) -> Vec<u32> {
        self.core.inner.lock().unwrap().guests.keys().copied().collect()
    }

    /// A guest's configuration.
    pub fn config(&self, id: u32) -> Option<Config> {
        let mut inner = self.core.inner.lock().unwrap();
        pmxcfs::refresh(&self.core, &mut inner);
        inner.guests.get(&id).cloned()
    }

    /// Adds a guest that was not made through the API.
    pub fn add_guest(&self, id: u32, config: Config) {
        let first = self.core.entry().name.clone();
        self.add_guest_on(&first, id, config);
    }

    /// Locks or unlocks a guest, as a backup would.
    pub fn set_lock(&self, id: u32, lock: Option<&str>) {
        self.edit(id, |config| config.lock = lock.map(str::to_owned));
    }

    /// Changes a container's configuration, as somebody does in Proxmox's own panel.
    pub fn edit(&self, id: u32, change: impl FnOnce(&mut Config)) {
        let mut inner = self.core.inner.lock().unwrap();
        pmxcfs::refresh(&self.core, &mut inner);
        if let Some(config) = inner.guests.get_mut(&id) {
            change(config);
        }
        pmxcfs::save(&self.core, &mut inner, id);
    }

    /// Whether a guest runs.
    pub fn is_running(&self, id: u32) -> bool {
        self.core.options.backend.pid(id).is_some()
    }

    /// The host's process number of a running guest's first process.
    pub fn pid(&self, id: u32) -> Option<u32> {
        self.core.options.backend.pid(id)
    }

    /// The directory of a storage of the first host.
    pub fn storage_dir(&self, storage: &str) -> PathBuf {
        self.storage_dir_on(&self.core.entry().name, storage)
    }

    /// The directory of a storage as a host sees it.
    pub fn storage_dir_on(&self, host: &str, storage: &str) -> PathBuf {
        storage::directory(&self.core.options, host, storage)
    }

    /// What is at /run/lock.
    pub fn lock_files(&self) -> PathBuf {
        self.core.options.dir.join("run/lock")
    }

    /// What is mounted at /etc/pve.
    pub fn cluster_files(&self) -> PathBuf {
        self.core.options.dir.join("etc/pve")
    }

    /// Waits until no task runs; false if the time is over first.
    pub fn settle(&self, limit: Duration) -> bool {
        let busy = |inner: &mut Inner| inner.tasks.iter().any(|t| t.exit.is_none());
        let wait = self.core.changed.wait_timeout_while(self.core.inner.lock().unwrap(), limit, busy).unwrap();
        !wait.1.timed_out()
    }

    /// The lines of all tasks' logs.
    pub fn task_lines(&self) -> Vec<String> {
        self.core.inner.lock().unwrap().tasks.iter().flat_map(|t| t.lines().to_vec()).collect()
    }

    /// Types and exit statuses of all tasks so far, oldest first.
    pub fn task_exits(&self) -> Vec<(String, Option<String>)> {
        let kind = |upid: &str| upid.split(':').nth(5).unwrap_or_default().to_owned();
        self.core.inner.lock().unwrap().tasks.iter().map(|t| (kind(&t.upid), t.exit.clone())).collect()
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.stopping.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.address);
        let _ = std::os::unix::net::UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
        self.settle(Duration::from_secs(20));
        self.core.options.backend.clear();
    }
}
