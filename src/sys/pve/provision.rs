//! Carries a plan out: step by step, with a journal on disk before each step that leaves something, and takes everything back if one
//! fails or the admin interrupts.
//!
//! The journal names what would take a step back *before* the step begins, so that a run killed at any moment leaves either nothing or a
//! journal that covers it. Each [`Undo`] checks what it is about to remove: a step that never happened is not an error.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::changing;
use super::deeds::{Doer, Known};
use super::inside::{Inside, InsideError};
use super::mesh::{Door, Mesh, MeshError};
use super::undo::Undoer;
use super::{CallError, Executor, GuestConfigError, TaskError, Upload, observe, wait_task};
use crate::ident::{NodeName, Secret, Vmid, is_mesh_address};
use crate::plan::block;
use crate::plan::create::{CONFIG_VARIABLE, Plan};
use crate::plan::identity::first_mac;
use crate::plan::journal::Journal;
use crate::plan::mark::{Identity, Mark};
use crate::plan::options::KnownCoordinator;
use crate::plan::render::{self, Notes, RenderError};
use crate::plan::{Action, RELAY_PORT, Step, TunEdit, Undo, environment};
use crate::pve::reply::ContainerConfig;
use crate::pve::{ErrorKind, HostName, Request, VolumeId, call, reply};
use crate::relay::region;
use crate::settings::{DEFAULT_STUN_PORT, Guest};
use crate::sys::config::{ConfigError, Store};
use crate::sys::image::{Image, ImageError};
use crate::wire::admin::NodeInfo;
use crate::wire::control::DerpRegion;

/// How long a call that cannot be broken off is waited for after Ctrl-C, and how often it is looked at.
const LAST_CALL: Duration = Duration::from_secs(45);
const LAST_CALL_PAUSE: Duration = Duration::from_millis(20);
/// Pause between two looks at something that is about to happen.
const LOOK_PAUSE: Duration = Duration::from_millis(150);

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
            journal.undo.push(undo.clone());
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

struct Actor<'a> {
    executor: &'a dyn Executor,
    door: &'a dyn Door,
    mesh: Option<&'a dyn Mesh>,
    inside: Option<&'a dyn Inside>,
    images: &'a dyn Images,
    store: &'a Store,
    /// Calls that change something and have not returned.
    under_way: &'a AtomicU32,
}

/// Counts while it lives.
struct UnderWay<'a>(&'a AtomicU32);

