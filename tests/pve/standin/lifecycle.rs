//! Start, stop, shutdown, reboot and removal, with the hookscript's phases and the locks a real host takes.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::backend::Stop;
use super::cluster::Host;
use super::guest_config::Config;
use super::guests::{id_of, no_config};
use super::http::Reply;
use super::schema::Params;
use super::tasks::{TaskLog, spawn};
use super::{Context, Core, clone, ha, on_host, pmxcfs, storage};

/// The file of a hookscript.
///
/// # Errors
/// If it does not exist or cannot be executed.
pub fn hookscript(context: &Context, volume: &str) -> Result<PathBuf, String> {
    script(&context.core, &context.host, volume)
}

fn script(core: &Core, host: &str, volume: &str) -> Result<PathBuf, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let (storage, name) = volume.split_once(":snippets/").unwrap_or((volume, ""));
    let path = storage::directory(&core.options, host, storage).join("snippets").join(name);
    let found = std::fs::metadata(&path).ok().filter(|m| m.is_file() && !name.is_empty());
    let found = found.ok_or_else(|| format!("script '{volume}' does not exist"))?;
    if found.permissions().mode() & 0o111 == 0 {
        return Err(format!("script '{volume}' is not executable"));
    }
    Ok(path)
}

/// Runs a phase; its output goes to the task's log.
pub fn run_hook(core: &Core, at: (&str, u32), volume: Option<&str>, phase: &str, log: &TaskLog) -> Result<(), String> {
    run_hook_after(core, at, volume, (phase, None), log)
}

/// As [`run_hook`]; on the target of a live migration the hook is told the host that the guest comes from.
pub fn run_hook_after(
    core: &Core,
    at: (&str, u32),
    volume: Option<&str>,
    (phase, from): (&str, Option<&str>),
    log: &TaskLog,
) -> Result<(), String> {
    let (host, id) = at;
    let Some(volume) = volume else { return Ok(()) };
    let failed = |why: String| format!("hookscript error for {id} on {phase}: {why}");
    let path = script(core, host, volume).map_err(&failed)?;
    let mut command = on_host::command(core, host, &path);
    if let Some(from) = from {
        command.env("PVE_MIGRATED_FROM", from);
    }
    let output = command.arg(id.to_string()).arg(phase).stdin(Stdio::null()).output().map_err(|e| failed(e.to_string()))?;
    for line in String::from_utf8_lossy(&output.stdout).lines().chain(String::from_utf8_lossy(&output.stderr).lines()) {
        log.line(line);
    }
    if output.status.success() {
        return Ok(());
    }
    let how = output.status.code().map_or("got signal".to_owned(), |code| format!("exit code {code}"));
    Err(failed(format!("command '{} {id} {phase}' failed: {how}", path.display())))
}

/// As [`run_hook`] where a failure is only a line in the log.
pub fn run_hook_and_warn(core: &Core, at: (&str, u32), volume: Option<&str>, phase: &str, log: &TaskLog) {
    if let Err(why) = run_hook(core, at, volume, phase, log) {
        log.line(why);
        log.line("");
    }
}

/// A network interface's bridge that the host has not.
pub fn missing_bridge(host: &Host, interface: &Params) -> Option<String> {
    let bridge = interface.get("bridge")?;
    (!host.bridges.iter().any(|(name, _)| name == bridge)).then(|| format!("bridge '{bridge}' does not exist"))
}

pub fn config_of(core: &Core, node: &str, id: u32) -> Result<Config, String> {
    let mut inner = core.inner.lock().unwrap();
    pmxcfs::refresh(core, &mut inner);
    inner.guest_on(node, id).cloned().ok_or_else(|| format!("Configuration file 'nodes/{node}/lxc/{id}.conf' does not exist"))
}

pub fn unlocked(config: &Config) -> Result<(), String> {
    match config.lock.as_deref() {
        None | Some("mounted") => Ok(()),
        Some(lock) => Err(format!("CT is locked ({lock})")),
    }
}

