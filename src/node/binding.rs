//! Whose keys these are: a node in a guest is bound to the guest it was made in.
//!
//! A clone and a copy restored beside the original start with the original's files. Proxmox gives a clone (and a restore with `unique`)
//! another hardware address, and nothing else inside tells the two apart; so a node that finds another address than the one its keys
//! were made for takes itself for a copy and discards them. What the guest cannot see (a copy with the same address, a snapshot rolled
//! back) its host sees, and hands over a [`Renewal`]. docs/decisions/identity.md.

use serde::{Deserialize, Serialize};

use crate::ident::{Mac, Vmid};
use crate::settings::Renewal;

/// What a node's keys belong to, kept beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The hardware address of the guest's interface when the keys were made, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The guest that the configuration was for.
    pub vmid: Vmid,
    /// Which of the guest's identities these keys are, as its host counts.
    #[serde(default)]
    pub generation: u64,
    /// The keys were discarded, and no others are made before a join key comes.
    #[serde(default)]
    pub waiting: bool,
}

/// What a node finds when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    /// The interface's hardware address, if there is such an interface.
    pub mac: Option<Mac>,
    /// The guest that the configuration is for.
    pub vmid: Vmid,
    /// The configuration brings a join key.
    pub has_key: bool,
}

/// Why keys are discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The hardware address is another one.
    Copied {
        /// The one that the keys were made for.
        was: Mac,
        /// The one of now.
        is: Mac,
    },
    /// The configuration is for another guest.
    OtherGuest {
        /// The guest that the keys were made for.
        was: Vmid,
    },
    /// The host says so.
    Renewed,
}

/// What becomes of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They are this guest's.
    Keep,
    /// There are none yet, or none that belong to another; they belong to this guest from now on.
    Bind(Binding),
    /// They are somebody else's, or of the past: discard them, and join with the key at hand.
    Renew(Binding, Cause),
    /// They are, and there is no key to join with: discard them and any join key that came with them, and wait for one.
    Discard(Binding, Cause),
    /// They are discarded already, and there still is no key.
    Wait,
}

/// Decides. `kept` is what was found beside the keys, `delivered` what the host has handed over and nobody has taken yet.
pub fn judge(kept: Option<&Binding>, here: &Here, delivered: Option<&Renewal>) -> Verdict {
    let generation = kept.map_or(0, |kept| kept.generation);
    if let Some(renewal) = delivered.filter(|renewal| is_news(kept, renewal)) {
        let binding = Binding { mac: here.mac, vmid: renewal.vmid, generation: renewal.generation, waiting: renewal.auth_key.is_none() };
        return match renewal.auth_key {
            Some(_) => Verdict::Renew(binding, Cause::Renewed),
            None => Verdict::Discard(binding, Cause::Renewed),
        };
    }
    let fresh = Binding { mac: here.mac, vmid: here.vmid, generation, waiting: false };
    let Some(kept) = kept else { return Verdict::Bind(fresh) };
    if kept.waiting {
        // The one that came with the files was discarded with them, so this one is new.
        return if here.has_key { Verdict::Bind(fresh) } else { Verdict::Wait };
    }
    if kept.vmid != here.vmid {
        // A configuration for this guest: its key is, too.
        let cause = Cause::OtherGuest { was: kept.vmid };
        return if here.has_key { Verdict::Renew(fresh, cause) } else { Verdict::Discard(Binding { waiting: true, ..fresh }, cause) };
    }
    match (kept.mac, here.mac) {
        (Some(was), Some(is)) if was != is => Verdict::Discard(Binding { waiting: true, ..fresh }, Cause::Copied { was, is }),
        (None, Some(_)) => Verdict::Bind(fresh),
        _ => Verdict::Keep,
    }
}

