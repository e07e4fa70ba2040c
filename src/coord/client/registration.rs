//! A registration as a conversation: which node key is offered, with which credentials, and what each answer leads to.
//!
//! It lives until the node is in, over any number of connections: a page that the user is visiting stays the same one, and so does the
//! node key that was offered for it. At most one new key is made.

use std::sync::Arc;
use std::time::Duration;

use crate::ident::{NodePrivate, NodePublic, Secret};
use crate::time::{Time, Wall};
use crate::wire::control::{CAPABILITY_VERSION, Hostinfo, RegisterAuth, RegisterRequest, RegisterResponse};

/// The expiry that means "log out" (1970-01-01T00:02:03Z, as stock clients send it).
const LOGOUT_SECOND: i64 = 123;
/// A coordinator that gives a held request back sooner than this does not hold it at all.
const HELD: Duration = Duration::from_secs(10);
/// The longest pause between questions to such a coordinator whether the user is done.
const LONGEST_POLL: Duration = Duration::from_secs(30);
/// What a join key may carry behind itself: a tailnet-lock credential, which is not for the coordinator.
const LOCK_SUFFIX: &str = "--TL";

/// What the node brings along.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The node key it has.
    pub node: Arc<NodePrivate>,
    /// The one before it; zero if there was none. It is told for ever after the first change, and means nothing more than that.
    pub previous: NodePublic,
    /// The coordinator has let this node key in before.
    pub registered: bool,
    /// The node key is known to have expired, or the user wants another one.
    pub renew: bool,
    /// A join key.
    pub auth_key: Option<Secret>,
    /// Nobody waits for the outcome: the node renews its key by itself, with a join key that it kept.
    pub automatic: bool,
}

/// What an answer leads to.
#[derive(Debug, Clone)]
pub enum Step {
    /// The node is in.
    Admitted(Admission),
    /// Ask again, at once as far as the pace allows.
    Again,
    /// The user has to visit this address; ask again, which the coordinator answers when the user is done.
    Visit(String),
    /// Ask again after this time.
    Wait(Duration),
    /// It failed; the text is for the user. Trying again later does no harm, but something has to change first.
    Refused(String),
}

/// How the node is in.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Whose node it is now, as people write it.
    pub login: String,
    /// The node key that is valid from now on.
    pub node: Arc<NodePrivate>,
    /// The one before it.
    pub previous: NodePublic,
    /// It is a new one.
    pub renewed: bool,
    /// The join key was shown, so that it is not to be kept any longer.
    pub key_shown: bool,
}

/// A registration under way.
#[derive(Debug, Clone)]
pub struct Registration {
    credentials: Credentials,
    /// The node keys that it began with.
    begun: (Arc<NodePrivate>, NodePublic),
    /// For a new node key, should one be needed.
    seed: [u8; 32],
    /// The node key was made for this registration.
    fresh: bool,
    /// The join key is shown: not where a valid node key is enough, for it would be of no use then and might be missed later.
    shows_key: bool,
    /// It has been.
    key_shown: bool,
    followup: String,
    asked: Time,
    given_back: u32,
}

impl Registration {
    /// Begins. `seed` becomes a node key if a new one is needed.
    pub fn new(credentials: Credentials, seed: [u8; 32]) -> Self {
        let shows_key = !credentials.registered || credentials.renew;
        let renew = credentials.renew;
        let begun = (Arc::clone(&credentials.node), credentials.previous);
        let (followup, asked) = (String::new(), Time::default());
        let mut registration = Self { credentials, begun, seed, fresh: false, shows_key, key_shown: false, followup, asked, given_back: 0 };
        if renew {
            registration.renew();
        }
        registration
    }

    fn renew(&mut self) {
        self.credentials.previous = self.credentials.node.public();
        self.credentials.node = Arc::new(NodePrivate::from_seed(self.seed));
        self.fresh = true;
        self.shows_key = true;
        self.followup.clear();
    }

    /// The node key in question.
    pub fn node(&self) -> NodePublic {
        self.credentials.node.public()
    }

    /// Whether the coordinator may hold the request until the user is done.
    pub fn may_be_held(&self) -> bool {
        !self.followup.is_empty()
    }

