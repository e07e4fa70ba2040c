//! `pvemesh create-*`: guests of the mesh.

use std::path::{Path, PathBuf};

use super::connect::{ConnectArgs, Session, call_failure, config_failure, refusal, step_advice};
use super::interrupt::Interrupt;
use super::progress::Progress;
use super::{Exit, Failure, Output};
use crate::ident::{NodeId, NodeName, Vmid};
use crate::plan::create::{self, Existing, Image, Outcome, Plan};
use crate::plan::mark::RunId;
use crate::plan::options::{
    DEFAULT_BASE_DOMAIN, GuestOptions, GuestTexts, Join, KnownCoordinator, NodeKind, OptionError, Role, auth_key, base_domain, endpoints,
    routes, server_url,
};
use crate::plan::{Choice, Refusal};
use crate::pve::call::{self, Arch};
use crate::pve::reply;
use crate::sys::config::{WorkLock, read_secret};
use crate::sys::entropy;
use crate::sys::image::ImageError;
use crate::sys::pve::{Findings, Images as _, Mesh, Provisioner, RunError, StepError, Stock, Undoer, observe};

/// What every new guest takes.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct GuestArgs {
    /// The guest's number in Proxmox (VMID), 100 or more.
    #[arg(value_name = "ID")]
    vmid: String,
    /// Its name in Proxmox and in the mesh; chosen if absent (exit-1, exit-2 ...).
    #[arg(long)]
    name: Option<String>,
    /// The Proxmox node to make it on; chosen if absent.
    #[arg(long)]
    node: Option<String>,
    /// The storage for its root volume; chosen if absent.
    #[arg(long)]
    storage: Option<String>,
    /// The storage the image is uploaded to; chosen if absent.
    #[arg(long)]
    template_storage: Option<String>,
    /// The bridge of its network interface; chosen if absent.
    #[arg(long)]
    bridge: Option<String>,
    /// Memory in MiB [default: 64].
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Processor cores [default: 2].
    #[arg(long)]
    cores: Option<u16>,
    /// Its IPv4 address on the LAN with prefix length, `dhcp` or `none` [default: dhcp].
    #[arg(long, value_name = "CIDR|dhcp")]
    ip: Option<String>,
    /// Its IPv4 gateway, with a fixed address.
    #[arg(long, value_name = "ADDRESS")]
    gw: Option<String>,
    /// Its IPv6 address with prefix length, `auto` or `none` [default: auto].
    #[arg(long, value_name = "CIDR|auto")]
    ip6: Option<String>,
    /// Its IPv6 gateway, with a fixed address.
    #[arg(long, value_name = "ADDRESS")]
    gw6: Option<String>,
    /// A name server for it; may be given several times.
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// The appliance image to use, made with `pvemesh image build`; built from this very program if absent.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Print the decisions and every call, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl GuestArgs {
    fn check(&self) -> Result<GuestOptions, OptionError> {
        let texts = GuestTexts {
            vmid: self.vmid.clone(),
            name: self.name.clone(),
            node: self.node.clone(),
            storage: self.storage.clone(),
            template_storage: self.template_storage.clone(),
            bridge: self.bridge.clone(),
            memory: self.memory,
            cores: self.cores,
            ip: self.ip.clone(),
            gw: self.gw.clone(),
            ip6: self.ip6.clone(),
            gw6: self.gw6.clone(),
            dns: self.dns.clone(),
        };
        texts.check()
    }
}

/// A coordinator: key exchange, addresses and names for the mesh.
#[derive(Debug, clap::Args)]
pub(super) struct CreateCoordinator {
    #[command(flatten)]
    guest: GuestArgs,
    /// The address clients are told, if they reach it under another one than its own on the LAN.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The DNS suffix of node names.
    #[arg(long, value_name = "DOMAIN", default_value = DEFAULT_BASE_DOMAIN)]
    base_domain: String,
}

