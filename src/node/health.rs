//! What the user should know of the node, one sentence each.

use jiff::SignedDuration;

use super::{Assembly, Prefs, Progress};
use crate::coord::client::NetMap;
use crate::time::Wall;
use crate::wire::control::DisplayMessage;

/// How long beforehand the end of the node key's life is told.
const WARNING: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Longer texts of the coordinator's are cut.
const MAX_TEXT: usize = 400;

/// Puts together what is to be known, the most important first.
pub fn health(prefs: &Prefs, progress: &Progress, map: Option<&NetMap>, assembly: Option<&Assembly>, now: Wall) -> Vec<String> {
    let mut lines = Vec::new();
    if !progress.unknown.is_empty() {
        lines.push(format!(
            "the coordinator no longer knows this node: it was removed there; log in again with `pvemesh node up` ({})",
            progress.unknown
        ));
    }
    lines.extend(assembly.map(|a| a.notes.clone()).unwrap_or_default());
    if prefs.want_running && !progress.trouble.is_empty() {
        lines.push(format!("the coordinator is not reached: {}", progress.trouble));
    }
    if let Some(map) = map {
        lines.extend(expiry(map, now));
        lines.extend(skew(map));
        lines.extend(from_coordinator(map));
    }
    lines
}

/// The end of the key's life, if it is near. That it has come is said where it takes effect.
fn expiry(map: &NetMap, now: Wall) -> Option<String> {
    let expiry = map.node.key_expiry?;
    let left = expiry.duration_since(map.control_time(now));
    let hours = left.as_hours();
    let when = if hours >= 48 { format!("in {} days", hours / 24) } else { format!("in {hours} hours") };
    let told = left > SignedDuration::ZERO && left < WARNING && !map.node.expired;
    told.then(|| format!("this node's key expires {when} ({expiry:.0}); renew it with `pvemesh node up --force-reauth`"))
}

fn skew(map: &NetMap) -> Option<String> {
    let seconds = map.clock_skew_secs.unsigned_abs();
    let amount = match seconds {
        0 => return None,
        1..=7_199 => format!("{} minutes", seconds.div_ceil(60)),
        _ => format!("{} hours", seconds / 3600),
    };
    let direction = if map.clock_skew_secs > 0 { "behind" } else { "ahead of" };
    Some(format!("this machine's clock is {amount} {direction} the coordinator's; set one of them right"))
}

/// What the coordinator says. The old form counts only where there is nothing in the new one.
fn from_coordinator(map: &NetMap) -> Vec<String> {
    let mut messages: Vec<&DisplayMessage> = map.messages.values().collect();
    messages.sort_by_key(|message| ["high", "medium", "low"].iter().position(|severity| message.severity == *severity).unwrap_or(1));
    let mut lines: Vec<String> = messages.iter().map(|message| shown(message)).collect();
    if lines.is_empty() {
        lines.extend(map.health.iter().map(|text| format!("the coordinator says: {}", bounded(text))));
    }
    if !map.page.is_empty() {
        lines.push(format!("the coordinator wants you to see {}", bounded(&map.page)));
    }
    lines
}

fn shown(message: &DisplayMessage) -> String {
    let parts = [&message.title, &message.text].into_iter().filter(|part| !part.is_empty()).map(|part| bounded(part));
    let text = parts.collect::<Vec<_>>().join(": ");
    match message.primary_action.as_ref().filter(|action| !action.url.is_empty()) {
        Some(action) => format!("{text} ({}: {})", bounded(&action.label), bounded(&action.url)),
        None => text,
    }
}

fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coord::client::MapSession;
    use crate::wire::control::json::from_slice;

    const NOW: &str = "2026-05-01T12:00:00Z";

    fn lines(json: &str) -> Vec<String> {
        let mut session = MapSession::default();
        let now: Wall = NOW.parse().unwrap();
        session.apply(from_slice(json.as_bytes()).unwrap(), now).unwrap();
        health(&Prefs::default(), &Progress::default(), session.netmap(), None, now)
    }

    #[test]
    fn the_end_of_the_keys_life_is_told_a_week_before() {
        let at = |expiry: &str| lines(&format!(r#"{{"Node":{{"ID":1,"KeyExpiry":"{expiry}"}}}}"#));
        assert!(at("2026-05-09T12:00:00Z").is_empty());
        assert!(
            at("2026-05-05T13:00:00Z")[..]
                == ["this node's key expires in 4 days (2026-05-05T13:00:00Z); renew it with `pvemesh node up --force-reauth`"]
        );
        assert!(at("2026-05-01T15:30:00Z").first().is_some_and(|line| line.contains("in 3 hours")));
        assert!(at("2026-05-01T11:00:00Z").is_empty(), "that it has expired is told where it takes effect");
    }

    #[test]
    fn a_clock_that_is_wrong_is_told_with_its_direction() {
        let at = |time: &str| lines(&format!(r#"{{"Node":{{"ID":1}},"ControlTime":"{time}"}}"#)).join(";");
        assert!(at("2026-05-02T12:00:00Z").contains("24 hours behind"), "{}", at("2026-05-02T12:00:00Z"));
        assert!(at("2026-05-01T11:50:00Z").contains("10 minutes ahead"));
        assert!(at(NOW).is_empty());
    }

    #[test]
    fn the_coordinators_words_are_shown_escaped_and_the_old_form_gives_way_to_the_new() {
        let old = lines(r#"{"Node":{"ID":1},"Health":["slow \u001b[2J"]}"#);
        assert_eq!(old, ["the coordinator says: slow \\u{1b}[2J"]);
        let new = lines(
            r#"{"Node":{"ID":1},"Health":["slow"],"DisplayMessages":{
                "a":{"Title":"Update","Text":"do it","Severity":"low","PrimaryAction":{"URL":"https://x/y","Label":"See"}},
                "b":{"Title":"Blocked","Severity":"high"}}}"#,
        );
        assert_eq!(new, ["Blocked", "Update: do it (See: https://x/y)"]);
    }

    #[test]
    fn a_removed_node_is_told_so_first() {
        let progress = Progress { unknown: "POST /machine/map: 404".to_owned(), trouble: "x".to_owned(), ..Default::default() };
        let lines = health(&Prefs { want_running: true, ..Default::default() }, &progress, None, None, Wall::UNIX_EPOCH);
        assert!(lines.first().is_some_and(|line| line.contains("removed there")) && lines.len() == 2, "{lines:?}");
    }
}
