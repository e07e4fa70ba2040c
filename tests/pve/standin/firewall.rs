//! The firewall's settings, of the cluster and of containers: kept and shown, not enforced.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::guests::{guest, id_of};
use super::http::Reply;
use super::schema::Params;
use super::{Context, pmxcfs};

/// What is configured.
#[derive(Debug, Default)]
pub struct Firewall {
    cluster: Params,
    guests: BTreeMap<u32, Guest>,
}

#[derive(Debug, Default)]
struct Guest {
    options: Params,
    sets: BTreeSet<String>,
}

impl Firewall {
    /// Goes with the guest.
    pub fn forget(&mut self, id: u32) {
        self.guests.remove(&id);
    }
}

/// Options as shown: switches are numbers.
fn shown(options: &Params) -> Value {
    let value = |text: &String| text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number));
    let mut object = json!({ "digest": "da39a3ee5e6b4b0d3255bfef95601890afd80709" });
    options.iter().for_each(|(key, text)| object[key] = value(text));
    object
}

fn change(options: &mut Params, params: &Params) {
    for key in params.get("delete").map(String::as_str).unwrap_or_default().split([',', ';', ' ']) {
        options.remove(key);
    }
    let named = params.iter().filter(|(key, _)| !matches!(key.as_str(), "node" | "vmid" | "delete" | "digest"));
    options.extend(named.map(|(key, value)| (key.clone(), value.clone())));
}

/// Answers `/cluster/firewall/...` and `/nodes/{node}/lxc/{vmid}/firewall/...`, the latter given without the node.
///
/// # Errors
/// What the API refuses.
pub fn answer(context: &Context, method: &str, tail: &str, params: &Params) -> Result<Reply, Reply> {
    let core = context.core.clone();
    let mut inner = core.inner.lock().unwrap();
    match (method, tail) {
        ("GET", "/cluster/firewall/options") => return Ok(Reply::data(shown(&inner.firewall.cluster))),
        ("PUT", "/cluster/firewall/options") => {
            change(&mut inner.firewall.cluster, params);
            return Ok(Reply::data(Value::Null));
        }
        _ => {}
    }
    let id = id_of(params);
    pmxcfs::refresh(&core, &mut inner);
    guest(context, &inner, id)?;
    let own = inner.firewall.guests.entry(id).or_default();
    let name = params.get("name").cloned().unwrap_or_default();
    match (method, tail.rsplit_once("/firewall/").map_or("", |(_, rest)| rest)) {
        ("GET", "options") => Ok(Reply::data(shown(&own.options))),
        ("PUT", "options") => {
            change(&mut own.options, params);
            Ok(Reply::data(Value::Null))
        }
        ("GET", "ipset") => Ok(Reply::data(own.sets.iter().map(|name| json!({ "name": name, "digest": "0" })).collect())),
        ("POST", "ipset") if !own.sets.insert(name.clone()) => Err(Reply::died(&format!("IPSet '{name}' already exists"))),
        ("POST", "ipset") => Ok(Reply::data(Value::Null)),
        ("DELETE", _) => {
            own.sets.remove(&name);
            Ok(Reply::data(Value::Null))
        }
        _ => Err(Reply::error(501, &format!("Method '{method} {tail}' is not played by the stand-in"))),
    }
}
