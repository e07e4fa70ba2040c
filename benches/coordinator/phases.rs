//! One run: joining, rest, silent updates, changes one at a time, changes all the time, and whether everybody knows the truth at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use pvemesh::ident::Secret;

use crate::board::Board;
use crate::node::{Member, Place};
use crate::scan::{endpoint_of, name_of};
use crate::subject::{Keys, Subject};

/// Nodes that join at a time: no more than a coordinator lets in from one address.
const AT_ONCE: usize = 64;
/// How long a change may take to be heard by all.
const HEARD: Duration = Duration::from_secs(60);
/// Changes made one at a time, of each kind.
const SINGLE: usize = 10;
/// Nodes whose map is kept by our client's core and compared with the truth.
const CHECKED: usize = 12;
/// How long the coordinator is watched doing nothing.
const REST: Duration = Duration::from_secs(10);
/// Nodes that report what is known already.
const SILENT: usize = 200;

const KINDS: [&str; 3] = ["endpoint", "join", "leave"];
const ENDPOINT: usize = 0;
const JOIN: usize = 1;
const LEAVE: usize = 2;
/// Where the series of the changes under load begin.
const LOAD: usize = 3;
/// Changes that are not counted.
const ASIDE: usize = 6;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub join: Duration,
    pub load: Duration,
}

/// One kind of change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Per listener.
    pub bytes: f64,
    pub count: u64,
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Why it did not get to the end.
    pub failure: Option<String>,
    pub complete: usize,
    pub join_seconds: f64,
    pub join_cpu_seconds: f64,
    pub join_megabytes: f64,
    pub peak_kib: u64,
    pub rest_kib: u64,
    pub rest_cpu_part: f64,
    pub silent_messages: u64,
    /// Streams that the coordinator ended.
    pub reopened: u64,
    /// One at a time: endpoint, join, leave.
    pub single: [Change; 3],
    pub load_seconds: f64,
    pub load_changes: u64,
    pub load_cpu_part: f64,
    pub load_bytes: f64,
    pub load_peak_kib: u64,
    /// All the time.
    pub load: [Change; 3],
}

struct Run<'a, S> {
    subject: &'a S,
    place: Place,
    keys: Keys,
    board: Arc<Board>,
    members: Vec<Arc<Member>>,
    outcome: Outcome,
    joiners: u64,
}

pub async fn run<S: Subject>(subject: &S, count: usize, limits: Limits) -> Outcome {
    let (place, board) = (subject.place().await, Arc::new(Board::new(count, ASIDE + 1)));
    let keys = subject.keys().await;
    let mut run = Run { subject, place, keys, board, members: Vec::new(), outcome: Outcome::default(), joiners: 0 };
    if let Err(failure) = run.all(count, limits).await {
        eprintln!("  did not finish: {failure}");
        run.outcome.failure = Some(failure);
    }
    run.outcome.reopened = run.board.broken.load(Ordering::Relaxed);
    run.outcome
}

