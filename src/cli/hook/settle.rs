//! What follows a start and may take its time: a process of its own, which nobody waits for.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::connect::{ConnectArgs, Session};
use crate::cli::{Failure, Output, sync};
use crate::ident::Vmid;
use crate::plan::mark::Mark;
use crate::sys::pve::HostFiles;
use crate::sys::pve::reconcile::addresses;

/// How long it is waited for a node to join, or for a guest to have addresses: a large system takes a minute to start its agent.
const AWAIT_LIMIT: Duration = Duration::from_secs(90);
const AWAIT_PAUSE: Duration = Duration::from_secs(2);
/// The start that brought this about may hold the guest's lock for a while longer.
const TRIES: u32 = 4;
const TRY_PAUSE: Duration = Duration::from_secs(5);
/// Where the system's log is written to.
const SYSTEM_LOG: &str = "/dev/log";

/// Starts the job. Its streams lead nowhere: whoever called the hook waits until all of them are closed.
pub(super) fn detach(vmid: Vmid) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new("start the job that follows a start", e, "run `pvemesh sync`");
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(["hook", &vmid.to_string(), "settle"]).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop).map_err(failed)
}

/// The job.
pub(super) async fn run(vmid: Vmid, output: &Output) -> Result<(), Failure> {
    // A session of its own, so that nothing that ends the hook's caller ends it. It fails only where it is one already.
    let _ = rustix::process::setsid();
    let session = Session::open(&ConnectArgs::default()).await;
    let outcome = match session {
        Ok(session) => settled(&session, vmid, output).await,
        Err(failure) => Err(failure),
    };
    match &outcome {
        Ok(text) => log(vmid, text),
        Err(failure) => log(vmid, &format!("{}: {}; next: {}", failure.tried, failure.happened, failure.next)),
    }
    outcome.map(drop)
}

async fn settled(session: &Session, vmid: Vmid, output: &Output) -> Result<String, Failure> {
    expect(session, vmid).await;
    let mut tries = 0;
    loop {
        tries += 1;
        let failure = match sync::pass(session, Some(vmid), false, output).await {
            Ok(report) => match report.failure() {
                None => return Ok(report.text()),
                Some(failure) => failure.clone(),
            },
            Err(failure) => failure,
        };
        if tries == TRIES {
            return Err(failure);
        }
        tokio::time::sleep(TRY_PAUSE).await;
    }
}

/// Waits until there is something to write down of the guest, but not for ever.
async fn expect(session: &Session, vmid: Vmid) {
    let files = HostFiles::here();
    let facts = files.facts(vmid).ok();
    let description = facts.and_then(|facts| facts.file).map(|file| file.notes).unwrap_or_default();
    let mark = Mark::find(&description).filter(|mark| mark.vmid == vmid);
    let attached = session.store.ledger().ok().and_then(|mut ledger| ledger.attached.remove(&vmid));
    let begun = Instant::now();
    while begun.elapsed() < AWAIT_LIMIT {
        let there = match (&attached, &mark) {
            (Some(attached), _) => has_addresses(session, vmid, &attached.macs).await,
            (None, Some(mark)) => is_online(session, mark).await,
            // A copy: it has nothing to wait for, it waits for us.
            (None, None) => true,
        };
        if there {
            return;
        }
        tokio::time::sleep(AWAIT_PAUSE).await;
    }
}

async fn is_online(session: &Session, mark: &Mark) -> bool {
    let Ok(Some((_, mesh))) = session.mesh().await else { return false };
    mesh.nodes().await.is_ok_and(|nodes| nodes.iter().any(|node| node.name == mark.name && node.online))
}

async fn has_addresses(session: &Session, vmid: Vmid, macs: &[crate::ident::Mac]) -> bool {
    let listed = async {
        let request = crate::pve::call::guests().ok()?;
        crate::pve::reply::guests(&session.executor.call(&request).await.ok()?).ok()
    };
    let Some(guest) = listed.await.and_then(|guests| guests.into_iter().find(|guest| guest.vmid == vmid)) else { return false };
    let local = sync::local(session);
    !addresses(&*session.executor, &guest, macs, local.as_ref()).await.0.is_empty()
}

/// A line for the system's log, where there is one; nobody else reads what this job says.
fn log(vmid: Vmid, text: &str) {
    // <30> is a daemon's information (RFC 3164).
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(800).collect();
    let line = format!("<30>pvemesh[{}]: guest {vmid}: {clean}", std::process::id());
    let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(line.as_bytes(), SYSTEM_LOG));
}
