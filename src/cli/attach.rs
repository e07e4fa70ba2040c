//! `pvemesh attach` and `detach`: names in the mesh, and routes, for guests without a client.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::connect::{ConnectArgs, Session, call_failure, config_failure, refusal, step_advice};
use super::progress::Progress;
use super::{Exit, Failure, Output, hook, sync};
use crate::ident::{NodeName, Vmid};
use crate::plan::Refusal;
use crate::plan::attach::macs;
use crate::plan::block;
use crate::plan::identity::Clones;
use crate::plan::ledger::{Attached, Ledger};
use crate::plan::mark::{Identity, Mark, RunId};
use crate::plan::options::OptionError;
use crate::plan::sync::{Change, MeshView, Pass, World};
use crate::pve::reply::{ContainerConfig, GuestSummary};
use crate::pve::{ErrorKind, Request, call, machine, reply};
use crate::sys::pve::reconcile::{MeshSurvey, Reconciler, addresses, configuration};
use crate::sys::pve::{CallError, Mesh};

const PATIENCE: Duration = Duration::from_secs(20);
/// How often a guest that somebody else changes at the same time is read again.
const WRITE_TRIES: u32 = 8;
/// The role in the mark of a guest that is no node.
const ROLE: &str = "attached";

/// Gives a guest without a client a name in the mesh while it runs. Its addresses are those that it reports, and are followed.
#[derive(Debug, clap::Args)]
pub(super) struct Attach {
    /// The guest's number (VMID): a virtual machine, or a container.
    #[arg(value_name = "ID")]
    vmid: String,
    /// Its name in the mesh; its name in Proxmox if absent.
    #[arg(long)]
    name: Option<String>,
    /// Make it reachable, too: through a subnet router that offers a network which its address lies in.
    #[arg(long)]
    route: bool,
    /// Print what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Takes a guest without a client out of the mesh: its name, its route, and what pvemesh wrote into Proxmox.
#[derive(Debug, clap::Args)]
pub(super) struct Detach {
    /// The guest's number (VMID).
    #[arg(value_name = "ID")]
    vmid: String,
    /// Print what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// One guest at work.
struct Work<'a> {
    session: &'a Session,
    vmid: Vmid,
    tried: String,
    dry_run: bool,
    output: &'a Output,
    mesh: &'a dyn Mesh,
    url: &'a str,
}

#[derive(serde::Serialize)]
struct Report {
    vmid: Vmid,
    name: NodeName,
    dry_run: bool,
    changed: bool,
    addresses: Vec<std::net::IpAddr>,
    calls: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    fn text(&self) -> String {
        let mut lines = self.notes.clone();
        if !self.changed {
            lines.push(format!("{} ({}): nothing to do", self.vmid, self.name));
        } else {
            lines.extend(self.calls.iter().cloned());
            if self.dry_run {
                lines.push("nothing was changed".to_owned());
            }
        }
        lines.join("\n")
    }
}

fn number(text: &str, tried: &str) -> Result<Vmid, Failure> {
    text.parse().map_err(|e| refusal(tried, &Refusal::Option(OptionError::new("ID", e))))
}

/// Runs `attach`.
pub(super) async fn attach(args: Attach, output: &Output) -> Result<(), Failure> {
    let vmid = number(&args.vmid, "attach a guest")?;
    let tried = format!("attach guest {vmid}");
    let named = args.name.as_deref().map(str::parse::<NodeName>).transpose();
    let named = named.map_err(|e| refusal(&tried, &Refusal::Option(OptionError::new("--name", e))))?;
    let session = Session::for_guest(&args.connect, vmid, output).await?;
    let Some((known, mesh)) = session.mesh().await? else { return Err(no_coordinator(&tried)) };
    let work = Work { session: &session, vmid, tried, dry_run: args.dry_run, output, mesh: &*mesh, url: &known.lan_url };
    let report = work.attach(named, args.route).await?;
    output.result(&report, report.text());
    Ok(())
}

/// Runs `detach`.
pub(super) async fn detach(args: Detach, output: &Output) -> Result<(), Failure> {
    let vmid = number(&args.vmid, "detach a guest")?;
    let tried = format!("detach guest {vmid}");
    let session = Session::for_guest(&args.connect, vmid, output).await?;
    if !session.store.ledger().map_err(config_failure)?.attached.contains_key(&vmid) {
        output.result(&serde_json::json!({ "vmid": vmid, "changed": false }), format!("{vmid} is not attached: nothing to do"));
        return Ok(());
    }
    let Some((known, mesh)) = session.mesh().await? else { return Err(no_coordinator(&tried)) };
    let work = Work { session: &session, vmid, tried, dry_run: args.dry_run, output, mesh: &*mesh, url: &known.lan_url };
    let report = work.detach().await?;
    output.result(&report, report.text());
    Ok(())
}

fn no_coordinator(tried: &str) -> Failure {
    Failure::new(tried, "no coordinator is known, and it keeps the names of the mesh", "pvemesh create-coordinator ID").exit(Exit::Conflict)
}

impl Work<'_> {
    async fn attach(&self, named: Option<NodeName>, route: bool) -> Result<Report, Failure> {
        let right = self.right()?;
        let mut ledger = self.session.store.ledger().map_err(config_failure)?;
        let seen = self.look().await?;
        let guest = self.listed().await?.ok_or_else(|| refusal(&self.tried, &Refusal::NoSuchGuest(self.vmid)))?;
        let config = configuration(&*self.session.executor, &guest).await.map_err(|e| self.called(&e))?;
        let attached = self.wanted(&guest, &config, (named, route), &ledger, seen.view())?;
        let (found, why) = match guest.running {
            true => addresses(&*self.session.executor, &guest, &attached.macs, sync::local(self.session).as_ref()).await,
            false => (Vec::new(), None),
        };
        let before = ledger.attached.insert(self.vmid, attached.clone());
        let one = Ledger { attached: [(self.vmid, attached.clone())].into(), ..Ledger::default() };
        let shown = BTreeMap::from([(self.vmid, found.clone())]);
        let (gone, guests) = (BTreeSet::new(), [guest.clone()]);
        let mut pass = crate::plan::sync::pass(&World {
            guests: &guests,
            gone: &gone,
            ours: &[],
            seen: &shown,
            mesh: Some(seen.view()),
            ledger: &one,
            clones: Clones::default(),
            started: None,
            run: RunId::new(0),
        });
        pass.said.extend(why.map(|why| format!("what Proxmox says: {why}")));
        if !guest.running {
            pass.said.push(format!("guest {} is stopped: it gets its name when it starts", self.vmid));
        }
        let requests = self.requests(&guest, &config, Some(&attached)).await?;
        let is_new = before.as_ref() != Some(&attached);
        let report = self.report(&attached, found, is_new, &pass, &requests);
        let Some(right) = right else { return Ok(report) };
        self.session.store.save_ledger(&ledger, &right).map_err(config_failure)?;
        self.write(&guest, Some(&attached), requests).await?;
        self.carry_out(&pass.changes, &mut ledger, &right).await?;
        Ok(report)
    }

