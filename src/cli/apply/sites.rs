//! The hosts and clusters of a fleet: which are needed, what is there, and what is to be done on each.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::connect::{ConnectArgs, Session, call_failure, refusal};
use crate::cli::ways::WayArgs;
use crate::cli::{Exit, Failure, Output, hook, hosts, rights};
use crate::ident::{NodeId, NodeName, Vmid};
use crate::plan::create::Image;
use crate::plan::destroy::Removal;
use crate::plan::fleet::{self, Blocked, Declared, Draft, Fleet, FleetName, View, Work};
use crate::plan::mark::{Mark, TAG};
use crate::plan::observed::Target;
use crate::pve::reply::GuestSummary;
use crate::sys::pve::fleet::{look, look_at_hosts, targets};
use crate::sys::pve::{Mesh, observe};

/// A host or cluster, and its guests.
pub(super) struct Site {
    /// What it is called; absent where this very host is meant.
    pub(super) name: Option<String>,
    pub(super) session: Session,
    pub(super) guests: Vec<GuestSummary>,
}

impl Site {
    /// Looks again.
    pub(super) async fn refresh(&mut self, tried: &str) -> Result<(), Failure> {
        self.guests = observe::guests(&*self.session.executor).await.map_err(|e| call_failure(tried, &e))?;
        Ok(())
    }
}

/// Opens what the file names: all that are set up if some guest names none, or if guests may have to go anywhere. With `--host` it is that one alone,
/// and guests that name another are left out.
pub(super) async fn open(
    connect: &ConnectArgs,
    fleet: &mut Fleet,
    prune: bool,
    (tried, output): (&str, &Output),
) -> Result<Vec<Site>, Failure> {
    if let Some(only) = &connect.host {
        let before = fleet.members.len();
        fleet.members.retain(|member| member.host.as_ref().is_none_or(|host| host == only));
        if fleet.members.len() < before {
            output.note(format!("{} guests of other hosts are left out (--host {only})", before - fleet.members.len()));
        }
    }
    let named: Option<BTreeSet<String>> = fleet.members.iter().map(|member| member.host.clone()).collect();
    let named = named.filter(|named| !prune && !named.is_empty());
    let mut sites = Vec::new();
    for (name, session) in hosts::each(connect, named.as_ref()).await? {
        let mut site = Site { name, session, guests: Vec::new() };
        site.refresh(tried).await?;
        sites.push(site);
    }
    Ok(sites)
}

/// Which site each member is on.
pub(super) fn assign(fleet: &Fleet, sites: &[Site], tried: &str) -> Result<Vec<usize>, Failure> {
    let known: Vec<fleet::Site<'_>> = sites.iter().map(|site| fleet::Site { name: site.name.as_deref(), guests: &site.guests }).collect();
    fleet::assign(&fleet.members, &known).map_err(|unplaced| Failure::new(tried, &unplaced, unplaced.next.clone()).exit(Exit::Usage))
}

/// What is to be done on one site.
pub(super) struct Planned<'s> {
    pub(super) site: &'s Site,
    pub(super) view: View,
    pub(super) draft: Draft,
    pub(super) removals: Vec<Removal>,
}

impl Planned<'_> {
    /// The site's name where it has to be said.
    pub(super) fn cluster(&self, several: bool) -> Option<&str> {
        self.site.name.as_deref().filter(|_| several)
    }
}

/// What the plans of all sites depend on.
pub(super) struct Planner<'a> {
    pub(super) mesh: Option<&'a dyn Mesh>,
    pub(super) image: &'a Image,
    pub(super) way: &'a WayArgs,
    pub(super) dry_run: bool,
    /// The fleet whose guests go if the file does not declare them.
    pub(super) prune: Option<&'a FleetName>,
    pub(super) tried: &'a str,
}

