//! High availability: resources, rules (9.0 and later) or groups (before), and what the manager does with the guests under it: a start, stop
//! or move is only requested, and happens a moment later in a task of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::backend::Stop;
use super::http::Reply;
use super::lifecycle::{under_lock, vm_start, vm_stop};
use super::schema::Params;
use super::tasks::{spawn, spawn_on};
use super::{Context, Inner, Inside, Version, access::Caller, migrate, pmxcfs};

/// What is configured.
#[derive(Debug, Default)]
pub struct Ha {
    resources: BTreeMap<String, Params>,
    rules: BTreeMap<String, Params>,
    groups: BTreeMap<String, Params>,
}

fn sid(kind: &str, id: u32) -> String {
    format!("{}:{id}", if kind == "lxc" { "ct" } else { "vm" })
}

impl Ha {
    /// The state asked for a guest that is under management.
    pub fn state_of(&self, kind: &str, id: u32) -> Option<&str> {
        self.resources.get(&sid(kind, id)).map(|r| r.get("state").map_or("started", String::as_str))
    }

    /// As a guest's status shows it.
    pub fn of_guest(&self, kind: &str, id: u32) -> Value {
        match self.state_of(kind, id) {
            Some(state) => json!({ "managed": 1, "state": state }),
            None => json!({ "managed": 0 }),
        }
    }

    /// Takes a guest out, and out of the rules.
    pub fn remove(&mut self, kind: &str, id: u32) {
        self.drop_resource(&sid(kind, id), true);
    }

    fn drop_resource(&mut self, sid: &str, purge: bool) -> bool {
        let there = self.resources.remove(sid).is_some();
        if purge {
            for rule in self.rules.values_mut() {
                let rest: Vec<&str> = rule.get("resources").map_or(Vec::new(), |r| r.split(',').filter(|s| *s != sid).collect());
                let rest = rest.join(",");
                rule.insert("resources".to_owned(), rest);
            }
            self.rules.retain(|_, rule| rule.get("resources").is_some_and(|r| !r.is_empty()));
        }
        there
    }

    /// The resources that a rule keeps away from this one's host.
    fn foes(&self, sid: &str) -> Vec<String> {
        let apart = self.rules.values().filter(|r| r.get("affinity").is_some_and(|a| a == "negative"));
        let named = apart.map(|r| r.get("resources").map_or(Vec::new(), |r| r.split(',').map(str::to_owned).collect::<Vec<_>>()));
        named.filter(|all| all.iter().any(|s| s == sid)).flatten().filter(|s| s != sid).collect()
    }
}

fn managed(context: &Context, id: u32) -> bool {
    context.core.inner.lock().unwrap().ha.state_of("lxc", id).is_some()
}

/// Asks the manager for a guest's start or stop; nothing if the guest is not under it.
pub fn request(context: &Context, id: u32, task: &str, state: &str) -> Option<String> {
    if !managed(context, id) {
        return None;
    }
    let (core, host, caller, state) = (context.core.clone(), context.host.clone(), context.caller.clone(), state.to_owned());
    Some(spawn(context, task, &id.to_string(), move |log| {
        log.checkpoint()?;
        log.line(format!("Requesting HA {} for CT {id}", if state == "started" { "start" } else { "stop" }));
        if let Some(resource) = core.inner.lock().unwrap().ha.resources.get_mut(&sid("lxc", id)) {
            resource.insert("state".to_owned(), state.clone());
        }
        // The resource manager of the host does it, in a task that nobody was told of.
        let context = Context { core: core.clone(), caller, host: host.clone(), task_fault: None };
        let kind = if state == "started" { "vzstart" } else { "vzstop" };
        spawn(&context, kind, &id.to_string(), move |log| {
            under_lock(&core, id, || match state.as_str() {
                "started" => vm_start(&core, &host, id, log),
                _ => vm_stop(&core, &host, id, Stop::Halt(Duration::from_secs(60)), log),
            })
        });
        Ok(())
    }))
}

/// Asks the manager for a guest's move; nothing if the guest is not under it.
pub fn request_move(context: &Context, id: u32, target: &str) -> Option<String> {
    if !managed(context, id) {
        return None;
    }
    let (core, from, caller, target) = (context.core.clone(), context.host.clone(), context.caller.clone(), target.to_owned());
    Some(spawn(context, "hamigrate", &id.to_string(), move |log| {
        log.checkpoint()?;
        log.line(format!("Requesting HA migration for CT {id} to node {target}"));
        let context = Context { core: core.clone(), caller, host: from.clone(), task_fault: None };
        spawn(&context, "vzmigrate", &id.to_string(), move |log| {
            under_lock(&core, id, || migrate::relocate(&core, id, (&from, &target), (true, Duration::from_secs(60)), log))
        });
        Ok(())
    }))
}

fn refused(name: &str, why: impl Into<String>) -> Reply {
    Reply::parameter(name, &why.into())
}

