//! Nodes that asked to join without a join key and wait for someone's approval.

use std::collections::BTreeMap;
use std::time::Duration;

use rand_core::RngCore;

use super::join_key::hex;
use crate::ident::{MachinePublic, NodePublic};
use crate::time::{Time, Wall};
use crate::wire::control::Hostinfo;

/// Most that wait at once; the one waiting longest gives way.
pub(super) const MAX_WAITING: usize = 1024;
/// How long one waits before it has to ask again, as stock coordinators have it.
pub(super) const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// What an id starts with.
const START: &str = "pvmesh-authreq-";

/// One that waits. Approval is bound to exactly this machine and node key.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) machine: MachinePublic,
    pub(super) key: NodePublic,
    pub(super) version: u32,
    pub(super) ephemeral: bool,
    pub(super) hostinfo: Hostinfo,
    /// The tags it claims.
    pub(super) tags: Vec<String>,
    pub(super) asked: Wall,
    until: Time,
}

/// Where a registration stands, as far as its holder is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitingState {
    /// It waits for approval.
    Waiting,
    /// It was approved a short while ago.
    Approved,
    /// It never was, has lapsed, or was approved long ago.
    Unknown,
}

/// Those that wait, by id.
#[derive(Debug, Default)]
pub(super) struct WaitingRoom {
    waiting: BTreeMap<String, Waiting>,
    /// Those let in a short while ago, and until when that is remembered.
    approved: BTreeMap<String, Time>,
}

impl WaitingRoom {
    /// Adds one, or brings the one up to date that already waits with the same keys. Gives its id.
    pub(super) fn enter(&mut self, rng: &mut impl RngCore, now: Time, mut waiting: Waiting) -> String {
        if let Some((id, known)) = self.waiting.iter_mut().find(|(_, w)| w.machine == waiting.machine && w.key == waiting.key) {
            *known = Waiting { asked: known.asked, until: known.until, ..waiting };
            return id.clone();
        }
        if self.waiting.len() >= MAX_WAITING
            && let Some(longest) = self.waiting.iter().min_by_key(|(_, w)| w.until).map(|(id, _)| id.clone())
        {
            self.waiting.remove(&longest);
        }
        let mut bytes = [0; 12];
        rng.fill_bytes(&mut bytes);
        let id = format!("{START}{}", hex(&bytes));
        waiting.until = now + PATIENCE;
        self.waiting.insert(id.clone(), waiting);
        id
    }

    pub(super) fn get(&self, id: &str) -> Option<&Waiting> {
        self.waiting.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Waiting)> {
        self.waiting.iter()
    }

    pub(super) fn leave(&mut self, id: &str) -> Option<Waiting> {
        self.waiting.remove(id)
    }

    /// Remembers for a while that one was let in.
    pub(super) fn remember(&mut self, id: &str, now: Time) {
        if self.approved.len() >= MAX_WAITING
            && let Some(oldest) = self.approved.iter().min_by_key(|(_, until)| **until).map(|(id, _)| id.clone())
        {
            self.approved.remove(&oldest);
        }
        self.approved.insert(id.to_owned(), now + PATIENCE);
    }

    pub(super) fn state(&self, id: &str) -> WaitingState {
        if self.waiting.contains_key(id) {
            WaitingState::Waiting
        } else if self.approved.contains_key(id) {
            WaitingState::Approved
        } else {
            WaitingState::Unknown
        }
    }

    /// Lets those go whose patience has ended. Says whether any did.
    pub(super) fn expire(&mut self, now: Time) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|_, w| w.until > now);
        self.approved.retain(|_, until| *until > now);
        self.waiting.len() != before
    }

    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.waiting.values().map(|w| w.until).chain(self.approved.values().copied()).min()
    }
}

impl Waiting {
    pub(super) fn new(machine: MachinePublic, key: NodePublic, version: u32, hostinfo: Hostinfo, asked: Wall) -> Self {
        Self { machine, key, version, ephemeral: false, hostinfo, tags: Vec::new(), asked, until: Time::default() }
    }
}
