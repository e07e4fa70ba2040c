//! A trial: a change that leads this machine's traffic elsewhere is kept only if what was reached before it is reached after it. Who has
//! cut off the machine they sit at, or manage from afar, cannot take it back themselves.
//!
//! What is looked at is the router of the local network, and the coordinator by the address of the connection to it: what has to be
//! reached whatever the change means to do. Whether an exit node carries anything is no part of it: traffic waits for one that is away.

use std::time::Duration;

use super::Prefs;
use crate::time::Time;

/// How long what was reached has, to be reached again.
pub const LIMIT: Duration = Duration::from_secs(10);

/// What is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reach {
    /// The router of the local network answers.
    pub gateway: bool,
    /// The coordinator takes a connection.
    pub coordinator: bool,
}

impl Reach {
    fn and(self, other: Self) -> Self {
        Self { gateway: self.gateway && other.gateway, coordinator: self.coordinator && other.coordinator }
    }

    fn or(self, other: Self) -> Self {
        Self { gateway: self.gateway || other.gateway, coordinator: self.coordinator || other.coordinator }
    }
}

/// What becomes of the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is not known yet.
    Wait,
    /// It stays.
    Keep,
    /// It is taken back, for this reason.
    Undo(String),
}

/// A change on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    before: Prefs,
    after: Prefs,
    had: Reach,
    seen: Reach,
    until: Time,
}

/// Whether a change leads traffic another way that went past the tunnel before.
pub fn is_risky(before: &Prefs, after: &Prefs) -> bool {
    let exit = !after.exit_node.is_empty()
        && (before.exit_node.is_empty() || before.exit_node_allow_lan_access && !after.exit_node_allow_lan_access);
    after.want_running && (exit || after.accept_routes && !before.accept_routes)
}

impl Trial {
    /// Begins with a change that is made now. `had` is what was reached before it; what was not is no part of the trial.
    pub fn begin(now: Time, before: &Prefs, after: &Prefs, had: Reach) -> Option<Self> {
        let worth = had != Reach::default() && is_risky(before, after);
        worth.then(|| Self { before: before.clone(), after: after.clone(), had, seen: Reach::default(), until: now + LIMIT })
    }

    /// Takes a change into the trial that was made before, and has not proven itself yet.
    pub fn include(&mut self, earlier: &Self) {
        self.before = earlier.before.clone();
        self.had = self.had.or(earlier.had);
    }

    /// What has been reached since.
    pub fn note(&mut self, reach: Reach) {
        self.seen = self.seen.or(reach);
    }

    /// What becomes of it.
    pub fn verdict(&self, now: Time) -> Verdict {
        if self.seen.and(self.had) == self.had {
            return Verdict::Keep;
        }
        if now < self.until {
            return Verdict::Wait;
        }
        let missing = match (self.had.gateway && !self.seen.gateway, self.had.coordinator && !self.seen.coordinator) {
            (true, true) => "the local network's router and the coordinator were",
            (true, false) => "the local network's router was",
            _ => "the coordinator was",
        };
        let change = match (self.after.exit_node != self.before.exit_node, self.after.accept_routes != self.before.accept_routes) {
            (true, true) => "the exit node and the accepted routes were",
            (true, false) => "the exit node was",
            (false, true) => "accepting routes was",
            (false, false) => "the change was",
        };
        Verdict::Undo(format!("{change} taken back: {missing} no longer reached {} s later", LIMIT.as_secs()))
    }

    /// The preferences without the change. What somebody has changed again since stays as it is.
    pub fn undone(&self, now: &Prefs) -> Prefs {
        let mut prefs = now.clone();
        if now.exit_node == self.after.exit_node {
            prefs.exit_node.clone_from(&self.before.exit_node);
        }
        if now.accept_routes == self.after.accept_routes {
            prefs.accept_routes = self.before.accept_routes;
        }
        if now.exit_node_allow_lan_access == self.after.exit_node_allow_lan_access {
            prefs.exit_node_allow_lan_access = self.before.exit_node_allow_lan_access;
        }
        prefs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    fn prefs(exit_node: &str, accept_routes: bool) -> Prefs {
        Prefs { want_running: true, exit_node: exit_node.to_owned(), accept_routes, ..Prefs::default() }
    }

    const ALL: Reach = Reach { gateway: true, coordinator: true };

    #[test]
    fn only_changes_that_lead_traffic_into_the_tunnel_are_tried() {
        let plain = prefs("", false);
        for (before, after, risky) in [
            (&plain, prefs("home", false), true),
            (&plain, prefs("", true), true),
            (&prefs("home", true), plain.clone(), false),
            (&prefs("home", false), prefs("other", false), false),
            (&prefs("home", false), Prefs { exit_node_allow_lan_access: false, ..prefs("home", false) }, true),
            (&plain, Prefs { want_running: false, ..prefs("home", true) }, false),
        ] {
            assert_eq!(is_risky(before, &after), risky, "{before:?} to {after:?}");
        }
        assert_eq!(Trial::begin(at(0), &plain, &prefs("home", false), Reach::default()), None, "there is nothing to lose");
    }

    #[test]
    fn a_change_is_kept_once_everything_is_reached_that_was() {
        let mut trial = Trial::begin(at(0), &prefs("", false), &prefs("home", false), ALL).unwrap();
        assert_eq!(trial.verdict(at(1)), Verdict::Wait);
        trial.note(Reach { gateway: true, coordinator: false });
        assert_eq!(trial.verdict(at(2)), Verdict::Wait);
        // One after the other will do: single packets get lost.
        trial.note(Reach { gateway: false, coordinator: true });
        assert_eq!(trial.verdict(at(3)), Verdict::Keep);
        let silent_router = Reach { gateway: false, coordinator: true };
        let mut trial = Trial::begin(at(0), &prefs("", false), &prefs("home", false), silent_router).unwrap();
        trial.note(silent_router);
        assert_eq!(trial.verdict(at(1)), Verdict::Keep, "it never answered");
    }

    #[test]
    fn two_changes_in_a_row_are_taken_back_together() {
        let first = Trial::begin(at(0), &prefs("", false), &prefs("home", false), ALL).unwrap();
        let cut_off = Reach { gateway: true, coordinator: false };
        let mut second = Trial::begin(at(3), &prefs("home", false), &prefs("home", true), cut_off).unwrap();
        second.include(&first);
        second.note(cut_off);
        assert!(matches!(second.verdict(at(13)), Verdict::Undo(_)));
        assert_eq!(second.undone(&prefs("home", true)), prefs("", false));
    }

    #[test]
    fn a_change_that_cuts_the_machine_off_is_taken_back_and_nothing_else_is() {
        let mut trial = Trial::begin(at(0), &prefs("", false), &prefs("home", true), ALL).unwrap();
        trial.note(Reach { gateway: true, coordinator: false });
        let Verdict::Undo(why) = trial.verdict(at(10)) else { panic!() };
        assert_eq!(why, "the exit node and the accepted routes were taken back: the coordinator was no longer reached 10 s later");
        let now = Prefs { shields_up: true, ..prefs("home", true) };
        assert_eq!(trial.undone(&now), Prefs { shields_up: true, ..prefs("", false) });
        assert_eq!(trial.undone(&prefs("other", true)), prefs("other", false), "chosen since");
    }
}
