//! Takes back what was done within a guest.

use super::deeds::{Doer, SERVICE_LIMIT};
use super::inside::{Inside, InsideError, Run, run_well};
use super::notes;
use super::observe;
use super::provision::{StepError, Unwatched};
use crate::ident::Vmid;
use crate::plan::block;
use crate::plan::enroll;
use crate::plan::guest::Command;
use crate::plan::inside::{FileBefore, InsideUndo, UndoDeed, is_successor_name};
use crate::plan::mark::Mark;
use crate::pve::reply::ContainerConfig;
use crate::pve::{ErrorKind, Method, Request};

impl Doer<'_> {
    /// Takes it back; true if there was something to take back.
    pub(super) async fn take_back(&self, undo: &InsideUndo) -> Result<bool, StepError> {
        let vmid = undo.vmid;
        // It may have gone to another host since, or have gone altogether, and with it all that was in it.
        let guests = observe::guests(self.executor).await?;
        let Some(host) = guests.iter().find(|guest| guest.vmid == vmid).map(|guest| &guest.host) else {
            return self.without_guest(undo).await;
        };
        match &undo.deed {
            UndoDeed::Remove { program, paths, then } => {
                remove(self.inside()?, vmid, program, paths).await?;
                self.run_all(vmid, then).await
            }
            UndoDeed::Rewrite { program, files, then } => {
                for file in files {
                    rewrite(self.inside()?, vmid, program, file).await?;
                }
                self.run_all(vmid, then).await
            }
            UndoDeed::Notes { run, before } => {
                let ours = |config: &ContainerConfig| Mark::find(&config.description).is_some_and(|mark| mark.run == *run);
                let config = observe::container_config(self.executor, host, vmid).await?;
                if !config.is_some_and(|config| ours(&config)) {
                    return Ok(false);
                }
                let compose = |config: &ContainerConfig| {
                    if ours(config) { block::put_back(&config.description, before.as_deref()) } else { config.description.clone() }
                };
                notes::rewrite(self.executor, host, vmid, &compose, &mut Unwatched).await.map(|()| true)
            }
            UndoDeed::Run { commands } => self.run_all(vmid, commands).await,
            UndoDeed::Restore { keys } => {
                let Some(config) = observe::container_config(self.executor, host, vmid).await? else { return Ok(false) };
                // What somebody has changed since is his.
                let ours = keys
                    .iter()
                    .filter(|(key, changed)| config.values.get(*key).cloned() == changed.after && changed.before != changed.after);
                let ours = ours.map(|(key, changed)| (key.clone(), changed.clone())).collect();
                let put = Request::new(Method::Put, format!("/nodes/{host}/lxc/{vmid}/config"));
                let request = enroll::restored(put, &ours, |changed| changed.before.clone());
                if request.params.is_empty() {
                    return Ok(false);
                }
                match self.executor.call(&request).await {
                    Err(error) if error.kind() == Some(ErrorKind::NoSuchGuest) => Ok(false),
                    other => Ok(other.map(|_| true)?),
                }
            }
            UndoDeed::Unrekey { old, name, addresses, before, back } => {
                let mesh = self.mesh()?;
                let nodes = mesh.nodes().await?;
                let mut joined = nodes.iter().filter(|node| !before.contains(&node.id) && is_successor_name(&node.name, name));
                if nodes.iter().any(|node| node.id == *old) {
                    let was = self.run_all(vmid, std::slice::from_ref(back)).await?;
                    for node in joined {
                        mesh.delete_node(node.id).await?;
                    }
                    return Ok(was);
                }
                match joined.next() {
                    Some(node) => self.name_successor(node.id, name, addresses).await.map(|()| true),
                    None => Ok(false),
                }
            }
        }
    }

    /// The same when the guest has gone: only the coordinator is left to be told.
    async fn without_guest(&self, undo: &InsideUndo) -> Result<bool, StepError> {
        let UndoDeed::Unrekey { old, name, before, .. } = &undo.deed else { return Ok(false) };
        let mesh = self.mesh()?;
        let mut removed = false;
        for node in mesh.nodes().await? {
            if node.id != *old && !before.contains(&node.id) && is_successor_name(&node.name, name) {
                mesh.delete_node(node.id).await?;
                removed = true;
            }
        }
        Ok(removed)
    }

    async fn run_all(&self, vmid: Vmid, commands: &[Command]) -> Result<bool, StepError> {
        let mut first = None;
        for command in commands {
            match run_well(self.inside()?, vmid, &Run::new(command.clone()).limit(SERVICE_LIMIT)).await {
                Ok(_) => {}
                // What was never set up cannot be taken down.
                Err(InsideError::NoProgram { .. } | InsideError::NotThere { .. }) => {}
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(true), |error| Err(error.into()))
    }
}

/// Removes files. Our program does it, and where it has not come so far, `rm`.
async fn remove(inside: &dyn Inside, vmid: Vmid, program: &str, paths: &[String]) -> Result<(), InsideError> {
    let words = |head: &[&str]| Run::new(head.iter().copied().chain(paths.iter().map(String::as_str)));
    match run_well(inside, vmid, &words(&[program, "inside", "remove"])).await {
        Err(InsideError::NoProgram { .. }) => run_well(inside, vmid, &words(&["rm", "-rf", "--"])).await.map(drop),
        other => other.map(drop),
    }
}

/// Puts a file back.
async fn rewrite(inside: &dyn Inside, vmid: Vmid, program: &str, file: &FileBefore) -> Result<(), InsideError> {
    match &file.text {
        Some(text) => {
            let mode = format!("{:o}", file.mode);
            let run = Run::new([program, "inside", "write", &file.path, "--mode", &mode]).input(text.clone());
            run_well(inside, vmid, &run).await.map(drop)
        }
        None => remove(inside, vmid, program, std::slice::from_ref(&file.path)).await,
    }
}
