//! Whether a guest of ours still is the one that its notes speak of, and what it gets if it is not: the host's side of
//! `node::binding`. docs/decisions/identity.md.
//!
//! The host sees what a guest cannot: that the notes were written for another guest, that the hardware address is another one than at
//! its making, and (by a number that is kept both here and in the notes) that guest and notes went back in time together.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

use super::create::OWNER;
use super::hook::is_node;
use super::ledger::Kept;
use super::mark::{Identity, Mark, RunId};
use crate::ident::{Mac, NodeId, NodeName, Vmid};
use crate::pve::reply::ContainerConfig;
use crate::pve::{HostName, Properties};
use crate::wire::admin::{CreateKey, NodeInfo};

/// A join key's life: the guest is running, and takes it within seconds.
const KEY_LIFE_SECS: u64 = 10 * 60;

/// What a copy of a guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clones {
    /// A node of its own, with a name of its own.
    #[default]
    NewName,
    /// No place in the mesh: its keys are discarded, and it gets none.
    Refuse,
}

/// Why a guest needs another identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It was made from this guest, which is there still.
    CopyOf(Vmid),
    /// It was made from this guest, which is gone: it takes its place.
    HeirOf(Vmid),
    /// Its hardware address changed: restored with `unique`, or its interface was replaced.
    OtherMac {
        /// The one it was made with.
        was: Mac,
        /// The one of now.
        is: Mac,
    },
    /// A snapshot was rolled back, or an older backup restored over it.
    WentBack {
        /// The generation remembered here.
        from: u64,
        /// The one in its notes.
        to: u64,
    },
    /// It was restored after it had been removed, with its node.
    Returned,
}

impl Reason {
    /// Whether the guest keeps name and address: there is no other with a better right to them.
    pub const fn keeps_place(&self) -> bool {
        !matches!(self, Self::CopyOf(_))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CopyOf(vmid) => write!(f, "it is a copy of guest {vmid}"),
            Self::HeirOf(vmid) => write!(f, "it is a copy of guest {vmid}, which is gone, and takes its place"),
            Self::OtherMac { was, is } => write!(f, "it was made with hardware address {was} and now has {is}"),
            Self::WentBack { from, to } => write!(f, "it went back to an earlier state (generation {to} after {from})"),
            Self::Returned => f.write_str("it was restored after its node had been removed"),
        }
    }
}

/// A guest with the tag of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    /// Its number.
    pub vmid: Vmid,
    /// Where it is.
    pub host: HostName,
    /// It runs.
    pub running: bool,
    /// Its configuration.
    pub config: ContainerConfig,
}

impl Ours {
    /// The hardware address of its first interface.
    pub fn mac(&self) -> Option<Mac> {
        first_mac(&self.config)
    }

    /// What its notes say, whomever they were written for.
    pub fn mark(&self) -> Option<Mark> {
        Mark::find(&self.config.description)
    }

    /// The snapshot that its state comes from.
    pub fn parent(&self) -> Option<String> {
        self.config.values.get("parent").cloned()
    }
}

/// The hardware address of a guest's first interface.
pub fn first_mac(config: &ContainerConfig) -> Option<Mac> {
    Properties::parse(config.values.get("net0")?, "name").value("hwaddr")?.parse().ok()
}

/// Whether a guest needs another identity. `kept` is what is remembered of its number, `nodes` what our coordinator knows.
pub fn judge(guest: &Ours, mark: &Mark, others: &[Ours], kept: Option<&Kept>, nodes: &[NodeInfo]) -> Option<Reason> {
    if !mark.ready || !is_node(&mark.role) {
        return None;
    }
    if mark.vmid != guest.vmid {
        let original = others.iter().filter(|other| other.vmid == mark.vmid).filter_map(Ours::mark).any(|other| other.run == mark.run);
        return Some(if original { Reason::CopyOf(mark.vmid) } else { Reason::HeirOf(mark.vmid) });
    }
    if let (Some(was), Some(is)) = (mark.identity.mac, guest.mac())
        && was != is
    {
        return Some(Reason::OtherMac { was, is });
    }
    match kept.filter(|kept| kept.run == mark.run) {
        Some(kept) if mark.identity.generation < kept.generation => {
            Some(Reason::WentBack { from: kept.generation, to: mark.identity.generation })
        }
        Some(_) => None,
        // Not known here. If our coordinator gave it an address and knows no node of its name, it was removed meanwhile.
        None => (mark.identity.address.is_some() && !nodes.iter().any(|node| node.name == mark.name)).then_some(Reason::Returned),
    }
}

