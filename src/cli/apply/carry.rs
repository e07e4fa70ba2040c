//! Carrying a fleet's plans out, several at once over all hosts and clusters.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::board::Board;
use super::show::Row;
use super::sites::Planned;
use crate::cli::connect::{Session, call_failure, config_failure};
use crate::cli::interrupt::Interrupt;
use crate::cli::ways::WayArgs;
use crate::cli::{Exit, Failure, Output, carry, destroy};
use crate::ident::Vmid;
use crate::plan::create::Plan;
use crate::plan::destroy::Removal;
use crate::plan::fleet::{AfterFailure, Job, Limits, Schedule, Work};
use crate::plan::high_availability;
use crate::pve::{HostName, Version, VolumeId, call, reply};
use crate::sys::pve::{CallError, Mesh, Provisioner, Stock, upload_image, wait_task};

/// How long the removal of an image nobody uses may take.
const DELETE_LIMIT: Duration = Duration::from_secs(60);

/// Everything the work on a fleet needs.
pub(super) struct Crew<'a> {
    pub(super) planned: &'a [Planned<'a>],
    /// There is more than one site, so that each guest's is said.
    pub(super) several: bool,
    pub(super) mesh: Option<&'a dyn Mesh>,
    pub(super) way: &'a WayArgs,
    pub(super) stock: &'a Stock,
    pub(super) limits: Limits,
    pub(super) after: AfterFailure,
    pub(super) interrupt: &'a Interrupt,
    pub(super) output: &'a Output,
    pub(super) tried: &'a str,
}

/// What is done about one guest.
#[derive(Clone, Copy)]
enum Task<'a> {
    Make(&'a Plan, &'a Work),
    Remove(&'a Removal),
}

/// What became of the guests, and what the command fails with, if something failed.
pub(super) type Done = (Vec<Row>, Option<Failure>);

