//! Guests without a client: their names follow their addresses, and their routes follow both.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Change, MeshView, Pass, World};
use crate::ident::{NodeId, Vmid};
use crate::plan::attach::{Way, recorded, way};
use crate::plan::ledger::Attached;

/// What routers may carry, as it is being changed for one guest after another.
struct Approvals<'a> {
    mesh: MeshView<'a>,
    now: BTreeMap<NodeId, Vec<IpNet>>,
}

impl<'a> Approvals<'a> {
    fn new(mesh: MeshView<'a>) -> Self {
        let now = mesh.nodes.iter().map(|node| (node.id, node.approved_routes.clone())).collect();
        Self { mesh, now }
    }

    /// The changes that leave these routers, and no others, with these routes for a guest.
    fn set(&mut self, vmid: Vmid, attached: &Attached, wanted: &[(NodeId, IpNet)]) -> Vec<Change> {
        let mut changes = Vec::new();
        for node in self.mesh.nodes {
            let own: Vec<IpNet> = wanted.iter().filter(|(id, _)| *id == node.id).map(|(_, net)| *net).collect();
            let old: Vec<IpNet> = attached.approved.iter().filter(|(id, _)| *id == node.id).map(|(_, net)| *net).collect();
            let Some(now) = self.now.get_mut(&node.id) else { continue };
            let before = now.clone();
            now.retain(|net| own.contains(net) || !old.contains(net));
            now.extend(own.iter().filter(|net| !before.contains(net)));
            if *now != before || own != old {
                let (name, routes) = (node.name.clone(), now.clone());
                changes.push(Change::Approve { vmid, node: node.id, name, routes, own });
            }
        }
        changes
    }
}

/// Compares all of them.
pub(super) fn compare(world: &World<'_>, pass: &mut Pass) {
    let ledger = world.ledger;
    let Some(mesh) = world.mesh else {
        if !ledger.attached.is_empty() {
            pass.said.push("the names of attached guests are brought up to date when the coordinator answers".to_owned());
        }
        return;
    };
    let mut approvals = Approvals::new(mesh);
    for (vmid, attached) in &ledger.attached {
        if world.gone.contains(vmid) {
            pass.changes.extend(record(*vmid, attached, mesh, &[]));
            pass.changes.extend(approvals.set(*vmid, attached, &[]));
            pass.changes.push(Change::Forget(*vmid));
            continue;
        }
        let Some(guest) = world.guests.iter().find(|guest| guest.vmid == *vmid) else { continue };
        let addresses = match world.seen.get(vmid) {
            _ if !guest.running => Vec::new(),
            Some(addresses) if !addresses.is_empty() => addresses.clone(),
            // Its agent may be starting: what was told stays.
            _ => {
                if attached.addresses.is_empty() {
                    pass.said.push(unseen(*vmid, attached));
                }
                continue;
            }
        };
        pass.changes.extend(record(*vmid, attached, mesh, &addresses));
        let wanted = if attached.route { routes(*vmid, &addresses, mesh, pass) } else { Vec::new() };
        pass.changes.extend(approvals.set(*vmid, attached, &wanted));
    }
}

fn unseen(vmid: Vmid, attached: &Attached) -> String {
    let why = if attached.container { "it has none yet" } else { "install the QEMU guest agent in it (and set agent: 1)" };
    format!("guest {vmid} ({}) runs, but its addresses cannot be seen: {why}", attached.name)
}

fn record(vmid: Vmid, attached: &Attached, mesh: MeshView<'_>, addresses: &[IpAddr]) -> Vec<Change> {
    let name = format!("{}.{}", attached.name, mesh.base_domain);
    let mut changes = Vec::new();
    // The coordinator's domain may have changed, or the guest's name.
    if let Some(old) = attached.record.as_ref().filter(|old| **old != name && mesh.dns.records.contains_key(*old)) {
        changes.push(Change::Record { vmid, name: old.clone(), addresses: Vec::new() });
    }
    // A name that is there and was not told by us is somebody else's.
    let foreign = attached.record.is_none() && mesh.dns.records.get(&name).is_some_and(|there| there.as_slice() != addresses);
    let known = attached.record.as_ref().is_some_and(|old| *old == name);
    if foreign {
        return changes;
    }
    if recorded(mesh.dns, &name, addresses).is_some() || known == addresses.is_empty() {
        changes.push(Change::Record { vmid, name, addresses: addresses.to_vec() });
    }
    changes
}

fn routes(vmid: Vmid, addresses: &[IpAddr], mesh: MeshView<'_>, pass: &mut Pass) -> Vec<(NodeId, IpNet)> {
    let mut wanted = Vec::new();
    for address in addresses {
        match way(*address, mesh.nodes) {
            Way::Carried(_) => {}
            Way::Approve(routers) => wanted.extend(routers.into_iter().map(|router| (router, IpNet::from(*address)))),
            // Names of both families are told; a LAN without a router for IPv6 is no fault.
            Way::None if address.is_ipv6() && addresses.len() > 1 => {}
            Way::None => {
                let net = IpNet::new(*address, if address.is_ipv4() { 24 } else { 64 })
                    .map_or_else(|_| address.to_string(), |net| net.trunc().to_string());
                pass.said.push(format!(
                    "guest {vmid}: no subnet router that is online reaches {address}: pvemesh create-subnet-router ID --route {net}"
                ));
            }
        }
    }
    wanted
}

/// The changes that take a guest's name and routes out of the mesh.
pub(super) fn withdraw(vmid: Vmid, attached: &Attached, mesh: MeshView<'_>) -> Vec<Change> {
    let mut changes = record(vmid, attached, mesh, &[]);
    changes.extend(Approvals::new(mesh).set(vmid, attached, &[]));
    changes
}
