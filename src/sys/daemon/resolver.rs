//! Names on this machine: the resolver on 100.100.100.100, and the machine led to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::coord::client::NetMap;
use crate::names::system::{Lead, Manager};
use crate::names::{Records, Table, Upstream};
use crate::node::{ExitNode, Prefs, names};
use crate::sys::names::{NameServer, System};
use crate::sys::userspace::Dialer;

/// Both, and what they were last told. Dropping it leads the machine back to its own servers.
#[derive(Debug)]
pub(super) struct Resolver {
    server: NameServer,
    system: Arc<Mutex<System>>,
    records: Option<Records>,
    /// The servers that were told last for what the coordinator names none for.
    own: Vec<Upstream>,
    /// What the machine is to ask us, while it is to.
    lead: Option<Lead>,
    trouble: Option<String>,
    /// The machine's programs ask somebody else: there is no address of ours they could reach.
    private: bool,
}

/// Gives the machine back what a killed node has left ours in place of.
pub(super) fn clean_leftovers(interface: &str) {
    if let Err(error) = System::of(interface).clean() {
        tracing::warn!("the machine's resolver could not be put back: {error}");
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn locked(system: &Mutex<System>) -> MutexGuard<'_, System> {
    system.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Resolver {
    /// Starts the resolver. Without one the node runs all the same; the log says why.
    pub(super) fn start(interface: &str) -> Option<Self> {
        match NameServer::start(interface) {
            Ok(server) => Some(Self::with(server, interface, false)),
            Err(error) => {
                tracing::warn!("names are not resolved on 100.100.100.100: {error}");
                None
            }
        }
    }

    /// One for the programs in this process only, of a node without a TUN.
    pub(super) fn in_process(dialer: Dialer) -> Self {
        Self::with(NameServer::in_process(dialer), "", true)
    }

    fn with(server: NameServer, interface: &str, private: bool) -> Self {
        let system = Arc::new(Mutex::new(System::of(interface)));
        Self { server, system, records: None, own: Vec::new(), lead: None, trouble: None, private }
    }

    /// Takes over what map and preferences mean for names.
    pub(super) async fn set(&mut self, map: &NetMap, prefs: &Prefs, exit: ExitNode) {
        let records = names(map, exit);
        let wanted = prefs.accept_dns && !self.private && (map.dns.proxied || !map.dns.resolvers.is_empty());
        let lead = wanted.then(|| Lead::new(&records, &map.dns.domains));
        if self.records.as_ref() != Some(&records) {
            self.records = Some(records);
            self.tell();
        }
        if lead == self.lead {
            return;
        }
        if lead.is_none() {
            self.give_back();
        }
        self.lead = lead;
        self.keep().await;
    }

    /// The resolver itself.
    pub(super) fn server(&self) -> &NameServer {
        &self.server
    }

    /// Tells the resolver what is known.
    fn tell(&mut self) {
        let Some(records) = &self.records else { return };
        self.own = locked(&self.system).servers();
        let servers = if self.own.is_empty() { records.last_resort.clone() } else { self.own.clone() };
        self.server.set(Arc::new(Table::new(records.clone())), servers);
    }

    /// Leads the machine to us if it is to ask us and is not; says whether somebody else had changed that.
    pub(super) async fn keep(&mut self) -> bool {
        let Some(lead) = self.lead.clone() else { return false };
        let system = self.system.clone();
        // Programs are run, which takes its time.
        let looked = tokio::task::spawn_blocking(move || {
            let mut system = locked(&system);
            (system.take(&lead), system.servers())
        });
        let Ok((taken, own)) = looked.await else { return false };
        if own != self.own {
            self.tell();
        }
        match taken {
            Ok(changed) => {
                self.trouble = None;
                changed
            }
            // It was tried a moment ago.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && self.trouble.is_some() => false,
            Err(error) => {
                let text = format!("this machine's programs are not led to names of the mesh: {error}");
                if self.trouble.as_ref() != Some(&text) {
                    tracing::warn!("{text}");
                }
                self.trouble = Some(text);
                false
            }
        }
    }

    fn give_back(&mut self) {
        self.trouble = None;
        if self.lead.take().is_some()
            && let Err(error) = locked(&self.system).give_back()
        {
            tracing::warn!("the machine's resolver could not be put back: {error}");
        }
    }

    /// By whom the machine's programs are led to us, if they are.
    pub(super) fn manager(&self) -> Option<Manager> {
        locked(&self.system).manager()
    }

    /// What the user should know.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }
}
