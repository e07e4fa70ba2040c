//! What every command says of a run that failed, or of what an earlier run left.

use super::connect::{Session, config_failure, step_advice};
use super::ways::WayArgs;
use super::{Exit, Failure, Output};
use crate::ident::Vmid;
use crate::sys::pve::{Mesh, RunError, StepError, Undoer, Watch};

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

/// Takes back what an earlier run left for this guest; the caller holds the right to work on it.
pub(super) async fn recover(
    (session, way): (&Session, &WayArgs),
    mesh: Option<&dyn Mesh>,
    vmid: Vmid,
    output: &Output,
    watch: &mut dyn Watch,
) -> Result<(), Failure> {
    let Some(journal) = session.store.journal(vmid).map_err(config_failure)? else { return Ok(()) };
    output.note(format!("an earlier run for {vmid} did not come to its end; taking back what it left"));
    let inside = way.back(session, &journal)?;
    let undoer = Undoer { executor: &*session.executor, mesh, inside: inside.as_deref(), store: &session.store };
    let tried = format!("take back what an earlier run left for {vmid}");
    match undoer.recover(&journal, watch).await {
        Ok((_, left)) if left.is_empty() => Ok(()),
        Ok((_, left)) => Err(Failure::new(tried, left.join("; "), "clear that up, then run the command again").exit(Exit::Left)),
        Err(error) => {
            let (next, exit, _) = step_advice(&error);
            Err(Failure::new(tried, &error, next).exit(exit))
        }
    }
}
