//! What an admin asks for.

use ipnet::IpNet;

use super::record::JoinKeyRecord;
use super::register::{Applicant, Grant, key_expires};
use super::routes::{MAX_ROUTES, approval};
use super::{Event, Moment, NodeRecord, Server, UserRecord, join_key};
use crate::ident::{MachinePublic, NodeId, NodeName, UserId};
use crate::time::Wall;
use crate::wire::admin::{CoordinatorInfo, CreateKey, CreatedKey, KeyInfo, NodeInfo, Registration, User};

/// Longest name of a user.
const MAX_USER_NAME: usize = 64;
/// Longest life of a join key: ten years.
const MAX_KEY_LIFE_SECS: u64 = 10 * 366 * 24 * 3600;
/// How long a join key that no longer works stays listed.
const DEAD_KEY_KEPT_SECS: i64 = 30 * 24 * 3600;

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

impl Server {
    /// The users, by number.
    pub fn users(&self) -> Vec<User> {
        self.registry.users().map(listed_user).collect()
    }

    /// Makes a user.
    ///
    /// # Errors
    /// The name is not usable or taken.
    pub fn create_user(&mut self, at: Moment, name: &str) -> Result<User, CommandError> {
        if self.registry.user_named(name).is_some() {
            return Err(CommandError::Conflict(format!("the user {name} already exists")));
        }
        self.user_for(at.wall, name).map(|user| listed_user(&user))
    }

    /// Deletes a user and its join keys.
    ///
    /// # Errors
    /// No such user, or it has nodes.
    pub fn delete_user(&mut self, id: UserId) -> Result<(), CommandError> {
        let user = self.registry.user(id).ok_or_else(|| CommandError::Missing("user", id.to_string()))?;
        let nodes = self.registry.nodes().filter(|node| node.user == id).count();
        if nodes > 0 {
            return Err(CommandError::Conflict(format!("the user {} still has {nodes} nodes: delete them first", user.name)));
        }
        self.registry.remove_user(id);
        Ok(())
    }

