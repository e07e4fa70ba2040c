//! The results of the hosted service, compared with ours: the same sources, destinations, ports and protocols, as sets; the same peers; the
//! same routes; the same attributes; the same refusals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use pvemesh::coord::policy::{AddressSet, Compiled, Policy, Subject};
use pvemesh::ident::NodeId;
use pvemesh::wire::control::FilterRule;

use crate::capture::{self, Capture};

/// What is refused here although the hosted service takes it: the case needs what we do not offer.
const NOT_OFFERED: [&str; 4] = ["does not offer", "has no roles", "is not offered", "with `via` a destination is"];

/// How the cases of a kind came out.
#[derive(Debug, Default)]
struct Tally {
    agreed: usize,
    /// Refused by us by name.
    not_offered: Vec<String>,
    /// A standby router is told by the hosted service of the prefix it carries itself; not by us.
    standby: usize,
    /// The route was approved while the results were recorded: some nodes had not heard of it yet.
    midway: usize,
    differ: Vec<String>,
}

impl Tally {
    fn finish(self, kind: &str, at_least: usize) {
        println!(
            "{kind}: {} agree, {} need what is not offered {:?}; left out: {} routes of standby routers, {} recorded midway",
            self.agreed,
            self.not_offered.len(),
            self.not_offered,
            self.standby,
            self.midway
        );
        assert!(self.differ.is_empty(), "{kind}: {} differences\n{}", self.differ.len(), self.differ.join("\n"));
        assert!(self.agreed >= at_least, "{kind}: only {} cases agree; are the results complete?", self.agreed);
    }
}

fn run(kind: &str, at_least: usize, check: impl Fn(&Capture, &Compiled, &mut Tally, &mut Vec<String>)) {
    let dir = match capture::directory() {
        Ok(dir) => dir,
        Err(why) => return println!("skipped: {kind} results of the hosted service: {why}"),
    };
    let mut tally = Tally::default();
    for case in capture::cases(&dir, kind) {
        let mut faults = Vec::new();
        let refused = case.input.api_response_code != 200;
        let result = Policy::parse(&case.policy()).map(|policy| Compiled::new(Arc::new(policy), case.subjects().into_values()));
        match (result, refused) {
            (Err(error), false) if NOT_OFFERED.iter().any(|text| error.what.contains(text)) => {
                tally.not_offered.push(case.test_id.clone());
                continue;
            }
            (Err(error), false) => faults.push(format!("refused: {error}")),
            (Err(_), true) => {}
            (Ok(mesh), true) => {
                if mesh.run_tests().is_ok() {
                    faults.push("taken, though the hosted service refuses it".to_owned());
                }
            }
            (Ok(mesh), false) => {
                if let Err(failures) = mesh.run_tests() {
                    faults.push(format!("tests fail: {failures:?}"));
                }
                check(&case, &mesh, &mut tally, &mut faults);
            }
        }
        if faults.is_empty() {
            tally.agreed += 1;
        }
        tally.differ.extend(faults.into_iter().map(|fault| format!("{}: {fault}", case.test_id)));
    }
    tally.finish(kind, at_least);
}

fn everything(case: &Capture, mesh: &Compiled, tally: &mut Tally, faults: &mut Vec<String>) {
    filters(case, mesh, faults);
    peers(case, mesh, faults);
    routes(case, mesh, tally, faults);
    approvals(case, mesh, faults);
}

/// A filter as sets: what goes where, from whom.
fn meaning(rules: &[FilterRule]) -> BTreeMap<String, AddressSet> {
    let mut sources: BTreeMap<String, Vec<(IpAddr, IpAddr)>> = BTreeMap::new();
    // A rule without sources gives nothing; we leave it out.
    for rule in rules.iter().filter(|rule| !rule.src_ips.is_empty()) {
        let from: Vec<(IpAddr, IpAddr)> = rule.src_ips.iter().flat_map(|text| range(text)).collect();
        for dst in &rule.dst_ports {
            let key = format!("{} ports {}-{} protocols {:?}", dst.ip, dst.ports.first, dst.ports.last, rule.ip_proto);
            sources.entry(key).or_default().extend(&from);
        }
        for grant in &rule.cap_grant {
            for (dst, (name, arguments)) in grant.dsts.iter().flat_map(|dst| grant.cap_map.iter().map(move |cap| (dst, cap))) {
                let key = format!("{dst} capability {name} {}", serde_json::to_string(arguments).unwrap());
                sources.entry(key).or_default().extend(&from);
            }
        }
    }
    sources.into_iter().map(|(key, ranges)| (key, AddressSet::of(ranges))).collect()
}

