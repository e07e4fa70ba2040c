//! Who asks, and what they may do: tickets, API tokens, access control lists.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::http::{Reply, Request, percent_decode, random_text};

/// How long a ticket lives.
const TICKET_LIFE: Duration = Duration::from_secs(2 * 3600);

/// Every privilege, as root@pam has them.
pub const ALL: &str = "Datastore.Allocate Datastore.AllocateSpace Datastore.AllocateTemplate Datastore.Audit Group.Allocate Mapping.Audit \
    Mapping.Modify Mapping.Use Permissions.Modify Pool.Allocate Pool.Audit Realm.Allocate Realm.AllocateUser SDN.Allocate SDN.Audit SDN.Use \
    Sys.AccessNetwork Sys.Audit Sys.Console Sys.Incoming Sys.Modify Sys.PowerMgmt Sys.Syslog User.Modify VM.Allocate VM.Audit VM.Backup \
    VM.Clone VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit VM.Config.Disk VM.Config.HWType VM.Config.Memory VM.Config.Network \
    VM.Config.Options VM.Console VM.GuestAgent.Audit VM.GuestAgent.FileRead VM.GuestAgent.FileSystemMgmt VM.GuestAgent.FileWrite \
    VM.GuestAgent.Unrestricted VM.Migrate VM.PowerMgmt VM.Replicate VM.Snapshot VM.Snapshot.Rollback";
/// The role PVEVMAdmin.
pub const VM_ADMIN: &str = "VM.Allocate VM.Audit VM.Backup VM.Clone VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit VM.Config.Disk \
    VM.Config.HWType VM.Config.Memory VM.Config.Network VM.Config.Options VM.Console VM.GuestAgent.Audit VM.GuestAgent.FileRead \
    VM.GuestAgent.FileSystemMgmt VM.GuestAgent.FileWrite VM.GuestAgent.Unrestricted VM.Migrate VM.PowerMgmt VM.Replicate VM.Snapshot \
    VM.Snapshot.Rollback";
/// The role PVEDatastoreUser.
pub const DATASTORE_USER: &str = "Datastore.AllocateSpace Datastore.Audit";
/// The role PVESDNUser.
pub const SDN_USER: &str = "SDN.Audit SDN.Use";

/// Who is asking: `root@pam`, or a token `root@pam!name`, which is somebody else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller(pub String);

impl Caller {
    /// A literal comparison, as PVE makes it: a token of root is not root.
    pub fn is_root(&self) -> bool {
        self.0 == "root@pam"
    }

    /// The user, and the token's name if it is one.
    pub fn parts(&self) -> (&str, Option<&str>) {
        self.0.split_once('!').map_or((&self.0, None), |(user, token)| (user, Some(token)))
    }
}

#[derive(Debug)]
struct Token {
    secret: String,
    privilege_separation: bool,
}

#[derive(Debug)]
struct Ticket {
    user: String,
    csrf: String,
    made: SystemTime,
}

/// Users, tokens, tickets and the access control list.
#[derive(Debug, Default)]
pub struct Access {
    passwords: BTreeMap<String, String>,
    tokens: BTreeMap<String, Token>,
    tickets: BTreeMap<String, Ticket>,
    grants: Vec<(String, String, BTreeSet<String>)>,
}

impl Access {
    /// Adds a user with a password.
    pub fn add_user(&mut self, user: &str, password: &str) {
        self.passwords.insert(user.to_owned(), password.to_owned());
    }

    /// Adds an API token `user@realm!name`.
    pub fn add_token(&mut self, token: &str, secret: &str, privilege_separation: bool) {
        self.tokens.insert(token.to_owned(), Token { secret: secret.to_owned(), privilege_separation });
    }

    /// Grants privileges, separated by blanks, on a path and all below it.
    pub fn grant(&mut self, path: &str, who: &str, privileges: &str) {
        self.grants.push((path.to_owned(), who.to_owned(), privileges.split_whitespace().map(str::to_owned).collect()));
    }

    /// Makes every ticket out so far too old.
    pub fn expire_tickets(&mut self) {
        self.tickets.values_mut().for_each(|t| t.made = SystemTime::UNIX_EPOCH);
    }

    /// `POST /access/ticket`.
    pub fn log_in(&mut self, user: &str, password: &str) -> Reply {
        let known = self.passwords.get(user).is_some_and(|p| p == password) || self.ticket_user(password).is_some_and(|u| u == user);
        if !known {
            return Reply { held_back: true, ..Reply::error(401, "authentication failure") };
        }
        let now = SystemTime::now();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (ticket, csrf) = (format!("PVE:{user}:{seconds:08X}::{}", random_text(255)), format!("{seconds:08X}:{}", random_text(33)));
        self.tickets.insert(ticket.clone(), Ticket { user: user.to_owned(), csrf: csrf.clone(), made: now });
        Reply::data(
            json!({ "username": user, "ticket": ticket, "CSRFPreventionToken": csrf, "cap": {"vms": {}, "nodes": {}, "storage": {}} }),
        )
    }

