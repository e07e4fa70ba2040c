//! What the map means on this machine, put into effect: packet engine and routing, by the machine's own networks.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::DaemonError;
use super::naming::Naming;
use super::outside::Outside;
use super::resolver::Resolver;
use super::surroundings::{self, Surroundings};
use super::upkeep::Upkeep;
use super::userspace::{Ground, Listeners, Userspace};
use crate::coord::client::NetMap;
use crate::filter::{Filter, FilterConfig, Forwards};
use crate::ident::{DiscoPrivate, NodePrivate, NodePublic, QUAD100_V6};
use crate::node::peer_api::callers;
use crate::node::policy_routing::BYPASS_MARK;
use crate::node::{Assembly, AutoChoice, ExitNode, Offloads, Prefs, Situation, TUN_MTU, Traffic, TunOffload, assemble};
use crate::sys::clock;
use crate::sys::engine::{Engine, EngineOptions};
use crate::sys::portmap::Wish;
use crate::sys::router::{Router, RouterError};
use crate::sys::survey::Outlook;
use crate::sys::sysctl;

/// Engine, router, and what they were last told.
#[derive(Debug)]
pub(super) struct Effect {
    ground: Ground,
    port: u16,
    offload: TunOffload,
    surroundings: Surroundings,
    /// What sets up routes, rules and firewall, with a TUN.
    router: Option<Router>,
    /// What takes its place without one, while the engine runs.
    userspace: Option<Userspace>,
    listeners: Listeners,
    engine: Option<Engine>,
    outside: Option<Outside>,
    assembly: Option<Assembly>,
    /// Names, while the engine runs.
    naming: Naming,
    /// Which packets the machine forwards, as found after the last time it was told to.
    forwards: Forwards,
    /// The engine's filter, and what it was made of.
    filter: Option<(FilterConfig, Arc<Filter>)>,
    /// The machine's routing may have something of ours; without that, what looks like it is another node's.
    routed: bool,
    upkeep: Upkeep,
}

/// Whether the machine's routing could be kept as it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It could.
    Yes,
    /// The TUN is gone, and the engine of no use.
    InterfaceGone,
}

/// Gives the engine the filter for these rules and circumstances, unless it has it.
fn set_filter(engine: &Engine, present: &mut Option<(FilterConfig, Arc<Filter>)>, wanted: &FilterConfig) {
    if present.as_ref().is_some_and(|(config, _)| config == wanted) {
        return;
    }
    let filter = Arc::new(Filter::new(wanted));
    if filter.unread() > 0 {
        tracing::debug!(entries = filter.unread(), "entries of the packet filter do not read and are left out");
    }
    engine.set_filter(filter.clone());
    *present = Some((wanted.clone(), filter));
}

impl Effect {
    pub(super) async fn new(ground: &Ground, port: u16, offload: TunOffload) -> Result<Self, DaemonError> {
        let router = match ground {
            Ground::Tun(_) => Some(Router::new().await?),
            Ground::Userspace { .. } => None,
        };
        Ok(Self {
            ground: ground.clone(),
            port,
            offload,
            surroundings: Surroundings::default(),
            router,
            userspace: None,
            listeners: Listeners::open(ground).map_err(|(address, source)| DaemonError::Proxy { address, source })?,
            engine: None,
            outside: None,
            assembly: None,
            naming: Naming::default(),
            forwards: Forwards::default(),
            filter: None,
            routed: false,
            upkeep: Upkeep::default(),
        })
    }

    pub(super) fn runs(&self) -> bool {
        self.engine.is_some()
    }

    /// The UDP port in use; 0 if none.
    pub(super) fn port(&self) -> u16 {
        self.engine.as_ref().map_or(0, Engine::port)
    }

    /// Which of the kernel's offloads are in use.
    pub(super) fn offloads(&self) -> Option<Offloads> {
        self.engine.as_ref().map(Engine::offloads)
    }

