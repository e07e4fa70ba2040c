//! Nodes: named, addressed, tagged, moved, expired, deleted, and their routes approved.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::{CommandError, check_tags};
use crate::coord::server::routes::{MAX_ROUTES, approval, is_exit};
use crate::coord::server::{Moment, NodeRecord, Server};
use crate::ident::{NodeId, NodeName};
use crate::time::Wall;
use crate::wire::admin::{Expire, NodeInfo};

/// Longest time after which a node key may be set to expire: a hundred years.
const MAX_EXPIRY_SECS: u64 = 100 * 366 * 24 * 3600;

impl Server {
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
        self.change(at, id, |node| node.approved = approval(routes.iter().copied()))
    }

    /// Renames a node; the name no longer follows its host name.
    ///
    /// # Errors
    /// No such node, or another has the name.
    pub fn rename(&mut self, at: Moment, id: NodeId, name: &NodeName) -> Result<NodeInfo, CommandError> {
        self.known(id)?;
        if self.registry.name_holder(name).is_some_and(|holder| holder != id) {
            return Err(CommandError::Conflict(format!("another node is named {name}: rename that one first")));
        }
        if self.is_recorded(name) && self.registry.name_holder(name).is_none() {
            return Err(CommandError::Conflict(format!("the DNS settings have a record or an alias {name}: remove that one first")));
        }
        self.change(at, id, |node| {
            node.name = name.clone();
            node.renamed = true;
        })
    }

    /// Sets when a node's key expires: now, later, or never. Tagged nodes' keys do not expire by themselves, but may be made to.
    ///
    /// # Errors
    /// No such node, or the time is out of range.
    pub fn expire_node(&mut self, at: Moment, id: NodeId, wanted: Expire) -> Result<NodeInfo, CommandError> {
        self.known(id)?;
        match (wanted.never, wanted.in_secs) {
            (true, Some(_)) => Err(CommandError::Invalid("a key expires at a time or never, not both".to_owned())),
            (true, None) => self.change(at, id, |node| {
                node.never_expires = true;
                node.key_expiry = None;
            }),
            (false, None) => {
                self.expire(id, at);
                self.known(id).map(|node| self.listed(node))
            }
            (false, Some(seconds)) => {
                let range = || CommandError::Invalid("a key can be set to expire after 1 second to 100 years".to_owned());
                let fits = (1..=MAX_EXPIRY_SECS).contains(&seconds);
                let expiry = fits.then(|| super::super::register::key_expires(at.wall, seconds)).flatten().ok_or_else(range)?;
                self.change(at, id, |node| {
                    node.never_expires = false;
                    node.key_expiry = Some(expiry);
                })
            }
        }
    }

    /// Gives a node another address. The IPv6 address goes with it.
    ///
    /// # Errors
    /// No such node; the address is out of range, reserved, or another's.
    pub fn set_address(&mut self, at: Moment, id: NodeId, address: Ipv4Addr) -> Result<NodeInfo, CommandError> {
        self.known(id)?;
        let (v4, v6) = self.check_address_free(at.wall, address, Some(id), None)?;
        self.change(at, id, |node| (node.v4, node.v6) = (v4, v6))
    }

    /// Replaces a node's tags. With tags it no longer acts as its user, and its key does not expire; without any it is its user's again,
    /// and its key lives as long as after a login.
    ///
    /// # Errors
    /// No such node, or a tag is not usable.
    pub fn tag_node(&mut self, at: Moment, id: NodeId, tags: &[String]) -> Result<NodeInfo, CommandError> {
        let tags = check_tags(tags)?;
        let was_tagged = !self.known(id)?.tags.is_empty();
        let expiry = self.expiry_after_login(at.wall);
        self.change(at, id, |node| {
            node.tags_chosen = !tags.is_empty();
            if was_tagged == tags.is_empty() && !node.expired(at.wall) {
                node.key_expiry = expiry.filter(|_| tags.is_empty() && !node.never_expires);
            }
            node.tags = tags;
        })
    }

    /// Gives a node to another user.
    ///
    /// # Errors
    /// No such node or user; or that user already has a node of the same machine, which a login could not tell from this one.
    pub fn move_node(&mut self, at: Moment, id: NodeId, user: &str) -> Result<NodeInfo, CommandError> {
        let node = self.known(id)?;
        let shown: String = user.escape_default().take(80).collect();
        let owner = self.registry.user_named(user).ok_or(CommandError::Missing("user", shown))?.id;
        if let Some(other) = self.registry.node_of(&node.machine, owner).filter(|other| other.id != id) {
            return Err(CommandError::Conflict(format!("{user} already has a node of this machine, {}: delete it first", other.name)));
        }
        self.change(at, id, |node| node.user = owner)
    }

    fn change(&mut self, at: Moment, id: NodeId, change: impl FnOnce(&mut NodeRecord)) -> Result<NodeInfo, CommandError> {
        let mut node = self.known(id)?.clone();
        change(&mut node);
        self.replace(at, node);
        self.known(id).map(|node| self.listed(node))
    }

    /// The pair of addresses that an IPv4 address belongs to, if `holder` may have it, perhaps by the join key that reserves it.
    pub(in crate::coord::server) fn check_address_free(
        &self,
        wall: Wall,
        address: Ipv4Addr,
        holder: Option<NodeId>,
        join_key: Option<i64>,
    ) -> Result<(Ipv4Addr, std::net::Ipv6Addr), CommandError> {
        let pair = self.settings.plan.pair_of(address).ok_or_else(|| {
            let range = self.settings.plan.range();
            CommandError::Invalid(format!("{address} is not one that nodes get: choose one in {range} that is not reserved"))
        })?;
        if let Some(other) = self.registry.address_holder(address).filter(|other| Some(other.id) != holder) {
            return Err(CommandError::Conflict(format!("{address} is the address of {}: choose another", other.name)));
        }
        if let Some(key) = self.registry.reserving_key(wall, address).filter(|key| Some(key.id) != join_key) {
            let text = format!("{address} is reserved by join key {}: choose another, or revoke that key", key.id);
            return Err(CommandError::Conflict(text));
        }
        Ok(pair)
    }

    pub(in crate::coord::server) fn known(&self, id: NodeId) -> Result<&NodeRecord, CommandError> {
        self.registry.node(id).ok_or_else(|| CommandError::Missing("node", id.to_string()))
    }

    pub(in crate::coord::server) fn listed(&self, node: &NodeRecord) -> NodeInfo {
        let online = self.presences.is_online(node.id);
        let exit = node.effective_routes().filter(|net| online && is_exit(net));
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
            carried_routes: exit.chain(self.primaries.of(node.id)).collect(),
            os: node.hostinfo.os.clone(),
            client: node.hostinfo.ipn_version.clone(),
            endpoints: node.endpoints.clone(),
            home_relay: node.home_derp,
            machine_key: node.machine,
            ephemeral: node.ephemeral,
            join_key: node.join_key,
            created: Some(node.created),
        }
    }
}
