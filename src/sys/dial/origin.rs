//! A coordinator's address, `http(s)://host[:port]`.

use std::fmt;
use std::str::FromStr;

use http::Uri;

use super::DialError;

/// Where a coordinator listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// TLS around everything.
    pub tls: bool,
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The port was written out.
    pub port_named: bool,
    authority: String,
}

impl Origin {
    /// `host[:port]` as headers want it.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{self}{path}")
    }
}

impl FromStr for Origin {
    type Err = DialError;

    fn from_str(text: &str) -> Result<Self, DialError> {
        let wrong = || DialError::Url(text.chars().take(200).flat_map(char::escape_debug).collect());
        let uri: Uri = text.trim().parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(wrong)?;
        if !matches!(uri.path_and_query().map_or("", |p| p.as_str()), "" | "/") || authority.host().is_empty() {
            return Err(wrong());
        }
        let has_port_text = authority.as_str().len() > authority.host().len();
        if has_port_text && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host, port, port_named: has_port_text, authority: authority.as_str().to_owned() })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let parts = |text: &str| text.parse::<Origin>().map(|o| (o.tls, o.host, o.port)).ok();
        assert_eq!(parts("http://10.0.0.5:8080"), Some((false, "10.0.0.5".to_owned(), 8080)));
        assert_eq!(parts("https://mesh.example/"), Some((true, "mesh.example".to_owned(), 443)));
        assert_eq!(parts("http://[fd00::1]:80"), Some((false, "fd00::1".to_owned(), 80)));
        assert_eq!(parts("http://[fd00::1]"), Some((false, "fd00::1".to_owned(), 80)));
        for wrong in ["", "mesh.example", "ftp://x", "http://", "http://u@h", "http://h/path", "http://h:0", "http://h:99999", "http://h:"]
        {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }
}