impl Crew<'_> {
    /// Makes, changes and starts what there is to.
    pub(super) async fn work(&self, jobs: &[Job]) -> Result<Done, Failure> {
        let board = Board::new(self.output, jobs.len());
        self.upload(&board).await?;
        let mut tasks = BTreeMap::new();
        let mut rows = Vec::new();
        for (number, planned) in self.planned.iter().enumerate() {
            for (vmid, work) in &planned.draft.works {
                tasks.extend(work.plan().map(|plan| ((number, *vmid), Task::Make(plan, work))));
                rows.extend(unchanged(*vmid, work, planned).map(|row| Row { cluster: self.cluster(number), ..row }));
            }
        }
        let (done, failure) = self.all(&tasks, jobs, &board).await;
        rows.extend(done);
        board.finish();
        self.discard_unused(&rows).await;
        Ok((rows, failure))
    }

    /// Removes what is to go.
    pub(super) async fn prune(&self) -> Done {
        let all =
            || self.planned.iter().enumerate().flat_map(|(site, planned)| planned.removals.iter().map(move |removal| (site, removal)));
        let tasks: BTreeMap<_, _> = all().map(|(site, removal)| ((site, removal.vmid), Task::Remove(removal))).collect();
        let jobs: Vec<Job> =
            all().map(|(site, removal)| Job { site, vmid: removal.vmid, host: removal.host.clone(), alone_among: None }).collect();
        let board = Board::new(self.output, jobs.len());
        let done = self.all(&tasks, &jobs, &board).await;
        board.finish();
        for planned in self.planned.iter().filter(|planned| !planned.removals.is_empty()) {
            crate::cli::hook::forget_script(&planned.site.session).await;
        }
        done
    }

    fn cluster(&self, site: usize) -> Option<String> {
        self.planned.get(site)?.cluster(self.several).map(ToOwned::to_owned)
    }

    async fn all(&self, tasks: &BTreeMap<(usize, Vmid), Task<'_>>, jobs: &[Job], board: &Board<'_>) -> Done {
        let mut schedule = Schedule::new(jobs.to_vec(), self.limits, self.after);
        let mut running = FuturesUnordered::new();
        let mut rows = Vec::new();
        let mut failure: Option<Failure> = None;
        let stop = self.interrupt.for_one();
        tokio::pin!(stop);
        let mut stopped = false;
        loop {
            while let Some(job) = schedule.poll_job() {
                let found = tasks.get(&(job.site, job.vmid)).zip(self.planned.get(job.site));
                if let Some((task, planned)) = found {
                    running.push(self.one(job, planned, *task, board));
                }
            }
            tokio::select! {
                biased;
                () = &mut stop, if !stopped => {
                    stopped = true;
                    schedule.stop();
                }
                ended = running.next() => {
                    let Some((job, row, failed)) = ended else { break };
                    schedule.ended(job.site, job.vmid, failed.is_none());
                    board.ended(&row);
                    rows.push(row);
                    failure = worse(failure, failed);
                }
            }
        }
        for job in schedule.not_begun() {
            let row = tasks.get(&(job.site, job.vmid)).map(|task| Row::of(*task, "not begun", 0.0));
            rows.extend(row.map(|row| Row { cluster: self.cluster(job.site), ..row }));
        }
        (rows, failure)
    }

    /// Works on one guest.
    async fn one(&self, job: Job, planned: &Planned<'_>, task: Task<'_>, board: &Board<'_>) -> (Job, Row, Option<Failure>) {
        let begun = Instant::now();
        let blank = Row { cluster: self.cluster(job.site), ..Row::of(task, "failed", 0.0) };
        let tried = format!("{}: guest {} ({})", self.tried, blank.vmid, blank.name);
        let outcome = match task {
            Task::Make(plan, work) => self.make(planned, plan, &tried, board).await.map(|addresses| {
                let word = match work {
                    Work::Create(_) => "created",
                    Work::Change(_) => "changed",
                    Work::Start(_) | Work::Nothing(_) => "started",
                };
                (word, addresses)
            }),
            Task::Remove(removal) => self.remove(planned, removal, &tried, board).await.map(|()| ("removed", Vec::new())),
        };
        let seconds = begun.elapsed().as_secs_f64();
        match outcome {
            Ok((outcome, mesh_addresses)) => (job, Row { outcome, seconds, mesh_addresses, ..blank }, None),
            Err(failure) => (job, Row { seconds, error: Some(failure.happened.clone()), ..blank }, Some(failure)),
        }
    }

    async fn make(&self, planned: &Planned<'_>, plan: &Plan, tried: &str, board: &Board<'_>) -> Result<Vec<std::net::IpAddr>, Failure> {
        let session = &planned.site.session;
        let mut watch = board.guest(format!("{} {}", plan.vmid, plan.name));
        let _lock = session.store.lock(plan.vmid).map_err(config_failure)?;
        carry::recover(session, self.way, self.mesh, plan.vmid, self.output, &mut watch).await?;
        let inside = self.way.of_plan(session, plan, &planned.view.observed, tried)?;
        let door = session.door()?;
        let mut interrupted = self.interrupt.for_one();
        let provisioner = Provisioner {
            executor: &*session.executor,
            door: &door,
            mesh: self.mesh,
            inside: inside.as_deref(),
            images: self.stock,
            store: &session.store,
            watch: &mut watch,
            interrupted: &mut interrupted,
        };
        let findings = provisioner.run(plan).await.map_err(|error| carry::failed(self.output, tried, &error))?;
        Ok(findings.mesh_addresses)
    }

    async fn remove(&self, planned: &Planned<'_>, removal: &Removal, tried: &str, board: &Board<'_>) -> Result<(), Failure> {
        let session = &planned.site.session;
        let mut watch = board.guest(format!("{} {}", removal.vmid, removal.name));
        let _lock = session.store.lock(removal.vmid).map_err(config_failure)?;
        carry::recover(session, self.way, self.mesh, removal.vmid, self.output, &mut watch).await?;
        let mut interrupted = self.interrupt.for_one();
        let left = destroy::carry_out((session, self.mesh), removal, &mut watch, &mut interrupted, (tried, self.output)).await?;
        if left.is_empty() {
            return Ok(());
        }
        Err(Failure::new(tried, left.join("; "), "the container is gone; remove the rest by hand").exit(Exit::Left))
    }

    /// Uploads the image to each host whose new guests need it.
    async fn upload(&self, board: &Board<'_>) -> Result<(), Failure> {
        for planned in self.planned {
            for (host, volume) in &planned.draft.uploads {
                let begun = Instant::now();
                let uploaded = upload_image(&*planned.site.session.executor, host, volume, self.stock).await;
                if let Err(error) = uploaded {
                    let (next, exit, _) = crate::cli::connect::step_advice(&error);
                    return Err(Failure::new(format!("{}: upload the image to {host}", self.tried), &error, next).exit(exit));
                }
                board.say(&format!("  done    {:<44} {:>6.2} s", format!("upload the image to {host}"), begun.elapsed().as_secs_f64()));
            }
        }
        Ok(())
    }

    /// Has the rules keep the guests of a group on different hosts, where Proxmox looks after them.
    pub(super) async fn keep_apart(&self) -> Result<(), Failure> {
        for planned in self.planned.iter().filter(|planned| planned.draft.apart.values().any(|guests| guests.len() > 1)) {
            self.keep_apart_on(planned).await?;
        }
        Ok(())
    }

    async fn keep_apart_on(&self, planned: &Planned<'_>) -> Result<(), Failure> {
        let tried = format!("{}: keep the guests of a group on different hosts", self.tried);
        let executor = &*planned.site.session.executor;
        let failed = |e: CallError| call_failure(&tried, &e);
        let version = match planned.view.observed.hosts.iter().find_map(|host| host.version) {
            Some(version) => version,
            None => {
                let request = call::version().map_err(|e| failed(e.into()))?;
                reply::version(&executor.call(&request).await.map_err(failed)?).map_err(|e| failed(e.into()))?
            }
        };
        let there = if version >= Version::HA_RULES {
            reply::ha_rules(&executor.call(&call::ha_rules()).await.map_err(failed)?).map_err(|e| failed(e.into()))?
        } else {
            Vec::new()
        };
        match high_availability::rules(&planned.draft.apart, &there, version) {
            Ok(requests) => {
                for request in requests {
                    executor.call(&request).await.map_err(failed)?;
                    self.output.note(format!("  done    {request}"));
                }
            }
            Err(why) => self.output.note(why),
        }
        Ok(())
    }

    /// Removes images that were uploaded for guests none of which came to be.
    async fn discard_unused(&self, rows: &[Row]) {
        for (number, planned) in self.planned.iter().enumerate() {
            let here = |row: &&Row| row.cluster == self.cluster(number);
            for (host, volume) in &planned.draft.uploads {
                let is_use =
                    |row: &Row| row.node == host.as_str() && matches!(row.outcome, "created" | "changed" | "unchanged" | "started");
                if !rows.iter().filter(here).any(is_use)
                    && let Err(failure) = discard(&planned.site.session, host, volume).await
                {
                    self.output.note(format!("the image {volume} stays on {host}: {}", failure.happened));
                }
            }
        }
    }
}

