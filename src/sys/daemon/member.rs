//! One node at work: what the control session tells, what the user asks and what the machine's networks are, put into effect.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::state::{State, Store};
use super::surroundings::{self, Surroundings};
use super::{DaemonError, Options, guest};
use crate::coord::client::NetMap;
use crate::ident::DiscoPublic;
use crate::node::{
    Assembly, Machine, Prefs, PrefsChange, Progress, Situation, Status, TUN_MTU, Traffic, assemble, endpoints, hostinfo, status,
};
use crate::settings::DEFAULT_PORT;
use crate::sys::control::{self, Event, Identity, Pin, Report};
use crate::sys::dial::{BYPASS_MARK, Origin};
use crate::sys::engine::{Engine, EngineOptions};
use crate::sys::local_api::{Reply, Request, Up};
use crate::sys::router::Router;
use crate::sys::{clock, entropy};

/// Every so many looks around, routing is put right even if nothing has changed: other programs remove rules.
const LOOKS_PER_REPAIR: u32 = 6;
/// How long logging out may take.
const LOGOUT_LIMIT: Duration = Duration::from_secs(15);

/// A control session at work.
struct Session {
    task: JoinHandle<()>,
    report: watch::Sender<Report>,
    events: mpsc::Receiver<Event>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The node.
pub(super) struct Member {
    options: Options,
    store: Store,
    state: State,
    port: u16,
    disco: DiscoPublic,
    machine: Machine,
    surroundings: Surroundings,
    router: Router,
    engine: Option<Engine>,
    session: Option<Session>,
    map: Option<NetMap>,
    map_unsaved: bool,
    assembly: Option<Assembly>,
    progress: Progress,
    looks: u32,
}

impl Member {
    /// Reads what is on disk and starts what it asks for.
    pub(super) async fn start(options: Options, store: Store) -> Result<Self, DaemonError> {
        let mut state = store.load()?;
        let mut port = options.port;
        if let Some(path) = &options.guest_config {
            port = port.or(Some(adopt_guest(&mut state, path)?));
            store.save(&state)?;
        }
        let map = store.load_map().filter(|map| state.registered && map.node.key == state.node.public());
        let progress = Progress { interface: options.interface.clone(), ..Default::default() };
        let mut member = Self {
            options,
            store,
            state,
            port: port.unwrap_or(DEFAULT_PORT),
            disco: entropy::disco_key().map_err(DaemonError::Entropy)?.public(),
            machine: surroundings::machine(),
            surroundings: Surroundings::default(),
            router: Router::new().await?,
            engine: None,
            session: None,
            map,
            map_unsaved: false,
            assembly: None,
            progress,
            looks: 0,
        };
        if member.state.prefs.want_running {
            member.go().await?;
        }
        Ok(member)
    }

