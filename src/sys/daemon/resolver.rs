//! Names on this machine: the resolver on 100.100.100.100, and the machine's own file that leads to it.

use std::path::Path;
use std::sync::Arc;

use crate::coord::client::NetMap;
use crate::names::{Records, Table};
use crate::node::{ExitNode, Prefs, names};
use crate::sys::names::{NameServer, PATH, ResolvConf, is_another_networks};
use crate::sys::userspace::Dialer;

/// Both, and what they were last told. Dropping it gives the machine its own file back.
#[derive(Debug)]
pub(super) struct Resolver {
    server: NameServer,
    file: ResolvConf,
    records: Option<Records>,
    /// The search domains, while the machine is to ask us.
    domains: Option<Vec<String>>,
    trouble: Option<String>,
    /// The machine's programs ask somebody else: there is no address of ours they could reach.
    private: bool,
}

/// Gives the machine back the file that a killed node has left ours in place of.
pub(super) fn clean_leftovers() {
    let path = Path::new(PATH);
    if !is_another_networks(path)
        && let Err(error) = ResolvConf::at(path).clean()
    {
        tracing::warn!("{PATH} could not be put back: {error}");
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Resolver {
    /// Starts the resolver. Without one the node runs all the same; the log says why.
    pub(super) fn start(interface: &str) -> Option<Self> {
        match NameServer::start(interface) {
            Ok(server) => Some(Self::with(server, false)),
            Err(error) => {
                tracing::warn!("names are not resolved on 100.100.100.100: {error}");
                None
            }
        }
    }

    /// One for the programs in this process only, of a node without a TUN.
    pub(super) fn in_process(dialer: Dialer) -> Self {
        Self::with(NameServer::in_process(dialer), true)
    }

    fn with(server: NameServer, private: bool) -> Self {
        Self { server, file: ResolvConf::at(Path::new(PATH)), records: None, domains: None, trouble: None, private }
    }

    /// Takes over what map and preferences mean for names.
    pub(super) fn set(&mut self, map: &NetMap, prefs: &Prefs, exit: ExitNode) {
        let records = names(map, exit);
        if self.records.as_ref() != Some(&records) {
            self.records = Some(records);
            self.tell();
        }
        let wanted = prefs.accept_dns && !self.private && (map.dns.proxied || !map.dns.resolvers.is_empty());
        let domains = wanted.then(|| map.dns.domains.clone());
        if domains == self.domains {
            return;
        }
        if domains.is_none() {
            self.give_back();
        }
        self.domains = domains;
        self.keep();
    }

    /// The resolver itself.
    pub(super) fn server(&self) -> &NameServer {
        &self.server
    }

    /// Tells the resolver what is known.
    fn tell(&self) {
        let Some(records) = &self.records else { return };
        let own = self.file.servers();
        let servers = if own.is_empty() { records.last_resort.clone() } else { own };
        self.server.set(Arc::new(Table::new(records.clone())), servers);
    }

    /// Points the machine at us if it is to ask us and somebody has changed that; says whether somebody had.
    pub(super) fn keep(&mut self) -> bool {
        let Some(domains) = &self.domains else { return false };
        let path = Path::new(PATH);
        if is_another_networks(path) {
            return false;
        }
        let first = self.trouble.is_none();
        match self.file.take(domains) {
            Ok(changed) => {
                self.trouble = None;
                if changed {
                    // Another file may name other servers.
                    self.tell();
                }
                changed
            }
            Err(error) => {
                let text = format!("{PATH} cannot be written, so names of the mesh are not resolved: {error}");
                if first {
                    tracing::warn!("{text}");
                }
                self.trouble = Some(text);
                false
            }
        }
    }

    fn give_back(&mut self) {
        if self.domains.take().is_some()
            && !is_another_networks(Path::new(PATH))
            && let Err(error) = self.file.give_back()
        {
            tracing::warn!("{PATH} could not be put back: {error}");
        }
    }

    /// What the user should know.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }
}