    /// Where proxies listen for local programs.
    pub(super) fn proxies(&self) -> Vec<SocketAddr> {
        self.listeners.addresses()
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
            let mut options = EngineOptions {
                interface: self.ground.interface().to_owned(),
                mtu: TUN_MTU,
                port: self.port,
                key: key.clone(),
                disco: disco.clone(),
                mark: Some(BYPASS_MARK),
                offload: self.offload,
            };
            let (engine, userspace) = match &self.ground {
                Ground::Tun(_) => (Engine::start(options).map_err(DaemonError::Engine)?, None),
                Ground::Userspace { .. } => {
                    // Without routes of the mesh there is nothing to keep out of.
                    options.mark = None;
                    let (userspace, tun) = Userspace::start().map_err(DaemonError::Engine)?;
                    (Engine::start_on(tun, options).map_err(DaemonError::Engine)?, Some(userspace))
                }
            };
            let outside = Outside::start(&engine, key).map_err(DaemonError::Engine)?;
            outside.set_addresses(&self.surroundings.addresses);
            (self.engine, self.outside, self.userspace) = (Some(engine), Some(outside), userspace);
            self.naming = Naming::start(&self.ground, self.userspace.as_mut(), &self.listeners)?;
            self.filter = None;
        }
        Ok(())
    }

    /// Stops the engine; routing stays for the one that follows.
    pub(super) fn drop_engine(&mut self) {
        (self.naming, self.outside, self.engine) = (Naming::default(), None, None);
        // The engine reads from it until it ends.
        self.userspace = None;
    }

    pub(super) fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// What the engine has around it.
    pub(super) fn outside(&self) -> Option<&Outside> {
        self.outside.as_ref()
    }

    /// Has the router asked for a port for the engine, if that is wanted and there is a router.
    fn wish_for_port(&self, wanted: bool) {
        if let Some(outside) = &self.outside {
            let gateway = self.surroundings.gateway.filter(|_| wanted && self.port() != 0);
            outside.wish_for_port(gateway.map(|gateway| Wish { gateway, port: self.port() }));
        }
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

    /// Gives engine and router what map, preferences, networks and the choice of an exit node mean together.
    pub(super) async fn apply(&mut self, map: &NetMap, prefs: &Prefs, exit: Option<AutoChoice>) {
        self.naming.offer(map, prefs, &self.ground, self.userspace.as_ref());
        let Some(engine) = &self.engine else { return };
        let situation = Situation {
            interface: self.ground.interface(),
            local_networks: &self.surroundings.networks,
            peer_api: self.naming.doors(),
            forwards: self.forwards,
            now: clock::wall(),
            exit,
        };
        let assembly = assemble(map, prefs, situation);
        if let Some(outside) = &self.outside {
            outside.set_map(map, prefs.ca_file.clone()).await;
        }
        self.wish_for_port(prefs.port_mapping);
        // Before the peers, so that none is let in by the rules of before.
        set_filter(engine, &mut self.filter, &assembly.filter);
        if let (Some(api), Some((_, filter))) = (self.naming.peer_api(), &self.filter) {
            api.set_callers(callers(map, filter));
        }
        engine.set_sites(&assembly.sites);
        engine.set_peers(&assembly.peers);
        self.naming.set(map, prefs, assembly.exit_node).await;
        if let Some(userspace) = &self.userspace {
            let addresses = map.node.addresses.iter().map(IpNet::addr).collect();
            userspace.set(addresses, &assembly.router, &self.surroundings.networks);
        }
        if let Some(router) = &mut self.router {
            self.routed = true;
            let applied = router.apply(&assembly.router).await;
            self.upkeep.note_trouble(applied.err().map(|error| error.to_string()));
        }
        let before = self.assembly.as_ref().map(|a| &a.notes);
        for note in assembly.notes.iter().filter(|note| before.is_none_or(|notes| !notes.contains(note))) {
            tracing::warn!("{note}");
        }
        self.assembly = Some(assembly);
        self.look_at_forwarding();
    }

    /// Has the filter know whether what it lets in for others gets there.
    fn look_at_forwarding(&mut self) {
        let (Some(assembly), Some(engine)) = (&mut self.assembly, &self.engine) else { return };
        if assembly.router.forward {
            self.forwards = match &self.ground {
                Ground::Tun(name) => sysctl::forwards(name),
                // Ordinary sockets carry on what peers send.
                Ground::Userspace { .. } => Forwards::default(),
            };
            assembly.filter.forwards = self.forwards;
            set_filter(engine, &mut self.filter, &assembly.filter);
        }
    }

    /// What became of the wish for an exit node.
    pub(super) fn exit_node(&self) -> ExitNode {
        self.assembly.as_ref().map_or(ExitNode::Unwanted, |assembly| assembly.exit_node)
    }

    /// Where other nodes may ask.
    pub(super) fn peer_api(&self) -> &[SocketAddr] {
        self.naming.doors()
    }

    /// Puts right what another program has changed of the machine's routing.
    pub(super) async fn keep(&mut self) -> Kept {
        if self.assembly.is_none() {
            return Kept::Yes;
        }
        if self.engine.is_none() {
            return Kept::InterfaceGone;
        }
        if self.naming.keep().await {
            self.upkeep.note_repair("the machine's resolver".to_owned());
        }
        let (Some(assembly), Some(router)) = (&self.assembly, &mut self.router) else { return Kept::Yes };
        let was_right = self.upkeep.is_well();
        match router.apply(&assembly.router).await {
            Ok(changed) => {
                // What could not be set before was nobody's doing.
                if was_right && !changed.is_nothing() {
                    self.upkeep.note_repair(changed.to_string());
                }
                self.upkeep.note_trouble(None);
            }
            Err(RouterError::NoInterface(interface)) => {
                self.upkeep.note_repair(format!("the interface {interface}"));
                return Kept::InterfaceGone;
            }
            Err(error) => self.upkeep.note_trouble(Some(error.to_string())),
        }
        self.look_at_forwarding();
        Kept::Yes
    }

    /// What is wrong with the machine's routing, and what was.
    pub(super) fn upkeep(&self) -> &Upkeep {
        &self.upkeep
    }

    /// The engine cannot be started again.
    pub(super) fn note_trouble(&mut self, trouble: String) {
        self.upkeep.note_trouble(Some(trouble));
    }

    /// What the user should know of names.
    pub(super) fn name_trouble(&self) -> Option<String> {
        self.naming.resolver().and_then(Resolver::trouble)
    }

    /// Where this machine's programs reach the resolver.
    pub(super) fn resolver_addresses(&self) -> Vec<IpAddr> {
        let v6 =
            self.assembly.as_ref().is_some_and(|assembly| assembly.router.addresses.iter().any(|net| net.addr() == IpAddr::V6(QUAD100_V6)))
                && ["lo", self.ground.interface()].into_iter().all(sysctl::carries_ipv6);
        self.naming
            .resolver()
            .into_iter()
            .flat_map(|names| names.server().addresses())
            .copied()
            .filter(|address| address.is_ipv4() || v6)
            .collect()
    }

    /// By whom this machine's programs are led to the resolver, if they are.
    pub(super) fn name_manager(&self) -> Option<String> {
        self.naming.resolver().and_then(Resolver::manager).map(|manager| manager.to_string())
    }

    /// Looks at the machine's own networks; says whether they have changed.
    pub(super) async fn look(&mut self) -> bool {
        match surroundings::look(self.ground.interface()).await {
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
                refused: peer.refused.iter().filter_map(|(flow, age)| Some((*flow, now.checked_sub(*age).ok()?))).collect(),
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            })
        }
    }

    /// Takes the machine out of the mesh: routes, then the TUN.
    pub(super) async fn undo(&mut self) {
        self.assembly = None;
        self.upkeep.forget_trouble();
        if std::mem::take(&mut self.routed)
            && let Some(router) = &mut self.router
            && let Err(error) = router.clear().await
        {
            tracing::warn!(%error, "routing could not all be undone");
        }
        if let Some(outside) = self.outside.take() {
            outside.stop().await;
        }
        self.drop_engine();
    }

    /// Forgets a membership's peers; what is routed is changed with the next map.
    pub(super) fn forget(&mut self) {
        self.drop_engine();
        self.assembly = None;
        self.upkeep.forget_trouble();
    }
}