/// Starts a container on a host.
pub fn vm_start(core: &Core, host: &str, id: u32, log: &TaskLog) -> Result<(), String> {
    let before = config_of(core, host, id)?;
    unlocked(&before)?;
    if before.is_set("template") {
        return Err("you can't start a CT if it's a template".to_owned());
    }
    if !core.inner.lock().unwrap().is_quorate() {
        return Err("cluster not ready - no quorum?".to_owned());
    }
    let config = {
        let mut inner = core.inner.lock().unwrap();
        let config = inner.guests.get_mut(&id).map(|config| {
            config.settle();
            config.clone()
        });
        pmxcfs::save(core, &mut inner, id);
        config.unwrap_or_default()
    };
    let here = core.host(host).unwrap_or_else(|| core.entry());
    let bridges = config.family("net");
    if let Some(why) = bridges.iter().find_map(|(_, keys)| missing_bridge(here, keys)) {
        return Err(why);
    }
    log.checkpoint()?;
    let hook = config.get("hookscript");
    run_hook(core, (host, id), hook, "pre-start", log).map_err(|why| format!("{why} "))?;
    let devices = config.family("dev");
    let mut paths = devices.iter().filter_map(|(_, keys)| keys.get("path"));
    if let Some(path) = paths.find(|path| !core.inner.lock().unwrap().has_device(host, path)) {
        log.line(format!("Could not get mode or device ID of {path}"));
        return Err(format!("startup for container '{id}' failed"));
    }
    // What one form made, the other finds in its place.
    let mounted = |path: &str| config.raw().iter().any(|(k, v)| k == "lxc.mount.entry" && v.split_whitespace().next() == Some(path));
    if devices.iter().filter_map(|(_, keys)| keys.get("path")).any(|path| mounted(path)) {
        log.line("lxc_mknod: 29 File exists - Script exited with status 17");
        return Err(format!("startup for container '{id}' failed"));
    }
    let post_stop = hook.and_then(|volume| script(core, host, volume).ok()).map(|path| on_host::wrapped(core, host, id, path));
    core.options.backend.start(id, &config, post_stop.as_deref())?;
    core.inner.lock().unwrap().started.insert(id, Instant::now());
    run_hook_and_warn(core, (host, id), hook, "post-start", log);
    Ok(())
}

/// Stops a container on a host.
pub fn vm_stop(core: &Core, host: &str, id: u32, how: Stop, log: &TaskLog) -> Result<(), String> {
    let config = config_of(core, host, id)?;
    unlocked(&config)?;
    log.checkpoint()?;
    run_hook_and_warn(core, (host, id), config.get("hookscript"), "pre-stop", log);
    if !core.options.backend.stop(id, how) {
        return Err("container did not stop".to_owned());
    }
    let mut inner = core.inner.lock().unwrap();
    if let Some(config) = inner.guests.get_mut(&id) {
        config.settle();
    }
    pmxcfs::save(core, &mut inner, id);
    Ok(())
}

pub fn under_lock(core: &Arc<Core>, id: u32, body: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    core.locked(id, body)?
}

/// Starts a `vzstart` task.
pub fn start_task(context: &Context, id: u32) -> String {
    let (core, host) = (context.core.clone(), context.host.clone());
    spawn(context, "vzstart", &id.to_string(), move |log| under_lock(&core, id, || vm_start(&core, &host, id, log)))
}

/// `POST status/start`.
///
/// # Errors
/// If it runs already.
pub fn start(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let id = id_of(params);
    root_option(context, params, "skiplock")?;
    let here = context.core.inner.lock().unwrap().place_of(id) == Some(&context.host);
    if here && context.core.options.backend.pid(id).is_some() {
        return Err(Reply::died(&format!("CT {id} already running")));
    }
    if let Some(upid) = ha::request(context, id, "hastart", "started") {
        return Ok(Reply::data(json!(upid)));
    }
    Ok(Reply::data(json!(start_task(context, id))))
}

fn root_option(context: &Context, params: &Params, name: &str) -> Result<(), Reply> {
    if params.contains_key(name) && !context.caller.is_root() {
        return Err(Reply::parameter(name, "Only root may use this option."));
    }
    Ok(())
}

fn must_run(context: &Context, id: u32, what: &str) -> Result<(), Reply> {
    let here = context.core.inner.lock().unwrap().place_of(id) == Some(&context.host);
    let running = here && context.core.options.backend.pid(id).is_some();
    running.then_some(()).ok_or_else(|| Reply::died(&format!("{what} {id} not running")))
}

