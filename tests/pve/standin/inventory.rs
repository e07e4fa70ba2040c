//! What the host and the cluster say of themselves.

use serde_json::{Value, json};

use super::guests::vmstatus;
use super::http::Reply;
use super::schema::Params;
use super::{Context, Inner, Version, cluster::Host, storage};

fn release(version: Version) -> String {
    format!("{}.{}", version.0, version.1)
}

pub fn version(context: &Context) -> Reply {
    let release = release(context.host().version);
    Reply::data(json!({ "release": release, "version": format!("{release}.9"), "repoid": "ee7bad0a3d1546c9" }))
}

fn node_row(inner: &Inner, host: &Host) -> Value {
    let node = &host.name;
    let mut row = json!({ "node": node, "id": format!("node/{node}"), "type": "node", "status": "offline", "level": "" });
    if inner.is_up(node) {
        let load = json!({ "status": "online", "uptime": 86_400, "maxcpu": 2, "cpu": 0.01, "maxmem": 8_u64 << 30, "mem": 1_u64 << 30,
                           "maxdisk": 64_u64 << 30, "disk": 4_u64 << 30 });
        row.as_object_mut().expect("an object").extend(load.as_object().expect("an object").clone());
    }
    row
}

pub fn nodes(context: &Context) -> Reply {
    let core = &context.core;
    let inner = core.inner.lock().unwrap();
    let rows = core.hosts.iter().map(|host| {
        let mut row = node_row(&inner, host);
        row["ssl_fingerprint"] = json!(core.fingerprint);
        row
    });
    Reply::data(rows.collect())
}

pub fn node_status(context: &Context) -> Reply {
    let release = release(context.host().version);
    Reply::data(json!({
        "pveversion": format!("pve-manager/{release}.9/ee7bad0a3d1546c9"), "uptime": 86_400, "loadavg": ["0.10", "0.08", "0.05"],
        "cpuinfo": { "cpus": 2, "model": "stand-in" }, "memory": { "total": 8_u64 << 30, "used": 1_u64 << 30, "free": 7_u64 << 30 },
        "rootfs": { "total": 64_u64 << 30, "used": 4_u64 << 30, "avail": 60_u64 << 30 }, "wait": 0, "idle": 0,
        "current-kernel": { "sysname": "Linux", "machine": "x86_64", "release": "6.17.2-1-pve" },
    }))
}

/// `GET time`.
pub fn time(context: &Context) -> Reply {
    let now = context.core.inner.lock().unwrap().clock_of(&context.host);
    Reply::data(json!({ "time": now, "localtime": now, "timezone": "UTC" }))
}

pub fn network(context: &Context, params: &Params) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    let wanted = params.get("type").is_none_or(|t| matches!(t.as_str(), "bridge" | "any_bridge" | "any_local_bridge" | "include_sdn"));
    let host = context.host();
    let may = |name: &str| {
        host.version < Version::V8_0 || inner.access.has(&context.caller, &format!("/sdn/zones/localnetwork/{name}"), "SDN.Audit|SDN.Use")
    };
    let seen = host.bridges.iter().filter(|(name, _)| wanted && may(name));
    let rows = seen.map(|(name, cidr)| {
        let (address, bits) = cidr.split_once('/').unwrap_or((cidr, "24"));
        json!({ "iface": name, "type": "bridge", "active": 1, "autostart": 1, "method": "static", "method6": "manual", "families": ["inet"],
                "cidr": cidr, "address": address, "netmask": bits, "bridge_ports": "", "bridge_fd": "0", "bridge_stp": "off", "priority": 4 })
    });
    Reply::data(rows.collect())
}

pub fn certificates(context: &Context) -> Reply {
    let (shown, authority) = (&context.core.certificates, context.core.certificates.authority());
    Reply::data(json!([
        { "filename": "pve-root-ca.pem", "fingerprint": authority.fingerprint, "pem": authority.pem, "san": [] },
        { "filename": "pve-ssl.pem", "fingerprint": shown.fingerprint(), "pem": shown.pem(), "san": ["127.0.0.1", "localhost"] },
    ]))
}

pub fn next_id(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let inner = context.core.inner.lock().unwrap();
    if let Some(id) = params.get("vmid").and_then(|v| v.parse::<u32>().ok()) {
        if inner.taken(id).is_some() {
            return Err(Reply::parameter("vmid", &format!("VM {id} already exists")));
        }
        return Ok(Reply::data(json!(id.to_string())));
    }
    let free = (100..1_000_000).find(|id| inner.taken(*id).is_none()).unwrap_or_default();
    Ok(Reply::data(json!(free.to_string())))
}

