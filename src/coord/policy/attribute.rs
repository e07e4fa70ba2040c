//! Node attributes (`nodeAttrs`): switches that clients are told about themselves.

use std::collections::BTreeMap;

use super::alias::{Alias, Names, Place};
use super::document::Field;
use super::error::{PolicyError, quoted};
use super::rule::{MAX_ENTRIES, not_offered, unknown};

/// Most entries of `nodeAttrs`.
const MAX_ATTRIBUTES: usize = 1_000;
/// Most arguments of an attribute.
const MAX_ARGUMENTS: usize = 100;

/// Attributes by name, with their arguments: the form of a node's `CapMap`.
pub type Attributes = BTreeMap<String, Vec<serde_json::Value>>;

/// Attributes for some nodes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attribute {
    /// Whose.
    pub targets: Vec<Alias>,
    /// Which.
    pub given: Attributes,
}

impl Attribute {
    /// One attribute for all nodes.
    pub(super) fn everywhere(name: &str) -> Self {
        Self { targets: vec![Alias::Any], given: Attributes::from([(name.to_owned(), Vec::new())]) }
    }
}

/// Attributes that would promise something the coordinator does not do.
const NOT_OFFERED: [(&str, &str); 3] = [
    ("disable-ipv4", "every node has an IPv4 address"),
    ("funnel", "there is no public ingress"),
    ("https://tailscale.com/cap/tailnet-lock", "there is no tailnet lock"),
];

/// Reads `nodeAttrs`.
pub(super) fn read(field: &Field<'_>, names: &Names) -> Result<Vec<Attribute>, PolicyError> {
    field.list(MAX_ATTRIBUTES)?.iter().map(|entry| one(entry, names)).collect()
}

fn one(entry: &Field<'_>, names: &Names) -> Result<Attribute, PolicyError> {
    let mut targets = None;
    let mut given = Attributes::new();
    for member in entry.object(MAX_ARGUMENTS)? {
        match &*member.key {
            "target" => {
                let alias = |field: &Field<'_>| names.alias(field, field.string()?, Place::Attribute);
                targets = Some(member.value.list(MAX_ENTRIES)?.iter().map(alias).collect::<Result<Vec<_>, _>>()?);
            }
            "attr" => {
                for field in member.value.list(MAX_ARGUMENTS)? {
                    given.entry(attribute_name(&field, field.string()?)?).or_default();
                }
            }
            "app" => {
                for argument in member.value.object(MAX_ARGUMENTS)? {
                    let name = attribute_name(&argument.value, &argument.key)?;
                    let values = argument.value.list(MAX_ARGUMENTS)?.iter().map(Field::json).collect::<Result<Vec<_>, _>>()?;
                    given.entry(name).or_default().extend(values);
                }
            }
            "ipPool" => return Err(not_offered(&member, "address pools")),
            key if key.starts_with('#') => {}
            _ => return Err(unknown(&member, &["target", "attr", "app"])),
        }
    }
    let targets = targets.ok_or_else(|| entry.error("`target` is missing"))?;
    Ok(Attribute { targets, given })
}

fn attribute_name(field: &Field<'_>, text: &str) -> Result<String, PolicyError> {
    if let Some((_, why)) = NOT_OFFERED.iter().find(|(name, _)| *name == text) {
        return Err(field.error(format!("attribute {} is not offered: {why}", quoted(text))));
    }
    if text.is_empty() || text.len() > 200 || !text.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '\\') {
        return Err(field.error(format!("{} is not the name of an attribute (printable ASCII without spaces and quotes)", quoted(text))));
    }
    Ok(text.to_owned())
}
