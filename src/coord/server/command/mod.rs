//! What an admin asks for.

mod keys;
mod nodes;
mod policy;
mod users;

use super::register::{Applicant, Grant};
use super::waiting::WaitingState;
use super::{Event, Moment, Server};
use crate::ident::{MachinePublic, NodePublic};
use crate::time::Wall;
use crate::wire::admin::{CoordinatorInfo, NodeInfo, Registration};

/// Most tags one node or key may have.
const MAX_TAGS: usize = 32;
/// Longest name of a tag.
const MAX_TAG_NAME: usize = 50;

/// Why an admin's request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It conflicts with what is there.
    #[error("{0}")]
    Conflict(String),
    /// It is not a valid request.
    #[error("{0}")]
    Invalid(String),
    /// What it names does not exist.
    #[error("there is no {0} {1}: see `pvemesh coordinator {0}s list`")]
    Missing(&'static str, String),
}

/// Tags as they are kept: sorted, none twice.
fn check_tags(tags: &[String]) -> Result<Vec<String>, CommandError> {
    if tags.len() > MAX_TAGS || !tags.iter().all(|tag| is_tag(tag)) {
        let text = format!("a tag is `tag:` and a name of lower-case letters, digits and `-`, and there are at most {MAX_TAGS}");
        return Err(CommandError::Invalid(text));
    }
    Ok(tags.iter().cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect())
}

/// Whether a text is a tag.
pub(super) fn is_tag(text: &str) -> bool {
    let name = text.strip_prefix("tag:").unwrap_or_default();
    let letter_first = name.starts_with(|c: char| c.is_ascii_lowercase());
    letter_first && name.len() <= MAX_TAG_NAME && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

impl Server {
    /// Those who wait for approval.
    pub fn registrations(&self) -> Vec<Registration> {
        self.waiting
            .iter()
            .map(|(id, waiting)| Registration {
                id: id.clone(),
                hostname: waiting.hostinfo.hostname.clone(),
                os: waiting.hostinfo.os.clone(),
                machine_key: waiting.machine,
                tags: waiting.tags.clone(),
                asked: waiting.asked,
            })
            .collect()
    }

    /// Lets one in that waits, as a node of this user.
    ///
    /// # Errors
    /// It does not wait any more, the user's name is not usable, it claims a tag that is not the user's to give, or no address is free.
    pub fn approve(&mut self, at: Moment, id: &str, user: &str) -> Result<NodeInfo, CommandError> {
        let Some(waiting) = self.waiting.get(id).cloned() else {
            let id: String = id.escape_default().take(80).collect();
            return Err(CommandError::Conflict(format!("no registration {id} is waiting: it may have lapsed, log in again on the node")));
        };
        self.check_claims(user, &[], &waiting.tags).map_err(CommandError::Conflict)?;
        let user = self.user_for(at.wall, user)?.id;
        let grant = Grant { ephemeral: waiting.ephemeral, claimed: waiting.tags, ..Grant::of(user) };
        let applicant = Applicant { machine: waiting.machine, key: waiting.key, version: waiting.version, hostinfo: &waiting.hostinfo };
        let node = self.enrol(at, applicant, &grant).map_err(CommandError::Conflict)?;
        self.waiting.leave(id);
        self.waiting.remember(id, at.now);
        self.events.push_back(Event::Decided);
        self.known(node).map(|node| self.listed(node))
    }

    /// Where a registration stands, for whoever holds its id.
    pub fn waiting_state(&self, id: &str) -> WaitingState {
        self.waiting.state(id)
    }

    /// Whether a relay should serve the holder of a node key: it is a node of this mesh and its key has not expired.
    pub fn admits(&self, key: &NodePublic, wall: Wall) -> bool {
        self.registry.node_with_key(key).is_some_and(|node| !node.expired(wall))
    }

    /// What the coordinator says of itself; the caller knows the rest.
    pub fn info(&self, version: &str, server_key: MachinePublic) -> CoordinatorInfo {
        CoordinatorInfo {
            version: version.to_owned(),
            url: self.settings.url.clone(),
            base_domain: self.settings.base_domain.clone(),
            server_key,
            nodes: self.registry.nodes().count(),
            online: self.presences.connected(),
        }
    }

    /// Whether a machine has any node here.
    pub fn knows_machine(&self, machine: &MachinePublic) -> bool {
        self.registry.nodes_of_machine(machine).next().is_some()
    }
}
