//! Whether a portal stands in the way: a hotel's network that answers every request itself until somebody has logged in.

use crate::wire::derp::http::challenge_response;

/// Relays that are asked.
pub const MAX_ASKED: usize = 5;

/// What a relay is asked with; no portal knows what it has to answer.
pub fn challenge(host: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '-' };
    format!("ts_{}", host.chars().take(64).map(plain).collect::<String>())
}

/// Whether an answer is the relay's own, and nobody's who stands before it.
pub fn is_the_relays(status: u16, answer: Option<&str>, host: &str) -> bool {
    status == 204 && answer.is_some() && answer == challenge_response(&challenge(host)).as_deref()
}

/// What several answers say together: one relay that answers itself is enough to know that nothing stands in the way. `None`: nobody
/// answered.
pub fn judge(answers: impl IntoIterator<Item = bool>) -> Option<bool> {
    answers.into_iter().fold(None, |portal, own| Some(portal.unwrap_or(true) && !own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_the_challenge_is_the_relays() {
        let right = challenge_response(&challenge("relay.example.com")).unwrap();
        assert!(is_the_relays(204, Some(&right), "relay.example.com"));
        assert!(!is_the_relays(200, Some(&right), "relay.example.com"), "a page");
        assert!(!is_the_relays(204, None, "relay.example.com") && !is_the_relays(302, None, "relay.example.com"));
        assert!(!is_the_relays(204, Some(&right), "other.example.com"), "somebody else's answer");
        let odd = challenge("[fd00::1]\r\nx: y");
        assert!(challenge_response(&odd).is_some(), "{odd}");
    }

    #[test]
    fn one_relay_that_answers_itself_is_enough() {
        assert_eq!(judge([]), None);
        assert_eq!(judge([false, false]), Some(true));
        assert_eq!(judge([false, true, false]), Some(false));
    }
}
