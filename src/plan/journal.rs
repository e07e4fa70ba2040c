//! What a run has begun, kept in a file until it has ended, so that the next run can take back what this one left.

use serde::{Deserialize, Serialize};

use super::create::Plan;
use super::mark::{Mark, RunId};
use super::step::Undo;
use crate::ident::{NodeName, Vmid};
use crate::pve::HostName;
use crate::pve::reply::ContainerConfig;

/// A run's journal. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The guest being made.
    pub vmid: Vmid,
    /// Its name.
    pub name: NodeName,
    /// Its role's name.
    pub role: String,
    /// The run.
    pub run: RunId,
    /// What takes back the steps begun so far, in their order.
    pub undo: Vec<Undo>,
}

/// What a journal found on the next run asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// The run had come to its end; only its journal was left.
    Finished,
    /// Take these back, in this order.
    TakeBack(Vec<Undo>),
}

impl Journal {
    /// The journal of a plan nothing of which has begun.
    pub fn new(plan: &Plan) -> Self {
        Self { vmid: plan.vmid, name: plan.name.clone(), role: plan.role.to_owned(), run: plan.run, undo: Vec::new() }
    }

    /// The host of the guest that has to be entered to take it back, if one has to be.
    pub fn enters(&self) -> Option<&HostName> {
        self.undo.iter().find_map(Undo::enters)
    }

    /// What to do about it, given the configuration of the container that now has the number.
    pub fn recover(&self, there: Option<&ContainerConfig>) -> Recovery {
        let finished =
            there.and_then(|config| Mark::of_container(self.vmid, config)).is_some_and(|mark| mark.run == self.run && mark.ready);
        if finished { Recovery::Finished } else { Recovery::TakeBack(self.undo.iter().rev().cloned().collect()) }
    }
}
