//! Everything that hooks bring about, found by comparing: one pass over the guests, as it is made every minute and after each start.
//!
//! What is seen goes in, an ordered list of changes comes out; of an unchanged world, none. Changes of one guest follow from each other:
//! if one fails, the guest's later ones wait for the next pass.

mod attached;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::block;
use super::hook::is_node;
use super::identity::{Around, Clones, Ours, Renew, judge, renew};
use super::ledger::{Attached, Kept, Ledger};
use super::mark::{Identity, Mark, RunId};
use crate::ident::{NodeId, NodeName, Vmid};
use crate::pve::HostName;
use crate::pve::reply::GuestSummary;
use crate::wire::admin::{DnsSettings, NodeInfo};

/// Proxmox takes no longer notes.
use super::render::MAX_NOTES;

/// What our coordinator says.
#[derive(Debug, Clone, Copy)]
pub struct MeshView<'a> {
    /// Its address.
    pub url: &'a str,
    /// The DNS suffix of names in the mesh.
    pub base_domain: &'a str,
    /// The nodes.
    pub nodes: &'a [NodeInfo],
    /// How names are resolved.
    pub dns: &'a DnsSettings,
}

/// What is seen.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// Every guest of the cluster.
    pub guests: &'a [GuestSummary],
    /// Guests that are remembered and not listed, and that have no configuration where they were last.
    pub gone: &'a BTreeSet<Vmid>,
    /// Containers with our tag, as far as their configuration could be read.
    pub ours: &'a [Ours],
    /// The addresses of attached guests that run; one that nothing could be found out about is absent.
    pub seen: &'a BTreeMap<Vmid, Vec<IpAddr>>,
    /// The coordinator, if it answers.
    pub mesh: Option<MeshView<'a>>,
    /// What is remembered here.
    pub ledger: &'a Ledger,
    /// What copies get.
    pub clones: Clones,
    /// The guest that has just been started, as its hook says.
    pub started: Option<Vmid>,
    /// A number for what is made in this pass.
    pub run: RunId,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Remember this of a guest of ours. Nothing outside this machine changes.
    Remember(Vmid, Kept),
    /// Forget a guest. Nothing outside this machine changes.
    Forget(Vmid),
    /// Give a guest another identity.
    Renew(Box<Renew>),
    /// Write a guest's notes.
    Notes {
        /// The guest.
        vmid: Vmid,
        /// Where it is.
        host: HostName,
        /// What is to stand in them.
        part: Box<Part>,
        /// What to remember once they are written: not before, or a failure would look like a return to the past.
        kept: Kept,
    },
    /// Remove the node of a guest that is gone.
    RemoveNode {
        /// The guest.
        vmid: Vmid,
        /// The node.
        node: NodeId,
        /// Its name.
        name: NodeName,
    },
    /// Tell the addresses of an attached guest under its name; none takes the name away.
    Record {
        /// The guest.
        vmid: Vmid,
        /// The whole name.
        name: String,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// Replace the routes that a router may carry, for an attached guest.
    Approve {
        /// The guest.
        vmid: Vmid,
        /// The router.
        node: NodeId,
        /// Its name.
        name: NodeName,
        /// All it may carry from now on.
        routes: Vec<IpNet>,
        /// Those of them that are for this guest.
        own: Vec<IpNet>,
    },
}

/// Our part of a guest's notes as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What people read; what is there stays if absent.
    text: Option<String>,
    mark: Mark,
    /// The mark that was seen in them. Notes with another one are of another guest or another time.
    seen: Mark,
}

impl Part {
    /// The notes with it, as far as there is room.
    pub fn within(&self, notes: &str) -> String {
        let whole = self.text.as_ref().map(|text| block::replaced(notes, text, &self.mark)).filter(|whole| whole.len() <= MAX_NOTES);
        whole.unwrap_or_else(|| block::remarked(notes, &self.mark))
    }

    /// The same of notes that are read anew to be written; `None` if they have no room, or are not those that were judged.
    pub fn brought_into(&self, notes: &str) -> Option<String> {
        let new = self.within(notes);
        (Mark::find(notes).as_ref() == Some(&self.seen) && new.len() <= MAX_NOTES).then_some(new)
    }
}

impl Change {
    /// The guest that it is about.
    pub const fn vmid(&self) -> Vmid {
        match self {
            Self::Remember(vmid, _) | Self::Forget(vmid) => *vmid,
            Self::Renew(renew) => renew.vmid,
            Self::Notes { vmid, .. } | Self::RemoveNode { vmid, .. } | Self::Record { vmid, .. } | Self::Approve { vmid, .. } => *vmid,
        }
    }

    /// It changes nothing but what this machine remembers.
    pub const fn is_quiet(&self) -> bool {
        matches!(self, Self::Remember(..) | Self::Forget(_))
    }

