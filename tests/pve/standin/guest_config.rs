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
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    values: Params,
    /// Lines of LXC itself (`lxc.mount.entry` ...), which no API call writes.
    raw: Vec<(String, String)>,
    pending: BTreeMap<String, Option<String>>,
    /// What the container was when each snapshot was made.
    snapshots: BTreeMap<String, (Params, Vec<(String, String)>)>,
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
            // Kept as comment lines, each with its line break.
            "description" if !value.is_empty() => format!("{}\n", value.trim_end_matches('\n')),
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
        let mut text = section(&self.values, &self.raw, self.lock.as_deref());
        if !self.pending.is_empty() {
            text += "\n[pve:pending]\n";
        }
        let gone: Vec<_> = self.pending.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key.as_str()).collect();
        if !gone.is_empty() {
            let _ = writeln!(text, "delete: {}", gone.join(","));
        }
        let set: Params = self.pending.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
        text += &section(&set, &[], None);
        for (name, (values, raw)) in &self.snapshots {
            let _ = write!(text, "\n[{name}]\n{}", section(values, raw, None));
        }
        text
    }

    /// Reads a file of /etc/pve.
    pub fn read(text: &str) -> Self {
        let mut config = Self::default();
        for (name, lines) in sections(text) {
            let (mut values, raw) = read_section(&lines);
            match name.as_str() {
                "" => {
                    config.lock = values.remove("lock");
                    (config.values, config.raw) = (values, raw);
                }
                "pve:pending" => {
                    let gone = values.remove("delete").unwrap_or_default();
                    config.pending.extend(gone.split(',').filter(|k| !k.is_empty()).map(|key| (key.to_owned(), None)));
                    config.pending.extend(values.into_iter().map(|(key, value)| (key, Some(value))));
                }
                _ => drop(config.snapshots.insert(name, (values, raw))),
            }
        }
        config
    }

    /// Lines of LXC itself.
    pub fn raw(&self) -> &[(String, String)] {
        &self.raw
    }

    /// Adds such a line, as somebody does who edits the file.
    pub fn add_raw(&mut self, key: &str, value: &str) {
        self.raw.push((key.to_owned(), value.to_owned()));
    }

    /// Takes the lines of a key out again.
    pub fn drop_raw(&mut self, key: &str) {
        self.raw.retain(|(known, _)| known != key);
    }

    /// Keeps what is now as a snapshot; replaces one of that name.
    pub fn keep_as(&mut self, snapshot: &str, description: &str) {
        let mut values = self.values.clone();
        // The notes of a snapshot are its own.
        values.remove("description");
        if !description.is_empty() {
            values.insert("description".to_owned(), format!("{description}\n"));
        }
        values.insert("snaptime".to_owned(), super::tasks::now().to_string());
        self.snapshots.insert(snapshot.to_owned(), (values, self.raw.clone()));
    }

    /// Makes what was kept the state again; false if there is no such snapshot.
    pub fn go_back_to(&mut self, snapshot: &str) -> bool {
        let Some((mut values, raw)) = self.snapshots.get(snapshot).cloned() else { return false };
        values.remove("snaptime");
        let notes = self.values.get("description").cloned();
        values.remove("description");
        values.extend(notes.map(|notes| ("description".to_owned(), notes)));
        (self.values, self.raw, self.pending) = (values, raw, BTreeMap::new());
        true
    }

    /// Forgets a snapshot; false if there is none of that name.
    pub fn forget(&mut self, snapshot: &str) -> bool {
        self.snapshots.remove(snapshot).is_some()
    }

    /// The snapshots with what is known of them.
    pub fn snapshots(&self) -> impl Iterator<Item = (&str, &Params)> {
        self.snapshots.iter().map(|(name, (values, _))| (name.as_str(), values))
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
        if !self.raw.is_empty() {
            object["lxc"] = json!(self.raw);
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

/// A section of the file: the notes as comments, the values by name, the environment, LXC's own lines.
pub fn section(values: &Params, raw: &[(String, String)], lock: Option<&str>) -> String {
    let mut text = String::new();
    for line in values.get("description").map(String::as_str).unwrap_or_default().lines() {
        let _ = writeln!(text, "#{}", encoded(line));
    }
    let plain = values.iter().map(|(k, v)| (k.as_str(), v.as_str())).filter(|(k, _)| !matches!(*k, "env" | "description"));
    let sorted: BTreeMap<_, _> = plain.chain(lock.map(|l| ("lock", l))).collect();
    for (key, value) in sorted {
        let _ = writeln!(text, "{key}: {value}");
    }
    for pair in values.get("env").map(|e| e.split('\0').collect::<Vec<_>>()).unwrap_or_default() {
        let _ = writeln!(text, "{RUNTIME}: {pair}");
    }
    for (key, value) in raw {
        let _ = writeln!(text, "{key}: {value}");
    }
    text
}

/// What the environment is called in the file.
const RUNTIME: &str = "lxc.environment.runtime";

fn read_section(lines: &[&str]) -> (Params, Vec<(String, String)>) {
    let (mut values, mut raw, mut env, mut notes) = (Params::new(), Vec::new(), Vec::new(), String::new());
    for line in lines {
        if let Some(comment) = line.strip_prefix('#') {
            notes += &super::http::percent_decode(comment.trim_end());
            notes.push('\n');
            continue;
        }
        let split = if line.starts_with("lxc.") { line.find([':', '=']) } else { line.find(':') };
        let Some((key, value)) = split.map(|at| (line[..at].trim(), line[at + 1..].trim())) else { continue };
        match key {
            RUNTIME => env.push(value),
            key if key.starts_with("lxc.") => raw.push((key.to_owned(), value.to_owned())),
            key => drop(values.insert(key.to_owned(), value.to_owned())),
        }
    }
    if !env.is_empty() {
        values.insert("env".to_owned(), env.join("\0"));
    }
    if !notes.is_empty() {
        values.insert("description".to_owned(), notes);
    }
    (values, raw)
}

/// The lines of each section; what comes before the first heading has an empty name.
fn sections(text: &str) -> Vec<(String, Vec<&str>)> {
    let mut found = vec![(String::new(), Vec::new())];
    for line in text.lines() {
        match line.strip_prefix('[').and_then(|l| l.trim_end().strip_suffix(']')) {
            Some(name) => found.push((name.to_owned(), Vec::new())),
            None => found.last_mut().expect("there is one").1.push(line),
        }
    }
    found
}

/// A line of the notes as it stands in a comment.
fn encoded(line: &str) -> String {
    let special = |c: char| c.is_ascii_control() || c == '%' || c == ':';
    line.chars().map(|c| if special(c) { format!("%{:02X}", u32::from(c)) } else { c.to_string() }).collect()
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
