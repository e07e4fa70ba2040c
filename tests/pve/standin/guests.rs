//! Containers: listed, created, configured.

use serde_json::{Value, json};

use super::guest_config::Config;
use super::http::Reply;
use super::schema::{Params, property_string};
use super::{Context, Inner, Version, lifecycle, pmxcfs, storage, tasks};

/// The VMID of a call.
pub fn id_of(params: &Params) -> u32 {
    params.get("vmid").and_then(|v| v.parse().ok()).unwrap_or_default()
}

pub fn no_config(context: &Context, id: u32) -> String {
    format!("Configuration file 'nodes/{}/lxc/{id}.conf' does not exist", context.host)
}

pub fn guest<'a>(context: &Context, inner: &'a Inner, id: u32) -> Result<&'a Config, Reply> {
    inner.guest_on(&context.host, id).ok_or_else(|| Reply::died(&no_config(context, id)))
}

/// Bytes of a volume's `size=102M`.
fn size_of(config: &Config) -> u64 {
    let size = config.get("rootfs").and_then(|r| property_string("rootfs", r).ok()).and_then(|k| k.get("size").cloned());
    let Some(size) = size else { return 4 << 30 };
    let digits: u64 = size.trim_end_matches(char::is_alphabetic).parse().unwrap_or(0);
    digits
        << match size.chars().last() {
            Some('T') => 40,
            Some('G') => 30,
            Some('M') => 20,
            _ => 10,
        }
}

pub fn vmstatus(context: &Context, inner: &Inner, id: u32, config: &Config) -> Value {
    let backend = &context.core.options.backend;
    let pid = backend.pid(id);
    let mib = |key: &str| config.get(key).and_then(|v| v.parse::<u64>().ok()).unwrap_or(512) << 20;
    let uptime = inner.started.get(&id).filter(|_| pid.is_some()).map_or(0, |s| s.elapsed().as_secs());
    let mut status = json!({
        "vmid": id, "type": "lxc", "name": config.get("hostname").map_or_else(|| format!("CT{id}"), str::to_owned),
        "status": if pid.is_some() { "running" } else { "stopped" }, "uptime": uptime, "cpu": 0,
        "cpus": config.get("cores").and_then(|c| c.parse().ok()).unwrap_or(2), "mem": pid.map_or(0, |_| backend.memory(id)),
        "maxmem": mib("memory"), "swap": 0, "maxswap": mib("swap"), "disk": 0, "maxdisk": size_of(config), "diskread": 0,
        "diskwrite": 0, "netin": 0, "netout": 0,
    });
    if let Some(pid) = pid {
        status["pid"] = json!(pid);
    }
    for (key, value) in [("tags", config.get("tags")), ("lock", config.lock.as_deref())] {
        if let Some(value) = value {
            status[key] = json!(value);
        }
    }
    if config.is_set("template") {
        status["template"] = json!(1);
    }
    status
}

pub fn list(context: &Context) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    let here = inner.guests.iter().filter(|(id, _)| inner.place_of(**id) == Some(&context.host));
    let seen = here.filter(|(id, _)| inner.access.has(&context.caller, &format!("/vms/{id}"), "VM.Audit"));
    Reply::data(seen.map(|(id, config)| vmstatus(context, &inner, *id, config)).collect())
}

pub fn status(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let inner = context.core.inner.lock().unwrap();
    let id = id_of(params);
    let mut status = vmstatus(context, &inner, id, guest(context, &inner, id)?);
    status["ha"] = inner.ha.of_guest("lxc", id);
    Ok(Reply::data(status))
}

pub fn interfaces(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let id = id_of(params);
    guest(context, &context.core.inner.lock().unwrap(), id)?;
    let running = context.core.options.backend.pid(id).is_some();
    if !running {
        return Ok(Reply::data(Value::Null));
    }
    let mut found = context.core.options.backend.interfaces(id);
    for row in found.as_array_mut().into_iter().flatten().filter(|_| context.host().version < Version::V8_4) {
        row.as_object_mut().map(|row| row.remove("ip-addresses"));
    }
    Ok(Reply::data(found))
}

pub fn config(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let inner = context.core.inner.lock().unwrap();
    let id = id_of(params);
    let with_env = inner.access.has(&context.caller, &format!("/vms/{id}"), "VM.Config.Options");
    Ok(Reply::data(guest(context, &inner, id)?.show(params.get("current").is_some_and(|c| c == "1"), with_env)))
}

pub fn pending(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let inner = context.core.inner.lock().unwrap();
    Ok(Reply::data(guest(context, &inner, id_of(params))?.show_pending()))
}

