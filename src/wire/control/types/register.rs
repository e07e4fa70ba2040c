//! Registration, and the answer of `/key`.

use serde::{Deserialize, Serialize};

use super::{Hostinfo, is_false, or_default, time_or_none, time_or_zero};
use crate::ident::{MachinePublic, NodePublic, Secret, UserId};
use crate::time::Wall;

/// The answer of `GET /key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerKeys {
    /// The key of a protocol that no longer exists; zero.
    #[serde(default, deserialize_with = "or_default")]
    pub legacy_public_key: MachinePublic,
    /// The server's Noise key.
    #[serde(default, deserialize_with = "or_default")]
    pub public_key: MachinePublic,
}

/// A node asks to be let in, to be renewed, or to be logged out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterRequest {
    /// Capability version of the client.
    pub version: u32,
    /// The node key being registered.
    #[serde(deserialize_with = "or_default")]
    pub node_key: NodePublic,
    /// The previous node key, zero if there was none. Clients keep sending it for ever after a rotation.
    #[serde(deserialize_with = "or_default")]
    pub old_node_key: NodePublic,
    /// The node's tailnet-lock key, `nlpub:` and 64 hex digits.
    #[serde(rename = "NLKey", skip_serializing_if = "String::is_empty")]
    pub lock_key: String,
    /// The join key, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegisterAuth>,
    /// Absent normally; in the past to log out; in the future to expire sooner.
    #[serde(deserialize_with = "time_or_none", serialize_with = "time_or_zero")]
    pub expiry: Option<Wall>,
    /// The address received earlier: hold this request until the user has visited it.
    pub followup: String,
    /// What the node says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    /// Forget the node some time after it disconnects.
    #[serde(skip_serializing_if = "is_false")]
    pub ephemeral: bool,
    /// A hint which tailnet to join.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tailnet: String,
}

/// The credentials of a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RegisterAuth {
    /// The join key.
    #[serde(default = "no_secret")]
    pub auth_key: Secret,
}

fn no_secret() -> Secret {
    Secret::new("")
}

/// The answer to a registration. Every field is always written: one client refuses answers that lack any.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterResponse {
    /// Who the node belongs to.
    pub user: RegisterUser,
    /// The login it was let in with.
    pub login: Login,
    /// The node has to make a new key and register again.
    pub node_key_expired: bool,
    /// The node may join. Always true from our coordinator.
    pub machine_authorized: bool,
    /// Where the user has to go before the node is let in; empty if nowhere.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Not empty: it failed, and this is what the user should read.
    pub error: String,
    /// A tailnet-lock request, base64; `null` normally.
    pub node_key_signature: Option<String>,
}

/// A user in a [`RegisterResponse`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterUser {
    /// Number.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Name shown to people.
    pub display_name: String,
    /// Picture; empty if none.
    #[serde(rename = "ProfilePicURL")]
    pub profile_pic_url: String,
    /// When the user was made.
    #[serde(deserialize_with = "time_or_none", serialize_with = "time_or_zero")]
    pub created: Option<Wall>,
}

/// A login in a [`RegisterResponse`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Login {
    /// Number.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Who vouched for it; empty for the coordinator itself.
    pub provider: String,
    /// The name, usually with an `@`.
    pub login_name: String,
    /// Name shown to people.
    pub display_name: String,
    /// Picture; empty if none.
    #[serde(rename = "ProfilePicURL")]
    pub profile_pic_url: String,
}
