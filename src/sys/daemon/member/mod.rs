//! One node at work: what the control session tells, what the user asks and what the machine's networks are, put together.
//!
//! Each part owns its state: [`Membership`] what is on disk, [`Session`] the coordinator, [`Effect`] engine and routing, [`KeptMap`]
//! the map. Here is only what follows from one for the others; `requests` is what the user asks, `whereabouts` what others are told.

mod requests;
mod whereabouts;

use std::net::{IpAddr, SocketAddr};

use super::chooser::{Chooser, Step};
use super::effect::{Effect, Kept};
use super::kept_map::KeptMap;
use super::membership::Membership;
use super::outside::Outside;
use super::session::Session;
use super::state::Store;
use super::watch::Watch;
use super::{DaemonError, Options, guest, surroundings};
use crate::coord::client::{NetMap, SleepWatch};
use crate::ident::{DiscoPrivate, NodePrivate};
use crate::node::trial::Reach;
use crate::node::{Machine, Progress, Renewal, renewal};
use crate::path;
use crate::settings::DEFAULT_PORT;
use crate::sys::control::Event;
use crate::sys::engine::Engine;
use crate::sys::{clock, entropy};
use crate::wire::control::NetInfo;

/// Why another node key is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renew {
    No,
    /// The user waits for it.
    Asked,
    /// The key is at its end, and a join key at hand.
    Due,
}

/// What happens to a node by itself.
pub(super) enum News {
    /// The control session tells something.
    Session(Event),
    /// More is known of the network.
    Outlook,
    /// Of the exit nodes.
    Exit(Step),
    /// What a change on trial leaves within reach.
    Reach(Reach),
}

/// The node.
pub(super) struct Member {
    options: Options,
    disco: DiscoPrivate,
    machine: Machine,
    membership: Membership,
    map: KeptMap,
    effect: Effect,
    /// The exit node, where the choice is the node's.
    exit: Chooser,
    /// The last change of routing, until it has proven itself.
    watch: Watch,
    session: Session,
    progress: Progress,
    /// The network around the node, as the coordinator is told; and where others see the node.
    network: NetInfo,
    seen: Vec<SocketAddr>,
    /// What is between it and the internet.
    nat: Option<path::Outside>,
    /// Our end of the connection to the coordinator.
    local: Option<IpAddr>,
    sleep: SleepWatch,
    /// What was last put into effect was a map of an expired node.
    expired: bool,
    /// Another node key is being asked for.
    renewing: bool,
}

impl Member {
    /// Reads what is on disk and starts what it asks for.
    pub(super) async fn start(options: Options, store: Store) -> Result<Self, DaemonError> {
        let (membership, port) = Membership::load(store.clone(), options.guest_config.as_deref())?;
        let port = options.port.or(port).unwrap_or(DEFAULT_PORT);
        let mut member = Self {
            disco: entropy::disco_key().map_err(DaemonError::Entropy)?,
            machine: surroundings::machine(options.ground.interface().is_empty()),
            map: KeptMap::load(store, membership.state()),
            effect: Effect::new(&options.ground, port, options.offload).await?,
            exit: Chooser::default(),
            watch: Watch::default(),
            session: Session::default(),
            progress: Progress::default(),
            network: NetInfo::default(),
            seen: Vec::new(),
            nat: None,
            local: None,
            sleep: SleepWatch::new(clock::now(), clock::wall()),
            expired: false,
            renewing: false,
            membership,
            options,
        };
        member.progress = member.new_progress();
        if member.membership.prefs().want_running {
            member.go(Renew::No).await?;
        }
        Ok(member)
    }

    fn new_progress(&self) -> Progress {
        Progress { interface: self.options.ground.interface().to_owned(), proxies: self.effect.proxies(), ..Default::default() }
    }

    /// What happens next; nothing, while the node takes no part.
    pub(super) async fn next_news(&mut self) -> News {
        tokio::select! {
            event = self.session.next() => News::Session(event),
            () = self.effect.outlook_changed() => News::Outlook,
            step = self.exit.next() => News::Exit(step),
            reach = self.watch.next() => News::Reach(reach),
        }
    }