/// `ct:101`, also where only the number was given.
fn full_sid(inner: &Inner, given: &str) -> String {
    match given.parse::<u32>() {
        Ok(id) => sid(if inner.machines.contains_key(&id) { "qemu" } else { "lxc" }, id),
        Err(_) => given.to_owned(),
    }
}

/// Answers `/cluster/ha/...`.
///
/// # Errors
/// What the API refuses.
pub fn answer(context: &Context, method: &str, path: &str, params: &Params) -> Result<Reply, Reply> {
    let (version, caller) = (context.core.entry().version, context.caller.clone());
    let mut inner = context.core.inner.lock().unwrap();
    let of = |name: &str| params.get(name).cloned().unwrap_or_default();
    match (method, path) {
        ("GET", "/cluster/ha/resources") => Ok(rows(&inner.ha.resources, "sid")),
        ("POST", "/cluster/ha/resources") => add_resource(&mut inner, params, version),
        (_, "/cluster/ha/resources/{sid}") => one_resource(&mut inner, method, params, version),
        ("POST", "/cluster/ha/resources/{sid}/migrate" | "/cluster/ha/resources/{sid}/relocate") => {
            let sid = full_sid(&inner, &of("sid"));
            let id = sid.split(':').nth(1).and_then(|id| id.parse().ok()).unwrap_or(0);
            let here = inner.place_of(id).unwrap_or_default().to_owned();
            drop(inner);
            let context = Context { core: context.core.clone(), caller, host: here, task_fault: None };
            request_move(&context, id, &of("node")).ok_or_else(|| Reply::died(&format!("no such resource '{sid}'")))?;
            Ok(Reply::data(json!({ "sid": sid, "requested-node": of("node") })))
        }
        (_, p) if p.starts_with("/cluster/ha/groups") => groups(&mut inner, method, p, params, version),
        (_, p) if p.starts_with("/cluster/ha/rules") => rules(&mut inner, method, p, params),
        ("GET", "/cluster/ha/status/current") => Ok(status(context, &inner)),
        _ => Err(Reply::error(501, &format!("Method '{method} {path}' is not played by the stand-in"))),
    }
}

fn rows(of: &BTreeMap<String, Params>, key: &str) -> Reply {
    let rows = of.iter().map(|(name, values)| {
        let mut row = json!(values);
        row[key] = json!(name);
        row["digest"] = json!("da39a3ee5e6b4b0d3255bfef95601890afd80709");
        row
    });
    Reply::data(rows.collect())
}