    /// What to ask now.
    pub fn request(&mut self, now: Time, hostinfo: Hostinfo) -> RegisterRequest {
        self.asked = now;
        let key = self.credentials.auth_key.as_ref().filter(|_| self.shows_key).map(without_lock_suffix);
        self.key_shown |= key.is_some();
        RegisterRequest {
            auth: key.map(|auth_key| RegisterAuth { auth_key }),
            followup: self.followup.clone(),
            ..request(&self.credentials, hostinfo)
        }
    }

    /// Reads the answer.
    ///
    /// The order matters: an error text counts before everything, and a demand for a new key before an address to visit.
    pub fn answered(&mut self, now: Time, response: &RegisterResponse) -> Step {
        if !response.error.is_empty() {
            return self.refused(bounded(&response.error));
        }
        if response.node_key_signature.as_ref().is_some_and(|signature| !signature.is_empty()) {
            return Step::Refused("this network uses tailnet lock, which pvemesh does not speak".to_owned());
        }
        if response.node_key_expired && self.fresh {
            // Asking for yet another key would go round in circles.
            return Step::Refused("the coordinator calls a key expired that was made just now".to_owned());
        }
        if response.node_key_expired {
            self.renew();
            return Step::Again;
        }
        let url = bounded(&response.auth_url);
        if url.is_empty() {
            let login = [&response.login.login_name, &response.user.display_name].into_iter().find(|name| !name.is_empty());
            return Step::Admitted(Admission {
                login: login.map(|name| bounded(name)).unwrap_or_default(),
                node: Arc::clone(&self.credentials.node),
                previous: self.credentials.previous,
                renewed: self.fresh,
                key_shown: self.key_shown,
            });
        }
        if self.credentials.auth_key.is_some() && !self.shows_key {
            // The node is not known any more, and there is something better than a page.
            self.shows_key = true;
            return Step::Again;
        }
        if url != self.followup {
            self.followup.clone_from(&url);
            return Step::Visit(url);
        }
        // The coordinator gave the request back before the user was done.
        self.given_back = if now.since(self.asked) < HELD { self.given_back.saturating_add(1) } else { 0 };
        Step::Wait(Duration::from_secs(u64::from(self.given_back.min(30))).min(LONGEST_POLL))
    }

    /// A join key that was kept may be long worthless. The node key that it was to replace may still be good, and if not, the user can
    /// let the node in.
    fn refused(&mut self, text: String) -> Step {
        if self.credentials.automatic && self.shows_key && self.credentials.auth_key.take().is_some() {
            (self.credentials.node, self.credentials.previous) = self.begun.clone();
            (self.fresh, self.shows_key) = (false, false);
            return Step::Again;
        }
        // A page that was refused is not worth visiting any more.
        self.followup.clear();
        Step::Refused(text)
    }
}

/// A registration that ends the node key's validity. It carries no join key: one coordinator or another might take it for a login.
pub fn logout_request(credentials: &Credentials, hostinfo: Hostinfo) -> RegisterRequest {
    RegisterRequest { expiry: Wall::from_second(LOGOUT_SECOND).ok(), ..request(credentials, hostinfo) }
}

/// What the answer to a logout means: "your key has expired" is what was asked for, only an error text is a failure.
///
/// # Errors
/// The coordinator's words.
pub fn logged_out(response: &RegisterResponse) -> Result<(), String> {
    if response.error.is_empty() { Ok(()) } else { Err(bounded(&response.error)) }
}

fn request(credentials: &Credentials, hostinfo: Hostinfo) -> RegisterRequest {
    RegisterRequest {
        version: u32::from(CAPABILITY_VERSION),
        node_key: credentials.node.public(),
        old_node_key: credentials.previous,
        hostinfo: Some(hostinfo),
        ..Default::default()
    }
}

fn without_lock_suffix(key: &Secret) -> Secret {
    let text = key.expose();
    Secret::new(text.split_once(LOCK_SUFFIX).map_or(text, |(key, _)| key))
}

/// A text of the coordinator's as it may be shown: it cannot drive the terminal.
fn bounded(text: &str) -> String {
    text.chars().take(400).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
#[path = "registration_tests.rs"]
mod tests;
