//! Reading of HuJSON: JSON with comments and trailing commas. Every value knows its place, so that errors can say it.
//!
//! Bounds: the size of the file, the depth of nesting, and, at each use, the length of lists. A key that stands twice in one object is
//! refused: which of the two holds would be a guess.

use std::borrow::Cow;
use std::collections::BTreeSet;

use jsonc_parser::ast::{ObjectPropName, Value};
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use super::error::{PolicyError, quoted};

/// Largest policy file, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting of lists and objects.
const MAX_DEPTH: usize = 32;
/// Most members of an object inside an application capability.
const MAX_MEMBERS: usize = 1_000;

/// What is accepted: JSON, comments, trailing commas. Nothing else that lenient parsers take.
const STRICT: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_trailing_commas: true,
    allow_loose_object_property_names: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// Reads a document and hands its root to `read`.
pub(super) fn with_root<T>(text: &str, read: impl FnOnce(Field<'_>) -> Result<T, PolicyError>) -> Result<T, PolicyError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > MAX_BYTES {
        let what = format!("the file has {} bytes; at most {MAX_BYTES} are read", text.len());
        return Err(PolicyError { line: 1, column: 1, path: String::new(), what });
    }
    check_depth(text)?;
    let parsed = parse_to_ast(text, &CollectOptions::default(), &STRICT).map_err(|error| {
        let what = format!("not valid HuJSON (JSON with comments and trailing commas): {}", lower_first(&error.kind().to_string()));
        error_at(text, error.range().start, String::new(), what)
    })?;
    let Some(value) = &parsed.value else {
        return Err(error_at(text, 0, String::new(), "the file is empty; an empty policy is `{}`".to_owned()));
    };
    read(Field { text, value, path: String::new() })
}

/// Refuses deep nesting before the recursive parser meets it.
fn check_depth(text: &str) -> Result<(), PolicyError> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match (byte, bytes.get(at + 1)) {
            (b'"', _) => {
                at += 1;
                while let Some(&c) = bytes.get(at) {
                    match c {
                        b'\\' => at += 1,
                        b'"' | b'\n' => break,
                        _ => {}
                    }
                    at += 1;
                }
            }
            (b'/', Some(b'/')) => {
                while bytes.get(at).is_some_and(|c| !matches!(c, b'\n' | b'\r')) {
                    at += 1;
                }
            }
            (b'/', Some(b'*')) => {
                at += 2;
                while at < bytes.len() && bytes.get(at..at + 2) != Some(b"*/") {
                    at += 1;
                }
                at += 1;
            }
            (b'{' | b'[', _) => {
                depth += 1;
                if depth > MAX_DEPTH {
                    let what = format!("lists and objects are nested more than {MAX_DEPTH} deep");
                    return Err(error_at(text, at, String::new(), what));
                }
            }
            (b'}' | b']', _) => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

fn error_at(text: &str, offset: usize, path: String, what: String) -> PolicyError {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let bounded = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    PolicyError { line: bounded(line), column: bounded(column), path, what }
}

/// A value and its place.
#[derive(Clone)]
pub(super) struct Field<'a> {
    text: &'a str,
    value: &'a Value<'a>,
    path: String,
}

/// A member of an object.
pub(super) struct Member<'a> {
    /// The key.
    pub key: Cow<'a, str>,
    /// The value.
    pub value: Field<'a>,
    key_start: usize,
}

impl<'a> Field<'a> {
    /// An error about this value.
    pub(super) fn error(&self, what: impl Into<String>) -> PolicyError {
        error_at(self.text, self.value.range().start, self.path.clone(), what.into())
    }

    fn wrong_type(&self, wanted: &str) -> PolicyError {
        let found = match self.value {
            Value::StringLit(text) => format!("the text {}", quoted(&text.value)),
            Value::NumberLit(number) => format!("the number {}", quoted(number.value)),
            Value::BooleanLit(flag) => flag.value.to_string(),
            Value::Object(_) => "an object".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            Value::NullKeyword(_) => "null".to_owned(),
        };
        self.error(format!("{wanted} is wanted here, not {found}"))
    }

