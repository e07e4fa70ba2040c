//! `pvemesh list` and `pvemesh status`: the guests of pvemesh as Proxmox and the coordinator see them.

use std::net::IpAddr;

use super::connect::{ConnectArgs, Session, call_failure, refusal};
use super::{Failure, Output, hosts, rights};
use crate::ident::{NodeName, Vmid};
use crate::plan::mark::{Mark, TAG};
use crate::plan::options::OptionError;
use crate::plan::{Refusal, golden};
use crate::pve::reply::{self, GuestSummary};
use crate::pve::{HostName, call};
use crate::sys::pve::{CallError, Executor, observe};
use crate::wire::admin::NodeInfo;

/// The guests of pvemesh.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    connect: ConnectArgs,
}

/// One guest in detail, or all of them.
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// The guest's number (VMID); all of them if absent.
    #[arg(value_name = "ID")]
    vmid: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(serde::Serialize)]
struct Row {
    /// The host or cluster it is on, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    vmid: Vmid,
    name: NodeName,
    role: String,
    node: HostName,
    running: bool,
    /// Its making came to an end.
    finished: bool,
    lan_addresses: Vec<IpAddr>,
    mesh_addresses: Vec<IpAddr>,
    /// What the coordinator says; absent if it does not know it or cannot be asked.
    online: Option<bool>,
    uptime_secs: u64,
    memory_bytes: u64,
    memory_max_bytes: u64,
}

/// Runs `list`.
pub(super) async fn list(args: List, output: &Output) -> Result<(), Failure> {
    let rows = all_rows(&args.connect, output).await?;
    output.result(&rows, table(&rows));
    Ok(())
}

/// The guests of every host or cluster that answers.
async fn all_rows(connect: &ConnectArgs, output: &Output) -> Result<Vec<Row>, Failure> {
    let sessions = hosts::all(connect, output).await?;
    // There is one coordinator, whoever's guest it is.
    let nodes = match sessions.first() {
        Some((_, session)) => mesh_nodes(session, output).await,
        None => None,
    };
    let mut all = Vec::new();
    for (name, session) in &sessions {
        match rows(session, None, nodes.as_deref()).await {
            Ok(rows) if rows.is_empty() => rights::say_if_blind(&*session.executor, output).await,
            Ok(rows) => all.extend(rows.into_iter().map(|row| Row { cluster: name.clone(), ..row })),
            Err(failure) if sessions.len() > 1 => {
                let name = name.as_deref().unwrap_or_default();
                output.note(format!("{name} is left out: {}\n  next: {}", failure.happened, failure.next));
            }
            Err(failure) => return Err(failure),
        }
    }
    all.sort_by(|a, b| (&a.cluster, a.vmid).cmp(&(&b.cluster, b.vmid)));
    Ok(all)
}

/// Runs `status`.
pub(super) async fn status(args: Status, output: &Output) -> Result<(), Failure> {
    let vmid = args
        .vmid
        .as_deref()
        .map(|text| text.parse::<Vmid>().map_err(|e| refusal("show a guest", &Refusal::Option(OptionError::new("ID", e)))));
    let vmid = vmid.transpose()?;
    let Some(vmid) = vmid else {
        let rows = all_rows(&args.connect, output).await?;
        output.result(&rows, table(&rows));
        return Ok(());
    };
    let session = Session::for_guest(&args.connect, vmid, output).await?;
    let nodes = mesh_nodes(&session, output).await;
    let rows = rows(&session, Some(vmid), nodes.as_deref()).await?;
    match rows.first() {
        Some(row) => output.result(row, detail(row)),
        None => {
            let tried = format!("show guest {vmid}");
            return Err(rights::explained(&*session.executor, &tried, Refusal::NoSuchGuest(vmid)).await);
        }
    }
    Ok(())
}

async fn rows(session: &Session, only: Option<Vmid>, nodes: Option<&[NodeInfo]>) -> Result<Vec<Row>, Failure> {
    let tried = "list the guests of pvemesh";
    let executor = &*session.executor;
    let failed = |e: CallError| call_failure(tried, &e);
    let request = call::guests().map_err(|e| failed(e.into()))?;
    let guests = reply::guests(&executor.call(&request).await.map_err(failed)?).map_err(|e| failed(e.into()))?;
    let mut rows = Vec::new();
    // The tags in this list are some ten seconds old; a guest asked for by number is looked at whatever its tags.
    let wanted = |guest: &&GuestSummary| match only {
        Some(vmid) => guest.vmid == vmid,
        None => guest.tags.iter().any(|tag| tag == TAG),
    };
    for guest in guests.iter().filter(|guest| guest.container).filter(wanted) {
        if let Some(row) = row(executor, guest, nodes).await.map_err(failed)? {
            rows.push(row);
        } else if only.is_some() {
            return Err(refusal(format!("show guest {}", guest.vmid), &Refusal::NotOurs { vmid: guest.vmid, name: guest.name.clone() }));
        }
    }
    rows.sort_by_key(|row| row.vmid);
    Ok(rows)
}

