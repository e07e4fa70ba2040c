//! Steps that change what is there, and what sets it back.

use std::time::Duration;

use ipnet::IpNet;

use super::mesh::Mesh;
use super::provision::{StepError, Watch, run_call};
use super::{CallError, Executor};
use crate::ident::NodeName;
use crate::plan::create::CONFIG_VARIABLE;
use crate::plan::render;
use crate::pve::{ErrorKind, HostName, call};
use crate::settings::Guest;
use crate::wire::admin::NodeInfo;

/// How long a restart may take when it sets something back.
const RESTART_LIMIT: Duration = Duration::from_secs(90);
/// Seconds a guest gets to end by itself before that.
const GRACE_SECS: u16 = 10;

/// Puts settings into the environment of a guest's init.
pub(super) async fn redeliver(executor: &dyn Executor, host: &HostName, guest: &Guest, watch: &mut dyn Watch) -> Result<(), StepError> {
    let content = crate::plan::environment(guest)?;
    let request = call::set_open_environment(host, guest.vmid, CONFIG_VARIABLE, content.expose())?;
    run_call(executor, &request, None, watch).await
}

/// Hands a guest its earlier settings again, and has it read them if it was running.
pub(super) async fn hand_back(
    executor: &dyn Executor,
    host: &HostName,
    guest: &Guest,
    restart: bool,
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    render::guest(guest)?;
    redeliver(executor, host, guest, watch).await?;
    if restart {
        let reboot = call::reboot(host, guest.vmid, GRACE_SECS)?;
        match run_call(executor, &reboot, Some(RESTART_LIMIT), watch).await {
            Err(StepError::Call(error)) if error.kind() == Some(ErrorKind::NotRunning) => {
                run_call(executor, &call::start(host, guest.vmid)?, Some(RESTART_LIMIT), watch).await?;
            }
            other => other?,
        }
        let cleared = run_call(executor, &call::clear_environment(host, guest.vmid)?, None, watch).await;
        if let Err(error) = cleared {
            tracing::warn!(vmid = %guest.vmid, %error, "the settings stay in the environment; nothing in them is secret");
        }
    }
    Ok(())
}

async fn node(mesh: &dyn Mesh, name: &NodeName) -> Result<Option<NodeInfo>, StepError> {
    Ok(mesh.nodes().await?.into_iter().find(|node| node.name == *name))
}

/// Lets a node carry more networks, and others no longer.
pub(super) async fn approve_routes(mesh: &dyn Mesh, name: &NodeName, add: &[IpNet], remove: &[IpNet]) -> Result<(), StepError> {
    let Some(node) = node(mesh, name).await? else { return Err(StepError::Missing("the coordinator does not know the node")) };
    let mut approved: Vec<IpNet> = node.approved_routes.iter().filter(|net| !remove.contains(net)).copied().collect();
    approved.extend(add.iter().filter(|net| !node.approved_routes.contains(net)));
    mesh.approve_routes(node.id, &approved).await?;
    Ok(())
}

/// Renames a node; one that has the name already is left alone.
pub(super) async fn rename_node(mesh: &dyn Mesh, from: &NodeName, to: &NodeName) -> Result<(), StepError> {
    match node(mesh, from).await? {
        Some(node) => Ok(mesh.rename_node(node.id, to).await?),
        None if node(mesh, to).await?.is_some() => Ok(()),
        None => Err(StepError::Missing("the coordinator does not know the node")),
    }
}

/// Sets keys of a container back to what they were.
pub(super) async fn put_back(
    executor: &dyn Executor,
    host: &HostName,
    vmid: crate::ident::Vmid,
    values: &std::collections::BTreeMap<String, String>,
    added: &[String],
    watch: &mut dyn Watch,
) -> Result<bool, StepError> {
    match run_call(executor, &call::put_back(host, vmid, values, added), None, watch).await {
        Ok(()) => Ok(true),
        // The guest is gone; there is nothing to set back.
        Err(StepError::Call(CallError::Api(error))) if error.kind() == ErrorKind::NoSuchGuest => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a guest is under high availability.
pub(super) async fn is_managed(executor: &dyn Executor, vmid: crate::ident::Vmid) -> Result<bool, StepError> {
    let guests = crate::pve::reply::guests(&executor.call(&call::guests()?).await?)?;
    Ok(guests.iter().any(|guest| guest.vmid == vmid && guest.managed))
}