fn range(text: &str) -> Vec<(IpAddr, IpAddr)> {
    if text == "*" {
        return vec![("0.0.0.0".parse().unwrap(), "255.255.255.255".parse().unwrap()), ("::".parse().unwrap(), IpAddr::from([0xff; 16]))];
    }
    if let Some((first, last)) = text.split_once('-') {
        return vec![(first.parse().unwrap(), last.parse().unwrap())];
    }
    let net: IpNet = text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap_or_else(|_| panic!("{text}"))));
    vec![(net.network(), net.broadcast())]
}

fn filters(case: &Capture, mesh: &Compiled, faults: &mut Vec<String>) {
    let subjects = case.subjects();
    for (name, told) in &case.captures {
        let Some(subject) = subjects.get(name.as_str()) else { continue };
        let (wanted, got) = (meaning(&told.packet_filter_rules), meaning(&mesh.filter(subject.id)));
        let keys: BTreeSet<&String> = wanted.keys().chain(got.keys()).collect();
        for key in keys.into_iter().filter(|key| wanted.get(*key) != got.get(*key)) {
            let shown = |set: Option<&AddressSet>| set.map(AddressSet::texts);
            faults.push(format!("{name} accepts {key}: theirs {:?}, ours {:?}", shown(wanted.get(key)), shown(got.get(key))));
        }
    }
}

fn peers(case: &Capture, mesh: &Compiled, faults: &mut Vec<String>) {
    let subjects = case.subjects();
    for (name, told) in &case.captures {
        let (Some(map), Some(viewer)) = (&told.netmap, subjects.get(name.as_str())) else { continue };
        let theirs: BTreeSet<&str> = map.peers.iter().map(|peer| peer.host()).collect();
        let ours: BTreeSet<&str> = subjects.iter().filter(|(_, peer)| mesh.sees(viewer.id, peer.id)).map(|(name, _)| *name).collect();
        if theirs != ours {
            faults.push(format!("{name} sees: theirs {theirs:?}, ours {ours:?}"));
        }
    }
}

fn routes(case: &Capture, mesh: &Compiled, tally: &mut Tally, faults: &mut Vec<String>) {
    let subjects = case.subjects();
    let carriers = carriers(case, &subjects);
    for (name, told) in &case.captures {
        let (Some(map), Some(viewer)) = (&told.netmap, subjects.get(name.as_str())) else { continue };
        for peer in &map.peers {
            let Some(router) = subjects.get(peer.host()) else { continue };
            let own: BTreeSet<&String> = peer.addresses.iter().collect();
            let mut theirs: BTreeSet<IpNet> =
                peer.allowed_ips.iter().filter(|net| !own.contains(net)).map(|net| net.parse().unwrap()).collect();
            let told = mesh.routes_for(viewer.id, router.id, |net| carriers.get(net).copied(), |_| true);
            let ours: BTreeSet<IpNet> = told.into_iter().collect();
            let before = theirs.len();
            theirs.retain(|net| ours.contains(net) || !viewer.routes.contains(net));
            tally.standby += before - theirs.len();
            let late = |net: &IpNet| !theirs.contains(net) && case.approved_late(peer.host()).contains(net);
            let on_time: BTreeSet<IpNet> = ours.iter().filter(|net| !late(net)).copied().collect();
            tally.midway += ours.len() - on_time.len();
            if theirs != on_time {
                faults.push(format!("{name} is told of {}: theirs {theirs:?}, ours {ours:?}", peer.host()));
            }
        }
    }
}