impl<'a> UnderWay<'a> {
    fn begin(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Actor<'_> {
    async fn act(&self, action: &Action, carried: &mut Carried, watch: &mut dyn Watch) -> Result<(), StepError> {
        match action {
            Action::Upload { host, volume } => {
                // With its task: what that one is about to store would be missed by whoever takes it back.
                let _counted = UnderWay::begin(self.under_way);
                upload(self.executor, (host, volume), self.images.shared(), watch).await
            }
            Action::UploadPersonal { host, volume, guest } => {
                let toml = render::guest(&with_key(guest, carried))?;
                let image = self.images.personal(&toml)?;
                let private = Removed(image.path.clone());
                let _counted = UnderWay::begin(self.under_way);
                let outcome = upload(self.executor, (host, volume), &image, watch).await;
                drop(private);
                outcome
            }
            Action::MintKey(wanted) => {
                let made = self.mesh()?.create_key(wanted).await?;
                carried.minted = Some(made.id);
                carried.join_key = Some(made.key);
                Ok(())
            }
            Action::Call { request, task } => self.call(request, *task, watch).await,
            Action::EditTun { host, vmid, edit } => self.edit_tun(host.clone(), *vmid, *edit).await,
            Action::Deliver { host, guest } => {
                let content = environment(&with_key(guest, carried))?;
                let request = call::set_environment(host, guest.vmid, CONFIG_VARIABLE, &content)?;
                self.call(&request, None, watch).await
            }
            Action::Redeliver { host, guest } => changing::redeliver(self.executor, host, guest, watch).await,
            Action::ApproveRoutes { name, add, remove } => changing::approve_routes(self.mesh()?, name, add, remove).await,
            Action::RenameNode { from, to } => changing::rename_node(self.mesh()?, from, to).await,
            Action::AwaitAddress { host, vmid, interface, expected, limit } => {
                carried.findings.lan_address = Some(self.lan_address(host, *vmid, interface, *expected, *limit).await?);
                Ok(())
            }
            Action::MeetCoordinator { vmid, port, url, limit } => {
                let address = carried.findings.lan_address.ok_or(StepError::Missing("the coordinator's address is not known"))?;
                let lan_url = format!("http://{}", std::net::SocketAddr::new(address, *port));
                let known = self.meet(*vmid, lan_url, url.as_ref(), *limit).await?;
                self.store.remember(known.clone())?;
                carried.findings.coordinator = Some(known);
                Ok(())
            }
            Action::MeetRelay { name, address, limit } => {
                let own = carried.findings.lan_address.ok_or(StepError::Missing("the relay's address is not known"))?;
                let region = self.meet_relay(name, own, address.as_deref(), *limit).await?;
                carried.relayed = Some(self.mesh()?.add_relay(&region).await?.region_id);
                Ok(())
            }
            Action::AwaitNode { name, limit } => {
                let mesh = self.mesh()?;
                carried.findings.mesh_addresses = until(*limit, || async {
                    let nodes = mesh.nodes().await?;
                    match nodes.into_iter().find(|node| node.name == *name) {
                        Some(node) if node.online => Ok(Ok(node.addresses)),
                        Some(_) => Ok(Err("it has joined but is not connected".to_owned())),
                        None => Ok(Err("the coordinator has not heard of it; its console in Proxmox shows why".to_owned())),
                    }
                })
                .await?;
                Ok(())
            }
            Action::AwaitMeshAddress { host, vmid, limit } => {
                carried.findings.mesh_addresses = until(*limit, || async {
                    let all = match observe::interfaces(self.executor, host, *vmid).await {
                        // Before 8.1 nobody tells, and this coordinator is none that we could ask.
                        Err(error) if error.kind() == Some(ErrorKind::NotSupported) => return Ok(Ok(Vec::new())),
                        all => all?,
                    };
                    let mesh: Vec<IpAddr> =
                        all.iter().flat_map(|i| &i.addresses).map(ipnet::IpNet::addr).filter(|a| is_mesh_address(*a)).collect();
                    Ok(if mesh.is_empty() {
                        Err("it has no address of the mesh yet; its console in Proxmox shows why".to_owned())
                    } else {
                        Ok(mesh)
                    })
                })
                .await?;
                Ok(())
            }
            Action::AwaitTemplate { host, vmid, limit } => {
                until(*limit, || async {
                    let config = observe::container_config(self.executor, host, *vmid).await?;
                    let done = config.is_some_and(|c| c.lock.is_none() && c.values.get("template").is_some_and(|flag| flag == "1"));
                    Ok(if done { Ok(()) } else { Err("it is not a template yet; the task's log in Proxmox says why".to_owned()) })
                })
                .await
            }
            Action::Finish { host, notes, mark } => self.finish(host, notes, mark, carried, watch).await,
            Action::RemoveNode(name) => {
                let mesh = self.mesh()?;
                for node in mesh.nodes().await?.into_iter().filter(|node| node.name == *name) {
                    mesh.delete_node(node.id).await?;
                }
                Ok(())
            }
            Action::RemoveRelay(name) => {
                let mesh = self.mesh()?;
                for region in mesh.relays().await?.into_iter().filter(|region| region.region_code == name.as_str()) {
                    mesh.remove_relay(region.region_id).await?;
                }
                Ok(())
            }
            Action::ForgetCoordinator(vmid) => Ok(self.store.forget(*vmid)?),
            Action::Inside(action) => {
                let Carried { join_key, successor, findings, .. } = carried;
                let known = Known { join_key: join_key.as_ref(), addresses: &findings.mesh_addresses, successor };
                Doer { executor: self.executor, inside: self.inside, mesh: self.mesh }.act(action, known).await
            }
        }
    }

    fn mesh(&self) -> Result<&dyn Mesh, StepError> {
        self.mesh.ok_or(StepError::Missing("the coordinator is not known"))
    }

    async fn call(&self, request: &Request, task: Option<Duration>, watch: &mut dyn Watch) -> Result<(), StepError> {
        let value = {
            let _counted = UnderWay::begin(self.under_way);
            self.executor.call(request).await?
        };
        follow(self.executor, &value, task, watch).await
    }

    async fn edit_tun(&self, host: HostName, vmid: Vmid, edit: TunEdit) -> Result<(), StepError> {
        let files = self.executor.guest_configs().ok_or(StepError::Missing("the host's files are out of reach"))?.clone();
        let edited = tokio::task::spawn_blocking(move || files.edit(&host, vmid, |text| edit.apply(text))).await;
        edited.map_err(|_| StepError::Missing("the edit of a host's file was given up"))??;
        Ok(())
    }

    async fn lan_address(
        &self,
        host: &HostName,
        vmid: Vmid,
        interface: &str,
        expected: Option<IpAddr>,
        limit: Duration,
    ) -> Result<IpAddr, StepError> {
        until(limit, || async {
            let all = match (observe::interfaces(self.executor, host, vmid).await, expected) {
                // Before 8.1 nobody tells; what was asked for must do.
                (Err(error), Some(wanted)) if error.kind() == Some(ErrorKind::NotSupported) => return Ok(Ok(wanted)),
                (all, _) => all?,
            };
            let Some(there) = all.iter().find(|i| i.name == interface) else { return Ok(Err(format!("{interface} is not there yet"))) };
            let usable = |address: &IpAddr| match address {
                IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback(),
                IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
            };
            let mut addresses: Vec<IpAddr> = there.addresses.iter().map(ipnet::IpNet::addr).filter(usable).collect();
            // IPv4 first: every home LAN has it.
            addresses.sort_by_key(|address| address.is_ipv6());
            Ok(match expected {
                Some(wanted) if addresses.contains(&wanted) => Ok(wanted),
                Some(wanted) => Err(format!("{interface} does not have {wanted} yet")),
                None => addresses
                    .first()
                    .copied()
                    .ok_or_else(|| format!("{interface} got no address; is there a DHCP server on this bridge? --ip sets a fixed one")),
            })
        })
        .await
    }

    async fn meet(&self, vmid: Vmid, lan_url: String, url: Option<&String>, limit: Duration) -> Result<KnownCoordinator, StepError> {
        let server_key = until(limit, || async {
            Ok(match self.door.open(&lan_url, None).await {
                Ok(mesh) => mesh.info().await.map(|info| info.server_key).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            })
        })
        .await?;
        let url = url.cloned().unwrap_or_else(|| lan_url.clone());
        Ok(KnownCoordinator { vmid: Some(vmid), lan_url, url, server_key })
    }

    /// The region of a new relay, with the certificate it shows. Clients that are not on the LAN reach it under `address`, if there is one.
    async fn meet_relay(&self, name: &NodeName, own: IpAddr, address: Option<&str>, limit: Duration) -> Result<DerpRegion, StepError> {
        let host = address.unwrap_or(name.as_str());
        let socket = std::net::SocketAddr::new(own, RELAY_PORT);
        let pin = until(limit, || async { Ok(self.door.meet_relay(socket, host).await.map_err(|e| e.to_string())) }).await?;
        let mut region = region::with_one_relay(0, host, RELAY_PORT, Some(DEFAULT_STUN_PORT), Some(&pin));
        (region.region_code, region.region_name) = (name.to_string(), name.to_string());
        if address.is_none() {
            for node in &mut region.nodes {
                region::place_at(node, own);
            }
        }
        Ok(region)
    }

    async fn finish(&self, host: &HostName, notes: &Notes, mark: &Mark, carried: &Carried, watch: &mut dyn Watch) -> Result<(), StepError> {
        let mut text = render::notes(notes)?;
        for address in carried.findings.lan_address.iter().chain(&carried.findings.mesh_addresses) {
            let place = if is_mesh_address(*address) { "in the mesh" } else { "on the LAN" };
            text.push_str(&format!("\n- address {place}: `{address}`"));
        }
        // What tells the guest from a copy of it is known only now that Proxmox has made it.
        let v4 = carried.findings.mesh_addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) if self.mesh.is_some() => Some(*v4),
            _ => None,
        });
        let compose = |config: &ContainerConfig| {
            let identity = Identity { mac: first_mac(config), address: v4.or(mark.identity.address), ..mark.identity };
            block::replaced(&config.description, &text, &Mark { identity, ..mark.clone() })
        };
        super::notes::rewrite(self.executor, host, mark.vmid, &compose, watch).await
    }
}

