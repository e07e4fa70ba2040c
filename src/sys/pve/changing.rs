//! Steps that change what is there, and what sets it back.

use std::time::Duration;

use ipnet::IpNet;

use super::inside::{Inside, Run, run_well};
use super::mesh::Mesh;
use super::provision::{StepError, Watch, run_call};
use super::{CallError, Executor, observe};
use crate::ident::{NodeName, Vmid};
use crate::plan::create::CONFIG_VARIABLE;
use crate::plan::guest::{APPLIANCE_PROGRAM, SETTINGS};
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
        start_again(executor, host, guest.vmid, watch).await?;
        let cleared = run_call(executor, &call::clear_environment(host, guest.vmid)?, None, watch).await;
        if let Err(error) = cleared {
            tracing::warn!(vmid = %guest.vmid, %error, "the settings stay in the environment; nothing in them is secret");
        }
    }
    Ok(())
}

/// The same by a way into the guest, which has to run for that.
pub(super) async fn write_back(
    (executor, inside): (&dyn Executor, &dyn Inside),
    host: &HostName,
    guest: &Guest,
    restart: bool,
    watch: &mut dyn Watch,
) -> Result<bool, StepError> {
    let vmid = guest.vmid;
    let Some(target) = observe::container(executor, host, vmid).await? else { return Ok(false) };
    if !target.running {
        run_call(executor, &call::start(host, vmid)?, Some(RESTART_LIMIT), watch).await?;
    }
    let write = Run::new([APPLIANCE_PROGRAM, "inside", "write", SETTINGS, "--mode", "600"]).input(render::guest(guest)?);
    run_well(inside, vmid, &write).await?;
    if restart {
        start_again(executor, host, vmid, watch).await?;
    }
    Ok(true)
}

/// Restarts a guest, or starts it if it has stopped meanwhile.
async fn start_again(executor: &dyn Executor, host: &HostName, vmid: Vmid, watch: &mut dyn Watch) -> Result<(), StepError> {
    match run_call(executor, &call::reboot(host, vmid, GRACE_SECS)?, Some(RESTART_LIMIT), watch).await {
        Err(StepError::Call(error)) if error.kind() == Some(ErrorKind::NotRunning) => {
            run_call(executor, &call::start(host, vmid)?, Some(RESTART_LIMIT), watch).await
        }
        other => other,
    }
}

/// Stops a guest; false if it does not run.
pub(super) async fn stop(executor: &dyn Executor, host: &HostName, vmid: Vmid, watch: &mut dyn Watch) -> Result<bool, StepError> {
    match run_call(executor, &call::shutdown(host, vmid, GRACE_SECS)?, Some(RESTART_LIMIT), watch).await {
        Ok(()) => Ok(true),
        Err(StepError::Call(error)) if matches!(error.kind(), Some(ErrorKind::NotRunning | ErrorKind::NoSuchGuest)) => Ok(false),
        Err(error) => Err(error),
    }
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
    vmid: Vmid,
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
pub(super) async fn is_managed(executor: &dyn Executor, vmid: Vmid) -> Result<bool, StepError> {
    let guests = crate::pve::reply::guests(&executor.call(&call::guests()?).await?)?;
    Ok(guests.iter().any(|guest| guest.vmid == vmid && guest.managed))
}
