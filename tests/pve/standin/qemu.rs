//! Virtual machines, on paper: listed, configured, started and stopped with the hookscript's phases, and what their guest agent reports.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::guests::id_of;
use super::http::Reply;
use super::lifecycle::{hookscript, run_hook, run_hook_after, run_hook_and_warn, under_lock};
use super::schema::Params;
use super::tasks::{TaskLog, spawn};
use super::{Context, Core, Inner, Inside, guest_config, pmxcfs};

/// A virtual machine.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Its configuration: `name`, `net0`, `tags`, `description`, `hookscript`, `agent` ...
    pub values: Params,
    /// It runs.
    pub running: bool,
    /// What its guest agent says of its interfaces; without it, the agent does not run.
    pub interfaces: Option<Value>,
    /// `backup`, `migrate` ...
    pub lock: Option<String>,
}

impl Machine {
    /// As lists show it.
    pub fn status(&self, id: u32) -> Value {
        let get = |key: &str| self.values.get(key).cloned();
        let mut status = json!({
            "vmid": id, "type": "qemu", "name": get("name").unwrap_or_else(|| format!("VM {id}")),
            "status": if self.running { "running" } else { "stopped" }, "uptime": if self.running { 60 } else { 0 }, "cpus": 1, "cpu": 0,
            "mem": 0, "maxmem": 512_u64 << 20, "disk": 0, "maxdisk": 8_u64 << 30,
        });
        for (key, value) in [("tags", get("tags")), ("lock", self.lock.clone())] {
            value.into_iter().for_each(|value| status[key] = json!(value));
        }
        if get("template").is_some_and(|t| t == "1") {
            status["template"] = json!(1);
        }
        status
    }

    /// The file in /etc/pve.
    pub fn file(&self) -> String {
        guest_config::section(&self.values, &[], self.lock.as_deref())
    }

    fn digest(&self) -> String {
        Sha256::digest(format!("{:?}", self.values)).iter().take(20).map(|b| format!("{b:02x}")).collect()
    }
}

fn no_config(context: &Context, id: u32) -> String {
    format!("Configuration file 'nodes/{}/qemu-server/{id}.conf' does not exist", context.host)
}

fn machine<'a>(context: &Context, inner: &'a mut Inner, id: u32) -> Result<&'a mut Machine, Reply> {
    let here = inner.place_of(id) == Some(&context.host);
    inner.machines.get_mut(&id).filter(|_| here).ok_or_else(|| Reply::died(&no_config(context, id)))
}

/// Answers `/nodes/{node}/qemu...`, given without the node.
///
/// # Errors
/// What the API refuses.
pub(super) fn answer(context: &Context, method: &str, tail: &str, params: &Params) -> Result<Reply, Reply> {
    let id = id_of(params);
    match (method, tail) {
        ("GET", "/qemu") => {
            let inner = context.core.inner.lock().unwrap();
            let here = inner.machines.iter().filter(|(id, _)| inner.place_of(**id) == Some(&context.host));
            let seen = here.filter(|(id, _)| inner.access.has(&context.caller, &format!("/vms/{id}"), "VM.Audit"));
            Ok(Reply::data(seen.map(|(id, machine)| machine.status(*id)).collect()))
        }
        ("GET", "/qemu/{vmid}/config") => {
            let mut inner = context.core.inner.lock().unwrap();
            let machine = machine(context, &mut inner, id)?;
            let mut shown = json!(machine.values);
            shown["digest"] = json!(machine.digest());
            Ok(Reply::data(shown))
        }
        ("PUT", "/qemu/{vmid}/config") => set_config(context, params),
        ("GET", "/qemu/{vmid}/status/current") => {
            let mut inner = context.core.inner.lock().unwrap();
            let mut status = machine(context, &mut inner, id)?.status(id);
            status["ha"] = inner.ha.of_guest("qemu", id);
            status["qmpstatus"] = status["status"].clone();
            Ok(Reply::data(status))
        }
        ("GET", "/qemu/{vmid}/agent/network-get-interfaces") => {
            let mut inner = context.core.inner.lock().unwrap();
            let machine = machine(context, &mut inner, id)?;
            match (&machine.interfaces, machine.running) {
                _ if !machine.values.get("agent").is_some_and(|a| a.starts_with('1') || a.contains("enabled=1")) => {
                    Err(Reply::died("No QEMU guest agent configured"))
                }
                (_, false) => Err(Reply::died(&format!("VM {id} is not running"))),
                (None, true) => Err(Reply::died("QEMU guest agent is not running")),
                (Some(interfaces), true) => Ok(Reply::data(json!({ "result": interfaces }))),
            }
        }
        ("POST", "/qemu/{vmid}/migrate") => migrate(context, params),
        ("DELETE", "/qemu/{vmid}") => destroy(context, id),
        ("POST", "/qemu/{vmid}/status/start") => switch(context, id, true),
        ("POST", "/qemu/{vmid}/status/stop" | "/qemu/{vmid}/status/shutdown") => switch(context, id, false),
        _ => Err(Reply::error(501, &format!("Method '{method} {tail}' is not played by the stand-in"))),
    }
}