/// Whether a renewal is not one that was taken over before.
fn is_news(kept: Option<&Binding>, renewal: &Renewal) -> bool {
    kept.is_none_or(|kept| kept.vmid != renewal.vmid || renewal.generation > kept.generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::Secret;

    const ONE: Mac = Mac::from_bytes([0xbc, 0x24, 0x11, 0, 0, 1]);
    const OTHER: Mac = Mac::from_bytes([0xbc, 0x24, 0x11, 0, 0, 2]);

    fn vmid(n: u32) -> Vmid {
        Vmid::try_from(n).unwrap()
    }

    fn bound() -> Binding {
        Binding { mac: Some(ONE), vmid: vmid(101), generation: 2, waiting: false }
    }

    fn here() -> Here {
        Here { mac: Some(ONE), vmid: vmid(101), has_key: false }
    }

    fn renewal(n: u32, generation: u64, key: bool) -> Renewal {
        let auth_key = key.then(|| Secret::new("k"));
        Renewal { vmid: vmid(n), hostname: "exit-2".parse().unwrap(), generation, auth_key }
    }

    #[test]
    fn the_first_start_binds_and_later_ones_keep() {
        let first = judge(None, &here(), None);
        assert_eq!(first, Verdict::Bind(Binding { generation: 0, ..bound() }));
        assert_eq!(judge(Some(&bound()), &here(), None), Verdict::Keep);
        // A start before the interface was there, and one whose interface is missing now, are no copies.
        let blind = Binding { mac: None, ..bound() };
        assert_eq!(judge(Some(&blind), &here(), None), Verdict::Bind(bound()));
        assert_eq!(judge(Some(&bound()), &Here { mac: None, ..here() }, None), Verdict::Keep);
    }

    #[test]
    fn a_copy_discards_the_keys_and_the_join_key_that_came_with_them() {
        let copied = Here { mac: Some(OTHER), has_key: true, ..here() };
        let waiting = Binding { mac: Some(OTHER), waiting: true, ..bound() };
        assert_eq!(judge(Some(&bound()), &copied, None), Verdict::Discard(waiting, Cause::Copied { was: ONE, is: OTHER }));
        assert_eq!(judge(Some(&waiting), &Here { has_key: false, ..copied }, None), Verdict::Wait);
        let joined = Binding { waiting: false, ..waiting };
        assert_eq!(judge(Some(&waiting), &copied, None), Verdict::Bind(joined), "a key that comes later is its own");
        assert_eq!(judge(Some(&joined), &Here { has_key: false, ..copied }, None), Verdict::Keep);
    }

    #[test]
    fn a_copy_that_was_told_who_it_is_joins_at_once() {
        let told = Here { mac: Some(OTHER), vmid: vmid(102), has_key: true };
        let Verdict::Renew(binding, Cause::OtherGuest { .. }) = judge(Some(&bound()), &told, None) else { panic!("no renewal") };
        assert_eq!((binding.vmid, binding.mac, binding.waiting), (vmid(102), Some(OTHER), false));
        let without = judge(Some(&bound()), &Here { has_key: false, ..told }, None);
        assert!(matches!(without, Verdict::Discard(Binding { waiting: true, .. }, _)), "{without:?}");
    }

    #[test]
    fn the_host_renews_once_per_generation() {
        let new = renewal(101, 3, true);
        let Verdict::Renew(binding, Cause::Renewed) = judge(Some(&bound()), &here(), Some(&new)) else { panic!("no renewal") };
        assert_eq!(binding, Binding { generation: 3, ..bound() });
        assert_eq!(judge(Some(&binding), &here(), Some(&new)), Verdict::Keep, "the same one again, as after a kill");
        assert_eq!(judge(Some(&bound()), &here(), Some(&renewal(101, 1, true))), Verdict::Keep, "one of the past");
        let copy = judge(Some(&bound()), &here(), Some(&renewal(102, 1, true)));
        assert!(matches!(copy, Verdict::Renew(Binding { generation: 1, .. }, _)), "a copy counts for itself: {copy:?}");
    }

    #[test]
    fn a_host_may_take_the_keys_away_without_giving_others() {
        let verdict = judge(Some(&bound()), &here(), Some(&renewal(102, 1, false)));
        let Verdict::Discard(binding, Cause::Renewed) = verdict else { panic!("{verdict:?}") };
        assert!(binding.waiting);
        assert_eq!(judge(Some(&binding), &here(), None), Verdict::Wait);
        // It may change its mind.
        assert!(matches!(judge(Some(&binding), &here(), Some(&renewal(102, 2, true))), Verdict::Renew(..)));
    }
}