    /// Reacts to what happens.
    pub(super) async fn on_news(&mut self, news: News) {
        match news {
            News::Session(event) => self.on_event(event).await,
            News::Outlook => self.on_outlook(),
            News::Exit(step) => {
                if self.exit.on(&step, self.effect.engine()) {
                    self.note_exit_node();
                    self.put_into_effect().await;
                }
                return;
            }
            News::Reach(reach) => {
                if let Some(prefs) = self.watch.on(reach, self.membership.prefs()) {
                    self.take_back(prefs).await;
                }
                return;
            }
        }
        if let Some(outside) = self.effect.outside() {
            outside.set_told(self.progress.online).await;
        }
    }

    pub(super) fn engine(&self) -> Option<&Engine> {
        self.effect.engine()
    }

    /// The map as it was told last.
    pub(super) fn netmap(&self) -> Option<&NetMap> {
        self.map.get()
    }

    pub(super) fn outside(&self) -> Option<&Outside> {
        self.effect.outside()
    }

    /// Starts engine and session and puts the last map into effect.
    async fn go(&mut self, renew: Renew) -> Result<(), DaemonError> {
        self.effect.look().await;
        self.start_engine()?;
        self.start_session(renew);
        self.put_into_effect().await;
        Ok(())
    }

    fn start_engine(&mut self) -> Result<(), DaemonError> {
        self.effect.start(&self.membership.state().node, &self.disco)?;
        self.progress.port = self.effect.port();
        Ok(())
    }

    /// Starts the control session anew, with the identity as it is now.
    fn start_session(&mut self, renew: Renew) {
        self.progress.refusal.clear();
        self.progress.auth_url.clear();
        self.progress.trouble.clear();
        self.progress.online = false;
        self.progress.logging_in = renew == Renew::Asked;
        self.renewing = renew != Renew::No;
        self.local = None;
        let identity = self.membership.identity(self.disco.public(), renew != Renew::No, renew == Renew::Due);
        self.session.start(identity, self.report());
    }

    /// Reacts to what the session tells.
    async fn on_event(&mut self, event: Event) {
        match event {
            Event::ServerKey(key) => self.membership.note_server_key(key),
            Event::Connected { local, remote } => {
                self.local = Some(local);
                self.membership.note_coordinator(remote);
            }
            Event::Unknown(text) => {
                tracing::warn!("the coordinator does not know this node any more: {text}");
                self.progress.online = false;
                self.progress.unknown = text;
                self.membership.note_removal();
            }
            Event::Visit(url) => {
                tracing::info!("to let this node in, visit {url}");
                self.progress.auth_url = url;
            }
            Event::Refused(text) => {
                if self.progress.refusal != text {
                    tracing::warn!("the coordinator refuses this node: {text}");
                }
                self.progress.online = false;
                self.progress.refusal = text;
            }
            Event::Admitted { login, new_key, key_shown } => self.on_admitted(login, new_key.as_deref().cloned(), key_shown).await,
            Event::Offline(reason) => {
                if self.progress.online || self.progress.trouble.is_empty() {
                    tracing::info!("the coordinator is not reached, trying again: {reason}");
                }
                self.progress.online = false;
                self.progress.trouble = reason;
                self.local = None;
            }
            Event::Map(map) => self.on_map(*map).await,
            Event::Ping { kind, address, answer } => {
                let pinging = self.ping_for_coordinator(kind, address);
                tokio::spawn(async move {
                    // Whoever asked may have gone.
                    let _ = answer.send(pinging.await);
                });
            }
        }
    }

    async fn on_admitted(&mut self, login: String, new_key: Option<NodePrivate>, key_shown: bool) {
        self.progress.refusal.clear();
        self.progress.auth_url.clear();
        self.progress.unknown.clear();
        self.progress.logging_in = false;
        self.renewing = false;
        if new_key.is_some() {
            self.effect.drop_engine();
        }
        self.membership.note_admission(login, new_key, key_shown);
        if let Some(path) = &self.options.guest_config
            && let Err(error) = guest::drop_auth_key(path)
        {
            tracing::warn!(%error, "the join key could not be dropped from the guest's configuration");
        }
        if !self.effect.runs() {
            if let Err(error) = self.start_engine() {
                tracing::error!(%error, "the packet engine does not start with the new key");
            }
            self.publish();
            self.put_into_effect().await;
        }
    }

