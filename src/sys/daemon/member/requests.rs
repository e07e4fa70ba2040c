//! What the user asks of the node, through the local socket.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Member, Renew};
use crate::node::trial::{Trial, is_risky};
use crate::node::{Prefs, PrefsChange, Sources, Status, dns_status, resolve, status};
use crate::sys::clock;
use crate::sys::control;
use crate::sys::daemon::outside::Outside;
use crate::sys::daemon::watch::Landmarks;
use crate::sys::dial::Origin;
use crate::sys::local_api::{Refused, Reply, Request, Up};

/// How long logging out may take.
const LOGOUT_LIMIT: Duration = Duration::from_secs(15);

const NO_MAP: &str = "the coordinator has not told this node anything yet; join with `pvemesh node up`";

impl Member {
    /// Answers the local socket.
    pub(in crate::sys::daemon) async fn answer(&mut self, request: Request) -> Result<Reply, Refused> {
        match request {
            Request::Prefs => return Ok(self.prefs()),
            Request::Set(change) => {
                self.set(change).await?;
                return Ok(self.prefs());
            }
            Request::Dns => {
                let map = self.map.get().ok_or(NO_MAP)?;
                let (listening, led_by) = (self.effect.resolver_addresses(), self.effect.name_manager());
                return Ok(Reply::Dns(Box::new(dns_status(map, self.membership.prefs(), listening, led_by))));
            }
            Request::Query(query) => {
                let map = self.map.get().ok_or(NO_MAP)?;
                return Ok(Reply::Name(Box::new(resolve(map, self.effect.exit_node(), &query.name, query.kind))));
            }
            Request::Status | Request::Stop | Request::Netcheck | Request::Ping(_) => {}
            Request::Up(up) => self.up(*up).await?,
            Request::Down => {
                self.membership.change(|state| state.prefs.want_running = false)?;
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
        Reply::Prefs(Box::new(self.membership.prefs().clone()))
    }

    async fn up(&mut self, up: Up) -> Result<(), Refused> {
        let mut prefs = self.membership.prefs().clone();
        up.change.apply(&mut prefs);
        prefs.want_running = true;
        self.point_to(&prefs)?;
        let expired = self.map.get().is_some_and(|map| map.has_expired(clock::wall()));
        // A page that waits for the user goes on waiting, unless there is something new to offer.
        let waits = self.progress.logging_in && !self.progress.auth_url.is_empty() && up.auth_key.is_none();
        let renew = if (up.force_reauth || expired) && !waits { Renew::Asked } else { Renew::No };
        let settled = self.membership.state().registered && self.progress.online;
        // A settled node keeps a join key for the day its own key expires.
        let begins_anew = renew != Renew::No || (up.auth_key.is_some() && !settled) || !self.progress.refusal.is_empty();
        let other_trust = prefs.ca_file != self.membership.prefs().ca_file;
        let trial = self.trial_of(&prefs).await;
        self.membership.change(|state| {
            state.prefs = prefs;
            state.auth_key = up.auth_key.or(state.auth_key.take());
        })?;
        if begins_anew || other_trust || !self.effect.runs() || !self.session.runs() {
            return Ok(self.go(renew).await?);
        }
        if !self.progress.online {
            self.session.wake();
        }
        self.publish();
        self.put_into_effect().await;
        trial.into_iter().for_each(|trial| self.watch.begin(trial));
        Ok(())
    }

    /// What is to be watched if these preferences take the place of those in force, and what is reached before they do.
    async fn trial_of(&self, prefs: &Prefs) -> Option<(Trial, Landmarks)> {
        let before = self.membership.prefs();
        if !self.effect.runs() || !is_risky(before, prefs) {
            return None;
        }
        let state = self.membership.state();
        let port = prefs.login_server.parse().ok().map(|origin: Origin| origin.port);
        let coordinator = state.coordinator.zip(port).filter(|_| self.progress.online);
        let landmarks = Landmarks {
            gateway: self.effect.surroundings().gateway,
            past_the_tunnel: !prefs.exit_node.is_empty() && !prefs.exit_node_allow_lan_access,
            coordinator: coordinator.map(SocketAddr::from),
        };
        Trial::begin(clock::now(), before, prefs, landmarks.look().await).map(|trial| (trial, landmarks))
    }

    /// Goes back to these preferences.
    pub(super) async fn take_back(&mut self, prefs: Prefs) {
        if let Err(error) = self.membership.change(|state| state.prefs = prefs) {
            tracing::error!("the change could not be taken back: {error}");
            return;
        }
        self.publish();
        self.put_into_effect().await;
    }

    async fn set(&mut self, change: PrefsChange) -> Result<(), Refused> {
        let mut prefs = self.membership.prefs().clone();
        change.apply(&mut prefs);
        let was = self.membership.prefs().want_running;
        let before = self.membership.prefs();
        let moved = prefs.login_server != before.login_server || prefs.ca_file != before.ca_file;
        if prefs.want_running {
            self.point_to(&prefs)?;
        }
        let wants = prefs.want_running;
        let trial = self.trial_of(&prefs).await;
        self.membership.change(|state| state.prefs = prefs)?;
        match (was, wants) {
            (true, false) => self.halt().await,
            (_, true) if !was || moved => self.go(Renew::No).await?,
            _ => {
                self.publish();
                self.put_into_effect().await;
            }
        }
        trial.into_iter().for_each(|trial| self.watch.begin(trial));
        Ok(())
    }

    /// Checks the coordinator's address; a new one means a new membership.
    fn point_to(&mut self, prefs: &Prefs) -> Result<(), Refused> {
        if self.membership.moves(prefs)? {
            self.forget().map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Gives the membership up. A coordinator that cannot be told, for it is gone or another one now, does not keep the user in it; what
    /// it was not told is said.
    async fn log_out(&mut self) -> Result<Option<String>, Refused> {
        let mut untold = None;
        if self.membership.state().registered {
            let (identity, report) = (self.membership.identity(self.disco.public(), false, false), self.report());
            let told = tokio::time::timeout(LOGOUT_LIMIT, control::log_out(&identity, &report)).await;
            let told = told.unwrap_or_else(|_| Err(format!("no answer within {} s", LOGOUT_LIMIT.as_secs())));
            untold = told.err().map(|error| format!("the coordinator could not be told, remove the node there: {error}"));
        }
        self.halt().await;
        self.forget().map_err(|e| e.to_string())?;
        self.membership.change(|state| {
            state.prefs.want_running = false;
            state.prefs.login_server.clear();
        })?;
        Ok(untold)
    }

    /// Forgets the membership: keys, pin, map. The machine key and the other preferences stay.
    fn forget(&mut self) -> std::io::Result<()> {
        self.session.end();
        self.exit.end();
        self.effect.forget();
        self.membership.forget()?;
        self.map.forget();
        Ok(())
    }

    fn status(&self) -> Status {
        let sources = Sources {
            prefs: self.membership.prefs(),
            progress: &self.progress,
            map: self.map.get(),
            assembly: self.effect.assembly(),
            auto: self.exit.choice(),
            now: clock::wall(),
        };
        let mut status = status(sources, self.effect.traffic());
        status.health.extend(self.effect.upkeep().trouble());
        status.health.extend(self.effect.name_trouble());
        status.health.extend(self.watch.note());
        status.health.extend(self.effect.outside().and_then(Outside::health));
        status.offloads = self.effect.offloads();
        status.repairs = self.effect.upkeep().repairs().clone();
        status
    }
}
