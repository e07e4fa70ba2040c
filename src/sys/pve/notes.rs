//! Rewriting a container's notes without losing what somebody else writes into them at the same time.

use super::provision::{StepError, Watch, run_call};
use super::{Executor, observe};
use crate::ident::Vmid;
use crate::pve::reply::ContainerConfig;
use crate::pve::{ErrorKind, HostName, call};

/// How often the notes are read again because somebody changed the container meanwhile.
const TRIES: u32 = 8;

/// Reads a container's configuration, has `compose` make the new notes from it, and writes them only if the configuration is still the one
/// that was read; else all of it again. Nothing is written if the notes are as they should be.
///
/// # Errors
/// If the container is gone, cannot be read or written, or is changed by others time and again.
pub async fn rewrite(
    executor: &dyn Executor,
    host: &HostName,
    vmid: Vmid,
    compose: &(dyn Fn(&ContainerConfig) -> String + Sync),
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    rewrite_if(executor, host, vmid, &|config| Some(compose(config)), watch).await
}

/// As [`rewrite`], for who may find that the notes are not those meant: then nothing is written.
///
/// # Errors
/// As [`rewrite`], and if `compose` gives nothing.
pub async fn rewrite_if(
    executor: &dyn Executor,
    host: &HostName,
    vmid: Vmid,
    compose: &(dyn Fn(&ContainerConfig) -> Option<String> + Sync),
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let config = observe::container_config(executor, host, vmid).await?;
        let config = config.ok_or(StepError::Missing("the container vanished while it was worked on"))?;
        let notes = compose(&config).ok_or(StepError::Overtaken(vmid))?;
        if notes.trim_end() == config.description.trim_end() {
            return Ok(());
        }
        let request = call::set_notes(host, vmid, &notes, config.digest.as_deref())?;
        match run_call(executor, &request, None, watch).await {
            Err(StepError::Call(error)) if error.kind() == Some(ErrorKind::Modified) && tries < TRIES => {
                watch.line("somebody changed the container meanwhile; reading it again");
            }
            other => return other,
        }
    }
}
