//! Registration: who is let in, as which node.
//!
//! The order matters, each step guarding the next: a past expiry is a logout even if a join key comes with it; a node that is known and
//! valid succeeds whatever has become of its join key since (containers restart with a used key all the time); then whoever waits for
//! approval; then join keys; and whoever has none is told where to ask.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::IpNet;

use super::command::is_tag;
use super::describe::shown_user;
use super::journal::Change;
use super::record::{JoinKeyRecord, NodeRecord};
use super::update::kept_hostinfo;
use super::waiting::Waiting;
use super::{Moment, Server, join_key};
use crate::ident::{DiscoPublic, MachinePublic, NodeId, NodeName, NodePublic, StableId, UserId};
use crate::time::Wall;
use crate::wire::control::{Hostinfo, Login, MINIMUM_CAPABILITY_VERSION, RegisterRequest, RegisterResponse, RegisterUser};

/// How long a node key lives unless set otherwise, as the hosted service has it. Tagged nodes' keys do not expire.
pub const KEY_LIFE: Duration = Duration::from_secs(180 * 24 * 3600);
/// The path under which a waiting registration's page stands, its id behind it.
const LOGIN_PATH: &str = "/register/";

/// The answer to a registration.
#[derive(Debug, Clone, PartialEq)]
pub enum Registered {
    /// Send this.
    Answer(Box<RegisterResponse>),
    /// Hold the request and ask again after [`super::Event::Decided`].
    Hold,
}

/// What a registration brings with it: from a join key or from someone's approval.
pub(super) struct Grant {
    pub(super) user: UserId,
    /// Tags of the join key.
    pub(super) tags: Vec<String>,
    /// Tags the node claims, found to be its user's to give.
    pub(super) claimed: Vec<String>,
    pub(super) approve: Vec<IpNet>,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) ephemeral: bool,
    /// The join key.
    pub(super) key: Option<i64>,
}

impl Grant {
    /// A user's login, and nothing besides.
    pub(super) fn of(user: UserId) -> Self {
        Self { user, tags: Vec::new(), claimed: Vec::new(), approve: Vec::new(), address: None, ephemeral: false, key: None }
    }
}

/// Who asks.
pub(super) struct Applicant<'a> {
    pub(super) machine: MachinePublic,
    pub(super) key: NodePublic,
    pub(super) version: u32,
    pub(super) hostinfo: &'a Hostinfo,
}

impl Server {
    /// A registration by a machine whose key the connection has proven. Refusals are answers, too: clients show their text.
    pub fn register(&mut self, at: Moment, machine: &MachinePublic, request: &RegisterRequest) -> Registered {
        match self.decide(at, machine, request) {
            Ok(registered) => registered,
            Err(error) => {
                tracing::debug!(%error, "registration refused");
                Registered::Answer(Box::new(RegisterResponse { error, ..RegisterResponse::default() }))
            }
        }
    }

    fn decide(&mut self, at: Moment, machine: &MachinePublic, request: &RegisterRequest) -> Result<Registered, String> {
        if request.version < u32::from(MINIMUM_CAPABILITY_VERSION) {
            return Err(format!("this client is too old (capability version {}): Tailscale 1.80 or newer is needed", request.version));
        }
        if request.node_key.is_zero() {
            return Err("the request names no node key".to_owned());
        }
        let known = self.registry.node_with_key(&request.node_key).cloned();
        if let Some(node) = &known
            && node.machine != *machine
        {
            return Err("this node key is already in use by another machine: make a new one by logging out and in again".to_owned());
        }
        if request.expiry.is_some_and(|expiry| expiry <= at.wall) {
            return Ok(self.log_out(at, known.as_ref()));
        }
        let text = request.auth.as_ref().map(|auth| auth.auth_key.expose()).filter(|text| !text.is_empty());
        match known {
            Some(node) if !node.expired(at.wall) => return self.renew(at, node, request),
            // Clients make a new key when told so, and stop asking if that one is refused the same way: only a known key is.
            Some(node) if text.is_none() => {
                return Ok(answer(RegisterResponse { node_key_expired: true, machine_authorized: true, ..self.accepted(&node) }));
            }
            _ => {}
        }
        if let Some(text) = text {
            let grant = self.grant_of_key(at, machine, text, request)?;
            let default = Hostinfo::default();
            let hostinfo = request.hostinfo.as_ref().unwrap_or(&default);
            let id = self.enrol(at, Applicant { machine: *machine, key: request.node_key, version: request.version, hostinfo }, &grant)?;
            // Marked only now: a refused registration does not use the key up.
            self.mark_used(grant.key, machine, at);
            return Ok(self.success(id));
        }
        if let Some(id) = request.followup.rsplit_once(LOGIN_PATH).map(|(_, id)| id)
            && self.waiting.get(id).is_some_and(|waiting| waiting.machine == *machine && waiting.key == request.node_key)
        {
            return Ok(Registered::Hold);
        }
        self.ask_for_approval(at, machine, request)
    }