fn set_config(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let id = id_of(params);
    if let Some(volume) = params.get("hookscript") {
        if !context.caller.is_root() {
            return Err(Reply::forbidden("only root can set 'hookscript' config"));
        }
        hookscript(context, volume).map_err(|why| Reply::died(&why))?;
    }
    let set = context.core.locked(id, || {
        let mut inner = context.core.inner.lock().unwrap();
        let machine = machine(context, &mut inner, id)?;
        if let Some(lock) = &machine.lock {
            return Err(Reply::died(&format!("VM is locked ({lock})")));
        }
        if params.get("digest").is_some_and(|d| *d != machine.digest()) {
            return Err(Reply::died("detected modified configuration - file changed by other user? Try again."));
        }
        for key in params.get("delete").map(String::as_str).unwrap_or_default().split([',', ';', ' ']) {
            machine.values.remove(key);
        }
        let values =
            params.iter().filter(|(k, _)| !matches!(k.as_str(), "vmid" | "node" | "digest" | "delete" | "revert" | "skiplock" | "force"));
        machine.values.extend(values.map(|(k, v)| (k.clone(), v.clone())));
        pmxcfs::save_machine(&context.core, &inner, id);
        Ok(())
    });
    set.map_err(|why| Reply::died(&why))??;
    Ok(Reply::data(Value::Null))
}

fn switch(context: &Context, id: u32, on: bool) -> Result<Reply, Reply> {
    {
        let mut inner = context.core.inner.lock().unwrap();
        let running = machine(context, &mut inner, id)?.running;
        if running == on {
            return Err(Reply::died(&format!("VM {id} {} running", if on { "already" } else { "not" })));
        }
    }
    let (core, host) = (context.core.clone(), context.host.clone());
    let upid = spawn(context, if on { "qmstart" } else { "qmstop" }, &id.to_string(), move |log| {
        under_lock(&core, id, || {
            let machine = core.inner.lock().unwrap().machines.get(&id).cloned().unwrap_or_default();
            if let Some(lock) = &machine.lock {
                return Err(format!("VM is locked ({lock})"));
            }
            let hook = machine.values.get("hookscript").map(String::as_str);
            log.checkpoint()?;
            let phases = if on { ["pre-start", "post-start"] } else { ["pre-stop", "post-stop"] };
            match on {
                true => run_hook(&core, (&host, id), hook, phases[0], log).map_err(|why| format!("{why} "))?,
                false => run_hook_and_warn(&core, (&host, id), hook, phases[0], log),
            }
            core.set_machine(id, |machine| machine.running = on);
            run_hook_and_warn(&core, (&host, id), hook, phases[1], log);
            Ok(())
        })
    });
    Ok(Reply::data(json!(upid)))
}