/// An address of a host.
fn address(host: &Host) -> &str {
    host.bridges.first().map_or("127.0.0.1", |(_, cidr)| cidr.split('/').next().unwrap_or_default())
}

pub fn cluster_status(context: &Context) -> Reply {
    let core = &context.core;
    let inner = core.inner.lock().unwrap();
    let mut rows = Vec::new();
    // A host that stands alone shows no cluster.
    if core.hosts.len() > 1 {
        let (count, quorate) = (core.hosts.len(), u8::from(inner.is_quorate()));
        rows.push(json!({ "type": "cluster", "id": "cluster", "name": "home", "nodes": count, "quorate": quorate, "version": count }));
    }
    rows.extend(core.hosts.iter().enumerate().map(|(at, host)| {
        let (node, number) = (&host.name, if core.hosts.len() > 1 { at + 1 } else { 0 });
        json!({ "type": "node", "id": format!("node/{node}"), "name": node, "online": u8::from(inner.is_up(node)), "local": u8::from(at == 0),
                "nodeid": number, "level": "", "ip": address(host) })
    }));
    Reply::data(json!(rows))
}

/// `GET cluster/config/join`: with the fingerprints of all hosts.
pub fn join(context: &Context) -> Reply {
    let core = &context.core;
    let rows = core.hosts.iter().enumerate().map(|(at, host)| {
        json!({ "name": host.name, "nodeid": (at + 1).to_string(), "pve_addr": address(host), "pve_fp": core.fingerprint,
                "quorum_votes": "1", "ring0_addr": address(host) })
    });
    Reply::data(json!({ "config_digest": "0", "nodelist": rows.collect::<Value>(), "preferred_node": core.entry().name,
                        "totem": { "cluster_name": "home", "version": "2" } }))
}

/// `GET cluster/config/nodes`.
pub fn members(context: &Context) -> Reply {
    Reply::data(context.core.hosts.iter().map(|host| json!({ "node": host.name })).collect())
}

/// A guest as the cluster knows it: of one on a host that is down, little.
fn guest_row(inner: &Inner, id: u32, kind: &str, mut status: Value) -> Value {
    let host = inner.place_of(id).unwrap_or_default();
    if !inner.is_up(host) {
        let known: serde_json::Map<_, _> = status
            .as_object()
            .expect("an object")
            .iter()
            .filter(|(k, _)| matches!(k.as_str(), "vmid" | "type" | "tags" | "lock" | "template"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        status = Value::Object(known);
        status["status"] = json!("unknown");
    }
    status["id"] = json!(format!("{kind}/{id}"));
    status["node"] = json!(host);
    if let Some(state) = inner.ha.state_of(kind, id) {
        status["hastate"] = json!(state);
    }
    status
}

pub fn resources(context: &Context, params: &Params) -> Reply {
    let core = &context.core;
    let wanted = |kind: &str| params.get("type").is_none_or(|t| t == kind);
    let mut rows: Vec<Value> = Vec::new();
    let inner = core.inner.lock().unwrap();
    let audits = |id: u32| inner.access.has(&context.caller, &format!("/vms/{id}"), "VM.Audit");
    if wanted("vm") {
        let containers = inner.guests.iter().filter(|(id, _)| audits(**id));
        rows.extend(containers.map(|(id, config)| guest_row(&inner, *id, "lxc", vmstatus(context, &inner, *id, config))));
        let machines = inner.machines.iter().filter(|(id, _)| audits(**id));
        rows.extend(machines.map(|(id, machine)| guest_row(&inner, *id, "qemu", machine.status(*id))));
    }
    if wanted("node") {
        rows.extend(core.hosts.iter().map(|host| node_row(&inner, host)));
    }
    if wanted("storage") {
        for host in &core.hosts {
            let visible = host.storages.iter().filter(|s| storage::is_visible(context, &inner, &s.name));
            rows.extend(visible.map(|s| {
                let (node, shared) = (&host.name, u8::from(core.options.shared.contains(&s.name)));
                let status = if inner.is_up(node) { "available" } else { "unknown" };
                json!({ "id": format!("storage/{node}/{}", s.name), "type": "storage", "node": node, "storage": s.name, "plugintype": s.kind,
                        "content": s.content, "shared": shared, "status": status })
            }));
        }
    }
    Reply::data(json!(rows))
}