/// `POST status/stop`.
///
/// # Errors
/// If it does not run.
pub fn stop(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let id = id_of(params);
    root_option(context, params, "skiplock")?;
    must_run(context, id, "CT")?;
    if let Some(upid) = ha::request(context, id, "hastop", "stopped") {
        return Ok(Reply::data(json!(upid)));
    }
    let (core, host) = (context.core.clone(), context.host.clone());
    let task = move |log: &TaskLog| under_lock(&core, id, || vm_stop(&core, &host, id, Stop::Kill, log));
    Ok(Reply::data(json!(spawn(context, "vzstop", &id.to_string(), task))))
}

fn halt(params: &Params, default: u64) -> Stop {
    Stop::Halt(Duration::from_secs(params.get("timeout").and_then(|t| t.parse().ok()).unwrap_or(default)))
}

/// `POST status/shutdown`.
///
/// # Errors
/// If it does not run.
pub fn shutdown(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let id = id_of(params);
    must_run(context, id, "CT")?;
    if let Some(upid) = ha::request(context, id, "hastop", "stopped") {
        return Ok(Reply::data(json!(upid)));
    }
    let (core, host, how) = (context.core.clone(), context.host.clone(), halt(params, 60));
    let force = params.get("forceStop").is_some_and(|f| f == "1");
    let task = move |log: &TaskLog| {
        under_lock(&core, id, || match vm_stop(&core, &host, id, how, log) {
            Err(why) if force && why == "container did not stop" => {
                core.options.backend.stop(id, Stop::Kill);
                Ok(())
            }
            done => done,
        })
    };
    Ok(Reply::data(json!(spawn(context, "vzshutdown", &id.to_string(), task))))
}

/// `POST status/reboot`.
///
/// # Errors
/// If it does not run.
pub fn reboot(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let id = id_of(params);
    must_run(context, id, "VM")?;
    let (core, host, how) = (context.core.clone(), context.host.clone(), halt(params, 60));
    let task = move |log: &TaskLog| {
        under_lock(&core, id, || {
            if vm_stop(&core, &host, id, how, log).is_err() {
                core.options.backend.stop(id, Stop::Kill);
            }
            vm_start(&core, &host, id, log)
        })
    };
    Ok(Reply::data(json!(spawn(context, "vzreboot", &id.to_string(), task))))
}

/// `DELETE lxc/{vmid}`.
///
/// # Errors
/// If it does not exist, is locked or protected, or runs and `force` is not set.
pub fn destroy(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let core = context.core.clone();
    let id = id_of(params);
    let is_set = |name: &str| params.get(name).is_some_and(|v| v == "1");
    let host = context.host.clone();
    let config = config_of(&core, &host, id).map_err(|_| Reply::died(&no_config(context, id)))?;
    if config.is_set("protection") {
        return Err(Reply::died(&format!("can't remove CT {id} - protection mode enabled")));
    }
    if let Some(lock) = &config.lock {
        return Err(Reply::died(&format!("CT is locked ({lock})")));
    }
    if core.options.backend.pid(id).is_some() && !is_set("force") {
        return Err(Reply::died(&format!("unable to destroy CT {id} - container is running")));
    }
    let purge = is_set("purge");
    if !purge && core.inner.lock().unwrap().ha.state_of("lxc", id).is_some() {
        return Err(Reply::died(&format!("unable to remove CT {id} - used in HA resources and purge parameter not set.")));
    }
    let task = move |log: &TaskLog| {
        under_lock(&core, id, || {
            log.checkpoint()?;
            if let Some(user) = clone::linked_to(&core.inner.lock().unwrap(), id) {
                return Err(format!("base volume 'base-{id}-disk-0' is still in use (use by 'vm-{user}-disk-0')"));
            }
            if core.options.backend.pid(id).is_some() {
                log.line(format!("forced to stop CT {id} before destroying!"));
                vm_stop(&core, &host, id, Stop::Kill, log)?;
            }
            core.options.backend.destroy(id);
            if purge {
                core.inner.lock().unwrap().ha.remove("lxc", id);
                log.line(format!("purging CT {id} from related configurations.."));
            }
            let mut inner = core.inner.lock().unwrap();
            inner.forget(id);
            pmxcfs::save(&core, &mut inner, id);
            Ok(())
        })
    };
    Ok(Reply::data(json!(spawn(context, "vzdestroy", &id.to_string(), task))))
}
