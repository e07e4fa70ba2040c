//! `pvemesh node up`: makes the node take part, and waits until it does.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::show::printable;
use super::{Exit, Failure, Node, Output, Place, Wishes, duration, unreached};
use crate::ident::Secret;
use crate::node::{BackendState, PeerStatus, PrefsChange, Status, is_auto};
use crate::sys::daemon::check_directory;
use crate::sys::local_api::{self, Client, LocalError};

/// How long the node's process may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How often the node is asked how far it is.
const POLL: Duration = Duration::from_millis(50);
/// A join key is far shorter than this.
const MAX_KEY: u64 = 4096;
/// How much of a failed node's log is shown.
const LOG_TAIL: usize = 600;

/// Joins the mesh.
#[derive(Debug, clap::Args)]
pub(super) struct Up {
    /// The address of the coordinator, as its admin gave it; needed the first time.
    #[arg(long, value_name = "URL")]
    login_server: Option<String>,
    /// A file with the join key, `-` for standard input. (A key on the command line would be seen by every user of the machine.)
    #[arg(long, value_name = "FILE")]
    auth_key_file: Option<PathBuf>,
    /// Log in again although the node is in: it gets a new node key and keeps its name and addresses.
    #[arg(long)]
    force_reauth: bool,
    #[command(flatten)]
    wishes: Wishes,
    #[command(flatten)]
    place: Place,
    /// How long to wait until the node takes part; 0 for as long as it takes.
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
}

pub(super) async fn run(up: &Up, node: &Node, client: &Client, output: &Output) -> Result<(), Failure> {
    let auth_key = up.auth_key_file.as_deref().map(read_key).transpose()?;
    let mut request = local_api::Up { change: up.wishes.change()?, auth_key, force_reauth: up.force_reauth };
    request.change.login_server = up.login_server.as_ref().map(|url| url.trim().trim_end_matches('/').to_owned());

    let started = match client.status().await {
        Ok(_) => None,
        Err(LocalError::NotRunning(_)) => Some(start(up, node, client).await?),
        Err(error) => return Err(unreached("join the mesh", &error)),
    };
    let before = client.prefs().await.map_err(|e| unreached("join the mesh", &e))?;
    let asked = client.up(&request).await;
    let joined = match asked {
        Ok(_) => wait(up, client, output).await,
        Err(error) => Err(unreached("join the mesh", &error)),
    };
    match joined {
        Ok(status) => {
            // It takes part, and something may be wrong all the same.
            status.health.iter().for_each(|line| output.note(format_args!("note: {}", printable(line))));
            output.result(&status, addresses(&status));
            Ok(())
        }
        Err(failure) => {
            undo(&failure, client, before.exit_node, started.is_some()).await;
            Err(failure)
        }
    }
}

/// Takes back what would leave the user worse off than before: a wish for an exit node that cannot be had holds all traffic back, and a
/// process that we started for nothing has no use. A node that only waits for its coordinator, or for someone to let it in, goes on waiting.
async fn undo(failure: &Failure, client: &Client, exit_node: String, started: bool) {
    if failure.exit == Exit::Conflict {
        let _ = client.set(&PrefsChange { exit_node: Some(exit_node), ..Default::default() }).await;
        return;
    }
    let waits = failure.exit == Exit::Unreachable || client.status().await.is_ok_and(|status| !status.auth_url.is_empty());
    if started && !waits {
        let _ = client.tell("down").await;
    }
}

fn addresses(status: &Status) -> String {
    status.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads a join key; blanks around it do not count.
fn read_key(path: &Path) -> Result<Secret, Failure> {
    let failed =
        |happened: String, next: &str| Failure::new(format!("read the join key from {}", path.display()), happened, next).exit(Exit::Usage);
    let mut text = zeroize::Zeroizing::new(String::new());
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_KEY).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_KEY).read_to_string(&mut text))
    };
    read.map_err(|e| failed(e.to_string(), "name a file that this user can read, or `-` for standard input"))?;
    let key = text.trim();
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(failed("it holds no join key, or more than one".to_owned(), "put the key alone into the file"));
    }
    if key.starts_with("tskey-client-") {
        return Err(failed("it holds an OAuth client secret".to_owned(), "make a join key (auth key) in the admin console and use that"));
    }
    Ok(Secret::new(key))
}

