//! Connections to a coordinator: the key fetch, the upgrade to Noise, and HTTP/2 inside.
//!
//! Every socket carries the bypass mark, so that the node's own control traffic never enters its tunnel. Everything that waits for
//! the other side has a time limit, except reading a stream, whose silence the caller judges.

mod connection;
mod dialer;
mod early;
mod origin;
mod plain;
mod race;
mod socket;
mod tls;
mod upgrade;

use std::net::SocketAddr;
use std::time::Duration;

pub use connection::{BodyStream, ControlConnection, fetch_server_key};
pub use dialer::Dialer;
pub(super) use dialer::connect_address;
pub use origin::Origin;
pub(super) use plain::plain_http;
pub(super) use race::first_success;
pub(in crate::sys) use socket::Stream;
pub use socket::mark_socket;
pub(super) use tls::roots;

use crate::wire::control::noise::HandshakeError;

/// How long reaching the server, TLS and the upgrade may take together.
pub const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// How long the server may think about a request.
pub const REPLY_LIMIT: Duration = Duration::from_secs(30);
/// The longest reply read as a whole.
pub const MAX_REPLY: usize = 16 * 1024 * 1024;

/// Why the coordinator could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address is not one of a coordinator.
    #[error("`{0}` is not a coordinator's address; write http(s)://host[:port]")]
    Url(String),
    /// Its name does not resolve.
    #[error("resolve {host}: {source}")]
    Resolve {
        /// The host.
        host: String,
        /// Why.
        source: std::io::Error,
    },
    /// It does not answer at any of its addresses.
    #[error("connect to {address}: {source}")]
    Connect {
        /// The address tried last.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Its certificate is not trusted, or TLS failed otherwise.
    #[error("TLS with {host}: {source}")]
    Tls {
        /// The host.
        host: String,
        /// Why.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("{tried}: no answer within {} s", limit.as_secs())]
    Timeout {
        /// What was tried.
        tried: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// It answered with an HTTP error.
    #[error("{tried}: the server answered {status}{}", quoted(text))]
    Status {
        /// What was tried.
        tried: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer.
        text: String,
        /// Its `Retry-After` header.
        retry_after: Option<String>,
    },
    /// It answered something that is not this protocol.
    #[error("{tried}: {reason}")]
    Protocol {
        /// What was tried.
        tried: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The connection ended.
    #[error("{tried}: the connection ended: {reason}")]
    Closed {
        /// What was tried.
        tried: String,
        /// Why.
        reason: String,
    },
    /// The system gave no randomness.
    #[error(transparent)]
    Entropy(std::io::Error),
}

impl DialError {
    /// The HTTP status, if the server answered with an error.
    pub fn status(&self) -> Option<u16> {
        if let Self::Status { status, .. } = self { Some(*status) } else { None }
    }
}

fn quoted(text: &str) -> String {
    let line: String = text.trim().chars().take(200).flat_map(char::escape_debug).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}
