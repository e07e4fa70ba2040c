//! Guests that Proxmox starts elsewhere when their host dies, and rules that keep those of one group on different hosts.

use std::collections::BTreeMap;

use super::step::{Action, Step, Undo};
use crate::ident::Vmid;
use crate::pve::reply::HaRule;
use crate::pve::{Request, Version, call};

/// What a rule of ours is called in front of the group's name.
const RULE_STEM: &str = "pvemesh-";

/// Puts a guest under high availability.
pub(super) fn join(vmid: Vmid) -> Step {
    let action = Action::Call { request: call::ha_add(vmid), task: None };
    Step::undone_by(format!("have Proxmox start {vmid} elsewhere when its host dies"), action, Undo::LeaveHighAvailability { vmid })
}

/// Takes a guest out of it; the guest itself runs on.
pub(super) fn leave(vmid: Vmid) -> Step {
    Step::plain(format!("take {vmid} out of high availability"), Action::Call { request: call::ha_remove(vmid), task: None })
}

/// The requests that make the rules say which guests are to be on different hosts, given the rules there are; none if they do already.
///
/// `groups` are the guests under high availability of each group. Rules that are not ours are left alone.
///
/// # Errors
/// If the cluster is too old for such rules, with a text that says so; there is something to keep apart.
pub fn rules(groups: &BTreeMap<String, Vec<Vmid>>, there: &[HaRule], version: Version) -> Result<Vec<Request>, String> {
    let apart = groups.iter().filter(|(_, guests)| guests.len() > 1);
    let mut requests = Vec::new();
    for (group, guests) in apart {
        if version < Version::HA_RULES {
            return Err(format!(
                "Proxmox VE {version} has no rules that keep the guests of group {group} apart after a host has died (they came with {}); \
                 they are on different hosts now, if there were enough",
                Version::HA_RULES
            ));
        }
        let name = format!("{RULE_STEM}{group}");
        let mut wanted: Vec<String> = guests.iter().map(|vmid| format!("ct:{vmid}")).collect();
        wanted.sort();
        match there.iter().find(|rule| rule.name == name) {
            Some(rule) => {
                let mut is = rule.resources.clone();
                is.sort();
                if is != wanted || !rule.apart {
                    requests.push(call::ha_rule_set(&name, &wanted));
                }
            }
            None => requests.push(call::ha_rule_add(&name, &wanted)),
        }
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmid(number: u32) -> Vmid {
        number.try_into().unwrap()
    }

    fn lines(groups: &[(&str, &[u32])], there: &[HaRule]) -> Vec<String> {
        let groups = groups.iter().map(|(group, guests)| ((*group).to_owned(), guests.iter().map(|n| vmid(*n)).collect())).collect();
        rules(&groups, there, Version::new(9, 1, 0)).unwrap().iter().map(ToString::to_string).collect()
    }

    fn rule(name: &str, resources: &[&str], apart: bool) -> HaRule {
        HaRule { name: name.to_owned(), resources: resources.iter().map(|r| (*r).to_owned()).collect(), apart }
    }

    #[test]
    fn guests_of_a_group_are_kept_apart_by_one_rule_that_is_set_only_when_it_differs() {
        let added = "POST /cluster/ha/rules affinity=negative comment=\"kept by pvemesh\" resources=ct:101,ct:102 rule=pvemesh-lan type=resource-affinity";
        assert_eq!(lines(&[("lan", &[102, 101]), ("alone", &[103])], &[]), [added]);
        assert_eq!(lines(&[("lan", &[101, 102])], &[rule("pvemesh-lan", &["ct:102", "ct:101"], true)]), [""; 0]);
        let set = "PUT /cluster/ha/rules/pvemesh-lan affinity=negative resources=ct:101,ct:102 type=resource-affinity";
        assert_eq!(lines(&[("lan", &[101, 102])], &[rule("pvemesh-lan", &["ct:101"], true)]), [set]);
        assert_eq!(lines(&[("lan", &[101, 102])], &[rule("pvemesh-lan", &["ct:101", "ct:102"], false)]), [set]);
        assert_eq!(lines(&[("lan", &[101, 102])], &[rule("lan", &["ct:101", "ct:102"], true)]), [added], "others' rules are theirs");
    }

    #[test]
    fn an_older_cluster_says_what_it_cannot_do() {
        let groups = [("lan".to_owned(), vec![vmid(101), vmid(102)])].into();
        let why = rules(&groups, &[], Version::new(8, 4, 1)).unwrap_err();
        assert!(why.contains("8.4.1") && why.contains("group lan"), "{why}");
        let single = [("lan".to_owned(), vec![vmid(101)])].into();
        assert_eq!(rules(&single, &[], Version::new(8, 4, 1)), Ok(Vec::new()));
    }
}
