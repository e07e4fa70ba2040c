//! What a guest hook does in each phase: facts in, actions and lines for the task log out.
//!
//! Proxmox calls a hook before and after each start and stop of a guest, and waits for it with the guest's configuration locked (but
//! for `post-stop`, which holds no lock and may come after the next start). So what has to wait, or to change the guest, is left to a
//! job of its own ([`Action::Settle`]); the rest is bounded. docs/decisions/hooks.md.

mod place;
mod tun;

use std::fmt;
use std::str::FromStr;

use super::ledger::Ledger;
use super::mark::{Mark, TAG};
use crate::ident::{NodeName, Vmid};
use crate::pve::GuestFile;
pub use place::{HOOK_FILE, Place, place};
pub use tun::{Fault, Heal, HostFacts, MODULES, Module, Tun, check};

/// How long a router that is stopped is kept from routes that others can carry: longer than a stop takes. Its return ends it.
pub const DRAIN_SECS: u64 = 180;

/// When a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the guest starts; a failure keeps it from starting.
    PreStart,
    /// It runs.
    PostStart,
    /// Before it is stopped.
    PreStop,
    /// It has stopped.
    PostStop,
}

/// A text that is no phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a phase is pre-start, post-start, pre-stop or post-stop, not `{0}`")]
pub struct PhaseError(String);

impl FromStr for Phase {
    type Err = PhaseError;

    fn from_str(text: &str) -> Result<Self, PhaseError> {
        match text {
            "pre-start" => Ok(Self::PreStart),
            "post-start" => Ok(Self::PostStart),
            "pre-stop" => Ok(Self::PreStop),
            "post-stop" => Ok(Self::PostStop),
            other => Err(PhaseError(other.escape_default().take(40).collect())),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreStart => "pre-start",
            Self::PostStart => "post-start",
            Self::PreStop => "pre-stop",
            Self::PostStop => "post-stop",
        })
    }
}

/// What is seen of the guest, from files of the host alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The guest.
    pub vmid: Vmid,
    /// Its configuration; absent when it has none (any more).
    pub file: Option<GuestFile>,
    /// It runs.
    pub running: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Look whether the host has what the container needs, and heal what can be.
    Check,
    /// Bring names, notes and identity up to date, in a job of its own that nobody waits for.
    Settle,
    /// Tell the coordinator that this node is about to stop.
    Drain(NodeName),
    /// Tell the coordinator that this node has stopped.
    Depart(NodeName),
    /// Take the names of this guest without a client out of the mesh.
    Unname(Vmid),
}

/// What a phase asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// In this order.
    pub actions: Vec<Action>,
    /// For the task log.
    pub lines: Vec<String>,
}

/// What the guest is to us.
enum Kind {
    /// A node of ours.
    Node(Mark),
    /// A coordinator or a relay of ours.
    Server,
    /// A copy of a guest of ours.
    Copy(Mark),
    /// One of the admin's that has a name in the mesh.
    Attached,
    /// Nothing.
    Stranger,
}

fn kind(facts: &Facts, ledger: &Ledger) -> Kind {
    let config = facts.file.as_ref().map(GuestFile::config).unwrap_or_default();
    let tagged = config.tags.iter().any(|tag| tag == TAG);
    match Mark::find(&config.description).filter(|_| tagged) {
        Some(mark) if mark.vmid != facts.vmid => Kind::Copy(mark),
        Some(mark) if is_node(&mark.role) => Kind::Node(mark),
        Some(_) => Kind::Server,
        None if ledger.attached.contains_key(&facts.vmid) => Kind::Attached,
        None => Kind::Stranger,
    }
}

/// Whether a role takes part in the mesh.
pub(super) fn is_node(role: &str) -> bool {
    matches!(role, "node" | "exit-node" | "subnet-router")
}

