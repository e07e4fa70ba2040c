//! Logging in: tickets with their CSRF tokens, and the second step that a second factor asks for.
//!
//! The first step is sent without a code. Only a login that asks for one is given one, once: every wrong code counts towards a lock of
//! the factor, so none is sent twice.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::CallError;
use crate::ident::Secret;
use crate::pve::{Method, Request};

/// Tickets live two hours (PVE::AccessControl); one is renewed after half of that, so that a long run never meets the end.
pub(super) const RENEW_AFTER: Duration = Duration::from_secs(60 * 60);
/// After this long a ticket is not even offered for renewal.
const WORTHLESS_AFTER: Duration = Duration::from_secs(2 * 60 * 60);
/// What a half ticket begins with; the challenge follows, percent-encoded JSON, up to the next colon.
const HALF: &str = "PVE:!tfa!";

/// A login that Proxmox granted.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) cookie: Secret,
    pub(super) csrf: Secret,
    obtained: Instant,
}

impl Ticket {
    pub(super) fn is_fresh(&self, renew_after: Duration) -> bool {
        self.obtained.elapsed() < renew_after
    }

    pub(super) fn can_renew(&self) -> bool {
        self.obtained.elapsed() < WORTHLESS_AFTER
    }
}

/// What came back for user and password.
#[derive(Debug)]
pub(super) enum Granted {
    /// A login.
    Ticket(Ticket),
    /// A half ticket: good for nothing but answering the challenge it carries.
    Half { ticket: Secret, challenge: Challenge },
}

/// Somebody who knows the code of a second factor.
pub trait SecondFactor: Send + Sync + fmt::Debug {
    /// A code for this login, or nothing. It is sent once and never again.
    fn code(&self, user: &str, challenge: &Challenge) -> Option<Secret>;
}

/// The second factors a user may answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Challenge {
    /// Six digits of an authenticator app.
    pub totp: bool,
    /// One of the recovery keys.
    pub recovery: bool,
    /// The one-time text of a YubiKey.
    pub yubico: bool,
    /// A security key in a browser; not possible here.
    pub webauthn: bool,
    /// The older form of that.
    pub u2f: bool,
}

impl Challenge {
    fn read(half: &str) -> Self {
        let encoded = half.strip_prefix(HALF).unwrap_or_default().split(':').next().unwrap_or_default();
        let decoded: Value = serde_json::from_slice(&percent_decoded(encoded)).unwrap_or_default();
        let offered = |kind: &str| match decoded.get(kind) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !matches!(text.as_str(), "" | "unavailable"),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Number(number)) => number.as_u64() != Some(0),
            Some(_) => true,
        };
        Self {
            totp: offered("totp"),
            recovery: offered("recovery"),
            yubico: offered("yubico"),
            webauthn: offered("webauthn"),
            u2f: offered("u2f"),
        }
    }

    /// Whether one of them can be answered on a command line.
    pub fn can_be_typed(&self) -> bool {
        self.totp || self.recovery || self.yubico
    }

    /// The answer as Proxmox takes it: with its kind before it. A text without one is judged by its form.
    fn answer(&self, code: &Secret) -> Secret {
        let code = code.expose().trim();
        if code.split_once(':').is_some_and(|(kind, _)| ["totp", "recovery", "yubico", "webauthn", "u2f"].contains(&kind)) {
            return Secret::new(code);
        }
        let digits = code.bytes().all(|b| b.is_ascii_digit());
        let kind = match () {
            () if self.totp && digits => "totp",
            () if self.yubico && !digits && code.len() >= 32 && !code.contains('-') => "yubico",
            () if self.recovery => "recovery",
            () => "totp",
        };
        Secret::new(format!("{kind}:{code}"))
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds =
            [(self.totp, "totp"), (self.recovery, "recovery"), (self.yubico, "yubico"), (self.webauthn, "webauthn"), (self.u2f, "u2f")];
        let named: Vec<&str> = kinds.into_iter().filter(|(there, _)| *there).map(|(_, kind)| kind).collect();
        f.write_str(if named.is_empty() { "none that is left" } else { "" })?;
        f.write_str(&named.join(", "))
    }
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if let (b'%', [high, low, after @ ..]) = (first, tail)
            && let Some(byte) = std::str::from_utf8(&[*high, *low]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())
        {
            bytes.push(byte);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    bytes
}

/// The login request; a still valid ticket may stand for the password. `new-format` asks releases before 8.0 for what later ones always do.
pub(super) fn login(user: &str, password: &Secret) -> Request {
    Request::new(Method::Post, "/access/ticket").with("username", user).with("new-format", "1").with_secret("password", password.clone())
}