    fn ticket_user(&self, ticket: &str) -> Option<&str> {
        let entry = self.tickets.get(ticket)?;
        (entry.made.elapsed().unwrap_or_default() < TICKET_LIFE).then_some(entry.user.as_str())
    }

    /// Who sent the request.
    ///
    /// # Errors
    /// The 401 reply, its text in the reason phrase only.
    pub fn authenticate(&self, request: &Request) -> Result<Caller, Reply> {
        let authorization = request.header("authorization");
        let cookie = request.header("cookie").split(';').find_map(|c| c.trim().strip_prefix("PVEAuthCookie=")).map(percent_decode);
        let cookie = cookie.or_else(|| authorization.strip_prefix("PVEAuthCookie=").map(percent_decode));
        if let Some(ticket) = cookie {
            let user = self.ticket_user(&ticket).ok_or_else(|| Reply::empty(401, "Authentication failed!"))?;
            let csrf = self.tickets.get(&ticket).map_or("", |t| &t.csrf);
            if request.method != "GET" && !request.is_upload() && request.header("csrfpreventiontoken") != csrf {
                return Err(Reply::empty(401, "Permission denied - invalid csrf token"));
            }
            return Ok(Caller(user.to_owned()));
        }
        if let Some(token) = authorization.strip_prefix("PVEAPIToken") {
            let sent = percent_decode(token.get(1..).unwrap_or_default());
            let known = sent.split_once('=').filter(|(id, secret)| self.tokens.get(*id).is_some_and(|t| t.secret == *secret));
            return known.map(|(id, _)| Caller(id.to_owned())).ok_or_else(|| Reply::empty(401, "Authentication failed!"));
        }
        Err(Reply::empty(401, "No ticket"))
    }

    /// What someone may do at a path: the entry at the deepest path counts.
    pub fn privileges(&self, caller: &Caller, path: &str) -> BTreeSet<String> {
        if caller.is_root() {
            return ALL.split_whitespace().map(str::to_owned).collect();
        }
        let own = self
            .grants
            .iter()
            .filter(|(at, who, _)| *who == caller.0 && (at == "/" || at == path || path.starts_with(&format!("{at}/"))))
            .max_by_key(|(at, _, _)| at.len())
            .map(|(_, _, privileges)| privileges.clone());
        let (user, token) = caller.parts();
        match token.and_then(|_| self.tokens.get(&caller.0)) {
            Some(Token { privilege_separation: false, .. }) => self.privileges(&Caller(user.to_owned()), path),
            Some(_) => {
                let users = self.privileges(&Caller(user.to_owned()), path);
                own.unwrap_or_default().intersection(&users).cloned().collect()
            }
            None => own.unwrap_or_default(),
        }
    }

    /// Whether the caller has one of the privileges at a path.
    pub fn has(&self, caller: &Caller, path: &str, any_of: &str) -> bool {
        let held = self.privileges(caller, path);
        any_of.split('|').any(|p| held.contains(p))
    }

    /// Refuses unless [`Access::has`].
    ///
    /// # Errors
    /// The 403 reply that names path and privilege.
    pub fn need(&self, caller: &Caller, path: &str, any_of: &str) -> Result<(), Reply> {
        if self.has(caller, path, any_of) { Ok(()) } else { Err(Reply::forbidden(&format!("{path}, {any_of}"))) }
    }

    /// `GET /access/permissions`: a key's presence grants; its value is the propagate flag.
    pub fn permissions(&self, caller: &Caller, path: Option<&str>) -> Value {
        let standing = ["/", "/access", "/nodes", "/pool", "/sdn", "/storage", "/vms"].map(str::to_owned);
        let paths: BTreeSet<String> = match path {
            Some(path) => BTreeSet::from([path.to_owned()]),
            None => standing.into_iter().chain(self.grants.iter().map(|(at, _, _)| at.clone())).collect(),
        };
        let rows = paths.into_iter().map(|p| {
            let held: BTreeMap<_, _> = self.privileges(caller, &p).into_iter().map(|privilege| (privilege, 1)).collect();
            (p, json!(held))
        });
        Value::Object(rows.filter(|(_, held)| path.is_some() || held != &json!({})).collect())
    }
}
