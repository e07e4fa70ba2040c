//! Who the node is and what it wants, as kept on disk: keys, pin, registration, preferences.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::state::{State, Store};
use super::{DaemonError, guest, rejoin};
use crate::ident::{DiscoPublic, MachinePublic, NodePrivate};
use crate::node::Prefs;
use crate::sys::control::{Identity, Pin};
use crate::sys::dial::Origin;

/// The state file's content, written whenever it changes.
#[derive(Debug)]
pub(super) struct Membership {
    store: Store,
    state: State,
}

impl Membership {
    /// Reads what is on disk and takes the guest's configuration over, if there is one. Gives the port that it asks for.
    pub(super) fn load(store: Store, guest_config: Option<&Path>) -> Result<(Self, Option<u16>), DaemonError> {
        let mut state = store.load()?;
        rejoin::obey(&store, store.directory(), &mut state)?;
        let mut port = None;
        if let Some(path) = guest_config {
            port = Some(adopt_guest(&mut state, path)?);
            store.save(&state)?;
        }
        Ok((Self { store, state }, port))
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn prefs(&self) -> &Prefs {
        &self.state.prefs
    }

    /// What the control session needs to know. `renew` asks for another node key, `automatic` without anybody waiting for it.
    pub(super) fn identity(&self, disco: DiscoPublic, renew: bool, automatic: bool) -> Identity {
        Identity {
            url: self.state.prefs.login_server.clone(),
            pin: self.state.server_key.map(|(key, strict)| Pin { key, strict }),
            authority: self.state.prefs.ca_file.clone(),
            address: self.state.coordinator,
            registered: self.state.registered,
            renew,
            automatic,
            machine: Arc::new(self.state.machine.clone()),
            node: Arc::new(self.state.node.clone()),
            previous: self.state.previous,
            auth_key: self.state.auth_key.clone(),
            disco,
        }
    }

    /// Checks the coordinator's address; says whether it is another one than before, which means a new membership.
    pub(super) fn moves(&self, prefs: &Prefs) -> Result<bool, String> {
        if prefs.login_server.is_empty() {
            return Err("no coordinator is known; name it with --login-server".to_owned());
        }
        prefs.login_server.parse::<Origin>().map_err(|e| e.to_string())?;
        let before = &self.state.prefs.login_server;
        Ok(!before.is_empty() && *before != prefs.login_server)
    }

    /// Changes the state and writes it.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut State)) -> Result<(), DaemonError> {
        change(&mut self.state);
        self.store.save(&self.state)
    }

    /// Changes the state where nobody waits for the outcome.
    fn note(&mut self, change: impl FnOnce(&mut State)) {
        if let Err(error) = self.change(change) {
            tracing::error!(%error, "the node's state is not stored");
        }
    }

    pub(super) fn note_server_key(&mut self, key: MachinePublic) {
        self.note(|state| state.server_key = Some((key, false)));
    }

    /// The coordinator has let the node in. A join key that was shown has served, and a new node key takes the old one's place.
    pub(super) fn note_admission(&mut self, login: String, new_key: Option<NodePrivate>, key_shown: bool) {
        self.note(|state| {
            state.registered = true;
            state.login = login;
            state.auth_key = state.auth_key.take().filter(|_| !key_shown);
            if let Some(key) = new_key {
                state.previous = state.node.public();
                state.node = key;
            }
        });
    }

    /// The coordinator does not know the node any more: it joins like a new one.
    pub(super) fn note_removal(&mut self) {
        self.note(|state| state.registered = false);
    }

    pub(super) fn note_coordinator(&mut self, address: IpAddr) {
        if self.state.coordinator != Some(address) {
            self.note(|state| state.coordinator = Some(address));
        }
    }

    pub(super) fn note_addresses(&mut self, addresses: &[ipnet::IpNet]) {
        self.note(|state| state.addresses = addresses.to_vec());
    }

    /// Forgets what belongs to the coordinator. The machine key and the preferences stay.
    pub(super) fn forget(&mut self) -> std::io::Result<()> {
        self.state.leave()
    }
}

/// Takes over the guest's configuration and gives its port.
fn adopt_guest(state: &mut State, path: &Path) -> Result<u16, DaemonError> {
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
