//! The HTTP around it: the client's request, the relay's answer, and the certificate that makes the answer needless.

use std::fmt::Write as _;

use crate::ident::RelayPublic;

/// The header by which a client says that it knows the relay's key and wants no answer.
pub const FAST_START: &str = "Derp-Fast-Start";
/// The header that names the relay of the region that was tried first.
pub const IDEAL_NODE: &str = "Ideal-Node";
/// The header with the protocol's version in the answer.
pub const VERSION: &str = "Derp-Version";
/// The header with the relay's key in the answer, 64 hex digits.
pub const PUBLIC_KEY: &str = "Derp-Public-Key";
/// The header of a captive-portal check, and of its answer.
pub const CHALLENGE: (&str, &str) = ("X-Tailscale-Challenge", "X-Tailscale-Response");
/// The longest head of an answer that is read.
pub const MAX_HEAD: usize = 8 * 1024;
/// The certificate's common name starts so.
const METACERT_PREFIX: &[u8] = b"derpkey";
/// The prefix and 64 hex digits.
const METACERT_NAME_LEN: u8 = 71;

/// A relay's name in hex alone, as headers have it.
pub fn key_digits(key: &RelayPublic) -> String {
    key.to_string().split_off(METACERT_PREFIX.len())
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// The relay's name, with the port if it is not the scheme's own.
    pub host: &'a str,
    /// The relay's key is known from its certificate: no answer is wanted, frames follow at once.
    pub fast_start: bool,
    /// The region's first relay, if this is another one.
    pub ideal_node: Option<&'a str>,
}

impl Request<'_> {
    /// The request's bytes. Line breaks and other control characters in names are left out.
    pub fn to_bytes(&self) -> Vec<u8> {
        let clean = |text: &str| text.chars().filter(|c| !c.is_control() && *c != ' ').collect::<String>();
        let mut text = format!("GET /derp HTTP/1.1\r\nHost: {}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n", clean(self.host));
        if let Some(node) = self.ideal_node {
            let _ = write!(text, "{IDEAL_NODE}: {}\r\n", clean(node));
        }
        if self.fast_start {
            let _ = write!(text, "{FAST_START}: 1\r\n");
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

/// Why an answer is no relay's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The head does not end within [`MAX_HEAD`].
    #[error("the relay's answer does not end")]
    TooLong,
    /// No HTTP.
    #[error("the relay's answer is no HTTP")]
    NoHttp,
    /// Another status than 101.
    #[error("the relay answers {0} instead of switching protocols")]
    Status(u16),
}

/// A relay's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The relay's key, if the answer names it.
    pub key: Option<RelayPublic>,
    /// Bytes of the head; frames follow right behind it.
    pub length: usize,
}

impl Reply {
    /// Reads an answer's head; `None` while it is not there completely.
    ///
    /// # Errors
    /// Too long, no HTTP, or a refusal.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, ReplyError> {
        let window = bytes.get(..MAX_HEAD).unwrap_or(bytes);
        let Some(end) = window.windows(4).position(|four| four == b"\r\n\r\n") else {
            let hopeless = !window.starts_with(b"HTTP/1.".get(..window.len().min(7)).unwrap_or_default());
            return match () {
                () if hopeless => Err(ReplyError::NoHttp),
                () if window.len() >= MAX_HEAD => Err(ReplyError::TooLong),
                () => Ok(None),
            };
        };
        let head = window.get(..end).and_then(|head| std::str::from_utf8(head).ok()).ok_or(ReplyError::NoHttp)?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")).and_then(|rest| rest.split(' ').nth(1));
        let status: u16 = status.and_then(|status| status.parse().ok()).ok_or(ReplyError::NoHttp)?;
        if status != 101 {
            return Err(ReplyError::Status(status));
        }
        let headers = lines.filter_map(|line| line.split_once(':'));
        let key = headers.filter(|(name, _)| name.eq_ignore_ascii_case(PUBLIC_KEY)).find_map(|(_, value)| key_of_digits(value.trim()));
        Ok(Some(Self { key, length: end + 4 }))
    }
}

fn key_of_digits(digits: &str) -> Option<RelayPublic> {
    format!("derpkey{digits}").parse().ok()
}

/// The relay's key out of the extra certificate that relays append to their chain: its common name is `derpkey` and the key in hex.
///
/// Only for certificates that came by TLS 1.3, where nobody on the way saw them; a key that is not the relay's makes
/// the handshake fail, no more. The certificate is not read as a whole: a string of that shape is looked for.
pub fn metacert_key(der: &[u8]) -> Option<RelayPublic> {
    const UTF8_STRING: u8 = 0x0c;
    const PRINTABLE_STRING: u8 = 0x13;
    let name_len = usize::from(METACERT_NAME_LEN);
    der.windows(2 + name_len).find_map(|window| {
        let (&[tag, length], name) = window.split_first_chunk()?;
        if !matches!(tag, UTF8_STRING | PRINTABLE_STRING) || length != METACERT_NAME_LEN || !name.starts_with(METACERT_PREFIX) {
            return None;
        }
        std::str::from_utf8(name).ok()?.parse().ok()
    })
}

/// The answer to a captive-portal check's challenge; `None` if the challenge is none.
pub fn challenge_response(challenge: &str) -> Option<String> {
    let fair = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    (!challenge.is_empty() && challenge.len() <= 64 && challenge.chars().all(fair)).then(|| format!("response {challenge}"))
}