async fn discard(session: &Session, host: &HostName, volume: &VolumeId) -> Result<(), Failure> {
    let tried = format!("remove {volume}");
    let executor = &*session.executor;
    let request = call::delete_volume(host, volume, 15).map_err(|e| call_failure(&tried, &e.into()))?;
    let value = executor.call(&request).await.map_err(|e| call_failure(&tried, &e))?;
    if let Ok(task) = reply::upid(&value) {
        let waited = wait_task(executor, &task, DELETE_LIMIT, &mut |_| {}).await;
        waited.map_err(|e| Failure::new(&tried, e, "look at the task in Proxmox"))?;
    }
    Ok(())
}

impl Row {
    /// A guest that something is done about, with this end.
    fn of(task: Task<'_>, outcome: &'static str, seconds: f64) -> Self {
        let (vmid, name, role, host) = match task {
            Task::Make(plan, _) => (plan.vmid, &plan.name, plan.role, &plan.host),
            Task::Remove(removal) => (removal.vmid, &removal.name, removal.role.as_str(), &removal.host),
        };
        let (name, role, node) = (name.to_string(), role.to_owned(), host.to_string());
        Self { cluster: None, vmid, name, role, node, outcome, seconds, mesh_addresses: Vec::new(), error: None }
    }
}

fn unchanged(vmid: Vmid, work: &Work, planned: &Planned<'_>) -> Option<Row> {
    let Work::Nothing(existing) = work else { return None };
    let target = planned.view.targets.get(&vmid);
    let mark = target.and_then(|target| crate::plan::mark::Mark::of_container(vmid, &target.config));
    Some(Row {
        cluster: None,
        vmid,
        name: existing.name.to_string(),
        role: mark.map(|mark| mark.role).unwrap_or_default(),
        node: existing.host.to_string(),
        outcome: "unchanged",
        seconds: 0.0,
        mesh_addresses: Vec::new(),
        error: None,
    })
}

/// Of two failures the one whose exit code says more: that something is left counts most, then the first.
pub(super) fn worse(one: Option<Failure>, other: Option<Failure>) -> Option<Failure> {
    match (one, other) {
        (Some(one), Some(other)) if other.exit == Exit::Left && one.exit != Exit::Left => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}
