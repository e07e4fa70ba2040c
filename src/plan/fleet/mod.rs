//! A whole fleet: what each declared guest needs, planned one after the other so that each plan knows of those before it.
//!
//! ```text
//!   fleet.toml --read--> Members --.
//!                                   >-- draw --> Draft { one Work a guest, the images to upload first } --> Schedule
//!   reads of the API --> Observed --'
//! ```

mod assign;
mod file;
mod prune;
mod schedule;

use std::collections::{BTreeMap, BTreeSet};

use super::change::Difference;
use super::create::{self, Existing, Image, Outcome, Plan};
use super::high_availability;
pub use super::mark::FleetName;
use super::mark::{RunId, TAG};
use super::observed::{HostView, Observed, Target};
use super::options::{GuestOptions, ROOT_VOLUME, Role};
use super::refusal::Refusal;
use super::step::Action;
use crate::ident::{NodeId, Vmid};
use crate::pve::reply::GuestSummary;
use crate::pve::{HostName, VolumeId};
pub use assign::{Site, Unplaced, assign};
pub use file::{FileError, Fleet, Member, Want, read};
pub use prune::{Pruned, prune};
pub use schedule::{AfterFailure, Job, Limits, Schedule};

/// What one declared guest needs.
#[derive(Debug)]
pub enum Work {
    /// Nothing.
    Nothing(Existing),
    /// It is there and complete, and has to be started.
    Start(Plan),
    /// It is there, and something about it differs.
    Change(Plan),
    /// It is not there.
    Create(Plan),
}

impl Work {
    /// The steps, if there is anything to do.
    pub fn plan(&self) -> Option<&Plan> {
        match self {
            Self::Nothing(_) => None,
            Self::Start(plan) | Self::Change(plan) | Self::Create(plan) => Some(plan),
        }
    }

    /// The same, to be amended.
    pub fn plan_mut(&mut self) -> Option<&mut Plan> {
        match self {
            Self::Nothing(_) => None,
            Self::Start(plan) | Self::Change(plan) | Self::Create(plan) => Some(plan),
        }
    }
}

/// What a fleet needs.
#[derive(Debug, Default)]
pub struct Draft {
    /// What each guest needs, in the file's order.
    pub works: Vec<(Vmid, Work)>,
    /// The images that the new guests are unpacked from and that are not there yet: uploaded once a host, before the first of them.
    pub uploads: BTreeSet<(HostName, VolumeId)>,
    /// Guests of pvemesh that the file does not declare.
    pub undeclared: Vec<GuestSummary>,
    /// The guests under high availability of each group: rules keep them apart.
    pub apart: BTreeMap<String, Vec<Vmid>>,
    /// What is worth saying.
    pub remarks: Vec<String>,
}

/// A guest that cannot be planned, and why.
#[derive(Debug)]
pub struct Blocked {
    /// The guest.
    pub vmid: Vmid,
    /// Why.
    pub refusal: Refusal,
}

/// What all plans look at.
#[derive(Debug, Clone)]
pub struct View {
    /// Hosts, guests and nodes; its target is not looked at. Without hosts only guests that are there can be planned.
    pub observed: Observed,
    /// The containers that are there under declared numbers.
    pub targets: BTreeMap<Vmid, Target>,
}

/// A declared guest with what only the run knows: who its coordinator is.
#[derive(Debug, Clone)]
pub struct Declared<'a> {
    /// As the file says.
    pub member: &'a Member,
    /// What it is for.
    pub role: Role,
    /// The run that works on it.
    pub run: RunId,
}

