//! Changing a guest that is there: an option that differs changes just that, and an option that was not given changes nothing.
//!
//! Proxmox's own keys (memory, cores, the bridge) are set while the guest runs. What the guest itself was told is handed over again and takes a
//! restart; the guest keeps its keys and addresses. It travels in the environment of the guest's init, and where Proxmox has none (before
//! 9.1) as a file that is written in the running guest, where its init looks for one at each start.

mod difference;

use std::collections::BTreeMap;

use super::create::{ADDRESS_LIMIT, Existing, INTERFACE, ONLINE_LIMIT, Plan, START_LIMIT};
use super::guest::{APPLIANCE_PROGRAM, SETTINGS};
use super::inside::{Content, Deed, InsideAction};
use super::mark::{Mark, RunId};
use super::observed::{Observed, Target};
use super::options::{GuestOptions, Join, Role};
use super::refusal::Refusal;
use super::render::{self, Notes};
use super::step::{Action, Carrier, Step, Undo};
use super::told;
use crate::ident::NodeName;
use crate::pve::{Version, call};
use crate::settings::{DEFAULT_COORDINATOR_PORT, Guest, Ipv4Setup};
pub use difference::Difference;
use difference::{Comparison, Differences};

/// Seconds a guest gets to end by itself before it is started again.
const GRACE_SECS: u16 = 10;

/// What is changed about a guest that is there; `None` if nothing that was asked for differs.
///
/// # Errors
/// If something differs that cannot be changed, or what the guest was told is not known.
pub(super) fn plan(
    (options, role): (&GuestOptions, &Role),
    (existing, target): (&Existing, &Target),
    observed: &Observed,
    run: RunId,
    version: &str,
) -> Result<Option<Plan>, Refusal> {
    let told = told::find(&target.config.description).filter(|guest| guest.vmid == existing.vmid);
    let comparison = Comparison { options, role, target, name: &existing.name, told: told.as_ref(), observed };
    let found = comparison.differences()?;
    if found.all.is_empty() {
        return Ok(None);
    }
    if let Some(lock) = &target.config.lock {
        return Err(Refusal::Locked { vmid: existing.vmid, lock: lock.clone() });
    }
    let differences = found.all.clone();
    let name = found.name.clone().unwrap_or_else(|| existing.name.clone());
    let changer = Changer { role, existing, target, told: told.as_ref(), observed, run, version, name: &name };
    let steps = changer.steps(found)?;
    let (vmid, host) = (existing.vmid, existing.host.clone());
    Ok(Some(Plan { vmid, name, role: role.name(), host, run, choices: Vec::new(), differences, steps }))
}

struct Changer<'a> {
    role: &'a Role,
    existing: &'a Existing,
    target: &'a Target,
    told: Option<&'a Guest>,
    observed: &'a Observed,
    run: RunId,
    version: &'a str,
    name: &'a NodeName,
}