/// What a call may set, by who calls: the keys that are root@pam's alone, and those that need a privilege.
fn may_set(context: &Context, inner: &Inner, params: &Params, keys: &[&str], unprivileged: bool) -> Result<(), Reply> {
    if context.caller.is_root() {
        return Ok(());
    }
    let guest = format!("/vms/{}", id_of(params));
    for key in keys {
        let stem = key.trim_end_matches(|c: char| c.is_ascii_digit());
        let value = params.get(*key).map_or("", String::as_str);
        match stem {
            "dev" => return Err(Reply::forbidden("configuring device passthrough is only allowed for root@pam")),
            "hookscript" => return Err(Reply::forbidden("changing the hookscript is only allowed for root@pam")),
            "mp" if value.starts_with('/') => {
                return Err(Reply::forbidden("mount point type bind is only allowed for root@pam"));
            }
            "features" if !unprivileged => {
                return Err(Reply::forbidden("changing feature flags for privileged container is only allowed for root@pam"));
            }
            "features" if property_string("features", value).is_ok_and(|k| k.keys().any(|k| k != "nesting")) => {
                return Err(Reply::forbidden("changing feature flags (except nesting) is only allowed for root@pam"));
            }
            _ => {}
        }
        let privilege = match stem {
            "cores" | "cpulimit" | "cpuunits" => "VM.Config.CPU",
            "memory" | "swap" => "VM.Config.Memory",
            "net" | "hostname" | "nameserver" | "searchdomain" => "VM.Config.Network",
            "rootfs" | "mp" => "VM.Config.Disk",
            "vmid" | "node" | "ostemplate" | "storage" | "delete" | "digest" | "unprivileged" | "start" | "pool" | "bwlimit" => continue,
            _ => "VM.Config.Options",
        };
        inner.access.need(&context.caller, &guest, privilege)?;
        if stem == "net"
            && context.host().version >= Version::V8_0
            && let Some(bridge) = property_string(key, value).ok().and_then(|k| k.get("bridge").cloned())
        {
            inner.access.need(&context.caller, &format!("/sdn/zones/localnetwork/{bridge}"), "SDN.Use")?;
        }
    }
    Ok(())
}

/// Devices and the hookscript must be there when they are configured.
fn exist(context: &Context, params: &Params) -> Result<(), Reply> {
    for (key, value) in params {
        if key.starts_with("dev")
            && let Some(path) = property_string(key, value).ok().and_then(|k| k.get("path").cloned())
        {
            use std::os::unix::fs::FileTypeExt as _;
            let missing = || Reply::died(&format!("Device {path} does not exist"));
            if !context.core.inner.lock().unwrap().has_device(&context.host, &path) {
                return Err(missing());
            }
            let kind = std::fs::metadata(&path).map_err(|_| missing())?.file_type();
            if !kind.is_char_device() && !kind.is_block_device() {
                return Err(Reply::died(&format!("{path} is not a device")));
            }
        }
        if key == "hookscript" {
            lifecycle::hookscript(context, value).map_err(|why| Reply::died(&why))?;
        }
    }
    Ok(())
}

/// `POST lxc`.
pub fn create(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let core = &context.core;
    let id = id_of(params);
    let version = context.host().version;
    let (mut config, archive) = {
        let inner = core.inner.lock().unwrap();
        if let Some(taken) = inner.taken(id) {
            return Err(Reply::died(&taken));
        }
        if !inner.access.has(&context.caller, &format!("/vms/{id}"), "VM.Allocate") {
            return Err(Reply::forbidden(""));
        }
        let unprivileged = params.get("unprivileged").map_or(version >= Version::V9_0, |u| u == "1");
        if !unprivileged && version >= Version::V9_0 {
            inner.access.need(&context.caller, "/", "Sys.Modify")?;
        }
        let keys: Vec<_> = params.keys().map(String::as_str).collect();
        may_set(context, &inner, params, &keys, unprivileged)?;
        let rootfs = storage::new_volume(context, &inner, id, params)?;
        let archive = storage::template(context, &inner, &params["ostemplate"])?;
        let mut config = Config::default();
        config.apply(params, false);
        for (key, value) in [("memory", "512"), ("swap", "512"), ("arch", "amd64"), ("ostype", "unmanaged")] {
            if config.get(key).is_none() {
                config.set(key, value);
            }
        }
        config.set("rootfs", &rootfs);
        config.delete("unprivileged", false);
        if unprivileged {
            config.set("unprivileged", "1");
        }
        (config, archive)
    };
    exist(context, params)?;
    {
        let mut inner = core.inner.lock().unwrap();
        if let Some(taken) = inner.taken(id) {
            return Err(Reply::died(&format!("unable to create CT {id} - {taken}")));
        }
        inner.guests.insert(id, Config::creating());
        inner.places.insert(id, context.host.clone());
        pmxcfs::save(core, &mut inner, id);
    }
    let (shared, caller, host) = (core.clone(), context.caller.clone(), context.host.clone());
    let (template, arch, start) =
        (params["ostemplate"].clone(), params.contains_key("arch"), params.get("start").is_some_and(|s| s == "1"));
    let upid = tasks::spawn(context, "vzcreate", &id.to_string(), move |log| {
        let made = unpack(&shared, (&host, id), &config, &archive, &template, log);
        let mut inner = shared.inner.lock().unwrap();
        if let Err(why) = made {
            inner.forget(id);
            pmxcfs::save(&shared, &mut inner, id);
            drop(inner);
            shared.options.backend.destroy(id);
            return Err(format!("unable to create CT {id} - {why}"));
        }
        config.lock = None;
        inner.guests.insert(id, config);
        pmxcfs::save(&shared, &mut inner, id);
        drop(inner);
        if !arch {
            log.line("Falling back to amd64.");
            log.line("Use `pct set VMID --arch ARCH` to change.");
        }
        if start {
            let context = Context { core: shared, caller, host, task_fault: None };
            lifecycle::start_task(&context, id);
        }
        Ok(())
    });
    Ok(Reply::data(json!(upid)))
}

