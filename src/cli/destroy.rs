//! `pvemesh destroy`: a guest with everything that belongs to it.

use std::io::IsTerminal as _;
use std::time::Duration;

use super::carry::recover;
use super::connect::{ConnectArgs, Session, call_failure, config_failure, refusal, step_advice};
use super::interrupt::Interrupt;
use super::progress::Progress;
use super::ways::WayArgs;
use super::{Exit, Failure, Output, rights};
use crate::ident::Vmid;
use crate::plan::destroy::{self, Removal};
use crate::plan::options::OptionError;
use crate::plan::{Action, Refusal};
use crate::sys::config::ConfigError;
use crate::sys::image::{Image, ImageError};
use crate::sys::pve::{Images, Mesh, Provisioner, Watch, observe};

/// Removes a guest that pvemesh made: the container, its node at the coordinator, and the image if no other guest is left.
#[derive(Debug, clap::Args)]
pub(super) struct Destroy {
    /// The guest's number (VMID).
    #[arg(value_name = "ID")]
    vmid: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Print every call, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Nothing is uploaded by a removal, nor by what is done within a guest.
pub(super) struct NoImages(Image);

impl Default for NoImages {
    fn default() -> Self {
        Self(Image { path: std::path::PathBuf::new(), size: 0, sha256: String::new() })
    }
}

impl Images for NoImages {
    fn shared(&self) -> &Image {
        &self.0
    }

    fn personal(&self, _: &str) -> Result<Image, ImageError> {
        Ok(self.0.clone())
    }
}

/// Runs the command.
pub(super) async fn run(args: Destroy, output: &Output) -> Result<(), Failure> {
    let tried = format!("remove guest {}", args.vmid.escape_default().take(20).collect::<String>());
    let vmid: Vmid = args.vmid.parse().map_err(|e| refusal(&tried, &Refusal::Option(OptionError::new("ID", e))))?;
    let session = Session::for_guest(&args.connect, vmid, output).await?;
    let lock = if args.dry_run { None } else { Some(session.store.lock(vmid).map_err(config_failure)?) };
    let known = session.config.coordinator.as_ref().map(|c| c.vmid);
    // Removing the coordinator itself must work when it does not answer.
    let mesh = if known == Some(Some(vmid)) { None } else { reachable_mesh(&session, output).await };
    let mut progress = Progress::new(output);
    let undone =
        if lock.is_some() { recover(&session, &args.way, mesh.as_deref(), vmid, output, &mut progress).await? } else { Vec::new() };
    let observed = observe::observe(&*session.executor, vmid, Vec::new()).await.map_err(|e| call_failure(&tried, &e))?;
    if observed.guest(vmid).is_none() && !undone.is_empty() {
        output.result(&serde_json::json!({ "vmid": vmid, "taken_back": undone }), format!("what a run for {vmid} had left is gone"));
        return Ok(());
    }
    let mut removal = match destroy::destroy(vmid, &observed, known) {
        Ok(removal) => removal,
        Err(error) => return Err(rights::explained(&*session.executor, &tried, error).await),
    };
    let host = removal.host.clone();
    for choice in rights::review(&*session.executor, &tried, &observed, &host, &mut removal.steps).await? {
        output.note(format!("  {}: {}  ({})", choice.what, choice.value, choice.why));
    }
    if args.dry_run {
        output.result(&removal_value(&removal, true, &[]), removal_text(&removal));
        return Ok(());
    }
    confirm_removal(args.yes, &removal, &tried, output)?;
    let mut interrupt = Interrupt::listen(output)?;
    let left = carry_out((&session, mesh.as_deref()), &removal, &mut progress, interrupt.requested(), (&tried, output)).await?;
    super::hook::forget_script(&session).await;
    output.result(&removal_value(&removal, false, &left), format!("{} {} ({}) is gone", removal.role, removal.vmid, removal.name));
    if left.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(tried, left.join("; "), "the container is gone; remove the rest by hand").exit(Exit::Left))
    }
}

/// Carries a removal out; gives what is left beside the container.
pub(super) async fn carry_out(
    (session, mesh): (&Session, Option<&dyn Mesh>),
    removal: &Removal,
    watch: &mut dyn Watch,
    interrupted: &mut (dyn Future<Output = ()> + Unpin + Send),
    (tried, output): (&str, &Output),
) -> Result<Vec<String>, Failure> {
    let door = session.door()?;
    let images = NoImages::default();
    let provisioner = Provisioner {
        executor: &*session.executor,
        door: &door,
        mesh,
        inside: None,
        images: &images,
        store: &session.store,
        watch,
        interrupted,
    };
    let left = provisioner.remove(&removal.steps).await.map_err(|error| {
        let (next, exit, log) = step_advice(&error.error);
        for line in log {
            output.note(format!("    | {line}"));
        }
        Failure::new(tried, format!("{}: {}", error.step, error.error), next).exit(exit)
    })?;
    if let Err(error) = forget(session, removal.vmid) {
        output.note(format!("what is remembered of it stays: {error}"));
    }
    Ok(left)
}

/// Nothing is remembered of a guest that was meant to go.
fn forget(session: &Session, vmid: Vmid) -> Result<(), ConfigError> {
    let mut ledger = session.store.ledger()?;
    if ledger.guests.remove(&vmid).is_some() {
        let right = session.store.sync_lock(Duration::from_secs(5))?;
        session.store.save_ledger(&ledger, &right)?;
    }
    Ok(())
}

async fn reachable_mesh(session: &Session, output: &Output) -> Option<Box<dyn Mesh>> {
    match session.mesh().await {
        Ok(opened) => opened.map(|(_, mesh)| mesh),
        Err(failure) => {
            output.note(format!("{}: {}; its entry for this guest will stay", failure.tried, failure.happened));
            None
        }
    }
}

/// Asks whether it is meant.
pub(super) fn confirm_removal(yes: bool, removal: &Removal, tried: &str, output: &Output) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(tried, "removing asks for a yes, and there is no terminal to ask on", "add --yes").exit(Exit::Usage));
    }
    output.note(removal_text(removal).trim_end_matches("\nnothing was changed"));
    output.note(format!("type {} to remove it:", removal.vmid));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|e| Failure::new(tried, e, "add --yes"))?;
    if line.trim() == removal.vmid.to_string() {
        Ok(())
    } else {
        Err(Failure::new(tried, "it was not confirmed", "nothing was changed").exit(Exit::Usage))
    }
}

/// What would be done.
pub(super) fn removal_text(removal: &Removal) -> String {
    let mut text = format!("would remove {} {} ({}) from {}\n", removal.role, removal.vmid, removal.name, removal.host);
    for (number, step) in removal.steps.iter().enumerate() {
        text.push_str(&format!("{:>3}. {}\n     {}\n", number + 1, step.title, step.action));
    }
    text.push_str("nothing was changed");
    text
}

/// The same for programs.
pub(super) fn removal_value(removal: &Removal, dry_run: bool, left: &[String]) -> serde_json::Value {
    let calls: Vec<String> = removal.steps.iter().map(|step| Action::to_string(&step.action)).collect();
    serde_json::json!({
        "vmid": removal.vmid, "name": removal.name, "role": removal.role, "node": removal.host, "dry_run": dry_run, "calls": calls, "left": left
    })
}
