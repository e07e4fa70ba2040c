//! `pvemesh upgrade`: a new program for guests, one after the other, each looked at from outside and rolled back if it is not well.

mod way_in;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::connect::{ConnectArgs, Session, call_failure, config_failure, refusal};
use super::enroll::Entry;
use super::progress::Progress;
use super::resident::Resident;
use super::ways::{WayArgs, inside_advice};
use super::{Exit, Failure, Output};
use crate::ident::{NodeName, Vmid};
use crate::plan::Refusal;
use crate::plan::enroll::ENROLLED;
use crate::plan::mark::{Mark, TAG};
use crate::plan::options::{KnownCoordinator, OptionError};
use crate::plan::upgrade::{self, Candidate, Router, Turn};
use crate::pve::HostName;
use crate::sys::local_api::{Client, DEFAULT_SOCKET, PingRequest};
use crate::sys::pve::{Fate, Mesh, NewProgram, Upgraded, Upgrader, Watch as _, observe};
use crate::sys::{chores, image};
use crate::wire::admin::NodeInfo;
use crate::wire::control::PingKind;
use way_in::ways_in;

/// How long another router is waited for before one that it stands in for goes.
const HANDOVER_LIMIT: Duration = Duration::from_secs(45);

/// How long a coordinator that was just restarted may take.
const REOPEN_LIMIT: Duration = Duration::from_secs(10);

/// Give guests the program of this very pvemesh, or another one.
#[derive(Debug, clap::Args)]
pub(super) struct Upgrade {
    /// The guests' numbers (VMIDs).
    #[arg(value_name = "ID", required_unless_present = "all")]
    vmids: Vec<String>,
    /// Every guest of pvemesh, enrolled ones too.
    #[arg(long, conflicts_with = "vmids")]
    all: bool,
    /// The program to put in; this very one if absent.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// After how many seconds a guest takes its old program back unless it has been told that all is well.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=3600))]
    patience: u64,
    /// Print the order and what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// The local socket of this machine's own node, through which guests are pinged if it is in the mesh.
    #[arg(long, hide = true, default_value = DEFAULT_SOCKET, env = "PVEMESH_SOCKET")]
    socket: PathBuf,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What became of one guest.
#[derive(Debug, serde::Serialize)]
struct Row {
    vmid: Vmid,
    name: NodeName,
    outcome: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
    seconds: f64,
}

/// Runs the command.
pub(super) async fn run(args: Upgrade, output: &Output) -> Result<(), Failure> {
    let tried = "upgrade the guests of pvemesh";
    let wanted: Result<Vec<Vmid>, _> = args.vmids.iter().map(|text| text.parse::<Vmid>()).collect();
    let wanted = wanted.map_err(|e| refusal(tried, &Refusal::Option(OptionError::new("ID", e))))?;
    let new = new_program(args.to.as_deref(), tried)?;
    let session = Session::open(&args.connect).await?;
    let opened = match session.mesh().await {
        Ok(opened) => opened,
        // It may be what the upgrade is to cure.
        Err(failure) => {
            output.note(format!("{}: {}; it is not asked how its nodes are", failure.tried, failure.happened));
            None
        }
    };
    let (known, mesh) = opened.map_or((None, None), |(known, mesh)| (Some(known), Some(mesh)));
    let entry = Entry { session: &session, way: &args.way, mesh: mesh.as_deref(), tried };
    let (candidates, hosts) = candidates(&entry, &wanted, args.all).await?;
    let status = Client::new(&args.socket).status().await.ok();
    let ways_in = match &status {
        Some(status) => ways_in(&session, &args.way, &hosts, status).await,
        None => Vec::new(),
    };
    let turns = upgrade::order(&candidates, &ways_in);
    let member = status.is_some_and(|status| !status.addresses.is_empty());
    let run = Run { args: &args, entry: &entry, known: known.as_ref(), new: &new, member, candidates: &candidates, output };
    let rows = run.all(&turns).await?;
    let text = table(&rows, args.dry_run);
    output.result(&serde_json::json!({ "dry_run": args.dry_run, "sha256": new.sha256, "guests": rows }), text);
    failure(&rows, tried)
}

fn failure(rows: &[Row], tried: &str) -> Result<(), Failure> {
    let words = |outcome: &str| {
        rows.iter()
            .filter(|row| row.outcome == outcome)
            .map(|row| format!("{} ({}): {}", row.vmid, row.name, row.why))
            .collect::<Vec<_>>()
            .join("; ")
    };
    let (lost, back, failed) = (words("lost"), words("rolled back"), words("failed"));
    if !lost.is_empty() {
        let next = "pvemesh doctor ID and its console in Proxmox show more; the old program is in its place";
        return Err(Failure::new(tried, lost, next).exit(Exit::Left));
    }
    if !back.is_empty() {
        return Err(Failure::new(
            tried,
            format!("rolled back: {back}"),
            "the old program runs again, and those after it were not touched; pvemesh logs ID shows why",
        ));
    }
    if !failed.is_empty() {
        return Err(Failure::new(tried, failed, "nothing has changed there; pvemesh doctor ID says more"));
    }
    Ok(())
}

/// The program, checked to be one that runs without anything else.
fn new_program(given: Option<&Path>, tried: &str) -> Result<NewProgram, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(tried, e, "name a static pvemesh program, as released").exit(Exit::Usage);
    let path = match given {
        Some(path) => path.to_owned(),
        None => image::own_binary().map_err(|e| failed(&e))?,
    };
    let machine = image::machine(&path).map_err(|e| failed(&e))?;
    let sha256 = chores::sha256(&path).map_err(|e| failed(&e))?;
    Ok(NewProgram { path, sha256, machine: machine.to_owned() })
}

