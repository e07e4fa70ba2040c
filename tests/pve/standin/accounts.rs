//! Roles, users, tokens and the access control list, as far as a provisioner sets them up.

use serde_json::{Value, json};

use super::http::{Reply, random_text};
use super::schema::Params;
use super::{Context, Version};

/// What came, or went, with a release.
fn is_known(privilege: &str, version: Version) -> bool {
    match privilege {
        "VM.Monitor" => version < Version::V9_0,
        "SDN.Use" => version >= Version(8, 0),
        name if name.starts_with("VM.GuestAgent.") => version >= Version::V9_0,
        name => super::access::ALL.split_whitespace().any(|known| known == name),
    }
}

fn privileges(context: &Context, params: &Params) -> Result<Vec<String>, Reply> {
    let listed = params.get("privs").map_or("", String::as_str);
    let names: Vec<String> = listed.split([' ', ',', ';']).filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect();
    match names.iter().find(|name| !is_known(name, context.core.options.version)) {
        Some(unknown) => Err(Reply::died(&format!("invalid privilege '{unknown}'"))),
        None => Ok(names),
    }
}

pub fn roles(context: &Context) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    let rows = inner.access.roles.iter().map(|(role, held)| {
        let privileges = held.iter().cloned().collect::<Vec<_>>().join(",");
        json!({ "roleid": role, "privs": privileges, "special": 0 })
    });
    Reply::data(rows.collect())
}

pub fn set_role(context: &Context, params: &Params, is_new: bool) -> Result<Reply, Reply> {
    let held = privileges(context, params)?;
    let role = params["roleid"].clone();
    let mut inner = context.core.inner.lock().unwrap();
    match (inner.access.roles.contains_key(&role), is_new) {
        (true, true) => return Err(Reply::died(&format!("create role failed: role '{role}' already exists"))),
        (false, false) => return Err(Reply::died(&format!("update role failed: role '{role}' does not exist"))),
        _ => {}
    }
    inner.access.roles.insert(role, held.into_iter().collect());
    Ok(Reply::data(Value::Null))
}

pub fn users(context: &Context) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    Reply::data(inner.access.users().map(|user| json!({ "userid": user, "enable": 1 })).collect())
}

pub fn add_user(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let user = params["userid"].clone();
    let mut inner = context.core.inner.lock().unwrap();
    if inner.access.users().any(|known| *known == user) {
        return Err(Reply::died(&format!("create user failed: user '{user}' already exists")));
    }
    inner.access.add_user_without_password(&user);
    Ok(Reply::data(Value::Null))
}

pub fn set_acl(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let mut inner = context.core.inner.lock().unwrap();
    let role = params["roles"].clone();
    if !inner.access.roles.contains_key(&role) {
        return Err(Reply::died(&format!("ACL update failed: role '{role}' does not exist")));
    }
    for user in params.get("users").into_iter().flat_map(|users| users.split(',')) {
        if !inner.access.users().any(|known| known == user) {
            return Err(Reply::died(&format!("ACL update failed: user '{user}' does not exist")));
        }
        inner.access.grant_role(&params["path"], user, &role);
    }
    Ok(Reply::data(Value::Null))
}

pub fn add_token(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let (user, token) = (&params["userid"], &params["tokenid"]);
    let mut inner = context.core.inner.lock().unwrap();
    if !inner.access.users().any(|known| known == user) {
        return Err(Reply::died(&format!("no such user ('{user}')")));
    }
    let id = format!("{user}!{token}");
    if inner.access.has_token(&id) {
        return Err(Reply::parameter("tokenid", "Token already exists."));
    }
    let separated = params.get("privsep").is_none_or(|flag| flag == "1");
    let digits: String =
        random_text(64).bytes().filter(u8::is_ascii_hexdigit).map(char::from).chain("0123456789abcdef0123456789".chars()).collect();
    let digits = digits.to_lowercase();
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    let secret = format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), "0a1b2c3d4e5f");
    inner.access.add_token(&id, &secret, separated);
    Ok(Reply::data(json!({ "full-tokenid": id, "value": secret, "info": { "privsep": u8::from(separated).to_string() } })))
}
