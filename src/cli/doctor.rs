//! `pvemesh doctor`: gathers facts of guests, hosts and mesh with reads only, and says what is wrong and what to do.

use super::connect::{ConnectArgs, Session, call_failure, refusal};
use super::enroll::Entry;
use super::ways::WayArgs;
use super::{Exit, Failure, Output};
use crate::ident::Vmid;
use crate::plan::Refusal;
use crate::plan::doctor::{self, AddressFilter, Finding, GuestView, HostFacts, Patient, Severity, raw_lines};
use crate::plan::enroll::{ENROLLED, Record};
use crate::plan::guest::{APPLIANCE_PROGRAM, RECORD};
use crate::plan::mark::{Mark, TAG};
use crate::plan::options::OptionError;
use crate::pve::reply::{GuestSummary, Storage};
use crate::pve::{HostName, Method, Request, machine};
use crate::sys::clock;
use crate::sys::pve::{Executor, Inside, facts, observe};

/// A configuration file is far shorter.
const MAX_FILE: usize = 1 << 20;

/// Say what is wrong with guests, hosts and mesh, and what to do about it.
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// The guest's number (VMID); all of them if absent.
    #[arg(value_name = "ID")]
    vmid: Option<String>,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs the command: exit code 0 if all is well, 1 if something was found.
pub(super) async fn run(args: Doctor, output: &Output) -> Result<(), Failure> {
    let tried = "examine the guests of pvemesh";
    let wrong = |e| refusal(tried, &Refusal::Option(OptionError::new("ID", e)));
    let only = args.vmid.as_deref().map(str::parse::<Vmid>).transpose().map_err(wrong)?;
    let session = Session::open(&args.connect).await?;
    let (mesh, coordinator_trouble) = match session.mesh().await {
        Ok(opened) => (opened.map(|(_, mesh)| mesh), None),
        Err(failure) => (None, Some(format!("{}: {}", failure.tried, failure.happened))),
    };
    let entry = Entry { session: &session, way: &args.way, mesh: mesh.as_deref(), tried };
    let nodes = match &mesh {
        Some(_) => Some(entry.nodes().await?),
        None => None,
    };
    let executor = &*session.executor;
    let failed = |e| call_failure(tried, &e);
    let guests = observe::guests(executor).await.map_err(failed)?;
    if let Some(vmid) = only.filter(|vmid| guests.iter().all(|guest| guest.vmid != *vmid)) {
        return Err(refusal(tried, &Refusal::NoSuchGuest(vmid)));
    }
    let views = observe::hosts(executor).await.map_err(failed)?;
    let mut hosts = Vec::new();
    for view in views {
        let way = args.way.find(&session, &view.name)?;
        let tun = match &way {
            Some(way) if view.online => way.host_has("/dev/net/tun").await.ok(),
            _ => None,
        };
        let ahead = if view.online { ahead(executor, &view.name).await } else { None };
        hosts.push(HostFacts { name: view.name, online: view.online, version: view.version, storages: view.storages, tun, ahead });
    }
    let names: Vec<HostName> = hosts.iter().filter(|host| host.online).map(|host| host.name.clone()).collect();
    let firewall = cluster_firewall(executor).await;
    let mut patient = Patient { guests: Vec::new(), hosts, nodes, coordinator_trouble, now: clock::wall().as_second() };
    for guest in guests.iter().filter(|guest| guest.container) {
        let wanted = only.map_or_else(|| guest.tags.iter().any(|tag| tag == TAG), |vmid| vmid == guest.vmid);
        let up = names.contains(&guest.host);
        if wanted
            && up
            && let Some(view) = view(&entry, guest, &patient, firewall).await?
        {
            patient.guests.push(view);
        }
    }
    if let Some(vmid) = only.filter(|_| patient.guests.is_empty()) {
        let name = guests.iter().find(|guest| guest.vmid == vmid).map(|guest| guest.name.clone()).unwrap_or_default();
        return Err(refusal(tried, &Refusal::NotOurs { vmid, name }));
    }
    let findings = doctor::examine(&patient);
    let count = patient.guests.len();
    output.result(&serde_json::json!({ "guests": count, "findings": findings }), text(&findings, count, output.colour()));
    match findings.iter().map(|finding| finding.severity).max() {
        None | Some(Severity::Note) => Ok(()),
        Some(_) => {
            let serious = findings.iter().filter(|finding| finding.severity > Severity::Note).count();
            Err(Failure::new(tried, format!("{serious} found"), "each has its fix beside it; docs/doctor.md says more of them")
                .exit(Exit::Failed))
        }
    }
}

