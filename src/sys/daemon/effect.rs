//! What the map means on this machine, put into effect: packet engine and routing, by the machine's own networks.

use super::DaemonError;
use super::outside::Outside;
use super::surroundings::{self, Surroundings};
use crate::coord::client::NetMap;
use crate::filter::{Filter, FilterConfig};
use crate::ident::{DiscoPrivate, NodePrivate, NodePublic};
use crate::node::policy_routing::BYPASS_MARK;
use crate::node::{Assembly, Prefs, Situation, TUN_MTU, Traffic, assemble};
use crate::sys::clock;
use crate::sys::engine::{Engine, EngineOptions};
use crate::sys::router::Router;
use crate::sys::survey::Outlook;

/// Engine, router, and what they were last told.
#[derive(Debug)]
pub(super) struct Effect {
    interface: String,
    port: u16,
    surroundings: Surroundings,
    router: Router,
    engine: Option<Engine>,
    outside: Option<Outside>,
    assembly: Option<Assembly>,
    /// What the engine's filter was made of.
    filter: Option<FilterConfig>,
}

impl Effect {
    pub(super) async fn new(interface: &str, port: u16) -> Result<Self, DaemonError> {
        Ok(Self {
            interface: interface.to_owned(),
            port,
            surroundings: Surroundings::default(),
            router: Router::new().await?,
            engine: None,
            outside: None,
            assembly: None,
            filter: None,
        })
    }

    pub(super) fn runs(&self) -> bool {
        self.engine.is_some()
    }

    /// The UDP port in use; 0 if none.
    pub(super) fn port(&self) -> u16 {
        self.engine.as_ref().map_or(0, Engine::port)
    }

    pub(super) fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    pub(super) fn assembly(&self) -> Option<&Assembly> {
        self.assembly.as_ref()
    }

    /// Starts the engine with these keys, unless it runs.
    pub(super) fn start(&mut self, key: &NodePrivate, disco: &DiscoPrivate) -> Result<(), DaemonError> {
        if self.engine.is_none() {
            let options = EngineOptions {
                interface: self.interface.clone(),
                mtu: TUN_MTU,
                port: self.port,
                key: key.clone(),
                disco: disco.clone(),
                mark: Some(BYPASS_MARK),
            };
            let engine = Engine::start(options).map_err(DaemonError::Engine)?;
            let outside = Outside::start(&engine, key).map_err(DaemonError::Engine)?;
            outside.set_addresses(&self.surroundings.addresses);
            (self.engine, self.outside) = (Some(engine), Some(outside));
            self.filter = None;
        }
        Ok(())
    }

    /// Stops the engine; routing stays for the one that follows.
    pub(super) fn drop_engine(&mut self) {
        (self.outside, self.engine) = (None, None);
    }

    pub(super) fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// What the engine has around it.
    pub(super) fn outside(&self) -> Option<&Outside> {
        self.outside.as_ref()
    }

    /// Waits until more is known of the network; for ever, while the engine does not run.
    pub(super) async fn outlook_changed(&mut self) {
        match &mut self.outside {
            Some(outside) => outside.changed().await,
            None => std::future::pending().await,
        }
    }

    /// What is known of the network.
    pub(super) fn outlook(&mut self) -> Outlook {
        self.outside.as_mut().map(Outside::look).unwrap_or_default()
    }

    /// Gives engine and router what map, preferences and networks mean together.
    pub(super) async fn apply(&mut self, map: &NetMap, prefs: &Prefs) {
        let Some(engine) = &self.engine else { return };
        let situation = Situation { interface: &self.interface, local_networks: &self.surroundings.networks, now: clock::wall() };
        let mut assembly = assemble(map, prefs, situation);
        if let Some(outside) = &self.outside {
            outside.set_map(map, prefs.ca_file.clone()).await;
        }
        // Before the peers, so that none is let in by the rules of before.
        if self.filter.as_ref() != Some(&assembly.filter) {
            let filter = Filter::new(&assembly.filter);
            if filter.unread() > 0 {
                tracing::debug!(entries = filter.unread(), "entries of the packet filter do not read and are left out");
            }
            engine.set_filter(filter);
            self.filter = Some(assembly.filter.clone());
        }
        engine.set_peers(&assembly.peers);
        if let Err(error) = self.router.apply(&assembly.router).await {
            tracing::warn!(%error, "routing is not as it should be");
            assembly.notes.push(format!("routing is not as it should be: {error}"));
        }
        let before = self.assembly.as_ref().map(|a| &a.notes);
        for note in assembly.notes.iter().filter(|note| before.is_none_or(|notes| !notes.contains(note))) {
            tracing::warn!("{note}");
        }
        self.assembly = Some(assembly);
    }

    /// Looks at the machine's own networks; says whether they have changed.
    pub(super) async fn look(&mut self) -> bool {
        match surroundings::look(&self.interface).await {
            Ok(found) if found != self.surroundings => {
                tracing::debug!(networks = ?found.networks, "local networks");
                self.surroundings = found;
                if let Some(engine) = &self.engine {
                    engine.network_changed();
                }
                if let Some(outside) = &self.outside {
                    outside.network_changed(&self.surroundings.addresses).await;
                }
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::warn!(%error, "the machine's own networks cannot be read");
                false
            }
        }
    }

    /// What the engine knows of its peers.
    pub(super) fn traffic(&self) -> impl Fn(&NodePublic) -> Traffic + use<> {
        let peers = self.engine.as_ref().map(Engine::peers).unwrap_or_default();
        let now = clock::wall();
        move |key| {
            peers.iter().find(|peer| peer.key == *key).map_or_else(Traffic::default, |peer| Traffic {
                endpoint: peer.endpoint,
                relay: peer.way.and_then(|(way, _)| way.path.region()),
                since: peer.way.and_then(|(way, age)| Some((now.checked_sub(age).ok()?, way.why))),
                last_handshake: peer.last_handshake,
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            })
        }
    }

    /// Takes the machine out of the mesh: routes, then the TUN.
    pub(super) async fn undo(&mut self) {
        self.assembly = None;
        if let Err(error) = self.router.clear().await {
            tracing::warn!(%error, "routing could not all be undone");
        }
        self.drop_engine();
    }

    /// Forgets a membership's peers; what is routed is changed with the next map.
    pub(super) fn forget(&mut self) {
        self.drop_engine();
        self.assembly = None;
    }
}
