//! Sessions with the real coordinator, over loopback.

use std::net::SocketAddr;

use pvemesh::ident::Secret;
use pvemesh::settings;
use pvemesh::sys::admin::LocalAdmin;
use pvemesh::sys::control::{self, Event};
use pvemesh::sys::coordinator::{Coordinator, Options};
use pvemesh::wire::admin::CreateKey;
use tempfile::TempDir;

use super::client::{LIMIT, Session, identity, report};

/// A coordinator on a port of its own, with its files in a directory that goes away.
struct Home {
    files: TempDir,
    listen: SocketAddr,
    running: Option<Coordinator>,
}

impl Home {
    /// Nothing runs yet.
    fn new() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self { files: tempfile::tempdir().unwrap(), listen: free.local_addr().unwrap(), running: None }
    }

    async fn started() -> Self {
        let mut home = Self::new();
        home.start().await;
        home
    }

    fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    async fn start(&mut self) {
        self.start_in("state").await;
    }

    async fn start_in(&mut self, directory: &str) {
        let settings = settings::Coordinator {
            url: self.url(),
            listen: self.listen,
            admin_keys: vec![],
            base_domain: "mesh.internal".to_owned(),
            front: settings::Front::default(),
            relay: settings::EmbeddedRelay::off(),
        };
        let options = Options {
            settings,
            state_dir: self.files.path().join(directory),
            socket: self.files.path().join("admin.sock"),
            derp_map: None,
            lifetimes: pvemesh::sys::coordinator::Lifetimes::default(),
        };
        self.running = Some(Coordinator::start(options).await.unwrap());
    }

    async fn stop(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    fn admin(&self) -> LocalAdmin {
        LocalAdmin::connect(&self.files.path().join("admin.sock"))
    }

    async fn key(&self, reusable: bool) -> String {
        let wanted = CreateKey {
            user: "alice".to_owned(),
            reusable,
            ephemeral: false,
            expires_in_secs: 600,
            tags: vec![],
            approve_routes: vec![],
            only_for: None,
            address: None,
        };
        self.admin().create_key(&wanted).await.unwrap().key.expose().to_owned()
    }
}

#[tokio::test]
async fn a_node_joins_with_a_key_and_gets_its_addresses() {
    let home = Home::started().await;
    let key = home.key(false).await;
    let mut session = Session::start(&identity(&home.url(), Some(&key)), "alpha");
    let admitted = |event: &Event| if let Event::Admitted { new_key, .. } = event { Some(new_key.is_none()) } else { None };
    assert!(session.until("admission", admitted).await, "a first key is kept");
    let map = session.map().await;
    assert_eq!(map.node.name, "alpha.mesh.internal.");
    assert_eq!(map.node.addresses.len(), 2);
    assert!(map.peers.is_empty());
}

#[tokio::test]
async fn nodes_see_each_other_and_each_others_changes() {
    let home = Home::started().await;
    let key = home.key(true).await;
    let mut alpha = Session::start(&identity(&home.url(), Some(&key)), "alpha");
    alpha.map().await;
    let beta = Session::start(&identity(&home.url(), Some(&key)), "beta");
    let seen = alpha.map_with("beta, online", |map| map.peers.values().any(|p| p.short_name() == "beta" && p.online == Some(true))).await;
    assert_eq!(seen.peers.len(), 1);
    beta.report.send_modify(|report| report.endpoints[0].address = "192.0.2.77:7".parse().unwrap());
    alpha.map_with("beta's new endpoint", |map| map.peers.values().any(|p| p.endpoints == ["192.0.2.77:7".parse().unwrap()])).await;
}

