//! Faults a test injects: a call refused, slow, cut off before or after it took effect, or a task that fails.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::Inside;

/// What goes wrong.
#[derive(Clone)]
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
    /// The API goes away before the request is carried out and is back after this time. Tasks go on.
    Restart(Duration),
    /// Something else happens first: somebody edits the guest, a backup locks it, the disk fills, the ticket expires.
    Meanwhile(Arc<dyn Fn(&Inside) + Send + Sync>),
}

impl Fault {
    /// Something that happens just before the call is carried out.
    pub fn meanwhile(change: impl Fn(&Inside) + Send + Sync + 'static) -> Self {
        Self::Meanwhile(Arc::new(change))
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DropBefore => f.write_str("DropBefore"),
            Self::DropAfter => f.write_str("DropAfter"),
            Self::Answer(status, text) => write!(f, "Answer({status}, {text:?})"),
            Self::TaskFails(text) => write!(f, "TaskFails({text:?})"),
            Self::Slow(time) => write!(f, "Slow({time:?})"),
            Self::Restart(time) => write!(f, "Restart({time:?})"),
            Self::Meanwhile(_) => f.write_str("Meanwhile"),
        }
    }
}

/// Which calls a fault meets.
#[derive(Debug)]
enum Hits {
    /// Those of this method whose path ends like this.
    Call { method: String, path: String },
    /// Every call that changes something; logging in is none.
    Write,
}

#[derive(Debug)]
struct Rule {
    hits: Hits,
    after: u32,
    fault: Fault,
}

/// The faults still to come.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
    away_until: Mutex<Option<Instant>>,
}

impl Faults {
    /// The `nth` (from 1) call from now on with this method whose path ends with `path` meets the fault, once.
    pub fn on(&self, method: &str, path: &str, nth: u32, fault: Fault) {
        self.add(Hits::Call { method: method.to_owned(), path: path.to_owned() }, nth, fault);
    }

    /// The `nth` (from 1) call from now on that changes something meets the fault, once, whatever call it is.
    pub fn on_write(&self, nth: u32, fault: Fault) {
        self.add(Hits::Write, nth, fault);
    }

    fn add(&self, hits: Hits, nth: u32, fault: Fault) {
        self.rules.lock().unwrap().push(Rule { hits, after: nth.saturating_sub(1), fault });
    }

    /// Takes the fault that a call meets.
    pub fn take(&self, method: &str, path: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let at = rules.iter_mut().position(|rule| {
            let hit = match &rule.hits {
                Hits::Call { method: wanted, path: end } => wanted == method && path.ends_with(end.as_str()),
                Hits::Write => is_write(method, path),
            };
            let due = hit && rule.after == 0;
            rule.after -= u32::from(hit && !due);
            due
        })?;
        Some(rules.remove(at).fault)
    }

    /// Whether every injected fault has happened.
    pub fn is_empty(&self) -> bool {
        self.rules.lock().unwrap().is_empty()
    }

    /// Forgets those still to come.
    pub fn clear(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// The API goes away for a while.
    pub fn restart(&self, time: Duration) {
        *self.away_until.lock().unwrap() = Some(Instant::now() + time);
    }

    /// Whether the API is there.
    pub fn is_serving(&self) -> bool {
        self.away_until.lock().unwrap().is_none_or(|until| Instant::now() >= until)
    }
}

/// Whether a call changes something.
pub fn is_write(method: &str, path: &str) -> bool {
    method != "GET" && !path.ends_with("/access/ticket")
}
