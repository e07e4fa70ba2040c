//! From a plan to a guest: observe, plan, carry out, report.

use std::path::Path;

use super::report::{Report, Timed, dry_run_text, dry_run_value};
use crate::cli::connect::{Session, call_failure, config_failure, refusal};
use crate::cli::hook;
use crate::cli::interrupt::Interrupt;
use crate::cli::progress::Progress;
use crate::cli::ways::WayArgs;
use crate::cli::{Exit, Failure, Output, carry, rights};
use crate::ident::{NodeId, NodeName};
use crate::plan::create::{self, Existing, Image, Outcome, Plan};
use crate::plan::mark::RunId;
use crate::plan::options::{GuestOptions, Join, KnownCoordinator, Role};
use crate::pve::call::Arch;
use crate::sys::entropy;
use crate::sys::image::ImageError;
use crate::sys::pve::{Findings, Images as _, Inside, Mesh, Provisioner, Stock, observe};

/// How a guest is made, whatever it is.
#[derive(Clone, Copy)]
pub(in crate::cli) struct How<'a> {
    pub(in crate::cli) dry_run: bool,
    pub(in crate::cli) image: Option<&'a Path>,
    pub(in crate::cli) way: &'a WayArgs,
    pub(in crate::cli) output: &'a Output,
}

/// One guest being made.
pub(super) struct Making<'a> {
    pub(super) session: &'a Session,
    pub(super) options: &'a GuestOptions,
    pub(super) role: Role,
    pub(super) mesh: Option<&'a dyn Mesh>,
    pub(super) is_known: bool,
    pub(super) how: How<'a>,
    pub(super) tried: String,
}

