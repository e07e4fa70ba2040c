//! Calls and replies about who may do what, and about certificates.
//!
//! Built by hand: the generated types of these endpoints have patterns that do not compile, or names that need escaping in a path.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Method, Request};

/// What somebody may do, as Proxmox says: privileges by access control path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rights(BTreeMap<String, BTreeSet<String>>);

impl Rights {
    /// Reads `GET /access/permissions`. A privilege is granted if it is named at all: its value only says whether it goes on to paths below.
    pub fn read(value: &Value) -> Self {
        let rows = value.as_object().into_iter().flatten();
        Self(
            rows.map(|(path, held)| (path.clone(), held.as_object().into_iter().flat_map(|held| held.keys().cloned()).collect())).collect(),
        )
    }

    /// Adds what another reply says.
    pub fn merge(&mut self, other: Self) {
        for (path, held) in other.0 {
            self.0.entry(path).or_default().extend(held);
        }
    }

    /// Whether one of these is granted at this very path. Only paths that were asked for are known.
    pub fn has(&self, path: &str, any_of: &[&str]) -> bool {
        self.0.get(path).is_some_and(|held| any_of.iter().any(|privilege| held.contains(*privilege)))
    }

    /// Whether one of these is granted anywhere that was asked for.
    pub fn has_anywhere(&self, any_of: &[&str]) -> bool {
        self.0.keys().any(|path| self.has(path, any_of))
    }
}

/// One's own rights: at this path with everything inherited, or, without one, wherever an entry of the access control list stands.
pub fn permissions(path: Option<&str>) -> Request {
    let request = Request::new(Method::Get, "/access/permissions");
    match path {
        Some(path) => request.with("path", path),
        None => request,
    }
}

/// The certificates of the host that answers.
pub fn certificates() -> Request {
    Request::new(Method::Get, "/nodes/localhost/certificates/info")
}

/// The cluster's authority in the reply to [`certificates`], as PEM.
pub fn cluster_authority(value: &Value) -> Option<&str> {
    let row = value.as_array()?.iter().find(|row| row.get("filename").and_then(Value::as_str) == Some("pve-root-ca.pem"))?;
    row.get("pem")?.as_str()
}

/// The roles there are.
pub fn roles() -> Request {
    Request::new(Method::Get, "/access/roles")
}

/// The privileges of a role in the reply to [`roles`], if the role is there.
pub fn privileges_of(value: &Value, role: &str) -> Option<BTreeSet<String>> {
    let row = value.as_array()?.iter().find(|row| row.get("roleid").and_then(Value::as_str) == Some(role))?;
    let listed = row.get("privs").and_then(Value::as_str).unwrap_or_default();
    Some(listed.split([',', ' ', ';']).filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect())
}

/// Makes a role.
pub fn add_role(role: &str, privileges: &str) -> Request {
    Request::new(Method::Post, "/access/roles").with("roleid", role).with("privs", privileges)
}

/// Gives a role exactly these privileges.
pub fn change_role(role: &str, privileges: &str) -> Request {
    Request::new(Method::Put, format!("/access/roles/{role}")).with("privs", privileges)
}

/// The users there are.
pub fn users() -> Request {
    Request::new(Method::Get, "/access/users")
}

/// Whether a user is in the reply to [`users`].
pub fn has_user(value: &Value, user: &str) -> bool {
    value.as_array().into_iter().flatten().any(|row| row.get("userid").and_then(Value::as_str) == Some(user))
}

/// Makes a user who cannot log in: without a password there is none that fits.
pub fn add_user(user: &str, comment: &str) -> Request {
    Request::new(Method::Post, "/access/users").with("userid", user).with("comment", comment)
}

/// Gives a user a role at a path and everything below it; again is no change.
pub fn grant(path: &str, user: &str, role: &str) -> Request {
    Request::new(Method::Put, "/access/acl").with("path", path).with("users", user).with("roles", role).with("propagate", "1")
}

/// Makes a token with all rights of its user; the reply holds the secret, which is never shown again.
pub fn add_token(user: &str, token: &str, comment: &str) -> Request {
    Request::new(Method::Post, format!("/access/users/{user}/token/{token}")).with("privsep", "0").with("comment", comment)
}

/// The secret in the reply to [`add_token`].
pub fn token_secret(value: &Value) -> Option<&str> {
    value.get("value")?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_privilege_that_does_not_go_on_is_granted_too() {
        let rights = Rights::read(&json!({"/vms/101": {"VM.Audit": 0, "VM.Allocate": 1}, "/storage/local": {}}));
        assert!(rights.has("/vms/101", &["VM.Audit"]) && rights.has("/vms/101", &["X", "VM.Allocate"]));
        assert!(
            !rights.has("/vms/101", &["VM.Clone"])
                && !rights.has("/vms/102", &["VM.Audit"])
                && !rights.has("/storage/local", &["VM.Audit"])
        );
        assert!(rights.has_anywhere(&["VM.Audit"]) && !rights.has_anywhere(&["SDN.Use"]));
        assert_eq!(Rights::read(&Value::Null), Rights::default());
    }

    #[test]
    fn the_authority_is_found_among_the_certificates() {
        let reply = json!([{"filename": "pve-ssl.pem", "pem": "leaf"}, {"filename": "pve-root-ca.pem", "pem": "root"}]);
        assert_eq!(cluster_authority(&reply), Some("root"));
        assert_eq!(cluster_authority(&json!([])), None);
    }

    #[test]
    fn the_privileges_of_a_role_are_read_whatever_parts_them() {
        let reply = json!([{"roleid": "PVEMesh", "privs": "VM.Audit,VM.Allocate SDN.Use"}]);
        assert_eq!(privileges_of(&reply, "PVEMesh").unwrap().len(), 3);
        assert_eq!(privileges_of(&reply, "Other"), None);
    }
}