/// `firewall` is whether the cluster's is on, if that is known.
async fn view(entry: &Entry<'_>, guest: &GuestSummary, patient: &Patient, firewall: Option<bool>) -> Result<Option<GuestView>, Failure> {
    let executor = &*entry.session.executor;
    let vmid = guest.vmid;
    let target = observe::container(executor, &guest.host, vmid).await.map_err(|e| call_failure(entry.tried, &e))?;
    let Some(target) = target else { return Ok(None) };
    // A clone bears the mark of the original, and is looked at, too.
    let tagged = target.config.tags.iter().any(|tag| tag == TAG);
    let Some(mark) = Mark::find(&target.config.description).filter(|_| tagged) else { return Ok(None) };
    let node = patient.nodes.iter().flatten().find(|node| node.name == mark.name).cloned();
    let mut view = GuestView {
        vmid: Some(vmid),
        host: Some(guest.host.clone()),
        running: target.running,
        ipfilter: ipfilter(executor, &guest.host, vmid, firewall).await,
        hookscript_missing: hookscript_missing(entry, target.config.values.get("hookscript"), &patient.hosts).await?,
        config: target.config,
        node,
        mark: Some(mark),
        ..GuestView::default()
    };
    let Some(inside) = entry.way.find(entry.session, &guest.host)? else {
        view.facts_trouble = Some("Proxmox's API has no way into a container".to_owned());
        return Ok(Some(view));
    };
    let file = format!("/etc/pve/nodes/{}/lxc/{vmid}.conf", guest.host);
    view.raw = inside.host_file(&file, MAX_FILE).await.ok().flatten().map(|text| raw_lines(&text));
    if view.running {
        match look(&*inside, vmid, view.mark.as_ref()).await {
            Ok(seen) => {
                view.ahead = (seen.clock.unix != 0).then(|| seen.clock.unix - clock::wall().as_second());
                view.facts = Some(seen);
            }
            Err(why) => view.facts_trouble = Some(why),
        }
    }
    Ok(Some(view))
}

async fn look(inside: &dyn Inside, vmid: Vmid, mark: Option<&Mark>) -> Result<crate::plan::guest::GuestFacts, String> {
    let program = if mark.is_some_and(|mark| mark.role.starts_with(ENROLLED)) {
        let record = inside.pull(vmid, RECORD, MAX_FILE).await.map_err(|e| e.to_string())?;
        let record = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        record.ok_or_else(|| format!("{RECORD} is gone"))?.program
    } else {
        APPLIANCE_PROGRAM.to_owned()
    };
    facts(inside, vmid, &program).await.map_err(|e| e.to_string())
}

/// How many seconds a host's clock is ahead of this machine's; unknown where it does not say.
async fn ahead(executor: &dyn Executor, host: &HostName) -> Option<i64> {
    let before = clock::wall().as_second();
    let said = executor.call(&Request::new(Method::Get, format!("/nodes/{host}/time"))).await.ok()?;
    let there = said.get("time")?.as_i64()?;
    // A call may take its time; it was somewhere in between.
    Some(there - i64::midpoint(before, clock::wall().as_second()))
}

fn is_on(options: &serde_json::Value, key: &str) -> bool {
    options.get(key).is_some_and(|value| value == 1 || value == "1" || value == true)
}