/// How a new node joins, and what it is.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// An address and port under which the node is reached from outside, such as a port forwarded by the home router; several times for several.
    #[arg(long, value_name = "ADDRESS:PORT")]
    endpoint: Vec<String>,
    /// Join this coordinator (Headscale, Tailscale, or ours elsewhere) instead of the known one.
    #[arg(long, value_name = "URL", requires = "auth_key_file")]
    login_server: Option<String>,
    /// A file with the join key for --login-server.
    #[arg(long, value_name = "FILE", requires = "login_server")]
    auth_key_file: Option<PathBuf>,
    /// Make the coordinator first, in this guest, if none is known.
    #[arg(long, value_name = "ID", conflicts_with = "login_server")]
    with_coordinator: Option<String>,
}

/// A subnet router.
#[derive(Debug, clap::Args)]
pub(super) struct CreateSubnetRouter {
    #[command(flatten)]
    node: NodeArgs,
    /// A network that the node makes reachable; several times for several.
    #[arg(long, value_name = "CIDR", required = true)]
    route: Vec<String>,
}

#[derive(serde::Serialize)]
struct Report {
    vmid: Vmid,
    name: NodeName,
    role: &'static str,
    node: String,
    changed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lan_address: Option<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mesh_addresses: Vec<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    steps: Vec<Timed>,
    seconds: f64,
}

#[derive(serde::Serialize)]
struct Timed {
    step: String,
    seconds: f64,
}

/// Runs `create-coordinator`.
pub(super) async fn coordinator(args: CreateCoordinator, output: &Output) -> Result<(), Failure> {
    let tried = format!("make coordinator {}", args.guest.vmid);
    let wrong = |e: OptionError| refusal(&tried, &Refusal::Option(e));
    let options = args.guest.check().map_err(wrong)?;
    let url = args.url.as_deref().map(|text| server_url("--url", text)).transpose().map_err(wrong)?;
    let base_domain = base_domain("--base-domain", &args.base_domain).map_err(wrong)?;
    let session = Session::open(&args.guest.connect).await?;
    let how = How { dry_run: args.guest.dry_run, image: args.guest.image.as_deref(), output };
    let report = make_coordinator(&session, &options, url, base_domain, how).await?;
    if let Some(report) = report {
        output.result(&report, summary(&report));
    }
    Ok(())
}

async fn make_coordinator(
    session: &Session,
    options: &GuestOptions,
    url: Option<String>,
    base_domain: String,
    how: How<'_>,
) -> Result<Option<Report>, Failure> {
    let tried = format!("make coordinator {}", options.vmid);
    let known = session.config.coordinator.as_ref();
    if let Some(other) = known.filter(|c| c.vmid != Some(options.vmid)) {
        let at = other.vmid.map_or_else(|| other.lan_url.clone(), |vmid| format!("container {vmid}"));
        let config = session.store.directory().join("config.toml");
        let next = format!("remove it first (pvemesh destroy ID), or take [coordinator] out of {}", config.display());
        return Err(Failure::new(tried, format!("a coordinator is known already: {at}"), next).exit(Exit::Conflict));
    }
    let seed = entropy::seed().map_err(|e| Failure::new(&tried, e, "this system has no randomness"))?;
    let admin_key = session.store.admin_key(seed).map_err(config_failure)?.public();
    let role = Role::Coordinator { url, base_domain, admin_key };
    let is_known = known.is_some();
    Making { session, options, role, mesh: None, is_known, how, tried }.run().await
}

/// Runs `create-exit-node`.
pub(super) async fn exit_node(args: NodeArgs, output: &Output) -> Result<(), Failure> {
    node(args, NodeKind::ExitNode, output).await
}

/// Runs `create-node`.
pub(super) async fn member(args: NodeArgs, output: &Output) -> Result<(), Failure> {
    node(args, NodeKind::Member, output).await
}

/// Runs `create-subnet-router`.
pub(super) async fn subnet_router(args: CreateSubnetRouter, output: &Output) -> Result<(), Failure> {
    let tried = format!("make subnet router {}", args.node.guest.vmid);
    let routes = routes("--route", &args.route).map_err(|e| refusal(tried, &Refusal::Option(e)))?;
    node(args.node, NodeKind::SubnetRouter(routes), output).await
}

