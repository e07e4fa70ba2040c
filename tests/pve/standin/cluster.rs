//! The cluster: its hosts, which of them are up, and which guest is on which.

use std::collections::{BTreeMap, BTreeSet};

use super::guest_config::Config;
use super::http::Reply;
use super::{Context, Core, Inner, Inside, Options, Storage, Version, pmxcfs};

/// A host of the cluster.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The release it runs; hosts of one cluster may differ while it is upgraded.
    pub version: Version,
    /// Bridges and their addresses.
    pub bridges: Vec<(String, String)>,
    /// The storages that it has. One that [`Options::shared`] names is the same on every host that has it.
    pub storages: Vec<Storage>,
}

impl Host {
    /// A host as freshly installed.
    pub fn new(name: &str) -> Self {
        let usual = Options::new("");
        Self { name: name.to_owned(), version: usual.version, bridges: usual.bridges, storages: usual.storages }
    }
}

/// What the hosts are like at the moment.
#[derive(Debug, Default)]
pub struct Condition {
    /// Hosts that are switched off.
    down: BTreeSet<String>,
    /// The cluster has lost its quorum: nothing can be changed.
    no_quorum: bool,
    /// Devices that hosts lack although this machine has them.
    no_device: BTreeSet<(String, String)>,
    /// Seconds that hosts' clocks are ahead of this machine's.
    ahead: BTreeMap<String, i64>,
}

impl Core {
    /// The host that takes the calls.
    pub fn entry(&self) -> &Host {
        self.hosts.first().expect("there is always one host")
    }

    /// The host of a name.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == name)
    }
}

impl Inner {
    /// Whether a host is up.
    pub fn is_up(&self, host: &str) -> bool {
        !self.condition.down.contains(host)
    }

    /// Whether changes are possible.
    pub fn is_quorate(&self) -> bool {
        !self.condition.no_quorum
    }

    /// Whether a host has a device.
    pub fn has_device(&self, host: &str, path: &str) -> bool {
        !self.condition.no_device.contains(&(host.to_owned(), path.to_owned()))
    }

    /// What a host's clock shows, seconds since 1970.
    pub fn clock_of(&self, host: &str) -> i64 {
        let now = i64::try_from(super::tasks::now()).unwrap_or_default();
        now + self.condition.ahead.get(host).copied().unwrap_or_default()
    }

    /// The host a guest is on.
    pub fn place_of(&self, id: u32) -> Option<&str> {
        self.places.get(&id).map(String::as_str)
    }

    /// A container, if it is on this host.
    pub fn guest_on(&self, host: &str, id: u32) -> Option<&Config> {
        self.guests.get(&id).filter(|_| self.place_of(id) == Some(host))
    }

    /// Removes a guest from the lists.
    pub fn forget(&mut self, id: u32) {
        self.guests.remove(&id);
        self.machines.remove(&id);
        self.places.remove(&id);
        self.started.remove(&id);
        self.firewall.forget(id);
    }

    /// Why no guest of this number can be made, if so.
    pub fn taken(&self, id: u32) -> Option<String> {
        let kind = if self.machines.contains_key(&id) { "VM" } else { "CT" };
        self.place_of(id).map(|host| format!("{kind} {id} already exists on node '{host}'"))
    }
}

impl Context {
    /// The host that the call is for.
    pub fn host(&self) -> &Host {
        self.core.host(&self.host).unwrap_or_else(|| self.core.entry())
    }

    /// Makes a call one for this host.
    ///
    /// # Errors
    /// If nobody knows it or it is down.
    pub fn go_to(&mut self, host: &str) -> Result<(), Reply> {
        if host.is_empty() || host == "localhost" {
            return Ok(());
        }
        if self.core.host(host).is_none() {
            let why = format!("failed to get address info for: {host}: Name or service not known");
            return Err(Reply::died(&format!("hostname lookup '{host}' failed - {why}")));
        }
        if !self.core.inner.lock().unwrap().is_up(host) {
            return Err(Reply::empty(595, "No route to host"));
        }
        host.clone_into(&mut self.host);
        Ok(())
    }
}

impl Inside {
    /// Switches a host off or on. Its guests go on as far as the backend is concerned; nobody can reach them through the API.
    pub fn set_down(&self, host: &str, down: bool) {
        let mut inner = self.core.inner.lock().unwrap();
        if down {
            inner.condition.down.insert(host.to_owned());
        } else {
            inner.condition.down.remove(host);
        }
    }

    /// Takes the cluster's quorum away or gives it back.
    pub fn set_quorum(&self, quorate: bool) {
        self.core.inner.lock().unwrap().condition.no_quorum = !quorate;
    }

    /// Takes a device away from a host.
    pub fn take_device(&self, host: &str, path: &str) {
        self.core.inner.lock().unwrap().condition.no_device.insert((host.to_owned(), path.to_owned()));
    }

    /// Puts a host's clock ahead of this machine's, or behind.
    pub fn set_clock(&self, host: &str, ahead: i64) {
        self.core.inner.lock().unwrap().condition.ahead.insert(host.to_owned(), ahead);
    }

    /// Limits the free bytes of a storage, on one host or, for a shared one, on all.
    pub fn set_room(&self, host: &str, storage: &str, bytes: u64) {
        let key = self.core.room_key(host, storage);
        self.core.inner.lock().unwrap().room.insert(key, bytes);
    }

    /// Adds a container that was not made through the API, on a host of the cluster.
    pub fn add_guest_on(&self, host: &str, id: u32, config: Config) {
        let mut inner = self.core.inner.lock().unwrap();
        inner.places.insert(id, host.to_owned());
        inner.guests.insert(id, config);
        pmxcfs::save(&self.core, &mut inner, id);
    }

    /// The host a guest is on.
    pub fn place_of(&self, id: u32) -> Option<String> {
        self.core.inner.lock().unwrap().place_of(id).map(str::to_owned)
    }
}
