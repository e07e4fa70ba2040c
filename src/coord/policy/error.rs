//! Why a policy file is refused, and where.

use std::fmt::Write as _;

/// Longest piece of the file that an error repeats, in characters.
const MAX_QUOTED: usize = 60;
/// Most alternatives an error lists.
const MAX_LISTED: usize = 12;

/// A policy file that cannot be used. Text from the file is escaped and bounded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}{}{path}: {what}", if path.is_empty() { "" } else { ", " })]
pub struct PolicyError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The place within the document, such as `acls[2].dst[0]`; empty for the document itself.
    pub path: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Foreign text for an error: in quotes, control characters escaped, bounded.
pub(super) fn quoted(text: &str) -> String {
    let mut shown = String::from("`");
    for (n, c) in text.chars().enumerate() {
        if n == MAX_QUOTED {
            shown.push_str("...");
            break;
        }
        if c == '"' || c == '\'' { shown.push(c) } else { shown.extend(c.escape_debug()) }
    }
    shown.push('`');
    shown
}

/// A list of names for an error; bounded.
pub(super) fn listed<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut shown = String::new();
    let mut left = 0_usize;
    for (n, name) in names.into_iter().enumerate() {
        if n >= MAX_LISTED {
            left += 1;
            continue;
        }
        if n > 0 {
            shown.push_str(", ");
        }
        shown.push_str(&quoted(name.as_ref()));
    }
    if left > 0 {
        let _ = write!(shown, " and {left} more");
    }
    if shown.is_empty() { "none".to_owned() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_escaped_and_bounded() {
        assert_eq!(quoted("a\nb\u{1b}[31m"), "`a\\nb\\u{1b}[31m`");
        assert!(quoted(&"x".repeat(10_000)).len() < 80);
        assert_eq!(listed(["a", "b"]), "`a`, `b`");
        assert_eq!(listed(Vec::<String>::new()), "none");
        assert!(listed((0..1000).map(|n| n.to_string())).ends_with("and 988 more"));
    }
}