async fn node(args: NodeArgs, kind: NodeKind, output: &Output) -> Result<(), Failure> {
    let what = match kind {
        NodeKind::Member => "node",
        NodeKind::ExitNode => "exit node",
        NodeKind::SubnetRouter(_) => "subnet router",
    };
    let tried = format!("make {what} {}", args.guest.vmid);
    let wrong = |e: OptionError| refusal(&tried, &Refusal::Option(e));
    let options = args.guest.check().map_err(wrong)?;
    let endpoints = endpoints("--endpoint", &args.endpoint).map_err(wrong)?;
    let with_coordinator =
        args.with_coordinator.as_deref().map(|text| text.parse::<Vmid>().map_err(|e| OptionError::new("--with-coordinator", e)));
    let with_coordinator = with_coordinator.transpose().map_err(wrong)?;
    let other = match (&args.login_server, &args.auth_key_file) {
        (Some(url), Some(file)) => {
            let login_server = server_url("--login-server", url).map_err(wrong)?;
            let text = read_secret(file).map_err(config_failure)?;
            Some(Join::Other { login_server, auth_key: auth_key("--auth-key-file", text.expose()).map_err(wrong)? })
        }
        _ => None,
    };
    let mut session = Session::open(&args.guest.connect).await?;
    let (join, mesh) = match other {
        Some(join) => (join, None),
        None => {
            if session.config.coordinator.is_none() {
                first_coordinator(&mut session, &args, &options, with_coordinator, &tried, output).await?;
            }
            match session.mesh().await? {
                Some((known, mesh)) => (Join::Ours(known), Some(mesh)),
                None => return Err(no_coordinator(&session, &tried, options.vmid).await),
            }
        }
    };
    let role = Role::Node { kind, join, endpoints };
    let how = How { dry_run: args.guest.dry_run, image: args.guest.image.as_deref(), output };
    let making = Making { session: &session, options: &options, role, mesh: mesh.as_deref(), is_known: true, how, tried };
    if let Some(report) = making.run().await? {
        output.result(&report, summary(&report));
    }
    Ok(())
}

/// Makes the coordinator that a node needs, where the admin said so.
async fn first_coordinator(
    session: &mut Session,
    args: &NodeArgs,
    options: &GuestOptions,
    with: Option<Vmid>,
    tried: &str,
    output: &Output,
) -> Result<(), Failure> {
    let Some(vmid) = with else { return Err(no_coordinator(session, tried, options.vmid).await) };
    if vmid == options.vmid {
        let error = OptionError::new("--with-coordinator", "the coordinator needs a number of its own");
        return Err(refusal(tried, &Refusal::Option(error)));
    }
    if args.guest.dry_run {
        let next = format!("pvemesh create-coordinator {vmid} --dry-run shows the coordinator; the node's steps depend on it");
        return Err(Failure::new(tried, "a dry run makes no coordinator, and without one a node cannot be planned", next).exit(Exit::Usage));
    }
    let texts = GuestTexts {
        vmid: vmid.to_string(),
        node: args.guest.node.clone(),
        storage: args.guest.storage.clone(),
        template_storage: args.guest.template_storage.clone(),
        bridge: args.guest.bridge.clone(),
        dns: args.guest.dns.clone(),
        ..GuestTexts::default()
    };
    let options = texts.check().map_err(|e| refusal(tried, &Refusal::Option(e)))?;
    let how = How { dry_run: false, image: args.guest.image.as_deref(), output };
    let report = make_coordinator(session, &options, None, DEFAULT_BASE_DOMAIN.to_owned(), how).await?;
    if let Some(report) = report {
        output.note(summary(&report));
    }
    session.config = session.store.load().map_err(config_failure)?;
    Ok(())
}

async fn no_coordinator(session: &Session, tried: &str, wanted: Vmid) -> Failure {
    let free = free_vmid(session, wanted).await.map_or_else(|| "ID".to_owned(), |vmid| vmid.to_string());
    let next = format!(
        "make one: pvemesh create-coordinator {free}   (or add --with-coordinator {free}; to join another one: --login-server URL --auth-key-file FILE)"
    );
    Failure::new(tried, "no coordinator is known, and a node needs one to join", next).exit(Exit::Conflict)
}