async fn upload(
    executor: &dyn Executor,
    (host, volume): (&HostName, &VolumeId),
    image: &Image,
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    let upload = Upload {
        host: host.clone(),
        storage: volume.storage().clone(),
        file: image.path.clone(),
        name: volume.file_name().to_owned(),
        sha256: image.sha256.clone(),
    };
    let task = executor.upload(&upload).await?;
    wait_task(executor, &task, super::UPLOAD_TASK_LIMIT, &mut |line| watch.line(line)).await?;
    Ok(())
}

/// Uploads the image that serves every guest, outside of any plan: several plans wait for it.
///
/// # Errors
/// If it cannot be stored.
pub async fn upload_image(executor: &dyn Executor, host: &HostName, volume: &VolumeId, images: &dyn Images) -> Result<(), StepError> {
    upload(executor, (host, volume), images.shared(), &mut Unwatched).await
}

/// Nobody watches.
pub(super) struct Unwatched;

impl Watch for Unwatched {
    fn begin(&mut self, _title: &str) {}

    fn line(&mut self, _text: &str) {}

    fn end(&mut self, _took: Duration, _ok: bool) {}
}

/// Makes a request and waits for its task, if it started one.
pub(super) async fn run_call(
    executor: &dyn Executor,
    request: &Request,
    task: Option<Duration>,
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    follow(executor, &executor.call(request).await?, task, watch).await
}

