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
pub mod certificates;
pub mod factor;
pub mod faults;
mod formats;
mod golden;
pub mod guest_config;
mod guests;
pub mod http;
mod inventory;
mod lifecycle;
pub mod lxc;
pub mod schema;
mod server;
mod storage;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use access::{Access, Caller};
use backend::{Backend, Paper};
use faults::Faults;
use guest_config::Config;
pub use http::Reply;
#[allow(unused_imports, reason = "for includers with a backend of their own")]
pub use tasks::TaskLog;

/// The PVE release that is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u8, pub u8);

impl Version {
    /// `dev[n]` and the `interfaces` endpoint came.
    pub const V8_1: Self = Self(8, 1);
    /// `message` came into the bodies of errors.
    pub const V8_4: Self = Self(8, 4);
    /// Containers are unprivileged unless said otherwise.
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
    /// How long a task waits before it does anything.
    pub task_delay: Duration,
    /// How long 401 replies are held back; 3 s on a real host.
    pub hold_back: Duration,
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
            task_delay: Duration::ZERO,
            hold_back: Duration::ZERO,
            backend: Box::new(Paper::default()),
        }
    }
}

/// What changes.
#[derive(Default)]
struct Inner {
    access: Access,
    guests: BTreeMap<u32, Config>,
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
    faults: Faults,
    /// Of the certificate shown at first.
    fingerprint: String,
    certificates: Arc<certificates::Certificates>,
}

/// One call: who makes it, and what it is to meet.
struct Context {
    core: Arc<Core>,
    caller: Caller,
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
        let done = body();
        self.inner.lock().unwrap().flocks.remove(&id);
        self.changed.notify_all();
        Ok(done)
    }

    /// Writes a guest's configuration file, or removes it.
    fn save(&self, inner: &Inner, id: u32) {
        let path = self.options.dir.join(format!("etc/{id}.conf"));
        let _ = match inner.guests.get(&id) {
            Some(config) => std::fs::write(path, config.file()),
            None => std::fs::remove_file(path),
        };
    }
}

/// A running stand-in; it ends, and its containers with it, when dropped.
pub struct Standin {
    core: Arc<Core>,
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
        for sub in ["etc", "storage"] {
            std::fs::create_dir_all(options.dir.join(sub))?;
        }
        for storage in options.storages.iter().filter(|s| s.kind == "dir") {
            for sub in ["template/cache", "snippets"] {
                std::fs::create_dir_all(options.dir.join("storage").join(&storage.name).join(sub))?;
            }
        }
        server::start(options)
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

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

    /// The Unix socket that the `pvesh` stand-in speaks to; whoever reaches it is root on the host.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Changes users, tokens and rights.
    pub fn access<T>(&self, change: impl FnOnce(&mut Access) -> T) -> T {
        change(&mut self.core.inner.lock().unwrap().access)
    }

    /// Faults to inject.
    pub fn faults(&self) -> &Faults {
        &self.core.faults
    }

    /// The VMIDs that exist.
    pub fn guests(&self) -> Vec<u32> {
        self.core.inner.lock().unwrap().guests.keys().copied().collect()
    }

    /// A guest's configuration.
    pub fn config(&self, id: u32) -> Option<Config> {
        self.core.inner.lock().unwrap().guests.get(&id).cloned()
    }

    /// Adds a guest that was not made through the API.
    pub fn add_guest(&self, id: u32, config: Config) {
        let mut inner = self.core.inner.lock().unwrap();
        inner.guests.insert(id, config);
        self.core.save(&inner, id);
    }

    /// Locks or unlocks a guest, as a backup would.
    pub fn set_lock(&self, id: u32, lock: Option<&str>) {
        let mut inner = self.core.inner.lock().unwrap();
        if let Some(config) = inner.guests.get_mut(&id) {
            config.lock = lock.map(str::to_owned);
        }
    }

    /// Whether a guest runs.
    pub fn is_running(&self, id: u32) -> bool {
        self.core.options.backend.pid(id).is_some()
    }

    /// The host's process number of a running guest's first process.
    pub fn pid(&self, id: u32) -> Option<u32> {
        self.core.options.backend.pid(id)
    }

    /// The directory of a storage.
    pub fn storage_dir(&self, storage: &str) -> PathBuf {
        self.core.options.dir.join("storage").join(storage)
    }

    /// Waits until no task runs; false if the time is over first.
    pub fn settle(&self, limit: Duration) -> bool {
        let busy = |inner: &mut Inner| inner.tasks.iter().any(|t| t.exit.is_none());
        let wait = self.core.changed.wait_timeout_while(self.core.inner.lock().unwrap(), limit, busy).unwrap();
        !wait.1.timed_out()
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
