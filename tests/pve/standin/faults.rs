//! Faults a test injects: a call refused, slow, cut off before or after it took effect, or a task that fails.

use std::sync::Mutex;
use std::time::Duration;

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection drops before the request is carried out.
    DropBefore,
    /// The request is carried out, then the connection drops without a reply.
    DropAfter,
    /// This reply instead, such as 596 of a proxy; nothing is carried out.
    Answer(u16, String),
    /// The call succeeds; the task it starts fails with this text.
    TaskFails(String),
    /// The reply comes late.
    Slow(Duration),
}

#[derive(Debug)]
struct Rule {
    method: String,
    path: String,
    after: u32,
    fault: Fault,
}

/// The faults still to come.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<Rule>>);

impl Faults {
    /// The `nth` (from 1) call from now on with this method whose path ends with `path` meets the fault, once.
    pub fn on(&self, method: &str, path: &str, nth: u32, fault: Fault) {
        let rule = Rule { method: method.to_owned(), path: path.to_owned(), after: nth.saturating_sub(1), fault };
        self.0.lock().unwrap().push(rule);
    }

    /// Takes the fault that a call meets.
    pub fn take(&self, method: &str, path: &str) -> Option<Fault> {
        let mut rules = self.0.lock().unwrap();
        let at = rules.iter_mut().position(|rule| {
            let hit = rule.method == method && path.ends_with(&rule.path);
            let due = hit && rule.after == 0;
            rule.after -= u32::from(hit && !due);
            due
        })?;
        Some(rules.remove(at).fault)
    }

    /// Whether every injected fault has happened.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}
