//! Users: made, renamed, deleted.

use super::CommandError;
use crate::coord::server::journal::Change;
use crate::coord::server::{Moment, Server, UserRecord};
use crate::ident::{NodeId, UserId};
use crate::time::Wall;
use crate::wire::admin::User;

/// Longest name of a user.
const MAX_USER_NAME: usize = 64;

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
        self.check_name_free(name)?;
        self.user_for(at.wall, name).map(|user| listed_user(&user))
    }

    /// Gives a user another name. Its nodes stay as they are; whoever sees them is told the name.
    ///
    /// # Errors
    /// No such user; the name is not usable or taken.
    pub fn rename_user(&mut self, id: UserId, name: &str) -> Result<User, CommandError> {
        let before = self.registry.user(id).ok_or_else(|| CommandError::Missing("user", id.to_string()))?;
        if before.name == name {
            return Ok(listed_user(before));
        }
        check_usable(name)?;
        self.check_name_free(name)?;
        let Some(user) = self.registry.rename_user(id, name) else { return Err(CommandError::Missing("user", id.to_string())) };
        // The policy may know the one name and not the other.
        let owned: Vec<NodeId> = self.registry.nodes().filter(|node| node.user == id).map(|node| node.id).collect();
        for node in owned {
            if self.regard(node) {
                self.tell_peers(node, Change::Whole);
            }
        }
        self.tell_user(id);
        Ok(listed_user(&user))
    }

    /// Deletes a user and its join keys.
    ///
    /// # Errors
    /// No such user, or it has nodes.
    pub fn delete_user(&mut self, id: UserId) -> Result<(), CommandError> {
        let user = self.registry.user(id).ok_or_else(|| CommandError::Missing("user", id.to_string()))?;
        let nodes = self.registry.nodes().filter(|node| node.user == id).count();
        if nodes > 0 {
            let text = format!("the user {} still has {nodes} nodes: delete them or move them to another user first", user.name);
            return Err(CommandError::Conflict(text));
        }
        self.registry.remove_user(id);
        Ok(())
    }

    /// The user of this name, made if there is none.
    pub(super) fn user_for(&mut self, wall: Wall, name: &str) -> Result<UserRecord, CommandError> {
        if let Some(user) = self.registry.user_named(name) {
            return Ok(user.clone());
        }
        check_usable(name)?;
        Ok(self.registry.add_user(name, wall))
    }

    fn check_name_free(&self, name: &str) -> Result<(), CommandError> {
        match self.registry.user_named(name) {
            Some(_) => Err(CommandError::Conflict(format!("the user {name} already exists"))),
            None => Ok(()),
        }
    }
}

fn check_usable(name: &str) -> Result<(), CommandError> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '@');
    if name.is_empty() || name.len() > MAX_USER_NAME || !name.chars().all(usable) {
        return Err(CommandError::Invalid(format!("a user name has 1 to {MAX_USER_NAME} letters, digits and . - _ + @")));
    }
    Ok(())
}

fn listed_user(user: &UserRecord) -> User {
    User { id: user.id, name: user.name.clone(), created: user.created }
}