/// Starts the node's process in the background and waits until it listens.
async fn start(up: &Up, node: &Node, client: &Client) -> Result<Child, Failure> {
    let place = &up.place;
    place.ground()?;
    let failed = |happened: &dyn std::fmt::Display, next: &str| Failure::new("start the node", happened, next);
    check_directory(&place.state_dir).map_err(|e| failed(&e, e.next()))?;
    let log = place.state_dir.join("node.log");
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).map_err(|e| failed(&e, "run as root"))?;
    let errors = file.try_clone().map_err(|e| failed(&e, "try again"))?;
    let begin = file.metadata().map_or(0, |meta| meta.len());
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["node", "run", "--background", "--tun", &place.tun])
        .arg("--state-dir")
        .arg(&place.state_dir)
        .arg("--socket")
        .arg(&node.socket);
    for (flag, address) in [("--socks5-server", place.socks5_server), ("--outbound-http-proxy-listen", place.outbound_http_proxy_listen)] {
        if let Some(address) = address {
            command.args([flag, &address.to_string()]);
        }
    }
    if let Some(port) = place.port {
        command.args(["--port", &port.to_string()]);
    }
    if let Some(offload) = clap::ValueEnum::to_possible_value(&place.offload) {
        command.args(["--offload", offload.get_name()]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().map_err(|e| failed(&e, "try again"))?;
    let started = Instant::now();
    loop {
        if client.status().await.is_ok() {
            return Ok(child);
        }
        if let Ok(Some(status)) = child.try_wait() {
            let tail = tail(&log, begin);
            return Err(failed(&format!("it ended with {status}:\n{tail}"), &format!("see {}", log.display())));
        }
        if started.elapsed() > START_LIMIT {
            let _ = child.kill();
            return Err(failed(&format!("it does not listen after {} s", START_LIMIT.as_secs()), &format!("see {}", log.display())));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The end of what a log got since `begin`.
fn tail(log: &Path, begin: u64) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let new = usize::try_from(begin).ok().and_then(|begin| bytes.get(begin..)).unwrap_or_default();
    let text = String::from_utf8_lossy(new.get(new.len().saturating_sub(LOG_TAIL)..).unwrap_or_default()).into_owned();
    text.trim_end().to_owned()
}

/// Waits until the node has an address and, if one is wanted, its exit node.
async fn wait(up: &Up, client: &Client, output: &Output) -> Result<Status, Failure> {
    let started = Instant::now();
    let mut shown = String::new();
    loop {
        let status = client.status().await.map_err(|e| unreached("join the mesh", &e))?;
        let wants_exit = match &up.wishes.exit_node {
            Some(wanted) => !wanted.trim().is_empty(),
            None => false,
        };
        match status.backend_state {
            BackendState::NeedsLogin if !status.refusal.is_empty() => {
                let next = "make a new join key at the coordinator and pass it with --auth-key-file";
                return Err(Failure::new(format!("join the mesh at {}", status.login_server), status.refusal, next).exit(Exit::Denied));
            }
            BackendState::NeedsLogin if !status.auth_url.is_empty() && shown != status.auth_url => {
                show_page(&status, output);
                shown.clone_from(&status.auth_url);
            }
            BackendState::NeedsMachineAuth if shown.is_empty() => {
                shown = format!("{} knows this node; an admin has to approve it there", status.login_server);
                output.note(&shown);
            }
            BackendState::Running if !wants_exit || status.exit_node_status.is_some() => return Ok(status),
            _ => {}
        }
        if !up.timeout.is_zero() && started.elapsed() > up.timeout {
            return Err(late(up, &status));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Tells the user where to go; with `--json`, whoever reads standard error line by line.
fn show_page(status: &Status, output: &Output) {
    if output.json() {
        output.note(serde_json::json!({ "event": "login", "AuthURL": status.auth_url, "BackendState": status.backend_state }));
    } else {
        output.note(format_args!("to let this node in, visit:\n\n    {}\n", status.auth_url));
    }
}

/// Why it took too long.
fn late(up: &Up, status: &Status) -> Failure {
    let tried = format!("join the mesh at {}", status.login_server);
    let limit = up.timeout.as_secs_f32();
    if status.backend_state == BackendState::Running {
        let wanted = up.wishes.exit_node.as_deref().unwrap_or_default();
        let offered: Vec<&str> = status.peer.values().filter(|p| p.exit_node_option).map(PeerStatus::name).collect();
        let next = if offered.is_empty() {
            "no node carries internet traffic yet; make one with `pvemesh create-exit-node`, or approve its routes at the coordinator"
                .to_owned()
        } else {
            format!("offered are: {}", offered.join(", "))
        };
        let happened = if is_auto(wanted) {
            format!("no exit node is online after {limit} s; none is used")
        } else {
            format!("the exit node `{wanted}` is not there after {limit} s; it is not used")
        };
        return Failure::new(tried, happened, next).exit(Exit::Conflict);
    }
    if !status.auth_url.is_empty() {
        let next = format!("visit {}, or pass a join key with --auth-key-file; the node goes on waiting", status.auth_url);
        return Failure::new(tried, format!("nobody has let this node in within {limit} s"), next).exit(Exit::Denied);
    }
    let why = status.health.first().cloned().unwrap_or_else(|| "nothing was heard of the coordinator".to_owned());
    let next = if why.contains("UnknownIssuer") {
        "if the coordinator's certificate is of your own making, name its authority with --ca-file"
    } else {
        "check the address and that the coordinator runs; the node goes on trying, `pvemesh node status` shows how far it is"
    };
    Failure::new(tried, format!("not joined after {limit} s; {why}"), next).exit(Exit::Unreachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_holds_one_word() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, " secret-key\n").unwrap();
        assert_eq!(read_key(&path).unwrap().expose(), "secret-key");
        for wrong in ["", "\n", "two words"] {
            std::fs::write(&path, wrong).unwrap();
            let failure = read_key(&path).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(!failure.happened.contains("two"));
        }
        assert!(read_key(Path::new("/nonexistent")).is_err());
    }
}