/// A new identity for a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renew {
    /// The guest.
    pub vmid: Vmid,
    /// Where it is.
    pub host: HostName,
    /// Why.
    pub reason: Reason,
    /// Its name from now on.
    pub name: NodeName,
    /// Proxmox's own name for it is another one.
    pub rename: bool,
    /// Nodes that it leaves behind, which would stand in the way of its name and address.
    pub remove: Vec<NodeId>,
    /// The join key to be made; none if it is to get none.
    pub key: Option<CreateKey>,
    /// What is to stand in them.
    pub mark: Mark,
    /// What is to be remembered of it.
    pub kept: Kept,
}

/// What a new identity depends on besides its guest.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// What our coordinator knows.
    pub nodes: &'a [NodeInfo],
    /// Names that others have.
    pub taken: &'a BTreeSet<NodeName>,
    /// The number of this run, for a guest that becomes another.
    pub run: RunId,
    /// What a copy gets.
    pub clones: Clones,
}

/// Decides what a guest gets instead of the identity that it may not have. `kept` is what is remembered of its number.
pub fn renew(guest: &Ours, mark: &Mark, reason: Reason, kept: Option<&Kept>, around: Around<'_>) -> Renew {
    let Around { nodes, taken, run, clones } = around;
    let keeps = reason.keeps_place();
    let named = nodes.iter().filter(|node| node.name == mark.name);
    let name = if keeps { mark.name.clone() } else { free_name(guest, mark, taken) };
    let refused = !keeps && clones == Clones::Refuse;
    let approved: Vec<IpNet> = named.clone().next().map(|node| node.approved_routes.clone()).unwrap_or_default();
    let exit = [ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()];
    let approve_routes = if approved.is_empty() && mark.role == "exit-node" { exit.to_vec() } else { approved };
    let address = mark.identity.address.filter(|_| keeps);
    let generation = mark.identity.generation.max(kept.map_or(0, |kept| kept.generation)) + 1;
    let identity = Identity { mac: guest.mac(), generation, address };
    let key = CreateKey {
        user: OWNER.to_owned(),
        reusable: false,
        ephemeral: false,
        expires_in_secs: KEY_LIFE_SECS,
        tags: vec![format!("tag:{}", mark.role)],
        approve_routes,
        only_for: Some(name.clone()),
        address,
    };
    let new_mark = Mark {
        vmid: guest.vmid,
        name: name.clone(),
        // A copy is another guest; one that keeps its place stays the one that was made.
        run: if keeps { mark.run } else { run },
        identity,
        fleet: mark.fleet.clone().filter(|_| keeps),
        ..mark.clone()
    };
    Renew {
        vmid: guest.vmid,
        host: guest.host.clone(),
        rename: guest.config.hostname.as_deref() != Some(name.as_str()),
        remove: named.filter(|_| keeps).map(|node| node.id).collect(),
        key: (!refused).then_some(key),
        kept: Kept {
            name: name.clone(),
            role: mark.role.clone(),
            run: new_mark.run,
            host: guest.host.clone(),
            mac: identity.mac,
            generation,
            node: None,
            parent: guest.parent(),
        },
        name,
        mark: new_mark,
        reason,
    }
}