fn kept(params: &Params, without: &[&str]) -> Params {
    params.iter().filter(|(k, _)| !without.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn check_group(inner: &Inner, params: &Params, version: Version) -> Result<(), Reply> {
    let Some(group) = params.get("group") else { return Ok(()) };
    if version >= Version::V9_0 {
        return Err(Reply::died("invalid parameter 'group': ha groups have been migrated to rules"));
    }
    inner.ha.groups.contains_key(group).then_some(()).ok_or_else(|| Reply::died(&format!("HA group '{group}' does not exist")))
}

fn add_resource(inner: &mut Inner, params: &Params, version: Version) -> Result<Reply, Reply> {
    let name = full_sid(inner, &params["sid"]);
    if inner.ha.resources.contains_key(&name) {
        return Err(Reply::died(&format!("resource ID '{name}' already defined")));
    }
    let id = name.split(':').nth(1).and_then(|id| id.parse::<u32>().ok()).unwrap_or(0);
    let there = if name.starts_with("ct:") { inner.guests.contains_key(&id) } else { inner.machines.contains_key(&id) };
    if !there {
        return Err(Reply::died(&format!("resource '{name}' does not exists in cluster")));
    }
    check_group(inner, params, version)?;
    let mut values = kept(params, &["sid"]);
    values.insert("type".to_owned(), name.split(':').next().unwrap_or_default().to_owned());
    values.entry("state".to_owned()).or_insert_with(|| "started".to_owned());
    inner.ha.resources.insert(name, values);
    Ok(Reply::data(Value::Null))
}

fn one_resource(inner: &mut Inner, method: &str, params: &Params, version: Version) -> Result<Reply, Reply> {
    let name = full_sid(inner, &params["sid"]);
    check_group(inner, params, version)?;
    let Some(resource) = inner.ha.resources.get_mut(&name) else {
        return Err(Reply::died(&format!("no such resource '{name}'")));
    };
    match method {
        "GET" => {
            let mut row = json!(resource);
            row["sid"] = json!(name);
            return Ok(Reply::data(row));
        }
        "PUT" => {
            for gone in params.get("delete").map(String::as_str).unwrap_or_default().split(',') {
                resource.remove(gone);
            }
            resource.extend(kept(params, &["sid", "delete", "digest"]));
        }
        _ => drop(inner.ha.drop_resource(&name, params.get("purge").is_none_or(|p| p == "1"))),
    }
    Ok(Reply::data(Value::Null))
}

fn groups(inner: &mut Inner, method: &str, path: &str, params: &Params, version: Version) -> Result<Reply, Reply> {
    if version >= Version::V9_0 {
        let verb = match method {
            "GET" => "index groups",
            "POST" => "create group",
            "PUT" => "update group",
            _ => "delete group",
        };
        return Err(Reply::died(&format!("cannot {verb}: ha groups have been migrated to rules")));
    }
    if method == "GET" && path.ends_with("groups") {
        return Ok(rows(&inner.ha.groups, "group"));
    }
    named(&mut inner.ha.groups, method, "group", params, "ha group")
}

fn rules(inner: &mut Inner, method: &str, path: &str, params: &Params) -> Result<Reply, Reply> {
    if method == "GET" && path.ends_with("rules") {
        return Ok(rows(&inner.ha.rules, "rule"));
    }
    let mut params = params.clone();
    if method != "GET"
        && let Some(resources) = params.get("resources").cloned()
    {
        let all: Vec<String> = resources.split([',', ';', ' ']).filter(|s| !s.is_empty()).map(|s| full_sid(inner, s)).collect();
        let strange: Vec<_> = all.iter().filter(|s| !inner.ha.resources.contains_key(*s)).cloned().collect();
        if !strange.is_empty() {
            return Err(refused("resources", format!("cannot use unmanaged resource(s) {}.", strange.join(", "))));
        }
        if params.get("type").is_some_and(|t| t == "resource-affinity") && all.len() < 2 {
            return Err(refused("resources", "rule is ineffective as there are less than two resources"));
        }
        params.insert("resources".to_owned(), all.join(","));
    }
    named(&mut inner.ha.rules, method, "rule", &params, "HA rule")
}

/// One named entry: shown, made, changed or removed.
fn named(of: &mut BTreeMap<String, Params>, method: &str, key: &str, params: &Params, what: &str) -> Result<Reply, Reply> {
    let name = params[key].clone();
    let missing = || Reply::died(&format!("no such {what} '{name}'"));
    match method {
        "GET" => {
            let mut row = json!(of.get(&name).ok_or_else(missing)?);
            row[key] = json!(name);
            return Ok(Reply::data(row));
        }
        "POST" if of.contains_key(&name) => return Err(Reply::died(&format!("{what} '{name}' already defined"))),
        "POST" => drop(of.insert(name, kept(params, &[key]))),
        "PUT" => of.get_mut(&name).ok_or_else(missing)?.extend(kept(params, &[key, "delete", "digest"])),
        _ => drop(of.remove(&name).ok_or_else(missing)?),
    }
    Ok(Reply::data(Value::Null))
}

fn status(context: &Context, inner: &Inner) -> Reply {
    let core = &context.core;
    let mut rows = vec![json!({ "id": "quorum", "type": "quorum", "node": core.entry().name, "quorate": u8::from(inner.is_quorate()),
                                "status": if inner.is_quorate() { "OK" } else { "No quorum" } })];
    for (sid, resource) in &inner.ha.resources {
        let id = sid.split(':').nth(1).and_then(|id| id.parse().ok()).unwrap_or(0);
        let node = inner.place_of(id).unwrap_or_default();
        let state = resource.get("state").map_or("started", String::as_str);
        rows.push(
            json!({ "id": format!("service:{sid}"), "type": "service", "sid": sid, "node": node, "state": state, "request_state": state,
                          "crm_state": state, "status": format!("{sid} ({node}, {state})") }),
        );
    }
    Reply::data(json!(rows))
}

impl Inside {
    /// What the manager does once it has given up on hosts that are down: the guests under it go to hosts that are up, apart from
    /// those that a rule keeps away, and are started there. Gives the guests moved.
    pub fn fail_over(&self) -> Vec<u32> {
        let core = &self.core;
        let mut moved = Vec::new();
        let stranded: Vec<u32> = {
            let inner = core.inner.lock().unwrap();
            let lost = |id: &&u32| inner.place_of(**id).is_some_and(|host| !inner.is_up(host));
            inner.guests.keys().filter(lost).filter(|id| inner.ha.state_of("lxc", **id) == Some("started")).copied().collect()
        };
        for id in stranded {
            let mut inner = core.inner.lock().unwrap();
            let foes = inner.ha.foes(&sid("lxc", id));
            let foes: Vec<u32> = foes.iter().filter_map(|s| s.split(':').nth(1)?.parse().ok()).collect();
            let taken: Vec<&str> = foes.iter().filter_map(|foe| inner.place_of(*foe)).collect();
            let free = core.hosts.iter().find(|host| inner.is_up(&host.name) && !taken.contains(&host.name.as_str()));
            let Some(target) = free.map(|host| host.name.clone()) else { continue };
            inner.places.insert(id, target.clone());
            pmxcfs::save(core, &mut inner, id);
            drop(inner);
            // Its old host is fenced before: nothing of it runs there any more.
            core.options.backend.stop(id, Stop::Kill);
            let context = Context { core: core.clone(), caller: Caller("root@pam".to_owned()), host: target.clone(), task_fault: None };
            let shared = core.clone();
            spawn_on(&context, &target.clone(), "vzstart", &id.to_string(), move |log| {
                under_lock(&shared, id, || vm_start(&shared, &target, id, log))
            });
            moved.push(id);
        }
        moved
    }
}