    async fn detach(&self) -> Result<Report, Failure> {
        let right = self.right()?;
        let mut ledger = self.session.store.ledger().map_err(config_failure)?;
        let seen = self.look().await?;
        let Some(attached) = ledger.attached.get(&self.vmid).cloned() else {
            return Err(refusal(&self.tried, &Refusal::NoSuchGuest(self.vmid)));
        };
        let mut changes = crate::plan::sync::detach(self.vmid, &attached, seen.view());
        changes.push(Change::Forget(self.vmid));
        let guest = self.listed().await?;
        let requests = match &guest {
            Some(guest) => {
                let config = configuration(&*self.session.executor, guest).await.map_err(|e| self.called(&e))?;
                self.requests(guest, &config, None).await?
            }
            None => Vec::new(),
        };
        let report = self.report(&attached, Vec::new(), true, &Pass { changes: changes.clone(), said: Vec::new() }, &requests);
        let Some(right) = right else { return Ok(report) };
        if let Some(guest) = &guest {
            self.write(guest, None, requests).await?;
        }
        self.carry_out(&changes, &mut ledger, &right).await?;
        Ok(report)
    }

    fn right(&self) -> Result<Option<crate::sys::config::SyncLock>, Failure> {
        if self.dry_run { Ok(None) } else { self.session.store.sync_lock(PATIENCE).map(Some).map_err(config_failure) }
    }

