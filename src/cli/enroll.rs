//! `pvemesh enroll` and `unenroll`: a node in a container of somebody else's.

use std::path::PathBuf;

use super::carry::{failed, recover};
use super::connect::{ConnectArgs, Session, call_failure, config_failure, refusal, step_advice};
use super::create::{Report, Timed, dry_run_text, dry_run_value};
use super::destroy::{NoImages, confirm_removal, removal_text, removal_value};
use super::interrupt::Interrupt;
use super::progress::Progress;
use super::ways::{WayArgs, inside_failure};
use super::{Exit, Failure, Output};
use crate::ident::{NodeName, Vmid};
use crate::plan::Refusal;
use crate::plan::create::Plan;
use crate::plan::enroll::{self, Found, Outcome, Record, SCRIPT, Seen, Wanted};
use crate::plan::guest::{RECORD, SETTINGS};
use crate::plan::mark::{Mark, RunId};
use crate::plan::options::{Join, OptionError, auth_key, endpoints, routes, server_url};
use crate::settings::Guest;
use crate::sys::config::read_secret;
use crate::sys::pve::inside::{Inside, Run, run_well};
use crate::sys::pve::{InsideError, Mesh, Provisioner, observe};
use crate::sys::{entropy, image};
use crate::wire::admin::NodeInfo;

/// Files of ours in a guest are far shorter.
const MAX_FILE: usize = 64 * 1024;

/// Put a node into an existing container.
#[derive(Debug, clap::Args)]
pub(super) struct Enroll {
    /// The container's number in Proxmox (VMID).
    #[arg(value_name = "ID")]
    vmid: String,
    /// The node's name in the mesh; the container's if absent.
    #[arg(long)]
    name: Option<String>,
    /// It takes the internet traffic of other nodes and sends it out.
    #[arg(long)]
    exit_node: bool,
    /// A network that it makes reachable; several times for several.
    #[arg(long, value_name = "CIDR")]
    route: Vec<String>,
    /// It uses the networks that other nodes make reachable.
    #[arg(long)]
    accept_routes: bool,
    /// An address and port under which it is reached from outside; several times for several.
    #[arg(long, value_name = "ADDRESS:PORT")]
    endpoint: Vec<String>,
    /// What the mesh's packets go through: `device` is /dev/net/tun, `userspace` the process itself.
    #[arg(long, value_name = "KIND", default_value = "device")]
    tun: super::create::Tun,
    /// Leave the container's name servers alone.
    #[arg(long)]
    no_dns: bool,
    /// The container may be restarted, if its device is seen after that only.
    #[arg(long)]
    restart: bool,
    /// Join this coordinator (Headscale, Tailscale, or ours elsewhere) instead of the known one.
    #[arg(long, value_name = "URL", requires = "auth_key_file")]
    login_server: Option<String>,
    /// A file with the join key for --login-server.
    #[arg(long, value_name = "FILE", requires = "login_server")]
    auth_key_file: Option<PathBuf>,
    /// Print the decisions and every step, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Take a node out of a container again.
#[derive(Debug, clap::Args)]
pub(super) struct Unenroll {
    /// The container's number in Proxmox (VMID).
    #[arg(value_name = "ID")]
    vmid: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print every step, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs `enroll`.
pub(super) async fn enroll(args: Enroll, output: &Output) -> Result<(), Failure> {
    let tried = format!("enroll container {}", args.vmid);
    let wrong = |e: OptionError| refusal(&tried, &Refusal::Option(e));
    let vmid: Vmid = args.vmid.parse().map_err(|e| wrong(OptionError::new("ID", e)))?;
    let name: Option<NodeName> = args.name.as_deref().map(str::parse).transpose().map_err(|e| wrong(OptionError::new("--name", e)))?;
    let kind = enroll::kind(args.exit_node, routes("--route", &args.route).map_err(wrong)?).map_err(wrong)?;
    let endpoints = endpoints("--endpoint", &args.endpoint).map_err(wrong)?;
    let session = Session::for_guest(&args.connect, vmid, output).await?;
    let (join, mesh) = match (&args.login_server, &args.auth_key_file) {
        (Some(url), Some(file)) => {
            let login_server = server_url("--login-server", url).map_err(wrong)?;
            let text = read_secret(file).map_err(config_failure)?;
            (Join::Other { login_server, auth_key: auth_key("--auth-key-file", text.expose()).map_err(wrong)? }, None)
        }
        _ => match session.mesh().await? {
            Some((known, mesh)) => (Join::Ours(known), Some(mesh)),
            None => {
                let next = "make one: pvemesh create-coordinator ID   (to join another one: --login-server URL --auth-key-file FILE)";
                return Err(Failure::new(tried, "no coordinator is known, and a node needs one to join", next).exit(Exit::Conflict));
            }
        },
    };
    let domain = match &mesh {
        Some(mesh) => Some(mesh.info().await.map_err(|e| mesh_failure(&tried, &e))?.base_domain),
        None => None,
    };
    let program = image::own_binary().map_err(|e| Failure::new(&tried, e, "run it from a file"))?;
    let wanted = Wanted {
        vmid,
        name,
        kind,
        join,
        domain,
        endpoints,
        accept_routes: args.accept_routes,
        userspace: args.tun == super::create::Tun::Userspace,
        dns: !args.no_dns,
        restart: args.restart,
        program,
        machine: std::env::consts::ARCH,
    };
    let mut progress = Progress::new(output);
    let lock = if args.dry_run { None } else { Some(session.store.lock(vmid).map_err(config_failure)?) };
    let entry = Entry { session: &session, way: &args.way, mesh: mesh.as_deref(), tried: &tried };
    if lock.is_some() {
        recover(&session, &args.way, mesh.as_deref(), vmid, output, &mut progress).await?;
    }
    let (found, inside) = entry.look(vmid).await?;
    let random = entropy::bytes::<16>().map_err(|e| Failure::new(&tried, e, "this system has no randomness"))?;
    let outcome = enroll::enroll(&wanted, &found, RunId::new(u128::from_be_bytes(random))).map_err(|e| refusal(&tried, &e))?;
    match outcome {
        Outcome::NothingToDo { name, host } => {
            let value = serde_json::json!({ "vmid": vmid, "name": name, "node": host, "role": wanted.kind.word(), "changed": false });
            output.result(&value, format!("container {vmid} ({name}) is enrolled as wanted: nothing to do"));
            Ok(())
        }
        Outcome::Plan(plan) if args.dry_run => {
            output.result(&dry_run_value(&plan), dry_run_text(&plan, &session.executor.place()));
            Ok(())
        }
        Outcome::Plan(plan) => entry.carry_out(plan, inside.as_deref(), &mut progress, output).await,
    }
}

fn mesh_failure(tried: &str, error: &impl std::fmt::Display) -> Failure {
    Failure::new(tried, format!("the coordinator: {error}"), "is this machine's admin key still known to it?").exit(Exit::Denied)
}

/// The way to a container and what is found there.
pub(super) struct Entry<'a> {
    pub(super) session: &'a Session,
    pub(super) way: &'a WayArgs,
    pub(super) mesh: Option<&'a dyn Mesh>,
    pub(super) tried: &'a str,
}

impl Entry<'_> {
    async fn is_enrolled(&self, vmid: Vmid) -> Result<bool, Failure> {
        let failed = |e| call_failure(self.tried, &e);
        let guests = observe::guests(&*self.session.executor).await.map_err(failed)?;
        let Some(guest) = guests.iter().find(|guest| guest.vmid == vmid) else { return Ok(false) };
        let config = observe::container_config(&*self.session.executor, &guest.host, vmid).await.map_err(failed)?;
        Ok(config.and_then(|config| Mark::of_container(vmid, &config)).is_some_and(|mark| mark.role.starts_with(enroll::ENROLLED)))
    }