impl Making<'_> {
    pub(super) async fn run(self) -> Result<Option<Report>, Failure> {
        let begun = std::time::Instant::now();
        let vmid = self.options.vmid;
        let mut progress = Progress::new(self.how.output);
        let lock = if self.how.dry_run { None } else { Some(self.session.store.lock(vmid).map_err(config_failure)?) };
        if lock.is_some() {
            carry::recover(self.session, self.how.way, self.mesh, vmid, self.how.output, &mut progress).await?;
        }
        let stock = progress.during("prepare the image", || Stock::prepare(&self.session.store, self.how.image));
        let stock = stock.map_err(|e| image_failure(&self.tried, &e))?;
        let mesh: Vec<(NodeId, NodeName)> = match self.mesh {
            Some(mesh) => {
                let nodes = mesh
                    .nodes()
                    .await
                    .map_err(|e| Failure::new(&self.tried, e, "is this machine's admin key still known to it?").exit(Exit::Denied))?;
                nodes.into_iter().map(|node| (node.id, node.name)).collect()
            }
            None => Vec::new(),
        };
        let observed = observe::observe(&*self.session.executor, vmid, mesh).await.map_err(|e| call_failure(&self.tried, &e))?;
        let (mut observed, mut script) = (observed, None);
        if observed.target.is_none() && matches!(self.role, Role::Node { .. }) {
            (observed.hookscript, script) = hook::for_new_guests(self.session, &observed).await;
        }
        let image = Image::new(env!("CARGO_PKG_VERSION"), &stock.shared().sha256, architecture(&self.tried)?);
        let random = entropy::bytes::<16>().map_err(|e| Failure::new(&self.tried, e, "this system has no randomness"))?;
        let run = RunId::new(u128::from_be_bytes(random));
        let outcome = match create::create(self.options, &self.role, &observed, &image, run) {
            Ok(outcome) => outcome,
            Err(error) => return Err(rights::explained(&*self.session.executor, &self.tried, error).await),
        };
        let (mut plan, changed) = match outcome {
            Outcome::Plan(plan) => (plan, true),
            Outcome::Change(plan) => {
                self.how.output.note(format!("{} {} is there on {} and differs:", self.role.words(), vmid, plan.host));
                (plan, true)
            }
            Outcome::AlreadyThere(existing) => {
                let plan = create::revive(&existing, &self.role, self.is_known, run).map_err(|e| refusal(&self.tried, &e))?;
                self.say_it_is_there(&existing, &plan);
                let changed = !plan.steps.is_empty();
                (plan, changed)
            }
        };
        let host = plan.host.clone();
        plan.choices.extend(rights::review(&*self.session.executor, &self.tried, &observed, &host, &mut plan.steps).await?);
        let inside = self.how.way.of_plan(self.session, &plan, &observed, &self.tried)?;
        if self.how.dry_run {
            self.how.output.result(&dry_run_value(&plan), dry_run_text(&plan, &self.session.executor.place()));
            return Ok(None);
        }
        for difference in &plan.differences {
            self.how.output.note(format!("  {:<17} {} -> {}", difference.what, difference.from, difference.to));
        }
        for choice in &plan.choices {
            self.how.output.note(format!("  {:<17} {}  ({})", choice.what, choice.value, choice.why));
        }
        if let Some(script) = &script {
            script.put()?;
        }
        let findings = self.carry_out(&plan, inside.as_deref(), &stock, &mut progress).await;
        if findings.is_err() && script.is_some() {
            // If it was written for this guest alone.
            hook::forget_script(self.session).await;
        }
        let findings = findings?;
        drop(lock);
        Ok(Some(self.report(plan, changed, findings, begun.elapsed().as_secs_f64())))
    }

    fn say_it_is_there(&self, existing: &Existing, plan: &Plan) {
        let state = if plan.steps.is_empty() { "nothing to do" } else { "bringing it up" };
        self.how.output.note(format!(
            "{} {} ({}) is already there on {}: {state}",
            self.role.words(),
            existing.vmid,
            existing.name,
            existing.host
        ));
    }

    async fn carry_out(
        &self,
        plan: &Plan,
        inside: Option<&dyn Inside>,
        stock: &Stock,
        progress: &mut Progress<'_>,
    ) -> Result<Findings, Failure> {
        let door = self.session.door()?;
        let mut interrupt = Interrupt::listen(self.how.output)?;
        let provisioner = Provisioner {
            executor: &*self.session.executor,
            door: &door,
            mesh: self.mesh,
            inside,
            images: stock,
            store: &self.session.store,
            watch: progress,
            interrupted: interrupt.requested(),
        };
        provisioner.run(plan).await.map_err(|error| carry::failed(self.how.output, &self.tried, &error))
    }

    fn report(&self, plan: Plan, changed: bool, findings: Findings, seconds: f64) -> Report {
        let known = findings.coordinator.or_else(|| match &self.role {
            Role::Node { join: Join::Ours(known), .. } | Role::Relay { coordinator: known, .. } => Some(known.clone()),
            _ => self.session.config.coordinator.clone().map(KnownCoordinator::from).filter(|c| c.vmid == Some(plan.vmid)),
        });
        Report {
            vmid: plan.vmid,
            name: plan.name,
            role: plan.role,
            node: plan.host.to_string(),
            changed,
            choices: plan.choices,
            differences: plan.differences,
            lan_address: findings.lan_address,
            mesh_addresses: findings.mesh_addresses,
            url: known.map(|known| known.url),
            steps: findings.timings.into_iter().map(|(step, took)| Timed { step, seconds: took.as_secs_f64() }).collect(),
            seconds,
            calls: self.session.calls.count(),
        }
    }
}

pub(in crate::cli) fn image_failure(tried: &str, error: &ImageError) -> Failure {
    match error {
        ImageError::File { tried: "use as an image", .. } => {
            Failure::new(tried, format!("--image: {error}"), "make one: pvemesh image build; or leave --image out").exit(Exit::Usage)
        }
        _ => Failure::new(tried, error, "use the released binary, or build in the repository, which links statically"),
    }
}

/// The architecture of the image made of this program.
pub(in crate::cli) fn architecture(tried: &str) -> Result<Arch, Failure> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(Arch::Amd64),
        "aarch64" => Ok(Arch::Arm64),
        other => {
            Err(Failure::new(tried, format!("this program is for {other}, which Proxmox does not run on"), "use one for x86-64 or arm64"))
        }
    }
}
