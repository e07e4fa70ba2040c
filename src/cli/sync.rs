//! `pvemesh sync`: one pass over the guests.

use std::time::Duration;

use super::connect::{ConnectArgs, Session, call_failure, config_failure, step_advice};
use super::{Exit, Failure, Output, hook};
use crate::ident::Vmid;
use crate::plan::identity::Clones;
use crate::plan::mark::RunId;
use crate::plan::sync::{self, Change, World};
use crate::pve::{HostName, Principal};
use crate::sys::entropy;
use crate::sys::pve::reconcile::{MeshSurvey, Reconciler, survey};
use crate::sys::pve::{Handover, Pvesh, StepError, Watch};

/// A pass waits so long for another one that is under way.
const PATIENCE: Duration = Duration::from_secs(20);

/// Brings guests, notes, names and routes up to date: what guest hooks missed, and what they cannot see. A second run has nothing to do.
#[derive(Debug, clap::Args)]
pub(super) struct Sync {
    /// Print every change, and make none.
    #[arg(long)]
    dry_run: bool,
    /// Have systemd run it every minute on this host.
    #[arg(long, conflicts_with = "dry_run")]
    install_timer: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What became of a change.
#[derive(Debug, serde::Serialize)]
struct Row {
    vmid: Vmid,
    change: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What a pass came to.
#[derive(Debug, serde::Serialize)]
pub(super) struct Report {
    dry_run: bool,
    changed: bool,
    changes: Vec<Row>,
    notes: Vec<String>,
    #[serde(skip)]
    failed: Option<Failure>,
}

impl Report {
    /// The first failure, if there was one.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failed.as_ref()
    }

    /// The report as lines.
    pub(super) fn text(&self) -> String {
        let mut lines: Vec<String> = self.notes.clone();
        for row in &self.changes {
            lines.push(match &row.error {
                None => row.change.clone(),
                Some(error) => format!("{}: {error}", row.change),
            });
        }
        match (self.changes.is_empty(), self.dry_run) {
            (true, _) => lines.push("nothing to do".to_owned()),
            (false, true) => lines.push("nothing was changed".to_owned()),
            (false, false) => {}
        }
        lines.join("\n")
    }
}

/// Who watches in the background: nobody.
pub(super) struct Unseen;

impl Watch for Unseen {
    fn begin(&mut self, _: &str) {}
    fn line(&mut self, _: &str) {}
    fn end(&mut self, _: Duration, _: bool) {}
}

/// Runs the command.
pub(super) async fn run(args: Sync, output: &Output) -> Result<(), Failure> {
    if args.install_timer {
        return hook::install_timer(output);
    }
    let session = Session::open(&args.connect).await?;
    let mut report = pass(&session, None, args.dry_run, output).await?;
    let failed = report.failed.take();
    output.result(&report, report.text());
    failed.map_or(Ok(()), Err)
}

/// The host that we are root of.
pub(super) fn local(session: &Session) -> Option<HostName> {
    (session.executor.principal() == Principal::RootHost).then(Pvesh::local_host).flatten()
}

/// The way into guests from here.
pub(super) fn handover(session: &Session) -> Handover {
    Handover::new("pct", session.store.directory(), local(session))
}

/// A number for what is made now.
pub(super) fn fresh_run(tried: &str) -> Result<RunId, Failure> {
    let random = entropy::bytes::<16>().map_err(|e| Failure::new(tried, e, "this system has no randomness"))?;
    Ok(RunId::new(u128::from_be_bytes(random)))
}

/// One pass. `started` is the guest whose start brought it about.
pub(super) async fn pass(session: &Session, started: Option<Vmid>, dry_run: bool, output: &Output) -> Result<Report, Failure> {
    let tried = "bring the guests up to date";
    let right = if dry_run { None } else { Some(session.store.sync_lock(PATIENCE).map_err(config_failure)?) };
    let mut ledger = session.store.ledger().map_err(config_failure)?;
    let mut notes = Vec::new();
    let mut unreachable = None;
    let mesh = match session.mesh().await {
        Ok(mesh) => mesh,
        Err(failure) => {
            notes.push(format!("{}: {}", failure.tried, failure.happened));
            unreachable = Some(failure);
            None
        }
    };
    let mut seen = None;
    if let Some((known, mesh)) = &mesh {
        match MeshSurvey::look(&known.lan_url, &**mesh).await {
            Ok(survey) => seen = Some(survey),
            Err(error) => {
                notes.push(format!("the coordinator does not answer: {error}"));
                let next = "is this machine's admin key still known to it?";
                unreachable = Some(Failure::new(tried, error, next).exit(Exit::Unreachable));
            }
        }
    }
    let host = local(session);
    let found = survey(&*session.executor, &ledger, host.as_ref()).await.map_err(|e| call_failure(tried, &e))?;
    notes.extend(found.said.iter().cloned());
    let clones: Clones = session.config.guests.clones;
    let world = World {
        guests: &found.guests,
        gone: &found.gone,
        ours: &found.ours,
        seen: &found.seen,
        mesh: seen.as_ref().map(MeshSurvey::view),
        ledger: &ledger,
        clones,
        started,
        run: fresh_run(tried)?,
    };
    let planned = sync::pass(&world);
    notes.extend(planned.said);
    let mut report = Report { dry_run, changed: false, changes: Vec::new(), notes, failed: unreachable };
    let Some(right) = right else {
        let loud = planned.changes.iter().filter(|change| !change.is_quiet());
        report.changes = loud.map(|change| Row { vmid: change.vmid(), change: change.to_string(), error: None }).collect();
        return Ok(report);
    };
    let handover = handover(session);
    let reconciler = Reconciler {
        executor: &*session.executor,
        mesh: mesh.as_ref().filter(|_| seen.is_some()).map(|(known, mesh)| (known.lan_url.as_str(), &**mesh)),
        store: &session.store,
        right: &right,
        handover: &handover,
    };
    let mut progress = super::progress::Progress::new(output);
    let outcomes = reconciler.carry_out(&planned.changes, &mut ledger, &mut progress).await;
    report.add(outcomes, tried);
    Ok(report)
}

impl Report {
    fn add(&mut self, outcomes: Vec<(&Change, Result<(), StepError>)>, tried: &str) {
        for (change, outcome) in outcomes {
            if change.is_quiet() && outcome.is_ok() {
                continue;
            }
            self.changed |= outcome.is_ok();
            let error = outcome.err().map(|error| {
                let text = error.to_string();
                let (next, exit, _) = step_advice(&error);
                self.failed.get_or_insert_with(|| Failure::new(format!("{tried}: {change}"), &text, next).exit(exit));
                text
            });
            self.changes.push(Row { vmid: change.vmid(), change: change.to_string(), error });
        }
    }
}