    fn ask_for_approval(&mut self, at: Moment, machine: &MachinePublic, request: &RegisterRequest) -> Result<Registered, String> {
        let claimed = claims(request);
        self.check_claimable(claimed)?;
        let hostinfo = request.hostinfo.as_ref().map(kept_hostinfo).unwrap_or_default();
        let mut waiting = Waiting::new(*machine, request.node_key, request.version, hostinfo, at.wall);
        waiting.ephemeral = request.ephemeral;
        waiting.tags = claimed.to_vec();
        let id = self.waiting.enter(&mut self.rng, at.now, waiting);
        let auth_url = format!("{}{LOGIN_PATH}{id}", self.settings.url);
        Ok(answer(RegisterResponse { auth_url, machine_authorized: true, ..RegisterResponse::default() }))
    }

    fn log_out(&mut self, at: Moment, known: Option<&NodeRecord>) -> Registered {
        if let Some(node) = known {
            if node.ephemeral {
                self.remove(node.id, at);
            } else {
                self.expire(node.id, at);
            }
        }
        answer(RegisterResponse { node_key_expired: true, machine_authorized: true, ..RegisterResponse::default() })
    }

    /// Ends the validity of a node's key now: it stays, and its user has to log in again.
    pub(super) fn expire(&mut self, id: NodeId, at: Moment) {
        let Some(node) = self.registry.node(id).filter(|node| !node.expired(at.wall)) else { return };
        self.last_uses.forget(&node.machine);
        self.presences.of(id).told_expired = true;
        self.registry.change_node(id, |node| node.key_expiry = Some(at.wall));
        self.tell_all(id);
        self.elect(at.wall);
    }

    /// A known, valid node: a restart. A nearer expiry may be asked for.
    fn renew(&mut self, at: Moment, node: NodeRecord, request: &RegisterRequest) -> Result<Registered, String> {
        let mut after = node;
        if let Some(wanted) = request.expiry {
            if after.key_expiry.is_some_and(|expiry| wanted > expiry) {
                return Err("a key's life cannot be extended by the node itself: log in again instead".to_owned());
            }
            after.key_expiry = Some(wanted);
        }
        after.version = request.version;
        self.report(&mut after, request.hostinfo.as_ref());
        let id = after.id;
        self.replace(at, after);
        Ok(self.success(id))
    }

    /// What a join key allows, if it may be used now by this node.
    fn grant_of_key(&self, at: Moment, machine: &MachinePublic, text: &str, request: &RegisterRequest) -> Result<Grant, String> {
        const UNKNOWN: &str =
            "this join key is not known here: check that it is complete, or make one with `pvemesh coordinator keys create`";
        let (prefix, digest) = join_key::split(text).ok_or(UNKNOWN)?;
        let key = self.registry.key_named(prefix).filter(|key| key.digest == digest).ok_or(UNKNOWN)?;
        self.check_usable(at, machine, key, request)?;
        Ok(Grant {
            user: key.user,
            tags: key.tags.clone(),
            claimed: claims(request).to_vec(),
            approve: key.approve_routes.iter().copied().collect(),
            address: key.address,
            ephemeral: key.ephemeral || request.ephemeral,
            key: Some(key.id),
        })
    }