impl<S: Subject> Run<'_, S> {
    async fn all(&mut self, count: usize, limits: Limits) -> Result<(), String> {
        self.join_all(count, limits.join).await?;
        self.rest().await;
        self.silent().await?;
        self.single().await?;
        self.load(limits.load).await?;
        self.check()
    }

    async fn join_all(&mut self, count: usize, limit: Duration) -> Result<(), String> {
        let begun = Instant::now();
        let checked = |n: usize| n.is_multiple_of(count.div_ceil(CHECKED));
        let enter = |n: usize| enter(&self.place, n as u64, format!("node{n}"), &self.keys.lasting, checked(n), Some(&self.board));
        let joining = futures_util::stream::iter(0..count).map(enter).buffer_unordered(AT_ONCE).collect::<Vec<_>>();
        let joined = tokio::time::timeout(limit, joining).await;
        let seen = async {
            while self.board.complete.load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let whole = match joined {
            Ok(joined) => {
                self.members = joined.into_iter().collect::<Result<_, _>>()?;
                tokio::time::timeout(limit.saturating_sub(begun.elapsed()), seen).await.is_ok()
            }
            Err(_) => false,
        };
        let (server, outcome) = (self.subject.server(), &mut self.outcome);
        outcome.complete = self.board.complete.load(Ordering::Relaxed);
        (outcome.join_seconds, outcome.join_cpu_seconds) = (begun.elapsed().as_secs_f64(), server.cpu());
        outcome.join_megabytes = self.board.bytes.load(Ordering::Relaxed) as f64 / 1e6;
        outcome.peak_kib = server.memory().1;
        eprintln!("  {} of {count} complete after {:.1} s", outcome.complete, outcome.join_seconds);
        if whole { Ok(()) } else { Err(format!("{} of {count} nodes had seen all others after {limit:?}", outcome.complete)) }
    }

    async fn rest(&mut self) {
        let server = self.subject.server();
        // What still comes after a mass joining is not rest.
        self.quiet().await;
        let (cpu, begun) = (server.cpu(), Instant::now());
        tokio::time::sleep(REST).await;
        self.outcome.rest_cpu_part = (server.cpu() - cpu) / begun.elapsed().as_secs_f64();
        self.outcome.rest_kib = server.memory().0;
    }

    /// Waits until nothing has come for a second.
    async fn quiet(&self) {
        let messages = || self.board.messages.load(Ordering::Relaxed);
        let (mut last, mut since, begun) = (messages(), Instant::now(), Instant::now());
        while since.elapsed() < Duration::from_secs(1) && begun.elapsed() < HEARD {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if messages() != last {
                (last, since) = (messages(), Instant::now());
            }
        }
    }

    /// Reports without news; then one with news, so that whatever they caused has come before it.
    async fn silent(&mut self) -> Result<(), String> {
        self.quiet().await;
        let before = self.board.messages.load(Ordering::Relaxed);
        let reports = self.members.iter().take(SILENT).map(|member| member.report());
        let done = futures_util::stream::iter(reports).buffer_unordered(16).collect::<Vec<_>>().await;
        done.into_iter().collect::<Result<Vec<()>, _>>().map_err(|e| format!("a report failed: {e}"))?;
        let marker = self.move_one(0, ENDPOINT).await?;
        self.all_heard(marker).await?;
        self.quiet().await;
        let messages = self.board.messages.load(Ordering::Relaxed) - before;
        self.outcome.silent_messages = messages.saturating_sub(self.members.len() as u64 - 1);
        Ok(())
    }

    async fn move_one(&self, which: usize, series: usize) -> Result<u32, String> {
        let marker = self.board.mark(series);
        let member = &self.members[which % self.members.len()];
        member.move_to(endpoint_of(marker)).await.map_err(|e| format!("a report failed: {e}"))?;
        Ok(marker)
    }

    /// Waits until all listeners have heard of a change; the one whose change it is does not.
    async fn all_heard(&self, marker: u32) -> Result<(), String> {
        let wanted = self.members.len() - 1;
        let begun = Instant::now();
        while self.board.heard(marker) < wanted {
            if begun.elapsed() > HEARD {
                return Err(format!("after {HEARD:?} {} of {wanted} nodes have heard of a change", self.board.heard(marker)));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    async fn single(&mut self) -> Result<(), String> {
        for kind in [ENDPOINT, JOIN, LEAVE] {
            let mut guests = Vec::new();
            while kind == LEAVE && guests.len() < SINGLE {
                guests.push(self.guest(ASIDE).await?.0);
            }
            self.quiet().await;
            let before = self.board.bytes.load(Ordering::Relaxed);
            for n in 0..SINGLE {
                let marker = match kind {
                    ENDPOINT => self.move_one(1 + n, ENDPOINT).await?,
                    JOIN => self.guest(JOIN).await?.1,
                    _ => leave(&self.board, &guests.pop().unwrap(), LEAVE).await?,
                };
                self.all_heard(marker).await?;
            }
            self.quiet().await;
            let bytes = (self.board.bytes.load(Ordering::Relaxed) - before) as f64;
            let per_listener = bytes / SINGLE as f64 / (self.members.len() - 1) as f64;
            self.outcome.single[kind] = Change { bytes: per_listener, ..self.figures(kind) };
            eprintln!("  {}: {:?}", KINDS[kind], self.outcome.single[kind]);
        }
        Ok(())
    }

    fn figures(&self, series: usize) -> Change {
        let latencies = &self.board.series[series];
        Change { p50_ms: latencies.quantile(0.5), p99_ms: latencies.quantile(0.99), bytes: 0.0, count: latencies.count() }
    }

    /// A node that comes to go again; its number is known when this returns.
    async fn guest(&mut self, series: usize) -> Result<(Arc<Member>, u32), String> {
        self.joiners += 1;
        guest(&self.place, &self.board, &self.keys.passing, self.joiners, series).await
    }

    /// One percent of the nodes changes each second, and each second one comes and one goes.
    async fn load(&mut self, duration: Duration) -> Result<(), String> {
        let server = self.subject.server();
        let (cpu, bytes, begun) = (server.cpu(), self.board.bytes.load(Ordering::Relaxed), Instant::now());
        let count = self.members.len();
        let each = Duration::from_secs_f64(100.0 / count as f64).min(Duration::from_secs(1));
        let (board, place, key) = (self.board.clone(), self.place.clone(), self.keys.passing.clone());
        let first = self.joiners;
        let guests = tokio::spawn(async move {
            let mut markers = Vec::new();
            let mut here = std::collections::VecDeque::new();
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            while begun.elapsed() < duration {
                ticks.tick().await;
                let number = first + 1 + markers.len() as u64;
                let (guest, marker) = guest(&place, &board, &key, number, LOAD + JOIN).await?;
                markers.push(marker);
                here.push_back(guest);
                if here.len() > 5
                    && let Some(guest) = here.pop_front()
                {
                    markers.push(leave(&board, &guest, LOAD + LEAVE).await?);
                }
            }
            Ok::<_, String>(markers)
        });
        let mut markers = Vec::new();
        let mut reports = futures_util::stream::FuturesUnordered::new();
        let mut ticks = tokio::time::interval(each);
        while begun.elapsed() < duration {
            tokio::select! {
                _ = ticks.tick() => {
                    let marker = self.board.mark(LOAD + ENDPOINT);
                    let member = self.members[(20 + markers.len()) % count].clone();
                    markers.push(marker);
                    reports.push(async move { member.move_to(endpoint_of(marker)).await });
                }
                Some(done) = reports.next() => done.map_err(|e| format!("a report failed: {e}"))?,
            }
        }
        let elapsed = begun.elapsed().as_secs_f64();
        self.outcome.load_cpu_part = (server.cpu() - cpu) / elapsed;
        while let Some(done) = reports.next().await {
            done.map_err(|e| format!("a report failed: {e}"))?;
        }
        markers.extend(guests.await.map_err(|e| e.to_string())??);
        for marker in &markers {
            self.all_heard(*marker).await?;
        }
        self.quiet().await;
        let bytes = (self.board.bytes.load(Ordering::Relaxed) - bytes) as f64;
        (self.outcome.load_seconds, self.outcome.load_changes) = (elapsed, markers.len() as u64);
        self.outcome.load_bytes = bytes / markers.len() as f64 / (count - 1) as f64;
        self.outcome.load_peak_kib = server.memory().1;
        for kind in [ENDPOINT, JOIN, LEAVE] {
            self.outcome.load[kind] = self.figures(LOAD + kind);
            eprintln!("  {} under load: {:?}", KINDS[kind], self.outcome.load[kind]);
        }
        Ok(())
    }

    /// The maps our client's core has made of the messages, against what the nodes said.
    fn check(&self) -> Result<(), String> {
        let mut checked = 0;
        for member in &self.members {
            let Some(map) = &member.map else { continue };
            let session = map.lock().unwrap();
            let map = session.netmap().ok_or("a node has no map")?;
            let own = member.id.load(Ordering::Relaxed);
            for other in &self.members {
                let id = other.id.load(Ordering::Relaxed);
                let endpoint = *other.endpoint.lock().unwrap();
                match map.peers.get(&pvemesh::ident::NodeId(id)) {
                    None if id == own => {}
                    Some(peer) if id != own && peer.endpoints == [endpoint] => {}
                    peer => return Err(format!("node {own} has {:?} for node {id}, which is at {endpoint}", peer.map(|p| &p.endpoints))),
                }
            }
            checked += 1;
        }
        eprintln!("  {checked} maps compared with the truth");
        Ok(())
    }
}

/// Joins, and follows the map stream from then on.
async fn enter(
    place: &Place,
    n: u64,
    name: String,
    key: &Secret,
    checked: bool,
    listens: Option<&Arc<Board>>,
) -> Result<Arc<Member>, String> {
    let member = Member::join(place, n, name, key, checked).await?;
    if let Some(board) = listens {
        follow(&member, board.clone(), true).await?;
        member.report().await.map_err(|e| format!("a report failed: {e}"))?;
    }
    Ok(member)
}

async fn follow(member: &Arc<Member>, board: Arc<Board>, listens: bool) -> Result<(), String> {
    let body = member.stream().await.map_err(|e| format!("a stream does not open: {e}"))?;
    let member = member.clone();
    tokio::spawn(async move { member.follow(body, &board, listens).await });
    Ok(())
}

async fn guest(place: &Place, board: &Arc<Board>, key: &Secret, number: u64, series: usize) -> Result<(Arc<Member>, u32), String> {
    let marker = board.mark(series);
    let member = enter(place, (1 << 20) + number, name_of(marker), key, false, None).await?;
    follow(&member, board.clone(), false).await?;
    let begun = Instant::now();
    while member.id.load(Ordering::Relaxed) == 0 {
        if begun.elapsed() > HEARD {
            return Err("a node that joined gets no map".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok((member, marker))
}

async fn leave(board: &Board, guest: &Member, series: usize) -> Result<u32, String> {
    let marker = board.mark_leaving(series, guest.id.load(Ordering::Relaxed));
    guest.leave().await.map_err(|e| format!("a logout failed: {e}"))?;
    Ok(marker)
}