    pub(super) async fn nodes(&self) -> Result<Vec<NodeInfo>, Failure> {
        match self.mesh {
            Some(mesh) => mesh.nodes().await.map_err(|e| mesh_failure(self.tried, &e)),
            None => Ok(Vec::new()),
        }
    }

    async fn look(&self, vmid: Vmid) -> Result<(Found, Option<Box<dyn Inside>>), Failure> {
        let nodes = self.nodes().await?;
        let known = nodes.iter().map(|node| (node.id, node.name.clone())).collect();
        let observed = observe::observe(&*self.session.executor, vmid, known).await.map_err(|e| call_failure(self.tried, &e))?;
        let mut found = Found { observed, seen: None, record: None, settings: None, service_file: None, approved: None };
        let Some(target) = found.observed.target.clone() else { return Ok((found, None)) };
        if let Some(mark) = Mark::of_container(vmid, &target.config) {
            found.approved = nodes.iter().find(|node| node.name == mark.name).map(|node| node.approved_routes.clone());
        }
        let appliance = Mark::of_container(vmid, &target.config).is_some_and(|mark| !mark.role.starts_with(enroll::ENROLLED));
        if !target.running || target.config.lock.is_some() || appliance {
            return Ok((found, None));
        }
        let inside = self.way.need(self.session, &target.host, self.tried, vmid)?;
        let failed = |e: InsideError| inside_failure(self.tried, &e);
        let said = run_well(&*inside, vmid, &Run::new(["/bin/sh", "-c", SCRIPT])).await.map_err(failed)?;
        found.seen = Some(Seen::read(&said.text()));
        let text = |bytes: Option<zeroize::Zeroizing<Vec<u8>>>| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let record = inside.pull(vmid, RECORD, MAX_FILE).await.map_err(failed)?;
        found.record = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let settings = text(inside.pull(vmid, SETTINGS, MAX_FILE).await.map_err(failed)?);
        found.settings = settings.and_then(|text| Guest::from_toml(&zeroize::Zeroizing::new(text)).ok()).map(|mut guest| {
            if let Some(node) = guest.node.as_mut() {
                node.auth_key = None;
            }
            guest
        });
        if let Some((path, _)) = found.record.as_ref().and_then(|record| record.service.file()) {
            found.service_file = text(inside.pull(vmid, path, MAX_FILE).await.map_err(failed)?);
        }
        Ok((found, Some(inside)))
    }