    /// A text.
    pub(super) fn string(&self) -> Result<&'a str, PolicyError> {
        match self.value {
            Value::StringLit(text) => Ok(text.value.as_ref()),
            _ => Err(self.wrong_type("a text in double quotes")),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Result<bool, PolicyError> {
        match self.value {
            Value::BooleanLit(flag) => Ok(flag.value),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// The elements of a list that has no more than `max` of them.
    pub(super) fn list(&self, max: usize) -> Result<Vec<Self>, PolicyError> {
        let Value::Array(array) = self.value else { return Err(self.wrong_type("a list in [ ]")) };
        if array.elements.len() > max {
            return Err(self.error(format!("the list has {} entries; at most {max} are taken", array.elements.len())));
        }
        let element = |(n, value)| Self { text: self.text, value, path: format!("{}[{n}]", self.path) };
        Ok(array.elements.iter().enumerate().map(element).collect())
    }

    /// The members of an object that has no more than `max` of them.
    pub(super) fn object(&self, max: usize) -> Result<Vec<Member<'a>>, PolicyError> {
        let Value::Object(object) = self.value else { return Err(self.wrong_type("an object in { }")) };
        if object.properties.len() > max {
            return Err(self.error(format!("the object has {} members; at most {max} are taken", object.properties.len())));
        }
        let mut seen = BTreeSet::new();
        let mut members = Vec::with_capacity(object.properties.len());
        for property in &object.properties {
            let key: Cow<'a, str> = match &property.name {
                ObjectPropName::String(text) => Cow::Borrowed(text.value.as_ref()),
                ObjectPropName::Word(word) => Cow::Borrowed(word.value),
            };
            let member = Member { value: self.below(&key, &property.value), key_start: property.name.range().start, key };
            if !seen.insert(member.key.clone()) {
                return Err(member.key_error("the key stands twice in this object; keep one"));
            }
            members.push(member);
        }
        Ok(members)
    }

    fn below(&self, key: &str, value: &'a Value<'a>) -> Self {
        let plain = !key.is_empty() && key.len() <= 60 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let path = match (plain, self.path.is_empty()) {
            (true, true) => key.to_owned(),
            (true, false) => format!("{}.{key}", self.path),
            (false, _) => format!("{}[{}]", self.path, quoted(key)),
        };
        Self { text: self.text, value, path }
    }

    /// The value as it is, for the arguments of capabilities.
    pub(super) fn json(&self) -> Result<serde_json::Value, PolicyError> {
        use serde_json::Value as Json;
        Ok(match self.value {
            Value::StringLit(text) => Json::String(text.value.to_string()),
            Value::NumberLit(number) => Json::Number(
                serde_json::from_str(number.value).map_err(|_| self.error(format!("{} is not a JSON number", quoted(number.value))))?,
            ),
            Value::BooleanLit(flag) => Json::Bool(flag.value),
            Value::NullKeyword(_) => Json::Null,
            Value::Array(_) => Json::Array(self.list(MAX_MEMBERS)?.iter().map(Field::json).collect::<Result<_, _>>()?),
            Value::Object(_) => Json::Object(
                self.object(MAX_MEMBERS)?.into_iter().map(|member| Ok((member.key.into_owned(), member.value.json()?))).collect::<Result<
                    _,
                    PolicyError,
                >>(
                )?,
            ),
        })
    }
}

impl Member<'_> {
    /// An error about the key.
    pub(super) fn key_error(&self, what: impl Into<String>) -> PolicyError {
        error_at(self.value.text, self.key_start, self.value.path.clone(), what.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<serde_json::Value, PolicyError> {
        with_root(text, |root| root.json())
    }

    #[test]
    fn comments_and_trailing_commas_are_read() {
        let value = read("\u{feff}// c\n{\"a\": [1, 2,], /* x */ \"b\": {\"c\": null,},}\n").unwrap();
        assert_eq!(value, serde_json::json!({"a": [1, 2], "b": {"c": null}}));
    }

    #[test]
    fn other_leniencies_are_refused() {
        for text in
            ["{a: 1}", "{'a': 1}", "{\"a\": 1 \"b\": 2}", "[0x1]", "[+1]", "[.5]", "[NaN]", "{} {}", "", "// only a comment", "[\"\\x41\"]"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_with_its_place() {
        let error = read("{\n  \"a\": {\"b\": 1,\n   \"b\": 2}}").unwrap_err();
        assert_eq!((error.line, error.column, error.path.as_str()), (3, 4, "a.b"));
    }

    #[test]
    fn deep_nesting_is_refused_before_parsing() {
        let deep = "[".repeat(100_000);
        assert!(read(&deep).unwrap_err().what.contains("nested more than"));
        let hidden = format!("[\"{}\", /* {} */ 1] // {}", "[".repeat(100), "{".repeat(100), "[".repeat(100));
        assert!(read(&hidden).is_ok());
        assert!(read(&format!("{}1{}", "[".repeat(32), "]".repeat(32))).is_ok());
    }

    #[test]
    fn a_large_file_is_refused_unread() {
        assert!(read(&" ".repeat(MAX_BYTES + 1)).unwrap_err().what.contains("bytes"));
    }
}
