//! Gathers what a plan looks at: reads only.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{CallError, Executor, Pvesh, guest_net};
use crate::ident::{NodeId, NodeName, Vmid};
use crate::plan::golden::{self, Golden};
use crate::plan::observed::{Hookscript, HostView, Observed, Target};
use crate::pve::access::{self, Rights};
use crate::pve::reply::{self, ContainerConfig, GuestSummary};
use crate::pve::{BuildError, ErrorKind, HostName, Principal, Request, call};

async fn ask(executor: &dyn Executor, request: Result<Request, BuildError>) -> Result<Value, CallError> {
    executor.call(&request?).await
}

/// Reads everything a plan for guest `vmid` may depend on. `mesh` is what the known coordinator says.
///
/// A host that does not answer is shown as offline; the others are still read.
///
/// # Errors
/// If the API cannot be read at all.
pub async fn observe(executor: &dyn Executor, vmid: Vmid, mesh: Vec<(NodeId, NodeName)>) -> Result<Observed, CallError> {
    let principal = executor.principal();
    let hosts = hosts(executor).await?;
    let guests = reply::guests(&ask(executor, call::guests()).await?)?;
    let target = match guests.iter().find(|guest| guest.vmid == vmid && guest.container) {
        Some(guest) => container(executor, &guest.host, vmid).await?,
        None => None,
    };
    let goldens = goldens(executor, &guests).await?;
    let local = if principal == Principal::RootHost { Pvesh::local_host() } else { None };
    Ok(Observed { principal, local, hosts, guests, mesh, goldens, target, hookscript: Hookscript::default() })
}

/// The golden containers among these guests.
///
/// # Errors
/// If a configuration cannot be read.
pub(super) async fn goldens(executor: &dyn Executor, guests: &[GuestSummary]) -> Result<Vec<Golden>, CallError> {
    let mut goldens = Vec::new();
    for guest in guests.iter().filter(|guest| guest.container && guest.tags.iter().any(|tag| tag == golden::ROLE)) {
        let config = container_config(executor, &guest.host, guest.vmid).await?;
        goldens.extend(config.and_then(|config| Golden::read(guest.vmid, &guest.host, &config)));
    }
    Ok(goldens)
}

/// Reads every host and what it has.
///
/// # Errors
/// As [`observe`].
pub async fn hosts(executor: &dyn Executor) -> Result<Vec<HostView>, CallError> {
    let mut hosts = Vec::new();
    for host in reply::hosts(&ask(executor, call::hosts()).await?)? {
        let offline = HostView {
            name: host.name.clone(),
            online: false,
            version: None,
            storages: Vec::new(),
            bridges: Vec::new(),
            templates: Vec::new(),
        };
        if !host.online {
            hosts.push(offline);
            continue;
        }
        match view(executor, &host.name).await {
            Ok(seen) => hosts.push(seen),
            Err(error) if matches!(error.kind(), Some(ErrorKind::HostUnreachable | ErrorKind::Timeout)) => {
                tracing::warn!(host = %host.name, %error, "the node does not answer and is left out");
                hosts.push(offline);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(hosts)
}

/// The guests of the cluster.
///
/// # Errors
/// If they cannot be read.
pub async fn guests(executor: &dyn Executor) -> Result<Vec<GuestSummary>, CallError> {
    Ok(reply::guests(&ask(executor, call::guests()).await?)?)
}

async fn view(executor: &dyn Executor, host: &HostName) -> Result<HostView, CallError> {
    let version = reply::version(&ask(executor, call::host_version(host)).await?)?;
    let storages = reply::storages(&ask(executor, call::storages(host)).await?)?;
    let bridges = reply::bridges(&ask(executor, call::bridges(host)).await?)?;
    let mut templates = Vec::new();
    for storage in storages.iter().filter(|s| s.usable && s.holds("vztmpl")) {
        match ask(executor, call::templates(host, &storage.name)).await {
            Ok(value) => templates.extend(reply::volumes(&value)?.into_iter().map(|volume| volume.id)),
            // Only whether the image is there already depends on it.
            Err(CallError::Api(error)) => tracing::warn!(%host, storage = %storage.name, %error, "its templates cannot be listed"),
            Err(error) => return Err(error),
        }
    }
    Ok(HostView { name: host.clone(), online: true, version: Some(version), storages, bridges, templates })
}

/// The configuration of a container; `None` if there is no such container on that host.
///
/// # Errors
/// If it cannot be read.
pub async fn container_config(executor: &dyn Executor, host: &HostName, vmid: Vmid) -> Result<Option<ContainerConfig>, CallError> {
    match ask(executor, call::container_config(host, vmid)).await {
        Ok(value) => Ok(Some(reply::container_config(&value)?)),
        Err(error) if error.kind() == Some(ErrorKind::NoSuchGuest) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A container with its configuration and state; `None` if there is no such container on that host.
///
/// # Errors
/// If it cannot be read.
pub async fn container(executor: &dyn Executor, host: &HostName, vmid: Vmid) -> Result<Option<Target>, CallError> {
    let Some(config) = container_config(executor, host, vmid).await? else { return Ok(None) };
    let status = match ask(executor, call::container_status(host, vmid)).await {
        Ok(value) => reply::container_status(&value)?,
        Err(error) if error.kind() == Some(ErrorKind::NoSuchGuest) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(Target { host: host.clone(), config, running: status.running }))
}

/// What the executor's principal may do at these access control paths, inherited rights included; without paths, wherever an entry of the
/// access control list stands.
///
/// # Errors
/// If Proxmox cannot be asked.
pub async fn rights(executor: &dyn Executor, paths: &BTreeSet<String>) -> Result<Rights, CallError> {
    if paths.is_empty() {
        return Ok(Rights::read(&executor.call(&access::permissions(None)).await?));
    }
    let asked = paths.iter().map(|path| async move { executor.call(&access::permissions(Some(path))).await });
    let mut rights = Rights::default();
    for reply in futures_util::future::join_all(asked).await {
        rights.merge(Rights::read(&reply?));
    }
    Ok(rights)
}

/// The interfaces inside a running container. Where the API has no such call (before 8.1) they are looked up on the host, if that is here.
///
/// # Errors
/// If they cannot be read.
pub async fn interfaces(executor: &dyn Executor, host: &HostName, vmid: Vmid) -> Result<Vec<reply::GuestInterface>, CallError> {
    let refused = match ask(executor, call::interfaces(host, vmid)).await {
        Ok(value) => return Ok(reply::interfaces(&value)?),
        Err(error) => error,
    };
    let here = executor.guest_configs().is_some() && Pvesh::local_host().as_ref() == Some(host);
    if refused.kind() != Some(ErrorKind::NotSupported) || !here {
        return Err(refused);
    }
    let status = reply::container_status(&ask(executor, call::container_status(host, vmid)).await?)?;
    match status.pid {
        Some(pid) => guest_net::interfaces(pid).await,
        None => Ok(Vec::new()),
    }
}