impl Planner<'_> {
    /// Plans all sites, each knowing the names that those before it give.
    pub(super) async fn all<'s>(&self, sites: &'s [Site], declared: &[Vec<Declared<'_>>]) -> Result<Vec<Planned<'s>>, Failure> {
        let mut names: Vec<(NodeId, NodeName)> = match self.mesh {
            Some(mesh) => {
                let nodes = mesh.nodes().await;
                let nodes =
                    nodes.map_err(|e| Failure::new(self.tried, e, "is this machine's admin key still known to it?").exit(Exit::Denied))?;
                nodes.into_iter().map(|node| (node.id, node.name)).collect()
            }
            None => Vec::new(),
        };
        let mut all: Vec<Planned<'s>> = Vec::new();
        for (number, (site, declared)) in sites.iter().zip(declared).enumerate() {
            // Their guests are of the same mesh and may not know our coordinator.
            let elsewhere = sites.iter().enumerate().filter(|(other, _)| *other != number).flat_map(|(_, other)| &other.guests);
            let elsewhere = elsewhere.filter(|guest| is_ours(guest)).filter_map(|guest| guest.name.parse().ok());
            let taken = names.iter().cloned().chain(elsewhere.map(|name| (NodeId::default(), name))).collect();
            let planned = self.one(site, declared, taken).await?;
            let given = planned.draft.works.iter().filter_map(|(_, work)| work.plan());
            names.extend(given.map(|plan| (NodeId::default(), plan.name.clone())));
            all.push(planned);
        }
        Ok(all)
    }

    /// Reads what is there and plans; hosts are looked at only if something is to be done.
    async fn one<'s>(&self, site: &'s Site, declared: &[Declared<'_>], names: Vec<(NodeId, NodeName)>) -> Result<Planned<'s>, Failure> {
        let tried = self.tried;
        let (session, executor) = (&site.session, &*site.session.executor);
        let numbers: BTreeSet<Vmid> = declared.iter().map(|one| one.member.options.vmid).collect();
        let mut view = look(executor, site.guests.clone(), &numbers, names).await.map_err(|e| call_failure(tried, &e))?;
        let blocked = |blocked: Blocked| refusal(format!("{tried}: guest {}", blocked.vmid), &blocked.refusal);
        let going = self.going(site, &numbers).await?;
        let all_there = numbers.iter().all(|vmid| view.targets.contains_key(vmid));
        if all_there && going.is_empty() {
            let draft = fleet::draw(declared, &view, self.image).map_err(blocked)?;
            if draft.works.iter().all(|(_, work)| matches!(work, Work::Nothing(_) | Work::Start(_))) {
                return Ok(Planned { site, view, draft, removals: Vec::new() });
            }
        }
        look_at_hosts(executor, &mut view).await.map_err(|e| call_failure(tried, &e))?;
        let (hookscript, script) = hook::for_new_guests(session, &view.observed).await;
        view.observed.hookscript = hookscript;
        let mut draft = fleet::draw(declared, &view, self.image).map_err(blocked)?;
        for (vmid, work) in &mut draft.works {
            let Some(plan) = work.plan_mut() else { continue };
            let host = plan.host.clone();
            plan.choices.extend(rights::review(executor, tried, &view.observed, &host, &mut plan.steps).await?);
            // Whether there is one shows before anything is begun.
            self.way.of_plan(session, plan, &view.observed, &format!("{tried}: guest {vmid}"))?;
        }
        let mut removals = Vec::new();
        if let Some(fleet) = self.prune {
            let known = session.config.coordinator.as_ref().map(|coordinator| coordinator.vmid);
            let pruned = fleet::prune(fleet, &view, &draft, &going, known).map_err(blocked)?;
            removals = pruned.removals;
            for removal in &mut removals {
                let host = removal.host.clone();
                rights::review(executor, tried, &view.observed, &host, &mut removal.steps).await?;
            }
            draft.remarks.extend(pruned.remarks);
            draft.undeclared.retain(|guest| removals.iter().all(|removal| removal.vmid != guest.vmid));
        }
        let makes = draft.works.iter().any(|(_, work)| matches!(work, Work::Create(_)));
        if let Some(script) = script.filter(|_| makes && !self.dry_run) {
            script.put()?;
        }
        Ok(Planned { site, view, draft, removals })
    }

    /// The guests that were made for the fleet and are not declared, if such are to go.
    async fn going(&self, site: &Site, declared: &BTreeSet<Vmid>) -> Result<BTreeMap<Vmid, Target>, Failure> {
        let Some(fleet) = self.prune else { return Ok(BTreeMap::new()) };
        let undeclared = site.guests.iter().filter(|guest| is_ours(guest) && !declared.contains(&guest.vmid));
        let mut found = targets(&*site.session.executor, undeclared).await.map_err(|e| call_failure(self.tried, &e))?;
        found.retain(|vmid, target| Mark::of_container(*vmid, &target.config).is_some_and(|mark| mark.fleet.as_ref() == Some(fleet)));
        Ok(found)
    }
}

fn is_ours(guest: &GuestSummary) -> bool {
    guest.container && guest.tags.iter().any(|tag| tag == TAG)
}
