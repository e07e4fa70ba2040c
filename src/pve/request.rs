//! One API request as a value: what `--dry-run` prints, what the journal keeps, what a transport carries.

use std::collections::BTreeMap;
use std::fmt;

use crate::ident::Secret;

/// The four methods of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Creates or acts.
    Post,
    /// Changes.
    Put,
    /// Removes.
    Delete,
}

impl Method {
    /// The method's name in HTTP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }

    /// Whether a request with it changes nothing, so that it may be repeated after a lost connection.
    pub const fn is_safe(self) -> bool {
        matches!(self, Self::Get)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A parameter's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Param {
    /// A value that may be shown.
    Plain(String),
    /// A value that must not reach argv, logs or output.
    Secret(Secret),
}

impl Param {
    /// The value itself, for the transport.
    pub fn expose(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Secret(secret) => secret.expose(),
        }
    }
}

/// One request: a method, a path below `/api2/json` and parameters by name.
///
/// The path is made of checked names only ([`super::HostName`] and its like), so it needs no escaping. Where parameters travel (form body
/// or query string) is the transport's business.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, as in `/nodes/pve/lxc`.
    pub path: String,
    /// The parameters.
    pub params: BTreeMap<String, Param>,
}

impl Request {
    /// A request without parameters.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), params: BTreeMap::new() }
    }

    /// The same request with one more parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.params.insert(name.to_owned(), Param::Plain(value.into()));
        self
    }

    /// The same request with one more parameter that is never shown.
    #[must_use]
    pub fn with_secret(mut self, name: &str, value: Secret) -> Self {
        self.params.insert(name.to_owned(), Param::Secret(value));
        self
    }

    /// Whether a parameter must not be shown.
    pub fn carries_secret(&self) -> bool {
        self.params.values().any(|param| matches!(param, Param::Secret(_)))
    }
}

impl fmt::Display for Request {
    /// One line, `POST /nodes/pve/lxc cores=2 ...`; secrets and line breaks are not shown as they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        for (name, value) in &self.params {
            match value {
                Param::Plain(text) if text.contains(|c: char| c.is_control() || c == ' ') => write!(f, " {name}={text:?}")?,
                Param::Plain(text) => write!(f, " {name}={text}")?,
                Param::Secret(_) => write!(f, " {name}=(secret)")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({self})")
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn a_secret_parameter_is_sent_but_never_shown() {
        let request =
            Request::new(Method::Put, "/nodes/pve/lxc/101/config").with_secret("env", Secret::new("K=hunter2")).with("memory", "64");
        assert_eq!(request.to_string(), "PUT /nodes/pve/lxc/101/config env=(secret) memory=64");
        assert!(!format!("{request:?}").contains("hunter2"));
        assert_eq!(request.params["env"].expose(), "K=hunter2");
    }

    #[test]
    fn a_line_break_in_a_value_stays_on_the_line() {
        let shown = Request::new(Method::Post, "/x").with("description", "a\nb").to_string();
        assert_eq!(shown, r#"POST /x description="a\nb""#);
    }
}