/// The name that the admin gave the copy, if it is free; else the original's with the next free number.
fn free_name(guest: &Ours, mark: &Mark, taken: &BTreeSet<NodeName>) -> NodeName {
    let given = guest.config.hostname.as_deref().filter(|name| *name != mark.name.as_str() && !name.starts_with("Copy-of-"));
    if let Some(given) = given.map(NodeName::sanitised).filter(|name| !taken.contains(name)) {
        return given;
    }
    let text = mark.name.as_str();
    let stem = text.rsplit_once('-').filter(|(_, number)| number.bytes().all(|b| b.is_ascii_digit()) && !number.is_empty());
    let stem = NodeName::sanitised(stem.map_or(text, |(stem, _)| stem));
    (2..).map(|n| stem.with_suffix(n)).find(|name| !taken.contains(name)).unwrap_or(stem)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;
    use crate::ident::NodePublic;

    const MAC: Mac = Mac::from_bytes([0xbc, 0x24, 0x11, 0, 0, 1]);
    const OTHER: Mac = Mac::from_bytes([0xbc, 0x24, 0x11, 0, 0, 2]);

    fn vmid(n: u32) -> Vmid {
        Vmid::try_from(n).unwrap()
    }

    fn mark() -> Mark {
        Mark {
            vmid: vmid(101),
            role: "exit-node".to_owned(),
            name: "exit-1".parse().unwrap(),
            run: RunId::new(7),
            ready: true,
            fleet: None,
            identity: Identity { mac: Some(MAC), generation: 3, address: Some([100, 64, 0, 5].into()) },
        }
    }

    fn guest(n: u32, mac: Mac, mark: &Mark) -> Ours {
        let values = [("net0".to_owned(), format!("name=eth0,bridge=vmbr0,hwaddr={mac}"))].into();
        let config =
            ContainerConfig { hostname: Some("exit-1".to_owned()), description: mark.attach("x"), values, ..ContainerConfig::default() };
        Ours { vmid: vmid(n), host: "pve".parse().unwrap(), running: true, config }
    }

    fn kept(generation: u64) -> Kept {
        Kept {
            name: "exit-1".parse().unwrap(),
            role: "exit-node".to_owned(),
            run: RunId::new(7),
            host: "pve".parse().unwrap(),
            mac: Some(MAC),
            generation,
            node: Some(NodeId(1)),
            parent: None,
        }
    }

    fn node() -> NodeInfo {
        serde_json::from_value(serde_json::json!({
            "id": 1, "name": "exit-1", "fqdn": "exit-1.mesh.internal", "user": "pvemesh", "key": NodePublic::from_bytes([3; 32]),
            "addresses": ["100.64.0.5"], "online": true, "tags": [], "advertised_routes": [], "approved_routes": ["0.0.0.0/0"], "os": "linux"
        }))
        .unwrap()
    }

    fn around<'a>(nodes: &'a [NodeInfo], taken: &'a BTreeSet<NodeName>, clones: Clones) -> Around<'a> {
        Around { nodes, taken, run: RunId::new(9), clones }
    }

    fn judged(guest: &Ours, others: &[Ours], kept: Option<&Kept>, nodes: &[NodeInfo]) -> Option<Reason> {
        judge(guest, &guest.mark().unwrap(), others, kept, nodes)
    }

    #[test]
    fn the_same_guest_stays_who_it_is() {
        let original = guest(101, MAC, &mark());
        for kept in [None, Some(kept(0)), Some(kept(3))] {
            assert_eq!(judged(&original, &[], kept.as_ref(), &[node()]), None, "{kept:?}");
        }
        // Marks of older versions know no hardware address, and their coordinator may be somebody else's.
        let old = Mark { identity: Identity::default(), ..mark() };
        assert_eq!(judged(&guest(101, OTHER, &old), &[], None, &[]), None);
    }

    #[test]
    fn a_clone_gets_a_name_of_its_own_and_leaves_the_original_alone() {
        let original = guest(101, MAC, &mark());
        let clone = guest(102, OTHER, &mark());
        let reason = judged(&clone, std::slice::from_ref(&original), None, &[node()]).unwrap();
        assert_eq!(reason, Reason::CopyOf(vmid(101)));
        let taken = ["exit-1", "exit-2"].map(|name| name.parse().unwrap()).into();
        let renewed = renew(&clone, &mark(), reason.clone(), None, around(&[node()], &taken, Clones::NewName));
        assert_eq!((renewed.name.as_str(), renewed.remove.len(), renewed.rename), ("exit-3", 0, true));
        let key = renewed.key.unwrap();
        assert_eq!((key.only_for.unwrap().as_str(), key.address, key.reusable), ("exit-3", None, false));
        assert_eq!(key.approve_routes, node().approved_routes);
        assert_eq!((renewed.mark.vmid, renewed.mark.run, renewed.mark.identity.mac), (vmid(102), RunId::new(9), Some(OTHER)));
        assert_eq!(renewed.mark.identity.address, None, "it comes with the node");
        let refused = renew(&clone, &mark(), reason, None, around(&[node()], &taken, Clones::Refuse));
        assert_eq!(refused.key, None);
    }

    #[test]
    fn the_admin_s_name_for_a_copy_is_taken_where_it_is_free() {
        let mut clone = guest(102, OTHER, &mark());
        clone.config.hostname = Some("Berlin.example".to_owned());
        let name = |clone: &Ours, taken: &[&str]| {
            let taken = taken.iter().map(|name| name.parse().unwrap()).collect();
            free_name(clone, &mark(), &taken).to_string()
        };
        assert_eq!(name(&clone, &["exit-1"]), "berlin");
        assert_eq!(name(&clone, &["exit-1", "berlin"]), "exit-2");
        clone.config.hostname = Some("Copy-of-exit-1".to_owned());
        assert_eq!(name(&clone, &["exit-1"]), "exit-2");
    }

    #[test]
    fn who_takes_the_place_of_one_that_is_gone_keeps_name_and_address() {
        let heir = guest(102, MAC, &mark());
        let reason = judged(&heir, &[], None, &[node()]).unwrap();
        assert_eq!(reason, Reason::HeirOf(vmid(101)));
        // Its number may have gone to another guest meanwhile.
        let stranger = guest(101, OTHER, &Mark { run: RunId::new(99), ..mark() });
        assert_eq!(judged(&heir, &[stranger], None, &[]), Some(Reason::HeirOf(vmid(101))));
        let renewed = renew(&heir, &mark(), reason, None, around(&[node()], &BTreeSet::new(), Clones::Refuse));
        assert_eq!((renewed.name.as_str(), renewed.remove), ("exit-1", vec![NodeId(1)]));
        let key = renewed.key.unwrap();
        assert_eq!((key.only_for.unwrap().as_str(), key.address), ("exit-1", Some([100, 64, 0, 5].into())));
        assert_eq!((renewed.mark.run, renewed.mark.identity.generation), (RunId::new(7), 4));
    }

    #[test]
    fn going_back_in_time_is_seen_by_the_number_that_the_host_keeps() {
        let back = guest(101, MAC, &mark());
        assert_eq!(judged(&back, &[], Some(&kept(4)), &[node()]), Some(Reason::WentBack { from: 4, to: 3 }));
        let (nodes, taken) = ([node()], BTreeSet::new());
        let around = around(&nodes, &taken, Clones::NewName);
        let renewed = renew(&back, &mark(), Reason::WentBack { from: 4, to: 3 }, Some(&kept(4)), around);
        assert_eq!((renewed.mark.identity.generation, renewed.kept.generation), (5, 5), "above both");
        // Another guest had the number before: what is remembered of it says nothing of this one.
        let before = Kept { run: RunId::new(1), ..kept(9) };
        assert_eq!(judged(&back, &[], Some(&before), &[node()]), None);
    }

    #[test]
    fn a_unique_restore_and_one_after_its_removal_are_seen() {
        assert_eq!(judged(&guest(101, OTHER, &mark()), &[], Some(&kept(3)), &[node()]), Some(Reason::OtherMac { was: MAC, is: OTHER }));
        assert_eq!(judged(&guest(101, MAC, &mark()), &[], None, &[]), Some(Reason::Returned));
        assert_eq!(judged(&guest(101, MAC, &mark()), &[], Some(&kept(3)), &[]), None, "whoever removed it there meant it");
    }

    #[test]
    fn what_is_being_made_and_what_is_no_node_gets_nothing() {
        let unfinished = Mark { ready: false, ..mark() };
        assert_eq!(judged(&guest(102, OTHER, &unfinished), &[], None, &[]), None);
        let server = Mark { role: "coordinator".to_owned(), ..mark() };
        assert_eq!(judged(&guest(102, OTHER, &server), &[], None, &[]), None);
    }
}
