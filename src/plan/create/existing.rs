//! What is there under the number already, and what is left to do about it.

use super::{ADDRESS_LIMIT, INTERFACE, ONLINE_LIMIT, Plan, START_LIMIT, tun};
use crate::ident::{NodeName, Vmid};
use crate::plan::mark::{Mark, RunId};
use crate::plan::observed::{Observed, Target};
use crate::plan::options::{GuestOptions, Role};
use crate::plan::refusal::Refusal;
use crate::plan::step::{Action, Step, TunEdit};
use crate::pve::conf::TunForm;
use crate::pve::{HostName, call};
use crate::settings::DEFAULT_COORDINATOR_PORT;

/// A guest of ours that is there and complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// Its number.
    pub vmid: Vmid,
    /// Where it is.
    pub host: HostName,
    /// Its name.
    pub name: NodeName,
    /// Running; if not, starting it is what is left to do.
    pub running: bool,
    /// What is to be done about its TUN device.
    pub tun: Option<TunEdit>,
}

/// The steps that bring a complete guest up again and, for a coordinator this machine does not know, learn its address and key.
///
/// # Errors
/// If a request cannot be built.
pub fn revive(existing: &Existing, role: &Role, is_known: bool, run: RunId) -> Result<Plan, Refusal> {
    let (host, vmid) = (&existing.host, existing.vmid);
    let mut steps = Vec::new();
    if let Some(edit) = existing.tun {
        let action = Action::EditTun { host: host.clone(), vmid, edit };
        steps.push(Step::plain("turn the old lines for /dev/net/tun into a device", action));
    }
    if !existing.running {
        let request = call::start(host, vmid)?;
        steps.push(Step::plain(format!("start container {vmid}"), Action::Call { request, task: Some(START_LIMIT) }));
    }
    if let Role::Coordinator { url, .. } = role
        && !is_known
    {
        let (host, interface) = (host.clone(), INTERFACE.to_owned());
        let action = Action::AwaitAddress { host, vmid, interface, expected: None, limit: ADDRESS_LIMIT };
        steps.push(Step::plain("look up its address", action));
        let action = Action::MeetCoordinator { vmid, port: DEFAULT_COORDINATOR_PORT, url: url.clone(), limit: ONLINE_LIMIT };
        steps.push(Step::plain("meet the coordinator", action));
    }
    Ok(Plan {
        vmid,
        name: existing.name.clone(),
        role: role.name(),
        host: host.clone(),
        run,
        choices: Vec::new(),
        differences: Vec::new(),
        steps,
    })
}

/// What is there under the number: nothing, the very guest wanted, or something in the way.
pub(super) fn existing<'o>(options: &GuestOptions, role: &Role, observed: &'o Observed) -> Result<Option<(Existing, &'o Target)>, Refusal> {
    let vmid = options.vmid;
    let Some(target) = &observed.target else {
        return match observed.guest(vmid) {
            Some(guest) => Err(Refusal::VmidInUse { vmid, name: guest.name.clone(), host: guest.host.clone() }),
            None => Ok(None),
        };
    };
    let Some(mark) = Mark::of_container(vmid, &target.config) else {
        return Err(foreign(vmid, target, observed));
    };
    if mark.role != role.name() {
        return Err(Refusal::OtherRole { vmid, is: mark.role, wanted: role.name() });
    }
    if !mark.ready {
        return Err(Refusal::Unfinished { vmid });
    }
    let tun = tun::mend(role, observed, target);
    if tun.is_none() && !target.running && TunForm::of(&target.config) == TunForm::Both {
        return Err(Refusal::TunTwice { vmid, host: target.host.clone() });
    }
    Ok(Some((Existing { vmid, host: target.host.clone(), name: mark.name, running: target.running, tun }, target)))
}

fn foreign(vmid: Vmid, target: &Target, observed: &Observed) -> Refusal {
    if let Some(lock) = target.config.lock.clone().filter(|lock| lock == "create") {
        return Refusal::Locked { vmid, lock };
    }
    let listed = observed.guest(vmid).map(|guest| guest.name.clone());
    let name = target.config.hostname.clone().or(listed).unwrap_or_default();
    Refusal::VmidInUse { vmid, name, host: target.host.clone() }
}
