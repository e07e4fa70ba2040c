//! Clones: full ones, linked ones of templates, and onto another host where the storage is shared.

use std::path::PathBuf;

use serde_json::json;

use super::guest_config::Config;
use super::guests::{guest, id_of};
use super::http::Reply;
use super::schema::Params;
use super::{Context, Core, Inner, Version, pmxcfs, tasks};

/// The storage of a container's root.
pub fn storage_of(config: &Config) -> &str {
    config.get("rootfs").unwrap_or_default().split(':').next().unwrap_or_default()
}

/// A container whose root is a linked clone of this one's.
pub fn linked_to(inner: &Inner, base: u32) -> Option<u32> {
    let mark = format!("base-{base}-disk-0");
    let mut others = inner.guests.iter().filter(|(id, _)| **id != base);
    others.find(|(_, config)| config.get("rootfs").is_some_and(|r| r.contains(&mark))).map(|(id, _)| *id)
}

/// Where the clone goes, unless that cannot be.
fn target(context: &Context, source: &Config, params: &Params, full: bool) -> Result<String, Reply> {
    let core = &context.core;
    let wanted = params.get("target").map_or(context.host.as_str(), String::as_str);
    let host = core.host(wanted).ok_or_else(|| Reply::died(&format!("no such cluster node '{wanted}'")))?;
    let storage = match params.get("storage") {
        Some(_) if !full => return Err(Reply::died("parameter 'storage' not allowed for linked clones")),
        Some(name) => name.as_str(),
        None => storage_of(source),
    };
    if !host.storages.iter().any(|s| s.name == storage) {
        let known = core.hosts.iter().any(|h| h.storages.iter().any(|s| s.name == storage));
        let what = if known { format!("is not available on node '{wanted}'") } else { "does not exist".to_owned() };
        return Err(Reply::died(&format!("storage '{storage}' {what}")));
    }
    if wanted != context.host && !core.options.shared.iter().any(|s| s == storage) {
        return Err(Reply::died(&match params.get("storage") {
            Some(name) => format!("can't clone to non-shared storage '{name}'"),
            None => format!("can't clone VM to node '{wanted}' (VM uses local storage)"),
        }));
    }
    Ok(wanted.to_owned())
}

/// What a non-root caller needs besides VM.Clone: room, and the bridges of the copy.
fn may_clone(context: &Context, inner: &Inner, source: &Config, params: &Params) -> Result<(), Reply> {
    let need = |path: String, privilege: &str| inner.access.need(&context.caller, &path, privilege);
    need(format!("/vms/{}", params["newid"]), "VM.Allocate")?;
    let storage = params.get("storage").map_or_else(|| storage_of(source), String::as_str);
    need(format!("/storage/{storage}"), "Datastore.AllocateSpace")?;
    if context.host().version >= Version::V8_0 {
        for (_, keys) in source.family("net") {
            if let Some(bridge) = keys.get("bridge") {
                need(format!("/sdn/zones/localnetwork/{bridge}"), "SDN.Use")?;
            }
        }
    }
    Ok(())
}

/// The copy's configuration: every key of the original but the hardware addresses, root's own keys included.
fn copy(source: &Config, id: u32, new: u32, params: &Params, full: bool) -> Config {
    let mut config = source.clone();
    config.lock = None;
    config.delete("template", false);
    let names: Vec<String> = config.snapshots().map(|(name, _)| name.to_owned()).collect();
    names.iter().for_each(|name| {
        config.forget(name);
    });
    for (number, mut keys) in config.family("net") {
        keys.remove("hwaddr");
        let text: Vec<_> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
        config.set(&format!("net{number}"), &text.join(","));
    }
    for (param, key) in [("hostname", "hostname"), ("description", "description")] {
        if let Some(value) = params.get(param) {
            config.set(key, value);
        }
    }
    let volume = config.get("rootfs").unwrap_or_default().to_owned();
    let (old_storage, rest) = volume.split_once(':').unwrap_or(("", &volume));
    let storage = params.get("storage").map_or(old_storage, String::as_str);
    let size = rest.split_once(',').map_or("", |(_, size)| size);
    let name = match rest.split(',').next().unwrap_or_default() {
        base if !full => format!("{base}/vm-{new}-disk-0"),
        name => name.replace("base-", "vm-").replace(&id.to_string(), &new.to_string()),
    };
    config.set("rootfs", &format!("{storage}:{name},{size}"));
    config
}

/// `POST clone`.
///
/// # Errors
/// What the API refuses.
pub fn clone(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let core = &context.core;
    let (id, new) = (id_of(params), params.get("newid").and_then(|n| n.parse().ok()).unwrap_or(0));
    let running = core.options.backend.pid(id).is_some();
    let (config, host) = {
        let mut inner = core.inner.lock().unwrap();
        let source = guest(context, &inner, id)?.clone();
        may_clone(context, &inner, &source, params)?;
        if let Some(taken) = inner.taken(new) {
            return Err(Reply::died(&format!("unable to create CT {new}: {taken}")));
        }
        let full = params.get("full").map_or(!source.is_set("template"), |f| f == "1");
        if let Some(lock) = &source.lock {
            return Err(Reply::died(&format!("CT is locked ({lock})")));
        }
        if !full && !source.is_set("template") {
            return Err(Reply::died("Linked clone feature is not supported for drive 'rootfs'"));
        }
        if full && running && !params.contains_key("snapname") {
            return Err(Reply::died("Cannot do full clones on a running container without snapshots"));
        }
        let host = target(context, &source, params, full)?;
        inner.guests.insert(new, Config::creating());
        inner.places.insert(new, host.clone());
        pmxcfs::save(core, &mut inner, new);
        (copy(&source, id, new, params, full), host)
    };
    let (shared, storage) = (core.clone(), storage_of(&config).to_owned());
    let upid = tasks::spawn(context, "vzclone", &id.to_string(), move |log| {
        let made = log.checkpoint().and_then(|()| copy_files(&shared, (&host, &storage), id, new));
        let mut inner = shared.inner.lock().unwrap();
        match &made {
            Ok(()) => drop(inner.guests.insert(new, config)),
            Err(_) => inner.forget(new),
        }
        pmxcfs::save(&shared, &mut inner, new);
        made
    });
    Ok(Reply::data(json!(upid)))
}

fn copy_files(core: &Core, (host, storage): (&str, &str), id: u32, new: u32) -> Result<(), String> {
    // On paper a volume has no size; what is taken is what an image of ours unpacks to, about.
    if !core.take_room(host, storage, 8 << 20) {
        return Err("copy failed: rsync: [receiver] write failed on \"/sbin/init\": No space left on device (28)".to_owned());
    }
    let from: PathBuf = core.options.dir.join(format!("containers/{id}/rootfs"));
    if !from.is_dir() {
        return Ok(());
    }
    let to = core.options.dir.join(format!("containers/{new}"));
    std::fs::create_dir_all(&to).map_err(|e| e.to_string())?;
    let copied = std::process::Command::new("cp").arg("-a").arg(&from).arg(&to).status();
    copied.is_ok_and(|s| s.success()).then_some(()).ok_or_else(|| "copy of the volume failed".to_owned())
}
