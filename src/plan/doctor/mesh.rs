//! What is wrong between guests and coordinator.

use std::collections::BTreeMap;

use super::{Finding, GuestView, Patient, Severity, inside};

/// Before this many seconds an expiry is nobody's business.
const SOON: i64 = 14 * 24 * 3600;

pub(super) fn examine(patient: &Patient) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(trouble) = &patient.coordinator_trouble {
        found.push(Finding {
            code: "coordinator-down",
            severity: Severity::Fault,
            subject: "the coordinator".to_owned(),
            what: trouble.clone(),
            why: "nodes go on with what they know; nothing new joins, and no change reaches them".to_owned(),
            fix: "pvemesh list; pct start ID; pvemesh logs ID of its container".to_owned(),
        });
    }
    twins(&patient.guests, &mut found);
    for guest in patient.guests.iter().filter(|guest| guest.is_node()) {
        entry(guest, patient, &mut found);
    }
    found
}

/// Guests that are one and the same node: clones, and restored copies.
fn twins(guests: &[GuestView], found: &mut Vec<Finding>) {
    let mut by_key: BTreeMap<&str, Vec<&GuestView>> = BTreeMap::new();
    for guest in guests {
        if let Some(node) = guest.facts.as_ref().and_then(|facts| facts.node.as_ref()).filter(|node| !node.key.is_empty()) {
            by_key.entry(&node.key).or_default().push(guest);
        }
    }
    for twins in by_key.values().filter(|twins| twins.len() > 1) {
        let all: Vec<String> = twins.iter().map(|guest| guest.vmid()).collect();
        for guest in twins.iter().skip(1) {
            let claims = inside::claims(guest).unwrap_or_default();
            let what = format!("containers {} are one node, with one key ({claims})", all.join(" and "));
            let id = guest.vmid();
            let copied = guest.mark.as_ref().is_some_and(|mark| guest.vmid.is_some_and(|vmid| vmid != mark.vmid));
            let fix = if copied {
                format!("stop the copy: pct stop {id}; a second one is made with its create command")
            } else {
                format!("give one of them keys of its own: pvemesh rekey {id}")
            };
            found.push(guest.finding(
                "identity-twice",
                Severity::Fault,
                what,
                "a clone or a restored copy runs beside the original, and each takes the other's traffic",
                fix,
            ));
        }
    }
}

fn entry(guest: &GuestView, patient: &Patient, found: &mut Vec<Finding>) {
    let id = guest.vmid();
    // With a coordinator elsewhere, nothing is known.
    if patient.nodes.is_none() {
        return;
    }
    let Some(node) = &guest.node else {
        if guest.running {
            let fix = if guest.is_enrolled() {
                format!("pvemesh enroll {id} again")
            } else {
                format!("pvemesh destroy {id}, then create it again")
            };
            found.push(guest.finding(
                "unknown-node",
                Severity::Fault,
                "the coordinator does not know its node",
                "its entry was removed, or it never joined",
                fix,
            ));
        }
        return;
    };
    if guest.running && !node.online {
        let seen = node.last_seen.map(|seen| format!(", last seen {seen:.0}")).unwrap_or_default();
        let fix = format!("pvemesh logs {id}; does it reach the coordinator?");
        found.push(guest.finding(
            "node-offline",
            Severity::Fault,
            format!("the coordinator does not see it online{seen}"),
            "others do not reach it by new ways",
            fix,
        ));
    }
    if let Some(expiry) = node.key_expiry {
        let left = expiry.as_second() - patient.now;
        let fix = format!(
            "pvemesh rekey {id}; or for good, in the coordinator's container: pvemesh coordinator nodes expire {} --expiry never",
            node.name
        );
        if left <= 0 {
            found.push(guest.finding(
                "key-expired",
                Severity::Fault,
                format!("its key expired at {expiry:.0}"),
                "the others do not talk to it any more",
                fix,
            ));
        } else if left < SOON {
            found.push(guest.finding(
                "key-expires",
                Severity::Warning,
                format!("its key expires at {expiry:.0}"),
                "then it is cut off, and with it what it carries",
                fix,
            ));
        }
    }
    let waiting: Vec<String> =
        node.advertised_routes.iter().filter(|route| !node.approved_routes.contains(route)).map(ToString::to_string).collect();
    if !waiting.is_empty() {
        let fix = format!("in the coordinator's container: pvemesh coordinator routes approve {} {}", node.name, waiting.join(" "));
        found.push(guest.finding(
            "route-not-approved",
            Severity::Warning,
            format!("it offers {} and may not carry that", waiting.join(", ")),
            "an admin has to allow it",
            fix,
        ));
    }
}
