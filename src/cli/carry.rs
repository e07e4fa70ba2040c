//! What every command says of a run that failed, or of what an earlier run left.

use super::connect::{Session, call_failure, config_failure, step_advice};
use super::ways::WayArgs;
use super::{Exit, Failure, Output};
use crate::ident::Vmid;
use crate::plan::journal::Journal;
use crate::sys::pve::{Inside, Mesh, RunError, StepError, Undoer, Watch, observe};

/// The failure of a run whose steps were taken back.
pub(super) fn failed(output: &Output, tried: &str, error: &RunError) -> Failure {
    let (mut next, mut exit, log) = step_advice(&error.error);
    if !log.is_empty() {
        output.note("  the task's log ends with:");
        for line in log {
            output.note(format!("    | {line}"));
        }
    }
    let mut happened = format!("{}: {}", error.step, error.error);
    if error.left.is_empty() {
        happened.push_str("; what had been made was taken back");
    } else {
        happened.push_str(&format!("; not taken back: {}", error.left.join(", ")));
        next = match error.error {
            StepError::Interrupted => "run the same command again, which takes that back first".to_owned(),
            _ => format!("run the same command again, which takes that back first ({next})"),
        };
        exit = Exit::Left;
    }
    Failure::new(tried, happened, next).exit(exit)
}

/// Takes back what an earlier run left for this guest; gives what that was. The caller holds the right to work on it.
pub(super) async fn recover(
    session: &Session,
    way: &WayArgs,
    mesh: Option<&dyn Mesh>,
    vmid: Vmid,
    output: &Output,
    watch: &mut dyn Watch,
) -> Result<Vec<String>, Failure> {
    let Some(journal) = session.store.journal(vmid).map_err(config_failure)? else { return Ok(Vec::new()) };
    output.note(format!("an earlier run for {vmid} did not come to its end; taking back what it left"));
    let tried = format!("take back what an earlier run left for {vmid}");
    let inside = way_back(session, way, &journal, &tried).await?;
    let undoer = Undoer { executor: &*session.executor, mesh, inside: inside.as_deref(), store: &session.store };
    match undoer.recover(&journal, watch).await {
        Ok((undone, left)) if left.is_empty() => Ok(undone),
        Ok((_, left)) => Err(Failure::new(tried, left.join("; "), "clear that up, then run the command again").exit(Exit::Left)),
        Err(error) => {
            let (next, exit, _) = step_advice(&error);
            Err(Failure::new(tried, &error, next).exit(exit))
        }
    }
}

/// The way into the guest of a journal, if something was done in it and there is one from here.
pub(super) async fn way_back(session: &Session, way: &WayArgs, journal: &Journal, tried: &str) -> Result<Option<Box<dyn Inside>>, Failure> {
    if journal.enters().is_none() {
        return Ok(None);
    }
    let guests = observe::guests(&*session.executor).await.map_err(|e| call_failure(tried, &e))?;
    match guests.iter().find(|guest| guest.vmid == journal.vmid) {
        Some(guest) => way.find(session, &guest.host),
        None => Ok(None),
    }
}