    async fn look(&self) -> Result<MeshSurvey, Failure> {
        let seen = MeshSurvey::look(self.url, self.mesh).await;
        seen.map_err(|e| Failure::new(&self.tried, e, "is this machine's admin key still known to it?").exit(Exit::Denied))
    }

    async fn listed(&self) -> Result<Option<GuestSummary>, Failure> {
        let request = call::guests().map_err(|e| self.called(&e.into()))?;
        let value = self.session.executor.call(&request).await.map_err(|e| self.called(&e))?;
        let guests = reply::guests(&value).map_err(|e| self.called(&e.into()))?;
        Ok(guests.into_iter().find(|guest| guest.vmid == self.vmid))
    }

    fn called(&self, error: &CallError) -> Failure {
        call_failure(&self.tried, error)
    }

    /// What is to be kept of the guest; refused if its name is somebody else's, or if it is a node itself.
    fn wanted(
        &self,
        guest: &GuestSummary,
        config: &ContainerConfig,
        (named, route): (Option<NodeName>, bool),
        ledger: &Ledger,
        mesh: MeshView<'_>,
    ) -> Result<Attached, Failure> {
        let conflict = |happened: String, next: &str| Failure::new(&self.tried, happened, next).exit(Exit::Conflict);
        if Mark::of_container(self.vmid, config).is_some() {
            return Err(conflict(format!("guest {} is part of the mesh itself", self.vmid), "pvemesh status shows its name"));
        }
        let before = ledger.attached.get(&self.vmid);
        let called = config.hostname.clone().unwrap_or_else(|| guest.name.clone());
        let name = named.or_else(|| before.map(|before| before.name.clone())).unwrap_or_else(|| NodeName::sanitised(&called));
        let record = format!("{name}.{}", mesh.base_domain);
        let own = before.and_then(|before| before.record.as_ref()) == Some(&record);
        let other = ledger.attached.iter().find(|(vmid, other)| **vmid != self.vmid && other.name == name).map(|(vmid, _)| *vmid);
        if let Some(other) = other {
            return Err(conflict(format!("guest {other} has the name {name}"), "choose another with --name"));
        }
        if mesh.nodes.iter().any(|node| node.name == name) {
            return Err(conflict(format!("a node of the mesh has the name {name}"), "choose another with --name"));
        }
        if !own && (mesh.dns.records.contains_key(&record) || mesh.dns.aliases.contains_key(&record)) {
            return Err(conflict(format!("{record} is a name in the coordinator's DNS settings already"), "choose another with --name"));
        }
        let macs = macs(config);
        if macs.is_empty() {
            return Err(conflict(format!("guest {} has no network interface", self.vmid), "give it one in Proxmox"));
        }
        Ok(Attached {
            name,
            container: guest.container,
            macs,
            route,
            record: before.and_then(|before| before.record.clone()),
            addresses: before.map(|before| before.addresses.clone()).unwrap_or_default(),
            approved: before.map(|before| before.approved.clone()).unwrap_or_default(),
        })
    }

