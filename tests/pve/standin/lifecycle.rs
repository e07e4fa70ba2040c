//! Start, stop, shutdown, reboot and removal, with the hookscript's phases and the locks a real host takes.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::backend::Stop;
use super::guest_config::Config;
use super::guests::{id_of, no_config};
use super::http::Reply;
use super::schema::Params;
use super::tasks::{TaskLog, spawn};
use super::{Context, Core, Options};

/// The file of a hookscript.
///
/// # Errors
/// If it does not exist or cannot be executed.
pub fn hookscript(context: &Context, volume: &str) -> Result<PathBuf, String> {
    script(&context.core.options, volume)
}

fn script(options: &Options, volume: &str) -> Result<PathBuf, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let (storage, name) = volume.split_once(":snippets/").unwrap_or((volume, ""));
    let path = options.dir.join("storage").join(storage).join("snippets").join(name);
    let found = std::fs::metadata(&path).ok().filter(|m| m.is_file() && !name.is_empty());
    let found = found.ok_or_else(|| format!("script '{volume}' does not exist"))?;
    if found.permissions().mode() & 0o111 == 0 {
        return Err(format!("script '{volume}' is not executable"));
    }
    Ok(path)
}

/// Runs a phase; its output goes to the task's log.
fn run_hook(options: &Options, id: u32, config: &Config, phase: &str, log: &TaskLog) -> Result<(), String> {
    let Some(volume) = config.get("hookscript") else { return Ok(()) };
    let failed = |why: String| format!("hookscript error for {id} on {phase}: {why}");
    let path = script(options, volume).map_err(&failed)?;
    let output = Command::new(&path).arg(id.to_string()).arg(phase).stdin(Stdio::null()).output().map_err(|e| failed(e.to_string()))?;
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
fn run_hook_and_warn(options: &Options, id: u32, config: &Config, phase: &str, log: &TaskLog) {
    if let Err(why) = run_hook(options, id, config, phase, log) {
        log.line(why);
        log.line("");
    }
}

/// A network interface's bridge that the host has not.
pub fn missing_bridge(options: &Options, interface: &Params) -> Option<String> {
    let bridge = interface.get("bridge")?;
    (!options.bridges.iter().any(|(name, _)| name == bridge)).then(|| format!("bridge '{bridge}' does not exist"))
}

fn config_of(core: &Core, node: &str, id: u32) -> Result<Config, String> {
    let inner = core.inner.lock().unwrap();
    inner.guests.get(&id).cloned().ok_or_else(|| format!("Configuration file 'nodes/{node}/lxc/{id}.conf' does not exist"))
}

fn unlocked(config: &Config) -> Result<(), String> {
    match config.lock.as_deref() {
        None | Some("mounted") => Ok(()),
        Some(lock) => Err(format!("CT is locked ({lock})")),
    }
}

fn vm_start(core: &Core, id: u32, log: &TaskLog) -> Result<(), String> {
    unlocked(&config_of(core, &core.options.node, id)?)?;
    let config = {
        let mut inner = core.inner.lock().unwrap();
        let config = inner.guests.get_mut(&id).map(|config| {
            config.settle();
            config.clone()
        });
        core.save(&inner, id);
        config.unwrap_or_default()
    };
    let bridges = config.family("net");
    if let Some(why) = bridges.iter().find_map(|(_, keys)| missing_bridge(&core.options, keys)) {
        return Err(why);
    }
    log.checkpoint()?;
    run_hook(&core.options, id, &config, "pre-start", log).map_err(|why| format!("{why} "))?;
    let post_stop = config.get("hookscript").and_then(|volume| script(&core.options, volume).ok());
    core.options.backend.start(id, &config, post_stop.as_deref())?;
    core.inner.lock().unwrap().started.insert(id, Instant::now());
    run_hook_and_warn(&core.options, id, &config, "post-start", log);
    Ok(())
}

fn vm_stop(core: &Core, id: u32, how: Stop, log: &TaskLog) -> Result<(), String> {
    let config = config_of(core, &core.options.node, id)?;
    unlocked(&config)?;
    log.checkpoint()?;
    run_hook_and_warn(&core.options, id, &config, "pre-stop", log);
    if !core.options.backend.stop(id, how) {
        return Err("container did not stop".to_owned());
    }
    let mut inner = core.inner.lock().unwrap();
    if let Some(config) = inner.guests.get_mut(&id) {
        config.settle();
    }
    core.save(&inner, id);
    Ok(())
}

fn under_lock(core: &Arc<Core>, id: u32, body: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    core.locked(id, body)?
}

/// Starts a `vzstart` task.
pub fn start_task(context: &Context, id: u32) -> String {
    let core = context.core.clone();
    spawn(context, "vzstart", &id.to_string(), move |log| under_lock(&core, id, || vm_start(&core, id, log)))
}

/// `POST status/start`.
///
/// # Errors
/// If it runs already.
pub fn start(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let id = id_of(params);
    root_option(context, params, "skiplock")?;
    if context.core.options.backend.pid(id).is_some() {
        return Err(Reply::died(&format!("CT {id} already running")));
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
    let running = context.core.options.backend.pid(id).is_some();
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
    let core = context.core.clone();
    let task = move |log: &TaskLog| under_lock(&core, id, || vm_stop(&core, id, Stop::Kill, log));
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
    let (core, how, force) = (context.core.clone(), halt(params, 60), params.get("forceStop").is_some_and(|f| f == "1"));
    let task = move |log: &TaskLog| {
        under_lock(&core, id, || match vm_stop(&core, id, how, log) {
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
    let (core, how) = (context.core.clone(), halt(params, 60));
    let task = move |log: &TaskLog| {
        under_lock(&core, id, || {
            if vm_stop(&core, id, how, log).is_err() {
                core.options.backend.stop(id, Stop::Kill);
            }
            vm_start(&core, id, log)
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
    let config = config_of(&core, &core.options.node, id).map_err(|_| Reply::died(&no_config(context, id)))?;
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
    let task = move |log: &TaskLog| {
        under_lock(&core, id, || {
            log.checkpoint()?;
            if core.options.backend.pid(id).is_some() {
                log.line(format!("forced to stop CT {id} before destroying!"));
                vm_stop(&core, id, Stop::Kill, log)?;
            }
            core.options.backend.destroy(id);
            if purge {
                log.line(format!("purging CT {id} from related configurations.."));
            }
            let mut inner = core.inner.lock().unwrap();
            inner.guests.remove(&id);
            core.save(&inner, id);
            Ok(())
        })
    };
    Ok(Reply::data(json!(spawn(context, "vzdestroy", &id.to_string(), task))))
}