async fn mesh_nodes(session: &Session, output: &Output) -> Option<Vec<NodeInfo>> {
    let asked = match session.mesh().await {
        Ok(Some((_, mesh))) => mesh.nodes().await.map_err(|e| e.to_string()),
        Ok(None) => return None,
        Err(failure) => Err(failure.happened),
    };
    asked.map_err(|why| output.note(format!("the coordinator cannot be asked: {why}"))).ok()
}

async fn row(executor: &dyn Executor, guest: &GuestSummary, nodes: Option<&[NodeInfo]>) -> Result<Option<Row>, CallError> {
    let Some(config) = observe::container_config(executor, &guest.host, guest.vmid).await? else { return Ok(None) };
    let Some(mark) = Mark::of_container(guest.vmid, &config) else { return Ok(None) };
    let status = reply::container_status(&executor.call(&call::container_status(&guest.host, guest.vmid)?).await?)?;
    let interfaces =
        if status.running { observe::interfaces(executor, &guest.host, guest.vmid).await.unwrap_or_default() } else { Vec::new() };
    let (mesh_addresses, lan_addresses) = interfaces
        .iter()
        .flat_map(|interface| &interface.addresses)
        .map(ipnet::IpNet::addr)
        .filter(|address| !address.is_loopback() && !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .partition(|address| crate::ident::is_mesh_address(*address));
    let online = nodes.and_then(|nodes| nodes.iter().find(|node| node.name == mark.name)).map(|node| node.online);
    Ok(Some(Row {
        cluster: None,
        vmid: guest.vmid,
        name: mark.name,
        role: mark.role,
        node: guest.host.clone(),
        running: status.running,
        finished: mark.ready,
        lan_addresses,
        mesh_addresses,
        online,
        uptime_secs: status.uptime_secs,
        memory_bytes: status.memory,
        memory_max_bytes: status.max_memory,
    }))
}

fn words(row: &Row) -> &'static str {
    match (row.running, row.finished, row.online) {
        (_, false, _) => "unfinished",
        (false, true, _) if row.role == golden::ROLE => "template",
        (false, true, _) => "stopped",
        (true, true, Some(false)) => "offline",
        (true, true, Some(true)) => "online",
        (true, true, None) => "running",
    }
}

fn joined(addresses: &[IpAddr]) -> String {
    let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no guests of pvemesh yet; make a coordinator: pvemesh create-coordinator 100".to_owned();
    }
    let mut text = format!("{:<7} {:<16} {:<14} {:<10} {:<10} {:<16} {}", "ID", "NAME", "ROLE", "NODE", "STATE", "MESH", "LAN");
    for row in rows {
        let first = row.mesh_addresses.iter().find(|a| a.is_ipv4()).map_or_else(|| "-".to_owned(), ToString::to_string);
        let lan = row.lan_addresses.iter().find(|a| a.is_ipv4()).map_or_else(|| "-".to_owned(), ToString::to_string);
        text.push_str(&format!(
            "\n{:<7} {:<16} {:<14} {:<10} {:<10} {:<16} {}",
            row.vmid.to_string(),
            row.name.to_string(),
            row.role,
            row.cluster.as_ref().map_or_else(|| row.node.to_string(), |cluster| format!("{cluster}/{}", row.node)),
            words(row),
            first,
            lan
        ));
    }
    text
}

fn detail(row: &Row) -> String {
    let mib = |bytes: u64| bytes / (1 << 20);
    format!(
        "{} {} ({}) on {}: {}\n  in the mesh  {}\n  on the LAN   {}\n  up           {} s\n  memory       {} of {} MiB",
        row.role,
        row.vmid,
        row.name,
        row.node,
        words(row),
        joined(&row.mesh_addresses),
        joined(&row.lan_addresses),
        row.uptime_secs,
        mib(row.memory_bytes),
        mib(row.memory_max_bytes)
    )
}
