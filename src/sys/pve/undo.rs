//! Takes steps back, after a failure or from the journal of an earlier run.

use std::time::{Duration, Instant};

use super::changing;
use super::deeds::Doer;
use super::inside::Inside;
use super::mesh::Mesh;
use super::provision::{StepError, Watch, run_call};
use super::{Executor, observe};
use crate::ident::{NodeId, NodeName, Vmid};
use crate::plan::Undo;
use crate::plan::journal::{Journal, Recovery};
use crate::plan::mark::{Mark, RunId};
use crate::pve::{ErrorKind, HostName, VolumeId, call};
use crate::sys::config::Store;

/// A container being created cannot be removed; unpacking our image takes seconds.
const LOCK_LIMIT: Duration = Duration::from_secs(180);
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// A request whose reply was lost may still be on its way; a container that is not there is looked for once more after this.
const SECOND_LOOK: Duration = Duration::from_millis(700);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const DESTROY_LIMIT: Duration = Duration::from_secs(120);
const DELETE_LIMIT: Duration = Duration::from_secs(60);

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
        let mut there = None;
        for undo in &journal.undo {
            if let Some(host) = undo.host_of(journal.vmid) {
                there = observe::container_config(self.executor, host, journal.vmid).await?;
            }
        }
        match journal.recover(there.as_ref()) {
            Recovery::Finished => {
                self.store.drop_journal(journal.vmid)?;
                Ok((Vec::new(), Vec::new()))
            }
            Recovery::TakeBack(wanted) => Ok(self.take_back(journal, &wanted, watch).await),
        }
    }

    /// Takes these back in this order. The journal keeps what could not be taken back, and goes away when nothing is left.
    pub async fn take_back(&self, journal: &Journal, wanted: &[Undo], watch: &mut dyn Watch) -> (Vec<String>, Vec<String>) {
        let (mut undone, mut left) = (Vec::new(), Vec::new());
        let mut kept = Vec::new();
        for undo in wanted {
            let begun = Instant::now();
            watch.begin(&undo.to_string());
            let outcome = self.one(undo, watch).await;
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
            Undo::RemoveNode { name, before } => self.remove_node(name, before).await,
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
            Undo::HandBack { host, settings, restart } => {
                changing::hand_back(self.executor, host, settings, *restart, watch).await?;
                Ok(true)
            }
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
        let listed = self.executor.call(&call::templates(host, volume.storage())?).await?;
        let there = crate::pve::reply::volumes(&listed)?.iter().any(|v| v.id == *volume);
        if !there {
            return Ok(false);
        }
        match run_call(self.executor, &call::delete_volume(host, volume, 15)?, Some(DELETE_LIMIT), watch).await {
            Err(StepError::Call(error)) if error.kind() == Some(ErrorKind::NoSuchVolume) => Ok(false),
            other => other.map(|()| true),
        }
    }

    async fn remove_node(&self, name: &NodeName, before: &[NodeId]) -> Result<bool, StepError> {
        let mesh = self.mesh()?;
        let mut removed = false;
        for node in mesh.nodes().await?.into_iter().filter(|node| node.name == *name && !before.contains(&node.id)) {
            mesh.delete_node(node.id).await?;
            removed = true;
        }
        Ok(removed)
    }
}
