//! Logging in: tickets with their CSRF tokens, and what a second factor asks.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::CallError;
use crate::ident::Secret;
use crate::pve::{Method, Request};

/// Tickets live two hours (PVE::AccessControl); one is renewed after half of that, so that a long run never meets the end.
const RENEW_AFTER: Duration = Duration::from_secs(60 * 60);
/// After this long a ticket is not even offered for renewal.
const WORTHLESS_AFTER: Duration = Duration::from_secs(2 * 60 * 60);

/// A login that Proxmox granted.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) cookie: Secret,
    pub(super) csrf: Secret,
    obtained: Instant,
}

impl Ticket {
    pub(super) fn is_fresh(&self) -> bool {
        self.obtained.elapsed() < RENEW_AFTER
    }

    pub(super) fn can_renew(&self) -> bool {
        self.obtained.elapsed() < WORTHLESS_AFTER
    }
}

/// The login request; a still valid ticket may stand for the password.
pub(super) fn login(user: &str, password: &Secret, otp: Option<&Secret>) -> Request {
    let request = Request::new(Method::Post, "/access/ticket").with("username", user).with_secret("password", password.clone());
    match otp {
        Some(code) if code.expose().contains(':') => request.with_secret("otp", code.clone()),
        Some(code) => request.with_secret("otp", Secret::new(format!("totp:{}", code.expose()))),
        None => request,
    }
}

/// Reads the reply to a login.
pub(super) fn granted(user: &str, place: &str, reply: &Value) -> Result<Ticket, CallError> {
    let field = |name: &str| reply.get(name).and_then(Value::as_str);
    let garbled = |why: &str| CallError::Garbled { place: place.to_owned(), why: why.to_owned() };
    let cookie = field("ticket").ok_or_else(|| garbled("the login gave no ticket"))?;
    // A half ticket: good for nothing but answering the challenge it carries.
    if cookie.starts_with("PVE:!tfa!") || reply.get("NeedTFA").is_some_and(|need| need.as_u64() != Some(0) && !need.is_null()) {
        return Err(CallError::SecondFactor { user: user.to_owned(), kinds: factors(cookie) });
    }
    let csrf = field("CSRFPreventionToken").ok_or_else(|| garbled("the login gave no CSRF token"))?;
    let clean = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b';');
    if !clean(cookie) || !clean(csrf) {
        return Err(garbled("the ticket has characters that no header can carry"));
    }
    Ok(Ticket { cookie: Secret::new(cookie), csrf: Secret::new(csrf), obtained: Instant::now() })
}

/// The kinds of second factor named in a half ticket, `PVE:!tfa!<percent-encoded JSON>:...`.
fn factors(ticket: &str) -> String {
    let known = ["totp", "recovery", "webauthn", "u2f", "yubico"];
    let named: Vec<&str> =
        known.into_iter().filter(|kind| ticket.contains(&format!("%22{kind}%22")) || ticket.contains(&format!("\"{kind}\""))).collect();
    if named.is_empty() { "of a kind it does not name".to_owned() } else { named.join(", ") }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_half_ticket_is_not_a_login() {
        let reply = json!({"ticket": "PVE:!tfa!%7B%22totp%22%3Atrue%2C%22recovery%22%3Anull%7D:65000000::c2ln", "NeedTFA": 1, "CSRFPreventionToken": "x"});
        let error = granted("root@pam", "https://pve:8006", &reply).unwrap_err().to_string();
        assert_eq!(error, "root@pam logs in with a second factor (totp, recovery)");
    }

    #[test]
    fn a_ticket_that_could_split_a_header_is_refused() {
        for ticket in ["PVE:root@pam:0\r\nX: y", "PVE:root@pam:0; a=b"] {
            let reply = json!({"ticket": ticket, "CSRFPreventionToken": "x"});
            assert!(granted("root@pam", "p", &reply).is_err(), "{ticket:?}");
        }
        assert!(granted("root@pam", "p", &json!({"ticket": "PVE:root@pam:65000000::c2ln", "CSRFPreventionToken": "65000000:abc"})).is_ok());
    }

    #[test]
    fn a_bare_code_is_a_totp_code() {
        let request = login("root@pam", &Secret::new("pw"), Some(&Secret::new("123456")));
        assert_eq!(request.params["otp"].expose(), "totp:123456");
        assert_eq!(request.to_string(), "POST /access/ticket otp=(secret) password=(secret) username=root@pam");
    }
}
