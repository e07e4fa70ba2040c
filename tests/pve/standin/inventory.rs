//! What the host and the cluster say of themselves.

use serde_json::{Value, json};

use super::guests::vmstatus;
use super::http::Reply;
use super::schema::Params;
use super::{Context, storage};

pub fn version(context: &Context) -> Reply {
    let v = context.core.options.version;
    let release = format!("{}.{}", v.0, v.1);
    Reply::data(json!({ "release": release, "version": format!("{release}.9"), "repoid": "ee7bad0a3d1546c9" }))
}

pub fn nodes(context: &Context) -> Reply {
    let node = &context.core.options.node;
    let row = json!({ "node": node, "id": format!("node/{node}"), "type": "node", "status": "online", "level": "",
                      "ssl_fingerprint": context.core.fingerprint, "uptime": 86_400, "maxcpu": 2, "cpu": 0.01,
                      "maxmem": 8_u64 << 30, "mem": 1_u64 << 30, "maxdisk": 64_u64 << 30, "disk": 4_u64 << 30 });
    Reply::data(json!([row]))
}

pub fn node_status(context: &Context) -> Reply {
    let v = context.core.options.version;
    Reply::data(json!({
        "pveversion": format!("pve-manager/{}.{}.9/ee7bad0a3d1546c9", v.0, v.1), "uptime": 86_400, "loadavg": ["0.10", "0.08", "0.05"],
        "cpuinfo": { "cpus": 2, "model": "stand-in" }, "memory": { "total": 8_u64 << 30, "used": 1_u64 << 30, "free": 7_u64 << 30 },
        "rootfs": { "total": 64_u64 << 30, "used": 4_u64 << 30, "avail": 60_u64 << 30 }, "wait": 0, "idle": 0,
        "current-kernel": { "sysname": "Linux", "machine": "x86_64", "release": "6.17.2-1-pve" },
    }))
}

pub fn network(context: &Context, params: &Params) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    let wanted = params.get("type").is_none_or(|t| matches!(t.as_str(), "bridge" | "any_bridge" | "any_local_bridge" | "include_sdn"));
    let seen =
        context.core.options.bridges.iter().filter(|(name, _)| {
            wanted && inner.access.has(&context.caller, &format!("/sdn/zones/localnetwork/{name}"), "SDN.Audit|SDN.Use")
        });
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
        if inner.guests.contains_key(&id) {
            return Err(Reply::parameter("vmid", &format!("VM {id} already exists")));
        }
        return Ok(Reply::data(json!(id.to_string())));
    }
    let free = (100..1_000_000).find(|id| !inner.guests.contains_key(id)).unwrap_or_default();
    Ok(Reply::data(json!(free.to_string())))
}

pub fn cluster_status(context: &Context) -> Reply {
    let node = &context.core.options.node;
    Reply::data(json!([{ "type": "node", "id": format!("node/{node}"), "name": node, "online": 1, "local": 1, "nodeid": 0, "level": "",
                         "ip": context.core.options.bridges.first().map_or("127.0.0.1", |(_, c)| c.split('/').next().unwrap_or_default()) }]))
}

pub fn resources(context: &Context, params: &Params) -> Reply {
    let node = &context.core.options.node;
    let wanted = |kind: &str| params.get("type").is_none_or(|t| t == kind);
    let mut rows: Vec<Value> = Vec::new();
    let inner = context.core.inner.lock().unwrap();
    if wanted("vm") {
        for (id, config) in inner.guests.iter().filter(|(id, _)| inner.access.has(&context.caller, &format!("/vms/{id}"), "VM.Audit")) {
            let mut row = vmstatus(context, &inner, *id, config);
            row["id"] = json!(format!("lxc/{id}"));
            row["node"] = json!(node);
            rows.push(row);
        }
    }
    if wanted("node") {
        rows.push(json!({ "id": format!("node/{node}"), "type": "node", "node": node, "status": "online" }));
    }
    if wanted("storage") {
        rows.extend(storage::visible(context, &inner).map(|s| {
            json!({ "id": format!("storage/{node}/{}", s.name), "type": "storage", "node": node, "storage": s.name, "plugintype": s.kind,
                    "content": s.content, "shared": 0, "status": "available" })
        }));
    }
    Reply::data(json!(rows))
}
