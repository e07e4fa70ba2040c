//! Removing a guest with everything that belongs to it.

use std::time::Duration;

use super::create::Image;
use super::enroll::ENROLLED;
use super::high_availability;
use super::mark::{Mark, TAG};
use super::observed::Observed;
use super::refusal::Refusal;
use super::step::{Action, Step};
use crate::ident::{NodeName, Vmid};
use crate::pve::{HostName, call};

/// Seconds a guest gets to end by itself; ours needs less than one.
const GRACE_SECS: u16 = 10;
const STOP_LIMIT: Duration = Duration::from_secs(60);
const DESTROY_LIMIT: Duration = Duration::from_secs(120);
const DELETE_LIMIT: Duration = Duration::from_secs(60);

/// The steps that remove a guest.
#[derive(Debug)]
pub struct Removal {
    /// The guest.
    pub vmid: Vmid,
    /// Its name.
    pub name: NodeName,
    /// Its role's name.
    pub role: String,
    /// Where it is.
    pub host: HostName,
    /// What is done, in order. The removal of the container comes first; if a later step fails, the others are still worth doing.
    pub steps: Vec<Step>,
}

/// Plans the removal of a guest of ours.
///
/// `known_coordinator` is the guest of the coordinator this machine knows, if it has one: its nodes are removed there too.
///
/// # Errors
/// If the guest is not there, not ours, or locked.
pub fn destroy(vmid: Vmid, observed: &Observed, known_coordinator: Option<Option<Vmid>>) -> Result<Removal, Refusal> {
    let Some(target) = &observed.target else {
        return Err(match observed.guest(vmid) {
            Some(guest) => Refusal::NotOurs { vmid, name: guest.name.clone() },
            None => Refusal::NoSuchGuest(vmid),
        });
    };
    let Some(mark) = Mark::of_container(vmid, &target.config) else {
        return Err(Refusal::NotOurs { vmid, name: target.config.hostname.clone().unwrap_or_default() });
    };
    if mark.role.starts_with(ENROLLED) {
        let why = format!("container {vmid} is its owner's; pvemesh has put a node into it");
        return Err(Refusal::Guest { why, next: format!("take the node out again: pvemesh unenroll {vmid}") });
    }
    if let Some(lock) = &target.config.lock {
        return Err(Refusal::Locked { vmid, lock: lock.clone() });
    }
    let host = &target.host;
    let mut steps = Vec::new();
    if observed.guest(vmid).is_some_and(|guest| guest.managed) {
        // Under the manager a stop is only asked for, and the guest might be started again.
        steps.push(high_availability::leave(vmid));
    }
    if target.running {
        let request = call::shutdown(host, vmid, GRACE_SECS)?;
        steps.push(Step::plain(format!("stop container {vmid}"), Action::Call { request, task: Some(STOP_LIMIT) }));
    }
    let request = call::destroy(host, vmid)?;
    steps.push(Step::plain(format!("remove container {vmid}"), Action::Call { request, task: Some(DESTROY_LIMIT) }));
    let is_coordinator = mark.role == "coordinator";
    match known_coordinator {
        Some(guest) if is_coordinator && guest == Some(vmid) => {
            steps.push(Step::plain("forget the coordinator", Action::ForgetCoordinator(vmid)));
        }
        Some(_) if mark.role == "relay" => {
            steps.push(Step::plain(format!("take relay {} out of the relay map", mark.name), Action::RemoveRelay(mark.name.clone())));
        }
        Some(_) if !is_coordinator && mark.role != super::golden::ROLE => {
            steps.push(Step::plain(format!("remove node {} from the coordinator", mark.name), Action::RemoveNode(mark.name.clone())));
        }
        _ => {}
    }
    let others = observed.guests.iter().any(|guest| guest.vmid != vmid && guest.tags.iter().any(|tag| tag == TAG));
    if !others {
        for view in observed.hosts.iter().filter(|view| view.name == *host) {
            for volume in view.templates.iter().filter(|volume| Image::is_ours(volume.file_name())) {
                let request = call::delete_volume(host, volume, 15)?;
                steps.push(Step::plain(
                    format!("remove the image {}", volume.file_name()),
                    Action::Call { request, task: Some(DELETE_LIMIT) },
                ));
            }
        }
    }
    Ok(Removal { vmid, name: mark.name, role: mark.role, host: host.clone(), steps })
}