#[tokio::test]
async fn an_unknown_key_is_refused_in_the_coordinators_words() {
    let home = Home::started().await;
    let mut session = Session::start(&identity(&home.url(), Some("hskey-auth-000000000000-unknown")), "alpha");
    let text = session.refusal().await;
    assert!(!text.is_empty() && !text.contains("unknown-"), "{text}");
    assert!(home.admin().nodes().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_used_key_lets_its_own_node_in_again_and_no_other() {
    let home = Home::started().await;
    let key = home.key(false).await;
    let first = identity(&home.url(), Some(&key));
    let addresses = Session::start(&first, "alpha").map().await.node.addresses;

    // The same machine, killed before it could drop the key.
    let again = Session::start(&first, "alpha").map().await;
    assert_eq!(again.node.addresses, addresses);

    let mut other = Session::start(&identity(&home.url(), Some(&key)), "thief");
    let text = other.refusal().await;
    assert!(text.contains("used"), "{text}");
    assert_eq!(home.admin().nodes().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_node_waits_for_a_coordinator_that_is_not_up_yet() {
    let mut home = Home::new();
    // The key has to exist before; so the coordinator has run once.
    home.start().await;
    let key = home.key(false).await;
    home.stop().await;
    let mut session = Session::start(&identity(&home.url(), Some(&key)), "early");
    assert!(session.offline().await.contains("refused"));
    session.offline().await;
    home.start().await;
    assert_eq!(session.map().await.node.name, "early.mesh.internal.");
}

#[tokio::test]
async fn a_restarted_coordinator_has_its_nodes_back_with_their_addresses() {
    let mut home = Home::started().await;
    let key = home.key(true).await;
    let (first, second) = (identity(&home.url(), Some(&key)), identity(&home.url(), Some(&key)));
    let (mut alpha, mut beta) = (Session::start(&first, "alpha"), Session::start(&second, "beta"));
    let before = alpha.map_with("beta", |map| map.peers.len() == 1).await;
    beta.map().await;
    home.stop().await;
    alpha.offline().await;
    home.start().await;
    let online = |map: &pvemesh::coord::client::NetMap| map.peers.values().any(|p| p.online == Some(true));
    let after = alpha.map_with("beta, back", online).await;
    assert_eq!((&after.node.addresses, after.node.key), (&before.node.addresses, before.node.key));
    assert_eq!(home.admin().nodes().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_coordinator_with_another_key_is_refused_on_plain_http() {
    let mut home = Home::started().await;
    let key = home.key(false).await;
    let mut session = Session::start(&identity(&home.url(), Some(&key)), "alpha");
    session.map().await;
    let known = home.running.as_ref().unwrap().server_key();
    home.stop().await;
    home.start_in("another").await;
    let text = session.refusal().await;
    assert!(text.contains(&known.to_string()) && text.contains("another key"), "{text}");
}

#[tokio::test]
async fn without_a_key_an_admin_lets_the_node_in() {
    let home = Home::started().await;
    let identity = identity(&home.url(), None);
    let mut session = Session::start(&identity, "alpha");
    let url = session.visit().await;
    assert!(url.starts_with(&home.url()), "{url}");
    let waiting = home.admin().registrations().await.unwrap();
    let waiting = waiting.iter().find(|r| r.machine_key == identity.machine.public()).unwrap();
    home.admin().approve(&waiting.id, "alice").await.unwrap();
    assert_eq!(session.map().await.node.name, "alpha.mesh.internal.");
}

#[tokio::test]
async fn an_expired_node_gets_a_new_key_and_keeps_its_address() {
    let home = Home::started().await;
    let (first, second) = (home.key(false).await, home.key(false).await);
    let mut identity = identity(&home.url(), Some(&first));
    let before = Session::start(&identity, "alpha").map().await.node;
    home.admin().expire_node(before.id, pvemesh::wire::admin::Expire::default()).await.unwrap();

    identity.auth_key = Some(Secret::new(second));
    let mut session = Session::start(&identity, "alpha");
    let admitted = |event: &Event| if let Event::Admitted { new_key, .. } = event { Some(new_key.clone()) } else { None };
    let new = session.until("admission", admitted).await;
    let after = session.map().await.node;
    assert_eq!(after.addresses, before.addresses);
    if let Some(new) = new {
        assert_eq!(after.key, new.public());
    }
    assert!(after.key_expiry.is_none_or(|expiry| expiry > pvemesh::sys::clock::wall()));
}

#[tokio::test]
async fn logging_out_makes_the_key_worthless() {
    let home = Home::started().await;
    let key = home.key(false).await;
    let mut identity = identity(&home.url(), Some(&key));
    let node = Session::start(&identity, "alpha").map().await.node;
    let server = home.running.as_ref().unwrap().server_key();
    identity.pin = Some(control::Pin { key: server, strict: false });
    tokio::time::timeout(LIMIT, control::log_out(&identity, &report("alpha"))).await.unwrap().unwrap();
    let known = home.admin().nodes().await.unwrap();
    let expired = known.iter().find(|n| n.id == node.id).is_none_or(|n| n.key_expiry.is_some_and(|e| e <= pvemesh::sys::clock::wall()));
    assert!(expired, "{known:?}");
}
