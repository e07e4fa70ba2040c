//! Parameters checked by name, type, format and pattern, with the words of the real API, from the excerpt of its schema.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};

use regex::Regex;
use serde_json::{Map, Value};

use super::formats;
use super::http::Param;
use super::{Reply, Version};

static SCHEMA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../fixtures/pve/schema-9.1.json")).expect("the schema excerpt is JSON"));

/// Reasons by parameter.
pub type Faults = BTreeMap<String, String>;
/// Parameters after checking; booleans are `1` or `0`.
pub type Params = BTreeMap<String, String>;

const UNKNOWN: &str = "property is not defined in schema and the schema does not allow additional properties";
const MISSING: &str = "property is missing and it is not optional";

/// The parameters of one method of one path template, or nothing if the API has no such method.
pub fn method(template: &str, method: &str) -> Option<&'static Map<String, Value>> {
    SCHEMA.get("methods")?.get(template)?.get(method)?.as_object()
}

/// `net0` is `net[n]`; the numbers have limits.
fn family(name: &str) -> Option<String> {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number: u32 = name.get(stem.len()..)?.parse().ok()?;
    let limit = match stem {
        "net" => 32,
        "mp" | "dev" | "unused" => 256,
        _ => return None,
    };
    (number < limit).then(|| format!("{stem}[n]"))
}

/// What the named release did not have yet.
fn too_new(name: &str, version: Version) -> bool {
    let since = match name {
        "env" | "entrypoint" | "ha-managed" | "host-managed" => Version::V9_1,
        "failback" => Version::V9_0,
        "deny-write" => Version::V8_3,
        "overrule-shutdown" => Version(8, 2),
        name if name.starts_with("dev[") => Version::V8_1,
        _ => return false,
    };
    version < since
}

/// Checks parameters as PVE's JSONSchema does.
///
/// # Errors
/// The 400 reply, with the reason for every wrong parameter.
pub fn check(properties: &Map<String, Value>, given: &BTreeMap<String, Param>, version: Version) -> Result<Params, Reply> {
    let mut faults = Faults::new();
    let mut checked = Params::new();
    for (name, value) in given {
        let (key, property) = match properties.get(name) {
            Some(property) => (name.clone(), Some(property)),
            None => family(name).map_or((name.clone(), None), |key| {
                let property = properties.get(&key);
                (key, property)
            }),
        };
        let Some(property) = property.filter(|_| !too_new(&key, version)) else {
            faults.insert(name.clone(), UNKNOWN.to_owned());
            continue;
        };
        match plain(property, value).and_then(|text| verify(property, &text, version).map(|()| text)) {
            Ok(text) => {
                checked.insert(name.clone(), text);
            }
            Err(reason) => {
                faults.insert(name.clone(), reason);
            }
        }
    }
    for (name, property) in properties {
        if !is_optional(property) && !given.contains_key(name) {
            faults.insert(name.clone(), MISSING.to_owned());
        }
    }
    if faults.is_empty() { Ok(checked) } else { Err(Reply::parameters(faults)) }
}

fn is_optional(property: &Value) -> bool {
    property.get("optional").is_some_and(|o| o == 1 || o == "1" || o == true)
}

/// A parameter as text, refusing what the type does not take.
fn plain(property: &Value, value: &Param) -> Result<String, String> {
    let kind = property.get("type").and_then(Value::as_str).unwrap_or("string");
    let text = match value {
        Param::Text(text) => text.clone(),
        Param::Many(values) if property.get("format").and_then(Value::as_str).is_some_and(|f| f.ends_with("-list")) => values.join(","),
        Param::Many(_) => return Err(format!("type check ('{kind}') failed - got ARRAY")),
        Param::Json(Value::Bool(b)) => u8::from(*b).to_string(),
        Param::Json(Value::Number(n)) => n.to_string(),
        Param::Json(Value::String(s)) => s.clone(),
        Param::Json(Value::Array(_)) => return Err(format!("type check ('{kind}') failed - got ARRAY")),
        Param::Json(_) => return Err(format!("type check ('{kind}') failed - got HASH")),
    };
    let fits = match kind {
        "integer" => text.parse::<i64>().is_ok(),
        "number" => text.parse::<f64>().is_ok(),
        "boolean" => text == "1" || text == "0",
        _ => true,
    };
    if fits { Ok(text) } else { Err(format!("type check ('{kind}') failed - got '{text}'")) }
}