    /// What is written into Proxmox: our part of the notes, and the hook where it can be set and no other is.
    async fn requests(&self, guest: &GuestSummary, config: &ContainerConfig, attached: Option<&Attached>) -> Result<Vec<Request>, Failure> {
        let place = machine::Guest { host: &guest.host, vmid: self.vmid, container: guest.container };
        let before = &config.description;
        let notes = match attached {
            Some(attached) => block::replaced(before, &text(self.vmid, attached), &mark(self.vmid, &attached.name)),
            None => block::removed(before),
        };
        let mut requests = Vec::new();
        let build = |request: Result<Request, crate::pve::BuildError>| request.map_err(|e| self.called(&e.into()));
        if notes.trim_end() != before.trim_end() {
            requests.push(build(machine::set_notes(place, &notes, config.digest.as_deref()))?);
        }
        let set = config.values.get("hookscript");
        let may = self.session.executor.principal().is_root();
        if let Some(volume) = if may { hook::ours(self.session).await } else { None } {
            match (attached, set) {
                (Some(_), None) => requests.push(build(machine::set_hookscript(place, Some(&volume)))?),
                (None, Some(named)) if *named == volume.to_string() => requests.push(build(machine::set_hookscript(place, None))?),
                _ => {}
            }
        }
        Ok(requests)
    }

    fn report(&self, attached: &Attached, addresses: Vec<std::net::IpAddr>, is_new: bool, pass: &Pass, requests: &[Request]) -> Report {
        let mut calls: Vec<String> = pass.changes.iter().filter(|change| !change.is_quiet()).map(ToString::to_string).collect();
        calls.extend(requests.iter().map(ToString::to_string));
        Report {
            vmid: self.vmid,
            name: attached.name.clone(),
            dry_run: self.dry_run,
            changed: is_new || !calls.is_empty(),
            addresses,
            calls,
            notes: pass.said.clone(),
        }
    }

    /// Writes into Proxmox; what somebody changes meanwhile is read and kept.
    async fn write(&self, guest: &GuestSummary, attached: Option<&Attached>, mut requests: Vec<Request>) -> Result<(), Failure> {
        let executor = &*self.session.executor;
        let mut tries = 1;
        'again: loop {
            for request in &requests {
                match executor.call(request).await {
                    Ok(_) => {}
                    Err(error) if error.kind() == Some(ErrorKind::Modified) && tries < WRITE_TRIES => {
                        tries += 1;
                        let config = configuration(executor, guest).await.map_err(|e| self.called(&e))?;
                        requests = self.requests(guest, &config, attached).await?;
                        continue 'again;
                    }
                    Err(error) => return Err(self.called(&error)),
                }
            }
            return Ok(());
        }
    }

    async fn carry_out(&self, changes: &[Change], ledger: &mut Ledger, right: &crate::sys::config::SyncLock) -> Result<(), Failure> {
        let handover = sync::handover(self.session);
        let reconciler = Reconciler {
            executor: &*self.session.executor,
            mesh: Some((self.url, self.mesh)),
            store: &self.session.store,
            right,
            handover: &handover,
        };
        let mut progress = Progress::new(self.output);
        for (change, outcome) in reconciler.carry_out(changes, ledger, &mut progress).await {
            if let Err(error) = outcome {
                let (next, exit, _) = step_advice(&error);
                return Err(Failure::new(format!("{}: {change}", self.tried), &error, next).exit(exit));
            }
        }
        Ok(())
    }
}

fn mark(vmid: Vmid, name: &NodeName) -> Mark {
    Mark { vmid, role: ROLE.to_owned(), name: name.clone(), run: RunId::new(0), ready: true, identity: Identity::default(), fleet: None }
}

fn text(vmid: Vmid, attached: &Attached) -> String {
    format!(
        "# pvemesh: {}\n\n- its name in the mesh, while it runs: `{}`\n- take it out again: `pvemesh detach {vmid}`",
        attached.name, attached.name
    )
}