/// Who carried each prefix: the router that the most nodes were told of.
fn carriers(case: &Capture, subjects: &BTreeMap<&str, Subject>) -> BTreeMap<IpNet, NodeId> {
    let mut votes: BTreeMap<(IpNet, NodeId), usize> = BTreeMap::new();
    for peer in case.captures.values().filter_map(|told| told.netmap.as_ref()).flat_map(|map| &map.peers) {
        for net in &peer.primary_routes {
            if let Some(router) = subjects.get(peer.host()) {
                *votes.entry((net.parse().unwrap(), router.id)).or_default() += 1;
            }
        }
    }
    let mut sorted: Vec<_> = votes.into_iter().collect();
    sorted.sort_by_key(|(_, count)| *count);
    sorted.into_iter().map(|((net, router), _)| (net, router)).collect()
}

fn approvals(case: &Capture, mesh: &Compiled, faults: &mut Vec<String>) {
    for (name, subject) in case.subjects() {
        let node = &case.topology.nodes[name];
        let ours: BTreeSet<&String> = node
            .routable_ips
            .iter()
            .filter(|net| mesh.policy().auto_approves(&subject.login, &subject.tags, &net.parse().unwrap()))
            .collect();
        let theirs: BTreeSet<&String> = node.approved_routes.iter().collect();
        // Elsewhere the approval may come after the topology was written down.
        if if case.test_id.starts_with("routes") { theirs != ours } else { !theirs.is_subset(&ours) } {
            faults.push(format!("{name} may carry: theirs {theirs:?}, ours {ours:?}"));
        }
    }
}

fn attributes(case: &Capture, mesh: &Compiled, _: &mut Tally, faults: &mut Vec<String>) {
    /// What the hosted service tells every node, or by roles and settings.
    const ALWAYS: [&str; 12] = [
        "default-auto-update",
        "https://tailscale.com/cap/file-sharing",
        "https://tailscale.com/cap/is-admin",
        "https://tailscale.com/cap/is-owner",
        "https://tailscale.com/cap/ssh",
        "https://tailscale.com/cap/tailnet-lock",
        "probe-udp-lifetime",
        "ssh-behavior-v1",
        "ssh-env-vars",
        "store-appc-routes",
        "tailnet-display-name",
        "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000",
    ];
    let subjects = case.subjects();
    for (name, told) in &case.captures {
        let (Some(map), Some(subject)) = (&told.netmap, subjects.get(name.as_str())) else { continue };
        let theirs: BTreeSet<&str> = map.self_node.cap_map.keys().map(String::as_str).collect();
        let ours = mesh.attributes(subject.id);
        let missing: Vec<&&str> = theirs.iter().filter(|cap| !ours.contains_key(**cap) && !ALWAYS.contains(cap)).collect();
        let added: Vec<&String> = ours.keys().filter(|cap| !theirs.contains(cap.as_str())).collect();
        if !missing.is_empty() || !added.is_empty() {
            faults.push(format!("{name} is told: missing {missing:?}, too much {added:?}"));
        }
        for peer in &map.peers {
            let theirs: BTreeSet<&String> = peer.cap_map.keys().collect();
            let ours = subjects.get(peer.host()).map(|peer| mesh.peer_attributes(peer.id)).unwrap_or_default();
            if theirs != ours.keys().collect() {
                faults.push(format!("{name} is told of {}: theirs {theirs:?}, ours {:?}", peer.host(), ours.keys()));
            }
        }
    }
}

#[test]
fn access_lists_give_what_the_hosted_service_gives() {
    run("acl", 200, everything);
}

#[test]
fn grants_give_what_the_hosted_service_gives() {
    run("grant", 200, everything);
}

#[test]
fn routes_give_what_the_hosted_service_gives() {
    run("routes", 100, everything);
}

#[test]
fn node_attributes_give_what_the_hosted_service_gives() {
    run("nodeattrs", 40, attributes);
}

#[test]
fn tests_in_a_policy_pass_and_fail_as_with_the_hosted_service() {
    run("policytest", 50, |_, _, _, _| {});
}