/// Decides.
pub fn decide(phase: Phase, facts: &Facts, ledger: &Ledger) -> Decision {
    let vmid = facts.vmid;
    let mut decision = Decision::default();
    let kind = kind(facts, ledger);
    match (phase, &kind) {
        (_, Kind::Stranger) => {}
        (Phase::PreStart, Kind::Attached | Kind::Server) => {}
        (Phase::PreStart, Kind::Node(_)) => decision.actions.push(Action::Check),
        (Phase::PreStart, Kind::Copy(mark)) => {
            decision.actions.push(Action::Check);
            decision.lines.push(format!("guest {vmid} is a copy of {} ({}) and does not get its place in the mesh", mark.vmid, mark.name));
        }
        (Phase::PostStart, _) => decision.actions.push(Action::Settle),
        (Phase::PreStop, Kind::Node(mark)) => decision.actions.push(Action::Drain(mark.name.clone())),
        (Phase::PreStop, _) => {}
        // It comes without a lock, perhaps after the next start.
        (Phase::PostStop, _) if facts.running => decision.lines.push(format!("guest {vmid} runs again already; it stays as it is")),
        (Phase::PostStop, Kind::Node(mark)) => decision.actions.push(Action::Depart(mark.name.clone())),
        // It has moved on meanwhile and may run there, or it was removed: both are seen by comparing.
        (Phase::PostStop, Kind::Attached) if facts.file.is_none() => {
            decision.lines.push(format!("guest {vmid} is on this host no more; `pvemesh sync` follows it"));
        }
        (Phase::PostStop, Kind::Attached) => decision.actions.push(Action::Unname(vmid)),
        (Phase::PostStop, Kind::Copy(_) | Kind::Server) => {}
    }
    decision
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::super::ledger::Attached;
    use super::super::mark::{Identity, RunId};
    use super::*;

    fn vmid(n: u32) -> Vmid {
        Vmid::try_from(n).unwrap()
    }

    fn facts(marked: u32, role: &str) -> Facts {
        let name = "exit-1".parse().unwrap();
        let mark = Mark {
            vmid: vmid(marked),
            role: role.to_owned(),
            name,
            run: RunId::new(1),
            ready: true,
            identity: Identity::default(),
            fleet: None,
        };
        let text = format!("description: {}\ntags: exit-node;pvemesh\n", mark.attach("x").replace('\n', "%0A"));
        Facts { vmid: vmid(101), file: Some(GuestFile::parse(&text)), running: false }
    }

    fn actions(phase: Phase, facts: &Facts) -> Vec<Action> {
        decide(phase, facts, &Ledger::default()).actions
    }

    #[test]
    fn a_node_is_checked_settled_drained_and_reported_gone() {
        let node = facts(101, "exit-node");
        let name: NodeName = "exit-1".parse().unwrap();
        assert_eq!(actions(Phase::PreStart, &node), [Action::Check]);
        assert_eq!(actions(Phase::PostStart, &node), [Action::Settle]);
        assert_eq!(actions(Phase::PreStop, &node), [Action::Drain(name.clone())]);
        assert_eq!(actions(Phase::PostStop, &node), [Action::Depart(name)]);
    }

    #[test]
    fn a_late_post_stop_does_nothing_to_a_guest_that_runs_again() {
        let again = Facts { running: true, ..facts(101, "exit-node") };
        let decision = decide(Phase::PostStop, &again, &Ledger::default());
        assert!(decision.actions.is_empty() && decision.lines[0].contains("runs again"), "{decision:?}");
    }

    #[test]
    fn stopping_a_copy_does_not_touch_the_original_s_node() {
        let copy = facts(100, "exit-node");
        assert_eq!((actions(Phase::PreStop, &copy), actions(Phase::PostStop, &copy)), (vec![], vec![]));
        assert_eq!(actions(Phase::PostStart, &copy), [Action::Settle]);
        assert!(decide(Phase::PreStart, &copy, &Ledger::default()).lines[0].contains("copy of 100"));
    }

    #[test]
    fn a_coordinator_is_no_node() {
        let server = facts(101, "coordinator");
        for phase in [Phase::PreStart, Phase::PreStop, Phase::PostStop] {
            assert_eq!(actions(phase, &server), [], "{phase}");
        }
    }

    #[test]
    fn guests_of_others_are_left_alone_unless_attached() {
        let other = Facts { vmid: vmid(200), file: Some(GuestFile::parse("name: nas\n")), running: false };
        let gone = Facts { file: None, ..other.clone() };
        for phase in [Phase::PreStart, Phase::PostStart, Phase::PreStop, Phase::PostStop] {
            assert_eq!((actions(phase, &other), actions(phase, &gone)), (vec![], vec![]), "{phase}");
        }
        let attached = Attached {
            name: "nas".parse().unwrap(),
            container: false,
            macs: Vec::new(),
            route: false,
            record: None,
            addresses: Vec::new(),
            approved: Vec::new(),
        };
        let ledger = Ledger { attached: [(vmid(200), attached)].into(), ..Ledger::default() };
        assert_eq!(decide(Phase::PostStart, &other, &ledger).actions, [Action::Settle]);
        assert_eq!(decide(Phase::PostStop, &other, &ledger).actions, [Action::Unname(vmid(200))]);
        // After a migration it runs elsewhere.
        assert_eq!(decide(Phase::PostStop, &gone, &ledger).actions, []);
        assert_eq!(decide(Phase::PostStart, &gone, &ledger).actions, [Action::Settle]);
    }

    #[test]
    fn phases_are_read_as_proxmox_names_them() {
        for phase in [Phase::PreStart, Phase::PostStart, Phase::PreStop, Phase::PostStop] {
            assert_eq!(phase.to_string().parse::<Phase>().unwrap(), phase);
        }
        assert!("pre-strat".parse::<Phase>().is_err());
    }
}
