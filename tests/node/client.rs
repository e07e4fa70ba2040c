//! A control session under observation.

use std::sync::Arc;
use std::time::Duration;

use pvemesh::coord::client::NetMap;
use pvemesh::ident::{MachinePrivate, NodePublic, Secret};
use pvemesh::node::{Endpoint, EndpointKind};
use pvemesh::sys::control::{self, Event, Identity, Report};
use pvemesh::sys::entropy;
use pvemesh::wire::control::Hostinfo;
use tokio::sync::{Notify, mpsc, watch};

/// How long anything that should happen may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Session {
    pub(crate) report: watch::Sender<Report>,
    pub(crate) wake: Arc<Notify>,
    events: mpsc::Receiver<Event>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn identity(url: &str, auth_key: Option<&str>) -> Identity {
    Identity {
        url: url.to_owned(),
        pin: None,
        authority: None,
        address: None,
        registered: false,
        renew: false,
        automatic: false,
        machine: Arc::new(entropy::machine_key().unwrap()),
        node: Arc::new(entropy::node_key().unwrap()),
        previous: NodePublic::ZERO,
        auth_key: auth_key.map(Secret::new),
        disco: entropy::disco_key().unwrap().public(),
    }
}

pub(crate) fn machine(seed: u8) -> Arc<MachinePrivate> {
    Arc::new(MachinePrivate::from_seed([seed; 32]))
}

pub(crate) fn report(hostname: &str) -> Report {
    Report {
        hostinfo: Hostinfo { hostname: hostname.to_owned(), os: "linux".to_owned(), ..Default::default() },
        endpoints: vec![Endpoint { address: "192.0.2.1:41641".parse().unwrap(), kind: EndpointKind::Local }],
    }
}

impl Session {
    pub(crate) fn start(identity: &Identity, hostname: &str) -> Self {
        Self::start_with(identity, hostname, 64)
    }

    /// With room for so many events that nobody has taken yet.
    pub(crate) fn start_with(identity: &Identity, hostname: &str, room: usize) -> Self {
        let (report, reports) = watch::channel(report(hostname));
        let (news, events) = mpsc::channel(room);
        let wake = Arc::new(Notify::new());
        let task = tokio::spawn(control::run(identity.clone(), reports, wake.clone(), news));
        Self { report, wake, events, task }
    }

    /// The first event that `pick` wants; what comes before it is dropped.
    pub(crate) async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let found = tokio::time::timeout(LIMIT, async {
            loop {
                let event = self.events.recv().await.expect("the session does not end");
                if let Some(found) = pick(&event) {
                    return found;
                }
                seen.push(format!("{event:.200?}"));
            }
        });
        let found = found.await;
        found.unwrap_or_else(|_| panic!("waited for {what}; seen: {seen:#?}"))
    }

    /// The same, and gives what it takes out of the event.
    pub(crate) async fn take<T>(&mut self, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let found = tokio::time::timeout(LIMIT, async {
            loop {
                if let Some(found) = pick(self.events.recv().await.expect("the session does not end")) {
                    return found;
                }
            }
        });
        let found = found.await;
        found.unwrap_or_else(|_| panic!("waited for {what}"))
    }

    pub(crate) async fn map(&mut self) -> NetMap {
        self.map_with("a map", |_| true).await
    }

    pub(crate) async fn map_with(&mut self, what: &str, wanted: impl Fn(&NetMap) -> bool) -> NetMap {
        self.until(what, |event| if let Event::Map(map) = event { wanted(map).then(|| (**map).clone()) } else { None }).await
    }

    pub(crate) async fn refusal(&mut self) -> String {
        self.until("a refusal", |event| if let Event::Refused(text) = event { Some(text.clone()) } else { None }).await
    }

    pub(crate) async fn offline(&mut self) -> String {
        self.until("being offline", |event| if let Event::Offline(text) = event { Some(text.clone()) } else { None }).await
    }

    pub(crate) async fn unknown(&mut self) -> String {
        self.until("being unknown", |event| if let Event::Unknown(text) = event { Some(text.clone()) } else { None }).await
    }

    pub(crate) async fn visit(&mut self) -> String {
        self.until("an address to visit", |event| if let Event::Visit(url) = event { Some(url.clone()) } else { None }).await
    }
}