    async fn carry_out(
        &self,
        plan: Plan,
        inside: Option<&dyn Inside>,
        progress: &mut Progress<'_>,
        output: &Output,
    ) -> Result<(), Failure> {
        let begun = std::time::Instant::now();
        for choice in &plan.choices {
            output.note(format!("  {:<17} {}  ({})", choice.what, choice.value, choice.why));
        }
        let findings = self.provision(&plan, inside, progress, output).await?;
        let report = Report {
            vmid: plan.vmid,
            name: plan.name,
            role: plan.role,
            node: plan.host.to_string(),
            changed: true,
            choices: plan.choices,
            differences: plan.differences,
            lan_address: None,
            mesh_addresses: findings.mesh_addresses,
            url: None,
            steps: findings.timings.into_iter().map(|(step, took)| Timed { step, seconds: took.as_secs_f64() }).collect(),
            seconds: begun.elapsed().as_secs_f64(),
            calls: self.session.calls.count(),
        };
        let addresses: Vec<String> = report.mesh_addresses.iter().map(ToString::to_string).collect();
        output.result(&report, format!("container {} is in the mesh as {} {}", report.vmid, report.name, addresses.join(" ")).trim_end());
        Ok(())
    }

    /// Carries a plan out, and says what became of it if it fails.
    pub(super) async fn provision(
        &self,
        plan: &Plan,
        inside: Option<&dyn Inside>,
        progress: &mut Progress<'_>,
        output: &Output,
    ) -> Result<crate::sys::pve::Findings, Failure> {
        let door = self.session.door()?;
        let mut interrupt = Interrupt::listen(output)?;
        let provisioner = Provisioner {
            executor: &*self.session.executor,
            door: &door,
            mesh: self.mesh,
            inside,
            images: &NoImages::default(),
            store: &self.session.store,
            watch: progress,
            interrupted: interrupt.requested(),
        };
        provisioner.run(plan).await.map_err(|error| failed(output, self.tried, &error))
    }
}

/// Runs `unenroll`.
pub(super) async fn unenroll(args: Unenroll, output: &Output) -> Result<(), Failure> {
    let tried = format!("take the node out of container {}", args.vmid);
    let vmid: Vmid = args.vmid.parse().map_err(|e| refusal(&tried, &Refusal::Option(OptionError::new("ID", e))))?;
    let session = Session::for_guest(&args.connect, vmid, output).await?;
    let mesh = session.mesh().await?.map(|(_, mesh)| mesh);
    let lock = if args.dry_run { None } else { Some(session.store.lock(vmid).map_err(config_failure)?) };
    let entry = Entry { session: &session, way: &args.way, mesh: mesh.as_deref(), tried: &tried };
    let mut progress = Progress::new(output);
    if lock.is_some() {
        // Of a node that was put in but half nothing is left then; one that was only to be changed is still there.
        let undone = recover(&session, &args.way, mesh.as_deref(), vmid, output, &mut progress).await?;
        if !undone.is_empty() && !entry.is_enrolled(vmid).await? {
            output.result(&serde_json::json!({ "vmid": vmid, "taken_back": undone }), format!("what a run for {vmid} had left is gone"));
            return Ok(());
        }
    }
    let (found, inside) = entry.look(vmid).await?;
    let removal = enroll::unenroll(vmid, &found, mesh.is_some()).map_err(|e| refusal(&tried, &e))?;
    if args.dry_run {
        output.result(&removal_value(&removal, true, &[]), removal_text(&removal));
        return Ok(());
    }
    confirm_removal(args.yes, &removal, &tried, output)?;
    let door = session.door()?;
    let mut interrupt = Interrupt::listen(output)?;
    let provisioner = Provisioner {
        executor: &*session.executor,
        door: &door,
        mesh: mesh.as_deref(),
        inside: inside.as_deref(),
        images: &NoImages::default(),
        store: &session.store,
        watch: &mut progress,
        interrupted: interrupt.requested(),
    };
    let left = provisioner.remove(&removal.steps).await.map_err(|error| {
        let (next, exit, _) = step_advice(&error.error);
        Failure::new(&tried, format!("{}: {}", error.step, error.error), next).exit(exit)
    })?;
    output.result(&removal_value(&removal, false, &left), format!("container {vmid} is out of the mesh, as it was before"));
    if left.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(tried, left.join("; "), "run it again; what is gone is passed over").exit(Exit::Left))
    }
}
