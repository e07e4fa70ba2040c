//! `pvemesh hook`: what Proxmox calls, and its installation.
//!
//! A phase ends within [`LIMIT`] whatever hangs, and well unless `strict` is set; docs/decisions/hooks.md.

mod install;
mod settle;

use std::time::Duration;

use super::connect::{ConnectArgs, config_failure, coordinator};
use super::{Exit, Failure, Output};
use crate::ident::{NodeName, Vmid};
use crate::plan::hook::{Action, DRAIN_SECS, Phase, check, decide};
use crate::plan::ledger::Ledger;
use crate::plan::sync::detach;
use crate::sys::config::{Config, Store};
use crate::sys::pve::reconcile::{MeshSurvey, Reconciler};
use crate::sys::pve::{Handover, HostFiles, Pvesh};
use crate::wire::admin::Drain;
pub(super) use install::{for_new_guests, forget_script, install_timer, ours};

/// How long a phase may take. Proxmox has no limit of its own, and a guest's start waits for it.
const LIMIT: Duration = Duration::from_millis(3500);
/// How long the coordinator may take to hear of a stop.
const TELL_LIMIT: Duration = Duration::from_secs(2);
/// Another process may be bringing the guests up to date; it does then what this one would have done.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// What Proxmox calls before and after each start and stop of a guest: `pvemesh hook VMID PHASE`. And `pvemesh hook install` and `uninstall`.
#[derive(Debug, clap::Args)]
pub(super) struct Hook {
    /// The guest's number; or `install`: the hook script and the timer on this host; or `uninstall`: both away again.
    #[arg(value_name = "VMID|install|uninstall")]
    what: String,
    /// pre-start, post-start, pre-stop or post-stop.
    #[arg(value_name = "PHASE")]
    phase: Option<String>,
    /// Where the script goes; chosen if absent.
    #[arg(long, value_name = "STORAGE")]
    storage: Option<String>,
    /// Install the script alone.
    #[arg(long)]
    no_timer: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs the command.
pub(super) fn run(args: Hook, output: &Output) -> Result<(), Failure> {
    match (args.what.as_str(), args.phase.as_deref()) {
        ("install", None) => super::run(install::install(&args, output)),
        ("uninstall", None) => super::run(install::uninstall(&args, output)),
        (vmid, Some("settle")) => super::run(settle::run(parsed(vmid)?, output)),
        (vmid, Some(phase)) => {
            let vmid = parsed(vmid)?;
            let phase: Phase = phase.parse().map_err(|e| usage("read the phase", e))?;
            bounded(vmid, phase, output)
        }
        (_, None) => Err(usage("run a hook", "it needs a VMID and a phase, or `install`, or `uninstall`")),
    }
}

fn parsed(vmid: &str) -> Result<Vmid, Failure> {
    vmid.parse().map_err(|e| usage("read the guest's number", e))
}

fn usage(tried: &str, happened: impl std::fmt::Display) -> Failure {
    Failure::new(tried, happened, "pvemesh help hook").exit(Exit::Usage)
}

/// One phase, ended when its time is over. What still hangs then ends with the process.
fn bounded(vmid: Vmid, phase: Phase, output: &Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("start", e, "this system is out of resources"))?;
    let outcome = runtime.block_on(async { tokio::time::timeout(LIMIT, act(vmid, phase, output)).await });
    runtime.shutdown_background();
    match outcome {
        Ok(Ok(refused)) => refused.map_or(Ok(()), Err),
        // A hook that failed is no reason for anything; `pvemesh sync` makes up for it.
        Ok(Err(failure)) => {
            output.note(format!("pvemesh: {}: {}; the guest goes on, and `pvemesh sync` makes up for it", failure.tried, failure.happened));
            Ok(())
        }
        Err(_) => {
            output.note(format!("pvemesh: {phase} took longer than {LIMIT:?}; the guest goes on, and `pvemesh sync` makes up for it"));
            Ok(())
        }
    }
}

/// What a phase needs.
struct Hooked<'o> {
    vmid: Vmid,
    files: HostFiles,
    store: Store,
    config: Config,
    ledger: Ledger,
    output: &'o Output,
}