/// `POST migrate`: a running machine goes on on the other host, where it is started from here: the hook is called there while the
/// configuration still lies here, and not at all here.
fn migrate(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let (core, id, from) = (context.core.clone(), id_of(params), context.host.clone());
    let target = params.get("target").cloned().unwrap_or_default();
    let running = machine(context, &mut core.inner.lock().unwrap(), id)?.running;
    if target == from {
        return Err(Reply::parameter("target", "target is local node."));
    }
    if core.host(&target).is_none() {
        return Err(Reply::died(&format!("no such cluster node '{target}'")));
    }
    if running && params.get("online").is_none_or(|online| online != "1") {
        return Err(Reply::parameter("online", "can't migrate running VM without --online"));
    }
    let upid = spawn(context, "qmigrate", &id.to_string(), move |log| {
        let moved = under_lock(&core, id, || relocate(&core, id, (&from, &target), log));
        moved.map_err(|why| {
            log.line(format!("ERROR: migration aborted (duration 00:00:00): {why}"));
            "migration aborted".to_owned()
        })
    });
    Ok(Reply::data(json!(upid)))
}

fn relocate(core: &Core, id: u32, (from, to): (&str, &str), log: &TaskLog) -> Result<(), String> {
    log.line(format!("starting migration of VM {id} to node '{to}'"));
    let machine = core.inner.lock().unwrap().machines.get(&id).cloned().unwrap_or_default();
    if let Some(lock) = &machine.lock {
        return Err(format!("VM is locked ({lock})"));
    }
    log.checkpoint()?;
    if !core.inner.lock().unwrap().is_up(to) {
        return Err("Can't connect to destination address using public key".to_owned());
    }
    if machine.running {
        log.line(format!("starting VM {id} on remote node '{to}'"));
        let hook = machine.values.get("hookscript").map(String::as_str);
        run_hook_after(core, (to, id), hook, ("pre-start", Some(from)), log)?;
        if let Err(why) = run_hook_after(core, (to, id), hook, ("post-start", Some(from)), log) {
            log.line(why);
        }
    }
    core.inner.lock().unwrap().places.insert(id, to.to_owned());
    core.set_machine(id, |_| {});
    log.line("migration finished successfully (duration 00:00:01)");
    Ok(())
}

/// `DELETE qemu/{vmid}`.
fn destroy(context: &Context, id: u32) -> Result<Reply, Reply> {
    let core = context.core.clone();
    {
        let mut inner = core.inner.lock().unwrap();
        let machine = machine(context, &mut inner, id)?;
        if let Some(lock) = &machine.lock {
            return Err(Reply::died(&format!("VM is locked ({lock})")));
        }
        if machine.running {
            return Err(Reply::died(&format!("VM {id} is running - destroy failed")));
        }
    }
    let upid = spawn(context, "qmdestroy", &id.to_string(), move |log| {
        under_lock(&core, id, || {
            log.checkpoint()?;
            let mut inner = core.inner.lock().unwrap();
            inner.forget(id);
            pmxcfs::save_machine(&core, &inner, id);
            Ok(())
        })
    });
    Ok(Reply::data(json!(upid)))
}

impl Core {
    fn set_machine(&self, id: u32, change: impl FnOnce(&mut Machine)) {
        let mut inner = self.inner.lock().unwrap();
        if let Some(machine) = inner.machines.get_mut(&id) {
            change(machine);
        }
        pmxcfs::save_machine(self, &inner, id);
    }
}

impl Inside {
    /// Changes what a virtual machine's agent reports; without anything, it does not answer.
    pub fn set_agent(&self, id: u32, interfaces: Option<Value>) {
        self.core.set_machine(id, |machine| machine.interfaces = interfaces);
    }

    /// Adds a virtual machine on a host.
    pub fn add_machine(&self, host: &str, id: u32, machine: Machine) {
        let mut inner = self.core.inner.lock().unwrap();
        inner.places.insert(id, host.to_owned());
        inner.machines.insert(id, machine);
        pmxcfs::save_machine(&self.core, &inner, id);
    }

    /// A virtual machine.
    pub fn machine(&self, id: u32) -> Option<Machine> {
        self.core.inner.lock().unwrap().machines.get(&id).cloned()
    }
}