/// Numbers stand in the schema as numbers or as text.
fn limit(property: &Value, key: &str) -> Option<f64> {
    let value = property.get(key)?;
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn verify(property: &Value, text: &str, version: Version) -> Result<(), String> {
    match property.get("format") {
        Some(Value::String(name)) => formats::named(name, text).map_err(|reason| format!("invalid format - {reason}\n"))?,
        Some(Value::Object(keys)) => {
            property_string_of(keys, text, version).map_err(|reason| format!("invalid format - {reason}"))?;
        }
        _ => {}
    }
    if let Some(pattern) = property.get("pattern").and_then(Value::as_str)
        && !matches(pattern, text)
    {
        return Err("value does not match the regex pattern".to_owned());
    }
    if let Some(values) = property.get("enum").and_then(Value::as_array)
        && !values.iter().any(|v| v == text)
    {
        let known = values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
        return Err(format!("value '{text}' does not have a value in the enumeration '{known}'"));
    }
    if matches!(property.get("type").and_then(Value::as_str), Some("integer" | "number")) {
        let number: f64 = text.parse().unwrap_or_default();
        if let Some(least) = limit(property, "minimum").filter(|least| number < *least) {
            return Err(format!("value must have a minimum value of {least}"));
        }
        if let Some(most) = limit(property, "maximum").filter(|most| number > *most) {
            return Err(format!("value must have a maximum value of {most}"));
        }
    } else {
        let length = text.chars().count() as f64;
        if let Some(most) = limit(property, "maxLength").filter(|most| length > *most) {
            return Err(format!("value may only be {most} characters long"));
        }
        if let Some(least) = limit(property, "minLength").filter(|least| length < *least) {
            return Err(format!("value must be at least {least} characters long"));
        }
    }
    Ok(())
}

fn matches(pattern: &str, text: &str) -> bool {
    static COMPILED: LazyLock<Mutex<BTreeMap<String, Arc<Regex>>>> = LazyLock::new(Mutex::default);
    let regex = COMPILED
        .lock()
        .unwrap()
        .entry(pattern.to_owned())
        .or_insert_with(|| Arc::new(Regex::new(&format!("^(?:{pattern})$")).expect("a pattern of the schema")))
        .clone();
    regex.is_match(text)
}

/// Reads a property string (`name=eth0,bridge=vmbr0`) by the parameter it belongs to.
///
/// # Errors
/// The reason, worded as PVE does.
pub fn property_string(parameter: &str, text: &str) -> Result<Params, String> {
    let key = family(parameter).unwrap_or_else(|| parameter.to_owned());
    let keys = method("/nodes/{node}/lxc", "POST")
        .and_then(|p| p.get(&key))
        .and_then(|p| p.get("format"))
        .and_then(Value::as_object)
        .ok_or_else(|| format!("`{parameter}` is no property string"))?;
    property_string_of(keys, text, Version::V9_1)
}

fn property_string_of(keys: &Map<String, Value>, text: &str, version: Version) -> Result<Params, String> {
    let mut values = Params::new();
    for part in text.split(',').filter(|p| !p.trim().is_empty()) {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value),
            None => {
                let default = keys.iter().find(|(_, p)| p.get("default_key").is_some());
                let (key, _) = default.ok_or("value without key, but schema does not define a default key\n")?;
                (key.clone(), part)
            }
        };
        let boolean = keys.get(&key).and_then(|p| p.get("type")).is_some_and(|t| t == "boolean");
        let value = match value {
            "1" | "on" | "yes" | "true" if boolean => "1",
            "0" | "off" | "no" | "false" if boolean => "0",
            value => value,
        };
        if values.insert(key.clone(), value.to_owned()).is_some() {
            return Err(format!("duplicate key in comma-separated list property: {key}\n"));
        }
    }
    let mut faults = Faults::new();
    for (name, value) in &values {
        let known = keys.get(name).filter(|_| !too_new(name, version));
        let Some(property) = known else {
            faults.insert(name.clone(), UNKNOWN.to_owned());
            continue;
        };
        if let Err(reason) = plain(property, &Param::Text(value.clone())).and_then(|text| verify(property, &text, version)) {
            faults.insert(name.clone(), reason);
        }
        if let Some(needed) = property.get("requires").and_then(Value::as_str).filter(|n| !values.contains_key(*n)) {
            faults.insert(needed.to_owned(), format!("missing property - '{name}' requires this property"));
        }
    }
    for (name, property) in keys {
        if !is_optional(property) && property.get("alias").is_none() && !values.contains_key(name) {
            faults.insert(name.clone(), MISSING.to_owned());
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(nested(faults)) }
}

/// The faults of a property string, with a mark where the parameter's own name goes.
fn nested(faults: Faults) -> String {
    let lines: String = faults.iter().map(|(name, reason)| format!("{SELF}.{name}: {reason}\n")).collect();
    format!("format error\n{lines}")
}

/// Stands for the parameter's name until [`name_nested`] knows it.
const SELF: &str = "\u{1}";

/// Puts the parameter's name into the reasons of its property string.
pub fn name_nested(faults: Faults) -> Faults {
    faults.into_iter().map(|(name, reason)| (name.clone(), reason.replace(SELF, &name))).collect()
}
