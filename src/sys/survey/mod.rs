//! The check of the network at work (`netcheck`): names resolved, questions sent from the engine's socket, answers brought back.

mod portal;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::ident::RegionId;
use crate::netcheck::{Checker, Event, Family, OwnAddresses, Place, Probe, Region, Report, Server};
use crate::sys::engine::{Door, StunAnswer};
use crate::sys::entropy;
use crate::sys::relay::dial::round_trip;
use crate::sys::relay_links::News;
use crate::time::Time;
use crate::wire::stun;

/// How long a resolved name is taken to be right.
const NAME_LIFETIME: Duration = Duration::from_mins(5);
/// How often it is looked whether there is traffic.
const TRAFFIC_LOOK: Duration = Duration::from_secs(5);
/// Requests that wait.
const QUEUE: usize = 16;

/// What is known of the network.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    /// Where others see us, the newest first.
    pub seen: Vec<SocketAddr>,
    /// What the last check found.
    pub report: Option<Arc<Report>>,
    /// Regions and how far each was at best lately.
    pub regions: Vec<(RegionId, String, Option<Duration>)>,
    /// The home relay.
    pub home: Option<RegionId>,
    /// A portal stands in the way: a network that answers every request itself until somebody logs in there. Unknown while UDP passes.
    pub portal: Option<bool>,
    /// Checks that have ended.
    pub checks: u64,
}

/// What a check goes by.
#[derive(Debug)]
enum Command {
    Regions(Vec<Region>, Option<PathBuf>),
    Told(bool),
    NetworkChanged,
    Check(oneshot::Sender<()>),
}

/// A running survey. Dropping it ends it.
#[derive(Debug)]
pub struct Survey {
    commands: mpsc::Sender<Command>,
    outlook: watch::Receiver<Outlook>,
    home: watch::Receiver<Option<RegionId>>,
    task: JoinHandle<()>,
}

impl Drop for Survey {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Survey {
    /// Starts without relays. `answers` are the engine's STUN answers, `news` is what the connections to relays tell.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn start(door: Door, answers: mpsc::Receiver<StunAnswer>, news: mpsc::Receiver<News>) -> std::io::Result<Self> {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (outlook, outlooks) = watch::channel(Outlook::default());
        let (home, homes) = watch::channel(None);
        let (resolved, resolutions) = mpsc::channel(QUEUE * 4);
        let mut checker = Checker::new(entropy::seed()?);
        checker.set_v6(door.has_v6());
        let surveyor = Surveyor {
            door,
            checker,
            own: OwnAddresses::default(),
            authority: None,
            names: HashMap::new(),
            done: resolved,
            outlook,
            home,
            waiting: Vec::new(),
            checks: 0,
            portal: None,
            portal_looked_for: None,
        };
        let inputs = Inputs { answers, news, queue, resolutions };
        Ok(Self { commands, outlook: outlooks, home: homes, task: tokio::spawn(surveyor.run(inputs)) })
    }

    async fn tell(&self, command: Command) {
        // It ends with its owner only.
        let _ = self.commands.send(command).await;
    }

    /// Takes the relays, and the authority the user trusts beside those that everybody trusts.
    pub async fn set_regions(&self, regions: Vec<Region>, authority: Option<PathBuf>) {
        self.tell(Command::Regions(regions, authority)).await;
    }

    /// Whether the coordinator is reached.
    pub async fn set_told(&self, told: bool) {
        self.tell(Command::Told(told)).await;
    }

    /// This machine's networks have changed.
    pub async fn network_changed(&self) {
        self.tell(Command::NetworkChanged).await;
    }

    /// Checks everything now; the receiver hears when that is done.
    pub async fn check(&self) -> oneshot::Receiver<()> {
        let (done, heard) = oneshot::channel();
        self.tell(Command::Check(done)).await;
        heard
    }

    /// What is known.
    pub fn outlook(&self) -> watch::Receiver<Outlook> {
        self.outlook.clone()
    }

    /// The home relay.
    pub fn home(&self) -> watch::Receiver<Option<RegionId>> {
        self.home.clone()
    }
}

struct Inputs {
    answers: mpsc::Receiver<StunAnswer>,
    news: mpsc::Receiver<News>,
    queue: mpsc::Receiver<Command>,
    resolutions: mpsc::Receiver<Finished>,
}

/// What a task of its own has found out.
enum Finished {
    /// A name's addresses, and a question that waits for them.
    Name(String, Vec<IpAddr>, Probe),
    /// An HTTPS round trip.
    Measured(RegionId, Option<Duration>),
    /// Whether a portal stands in the way.
    Portal(Option<bool>),
}

struct Surveyor {
    door: Door,
    checker: Checker,
    own: OwnAddresses,
    authority: Option<PathBuf>,
    names: HashMap<String, (Time, Vec<IpAddr>)>,
    done: mpsc::Sender<Finished>,
    outlook: watch::Sender<Outlook>,
    home: watch::Sender<Option<RegionId>>,
    waiting: Vec<oneshot::Sender<()>>,
    checks: u64,
    portal: Option<bool>,
    /// During which check it was looked for last.
    portal_looked_for: Option<u64>,
}

