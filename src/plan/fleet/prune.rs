//! The guests of a fleet that its file does not declare any more, and the steps that remove them.

use std::collections::BTreeMap;

use super::{Blocked, Draft, View, Work, planned};
use crate::ident::Vmid;
use crate::plan::destroy::{self, Removal};
use crate::plan::mark::{FleetName, Mark};
use crate::plan::observed::{Observed, Target};

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
/// not looked at further. A coordinator stays, since every other guest hangs on it, and so does a guest whose making has not come to its end.
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
        Work::Create(plan) => Some(planned(plan)),
        _ => None,
    });
    let mut observed = Observed { guests: view.observed.guests.iter().cloned().chain(made).collect(), ..view.observed.clone() };
    for (vmid, target) in undeclared {
        let Some(mark) = Mark::of_container(*vmid, &target.config).filter(|mark| mark.fleet.as_ref() == Some(fleet)) else { continue };
        if mark.role == "coordinator" {
            pruned.remarks.push(format!("{vmid} ({}) is the fleet's coordinator and stays: pvemesh destroy {vmid}", mark.name));
            continue;
        }
        if !mark.ready {
            // Perhaps by somebody who makes it at this moment.
            let next = format!("pvemesh resume, or pvemesh destroy {vmid}");
            pruned.remarks.push(format!("{vmid} ({}) was begun by a run that has not come to its end, and stays: {next}", mark.name));
            continue;
        }
        observed.target = Some(target.clone());
        let removal = destroy::destroy(*vmid, &observed, known_coordinator).map_err(|refusal| Blocked { vmid: *vmid, refusal })?;
        observed.guests.retain(|guest| guest.vmid != *vmid);
        pruned.removals.push(removal);
    }
    Ok(pruned)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;
    use crate::plan::mark::TAG;
    use crate::plan::mark::{Identity, RunId};
    use crate::plan::observed::Hookscript;
    use crate::plan::refusal::Refusal;
    use crate::pve::Principal;
    use crate::pve::reply::ContainerConfig;
    use crate::pve::reply::GuestSummary;

    fn vmid(number: u32) -> Vmid {
        number.try_into().unwrap()
    }

    /// A guest with the mark of `marked`.
    fn target(marked: u32, role: &str, fleet: Option<&str>, ready: bool) -> Target {
        let mark = Mark {
            vmid: vmid(marked),
            role: role.to_owned(),
            name: format!("n{marked}").parse().unwrap(),
            run: RunId::new(1),
            ready,
            identity: Identity::default(),
            fleet: fleet.map(|name| name.parse().unwrap()),
        };
        let config = ContainerConfig { description: mark.attach("x"), tags: vec![TAG.to_owned()], ..ContainerConfig::default() };
        Target { host: "pve".parse().unwrap(), config, running: false }
    }

    fn pruned(targets: &BTreeMap<Vmid, Target>) -> Result<Pruned, Blocked> {
        let summary = |(vmid, target): (&Vmid, &Target)| GuestSummary {
            vmid: *vmid,
            host: target.host.clone(),
            container: true,
            name: format!("n{vmid}"),
            running: false,
            tags: vec![TAG.to_owned()],
            managed: false,
        };
        let observed = Observed {
            principal: Principal::RootTicket,
            local: None,
            hosts: Vec::new(),
            guests: targets.iter().map(summary).collect(),
            mesh: Vec::new(),
            goldens: Vec::new(),
            target: None,
            hookscript: Hookscript::default(),
        };
        let view = View { observed, targets: BTreeMap::new() };
        prune(&"home".parse().unwrap(), &view, &Draft::default(), targets, None)
    }

    #[test]
    fn only_whole_guests_of_the_fleet_go_and_no_coordinator() {
        let targets = BTreeMap::from([
            (vmid(100), target(100, "coordinator", Some("home"), true)),
            (vmid(101), target(101, "exit-node", Some("home"), true)),
            (vmid(102), target(102, "exit-node", Some("office"), true)),
            (vmid(103), target(103, "exit-node", None, true)),
            (vmid(104), target(101, "exit-node", Some("home"), true)),
            (vmid(105), target(105, "node", Some("home"), false)),
            (vmid(106), target(106, "relay", Some("home"), true)),
        ]);
        let pruned = pruned(&targets).unwrap();
        assert_eq!(pruned.removals.iter().map(|removal| u32::from(removal.vmid)).collect::<Vec<_>>(), [101, 106]);
        assert!(pruned.remarks[0].contains("pvemesh destroy 100") && pruned.remarks[1].contains("105 (n105)"), "{:?}", pruned.remarks);
    }

    #[test]
    fn one_that_is_locked_stops_all_of_it() {
        let mut locked = target(101, "exit-node", Some("home"), true);
        locked.config.lock = Some("backup".to_owned());
        let blocked = pruned(&BTreeMap::from([(vmid(101), locked)])).unwrap_err();
        assert!(matches!((blocked.vmid, &blocked.refusal), (id, Refusal::Locked { .. }) if id == vmid(101)));
    }
}
