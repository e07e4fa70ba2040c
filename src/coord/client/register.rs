//! What an answer to a registration means.

use crate::wire::control::RegisterResponse;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The node is in.
    Admitted {
        /// Whose node it is now, as people write it.
        login: String,
    },
    /// Make a new node key and register again.
    NewKey,
    /// It failed; the text is for the user. Trying again later does no harm, but something has to change first.
    Refused(String),
    /// The user has to visit this address; register again with it as the follow-up.
    Visit(String),
}

/// Reads an answer. `fresh` says that the node key in question was made for this very attempt.
///
/// The order matters: an error text counts before everything, and a demand for a new key before an address to visit.
pub fn judge(response: &RegisterResponse, fresh: bool) -> Verdict {
    let bounded = |text: &str| text.chars().take(400).flat_map(char::escape_debug).collect::<String>();
    if !response.error.is_empty() {
        Verdict::Refused(bounded(&response.error))
    } else if response.node_key_expired && fresh {
        // Asking for yet another key would go round in circles.
        Verdict::Refused("the coordinator calls a key expired that was made just now".to_owned())
    } else if response.node_key_expired {
        Verdict::NewKey
    } else if !response.auth_url.is_empty() {
        Verdict::Visit(bounded(&response.auth_url))
    } else {
        let login = [&response.login.login_name, &response.user.display_name].into_iter().find(|name| !name.is_empty());
        Verdict::Admitted { login: login.map(|name| bounded(name)).unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response() -> RegisterResponse {
        RegisterResponse { machine_authorized: true, ..Default::default() }
    }

    #[test]
    fn answers_are_read_in_the_protocols_order() {
        let admitted = Verdict::Admitted { login: String::new() };
        assert_eq!(judge(&response(), true), admitted);
        // Only the map's own node tells whether the machine is authorised.
        assert_eq!(judge(&RegisterResponse::default(), true), admitted);
        let expired = RegisterResponse { node_key_expired: true, auth_url: "http://x/1".to_owned(), ..response() };
        assert_eq!(judge(&expired, false), Verdict::NewKey);
        assert!(matches!(judge(&expired, true), Verdict::Refused(_)));
        let visit = RegisterResponse { auth_url: "http://x/1".to_owned(), ..response() };
        assert_eq!(judge(&visit, true), Verdict::Visit("http://x/1".to_owned()));
        let refused = RegisterResponse { error: "authkey already used".to_owned(), ..expired };
        assert_eq!(judge(&refused, false), Verdict::Refused("authkey already used".to_owned()));
    }

    #[test]
    fn a_coordinators_text_cannot_drive_the_terminal() {
        let refused = RegisterResponse { error: format!("\x1b[2J{}", "x".repeat(5000)), ..response() };
        let Verdict::Refused(text) = judge(&refused, false) else { panic!("not refused") };
        assert!(text.starts_with("\\u{1b}") && text.len() < 500);
    }
}
