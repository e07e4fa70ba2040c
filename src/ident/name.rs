//! Node names: one DNS label each (RFC 1123), made safe from whatever a host calls itself.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A node's name: 1 to 63 of `a-z`, `0-9` and `-`, not starting or ending with `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// A text that is not a node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to 63 letters, digits and inner hyphens, not `{0}`")]
pub struct NameError(String);

const MAX_LABEL: usize = 63;

impl NodeName {
    /// Makes a name from any text: lower-cased, the first label only, other characters turned into hyphens; `node` if nothing is left.
    pub fn sanitised(text: &str) -> Self {
        let first = text.split('.').next().unwrap_or_default();
        let mut label = String::new();
        for c in first.chars() {
            let c = c.to_ascii_lowercase();
            if c.is_ascii_alphanumeric() {
                label.push(c);
            } else if !label.is_empty() && !label.ends_with('-') {
                label.push('-');
            }
            if label.len() == MAX_LABEL {
                break;
            }
        }
        let trimmed = label.trim_end_matches('-');
        Self(if trimmed.is_empty() { "node".to_owned() } else { trimmed.to_owned() })
    }

    /// The same name with `-n` appended, shortened to stay one label.
    pub fn with_suffix(&self, n: u32) -> Self {
        let suffix = format!("-{n}");
        let keep = self.0.len().min(MAX_LABEL - suffix.len());
        Self(format!("{}{suffix}", self.0.get(..keep).unwrap_or_default().trim_end_matches('-')))
    }

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let lower = text.to_ascii_lowercase();
        let valid = (1..=MAX_LABEL).contains(&lower.len())
            && lower.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !lower.starts_with('-')
            && !lower.ends_with('-');
        if valid { Ok(Self(lower)) } else { Err(NameError(text.escape_default().take(80).collect())) }
    }
}

impl TryFrom<String> for NodeName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_becomes_one_label() {
        for (text, label) in
            [("Web Server.lan", "web-server"), ("--x--", "x"), ("", "node"), ("größe", "gr-e"), ("日本", "node"), ("a\nb", "a-b")]
        {
            assert_eq!(NodeName::sanitised(text).as_str(), label);
        }
        assert_eq!(NodeName::sanitised(&"x".repeat(300)).as_str().len(), 63);
    }

    #[test]
    fn a_suffix_keeps_the_label_valid() {
        let long = NodeName::sanitised(&"x".repeat(63)).with_suffix(12);
        assert_eq!(long.as_str().len(), 63);
        assert!(long.as_str().parse::<NodeName>().is_ok());
    }

    #[test]
    fn a_name_with_other_characters_is_refused() {
        for text in ["", "-a", "a-", "a b", "a;b", "a\n", &"x".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?}");
        }
    }
}