impl Changer<'_> {
    fn steps(&self, found: Differences) -> Result<Vec<Step>, Refusal> {
        let (host, vmid) = (&self.existing.host, self.existing.vmid);
        let mut steps = Vec::new();
        if !found.set.is_empty() {
            steps.push(self.set(&found.set)?);
        }
        if let Some(guest) = found.guest {
            let before = self.told.ok_or(Refusal::Untold { vmid })?;
            // Rendering may refuse; better now than after the first write.
            render::guest(&guest)?;
            let carrier = self.carrier();
            if carrier == Carrier::Inside {
                self.push_way_in(&mut steps)?;
            }
            self.push_coordinator(&mut steps, found.name, found.routes);
            self.push_settings(&mut steps, before, &guest, carrier);
            self.push_restart(&mut steps, carrier)?;
            self.push_wait(&mut steps, &guest);
            if carrier == Carrier::Environment {
                let request = call::clear_environment(host, vmid)?;
                steps.push(Step::plain("take the settings back out of the environment", Action::Call { request, task: None }));
            }
            let notes = Box::new(Notes::of(&guest, self.role.words(), self.version));
            steps.push(Step::plain("write the notes", Action::Finish { host: host.clone(), notes, mark: self.mark() }));
        }
        Ok(steps)
    }

    /// Sets Proxmox's own keys in one call, refused if somebody changed the guest since we looked.
    fn set(&self, set: &BTreeMap<&'static str, String>) -> Result<Step, Refusal> {
        let (host, vmid) = (&self.existing.host, self.existing.vmid);
        let values = &self.target.config.values;
        let before: BTreeMap<String, String> = set.keys().filter_map(|key| Some(((*key).to_owned(), values.get(*key)?.clone()))).collect();
        let added: Vec<String> = set.keys().filter(|key| !values.contains_key(**key)).map(|key| (*key).to_owned()).collect();
        let request = call::set_values(host, vmid, set, self.target.config.digest.as_deref());
        let title = format!("change {} of container {vmid}", set.keys().copied().collect::<Vec<_>>().join(", "));
        let undo = Undo::PutBack { host: host.clone(), vmid, values: before, added };
        Ok(Step::undone_by(title, Action::Call { request, task: None }, undo))
    }

    /// The environment came with 9.1; without it the settings need a way into the guest.
    fn carrier(&self) -> Carrier {
        let version = self.observed.host(&self.existing.host).and_then(|host| host.version);
        if version.is_some_and(|version| version < Version::ENVIRONMENT) { Carrier::Inside } else { Carrier::Environment }
    }

    /// Brings up a guest that is to be entered, and enters it once: whether that works shows before anything has to be taken back.
    fn push_way_in(&self, steps: &mut Vec<Step>) -> Result<(), Refusal> {
        let vmid = self.existing.vmid;
        if !self.existing.running {
            steps.push(self.start()?);
        }
        let deed = Deed::Run { commands: vec![vec![APPLIANCE_PROGRAM.to_owned(), "--version".to_owned()]], with_key: false };
        steps.push(Step::plain(format!("enter container {vmid}"), self.inside(deed)));
        Ok(())
    }

    fn inside(&self, deed: Deed) -> Action {
        Action::Inside(InsideAction { host: self.existing.host.clone(), vmid: self.existing.vmid, deed })
    }

    fn start(&self) -> Result<Step, Refusal> {
        let (host, vmid) = (&self.existing.host, self.existing.vmid);
        let action = Action::Call { request: call::start(host, vmid)?, task: Some(START_LIMIT) };
        Ok(Step::undone_by(format!("start container {vmid}"), action, Undo::Stop { host: host.clone(), vmid }))
    }

    fn push_settings(&self, steps: &mut Vec<Step>, before: &Guest, guest: &Guest, carrier: Carrier) {
        let host = self.existing.host.clone();
        let undo = Undo::HandBack { host: host.clone(), settings: Box::new(before.clone()), restart: self.existing.running, carrier };
        let guest = Box::new(guest.clone());
        let action = match carrier {
            Carrier::Environment => Action::Redeliver { host, guest },
            Carrier::Inside => self.inside(Deed::Write {
                program: APPLIANCE_PROGRAM.to_owned(),
                to: SETTINGS.to_owned(),
                mode: 0o600,
                content: Content::Settings(guest),
            }),
        };
        steps.push(Step::undone_by("hand over the new settings", action, undo));
    }

    /// What the coordinator is told before the guest comes back as something else.
    fn push_coordinator(&self, steps: &mut Vec<Step>, name: Option<NodeName>, routes: Option<(Vec<ipnet::IpNet>, Vec<ipnet::IpNet>)>) {
        let Role::Node { join: Join::Ours(_), .. } = self.role else { return };
        let is = &self.existing.name;
        if let Some((add, remove)) = routes {
            let undo = Undo::ApproveRoutes { name: is.clone(), add: remove.clone(), remove: add.clone() };
            let action = Action::ApproveRoutes { name: is.clone(), add, remove };
            steps.push(Step::undone_by(format!("approve the routes of {is}"), action, undo));
        }
        if let Some(to) = name {
            let undo = Undo::RenameNode { from: to.clone(), to: is.clone() };
            let action = Action::RenameNode { from: is.clone(), to };
            steps.push(Step::undone_by("rename it at the coordinator", action, undo));
        }
    }

    fn push_restart(&self, steps: &mut Vec<Step>, carrier: Carrier) -> Result<(), Refusal> {
        let (host, vmid) = (&self.existing.host, self.existing.vmid);
        steps.push(if self.existing.running || carrier == Carrier::Inside {
            let request = call::reboot(host, vmid, GRACE_SECS)?;
            Step::plain(format!("restart container {vmid}"), Action::Call { request, task: Some(START_LIMIT) })
        } else {
            self.start()?
        });
        Ok(())
    }

    fn push_wait(&self, steps: &mut Vec<Step>, guest: &Guest) {
        let (host, vmid) = (&self.existing.host, self.existing.vmid);
        let expected = match guest.network.ipv4 {
            Ipv4Setup::Fixed(net) => Some(net.addr().into()),
            Ipv4Setup::Dhcp | Ipv4Setup::None => None,
        };
        let (host, interface) = (host.clone(), INTERFACE.to_owned());
        let address = Action::AwaitAddress { host: host.clone(), vmid, interface, expected, limit: ADDRESS_LIMIT };
        match self.role {
            Role::Coordinator { .. } => {
                steps.push(Step::plain("wait for its address", address));
                let url = self.public_url(guest);
                let action = Action::MeetCoordinator { vmid, port: DEFAULT_COORDINATOR_PORT, url, limit: ONLINE_LIMIT };
                steps.push(Step::plain("wait for the coordinator", action));
            }
            Role::Relay { .. } => steps.push(Step::plain("wait for its address", address)),
            Role::Node { join: Join::Ours(_), .. } => {
                let name = self.name.clone();
                steps.push(Step::plain(format!("wait for {name} to come back"), Action::AwaitNode { name, limit: ONLINE_LIMIT }));
            }
            Role::Node { join: Join::Other { .. }, .. } => {
                let action = Action::AwaitMeshAddress { host, vmid, limit: ONLINE_LIMIT };
                steps.push(Step::plain(format!("wait for {} to come back", self.name), action));
            }
        }
    }

    /// The address that a coordinator's clients are told, if it was given one; a change of something else must not lose it.
    fn public_url(&self, guest: &Guest) -> Option<String> {
        let told = &guest.coordinator.as_ref()?.url;
        let fixed = match guest.network.ipv4 {
            Ipv4Setup::Fixed(net) => Some(net.addr().to_string()),
            Ipv4Setup::Dhcp | Ipv4Setup::None => None,
        };
        let own = [Some(self.existing.name.to_string()), Some(guest.hostname.to_string()), fixed];
        let is_own = own.into_iter().flatten().any(|host| *told == format!("http://{host}:{DEFAULT_COORDINATOR_PORT}"));
        (!is_own).then(|| told.clone())
    }

    fn mark(&self) -> Mark {
        let vmid = self.existing.vmid;
        let (identity, fleet) = Mark::of_container(vmid, &self.target.config).map(|mark| (mark.identity, mark.fleet)).unwrap_or_default();
        Mark { vmid, role: self.role.name().to_owned(), name: self.name.clone(), run: self.run, ready: true, identity, fleet }
    }
}
