//! Takes steps back, after a failure or from the journal of an earlier run.

use std::time::{Duration, Instant};

use super::changing;
use super::deeds::{Doer, NO_WAY};
use super::inside::Inside;
use super::mesh::Mesh;
use super::provision::{StepError, Watch, joined_as, run_call};
use super::{Executor, TaskError, observe};
use crate::ident::{NodeId, NodeName, Vmid};
use crate::plan::create::Image;
use crate::plan::journal::{Journal, Recovery};
use crate::plan::mark::{Mark, RunId, TAG};
use crate::plan::{Carrier, Undo};
use crate::pve::{ErrorKind, HostName, VolumeId, call, reply};
use crate::sys::config::Store;
use crate::wire::admin::NodeInfo;

/// A container being created cannot be removed; unpacking our image takes seconds.
const LOCK_LIMIT: Duration = Duration::from_secs(180);
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// A request whose reply was lost may still be on its way; a container that is not there is looked for once more after this.
const SECOND_LOOK: Duration = Duration::from_millis(700);
/// How long what passes by itself is waited for: an API that restarts, another operation's lock.
const PASSING_LIMIT: Duration = Duration::from_secs(60);
/// How long a backup or the like is waited for; it may take hours, and a snapshot takes seconds.
const LOCKED_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const DESTROY_LIMIT: Duration = Duration::from_secs(120);
const DELETE_LIMIT: Duration = Duration::from_secs(60);

/// How long an undoing that failed so is tried again.
fn patience(error: &StepError) -> Duration {
    let kind = match error {
        StepError::Call(error) if error.is_passing() => return PASSING_LIMIT,
        StepError::Call(error) => error.kind(),
        StepError::Task(task) => match &**task {
            TaskError::Failed { why, .. } => Some(ErrorKind::of(why)),
            TaskError::Unknown { .. } => return PASSING_LIMIT,
            TaskError::TooLong { .. } => None,
        },
        _ => None,
    };
    match kind {
        Some(ErrorKind::Busy | ErrorKind::HostUnreachable | ErrorKind::Timeout) => PASSING_LIMIT,
        Some(ErrorKind::Locked) => LOCKED_LIMIT,
        _ => Duration::ZERO,
    }
}

/// Takes steps back.
pub struct Undoer<'a> {
    /// Proxmox.
    pub executor: &'a dyn Executor,
    /// The known coordinator, if it can be reached.
    pub mesh: Option<&'a dyn Mesh>,
    /// The way into the guest, if there is one.
    pub inside: Option<&'a dyn Inside>,
    /// The files of this machine.
    pub store: &'a Store,
}

