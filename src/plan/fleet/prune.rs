//! The guests of a fleet that its file does not declare any more, and the steps that remove them.

use std::collections::BTreeMap;

use super::{Blocked, Draft, View, Work};
use crate::ident::Vmid;
use crate::plan::destroy::{self, Removal};
use crate::plan::mark::{FleetName, Mark, TAG};
use crate::plan::observed::{Observed, Target};
use crate::pve::reply::GuestSummary;

/// What goes, and what is of the fleet and stays all the same.
#[derive(Debug, Default)]
pub struct Pruned {
    /// The removals, by number.
    pub removals: Vec<Removal>,
    /// What is worth saying.
    pub remarks: Vec<String>,
}

/// Plans the removal of every guest that was made for `fleet` and is not declared.
///
/// `undeclared` are containers with our tag that the file does not name; one whose mark was not written for its very number and for this fleet is
/// not looked at further. A coordinator stays: every other guest hangs on it.
///
/// # Errors
/// With the first one that cannot be removed now; nothing should be begun then.
pub fn prune(
    fleet: &FleetName,
    view: &View,
    draft: &Draft,
    undeclared: &BTreeMap<Vmid, Target>,
    known_coordinator: Option<Option<Vmid>>,
) -> Result<Pruned, Blocked> {
    let mut pruned = Pruned::default();
    // The image stays as long as some guest is made from it, be it in this very run.
    let made = draft.works.iter().filter_map(|(_, work)| match work {
        Work::Create(plan) => Some(GuestSummary {
            vmid: plan.vmid,
            host: plan.host.clone(),
            container: true,
            name: plan.name.to_string(),
            running: false,
            tags: vec![TAG.to_owned()],
            managed: false,
        }),
        _ => None,
    });
    let mut observed = Observed { guests: view.observed.guests.iter().cloned().chain(made).collect(), ..view.observed.clone() };
    for (vmid, target) in undeclared {
        let Some(mark) = Mark::of_container(*vmid, &target.config).filter(|mark| mark.fleet.as_ref() == Some(fleet)) else { continue };
        if mark.role == "coordinator" {
            pruned.remarks.push(format!("{vmid} ({}) is the fleet's coordinator and stays: pvemesh destroy {vmid}", mark.name));
            continue;
        }
        observed.target = Some(target.clone());
        let removal = destroy::destroy(*vmid, &observed, known_coordinator).map_err(|refusal| Blocked { vmid: *vmid, refusal })?;
        observed.guests.retain(|guest| guest.vmid != *vmid);
        pruned.removals.push(removal);
    }
    Ok(pruned)
}