fn unpack(
    core: &super::Core,
    (host, id): (&str, u32),
    config: &Config,
    archive: &std::path::Path,
    template: &str,
    log: &tasks::TaskLog,
) -> Result<(), String> {
    if !archive.is_file() {
        log.line(format!("volume '{template}' does not exist"));
        return Err(format!("volume '{template}' does not exist"));
    }
    let volume = config.get("rootfs").unwrap_or_default();
    let (storage, unpacked) = (volume.split(':').next().unwrap_or_default(), std::fs::metadata(archive).map_or(0, |m| m.len()) * 2);
    if !core.take_room(host, storage, unpacked) {
        log.line("tar: ./sbin/init: Cannot write: No space left on device");
        log.line("tar: Exiting with failure status due to previous errors");
        let command = "lxc-usernsexec -m u:0:100000:65536 -m g:0:100000:65536 -- tar xpf - -z --totals";
        return Err(format!("command '{command}' failed: exit code 2"));
    }
    core.options.backend.create(id, config, archive, log)?;
    log.checkpoint()
}

/// `PUT config`.
pub fn set_config(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let core = &context.core;
    let id = id_of(params);
    let deleted: Vec<&str> = params.get("delete").map(|d| d.split([',', ';', ' ']).collect()).unwrap_or_default();
    {
        let inner = core.inner.lock().unwrap();
        let unprivileged = guest(context, &inner, id)?.is_set("unprivileged");
        let keys: Vec<_> = params.keys().map(String::as_str).chain(deleted.iter().copied()).collect();
        may_set(context, &inner, params, &keys, unprivileged)?;
    }
    exist(context, params)?;
    if !params.keys().any(|k| !matches!(k.as_str(), "vmid" | "node" | "digest")) {
        return Err(Reply::died("no options specified"));
    }
    let changed = core.locked(id, || {
        let running = core.options.backend.pid(id).is_some();
        let mut inner = core.inner.lock().unwrap();
        pmxcfs::refresh(core, &mut inner);
        if inner.guest_on(&context.host, id).is_none() {
            return Err(Reply::died(&no_config(context, id)));
        }
        let config = inner.guests.get_mut(&id).ok_or_else(|| Reply::died(&no_config(context, id)))?;
        if let Some(lock) = &config.lock
            && !deleted.contains(&"lock")
        {
            return Err(Reply::died(&format!("CT is locked ({lock})")));
        }
        if params.get("digest").is_some_and(|d| *d != config.digest()) {
            return Err(Reply::died("detected modified configuration - file changed by other user? Try again."));
        }
        for (key, value) in params.iter().filter(|(k, _)| running && k.starts_with("net")) {
            if let Some(why) = property_string(key, value).ok().and_then(|keys| lifecycle::missing_bridge(context.host(), &keys)) {
                return Err(Reply::parameter(key, &format!("unable to hotplug {key}: {why}\n")));
            }
        }
        deleted.iter().for_each(|key| config.delete(key, running));
        // From 9.0 on a new device is plugged into a running container; a changed one waits for the next start.
        let mut params = params.clone();
        if running && context.host().version >= Version::V9_0 {
            let new = |key: &str| key.strip_prefix("dev").is_some_and(|n| n.parse::<u8>().is_ok()) && config.get(key).is_none();
            let plugged: Vec<_> = params.iter().filter(|(k, _)| new(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
            for (key, value) in plugged {
                let device = property_string(&key, &value).unwrap_or_default();
                let done = core.options.backend.plug(id, &device);
                done.map_err(|why| Reply::parameter(&key, &format!("unable to hotplug {key}: {why}\n")))?;
                config.set(&key, &value);
                params.remove(&key);
            }
        }
        config.apply(&params, running);
        pmxcfs::save(core, &mut inner, id);
        Ok(())
    });
    changed.map_err(|why| Reply::died(&why))??;
    Ok(Reply::data(Value::Null))
}