    async fn on_map(&mut self, map: NetMap) {
        if !self.progress.online {
            tracing::info!(peers = map.peers.len(), "the coordinator is reached");
        }
        self.progress.online = true;
        self.progress.trouble.clear();
        self.progress.refusal.clear();
        self.progress.unknown.clear();
        if self.membership.state().addresses != map.node.addresses {
            let addresses: Vec<String> = map.node.addresses.iter().map(|net| net.addr().to_string()).collect();
            tracing::info!("this node is {} ({})", map.node.name.escape_debug(), addresses.join(", "));
            self.membership.note_addresses(&map.node.addresses);
        }
        self.map.set(map);
        self.put_into_effect().await;
        self.renew_in_time();
    }

    async fn put_into_effect(&mut self) {
        if let Some(map) = self.map.get() {
            self.expired = map.has_expired(clock::wall());
            let prefs = self.membership.prefs();
            if self.effect.runs() {
                self.exit.set(map, prefs);
            }
            let before = self.effect.peer_api().to_vec();
            self.effect.apply(map, prefs, self.exit.choice()).await;
            self.exit.ask(self.effect.engine());
            self.tell_nat();
            if self.effect.peer_api() != before {
                self.publish();
            }
        }
    }

    /// Has the log say which exit node was chosen.
    fn note_exit_node(&self) {
        if let Some((choice, map)) = self.exit.choice().zip(self.map.get())
            && let Some(peer) = map.peers.get(&choice.id)
        {
            tracing::info!(
                answers = choice.answers,
                "the exit node is {}: {}",
                peer.short_name().escape_debug(),
                choice.why.text(map).escape_debug()
            );
        }
    }

    /// Changes a node key that is at its end, if that needs nobody's help.
    fn renew_in_time(&mut self) {
        let Some(map) = self.map.get().filter(|_| self.session.runs() && !self.renewing) else { return };
        if renewal(map, self.membership.state().auth_key.is_some(), clock::wall()) == Renewal::ByJoinKey {
            tracing::info!("this node's key is at its end; it is renewed with the join key");
            self.start_session(Renew::Due);
        }
    }

    /// Puts right what another program has changed of the machine's routing.
    pub(super) async fn keep(&mut self) {
        if self.effect.keep().await == Kept::InterfaceGone {
            self.effect.drop_engine();
            match self.start_engine() {
                Ok(()) => {
                    self.publish();
                    self.put_into_effect().await;
                }
                // The next time it is tried again.
                Err(error) => self.effect.note_trouble(error.to_string()),
            }
        }
    }

    /// Looks whether the machine has slept or its networks have changed, and stores what is not stored yet.
    pub(super) async fn look_around(&mut self) {
        let slept = self.sleep.look(clock::now(), clock::wall());
        if self.effect.runs() {
            let changed = self.effect.look().await;
            if changed {
                self.exit.network_changed();
            }
            if changed {
                self.publish();
            }
            if slept || (changed && self.connection_is_doubtful()) {
                // No reason to wait for time-outs, or to sit out a pause of up to half a minute.
                self.session.wake();
            }
            let expired = self.map.get().is_some_and(|map| map.has_expired(clock::wall()));
            if changed || slept || expired != self.expired {
                self.put_into_effect().await;
            }
            self.renew_in_time();
        }
        self.map.save();
    }

    /// After a change of the machine's addresses: there is no connection to the coordinator, or its own end is gone.
    fn connection_is_doubtful(&self) -> bool {
        let has = |ip: IpAddr| ip.is_loopback() || self.effect.surroundings().addresses.contains(&ip);
        self.local.is_none_or(|ip| !has(ip))
    }

    /// Takes the node out of the mesh: session, routes, TUN.
    async fn halt(&mut self) {
        self.session.end();
        self.local = None;
        self.renewing = false;
        self.progress = self.new_progress();
        self.exit.end();
        self.watch.end();
        self.effect.undo().await;
    }

    /// Ends everything and stores what is not stored yet.
    pub(super) async fn stop(mut self) {
        self.halt().await;
        self.map.save();
    }
}
