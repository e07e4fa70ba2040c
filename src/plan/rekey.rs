//! New keys for a node, from outside: for one whose key has expired or may have leaked.
//!
//! The node forgets its machine key and its node key and joins as a new node; only when that one is online does the old one go and leave it its name and
//! address. Until then everything can be taken back, for the guest keeps what it has forgotten.

use super::create::Plan;
use super::enroll::ENROLLED;
use super::guest::Service;
use super::inside::{Deed, InsideAction, InsideUndo, UndoDeed};
use super::mark::{Mark, RunId};
use super::refusal::Refusal;
use super::step::{Action, Step, Undo};
use crate::ident::{NodeId, Vmid};
use crate::pve::HostName;
use crate::wire::admin::{CreateKey, NodeInfo};

const KEY_LIFE_SECS: u64 = 10 * 60;
/// How long the new node may take until it is online.
const ONLINE_LIMIT_SECS: u64 = 60;

/// The guest, and how its node is reached.
#[derive(Debug, Clone)]
pub struct Rekeyed {
    /// The guest.
    pub vmid: Vmid,
    /// Where it is.
    pub host: HostName,
    /// Its mark.
    pub mark: Mark,
    /// Our program in it.
    pub program: String,
    /// Who keeps it running.
    pub service: Service,
}

/// Plans it; `nodes` are all that the coordinator knows.
///
/// # Errors
/// If the guest is no node, or the coordinator does not know it.
pub fn rekey(guest: &Rekeyed, nodes: &[NodeInfo], run: RunId) -> Result<Plan, Refusal> {
    let (vmid, name) = (guest.vmid, &guest.mark.name);
    let role = match guest.mark.role.trim_start_matches(ENROLLED) {
        "node" => "node",
        "exit-node" => "exit-node",
        "subnet-router" => "subnet-router",
        other => {
            let next = "a coordinator's key is pinned by every node; a relay's certificate is told by the coordinator".to_owned();
            return Err(Refusal::Guest { why: format!("container {vmid} is a {other} and has no node key"), next });
        }
    };
    let Some(old) = nodes.iter().find(|node| node.name == *name) else {
        let why = format!("the coordinator does not know a node named {name}");
        return Err(Refusal::Guest {
            why,
            next: "pvemesh coordinator nodes list shows those it knows; an enrolled container: run enroll again".to_owned(),
        });
    };
    let before: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let inside = |deed: Deed| Action::Inside(InsideAction { host: guest.host.clone(), vmid, deed });
    let undo = |deed: UndoDeed| Undo::Inside(InsideUndo { host: guest.host.clone(), vmid, deed });
    let chore = |verb: &str| {
        let service = guest.service.to_string();
        [guest.program.as_str(), "inside", "rejoin", verb, "--service", &service].map(str::to_owned).to_vec()
    };
    let key = CreateKey {
        user: old.user.clone(),
        reusable: false,
        ephemeral: old.ephemeral,
        expires_in_secs: KEY_LIFE_SECS,
        tags: old.tags.clone(),
        approve_routes: old.approved_routes.clone(),
        only_for: Some(name.clone()),
        address: None,
    };
    let back = undo(UndoDeed::Unrekey {
        old: old.id,
        name: name.clone(),
        addresses: old.addresses.clone(),
        before: before.clone(),
        back: chore("take-back"),
    });
    let steps = vec![
        Step::undone_by(format!("make a join key for {name}"), Action::MintKey(key), Undo::RevokeKey { id: None }),
        Step::undone_by(
            "have the node forget its keys and join anew",
            inside(Deed::Run { commands: vec![chore("begin")], with_key: true }),
            back,
        ),
        Step::plain(
            "wait for the node with its new keys",
            inside(Deed::AwaitSuccessor { name: name.clone(), before, limit_secs: ONLINE_LIMIT_SECS }),
        ),
        Step::plain(
            "give it the old one's name and address",
            inside(Deed::Succeed { old: old.id, name: name.clone(), addresses: old.addresses.clone() }),
        ),
        Step::plain("forget the old keys for good", inside(Deed::Run { commands: vec![chore("keep")], with_key: false })),
    ];
    Ok(Plan { vmid, name: name.clone(), role, host: guest.host.clone(), run, choices: Vec::new(), differences: Vec::new(), steps })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    fn guest(role: &str) -> Rekeyed {
        let vmid = "101".parse().unwrap();
        let mark = Mark {
            vmid,
            role: role.to_owned(),
            name: "exit-1".parse().unwrap(),
            run: RunId::new(1),
            ready: true,
            identity: crate::plan::mark::Identity::default(),
            fleet: None,
        };
        Rekeyed { vmid, host: "pve".parse().unwrap(), mark, program: "/sbin/init".to_owned(), service: Service::Appliance }
    }

    fn node(name: &str, id: u64) -> NodeInfo {
        serde_json::from_value(serde_json::json!({
            "id": id, "name": name, "fqdn": name, "user": "pvemesh", "key": "nodekey:".to_owned() + &"1".repeat(64), "addresses": ["100.64.0.7"],
            "online": false, "tags": ["tag:exit-node"], "advertised_routes": [], "approved_routes": ["0.0.0.0/0"], "os": "linux"
        }))
        .unwrap()
    }

    #[test]
    fn the_old_node_goes_only_when_the_new_one_is_online() {
        let plan = rekey(&guest("exit-node"), &[node("other", 1), node("exit-1", 2)], RunId::new(3)).unwrap();
        let shown: Vec<String> = plan.steps.iter().map(|step| step.action.to_string()).collect();
        assert!(shown[0].contains("only_for=exit-1") && shown[0].contains("approve_routes=0.0.0.0/0"), "{shown:?}");
        let at = |words: &str| shown.iter().position(|line| line.contains(words)).unwrap();
        assert!(at("rejoin begin") < at("until another exit-1 is online") && at("until another") < at("DELETE the old node"), "{shown:?}");
        assert!(at("DELETE the old node") < at("rejoin keep"), "{shown:?}");
        assert!(shown[at("rejoin begin")].ends_with("(the join key on its standard input)"));
        let undos: Vec<String> = plan.steps.iter().rev().filter_map(|step| step.undo.as_ref().map(ToString::to_string)).collect();
        assert!(undos[0].contains("its old keys back") && undos.len() == 2, "{undos:?}");
    }

    #[test]
    fn what_has_no_node_key_is_refused() {
        let error = rekey(&guest("coordinator"), &[node("exit-1", 2)], RunId::new(3)).unwrap_err().to_string();
        assert!(error.contains("no node key"), "{error}");
        let error = rekey(&guest("enrolled-node"), &[node("other", 1)], RunId::new(3)).unwrap_err().to_string();
        assert!(error.contains("does not know a node named exit-1"), "{error}");
    }
}