/// The guests that are to be upgraded, and the hosts they are on.
async fn candidates(entry: &Entry<'_>, wanted: &[Vmid], all: bool) -> Result<(Vec<Candidate>, BTreeSet<HostName>), Failure> {
    let failed = |e| call_failure(entry.tried, &e);
    let executor = &*entry.session.executor;
    let (mut found, mut hosts) = (Vec::new(), BTreeSet::new());
    if all {
        let guests = observe::guests(executor).await.map_err(failed)?;
        for guest in guests.iter().filter(|guest| guest.container && guest.tags.iter().any(|tag| tag == TAG)) {
            let config = observe::container_config(executor, &guest.host, guest.vmid).await.map_err(failed)?;
            if let Some(mark) = config.and_then(|config| Mark::of_container(guest.vmid, &config)) {
                found.push(candidate(guest.vmid, &mark));
                hosts.insert(guest.host.clone());
            }
        }
    }
    for vmid in wanted {
        let (host, mark, _) = entry.marked(*vmid).await?;
        found.push(candidate(*vmid, &mark));
        hosts.insert(host);
    }
    Ok((found, hosts))
}

fn candidate(vmid: Vmid, mark: &Mark) -> Candidate {
    Candidate { vmid, name: mark.name.clone(), role: mark.role.trim_start_matches(ENROLLED).to_owned() }
}

struct Run<'a> {
    args: &'a Upgrade,
    entry: &'a Entry<'a>,
    known: Option<&'a KnownCoordinator>,
    new: &'a NewProgram,
    /// This machine is in the mesh.
    member: bool,
    candidates: &'a [Candidate],
    output: &'a Output,
}

