//! A container's configuration: the values, what is pending, the file it is kept in, its digest.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::schema::{Params, property_string};

/// Parameters of create and set that are not configuration.
const ACTIONS: [&str; 15] = [
    "vmid",
    "node",
    "ostemplate",
    "storage",
    "start",
    "delete",
    "digest",
    "revert",
    "force",
    "restore",
    "unique",
    "pool",
    "password",
    "ssh-public-keys",
    "ignore-unpack-errors",
];
/// Configuration that the API gives as a number.
const NUMBERS: [&str; 12] =
    ["memory", "swap", "cores", "cpuunits", "unprivileged", "onboot", "console", "tty", "protection", "template", "debug", "cpulimit"];
/// Configuration that changes a running container at once; the rest waits for the next start.
const LIVE: [&str; 10] = ["description", "onboot", "startup", "protection", "hostname", "hookscript", "cores", "tags", "memory", "swap"];

/// A container's configuration.
#[derive(Debug, Clone, Default)]
pub struct Config {
    values: Params,
    pending: BTreeMap<String, Option<String>>,
    /// `create`, `backup`, ...
    pub lock: Option<String>,
}

impl Config {
    /// A container that is being created: nothing but the lock.
    pub fn creating() -> Self {
        Self { lock: Some("create".to_owned()), ..Self::default() }
    }

    /// A value in force.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// The keys of a family (`net`, `dev`), with their property strings read.
    pub fn family(&self, stem: &str) -> Vec<(u32, Params)> {
        let of = |key: &str| key.strip_prefix(stem).and_then(|n| n.parse().ok());
        self.values.iter().filter_map(|(k, v)| Some((of(k)?, property_string(k, v).ok()?))).collect()
    }

    /// A switch; off unless set.
    pub fn is_set(&self, key: &str) -> bool {
        self.get(key) == Some("1")
    }

    /// Sets a value now.
    pub fn set(&mut self, key: &str, value: &str) {
        let value = match key {
            "tags" => tags(value),
            key if key.starts_with("net") && key != "nameserver" => interface(value),
            _ => value.to_owned(),
        };
        self.values.insert(key.to_owned(), value);
    }

    /// Takes over parameters of a call, now or at the next start of a running container.
    pub fn apply(&mut self, params: &Params, running: bool) {
        for (key, value) in params.iter().filter(|(k, _)| !ACTIONS.contains(&k.as_str()) && *k != "bwlimit") {
            match key.as_str() {
                "lock" => self.lock = Some(value.clone()),
                key if running && !LIVE.contains(&key) => {
                    self.pending.insert(key.to_owned(), Some(value.clone()));
                }
                key => self.set(key, value),
            }
        }
    }

    /// Removes a key, now or at the next start.
    pub fn delete(&mut self, key: &str, running: bool) {
        if key == "lock" {
            self.lock = None;
        } else if running && !LIVE.contains(&key) {
            self.pending.insert(key.to_owned(), None);
        } else {
            self.values.remove(key);
        }
    }

    /// Brings what is pending into force.
    pub fn settle(&mut self) {
        for (key, value) in std::mem::take(&mut self.pending) {
            match value {
                Some(value) => self.set(&key, &value),
                None => drop(self.values.remove(&key)),
            }
        }
    }

    /// The file in /etc/pve.
    pub fn file(&self) -> String {
        let mut text = String::new();
        let values = self.values.iter().filter(|(k, _)| *k != "env").map(|(k, v)| (k.as_str(), v.as_str()));
        for (key, value) in values.chain(self.lock.as_deref().map(|l| ("lock", l))) {
            let _ = writeln!(text, "{key}: {}", value.replace('\n', "%0A"));
        }
        for pair in self.environment() {
            let _ = writeln!(text, "lxc.environment.runtime: {pair}");
        }
        if !self.pending.is_empty() {
            text += "\n[pve:pending]\n";
        }
        for (key, value) in &self.pending {
            let _ = match value {
                Some(value) => writeln!(text, "{key}: {}", value.replace('\0', " ")),
                None => writeln!(text, "delete: {key}"),
            };
        }
        text
    }

    /// The variables given to the first process.
    pub fn environment(&self) -> Vec<&str> {
        self.get("env").map(|e| e.split('\0').collect()).unwrap_or_default()
    }

    /// What guards against lost updates.
    pub fn digest(&self) -> String {
        Sha256::digest(self.file()).iter().take(20).map(|b| format!("{b:02x}")).collect()
    }

    /// `GET config`: what is pending appears as if in force unless `current`.
    pub fn show(&self, current: bool, with_env: bool) -> Value {
        let mut shown = self.clone();
        if !current {
            shown.settle();
        }
        let mut object = json!({ "digest": self.digest() });
        for (key, value) in shown.values.iter().filter(|(k, _)| with_env || *k != "env") {
            let number = NUMBERS.contains(&key.as_str()).then(|| value.parse::<u64>().ok()).flatten();
            object[key] = number.map_or_else(|| json!(value), |n| json!(n));
        }
        if let Some(lock) = &self.lock {
            object["lock"] = json!(lock);
        }
        object
    }

    /// `GET pending`.
    pub fn show_pending(&self) -> Value {
        let mut rows: BTreeMap<&str, Value> = self.values.iter().map(|(k, v)| (k.as_str(), json!({ "key": k, "value": v }))).collect();
        for (key, change) in &self.pending {
            let row = rows.entry(key).or_insert_with(|| json!({ "key": key }));
            match change {
                Some(value) => row["pending"] = json!(value),
                None => row["delete"] = json!(1),
            }
        }
        rows.into_values().collect()
    }
}

/// Tags are lower-cased, sorted and listed once.
fn tags(text: &str) -> String {
    let mut tags: Vec<_> = text.split([';', ',', ' ']).filter(|t| !t.is_empty()).map(str::to_lowercase).collect();
    tags.sort();
    tags.dedup();
    tags.join(";")
}

/// A `net[n]` as PVE stores it: with a hardware address and a type, the name first.
fn interface(text: &str) -> String {
    let Ok(mut keys) = property_string("net0", text) else { return text.to_owned() };
    let mut random = [0; 3];
    getrandom::fill(&mut random).expect("the system has randomness");
    let [a, b, c] = random;
    keys.entry("hwaddr".to_owned()).or_insert_with(|| format!("BC:24:11:{a:02X}:{b:02X}:{c:02X}"));
    keys.entry("type".to_owned()).or_insert_with(|| "veth".to_owned());
    let name = keys.remove("name").unwrap_or_default();
    let rest: String = keys.iter().map(|(k, v)| format!(",{k}={v}")).collect();
    format!("name={name}{rest}")
}