/// Waits for the task that a call gave, if it gave one.
async fn follow(
    executor: &dyn Executor,
    value: &serde_json::Value,
    task: Option<Duration>,
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    // Some calls reply with a task only when they take longer (removing a volume).
    if let Some(limit) = task.filter(|_| !value.is_null()) {
        let task = reply::upid(value)?;
        let warned = wait_task(executor, &task, limit, &mut |line| watch.line(line)).await?;
        if warned {
            tracing::warn!(%task, "the task ended with warnings");
        }
    }
    Ok(())
}

fn with_key(guest: &Guest, carried: &Carried) -> Guest {
    let mut guest = guest.clone();
    if let (Some(node), Some(key)) = (guest.node.as_mut(), carried.join_key.clone()) {
        node.auth_key = Some(key);
    }
    guest
}

/// Looks again and again until `look` gives a value, at most for `limit`. Losing the connection meanwhile counts as "not yet".
pub(super) async fn until<T, F>(limit: Duration, look: impl Fn() -> F) -> Result<T, StepError>
where
    F: Future<Output = Result<Result<T, String>, StepError>>,
{
    let begun = Instant::now();
    loop {
        let last = match look().await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(why)) => why,
            Err(StepError::Call(error)) if error.is_passing() => error.to_string(),
            Err(StepError::Mesh(error)) => error.to_string(),
            Err(error) => return Err(error),
        };
        if begun.elapsed() > limit {
            return Err(StepError::TooLong { limit, last: Some(last) });
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Removes a file when dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