impl Surveyor {
    async fn run(mut self, mut inputs: Inputs) {
        let mut look = tokio::time::interval(TRAFFIC_LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.drive();
            let now = self.door.now();
            let due = self.checker.poll_timeout().map(|deadline| Instant::now() + deadline.at.since(now));
            tokio::select! {
                Some((at, datagram)) = inputs.answers.recv() => { self.checker.handle_datagram(at, &datagram); }
                Some(news) = inputs.news.recv() => self.heard(news),
                command = inputs.queue.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                Some(finished) = inputs.resolutions.recv() => self.finished(finished),
                () = self.door.refresh_wanted() => self.checker.request(now, false),
                _ = look.tick() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.checker.handle_timeout(self.door.now()),
            }
            if let Some(at) = self.door.last_traffic() {
                self.checker.note_traffic(at);
            }
        }
    }

    fn heard(&mut self, news: News) {
        match news {
            News::Heard(region) => self.checker.note_heard(self.door.now(), region),
            News::Lost(region) => self.checker.note_lost(self.door.now(), region),
        }
    }

    fn obey(&mut self, command: Command) {
        let now = self.door.now();
        match command {
            Command::Regions(regions, authority) => {
                self.authority = authority;
                self.checker.set_regions(now, regions);
                self.publish();
            }
            Command::Told(told) => self.checker.set_told(told),
            Command::NetworkChanged => {
                self.own.clear();
                self.names.clear();
                self.checker.network_changed(now);
            }
            Command::Check(done) => {
                self.waiting.push(done);
                self.checker.request(now, true);
            }
        }
    }

    /// Does what the core says.
    fn drive(&mut self) {
        while let Some(probe) = self.checker.poll_probe(self.door.now()) {
            self.ask(probe);
        }
        while let Some(event) = self.checker.poll_event() {
            match event {
                Event::Seen(address) => {
                    self.own.note(self.door.now(), address);
                    self.publish();
                }
                Event::Measure(region, servers) => {
                    self.look_for_portal();
                    self.measure(region, servers);
                }
                Event::Done => {
                    self.checks += 1;
                    if self.checker.report().is_some_and(|report| report.udp) {
                        self.portal = None;
                    }
                    self.publish();
                    if !self.checker.is_running() {
                        for waiting in self.waiting.drain(..) {
                            // Whoever asked may have gone.
                            let _ = waiting.send(());
                        }
                    }
                }
            }
        }
    }

    fn publish(&mut self) {
        let now = self.door.now();
        let latencies = self.checker.latencies();
        let home = self.checker.home();
        self.outlook.send_replace(Outlook {
            seen: self.own.current(now),
            report: self.checker.report().cloned().map(Arc::new),
            regions: self.checker.regions().iter().map(|r| (r.id, r.code.clone(), latencies.get(&r.id).copied())).collect(),
            home,
            portal: self.portal,
            checks: self.checks,
        });
        self.home.send_if_modified(|known| std::mem::replace(known, home) != home);
    }

    /// Sends a question, at once if the address is known.
    fn ask(&mut self, probe: Probe) {
        let now = self.door.now();
        let host = probe.server.host.clone();
        match probe.server.place(probe.family) {
            Place::At(ip) => self.send(&probe, *ip),
            Place::Nowhere => {}
            Place::Named => match self.names.get(&host).filter(|(at, _)| now.since(*at) < NAME_LIFETIME) {
                Some((_, addresses)) => {
                    if let Some(ip) = addresses.iter().copied().find(|ip| Family::of(*ip) == probe.family) {
                        self.send(&probe, ip);
                    }
                }
                None => {
                    let done = self.done.clone();
                    tokio::spawn(async move {
                        let found = tokio::net::lookup_host((host.as_str(), stun::PORT)).await;
                        let addresses = found.map(|all| all.map(|address| address.ip()).collect()).unwrap_or_default();
                        let _ = done.send(Finished::Name(host, addresses, probe)).await;
                    });
                }
            },
        }
    }

    fn send(&mut self, probe: &Probe, ip: IpAddr) {
        let Some(port) = probe.server.stun else { return };
        self.checker.sent(self.door.now(), probe.tx);
        self.door.send(SocketAddr::new(ip, port), &stun::request(probe.tx));
    }

    fn measure(&self, region: RegionId, servers: Vec<Server>) {
        let (done, authority) = (self.done.clone(), self.authority.clone());
        tokio::spawn(async move {
            let mut latency = None;
            for server in servers {
                latency = round_trip(&server, authority.as_deref()).await.ok();
                if latency.is_some() {
                    break;
                }
            }
            let _ = done.send(Finished::Measured(region, latency)).await;
        });
    }

    /// Once for each check: where no UDP passes, a portal may be the reason.
    fn look_for_portal(&mut self) {
        if self.portal_looked_for.replace(self.checks) == Some(self.checks) {
            return;
        }
        let (done, regions) = (self.done.clone(), self.checker.regions().to_vec());
        tokio::spawn(async move {
            let found = portal::stands_in_the_way(regions).await;
            let _ = done.send(Finished::Portal(found)).await;
        });
    }

    fn finished(&mut self, finished: Finished) {
        match finished {
            Finished::Name(host, addresses, probe) => {
                if let Some(ip) = addresses.iter().copied().find(|ip| Family::of(*ip) == probe.family) {
                    self.send(&probe, ip);
                }
                // A name that does not resolve may do so the next time.
                if !addresses.is_empty() {
                    self.names.insert(host, (self.door.now(), addresses));
                }
            }
            Finished::Measured(region, latency) => self.checker.measured(self.door.now(), region, latency),
            Finished::Portal(portal) => {
                if self.portal != portal {
                    self.portal = portal;
                    self.publish();
                }
            }
        }
    }
}
