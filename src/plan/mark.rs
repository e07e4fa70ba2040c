//! How a guest is recognised as ours: a tag to find it by, and a line in its notes to know it by.
//!
//! The tag alone proves nothing, since anybody may set it and clones carry it. The mark says which guest it was written for, what the
//! guest is, which run made it and whether that run came to its end.

use std::fmt;

use crate::ident::{NodeName, Vmid};
use crate::pve::reply::ContainerConfig;

/// The tag of every guest of ours.
pub const TAG: &str = "pvemesh";
const OPEN: &str = "<!-- pvemesh ";
const CLOSE: &str = " -->";
/// How our readable part begins.
const TITLE: &str = "# pvemesh ";

/// The number of one run of a command that makes something; 128 random bits, so that no other run has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(u128);

impl RunId {
    /// The run with these random bits.
    pub const fn new(random: u128) -> Self {
        Self(random)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<RunId> for String {
    fn from(run: RunId) -> Self {
        run.to_string()
    }
}

/// A text that is no run's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run's number has 32 hex digits")]
pub struct RunIdError;

impl TryFrom<String> for RunId {
    type Error = RunIdError;

    fn try_from(text: String) -> Result<Self, RunIdError> {
        text.parse()
    }
}

impl std::str::FromStr for RunId {
    type Err = RunIdError;

    fn from_str(text: &str) -> Result<Self, RunIdError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(RunIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| RunIdError)
    }
}

/// What a guest's notes say about it for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The guest it was written for; another number means a clone or a restored copy.
    pub vmid: Vmid,
    /// The role's name, as in `exit-node`.
    pub role: String,
    /// Its name.
    pub name: NodeName,
    /// The run that made it.
    pub run: RunId,
    /// That run came to its end.
    pub ready: bool,
}

impl Mark {
    /// Finds the mark in a guest's notes.
    pub fn find(notes: &str) -> Option<Self> {
        let inside = notes.split(OPEN).nth(1)?.split(CLOSE).next()?;
        let value = |key: &str| inside.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let role = value("role")?;
        if role.is_empty() || !role.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
            return None;
        }
        Some(Self {
            vmid: value("vmid")?.parse().ok()?,
            role: role.to_owned(),
            name: value("name")?.parse().ok()?,
            run: value("run")?.parse().ok()?,
            ready: value("state")? == "ready",
        })
    }

    /// The mark of a container that is ours: it has the tag and a mark written for this very number.
    pub fn of_container(vmid: Vmid, config: &ContainerConfig) -> Option<Self> {
        let tagged = config.tags.iter().any(|tag| tag == TAG);
        Self::find(&config.description).filter(|mark| tagged && mark.vmid == vmid)
    }

    /// Notes with this as our part: everything before our readable part and after our mark is the admin's and stays, byte for byte.
    pub fn put_into(&self, notes: &str, text: &str) -> String {
        let ours = self.attach(text);
        let Some(mark) = notes.find(OPEN) else {
            return if notes.trim().is_empty() { ours } else { format!("{}\n\n{ours}", notes.trim_end()) };
        };
        let after = notes.get(mark..).and_then(|rest| rest.split_once(CLOSE)).map_or("", |(_, after)| after);
        let ahead = notes.get(..mark).unwrap_or_default();
        let at_line_start = |at: &usize| *at == 0 || ahead.as_bytes().get(at - 1) == Some(&b'\n');
        let start = ahead.match_indices(TITLE).map(|(at, _)| at).find(at_line_start).unwrap_or(mark);
        format!("{}{}{after}", notes.get(..start).unwrap_or_default(), ours.trim_end_matches('\n'))
    }

    /// The whole notes: what people read, then the mark.
    pub fn attach(&self, text: &str) -> String {
        // A mark within the readable part would be found first; none can be there unless somebody put it into a name.
        format!("{}\n\n{self}\n", text.replace(OPEN, "").trim_end())
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.ready { "ready" } else { "unfinished" };
        write!(f, "{OPEN}vmid={} role={} name={} run={} state={state}{CLOSE}", self.vmid, self.role, self.name, self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark {
            vmid: "101".parse().unwrap(),
            role: "exit-node".to_owned(),
            name: "exit-1".parse().unwrap(),
            run: RunId::new(7),
            ready: false,
        }
    }

    #[test]
    fn a_mark_is_found_again_and_a_second_one_is_not_believed() {
        let notes = mark().attach("# pvemesh exit node\n<!-- pvemesh vmid=1 role=x -->\n");
        assert_eq!(Mark::find(&notes), Some(mark()));
        assert!(notes.contains("# pvemesh exit node"));
    }

    #[test]
    fn the_admin_s_text_around_ours_stays() {
        for (before, after) in [("", ""), ("mine\n", ""), ("", "\nthe rack \u{fc}ber\n\n"), ("a\n\n", " b <!-- c -->\n")] {
            let notes = format!("{before}{}{after}", mark().attach("# pvemesh exit node: exit-1\n").trim_end());
            let ready = Mark { ready: true, ..mark() };
            let again = ready.put_into(&notes, "# pvemesh exit node: exit-1\nmore");
            assert!(again.starts_with(before) && again.ends_with(after) && again.contains("more"), "{again:?}");
            assert_eq!((Mark::find(&again), again.matches(TITLE).count()), (Some(ready.clone()), 1));
            assert_eq!(ready.put_into(&again, "# pvemesh exit node: exit-1\nmore"), again);
        }
        assert!(mark().put_into("only mine", "# pvemesh x").starts_with("only mine\n\n# pvemesh x"));
    }

    #[test]
    fn notes_without_a_whole_mark_are_not_ours() {
        for notes in ["", "pvemesh", "<!-- pvemesh -->", "<!-- pvemesh vmid=101 role=exit-node name=exit-1 run=7 state=ready -->"] {
            assert_eq!(Mark::find(notes), None, "{notes}");
        }
    }

    #[test]
    fn a_clone_is_not_taken_for_the_original() {
        let config = ContainerConfig { description: mark().attach("x"), tags: vec![TAG.to_owned()], ..ContainerConfig::default() };
        assert_eq!(Mark::of_container("101".parse().unwrap(), &config), Some(mark()));
        assert_eq!(Mark::of_container("102".parse().unwrap(), &config), None);
        let untagged = ContainerConfig { tags: Vec::new(), ..config };
        assert_eq!(Mark::of_container("101".parse().unwrap(), &untagged), None);
    }
}