impl Run<'_> {
    async fn all(&self, turns: &[Turn]) -> Result<Vec<Row>, Failure> {
        let mut rows: Vec<Row> = Vec::new();
        let mut progress = Progress::new(self.output);
        for (number, turn) in turns.iter().enumerate() {
            let stopped = rows.iter().any(|row| matches!(row.outcome, "rolled back" | "lost" | "failed"));
            let begun = Instant::now();
            let title = format!("{}/{} {} ({}): {}", number + 1, turns.len(), turn.name, turn.vmid, turn.why);
            let (outcome, why) = if stopped {
                ("not tried", "an earlier one was not well".to_owned())
            } else {
                progress.begin(&title);
                let done = self.one(turn).await;
                progress.end(begun.elapsed(), !matches!(&done, Ok(("rolled back" | "lost" | "failed", _)) | Err(_)));
                match done {
                    Ok(done) => done,
                    // With one guest alone, its own advice says more than a table.
                    Err(failure) if turns.len() == 1 => return Err(failure),
                    Err(failure) => ("failed", format!("{} ({})", failure.happened, failure.next)),
                }
            };
            rows.push(Row { vmid: turn.vmid, name: turn.name.clone(), outcome, why, seconds: begun.elapsed().as_secs_f64() });
        }
        Ok(rows)
    }

    async fn one(&self, turn: &Turn) -> Result<(&'static str, String), Failure> {
        let vmid = turn.vmid;
        let resident = self.entry.resident(vmid).await?;
        let role = self.candidates.iter().find(|c| c.vmid == vmid).map(|c| c.role.clone()).unwrap_or_default();
        let Resident { host, mark, program, service, inside } = resident;
        let guest = Upgraded { vmid, host, name: mark.name, role, program, service };
        let door = self.entry.session.door()?;
        let mesh = self.coordinator().await;
        let socket = self.args.socket.clone();
        let ping = move |address: IpAddr| -> futures_util::future::BoxFuture<'static, bool> { Box::pin(ping(socket.clone(), address)) };
        let upgrader = Upgrader {
            executor: &*self.entry.session.executor,
            inside: &*inside,
            door: &door,
            mesh: mesh.as_deref().filter(|_| self.known.is_none_or(|known| known.vmid != Some(vmid))),
            known: self.known,
            ping: self.member.then_some(&ping),
            seconds: self.args.patience,
        };
        let failed = |error: &crate::sys::pve::InsideError| {
            let (next, exit) = inside_advice(error);
            Failure::new(format!("upgrade {} ({vmid})", turn.name), error, next).exit(exit)
        };
        let facts = upgrader.facts(&guest).await.map_err(|e| failed(&e))?;
        if facts.program.installed == self.new.sha256 && facts.program.running == self.new.sha256 {
            return Ok(("same", String::new()));
        }
        if self.args.dry_run {
            return Ok(("would be upgraded", format!("{} has {:.12}", guest.program, facts.program.installed)));
        }
        let _lock = self.entry.session.store.lock(vmid).map_err(config_failure)?;
        self.hand_over(mesh.as_deref(), &turn.name).await;
        match upgrader.upgrade(&guest, self.new).await.map_err(|e| failed(&e))? {
            Fate::Same => Ok(("same", String::new())),
            Fate::New => Ok(("upgraded", String::new())),
            Fate::Back(why) => Ok(("rolled back", why)),
            Fate::Lost(why) => Ok(("lost", why)),
        }
    }

    /// The coordinator, opened anew: it may have been restarted since, and a connection does not outlive that.
    async fn coordinator(&self) -> Option<Box<dyn Mesh>> {
        self.known?;
        let begun = Instant::now();
        loop {
            match self.entry.session.mesh().await {
                Ok(opened) => return opened.map(|(_, mesh)| mesh),
                Err(_) if begun.elapsed() < REOPEN_LIMIT => tokio::time::sleep(Duration::from_millis(300)).await,
                Err(failure) => {
                    self.output.note(format!("  {}: {}; nodes are believed what they say themselves", failure.tried, failure.happened));
                    return None;
                }
            }
        }
    }

    /// Waits until other routers carry what this one carries, where there are others.
    async fn hand_over(&self, mesh: Option<&dyn Mesh>, name: &NodeName) {
        let Some(mesh) = mesh else { return };
        let begun = Instant::now();
        loop {
            let gaps = upgrade::gaps(name, &routers(mesh).await);
            if gaps.waiting.is_empty() || begun.elapsed() > HANDOVER_LIMIT {
                for route in gaps.alone.iter().chain(&gaps.waiting) {
                    self.output.note(format!("  nobody else carries {route} while {name} restarts"));
                }
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn routers(mesh: &dyn Mesh) -> Vec<Router> {
    let router = |node: NodeInfo| {
        let routes = node.advertised_routes.iter().copied().filter(|route| node.approved_routes.contains(route)).collect();
        Router { name: node.name, online: node.online, routes }
    };
    mesh.nodes().await.unwrap_or_default().into_iter().map(router).collect()
}

async fn ping(socket: PathBuf, address: IpAddr) -> bool {
    let client = Client::new(&socket);
    matches!(client.ping(PingRequest { kind: PingKind::Tsmp, address }).await, Ok(Some(_)))
}

fn table(rows: &[Row], dry_run: bool) -> String {
    if !rows.is_empty() && rows.iter().all(|row| row.outcome == "same") {
        return "all have this program: nothing to do".to_owned();
    }
    let mut lines: Vec<String> = Vec::new();
    for row in rows {
        let why = if row.why.is_empty() { String::new() } else { format!("  ({})", row.why) };
        lines.push(format!("{:<7} {:<16} {}{why}", row.vmid.to_string(), row.name.to_string(), row.outcome));
    }
    if dry_run {
        lines.push("nothing was changed".to_owned());
    }
    if lines.is_empty() { "there are no guests of pvemesh".to_owned() } else { lines.join("\n") }
}
