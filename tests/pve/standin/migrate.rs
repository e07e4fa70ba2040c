//! Moving a container to another host: stop, move, start; and making a template of one.

use std::time::Duration;

use serde_json::{Value, json};

use super::backend::Stop;
use super::clone::storage_of;
use super::guests::{guest, id_of};
use super::http::Reply;
use super::lifecycle::{under_lock, unlocked, vm_start, vm_stop};
use super::schema::Params;
use super::tasks::{TaskLog, spawn};
use super::{Context, Core, ha, pmxcfs};

/// `POST migrate`.
///
/// # Errors
/// What the API refuses; the rest fails in the task.
pub fn migrate(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let (core, id) = (context.core.clone(), id_of(params));
    let is_set = |name: &str| params.get(name).is_some_and(|v| v == "1");
    let target = params.get("target").cloned().unwrap_or_default();
    guest(context, &core.inner.lock().unwrap(), id)?;
    if target == context.host {
        return Err(Reply::parameter("target", "target is local node."));
    }
    if core.host(&target).is_none() {
        return Err(Reply::died(&format!("no such cluster node '{target}'")));
    }
    let running = core.options.backend.pid(id).is_some();
    if running && !is_set("online") && !is_set("restart") {
        return Err(Reply::died("can't migrate running container without --online or --restart"));
    }
    if let Some(upid) = ha::request_move(context, id, &target) {
        return Ok(Reply::data(json!(upid)));
    }
    let restart = is_set("restart");
    let timeout = Duration::from_secs(params.get("timeout").and_then(|t| t.parse().ok()).unwrap_or(180));
    let from = context.host.clone();
    let upid = spawn(context, "vzmigrate", &id.to_string(), move |log| {
        under_lock(&core, id, || relocate(&core, id, (&from, &target), (restart, timeout), log))
    });
    Ok(Reply::data(json!(upid)))
}

/// What stands against a move, as the log words it.
fn obstacle(core: &Core, id: u32, (from, to): (&str, &str), restart: bool, running: bool) -> Option<String> {
    let inner = core.inner.lock().unwrap();
    let Some(config) = inner.guest_on(from, id) else {
        return Some(format!("Configuration file 'nodes/{from}/lxc/{id}.conf' does not exist"));
    };
    if let Err(locked) = unlocked(config) {
        return Some(locked);
    }
    if running && !restart {
        return Some("lxc live migration is currently not implemented".to_owned());
    }
    if !inner.is_up(to) {
        return Some("Can't connect to destination address using public key".to_owned());
    }
    let storage = storage_of(config);
    let target = core.host(to)?;
    if !target.storages.iter().any(|s| s.name == storage) {
        return Some(format!("storage '{storage}' is not available on node '{to}'"));
    }
    let volume = config.get("rootfs").unwrap_or_default().split(',').next().unwrap_or_default();
    let shared = core.options.shared.iter().any(|s| s == storage);
    if !shared && let Some((base, _)) = volume.split_once('/').filter(|_| volume.contains("base-")) {
        return Some(format!("can't migrate local volume '{volume}': clone of '{base}'"));
    }
    if !shared && config.snapshots().next().is_some() {
        return Some(format!("can't migrate local volume '{volume}': non-migratable snapshot exists"));
    }
    None
}

/// Moves a container; the caller holds its lock.
///
/// # Errors
/// As the task ends.
pub fn relocate(core: &Core, id: u32, (from, to): (&str, &str), (restart, timeout): (bool, Duration), log: &TaskLog) -> Result<(), String> {
    let running = core.options.backend.pid(id).is_some();
    log.line(format!("starting migration of CT {id} to node '{to}'"));
    let aborted = |why: String| {
        log.line(format!("ERROR: migration aborted (duration 00:00:00): {why}"));
        "migration aborted".to_owned()
    };
    log.checkpoint().map_err(aborted)?;
    if let Some(why) = obstacle(core, id, (from, to), restart, running) {
        return Err(aborted(why));
    }
    if running {
        log.line(format!("shutdown CT {id}"));
        vm_stop(core, from, id, Stop::Halt(timeout), log).map_err(aborted)?;
    }
    {
        let mut inner = core.inner.lock().unwrap();
        inner.places.insert(id, to.to_owned());
        pmxcfs::save(core, &mut inner, id);
    }
    log.line("start final cleanup");
    if running {
        log.line(format!("start container on target node '{to}'"));
        if let Err(why) = vm_start(core, to, id, log) {
            log.line(format!("ERROR: command '/usr/bin/ssh root@{to} pct start {id}' failed: {why}"));
            return Err("migration problems".to_owned());
        }
    }
    log.line("migration finished successfully (duration 00:00:01)");
    Ok(())
}

/// `POST template`: the reply comes at once, the task converts the volumes.
///
/// # Errors
/// What the API refuses.
pub fn template(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let (core, id) = (context.core.clone(), id_of(params));
    let running = core.options.backend.pid(id).is_some();
    {
        let mut inner = core.inner.lock().unwrap();
        let config = guest(context, &inner, id)?;
        unlocked(config).map_err(|why| Reply::died(&why))?;
        if config.is_set("template") {
            return Err(Reply::died("you can't convert a template to a template"));
        }
        if running {
            return Err(Reply::died("you can't convert a CT to template if the CT is running"));
        }
        if config.snapshots().next().is_some() {
            return Err(Reply::died("unable to create template, because CT contains snapshots"));
        }
        if let Some(config) = inner.guests.get_mut(&id) {
            config.set("template", "1");
        }
        pmxcfs::save(&core, &mut inner, id);
    }
    spawn(context, "vztemplate", &id.to_string(), move |log| {
        log.checkpoint()?;
        let mut inner = core.inner.lock().unwrap();
        if let Some(config) = inner.guests.get_mut(&id) {
            let volume = config.get("rootfs").unwrap_or_default().replace("vm-", "base-");
            config.set("rootfs", &volume);
        }
        pmxcfs::save(&core, &mut inner, id);
        Ok(())
    });
    Ok(Reply::data(Value::Null))
}