/// Whether the firewall of the whole cluster is on; unknown where that cannot be read.
async fn cluster_firewall(executor: &dyn Executor) -> Option<bool> {
    let options = executor.call(&Request::new(Method::Get, "/cluster/firewall/options")).await.ok()?;
    Some(is_on(&options, "enable"))
}

/// What lets only the guest's own addresses out; unknown where that cannot be read.
async fn ipfilter(executor: &dyn Executor, host: &HostName, vmid: Vmid, cluster: Option<bool>) -> Option<AddressFilter> {
    let place = format!("/nodes/{host}/lxc/{vmid}/firewall");
    let options = executor.call(&Request::new(Method::Get, format!("{place}/options"))).await.ok()?;
    let sets = executor.call(&Request::new(Method::Get, format!("{place}/ipset"))).await.unwrap_or_default();
    let names = sets.as_array().into_iter().flatten().filter_map(|set| set.get("name")?.as_str()?.strip_prefix("ipfilter-"));
    Some(AddressFilter {
        everywhere: is_on(&options, "ipfilter"),
        interfaces: names.map(ToOwned::to_owned).collect(),
        off: !is_on(&options, "enable") || cluster == Some(false),
    })
}

/// The hosts that lack a hookscript (`STORAGE:snippets/NAME`); one of which that is not known is not among them.
async fn hookscript_missing(entry: &Entry<'_>, script: Option<&String>, hosts: &[HostFacts]) -> Result<Vec<HostName>, Failure> {
    let named = script.and_then(|script| Some((script, script.split_once(":snippets/")?)));
    let Some((script, (storage, file))) = named else { return Ok(Vec::new()) };
    let executor = &*entry.session.executor;
    let mut missing = Vec::new();
    for host in hosts.iter().filter(|host| host.online) {
        let kept = host.storages.iter().find(|kept| kept.name.as_str() == storage);
        let there = match kept {
            // Only root is shown every storage.
            None => executor.principal().is_root().then_some(false),
            Some(kept) if kept.holds("snippets") => is_listed(executor, &host.name, kept, script).await,
            // Proxmox runs what lies there all the same, but does not list it.
            Some(kept) => match (entry.way.find(entry.session, &host.name)?, directory(executor, kept).await) {
                (Some(way), Some(directory)) => way.host_has(&format!("{directory}/snippets/{file}")).await.ok(),
                _ => None,
            },
        };
        if there == Some(false) {
            missing.push(host.name.clone());
        }
    }
    Ok(missing)
}

async fn is_listed(executor: &dyn Executor, host: &HostName, storage: &Storage, script: &str) -> Option<bool> {
    let request = Request::new(Method::Get, format!("/nodes/{host}/storage/{}/content", storage.name)).with("content", "snippets");
    let listed = executor.call(&request).await.ok()?;
    Some(listed.as_array()?.iter().any(|row| row.get("volid").and_then(|volume| volume.as_str()) == Some(script)))
}

/// Where a storage lies on its hosts, if it is a directory.
async fn directory(executor: &dyn Executor, storage: &Storage) -> Option<String> {
    let defined = machine::read_storages(&executor.call(&machine::storages().ok()?).await.ok()?).ok()?;
    defined.into_iter().find(|one| one.name == storage.name)?.path.map(|path| path.display().to_string())
}

fn text(findings: &[Finding], guests: usize, colour: bool) -> String {
    if findings.is_empty() {
        return format!("{guests} guests examined: all is well");
    }
    let paint = |severity| match (severity, colour) {
        (Severity::Fault, true) => "\x1b[31mfault\x1b[0m  ",
        (Severity::Fault, false) => "fault  ",
        (Severity::Warning, true) => "\x1b[33mwarning\x1b[0m",
        (Severity::Warning, false) => "warning",
        (Severity::Note, _) => "note   ",
    };
    let line = |finding: &Finding| {
        format!(
            "{} {}: {} [{}]\n        why: {}\n        fix: {}",
            paint(finding.severity),
            finding.subject,
            finding.what,
            finding.code,
            finding.why,
            finding.fix
        )
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}