    /// What is remembered once it is done.
    pub fn note(&self, ledger: &mut Ledger) {
        match self {
            Self::Remember(vmid, kept) | Self::Notes { vmid, kept, .. } => drop(ledger.guests.insert(*vmid, kept.clone())),
            Self::Renew(renew) => drop(ledger.guests.insert(renew.vmid, renew.kept.clone())),
            Self::Forget(vmid) => {
                ledger.guests.remove(vmid);
                ledger.attached.remove(vmid);
            }
            Self::RemoveNode { vmid, .. } => {
                if let Some(kept) = ledger.guests.get_mut(vmid) {
                    kept.node = None;
                }
            }
            Self::Record { vmid, name, addresses } => {
                if let Some(attached) = ledger.attached.get_mut(vmid) {
                    attached.record = (!addresses.is_empty()).then(|| name.clone());
                    attached.addresses.clone_from(addresses);
                }
            }
            Self::Approve { vmid, node, own, .. } => {
                if let Some(attached) = ledger.attached.get_mut(vmid) {
                    attached.approved.retain(|(router, _)| router != node);
                    attached.approved.extend(own.iter().map(|net| (*node, *net)));
                }
            }
        }
    }
}

impl fmt::Display for Change {
    /// The calls it makes, as `--dry-run` prints them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match self {
            Self::Remember(vmid, _) => write!(f, "this machine: remember guest {vmid}"),
            Self::Forget(vmid) => write!(f, "this machine: forget guest {vmid}"),
            Self::Renew(renew) => {
                write!(f, "guest {}: {}; ", renew.vmid, renew.reason)?;
                match &renew.key {
                    None => f.write_str("its keys are discarded and it gets no others (clones = \"refuse\")"),
                    Some(key) => {
                        for id in &renew.remove {
                            write!(f, "coordinator: DELETE nodes/{id}; ")?;
                        }
                        write!(f, "coordinator: POST keys only_for={}", renew.name)?;
                        if let Some(address) = key.address {
                            write!(f, " address={address}")?;
                        }
                        write!(f, "; the key is handed to the guest, which joins as {}", renew.name)
                    }
                }
            }
            Self::Notes { vmid, host, .. } => write!(f, "PUT /nodes/{host}/lxc/{vmid}/config description=(notes)"),
            Self::RemoveNode { vmid, node, name } => write!(f, "coordinator: DELETE nodes/{node} ({name}; guest {vmid} is gone)"),
            Self::Record { name, addresses, .. } if addresses.is_empty() => write!(f, "coordinator: POST dns without {name}"),
            Self::Record { name, addresses, .. } => {
                let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                write!(f, "coordinator: POST dns {name}={}", shown.join(","))
            }
            Self::Approve { node, name, routes, .. } => write!(f, "coordinator: POST nodes/{node}/routes ({name}) {}", all(routes)),
        }
    }
}

/// What a pass comes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pass {
    /// In this order.
    pub changes: Vec<Change>,
    /// What an admin should know and no change cures.
    pub said: Vec<String>,
}

/// Compares.
pub fn pass(world: &World<'_>) -> Pass {
    let mut pass = Pass::default();
    let mut taken = names(world);
    for guest in world.ours {
        pass.guest(world, guest, &mut taken);
    }
    for vmid in world.gone {
        pass.gone(world, *vmid);
    }
    attached::compare(world, &mut pass);
    // These take long if a guest does not join; nobody else should wait for it.
    pass.changes.sort_by_key(|change| matches!(change, Change::Renew(_)));
    pass
}

/// Names that a new node may not have.
fn names(world: &World<'_>) -> BTreeSet<NodeName> {
    let mesh = world.mesh.iter();
    let nodes = mesh.clone().flat_map(|mesh| mesh.nodes).map(|node| node.name.clone());
    let recorded = mesh.flat_map(|mesh| mesh.dns.records.keys().chain(mesh.dns.aliases.keys())).map(|name| NodeName::sanitised(name));
    let marked = world.ours.iter().filter_map(Ours::mark).map(|mark| mark.name);
    let attached = world.ledger.attached.values().map(|attached| attached.name.clone());
    nodes.chain(recorded).chain(marked).chain(attached).collect()
}

