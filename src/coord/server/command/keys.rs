//! Join keys: made, listed, withdrawn.

use super::{CommandError, check_tags};
use crate::coord::server::record::JoinKeyRecord;
use crate::coord::server::register::key_expires;
use crate::coord::server::routes::MAX_ROUTES;
use crate::coord::server::{Moment, Server, approval, join_key};
use crate::time::Wall;
use crate::wire::admin::{CreateKey, CreatedKey, KeyInfo};

/// Longest life of a join key: ten years.
const MAX_KEY_LIFE_SECS: u64 = 10 * 366 * 24 * 3600;
/// How long a join key that no longer works stays listed.
const DEAD_KEY_KEPT_SECS: i64 = 30 * 24 * 3600;

impl Server {
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
                address: key.address,
                expires: key.expires,
            })
            .collect()
    }

    /// Makes a join key. Its text is given once and never again.
    ///
    /// # Errors
    /// The user's name, a tag, the address or the lifetime is not usable.
    pub fn create_key(&mut self, at: Moment, wanted: &CreateKey) -> Result<CreatedKey, CommandError> {
        let tags = check_tags(&wanted.tags)?;
        if !(1..=MAX_KEY_LIFE_SECS).contains(&wanted.expires_in_secs) || wanted.approve_routes.len() > MAX_ROUTES {
            return Err(CommandError::Invalid(format!("a join key lives 1 second to 10 years and approves at most {MAX_ROUTES} routes")));
        }
        let expires = key_expires(at.wall, wanted.expires_in_secs)
            .ok_or_else(|| CommandError::Invalid("the join key would live past the end of time".to_owned()))?;
        self.forget_dead_keys(at.wall);
        if let Some(address) = wanted.address {
            if wanted.reusable {
                return Err(CommandError::Invalid("a key that works more than once cannot give all its nodes one address".to_owned()));
            }
            self.check_address_free(at.wall, address, None, None)?;
        }
        let user = self.user_for(at.wall, &wanted.user)?;
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
            tags,
            approve_routes: approval(wanted.approve_routes.iter().copied()),
            only_for: wanted.only_for.clone(),
            address: wanted.address,
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
}