async fn free_vmid(session: &Session, except: Vmid) -> Option<Vmid> {
    let guests = reply::guests(&session.executor.call(&call::guests().ok()?).await.ok()?).ok()?;
    (100..1_000_000_u32).filter_map(|n| Vmid::try_from(n).ok()).find(|vmid| *vmid != except && guests.iter().all(|g| g.vmid != *vmid))
}

/// How a guest is made, whatever it is.
#[derive(Clone, Copy)]
struct How<'a> {
    dry_run: bool,
    image: Option<&'a Path>,
    output: &'a Output,
}

struct Making<'a> {
    session: &'a Session,
    options: &'a GuestOptions,
    role: Role,
    mesh: Option<&'a dyn Mesh>,
    is_known: bool,
    how: How<'a>,
    tried: String,
}

impl Making<'_> {
    async fn run(self) -> Result<Option<Report>, Failure> {
        let begun = std::time::Instant::now();
        let vmid = self.options.vmid;
        let mut progress = Progress::new(self.how.output);
        let lock = if self.how.dry_run { None } else { Some(self.session.store.lock(vmid).map_err(config_failure)?) };
        if let Some(lock) = &lock {
            self.recover(lock, &mut progress).await?;
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
        let image = Image::new(env!("CARGO_PKG_VERSION"), &stock.shared().sha256, architecture(&self.tried)?);
        let random = entropy::bytes::<16>().map_err(|e| Failure::new(&self.tried, e, "this system has no randomness"))?;
        let run = RunId::new(u128::from_be_bytes(random));
        let outcome = create::create(self.options, &self.role, &observed, &image, run).map_err(|e| refusal(&self.tried, &e))?;
        let (plan, changed) = match outcome {
            Outcome::Plan(plan) => (plan, true),
            Outcome::AlreadyThere(existing) => {
                let plan = create::revive(&existing, &self.role, self.is_known, run).map_err(|e| refusal(&self.tried, &e))?;
                self.say_it_is_there(&existing, &plan);
                let changed = !plan.steps.is_empty();
                (plan, changed)
            }
        };
        if self.how.dry_run {
            self.how.output.result(&dry_run_value(&plan), dry_run_text(&plan, &self.session.executor.place()));
            return Ok(None);
        }
        for choice in &plan.choices {
            self.how.output.note(format!("  {:<17} {}  ({})", choice.what, choice.value, choice.why));
        }
        let findings = self.carry_out(&plan, &stock, &mut progress).await?;
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

    /// Takes back what an earlier run left for this guest.
    async fn recover(&self, _held: &WorkLock, progress: &mut Progress<'_>) -> Result<(), Failure> {
        let vmid = self.options.vmid;
        let Some(journal) = self.session.store.journal(vmid).map_err(config_failure)? else { return Ok(()) };
        self.how.output.note(format!("an earlier run for {vmid} did not come to its end; taking back what it left"));
        let undoer = Undoer { executor: &*self.session.executor, mesh: self.mesh, store: &self.session.store };
        let tried = format!("take back what an earlier run left for {vmid}");
        match undoer.recover(&journal, progress).await {
            Ok((_, left)) if left.is_empty() => Ok(()),
            Ok((_, left)) => Err(Failure::new(tried, left.join("; "), "clear that up, then run the command again").exit(Exit::Left)),
            Err(error) => {
                let (next, exit, _) = step_advice(&error);
                Err(Failure::new(tried, &error, next).exit(exit))
            }
        }
    }

    async fn carry_out(&self, plan: &Plan, stock: &Stock, progress: &mut Progress<'_>) -> Result<Findings, Failure> {
        let door = self.session.door()?;
        let mut interrupt = Interrupt::listen(self.how.output)?;
        let provisioner = Provisioner {
            executor: &*self.session.executor,
            door: &door,
            mesh: self.mesh,
            images: stock,
            store: &self.session.store,
            watch: progress,
            interrupted: interrupt.requested(),
        };
        provisioner.run(plan).await.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &RunError) -> Failure {
        let (mut next, mut exit, log) = step_advice(&error.error);
        if !log.is_empty() {
            self.how.output.note("  the task's log ends with:");
            for line in log {
                self.how.output.note(format!("    | {line}"));
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
        Failure::new(&self.tried, happened, next).exit(exit)
    }

    fn report(&self, plan: Plan, changed: bool, findings: Findings, seconds: f64) -> Report {
        let known = findings.coordinator.or_else(|| match &self.role {
            Role::Node { join: Join::Ours(known), .. } => Some(known.clone()),
            _ => self.session.config.coordinator.clone().map(KnownCoordinator::from).filter(|c| c.vmid == Some(plan.vmid)),
        });
        Report {
            vmid: plan.vmid,
            name: plan.name,
            role: plan.role,
            node: plan.host.to_string(),
            changed,
            choices: plan.choices,
            lan_address: findings.lan_address,
            mesh_addresses: findings.mesh_addresses,
            url: known.map(|known| known.url),
            steps: findings.timings.into_iter().map(|(step, took)| Timed { step, seconds: took.as_secs_f64() }).collect(),
            seconds,
        }
    }
}

fn image_failure(tried: &str, error: &ImageError) -> Failure {
    match error {
        ImageError::File { tried: "use as an image", .. } => {
            Failure::new(tried, error, "make one: pvemesh image build; or leave --image out").exit(Exit::Usage)
        }
        _ => Failure::new(tried, error, "use the released binary, or build in the repository, which links statically"),
    }
}

fn architecture(tried: &str) -> Result<Arch, Failure> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(Arch::Amd64),
        "aarch64" => Ok(Arch::Arm64),
        other => {
            Err(Failure::new(tried, format!("this program is for {other}, which Proxmox does not run on"), "use one for x86-64 or arm64"))
        }
    }
}

fn summary(report: &Report) -> String {
    let mut text = format!("{} {} ({}) on {}", report.role, report.vmid, report.name, report.node);
    if !report.changed {
        text.push_str(": already there, nothing to do");
        return text;
    }
    if let Some(address) = report.lan_address {
        text.push_str(&format!("\n  on the LAN    {address}"));
    }
    if !report.mesh_addresses.is_empty() {
        let all: Vec<String> = report.mesh_addresses.iter().map(ToString::to_string).collect();
        text.push_str(&format!("\n  in the mesh   {}", all.join(", ")));
    }
    if let Some(url) = &report.url {
        text.push_str(&format!("\n  coordinator   {url}"));
    }
    text.push_str(&format!("\n  ready in      {:.1} s", report.seconds));
    if report.role == "coordinator" {
        text.push_str("\nnext: pvemesh create-exit-node ID");
    }
    text
}

fn dry_run_text(plan: &Plan, place: &str) -> String {
    let mut text = format!("would make {} {} ({}) on {} at {place}\n", plan.role, plan.vmid, plan.name, plan.host);
    for choice in &plan.choices {
        text.push_str(&format!("  {:<17} {}  ({})\n", choice.what, choice.value, choice.why));
    }
    for (number, step) in plan.steps.iter().enumerate() {
        text.push_str(&format!("{:>3}. {}\n     {}\n", number + 1, step.title, step.action));
        if let Some(undo) = &step.undo {
            text.push_str(&format!("     on failure: {undo}\n"));
        }
    }
    text.push_str("nothing was changed");
    text
}

fn dry_run_value(plan: &Plan) -> serde_json::Value {
    let steps: Vec<_> = plan
        .steps
        .iter()
        .map(|step| serde_json::json!({ "step": step.title, "call": step.action.to_string(), "undo": step.undo.as_ref().map(ToString::to_string) }))
        .collect();
    serde_json::json!({ "dry_run": true, "vmid": plan.vmid, "name": plan.name, "role": plan.role, "node": plan.host, "choices": plan.choices, "steps": steps })
}