    /// What the session tells next; never, while there is none.
    pub(super) async fn next_event(&mut self) -> Event {
        match &mut self.session {
            Some(session) => match session.events.recv().await {
                Some(event) => event,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Starts engine and session and puts the last map into effect.
    async fn go(&mut self) -> Result<(), DaemonError> {
        self.refresh_surroundings().await;
        self.start_engine()?;
        self.start_session();
        self.put_into_effect().await;
        Ok(())
    }

    fn start_engine(&mut self) -> Result<(), DaemonError> {
        if self.engine.is_none() {
            let options = EngineOptions {
                interface: self.options.interface.clone(),
                mtu: TUN_MTU,
                port: self.port,
                key: self.state.node.clone(),
                mark: Some(BYPASS_MARK),
            };
            let engine = Engine::start(options).map_err(DaemonError::Engine)?;
            self.progress.port = engine.port();
            self.engine = Some(engine);
        }
        Ok(())
    }

    /// Starts the control session anew, with the identity as it is now.
    fn start_session(&mut self) {
        self.session = None;
        self.progress.refusal.clear();
        self.progress.auth_url.clear();
        self.progress.trouble.clear();
        self.progress.online = false;
        let (report, reports) = watch::channel(self.report());
        let (news, events) = mpsc::channel(16);
        let task = tokio::spawn(control::run(self.identity(), reports, news));
        self.session = Some(Session { task, report, events });
    }

    fn identity(&self) -> Identity {
        Identity {
            url: self.state.prefs.login_server.clone(),
            pin: self.state.server_key.map(|(key, strict)| Pin { key, strict }),
            machine: Arc::new(self.state.machine.clone()),
            node: Arc::new(self.state.node.clone()),
            previous: self.state.previous,
            auth_key: self.state.auth_key.clone(),
            disco: self.disco,
        }
    }

    fn report(&self) -> Report {
        Report {
            hostinfo: hostinfo(&self.state.prefs, &self.machine),
            endpoints: endpoints(&self.state.prefs.endpoints, &self.surroundings.addresses, self.progress.port),
        }
    }

    fn publish(&self) {
        if let Some(session) = &self.session {
            let now = self.report();
            session.report.send_if_modified(|report| {
                let changed = *report != now;
                *report = now;
                changed
            });
        }
    }

    /// Reacts to what the session tells.
    pub(super) async fn on_event(&mut self, event: Event) {
        match event {
            Event::ServerKey(key) => {
                self.state.server_key = Some((key, false));
                self.save();
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
            Event::Admitted { login, new_key } => self.on_admitted(login, new_key.as_deref().cloned()).await,
            Event::Offline(reason) => {
                if self.progress.online || self.progress.trouble.is_empty() {
                    tracing::info!("the coordinator is not reached, trying again: {reason}");
                }
                self.progress.online = false;
                self.progress.trouble = reason;
            }
            Event::Map(map) => self.on_map(*map).await,
        }
    }

    async fn on_admitted(&mut self, login: String, new_key: Option<crate::ident::NodePrivate>) {
        self.progress.refusal.clear();
        self.progress.auth_url.clear();
        self.state.registered = true;
        self.state.login = login;
        self.state.auth_key = None;
        if let Some(key) = new_key {
            self.state.previous = self.state.node.public();
            self.state.node = key;
            self.engine = None;
        }
        self.save();
        if let Some(path) = &self.options.guest_config
            && let Err(error) = guest::drop_auth_key(path)
        {
            tracing::warn!(%error, "the join key could not be dropped from the guest's configuration");
        }
        if self.engine.is_none() {
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
        if self.state.addresses != map.node.addresses {
            self.state.addresses.clone_from(&map.node.addresses);
            let addresses: Vec<String> = map.node.addresses.iter().map(|net| net.addr().to_string()).collect();
            tracing::info!("this node is {} ({})", map.node.name.escape_debug(), addresses.join(", "));
            self.save();
        }
        self.map = Some(map);
        self.map_unsaved = true;
        self.put_into_effect().await;
    }

    /// Gives engine and router what map, preferences and networks mean together.
    async fn put_into_effect(&mut self) {
        let (Some(map), Some(engine)) = (&self.map, &self.engine) else { return };
        let situation = Situation { interface: &self.options.interface, local_networks: &self.surroundings.networks, now: clock::wall() };
        let mut assembly = assemble(map, &self.state.prefs, situation);
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

    /// Looks whether the machine's networks have changed, repairs routing now and then, and stores what is not stored yet.
    pub(super) async fn look_around(&mut self) {
        self.looks = self.looks.wrapping_add(1);
        if self.engine.is_some() {
            let changed = self.refresh_surroundings().await;
            if changed {
                self.publish();
                let waits = !self.progress.online && self.progress.auth_url.is_empty() && self.progress.refusal.is_empty();
                if waits && self.session.is_some() {
                    // The network has just come: no reason to sit out a pause of up to half a minute.
                    self.start_session();
                }
            }
            if changed || self.looks.is_multiple_of(LOOKS_PER_REPAIR) {
                self.put_into_effect().await;
            }
        }
        self.save_map();
    }

    async fn refresh_surroundings(&mut self) -> bool {
        match surroundings::look(&self.options.interface).await {
            Ok(found) if found != self.surroundings => {
                tracing::debug!(networks = ?found.networks, "local networks");
                self.surroundings = found;
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::warn!(%error, "the machine's own networks cannot be read");
                false
            }
        }
    }

    /// Answers the local socket.
    pub(super) async fn answer(&mut self, request: Request) -> Result<Reply, String> {
        match request {
            Request::Prefs => return Ok(self.prefs()),
            Request::Set(change) => {
                self.set(change).await?;
                return Ok(self.prefs());
            }
            Request::Status | Request::Stop => {}
            Request::Up(up) => self.up(*up).await?,
            Request::Down => {
                self.state.prefs.want_running = false;
                self.persist()?;
                self.halt().await;
            }
            Request::LogOut => {
                let untold = self.log_out().await?;
                let mut status = self.status();
                status.health.extend(untold);
                return Ok(Reply::Status(Box::new(status)));
            }
        }
        Ok(Reply::Status(Box::new(self.status())))
    }

    fn prefs(&self) -> Reply {
        Reply::Prefs(Box::new(self.state.prefs.clone()))
    }

    async fn up(&mut self, up: Up) -> Result<(), String> {
        let mut prefs = self.state.prefs.clone();
        up.change.apply(&mut prefs);
        prefs.want_running = true;
        self.point_to(&prefs)?;
        let needs_key = !(self.state.registered && self.progress.online);
        if let Some(key) = up.auth_key.filter(|_| needs_key) {
            self.state.auth_key = Some(key);
            self.session = None;
        }
        self.state.prefs = prefs;
        self.persist()?;
        if self.engine.is_none() || self.session.is_none() {
            return self.go().await.map_err(|e| e.to_string());
        }
        self.publish();
        self.put_into_effect().await;
        Ok(())
    }

    async fn set(&mut self, change: PrefsChange) -> Result<(), String> {
        let mut prefs = self.state.prefs.clone();
        change.apply(&mut prefs);
        let (was, moved) = (self.state.prefs.want_running, prefs.login_server != self.state.prefs.login_server);
        if prefs.want_running {
            self.point_to(&prefs)?;
        }
        self.state.prefs = prefs;
        self.persist()?;
        match (was, self.state.prefs.want_running) {
            (true, false) => self.halt().await,
            (_, true) if !was || moved => self.go().await.map_err(|e| e.to_string())?,
            _ => {
                self.publish();
                self.put_into_effect().await;
            }
        }
        Ok(())
    }

    /// Checks the coordinator's address; a new one means a new membership.
    fn point_to(&mut self, prefs: &Prefs) -> Result<(), String> {
        if prefs.login_server.is_empty() {
            return Err("no coordinator is known; name it with --login-server".to_owned());
        }
        prefs.login_server.parse::<Origin>().map_err(|e| e.to_string())?;
        let before = &self.state.prefs.login_server;
        if !before.is_empty() && *before != prefs.login_server {
            self.forget().map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Gives the membership up. A coordinator that cannot be told, for it is gone or another one now, does not keep the user in it; what
    /// it was not told is said.
    async fn log_out(&mut self) -> Result<Option<String>, String> {
        let mut untold = None;
        if self.state.registered {
            let (identity, report) = (self.identity(), self.report());
            let told = tokio::time::timeout(LOGOUT_LIMIT, control::log_out(&identity, &report)).await;
            let told = told.unwrap_or_else(|_| Err(format!("no answer within {} s", LOGOUT_LIMIT.as_secs())));
            untold = told.err().map(|error| format!("the coordinator could not be told, remove the node there: {error}"));
        }
        self.halt().await;
        self.forget().map_err(|e| e.to_string())?;
        self.state.prefs.want_running = false;
        self.state.prefs.login_server.clear();
        self.persist()?;
        Ok(untold)
    }

    /// Forgets the membership: keys, pin, map. The machine key and the other preferences stay.
    fn forget(&mut self) -> std::io::Result<()> {
        self.session = None;
        self.engine = None;
        self.state.leave()?;
        self.map = None;
        self.map_unsaved = false;
        self.assembly = None;
        self.store.remove_map();
        Ok(())
    }

    fn status(&self) -> Status {
        let peers = self.engine.as_ref().map(Engine::peers).unwrap_or_default();
        status(&self.state.prefs, &self.progress, self.map.as_ref(), self.assembly.as_ref(), |key| {
            peers.iter().find(|peer| peer.key == *key).map_or_else(Traffic::default, |peer| Traffic {
                endpoint: peer.endpoint,
                last_handshake: peer.last_handshake,
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            })
        })
    }

    /// Takes the node out of the mesh: session, routes, TUN.
    async fn halt(&mut self) {
        self.session = None;
        self.progress = Progress { interface: self.options.interface.clone(), ..Default::default() };
        self.assembly = None;
        if let Err(error) = self.router.clear().await {
            tracing::warn!(%error, "routing could not all be undone");
        }
        self.engine = None;
    }

    /// Ends everything and stores what is not stored yet.
    pub(super) async fn stop(mut self) {
        self.halt().await;
        self.save_map();
    }

    fn persist(&self) -> Result<(), String> {
        self.store.save(&self.state).map_err(|e| e.to_string())
    }

    fn save(&self) {
        if let Err(error) = self.store.save(&self.state) {
            tracing::error!(%error, "the node's state is not stored");
        }
    }

    fn save_map(&mut self) {
        if self.map_unsaved
            && let Some(map) = &self.map
        {
            self.map_unsaved = false;
            if let Err(error) = self.store.save_map(map) {
                tracing::warn!(%error, "the map is not stored");
            }
        }
    }
}

/// Takes over the guest's configuration and gives its port.
fn adopt_guest(state: &mut State, path: &std::path::Path) -> Result<u16, DaemonError> {
    let settings = guest::read(path)?;
    let node = settings.node.ok_or_else(|| DaemonError::NoNode(path.to_owned()))?;
    let before = &state.prefs.login_server;
    if !before.is_empty() && *before != node.login_server {
        state.leave().map_err(DaemonError::Entropy)?;
    }
    state.prefs.adopt(&node, &settings.hostname);
    if let Some(key) = node.server_key {
        state.server_key = Some((key, true));
    }
    if !state.registered && node.auth_key.is_some() {
        state.auth_key = node.auth_key;
    }
    Ok(node.port)
}
