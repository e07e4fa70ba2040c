//! Asking Proxmox what we may do before anything is done.

use std::collections::BTreeSet;

use super::connect::{call_failure, refusal};
use super::{Failure, Output};
use crate::plan::observed::Observed;
use crate::plan::{Choice, Refusal, Step, permission};
use crate::pve::{HostName, Version};
use crate::sys::pve::{Executor, observe};

/// Goes through the steps of a plan for `host`: fails with every right that is missing, and gives what is done without.
pub(super) async fn review(
    executor: &dyn Executor,
    tried: &str,
    observed: &Observed,
    host: &HostName,
    steps: &mut Vec<Step>,
) -> Result<Vec<Choice>, Failure> {
    let version = observed.host(host).and_then(|view| view.version).unwrap_or(Version::new(0, 0, 0));
    let principal = &observed.principal;
    let paths = permission::paths(principal, steps, version).map_err(|e| refusal(tried, &Refusal::Build(e)))?;
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let rights = observe::rights(executor, &paths).await.map_err(|e| call_failure(format!("{tried}: ask for our rights"), &e))?;
    permission::review(principal, &rights, version, steps).map_err(|e| refusal(tried, &e))
}

/// A refusal with its real cause, where Proxmox showed us nothing for want of a right.
pub(super) async fn explained(executor: &dyn Executor, tried: &str, error: Refusal) -> Failure {
    let principal = executor.principal();
    let error = if principal.is_root() {
        error
    } else {
        match observe::rights(executor, &BTreeSet::new()).await {
            Ok(everywhere) => permission::explain(error, &principal, &everywhere),
            Err(_) => error,
        }
    };
    refusal(tried, &error)
}

/// Says so if the list of guests is empty because none may be seen.
pub(super) async fn say_if_blind(executor: &dyn Executor, output: &Output) {
    let principal = executor.principal();
    if principal.is_root() {
        return;
    }
    if let Ok(everywhere) = observe::rights(executor, &BTreeSet::new()).await
        && !everywhere.has_anywhere(&["VM.Audit"])
    {
        output
            .note(format!("Proxmox shows no guest to {principal}: VM.Audit is granted nowhere; pvemesh init --print-role shows the role"));
    }
}