/// Gives the refusal of a guest that must not start.
async fn act(vmid: Vmid, phase: Phase, output: &Output) -> Result<Option<Failure>, Failure> {
    let files = HostFiles::here();
    let store = Store::open().map_err(config_failure)?;
    let config = store.load().map_err(config_failure)?;
    let ledger = store.ledger().map_err(config_failure)?;
    let facts = {
        // On a thread of its own: the cluster's file system may hang.
        let files = files.clone();
        blocking(move || files.facts(vmid))
            .await?
            .map_err(|e| Failure::new(format!("read the configuration of guest {vmid}"), e, "look at /etc/pve"))?
    };
    let decision = decide(phase, &facts, &ledger);
    for line in &decision.lines {
        output.note(format!("pvemesh: {line}"));
    }
    let hooked = Hooked { vmid, files, store, config, ledger, output };
    let mut refused = None;
    for action in decision.actions {
        match action {
            Action::Check => {
                let Some(file) = facts.file.clone() else { continue };
                refused = refused.or(hooked.check(file).await?);
            }
            Action::Settle => settle::detach(vmid)?,
            Action::Drain(name) => hooked.tell(&name, Drain { for_secs: DRAIN_SECS, gone: false }).await,
            Action::Depart(name) => hooked.tell(&name, Drain { for_secs: 0, gone: true }).await,
            Action::Unname(vmid) => hooked.unname(vmid).await,
        }
    }
    Ok(refused)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Failure::new("look at this host", e, "this is a defect of pvemesh; please report it"))
}

impl Hooked<'_> {
    /// Looks at the host, heals what can be, and says what is wrong.
    async fn check(&self, file: crate::pve::GuestFile) -> Result<Option<Failure>, Failure> {
        let (vmid, files) = (self.vmid, self.files.clone());
        let (said, faults) = blocking(move || {
            let (heal, _) = check(&file, vmid, &files.devices());
            let said: Vec<String> = heal
                .iter()
                .map(|heal| match files.heal(*heal) {
                    Ok(()) => format!("did {heal}"),
                    Err(why) => format!("tried {heal}: {why}"),
                })
                .collect();
            let (_, faults) = check(&file, vmid, &files.devices());
            (said, faults)
        })
        .await?;
        for line in said.iter().cloned().chain(faults.iter().map(ToString::to_string)) {
            self.output.note(format!("pvemesh: {line}"));
        }
        let first = faults.into_iter().next().filter(|_| self.config.guests.strict);
        Ok(first.map(|fault| Failure::new(format!("let guest {vmid} start (strict)"), fault.what, fault.fix)))
    }

    /// Tells the coordinator what is about to happen to a node.
    async fn tell(&self, name: &NodeName, drain: Drain) {
        let told = async {
            let opened = coordinator(&self.store, &self.config).await.map_err(|failure| failure.happened)?;
            let Some((_, mesh)) = opened else { return Ok(()) };
            let nodes = mesh.nodes().await.map_err(|e| e.to_string())?;
            if let Some(node) = nodes.iter().find(|node| node.name == *name) {
                mesh.drain(node.id, drain).await.map_err(|e| e.to_string())?;
            }
            Ok(())
        };
        let why: String = match tokio::time::timeout(TELL_LIMIT, told).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(_) => format!("it does not answer within {TELL_LIMIT:?}"),
        };
        self.output.note(format!("pvemesh: the coordinator does not hear of {name}'s stop: {why}; it finds out by itself"));
    }

    /// Takes the name of a guest without a client away while it is down.
    async fn unname(&self, vmid: Vmid) {
        let mut ledger = self.ledger.clone();
        let done = async {
            let Some(attached) = ledger.attached.get(&vmid).cloned() else { return Ok(()) };
            let opened = coordinator(&self.store, &self.config).await.map_err(|failure| failure.happened)?;
            let Some((known, mesh)) = opened else { return Ok(()) };
            let right = self.store.sync_lock(LOCK_PATIENCE).map_err(|e| e.to_string())?;
            let seen = MeshSurvey::look(&known.lan_url, &*mesh).await.map_err(|e| e.to_string())?;
            let changes = detach(vmid, &attached, seen.view());
            let executor = Pvesh::default();
            let handover = Handover::new("pct", self.store.directory(), None);
            let reconciler = Reconciler {
                executor: &executor,
                mesh: Some((&known.lan_url, &*mesh)),
                store: &self.store,
                right: &right,
                handover: &handover,
            };
            let outcomes = reconciler.carry_out(&changes, &mut ledger, &mut super::sync::Unseen).await;
            let failed = outcomes.into_iter().find_map(|(_, outcome)| outcome.err());
            failed.map_or(Ok(()), |error| Err(error.to_string()))
        };
        let why: String = match tokio::time::timeout(TELL_LIMIT, done).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(_) => format!("the coordinator does not answer within {TELL_LIMIT:?}"),
        };
        self.output.note(format!("pvemesh: the name of guest {vmid} stays for now: {why}"));
    }
}