    fn user_for(&mut self, wall: Wall, name: &str) -> Result<UserRecord, CommandError> {
        if let Some(user) = self.registry.user_named(name) {
            return Ok(user.clone());
        }
        let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '@');
        if name.is_empty() || name.len() > MAX_USER_NAME || !name.chars().all(usable) {
            return Err(CommandError::Invalid(format!("a user name has 1 to {MAX_USER_NAME} letters, digits and . - _ + @")));
        }
        Ok(self.registry.add_user(name, wall))
    }

    /// The join keys, by number.
    pub fn keys(&self) -> Vec<KeyInfo> {
        let owner = |id| self.registry.user(id).map(|user| user.name.clone()).unwrap_or_default();
        self.registry
            .keys()
            .map(|key| KeyInfo {
                id: key.id,
                prefix: join_key::listed(&key.prefix),
                user: owner(key.user),
                reusable: key.reusable,
                ephemeral: key.ephemeral,
                used: key.used,
                revoked: key.revoked,
                tags: key.tags.clone(),
                approve_routes: key.approve_routes.iter().copied().collect(),
                only_for: key.only_for.clone(),
                expires: key.expires,
            })
            .collect()
    }

    /// Makes a join key. Its text is given once and never again.
    ///
    /// # Errors
    /// The user's name, a tag or the lifetime is not usable.
    pub fn create_key(&mut self, at: Moment, wanted: &CreateKey) -> Result<CreatedKey, CommandError> {
        for tag in &wanted.tags {
            let name = tag.strip_prefix("tag:").unwrap_or_default();
            let letter_first = name.starts_with(|c: char| c.is_ascii_lowercase());
            if !letter_first || name.len() > 50 || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
                return Err(CommandError::Invalid("a tag is `tag:` and a name of lower-case letters, digits and `-`".to_owned()));
            }
        }
        if !(1..=MAX_KEY_LIFE_SECS).contains(&wanted.expires_in_secs) || wanted.approve_routes.len() > MAX_ROUTES {
            return Err(CommandError::Invalid(format!("a join key lives 1 second to 10 years and approves at most {MAX_ROUTES} routes")));
        }
        let expires = key_expires(at.wall, wanted.expires_in_secs)
            .ok_or_else(|| CommandError::Invalid("the join key would live past the end of time".to_owned()))?;
        let user = self.user_for(at.wall, &wanted.user)?;
        self.forget_dead_keys(at.wall);
        let made = join_key::make(&mut self.rng);
        let id = self.registry.add_key(JoinKeyRecord {
            id: 0,
            prefix: made.prefix,
            digest: made.digest,
            user: user.id,
            reusable: wanted.reusable,
            ephemeral: wanted.ephemeral,
            used: false,
            revoked: false,
            tags: wanted.tags.clone(),
            approve_routes: approval(wanted.approve_routes.iter().copied()),
            only_for: wanted.only_for.clone(),
            created: at.wall,
            expires,
        });
        Ok(CreatedKey { id, key: made.text, expires })
    }

    fn forget_dead_keys(&mut self, wall: Wall) {
        let long_dead = |key: &&JoinKeyRecord| wall.as_second().saturating_sub(key.expires.as_second()) > DEAD_KEY_KEPT_SECS;
        let dead: Vec<i64> = self.registry.keys().filter(long_dead).map(|key| key.id).collect();
        for id in dead {
            self.registry.remove_key(id);
        }
    }

    /// Withdraws a join key. Nodes that joined with it stay.
    ///
    /// # Errors
    /// No such key.
    pub fn revoke_key(&mut self, id: i64) -> Result<(), CommandError> {
        let revoked = self.registry.change_key(id, |key| key.revoked = true);
        if revoked { Ok(()) } else { Err(CommandError::Missing("key", id.to_string())) }
    }

    /// The nodes, by number.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        self.registry.nodes().map(|node| self.listed(node)).collect()
    }

    /// Deletes a node. If it is connected, it is told that it has to log in again.
    ///
    /// # Errors
    /// No such node.
    pub fn delete_node(&mut self, at: Moment, id: NodeId) -> Result<(), CommandError> {
        self.known(id)?;
        self.remove(id, at);
        Ok(())
    }

    /// Replaces the set of routes a node is allowed to carry.
    ///
    /// # Errors
    /// No such node, or too many routes.
    pub fn approve_routes(&mut self, at: Moment, id: NodeId, routes: &[IpNet]) -> Result<NodeInfo, CommandError> {
        if routes.len() > MAX_ROUTES {
            return Err(CommandError::Invalid(format!("at most {MAX_ROUTES} routes can be approved for one node")));
        }
        let mut node = self.known(id)?.clone();
        node.approved = approval(routes.iter().copied());
        self.replace(at, node);
        self.known(id).map(|node| self.listed(node))
    }

    /// Renames a node; the name no longer follows its host name.
    ///
    /// # Errors
    /// No such node, or another has the name.
    pub fn rename(&mut self, at: Moment, id: NodeId, name: &NodeName) -> Result<NodeInfo, CommandError> {
        let mut node = self.known(id)?.clone();
        if self.registry.name_holder(name).is_some_and(|holder| holder != id) {
            return Err(CommandError::Conflict(format!("another node is named {name}: rename that one first")));
        }
        node.name = name.clone();
        node.renamed = true;
        self.replace(at, node);
        self.known(id).map(|node| self.listed(node))
    }

    /// Ends the validity of a node's key now.
    ///
    /// # Errors
    /// No such node.
    pub fn expire_node(&mut self, at: Moment, id: NodeId) -> Result<NodeInfo, CommandError> {
        self.known(id)?;
        self.expire(id, at);
        self.known(id).map(|node| self.listed(node))
    }

    /// Those who wait for approval.
    pub fn registrations(&self) -> Vec<Registration> {
        self.waiting
            .iter()
            .map(|(id, waiting)| Registration {
                id: id.clone(),
                hostname: waiting.hostinfo.hostname.clone(),
                os: waiting.hostinfo.os.clone(),
                machine_key: waiting.machine,
                asked: waiting.asked,
            })
            .collect()
    }

    /// Lets one in that waits, as a node of this user.
    ///
    /// # Errors
    /// It does not wait any more, the user's name is not usable, or no address is free.
    pub fn approve(&mut self, at: Moment, id: &str, user: &str) -> Result<NodeInfo, CommandError> {
        if self.waiting.get(id).is_none() {
            let id: String = id.escape_default().take(80).collect();
            return Err(CommandError::Conflict(format!("no registration {id} is waiting: it may have lapsed, log in again on the node")));
        }
        let user = self.user_for(at.wall, user)?.id;
        let Some(waiting) = self.waiting.leave(id) else {
            return Err(CommandError::Missing("registration", id.to_owned()));
        };
        self.events.push_back(Event::Decided);
        let grant = Grant { user, tags: Vec::new(), approve: Vec::new(), ephemeral: waiting.ephemeral };
        let applicant = Applicant { machine: waiting.machine, key: waiting.key, version: waiting.version, hostinfo: &waiting.hostinfo };
        let node = self.enrol(at, applicant, &grant).map_err(CommandError::Conflict)?;
        self.known(node).map(|node| self.listed(node))
    }

    /// What the coordinator says of itself; the caller knows the rest.
    pub fn info(&self, version: &str, server_key: MachinePublic) -> CoordinatorInfo {
        CoordinatorInfo {
            version: version.to_owned(),
            url: self.settings.url.clone(),
            base_domain: self.settings.base_domain.clone(),
            server_key,
            nodes: self.registry.nodes().count(),
            online: self.presence.values().filter(|presence| presence.session.is_some()).count(),
        }
    }

    /// Whether a machine has any node here.
    pub fn knows_machine(&self, machine: &MachinePublic) -> bool {
        self.registry.nodes_of_machine(machine).next().is_some()
    }

    fn known(&self, id: NodeId) -> Result<&NodeRecord, CommandError> {
        self.registry.node(id).ok_or_else(|| CommandError::Missing("node", id.to_string()))
    }

    fn listed(&self, node: &NodeRecord) -> NodeInfo {
        let online = self.presence.get(&node.id).is_some_and(|presence| presence.online);
        NodeInfo {
            id: node.id,
            fqdn: format!("{}.{}", node.name, self.settings.base_domain),
            name: node.name.clone(),
            user: self.registry.user(node.user).map(|user| user.name.clone()).unwrap_or_default(),
            key: node.key,
            addresses: vec![node.v4.into(), node.v6.into()],
            online,
            last_seen: if online { None } else { node.last_seen },
            key_expiry: node.key_expiry,
            tags: node.tags.clone(),
            advertised_routes: node.advertised.iter().copied().collect(),
            approved_routes: node.approved.iter().copied().collect(),
            os: node.hostinfo.os.clone(),
        }
    }
}

fn listed_user(user: &UserRecord) -> User {
    User { id: user.id, name: user.name.clone(), created: user.created }
}