    fn check_usable(&self, at: Moment, machine: &MachinePublic, key: &JoinKeyRecord, request: &RegisterRequest) -> Result<(), String> {
        let name = join_key::listed(&key.prefix);
        if key.revoked {
            return Err(format!("the join key {name} was revoked: make a new one"));
        }
        if key.expires <= at.wall {
            return Err(format!("the join key {name} expired at {:.0}: make a new one", key.expires));
        }
        if key.used && !key.reusable && !self.last_uses.may_repeat(key.id, machine, at.now) {
            return Err(format!("the join key {name} has already been used, and works only once: make a new one"));
        }
        let reported = request.hostinfo.as_ref();
        let hostname = NodeName::sanitised(reported.map_or("", |hostinfo| &hostinfo.hostname));
        if let Some(only) = &key.only_for
            && *only != hostname
        {
            return Err(format!("the join key {name} works only for a node named {only}, not {hostname}"));
        }
        let owner = self.registry.user(key.user).map_or("", |user| &user.name);
        self.check_claims(owner, &key.tags, claims(request))
            .map_err(|error| format!("the join key {name} does not allow what the node asks for: {error}"))
    }

    /// Whether tags that a node claims are known at all. Without a policy nobody owns any.
    fn check_claimable(&self, claimed: &[String]) -> Result<(), String> {
        match claimed.iter().find(|tag| !self.sight.policy().tags().any(|known| known == *tag)) {
            Some(tag) => Err(format!("{}: no policy says who may give it (tagOwners)", refused_tag(tag))),
            None => Ok(()),
        }
    }

    /// Whether a user, or a join key of its with these tags, may give a node the tags it claims.
    pub(super) fn check_claims(&self, user: &str, given: &[String], claimed: &[String]) -> Result<(), String> {
        let open: Vec<String> = claimed.iter().filter(|tag| !given.contains(tag)).cloned().collect();
        self.check_claimable(&open)?;
        // What joins with tags is nobody's: only its tags can own others.
        let login = given.is_empty().then_some(user);
        match open.iter().find(|tag| !self.sight.policy().may_tag(login, given, tag)) {
            Some(tag) => Err(format!("{}: the policy's tagOwners do not let {} give it", refused_tag(tag), login.unwrap_or("its tags"))),
            None => Ok(()),
        }
    }

    fn mark_used(&mut self, key: Option<i64>, machine: &MachinePublic, at: Moment) {
        if let Some(id) = key.filter(|id| self.registry.key(*id).is_some_and(|key| !key.used)) {
            self.registry.change_key(id, |key| key.used = true);
            self.last_uses.note(id, *machine, at.now);
        }
    }

    /// Lets a node in: as itself if this machine already is a node of that owner, with its number, name and addresses; else as a new one.
    pub(super) fn enrol(&mut self, at: Moment, applicant: Applicant<'_>, grant: &Grant) -> Result<NodeId, String> {
        let existing = self.registry.node_of(&applicant.machine, grant.user).cloned();
        let holder = self.registry.node_with_key(&applicant.key).map(|node| node.id);
        if holder.is_some() && holder != existing.as_ref().map(|node| node.id) {
            // A key that moved from one node to another would confuse every peer that still knows the old one.
            return Err("this node key belongs to a node of another user: log out first, then join with a new key".to_owned());
        }
        let fresh = existing.is_none();
        let mut node = match existing {
            Some(node) => node,
            None => self.new_node(at, &applicant, grant)?,
        };
        let rotated = node.key != applicant.key;
        let was_expired = node.expired(at.wall);
        node.key = applicant.key;
        node.version = applicant.version;
        if !(grant.tags.is_empty() && node.tags_chosen) {
            node.tags = grant.tags.iter().chain(&grant.claimed).cloned().collect::<BTreeSet<_>>().into_iter().collect();
            node.tags_chosen = false;
        }
        node.approved.extend(&grant.approve);
        node.ephemeral = grant.ephemeral;
        node.join_key = grant.key;
        node.key_expiry = self.expiry_after_login(at.wall).filter(|_| node.tags.is_empty() && !node.never_expires);
        if let Some(address) = grant.address.filter(|address| *address != node.v4) {
            (node.v4, node.v6) = self.check_address_free(at.wall, address, Some(node.id), grant.key).map_err(|error| error.to_string())?;
        }
        self.report(&mut node, Some(applicant.hostinfo));
        let id = node.id;
        if fresh {
            self.admit(at, node);
            return Ok(id);
        }
        self.presences.of(id).told_expired = false;
        if node.ephemeral {
            self.expect_connection(id, at);
        }
        if rotated {
            // The streams belong to the old key; the client opens a new one.
            self.end_streams(id);
        } else if was_expired
            && let Some(session) = self.presences.session(id)
            && let Some(open) = self.sessions.get_mut(&session)
        {
            open.full = true;
            self.wake(session);
        }
        self.replace(at, node);
        if rotated || was_expired {
            self.elect(at.wall);
        }
        Ok(id)
    }

