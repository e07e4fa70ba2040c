//! Carries a plan out: step by step, with a journal on disk before each step that leaves something, and takes everything back if one
//! fails or the admin interrupts.
//!
//! The journal names what would take a step back *before* the step begins, so that a run killed at any moment leaves either nothing or a
//! journal that covers it. Each [`Undo`] checks what it is about to remove: a step that never happened is not an error.

mod actor;
mod calls;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::inside::{Inside, InsideError};
use super::mesh::{Door, Mesh, MeshError};
use super::undo::Undoer;
use super::{CallError, Executor, GuestConfigError, TaskError};
use crate::ident::{NodeName, Secret, Vmid};
use crate::plan::create::Plan;
use crate::plan::journal::Journal;
use crate::plan::options::KnownCoordinator;
use crate::plan::render::RenderError;
use crate::plan::{Action, Step, Undo};
use crate::pve::reply;
use crate::sys::config::{ConfigError, Store};
use crate::sys::image::{Image, ImageError};
use crate::wire::admin::NodeInfo;
use actor::Actor;
pub(super) use actor::joined_as;
pub use calls::upload_image;
pub(super) use calls::{Unwatched, run_call, until};

/// How long a call that cannot be broken off is waited for after Ctrl-C, and how often it is looked at.
const LAST_CALL: Duration = Duration::from_secs(45);
const LAST_CALL_PAUSE: Duration = Duration::from_millis(20);
/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Proxmox.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A task of Proxmox.
    #[error(transparent)]
    Task(Box<TaskError>),
    /// The way into a guest, or what was done there.
    #[error(transparent)]
    Inside(Box<InsideError>),
    /// The coordinator.
    #[error("the coordinator: {0}")]
    Mesh(#[from] MeshError),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file of ours.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file of the host's.
    #[error(transparent)]
    GuestConfig(#[from] GuestConfigError),
    /// A template.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// It did not happen in time.
    #[error("it did not happen within {limit:?}{last}", last = last.as_ref().map(|l| format!(": {l}")).unwrap_or_default())]
    TooLong {
        /// The limit.
        limit: Duration,
        /// What the last look showed.
        last: Option<String>,
    },
    /// Another run's node joined at the same time.
    #[error("the name {wanted} went to another node, which joined at the same time; {given} was left for this one")]
    NameLost {
        /// The name it was to have.
        wanted: NodeName,
        /// The name the coordinator gave it.
        given: NodeName,
    },
    /// Somebody changed a guest's notes so that what was decided of it no longer holds.
    #[error("the notes of guest {0} were changed meanwhile, and are another's, of another time, or full")]
    Overtaken(Vmid),
    /// The admin pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// An earlier step should have left something that is missing; a defect of ours.
    #[error("{0}")]
    Missing(&'static str),
}

impl From<reply::ReplyError> for StepError {
    fn from(error: reply::ReplyError) -> Self {
        Self::Call(error.into())
    }
}

impl From<InsideError> for StepError {
    fn from(error: InsideError) -> Self {
        Self::Inside(Box::new(error))
    }
}

impl From<TaskError> for StepError {
    fn from(error: TaskError) -> Self {
        Self::Task(Box::new(error))
    }
}

impl From<crate::pve::BuildError> for StepError {
    fn from(error: crate::pve::BuildError) -> Self {
        Self::Call(error.into())
    }
}

/// A run that failed.
#[derive(Debug)]
pub struct RunError {
    /// The step.
    pub step: String,
    /// Why.
    pub error: StepError,
    /// What was taken back.
    pub undone: Vec<String>,
    /// What could not be taken back, and why; the journal still has it.
    pub left: Vec<String>,
}

/// Somebody who watches the steps.
pub trait Watch: Send {
    /// A step begins.
    fn begin(&mut self, title: &str);
    /// A task says something.
    fn line(&mut self, text: &str);
    /// The step ended.
    fn end(&mut self, took: Duration, ok: bool);
}

/// Where images come from.
pub trait Images: Send + Sync {
    /// The image that serves every guest.
    fn shared(&self) -> &Image;

    /// An image with this configuration inside, in a private file that the caller removes.
    ///
    /// # Errors
    /// If it cannot be made.
    fn personal(&self, guest_toml: &str) -> Result<Image, ImageError>;
}

/// What a run has found out.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// The guest's address on the LAN.
    pub lan_address: Option<IpAddr>,
    /// Its addresses in the mesh.
    pub mesh_addresses: Vec<IpAddr>,
    /// The coordinator it is, or joined.
    pub coordinator: Option<KnownCoordinator>,
    /// The steps and how long each took.
    pub timings: Vec<(String, Duration)>,
}

/// Everything a run needs.
pub struct Provisioner<'a> {
    /// Proxmox.
    pub executor: &'a dyn Executor,
    /// The way to coordinators.
    pub door: &'a dyn Door,
    /// The known coordinator, already open.
    pub mesh: Option<&'a dyn Mesh>,
    /// The way into the guest, for plans that need one.
    pub inside: Option<&'a dyn Inside>,
    /// Where images come from.
    pub images: &'a dyn Images,
    /// The files of this machine.
    pub store: &'a Store,
    /// Who watches.
    pub watch: &'a mut dyn Watch,
    /// Becomes ready when the admin wants to stop.
    pub interrupted: &'a mut (dyn Future<Output = ()> + Unpin + Send),
}

