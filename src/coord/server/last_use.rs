//! Who used single-use keys up a moment ago.
//!
//! `tailscale up --force-reauth --auth-key` sends the key twice: once with the old node key, a request that the client gives up at once
//! and that may arrive all the same, and then with a new one. To its user that is one use. So the machine that used a key up may come
//! with it again within [`REPEAT_WITHIN`], unless an admin has put its node out since. Not stored: after a restart a key is used up.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ident::MachinePublic;
use crate::time::Time;

/// How long the machine that used a key up may repeat it.
pub const REPEAT_WITHIN: Duration = Duration::from_secs(60);

/// The latest uses, by the keys' numbers; those of the last minute only.
#[derive(Debug, Default)]
pub(super) struct LastUses(BTreeMap<i64, (MachinePublic, Time)>);

impl LastUses {
    pub(super) fn note(&mut self, key: i64, machine: MachinePublic, now: Time) {
        self.0.retain(|_, (_, used)| *used + REPEAT_WITHIN > now);
        self.0.entry(key).or_insert((machine, now));
    }

    pub(super) fn may_repeat(&self, key: i64, machine: &MachinePublic, now: Time) -> bool {
        self.0.get(&key).is_some_and(|(by, used)| by == machine && *used + REPEAT_WITHIN > now)
    }

    /// The machine's node was put out: what it used before counts as used.
    pub(super) fn forget(&mut self, machine: &MachinePublic) {
        self.0.retain(|_, (by, _)| by != machine);
    }
}