impl Undoer<'_> {
    /// Looks at the journal of an earlier run and takes back what that run left. Gives what was taken back and what could not be.
    ///
    /// # Errors
    /// If Proxmox cannot be asked what there is.
    pub async fn recover(&self, journal: &Journal, watch: &mut dyn Watch) -> Result<(Vec<String>, Vec<String>), StepError> {
        let recovery = self.look(journal).await?;
        self.settle(journal, &recovery, watch).await
    }

    /// What the journal of an earlier run asks for; reads only.
    ///
    /// # Errors
    /// If Proxmox cannot be asked what there is.
    pub async fn look(&self, journal: &Journal) -> Result<Recovery, StepError> {
        let mut there = None;
        for undo in &journal.undo {
            if let Some(host) = undo.host_of(journal.vmid) {
                there = observe::container_config(self.executor, host, journal.vmid).await?;
            }
        }
        Ok(journal.recover(there.as_ref()))
    }

    /// Does what a journal asks for. Gives what was taken back and what could not be.
    ///
    /// # Errors
    /// If the journal of a run that had ended cannot be removed.
    pub async fn settle(
        &self,
        journal: &Journal,
        recovery: &Recovery,
        watch: &mut dyn Watch,
    ) -> Result<(Vec<String>, Vec<String>), StepError> {
        match recovery {
            Recovery::Finished => {
                self.store.drop_journal(journal.vmid)?;
                Ok((Vec::new(), Vec::new()))
            }
            Recovery::TakeBack(wanted) => Ok(self.take_back(journal, wanted, watch).await),
        }
    }

    /// Takes these back in this order. The journal keeps what could not be taken back, and goes away when nothing is left.
    pub async fn take_back(&self, journal: &Journal, wanted: &[Undo], watch: &mut dyn Watch) -> (Vec<String>, Vec<String>) {
        let (mut undone, mut left) = (Vec::new(), Vec::new());
        let mut kept = Vec::new();
        // What was given up may still be about to make what is looked for here.
        let _ = tokio::time::timeout(LOCK_LIMIT, self.executor.settle()).await;
        for undo in wanted {
            let begun = Instant::now();
            watch.begin(&undo.to_string());
            let outcome = loop {
                let done = match undo {
                    // The image would seem to be needed, by the very container it was uploaded for.
                    Undo::RemoveVolume { .. } if kept.iter().any(|kept| matches!(kept, Undo::RemoveContainer { .. })) => {
                        Err(StepError::Missing("the container made from it is still there"))
                    }
                    undo => self.one(undo, watch).await,
                };
                match done {
                    Err(error) if begun.elapsed() < patience(&error) => {
                        watch.line(&format!("{error}; trying again"));
                        tokio::time::sleep(LOCK_PAUSE).await;
                    }
                    outcome => break outcome,
                }
            };
            watch.end(begun.elapsed(), outcome.is_ok());
            match outcome {
                Ok(true) => undone.push(undo.to_string()),
                Ok(false) => {}
                Err(error) => {
                    left.push(format!("{undo}: {error}"));
                    kept.push(undo.clone());
                }
            }
        }
        kept.reverse();
        let written = if kept.is_empty() {
            self.store.drop_journal(journal.vmid)
        } else {
            self.store.save_journal(&Journal { undo: kept, ..journal.clone() })
        };
        if let Err(error) = written {
            left.push(format!("the journal: {error}"));
        }
        (undone, left)
    }

    /// True if there was something to take back.
    async fn one(&self, undo: &Undo, watch: &mut dyn Watch) -> Result<bool, StepError> {
        match undo {
            Undo::RemoveContainer { host, vmid, run } => self.remove_container(host, *vmid, *run, watch).await,
            Undo::RemoveVolume { host, volume } => self.remove_volume(host, volume, watch).await,
            Undo::RevokeKey { id: None } => Ok(false),
            Undo::RevokeKey { id: Some(id) } => {
                self.mesh()?.revoke_key(*id).await?;
                Ok(true)
            }
            Undo::RemoveNode { name, before, key } => self.remove_node(name, before, *key).await,
            Undo::RemoveRelay { number: None, .. } => Ok(false),
            Undo::RemoveRelay { number: Some(number), .. } => {
                let mesh = self.mesh()?;
                let there = mesh.relays().await?.iter().any(|region| region.region_id == *number);
                if there {
                    mesh.remove_relay(*number).await?;
                }
                Ok(there)
            }
            Undo::PutBack { host, vmid, values, added } => changing::put_back(self.executor, host, *vmid, values, added, watch).await,
            Undo::HandBack { host, settings, restart, carrier: Carrier::Environment } => {
                changing::hand_back(self.executor, host, settings, *restart, watch).await?;
                Ok(true)
            }
            Undo::HandBack { host, settings, restart, carrier: Carrier::Inside } => {
                let inside = self.inside.ok_or(StepError::Missing(NO_WAY))?;
                changing::write_back((self.executor, inside), host, settings, *restart, watch).await
            }
            Undo::Stop { host, vmid } => changing::stop(self.executor, host, *vmid, watch).await,
            Undo::ApproveRoutes { name, add, remove } => {
                changing::approve_routes(self.mesh()?, name, add, remove).await?;
                Ok(true)
            }
            Undo::LeaveHighAvailability { vmid } => {
                let there = changing::is_managed(self.executor, *vmid).await?;
                if there {
                    self.executor.call(&call::ha_remove(*vmid)).await?;
                }
                Ok(there)
            }
            Undo::RenameNode { from, to } => {
                changing::rename_node(self.mesh()?, from, to).await?;
                Ok(true)
            }
            Undo::Inside(undo) => Doer { executor: self.executor, inside: self.inside, mesh: self.mesh }.take_back(undo).await,
            Undo::ForgetCoordinator { vmid } => {
                let config = self.store.load()?;
                let known = config.coordinator.is_some_and(|c| c.vmid == Some(*vmid));
                self.store.forget(*vmid)?;
                Ok(known)
            }
        }
    }

    fn mesh(&self) -> Result<&dyn Mesh, StepError> {
        self.mesh.ok_or(StepError::Missing(
            "the coordinator cannot be reached; what is there expires or can be removed with `pvemesh coordinator`",
        ))
    }

    async fn remove_container(&self, host: &HostName, vmid: Vmid, run: RunId, watch: &mut dyn Watch) -> Result<bool, StepError> {
        let begun = Instant::now();
        let mut looked_twice = false;
        let config = loop {
            match observe::container_config(self.executor, host, vmid).await? {
                Some(config) if config.lock.as_deref() == Some("create") && begun.elapsed() < LOCK_LIMIT => {
                    tokio::time::sleep(LOCK_PAUSE).await
                }
                Some(config) => break config,
                None if looked_twice => return Ok(false),
                None => {
                    looked_twice = true;
                    tokio::time::sleep(SECOND_LOOK).await;
                }
            }
        };
        // Somebody else's container under this number is not ours to remove.
        if Mark::of_container(vmid, &config).is_none_or(|mark| mark.run != run) {
            return Ok(false);
        }
        match run_call(self.executor, &call::stop(host, vmid)?, Some(STOP_LIMIT), watch).await {
            Ok(()) => {}
            Err(StepError::Call(error)) if error.kind() == Some(ErrorKind::NotRunning) => {}
            Err(error) => return Err(error),
        }
        run_call(self.executor, &call::destroy(host, vmid)?, Some(DESTROY_LIMIT), watch).await?;
        Ok(true)
    }

    async fn remove_volume(&self, host: &HostName, volume: &VolumeId, watch: &mut dyn Watch) -> Result<bool, StepError> {
        let there = self.has(host, volume).await? || {
            tokio::time::sleep(SECOND_LOOK).await;
            self.has(host, volume).await?
        };
        if !there || (Image::is_shared(volume.file_name()) && self.others_need_images(host).await?) {
            return Ok(false);
        }
        match run_call(self.executor, &call::delete_volume(host, volume, 15)?, Some(DELETE_LIMIT), watch).await {
            Err(StepError::Call(error)) if error.kind() == Some(ErrorKind::NoSuchVolume) => Ok(false),
            other => other.map(|()| true),
        }
    }

    async fn has(&self, host: &HostName, volume: &VolumeId) -> Result<bool, StepError> {
        let listed = self.executor.call(&call::templates(host, volume.storage())?).await?;
        Ok(reply::volumes(&listed)?.iter().any(|v| v.id == *volume))
    }

    /// Whether an image that serves every guest may serve somebody else's run: one of our guests is there, or some container is being made.
    async fn others_need_images(&self, host: &HostName) -> Result<bool, StepError> {
        // The host's own list is of this moment, the cluster's may be ten seconds old.
        let here = reply::containers(&self.executor.call(&call::containers(host)).await?)?;
        let ours = |tags: &[String]| tags.iter().any(|tag| tag == TAG);
        if here.iter().any(|c| ours(&c.tags) || c.lock.as_deref() == Some("create")) {
            return Ok(true);
        }
        let all = reply::guests(&self.executor.call(&call::guests()?).await?)?;
        Ok(all.iter().any(|guest| guest.host != *host && ours(&guest.tags)))
    }

    async fn remove_node(&self, name: &NodeName, before: &[NodeId], key: Option<i64>) -> Result<bool, StepError> {
        let mesh = self.mesh()?;
        let mut removed = false;
        let ours = |node: &NodeInfo| !before.contains(&node.id) && joined_as(node, name, key);
        for node in mesh.nodes().await?.into_iter().filter(ours) {
            mesh.delete_node(node.id).await?;
            removed = true;
        }
        Ok(removed)
    }
}