/// What one step leaves for the next.
#[derive(Default)]
struct Carried {
    join_key: Option<Secret>,
    /// The number of a join key just made, until the journal has it.
    minted: Option<i64>,
    /// The same for good.
    key: Option<i64>,
    /// The number of a relay's region just added, until the journal has it.
    relayed: Option<i32>,
    /// A node that has joined in another's place.
    successor: Option<NodeInfo>,
    findings: Findings,
}

impl<'a> Provisioner<'a> {
    /// Carries the plan out.
    ///
    /// # Errors
    /// With the failed step, what was taken back and what is left.
    pub async fn run(mut self, plan: &Plan) -> Result<Findings, RunError> {
        let mut journal = Journal::new(plan);
        let mut carried = Carried::default();
        for step in &plan.steps {
            let begun = Instant::now();
            self.watch.begin(&step.title);
            let outcome = self.step(step, &mut journal, &mut carried).await;
            self.watch.end(begun.elapsed(), outcome.is_ok());
            carried.findings.timings.push((step.title.clone(), begun.elapsed()));
            if let Err(error) = outcome {
                tracing::debug!(step = %step.title, %error, "taking back what was done");
                let (undone, left) = self.take_back(&journal).await;
                return Err(RunError { step: step.title.clone(), error, undone, left });
            }
        }
        // The guest is complete and says so; a journal that stays behind is recognised by that on the next run.
        if let Err(error) = self.store.drop_journal(plan.vmid) {
            tracing::warn!(%error, "the journal of a finished run stays behind");
        }
        Ok(carried.findings)
    }

    /// Carries out the steps of a removal. What cannot be done is collected and the rest is still done, unless the container itself stays.
    ///
    /// # Errors
    /// If the container could not be removed.
    pub async fn remove(self, steps: &[Step]) -> Result<Vec<String>, RunError> {
        let mut left = Vec::new();
        for step in steps {
            let begun = Instant::now();
            self.watch.begin(&step.title);
            let outcome = self.actor(&AtomicU32::new(0)).act(&step.action, &mut Carried::default(), self.watch).await;
            self.watch.end(begun.elapsed(), outcome.is_ok());
            let essential = matches!(&step.action, Action::Call { request, .. } if request.path.contains("/lxc/"));
            match outcome {
                Ok(()) => {}
                Err(error) if essential => return Err(RunError { step: step.title.clone(), error, undone: Vec::new(), left }),
                Err(error) => left.push(format!("{}: {error}", step.title)),
            }
        }
        Ok(left)
    }

    fn actor<'b>(&self, under_way: &'b AtomicU32) -> Actor<'b>
    where
        'a: 'b,
    {
        Actor {
            executor: self.executor,
            door: self.door,
            mesh: self.mesh,
            inside: self.inside,
            images: self.images,
            store: self.store,
            under_way,
        }
    }

    async fn step(&mut self, step: &Step, journal: &mut Journal, carried: &mut Carried) -> Result<(), StepError> {
        if let Some(undo) = &step.undo {
            let mut undo = undo.clone();
            if let Undo::RemoveNode { key, .. } = &mut undo {
                *key = carried.key;
            }
            journal.undo.push(undo);
            self.store.save_journal(journal)?;
        }
        let under_way = AtomicU32::new(0);
        let actor = self.actor(&under_way);
        let mut acting = Box::pin(actor.act(&step.action, carried, self.watch));
        tokio::select! {
            biased;
            () = &mut *self.interrupted => {
                // A call given up on its way may still be carried out, when nobody looks any more.
                let _ = tokio::time::timeout(LAST_CALL, async {
                    while under_way.load(Ordering::SeqCst) > 0 {
                        tokio::select! { _ = &mut acting => break, () = tokio::time::sleep(LAST_CALL_PAUSE) => {} }
                    }
                })
                .await;
                Err(StepError::Interrupted)
            }
            done = &mut acting => done,
        }?;
        drop(acting);
        if let Some(number) = carried.minted.take() {
            for undo in &mut journal.undo {
                if let Undo::RevokeKey { id } = undo {
                    *id = Some(number);
                }
            }
            self.store.save_journal(journal)?;
        }
        if let Some(given) = carried.relayed.take() {
            for undo in &mut journal.undo {
                if let Undo::RemoveRelay { number, .. } = undo {
                    *number = Some(given);
                }
            }
            self.store.save_journal(journal)?;
        }
        Ok(())
    }

    async fn take_back(&mut self, journal: &Journal) -> (Vec<String>, Vec<String>) {
        let undoer = Undoer { executor: self.executor, mesh: self.mesh, inside: self.inside, store: self.store };
        let wanted: Vec<Undo> = journal.undo.iter().rev().cloned().collect();
        undoer.take_back(journal, &wanted, self.watch).await
    }
}