/// Plans a fleet.
///
/// # Errors
/// With the first guest that cannot be planned; nothing should be begun then.
pub fn draw(declared: &[Declared<'_>], view: &View, image: &Image) -> Result<Draft, Blocked> {
    let mut draft = Draft::default();
    let mut table = Table::new(view);
    for one in declared {
        let vmid = one.member.options.vmid;
        let blocked = |refusal| Blocked { vmid, refusal };
        let outcome = table.plan(one, image).map_err(blocked)?;
        let work = match outcome {
            Outcome::Change(plan) => Work::Change(plan),
            Outcome::AlreadyThere(existing) if existing.running && existing.tun.is_none() => Work::Nothing(existing),
            Outcome::AlreadyThere(existing) => Work::Start(create::revive(&existing, &one.role, true, one.run).map_err(blocked)?),
            Outcome::Plan(mut plan) => {
                table.add(&plan, one.member);
                draft.uploads.extend(take_uploads(&mut plan));
                Work::Create(plan)
            }
        };
        let managed = view.observed.guest(vmid).is_some_and(|guest| guest.managed);
        let wanted = one.member.high_availability.unwrap_or(managed);
        let work = if wanted == managed { work } else { with_availability(work, wanted, one) };
        if let (true, Some(group)) = (wanted, &one.member.group) {
            draft.apart.entry(group.clone()).or_default().push(vmid);
        }
        draft.works.push((vmid, work));
    }
    draft.remarks = table.crowded();
    let numbers: BTreeSet<Vmid> = declared.iter().map(|one| one.member.options.vmid).collect();
    let ours = |guest: &&GuestSummary| guest.container && guest.tags.iter().any(|tag| tag == TAG) && !numbers.contains(&guest.vmid);
    draft.undeclared = view.observed.guests.iter().filter(ours).cloned().collect();
    Ok(draft)
}

/// Work that also puts the guest under high availability, or takes it out.
fn with_availability(work: Work, wanted: bool, one: &Declared<'_>) -> Work {
    let words = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let difference = Difference { what: "high availability", from: words(!wanted), to: words(wanted) };
    let step = |vmid| if wanted { high_availability::join(vmid) } else { high_availability::leave(vmid) };
    match work {
        Work::Nothing(existing) => {
            let Existing { vmid, host, name, .. } = existing;
            let (role, run, choices) = (one.role.name(), one.run, Vec::new());
            Work::Change(Plan { vmid, name, role, host, run, choices, differences: vec![difference], steps: vec![step(vmid)] })
        }
        // One that is started or changed leaves before and joins after.
        Work::Start(mut plan) | Work::Change(mut plan) => {
            let at = if wanted { plan.steps.len() } else { 0 };
            plan.steps.insert(at, step(plan.vmid));
            plan.differences.push(difference);
            Work::Change(plan)
        }
        Work::Create(mut plan) => {
            plan.steps.push(step(plan.vmid));
            Work::Create(plan)
        }
    }
}

/// Takes the upload of the image that serves every guest out of a plan.
fn take_uploads(plan: &mut Plan) -> Vec<(HostName, VolumeId)> {
    let mut uploads = Vec::new();
    plan.steps.retain(|step| match &step.action {
        Action::Upload { host, volume } => {
            uploads.push((host.clone(), volume.clone()));
            false
        }
        _ => true,
    });
    uploads
}

/// What is there, and what the plans so far will have added to it.
struct Table<'a> {
    observed: Observed,
    targets: &'a BTreeMap<Vmid, Target>,
    /// Which hosts have guests of a group.
    groups: BTreeMap<&'a str, Vec<(Vmid, HostName)>>,
}

impl<'a> Table<'a> {
    fn new(view: &'a View) -> Self {
        let mut observed = view.observed.clone();
        // A fleet spreads out; the host that the command runs on has no first claim.
        observed.local = None;
        Self { observed, targets: &view.targets, groups: BTreeMap::new() }
    }

    fn plan(&mut self, one: &Declared<'a>, image: &Image) -> Result<Outcome, Refusal> {
        let options = &one.member.options;
        self.observed.target = self.targets.get(&options.vmid).cloned();
        let group = one.member.group.as_deref();
        if let (Some(group), Some(target)) = (group, &self.observed.target) {
            self.groups.entry(group).or_default().push((options.vmid, target.host.clone()));
        }
        if let Some(apart) = group.and_then(|group| self.apart(group, options))
            && let Ok(outcome) = create::create(options, &one.role, &apart, image, one.run)
        {
            return Ok(outcome);
        }
        create::create(options, &one.role, &self.observed, image, one.run)
    }

    /// The same view without the hosts that have a guest of the group already; `None` if that is not to be looked at.
    fn apart(&self, group: &str, options: &GuestOptions) -> Option<Observed> {
        let taken = self.groups.get(group).filter(|_| options.host.is_none() && self.observed.target.is_none())?;
        let mut observed = self.observed.clone();
        observed.hosts.retain(|host| taken.iter().all(|(_, on)| *on != host.name));
        (!observed.hosts.is_empty()).then_some(observed)
    }

    /// Takes a planned guest into account: its name, its room, and the image that will be there.
    fn add(&mut self, plan: &Plan, member: &'a Member) {
        if let Some(group) = member.group.as_deref() {
            self.groups.entry(group).or_default().push((plan.vmid, plan.host.clone()));
        }
        self.observed.guests.push(planned(plan));
        self.observed.mesh.push((NodeId::default(), plan.name.clone()));
        let chosen = |what: &str| plan.choices.iter().find(|choice| choice.what == what).map(|choice| choice.value.clone());
        let storage = chosen("storage").unwrap_or_default();
        let uploads: Vec<VolumeId> = plan
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::Upload { volume, .. } => Some(volume.clone()),
                _ => None,
            })
            .collect();
        let host: Option<&mut HostView> = self.observed.hosts.iter_mut().find(|host| host.name == plan.host);
        if let Some(host) = host {
            host.templates.extend(uploads);
            for one in host.storages.iter_mut().filter(|one| one.name.as_str() == storage) {
                one.available = one.available.map(|free| free.saturating_sub(u64::from(ROOT_VOLUME) << 20));
            }
        }
    }

    /// Groups of which several guests share a host.
    fn crowded(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for (group, members) in &self.groups {
            for host in members.iter().map(|(_, host)| host).collect::<BTreeSet<_>>() {
                let here: Vec<String> = members.iter().filter(|(_, on)| on == host).map(|(vmid, _)| vmid.to_string()).collect();
                if here.len() > 1 {
                    remarks.push(format!("guests {} of group {group} share the host {host}, and go down with it", here.join(", ")));
                }
            }
        }
        remarks
    }
}

/// A guest as it will stand in the list once its plan is carried out.
fn planned(plan: &Plan) -> GuestSummary {
    GuestSummary {
        vmid: plan.vmid,
        host: plan.host.clone(),
        container: true,
        name: plan.name.to_string(),
        running: false,
        tags: vec![TAG.to_owned()],
        managed: false,
    }
}