/// The second step.
pub(super) fn second_step(user: &str, half: &Secret, challenge: &Challenge, code: &Secret) -> Request {
    login(user, &challenge.answer(code)).with_secret("tfa-challenge", half.clone())
}

/// Reads the reply to a login.
pub(super) fn granted(place: &str, reply: &Value) -> Result<Granted, CallError> {
    let field = |name: &str| reply.get(name).and_then(Value::as_str);
    let garbled = |why: &str| CallError::Garbled { place: place.to_owned(), why: why.to_owned() };
    let cookie = field("ticket").ok_or_else(|| garbled("the login gave no ticket"))?;
    if cookie.starts_with(HALF) || reply.get("NeedTFA").is_some_and(|need| need.as_u64() != Some(0) && !need.is_null()) {
        return Ok(Granted::Half { ticket: Secret::new(cookie), challenge: Challenge::read(cookie) });
    }
    let csrf = field("CSRFPreventionToken").ok_or_else(|| garbled("the login gave no CSRF token"))?;
    let clean = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b';');
    if !clean(cookie) || !clean(csrf) {
        return Err(garbled("the ticket has characters that no header can carry"));
    }
    Ok(Granted::Ticket(Ticket { cookie: Secret::new(cookie), csrf: Secret::new(csrf), obtained: Instant::now() }))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use serde_json::json;

    use super::*;

    const HALF_TICKET: &str = "PVE:!tfa!%7B%22totp%22%3Atrue%2C%22recovery%22%3A%22high%22%2C%22u2f%22%3Anull%7D:65000000::c2ln";

    #[test]
    fn a_half_ticket_is_not_a_login() {
        for reply in [
            json!({"ticket": HALF_TICKET, "NeedTFA": 1, "CSRFPreventionToken": "x"}),
            json!({"ticket": HALF_TICKET, "CSRFPreventionToken": "x"}),
            json!({"ticket": "PVE:root@pam:65000000::c2ln", "NeedTFA": 1, "CSRFPreventionToken": "x"}),
        ] {
            assert!(matches!(granted("https://pve:8006", &reply).unwrap(), Granted::Half { .. }), "{reply}");
        }
        assert_eq!(Challenge::read(HALF_TICKET), Challenge { totp: true, recovery: true, ..Challenge::default() });
        assert_eq!(Challenge::read(HALF_TICKET).to_string(), "totp, recovery");
        assert_eq!(Challenge::read("PVE:!tfa!%zz:x"), Challenge::default());
    }

    #[test]
    fn a_ticket_that_could_split_a_header_is_refused() {
        for ticket in ["PVE:root@pam:0\r\nX: y", "PVE:root@pam:0; a=b"] {
            let reply = json!({"ticket": ticket, "CSRFPreventionToken": "x"});
            assert!(granted("p", &reply).is_err(), "{ticket:?}");
        }
        assert!(granted("p", &json!({"ticket": "PVE:root@pam:65000000::c2ln", "CSRFPreventionToken": "65000000:abc"})).is_ok());
    }

    #[test]
    fn a_code_is_sent_with_the_kind_it_has() {
        let both = Challenge { totp: true, recovery: true, yubico: true, ..Challenge::default() };
        for (typed, sent) in [
            ("123456", "totp:123456"),
            (" 123456 ", "totp:123456"),
            ("0123-4567-89ab-cdef", "recovery:0123-4567-89ab-cdef"),
            ("ccccccccccccccccccccccccccccccccccccccccccccc", "yubico:ccccccccccccccccccccccccccccccccccccccccccccc"),
            ("recovery:1", "recovery:1"),
        ] {
            let request = second_step("root@pam", &Secret::new(HALF_TICKET), &both, &Secret::new(typed));
            assert_eq!(request.params["password"].expose(), sent, "{typed}");
            assert_eq!(request.to_string(), "POST /access/ticket new-format=1 password=(secret) tfa-challenge=(secret) username=root@pam");
        }
        let recovery = Challenge { recovery: true, ..Challenge::default() };
        assert_eq!(recovery.answer(&Secret::new("123456")).expose(), "recovery:123456");
    }

    #[test]
    fn a_ticket_is_renewed_before_its_end_and_not_after() {
        let reply = json!({"ticket": "PVE:root@pam:65000000::c2ln", "CSRFPreventionToken": "65000000:abc"});
        let Granted::Ticket(ticket) = granted("p", &reply).unwrap() else { panic!("a whole ticket") };
        assert!(ticket.is_fresh(RENEW_AFTER) && !ticket.is_fresh(Duration::ZERO) && ticket.can_renew());
        assert!(RENEW_AFTER < WORTHLESS_AFTER);
    }
}
