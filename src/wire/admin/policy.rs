//! The policy, as an admin reads and sets it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ident::NodeName;
use crate::time::Wall;

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    /// The file's text, comments and all; absent without a policy, when everything is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// When it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Wall>,
}

/// Puts a policy in force, or tries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// The file's text.
    pub text: String,
    /// Even if no node could reach any other then.
    #[serde(default)]
    pub force: bool,
    /// Say only what would come of it.
    #[serde(default)]
    pub check_only: bool,
}

/// What comes of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReport {
    /// It is in force now.
    pub in_force: bool,
    /// How many nodes there are.
    pub nodes: usize,
    /// Those of them that see no other.
    pub isolated: Vec<NodeName>,
    /// Users it names that do not exist (yet).
    pub unknown_users: Vec<String>,
    /// Routes it approves that were not approved before.
    pub approves: Vec<Approval>,
}

/// A route approved for a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Whose.
    pub node: NodeName,
    /// Which.
    pub route: IpNet,
}