impl Pass {
    fn guest(&mut self, world: &World<'_>, guest: &Ours, taken: &mut BTreeSet<NodeName>) {
        let vmid = guest.vmid;
        let Some(mark) = guest.mark() else {
            self.said.push(format!("guest {vmid} has the tag of pvemesh, but its notes have lost our mark: it is left alone"));
            return;
        };
        if !mark.ready {
            return;
        }
        if !is_node(&mark.role) {
            if mark.vmid != vmid {
                let role = &mark.role;
                self.said.push(format!("guest {vmid} is a copy of {role} {}: it is left alone; keep one of the two stopped", mark.vmid));
            }
            return;
        }
        let kept = world.ledger.guests.get(&vmid);
        let nodes = world.mesh.map(|mesh| mesh.nodes).unwrap_or_default();
        // Without the coordinator nobody knows whether a node is missing there.
        let missing_counts = world.mesh.is_some();
        let reason =
            judge(guest, &mark, world.ours, kept, nodes).filter(|reason| missing_counts || *reason != super::identity::Reason::Returned);
        if let Some(reason) = reason {
            if world.mesh.is_none() {
                self.said.push(format!("guest {vmid}: {reason}; it gets another identity when the coordinator answers"));
            } else if !guest.running {
                self.said.push(format!("guest {vmid}: {reason}; it gets another identity once it runs"));
            } else {
                let refused = !reason.keeps_place() && world.clones == Clones::Refuse;
                // Its keys have been taken away already.
                if refused && kept.is_some_and(|kept| kept.mac == guest.mac() && kept.run != mark.run) {
                    self.said.push(format!("guest {vmid}: {reason}, and stays out of the mesh (clones = \"refuse\")"));
                    return;
                }
                let around = Around { nodes, taken, run: world.run, clones: world.clones };
                let renew = renew(guest, &mark, reason, kept, around);
                taken.insert(renew.name.clone());
                self.changes.push(Change::Renew(Box::new(renew)));
            }
            return;
        }
        self.notes(world, guest, &mark, kept, nodes.iter().find(|node| node.name == mark.name));
    }

    /// Brings notes and memory of a guest that is who it is up to date.
    fn notes(&mut self, world: &World<'_>, guest: &Ours, mark: &Mark, kept: Option<&Kept>, node: Option<&NodeInfo>) {
        let parent = guest.parent();
        let snapshot = kept.is_some_and(|kept| kept.run == mark.run && kept.parent != parent);
        let generation = mark.identity.generation + u64::from(snapshot || world.started == Some(guest.vmid));
        let v4 = node.and_then(|node| {
            node.addresses.iter().find_map(|address| match address {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            })
        });
        let identity = Identity { mac: guest.mac().or(mark.identity.mac), generation, address: v4.or(mark.identity.address) };
        let now = Mark { identity, ..mark.clone() };
        let next = Kept {
            name: mark.name.clone(),
            role: mark.role.clone(),
            run: mark.run,
            host: guest.host.clone(),
            mac: identity.mac,
            generation,
            node: node.map(|node| node.id).or(kept.filter(|kept| kept.run == mark.run).and_then(|kept| kept.node)),
            parent,
        };
        let before = &guest.config.description;
        let text = match (world.mesh, node) {
            (Some(mesh), Some(node)) => shown::text(mesh.url, guest.vmid, mark, node),
            _ => None,
        };
        let part = Part { text, mark: now, seen: mark.clone() };
        let written = part.within(before);
        if written.len() > MAX_NOTES {
            self.said.push(format!("guest {}: its notes are full ({MAX_NOTES} bytes), ours cannot be brought up to date", guest.vmid));
        } else if written.trim_end() != before.trim_end() {
            if guest.config.lock.is_none() {
                self.changes.push(Change::Notes { vmid: guest.vmid, host: guest.host.clone(), part: Box::new(part), kept: next });
            }
        } else if kept != Some(&next) {
            self.changes.push(Change::Remember(guest.vmid, next));
        }
    }

    /// A guest that is remembered and is no more.
    fn gone(&mut self, world: &World<'_>, vmid: Vmid) {
        let Some(kept) = world.ledger.guests.get(&vmid) else { return };
        // Another guest has taken its place, node and all.
        let inherited = world.ours.iter().filter_map(Ours::mark).any(|mark| mark.run == kept.run);
        match (kept.node.filter(|_| !inherited), world.mesh) {
            (Some(_), None) => {
                self.said.push(format!("guest {vmid} is gone; its node {} is removed when the coordinator answers", kept.name));
                return;
            }
            (Some(node), Some(mesh)) if mesh.nodes.iter().any(|there| there.id == node && there.name == kept.name) => {
                self.changes.push(Change::RemoveNode { vmid, node, name: kept.name.clone() });
            }
            _ => {}
        }
        self.changes.push(Change::Forget(vmid));
    }
}

/// What is to stand in the notes of a guest that has joined under its new identity, and what is to be remembered of it.
pub fn renewed(renew: &Renew, coordinator: &str, node: &NodeInfo) -> (Part, Kept) {
    let v4 = node.addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let identity = Identity { address: v4.or(renew.mark.identity.address), ..renew.mark.identity };
    let mark = Mark { identity, ..renew.mark.clone() };
    let text = shown::text(coordinator, renew.vmid, &mark, node);
    (Part { text, seen: mark.clone(), mark }, Kept { node: Some(node.id), ..renew.kept.clone() })
}

/// What [`attached`] adds for one guest that is to have no place in the mesh any more.
pub fn detach(vmid: Vmid, attached: &Attached, mesh: MeshView<'_>) -> Vec<Change> {
    attached::withdraw(vmid, attached, mesh)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests;