    /// Takes a new node in.
    fn admit(&mut self, at: Moment, mut node: NodeRecord) {
        self.auto_approve(&mut node);
        tracing::info!(node = %node.id, name = %node.name, address = %node.v4, "node joined");
        let (id, ephemeral) = (node.id, node.ephemeral);
        self.registry.add_node(node);
        if ephemeral {
            self.expect_connection(id, at);
        }
        self.regard(id);
        self.tell_peers(id, Change::Whole);
    }

    /// A record for a node that joins: with number, name and addresses, and nothing it says of itself but its host name.
    fn new_node(&mut self, at: Moment, applicant: &Applicant<'_>, grant: &Grant) -> Result<NodeRecord, String> {
        use rand_core::RngCore as _;
        let (v4, v6) = match grant.address {
            Some(address) => self.check_address_free(at.wall, address, None, grant.key).map_err(|error| error.to_string())?,
            None => self.registry.next_addresses(at.wall).ok_or("all addresses are in use: delete nodes that are gone")?,
        };
        Ok(NodeRecord {
            id: self.registry.next_node_id(),
            stable_id: StableId(format!("n{:016x}", self.rng.next_u64())),
            machine: applicant.machine,
            key: applicant.key,
            disco: DiscoPublic::ZERO,
            user: grant.user,
            name: self.registry.free_name(&NodeName::sanitised(&applicant.hostinfo.hostname), None, |name| self.is_recorded(name)),
            renamed: false,
            v4,
            v6,
            endpoints: Vec::new(),
            version: applicant.version,
            home_derp: 0,
            hostinfo: Hostinfo { hostname: kept_hostinfo(applicant.hostinfo).hostname, ..Hostinfo::default() },
            advertised: BTreeSet::new(),
            approved: BTreeSet::new(),
            tags: Vec::new(),
            tags_chosen: false,
            ephemeral: grant.ephemeral,
            join_key: grant.key,
            created: at.wall,
            last_seen: None,
            key_expiry: None,
            never_expires: false,
            connected: false,
        })
    }

    /// When the key of a node without tags expires after a login of now.
    pub(super) fn expiry_after_login(&self, wall: Wall) -> Option<Wall> {
        self.settings.key_life.map(|life| wall.checked_add(life).unwrap_or(Wall::MAX))
    }

    fn success(&self, id: NodeId) -> Registered {
        answer(self.registry.node(id).map(|node| self.accepted(node)).unwrap_or_default())
    }

    fn accepted(&self, node: &NodeRecord) -> RegisterResponse {
        let profile = self.profile(shown_user(node));
        let created = self.registry.user(node.user).map(|user| user.created);
        RegisterResponse {
            user: RegisterUser { id: profile.id, display_name: profile.display_name.clone(), created, ..RegisterUser::default() },
            login: Login { id: profile.id, login_name: profile.login_name, display_name: profile.display_name, ..Login::default() },
            machine_authorized: true,
            ..RegisterResponse::default()
        }
    }
}

fn answer(response: RegisterResponse) -> Registered {
    Registered::Answer(Box::new(response))
}

/// The tags a node claims.
fn claims(request: &RegisterRequest) -> &[String] {
    request.hostinfo.as_ref().map_or(&[], |hostinfo| &hostinfo.request_tags)
}

/// The text about a tag that a node may not have.
fn refused_tag(tag: &str) -> String {
    if is_tag(tag) {
        format!("the tag {tag} is not this node's to claim")
    } else {
        let shown: String = tag.escape_default().take(80).collect();
        format!("{shown} is no tag: a tag is `tag:` and a name of lower-case letters, digits and `-`")
    }
}

/// Whether a duration given in seconds is one a key may live.
pub(super) fn key_expires(wall: Wall, seconds: u64) -> Option<Wall> {
    wall.checked_add(Duration::from_secs(seconds)).ok()
}
