//! Who asks, and what they may do: tickets, API tokens, access control lists.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::factor::Factors;
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

/// What a login sends.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// `user@realm`
    pub user: &'a str,
    /// A password, a ticket, or the answer to a challenge.
    pub password: &'a str,
    /// The code of a login in one step.
    pub otp: &'a str,
    /// The half ticket that is answered.
    pub challenge: &'a str,
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
    grants: Vec<Grant>,
    factors: BTreeMap<String, Factors>,
    /// Half tickets and whose they are.
    halves: BTreeMap<String, String>,
    /// Users who have no password.
    others: BTreeSet<String>,
    /// Privileges by role.
    pub roles: BTreeMap<String, BTreeSet<String>>,
}

/// An entry of the access control list.
#[derive(Debug)]
struct Grant {
    at: String,
    who: String,
    what: Granted,
    /// It goes on to everything below.
    propagates: bool,
}

#[derive(Debug)]
enum Granted {
    Privileges(BTreeSet<String>),
    Role(String),
}

impl Grant {
    fn covers(&self, path: &str) -> bool {
        self.at == path || (self.propagates && (self.at == "/" || path.starts_with(&format!("{}/", self.at))))
    }
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
        let what = Granted::Privileges(privileges.split_whitespace().map(str::to_owned).collect());
        self.grants.push(Grant { at: path.to_owned(), who: who.to_owned(), what, propagates: true });
    }

    /// Grants privileges at this very path only.
    pub fn grant_here(&mut self, path: &str, who: &str, privileges: &str) {
        self.grant(path, who, privileges);
        self.grants.last_mut().unwrap().propagates = false;
    }

    /// Grants what a role has, now and later, on a path and all below it.
    pub fn grant_role(&mut self, path: &str, who: &str, role: &str) {
        self.grants.push(Grant { at: path.to_owned(), who: who.to_owned(), what: Granted::Role(role.to_owned()), propagates: true });
    }

    /// Takes every grant of somebody's away.
    pub fn revoke(&mut self, who: &str) {
        self.grants.retain(|grant| grant.who != who);
    }

    /// Adds a user who cannot log in.
    pub fn add_user_without_password(&mut self, user: &str) {
        self.others.insert(user.to_owned());
    }

    /// Every user.
    pub fn users(&self) -> impl Iterator<Item = &String> {
        self.passwords.keys().chain(&self.others)
    }

    /// Whether there is such a token.
    pub fn has_token(&self, id: &str) -> bool {
        self.tokens.contains_key(id)
    }

    /// Has a user's login ask for a second factor.
    pub fn ask_for(&mut self, user: &str, factors: Factors) {
        self.factors.insert(user.to_owned(), factors);
    }

    /// A user's second factors.
    pub fn factors(&self, user: &str) -> Option<&Factors> {
        self.factors.get(user)
    }

    /// Changes a user's password.
    pub fn set_password(&mut self, user: &str, password: &str) {
        self.add_user(user, password);
    }

    /// How many tickets were given out.
    pub fn tickets(&self) -> usize {
        self.tickets.len()
    }

    /// Makes every ticket out so far too old.
    pub fn expire_tickets(&mut self) {
        self.tickets.values_mut().for_each(|t| t.made = SystemTime::UNIX_EPOCH);
    }

    /// `POST /access/ticket`: the first step, or with `challenge` the second. `new_format` is how releases from 8.0 on answer.
    pub fn log_in(&mut self, login: &Login<'_>, new_format: bool) -> Reply {
        let Login { user, password, otp, challenge } = *login;
        let failed = || Reply { held_back: true, ..Reply::error(401, "authentication failure") };
        if !challenge.is_empty() {
            let is_open = self.halves.remove(challenge).is_some_and(|owner| owner == user);
            let answered = is_open && self.factors.get_mut(user).is_some_and(|factors| factors.takes(password));
            return if answered { self.ticket(user) } else { failed() };
        }
        // A ticket in the place of the password asks for no second factor.
        if self.ticket_user(password).is_some_and(|owner| owner == user) {
            return self.ticket(user);
        }
        if self.passwords.get(user).is_none_or(|known| known != password) {
            return failed();
        }
        match self.factors.get_mut(user) {
            None => self.ticket(user),
            Some(factors) if !otp.is_empty() => {
                if factors.takes(otp) {
                    self.ticket(user)
                } else {
                    failed()
                }
            }
            Some(factors) => {
                let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                let kind = if new_format { format!("!tfa!{}", factors.challenge()) } else { format!("tfa!{user}") };
                let half = format!("PVE:{kind}:{seconds:08X}::{}", random_text(255));
                self.halves.insert(half.clone(), user.to_owned());
                let csrf = format!("{seconds:08X}:{}", random_text(33));
                Reply::data(json!({ "username": user, "ticket": half, "CSRFPreventionToken": csrf, "NeedTFA": 1 }))
            }
        }
    }

    fn ticket(&mut self, user: &str) -> Reply {
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
            if self.halves.contains_key(&ticket) {
                return Err(Reply::empty(401, "No ticket"));
            }
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
        let covering = || self.grants.iter().filter(|grant| grant.who == caller.0 && grant.covers(path));
        let deepest = covering().map(|grant| grant.at.len()).max();
        let own = deepest.map(|depth| {
            let there = covering().filter(|grant| grant.at.len() == depth);
            let held = there.flat_map(|grant| match &grant.what {
                Granted::Privileges(privileges) => privileges.clone(),
                Granted::Role(role) => self.roles.get(role).cloned().unwrap_or_default(),
            });
            held.collect::<BTreeSet<String>>()
        });
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
            None => standing.into_iter().chain(self.grants.iter().map(|grant| grant.at.clone())).collect(),
        };
        let rows = paths.into_iter().map(|p| {
            // A privilege that does not go on to paths below is granted all the same, with the value 0.
            let here = self.grants.iter().any(|grant| grant.who == caller.0 && grant.at == p && !grant.propagates);
            let held: BTreeMap<_, _> = self.privileges(caller, &p).into_iter().map(|privilege| (privilege, u8::from(!here))).collect();
            (p, json!(held))
        });
        Value::Object(rows.filter(|(_, held)| path.is_some() || held != &json!({})).collect())
    }
}
