//! How a guest is recognised as ours: a tag to find it by, and a line in its notes to know it by.
//!
//! The tag alone proves nothing, since anybody may set it and clones carry it. The mark says which guest it was written for, what the
//! guest is, which run made it and whether that run came to its end.

use std::fmt;
use std::net::Ipv4Addr;

use super::block;
use crate::ident::{Mac, NodeName, Vmid};
use crate::pve::reply::ContainerConfig;

/// The tag of every guest of ours.
pub const TAG: &str = "pvemesh";
const OPEN: &str = "<!-- pvemesh ";
const CLOSE: &str = " -->";

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

/// What tells a guest from its copies, and what a copy that takes its place keeps. Marks of older versions have none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// The hardware address of its first interface, which a clone does not have.
    pub mac: Option<Mac>,
    /// Counts up with what happens to the guest; one lower than the host remembers means that the guest went back in time.
    pub generation: u64,
    /// Its address in the mesh, if our coordinator gave it one.
    pub address: Option<Ipv4Addr>,
}

/// The name of a fleet: one word of letters, digits and hyphens, at most 32.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FleetName(String);

/// A text that is no fleet's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("one word of letters, digits and -, at most 32")]
pub struct FleetNameError;

impl std::str::FromStr for FleetName {
    type Err = FleetNameError;

    fn from_str(text: &str) -> Result<Self, FleetNameError> {
        let clean = (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if clean { Ok(Self(text.to_owned())) } else { Err(FleetNameError) }
    }
}

impl fmt::Display for FleetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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
    /// What tells it from its copies.
    pub identity: Identity,
    /// The fleet it was made for; only `apply` writes one, and no copy has it.
    pub fleet: Option<FleetName>,
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
            identity: Identity {
                mac: value("mac").and_then(|text| text.parse().ok()),
                generation: value("gen").and_then(|text| text.parse().ok()).unwrap_or(0),
                address: value("addr").and_then(|text| text.parse().ok()),
            },
            fleet: value("fleet").and_then(|text| text.parse().ok()),
        })
    }

    /// The mark of a container that is ours: it has the tag and a mark written for this very number.
    pub fn of_container(vmid: Vmid, config: &ContainerConfig) -> Option<Self> {
        let tagged = config.tags.iter().any(|tag| tag == TAG);
        Self::find(&config.description).filter(|mark| tagged && mark.vmid == vmid)
    }

    /// The whole notes of a guest that has no others: what people read, then the mark.
    pub fn attach(&self, text: &str) -> String {
        block::compose(text, self)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.ready { "ready" } else { "unfinished" };
        write!(f, "{OPEN}vmid={} role={} name={} run={} state={state}", self.vmid, self.role, self.name, self.run)?;
        let Identity { mac, generation, address } = self.identity;
        if let Some(mac) = mac {
            write!(f, " mac={mac}")?;
        }
        if generation > 0 {
            write!(f, " gen={generation}")?;
        }
        if let Some(address) = address {
            write!(f, " addr={address}")?;
        }
        if let Some(fleet) = &self.fleet {
            write!(f, " fleet={fleet}")?;
        }
        f.write_str(CLOSE)
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
            identity: Identity::default(),
            fleet: None,
        }
    }

    #[test]
    fn marks_of_older_versions_are_read_and_those_of_now_read_back() {
        let old = "<!-- pvemesh vmid=101 role=exit-node name=exit-1 run=00000000000000000000000000000007 state=unfinished -->";
        assert_eq!(Mark::find(old), Some(mark()));
        assert_eq!(mark().to_string(), old);
        let identity =
            Identity { mac: Some(Mac::from_bytes([0xbc, 0x24, 0x11, 0, 0, 1])), generation: 4, address: Some([100, 64, 0, 5].into()) };
        let full = Mark { identity, ready: true, fleet: Some("home".parse().unwrap()), ..mark() };
        assert_eq!(Mark::find(&full.to_string()), Some(full));
    }

    #[test]
    fn a_mark_is_found_again_and_a_second_one_is_not_believed() {
        let notes = mark().attach("# pvemesh exit node\n<!-- pvemesh vmid=1 role=x -->\n");
        assert_eq!(Mark::find(&notes), Some(mark()));
        assert!(notes.contains("# pvemesh exit node"));
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
