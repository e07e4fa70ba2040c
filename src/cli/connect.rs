//! From the configuration to an open way to Proxmox and to the coordinator, and from their errors to what the admin reads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ask::Code;
use super::report::say;
use super::{Exit, Failure, Output, hosts};
use crate::ident::{Secret, Vmid};
use crate::plan::options::KnownCoordinator;
use crate::plan::{Fault, Refusal};
use crate::pve::{ErrorKind, Principal, call};
use crate::sys::config::{Config, ConfigError, Pve, Store, read_secret};
use crate::sys::entropy;
use crate::sys::pve::{
    AdminDoor, CallError, Calls, Counted, Credentials, Door as _, Executor, GuestConfigError, Https, HttpsOptions, Mesh, SecondFactor,
    StepError, TaskError, Trust,
};

/// What every command that talks to Proxmox takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ConnectArgs {
    /// The code of a second factor, if the user has one: six digits, or a recovery key. Asked for on a terminal if absent.
    #[arg(long, value_name = "CODE")]
    pub(super) otp: Option<String>,
    /// A file with that code; `-` reads it from standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "otp")]
    pub(super) otp_file: Option<PathBuf>,
    /// The host or cluster meant, by the name it was given with `pvemesh init --name`; the one that has the guest if absent.
    #[arg(long, value_name = "NAME")]
    pub(super) host: Option<String>,
}

/// An open way to Proxmox, and the files of this machine.
pub(super) struct Session {
    pub(super) executor: Box<dyn Executor>,
    /// How many calls were made through it.
    pub(super) calls: Calls,
    pub(super) store: Store,
    pub(super) config: Config,
}

impl Session {
    /// A session through this executor.
    pub(super) fn new(executor: Box<dyn Executor>, store: Store, config: Config) -> Self {
        let (counted, calls) = Counted::new(executor);
        Self { executor: Box::new(counted), calls, store, config }
    }

    /// Opens the way that is set up, or the one named; without any, `pvesh` on a Proxmox host. Fails if there are several and none is named.
    pub(super) async fn open(args: &ConnectArgs) -> Result<Self, Failure> {
        hosts::only(args).await
    }

    /// Opens the way to the host or cluster that has this guest, or will.
    pub(super) async fn for_guest(args: &ConnectArgs, vmid: Vmid, output: &Output) -> Result<Self, Failure> {
        hosts::with_guest(args, vmid, output).await
    }

    /// The known coordinator, opened.
    pub(super) async fn mesh(&self) -> Result<Option<(KnownCoordinator, Box<dyn Mesh>)>, Failure> {
        coordinator(&self.store, &self.config).await
    }

    /// The way to coordinators with this machine's admin key.
    pub(super) fn door(&self) -> Result<AdminDoor, Failure> {
        door(&self.store)
    }
}

fn door(store: &Store) -> Result<AdminDoor, Failure> {
    let seed = entropy::seed().map_err(|e| Failure::new("make the admin key", e, "this system has no randomness"))?;
    Ok(AdminDoor::new(store.admin_key(seed).map_err(config_failure)?))
}

/// The coordinator that a configuration knows, opened; without a way to Proxmox.
pub(super) async fn coordinator(store: &Store, config: &Config) -> Result<Option<(KnownCoordinator, Box<dyn Mesh>)>, Failure> {
    let Some(kept) = config.coordinator.clone() else { return Ok(None) };
    let known = KnownCoordinator::from(kept);
    let door = door(store)?;
    let mesh = door.open(&known.lan_url, Some(known.server_key)).await.map_err(|e| {
        let next = match known.vmid {
            Some(vmid) => format!("is container {vmid} running? pvemesh status {vmid}; is this machine on its network?"),
            None => "is it running, and is this machine on its network?".to_owned(),
        };
        Failure::new(format!("reach the coordinator at {}", known.lan_url), e, next).exit(Exit::Unreachable)
    })?;
    Ok(Some((known, mesh)))
}

/// Opens the first of a cluster's addresses that answers.
pub(super) async fn reach(pve: &Pve, code: &Arc<Code>) -> Result<Https, Failure> {
    let addresses: Vec<&String> = std::iter::once(&pve.url).chain(&pve.also).collect();
    let mut down = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        let https = build(pve, address, credentials(pve, code)?)?;
        match answers(&https, addresses.len() > 1).await {
            Ok(()) => {
                if !down.is_empty() {
                    say(format!("{}; going on with {}", down.join("; "), https.place()));
                }
                return Ok(https);
            }
            Err(error @ CallError::Unreachable { .. }) if number + 1 < addresses.len() => down.push(error.to_string()),
            Err(error) => {
                let mut failure = call_failure("log in to Proxmox", &error);
                if !down.is_empty() {
                    failure.happened = format!("{}; {}", down.join("; "), failure.happened);
                }
                return Err(failure);
            }
        }
    }
    Err(Failure::new("log in to Proxmox", "there is no address", "pvemesh init --url https://HOST:8006").exit(Exit::Usage))
}

/// Logs in. A token has nothing to log in with, so where there is another address to go to it makes a call that shows whether one answers.
async fn answers(https: &Https, among_others: bool) -> Result<(), CallError> {
    https.log_in().await?;
    if among_others && matches!(https.principal(), Principal::Token(_)) {
        https.call(&call::version()?).await?;
    }
    Ok(())
}

/// An HTTPS transport to one address, as set up.
pub(super) fn build(pve: &Pve, address: &str, credentials: Credentials) -> Result<Https, Failure> {
    let url = Https::parse_url(address).map_err(|e| call_failure("read the address of Proxmox", &e))?;
    let trust = match (&pve.cluster_ca, pve.fingerprint, &pve.ca_file) {
        (Some(file), last, _) => Trust::Cluster { file: file.clone(), last },
        (None, Some(fingerprint), _) => Trust::Fingerprint(fingerprint),
        (None, None, Some(file)) => Trust::CaFile(file.clone()),
        (None, None, None) => Trust::System,
    };
    Https::new(HttpsOptions { url, trust, credentials }).map_err(|e| call_failure("set up HTTPS", &e))
}

fn credentials(pve: &Pve, code: &Arc<Code>) -> Result<Credentials, Failure> {
    match (&pve.token_file, &pve.user, &pve.password_file) {
        (Some(file), _, _) => token(file),
        (None, Some(user), Some(file)) => {
            let password = read_secret(file).map_err(config_failure)?;
            let second: Arc<dyn SecondFactor> = Arc::<Code>::clone(code);
            Ok(Credentials::Password { user: user.clone(), password, second: Some(second) })
        }
        _ => {
            let happened = "the configuration names neither a token nor a user with a password file";
            Err(Failure::new("log in to Proxmox", happened, "pvemesh init --url URL --user root@pam").exit(Exit::Usage))
        }
    }
}

/// Reads a token file, `user@realm!name=secret`.
pub(super) fn token(file: &Path) -> Result<Credentials, Failure> {
    let text = read_secret(file).map_err(config_failure)?;
    let wrong = || {
        let happened = "a token file holds one line, USER@REALM!NAME=SECRET";
        Failure::new(format!("read the token in {}", file.display()), happened, "pveum user token add shows both parts").exit(Exit::Usage)
    };
    let (id, secret) = text.expose().strip_prefix("PVEAPIToken=").unwrap_or(text.expose()).split_once('=').ok_or_else(wrong)?;
    let clean = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic());
    if !clean(id) || !clean(secret) || !id.contains('@') || !id.contains('!') {
        return Err(wrong());
    }
    Ok(Credentials::Token { id: id.to_owned(), secret: Secret::new(secret) })
}

/// What the admin reads when a file of ours cannot be used.
pub(super) fn config_failure(error: ConfigError) -> Failure {
    let (next, exit) = match &error {
        ConfigError::Io { .. } => ("check the path and its permissions", Exit::Usage),
        ConfigError::Content { .. } => ("correct it, or run pvemesh init again", Exit::Usage),
        ConfigError::Exposed { .. } => ("take the permissions away, and change the secret if somebody may have read it", Exit::Denied),
        ConfigError::NoDirectory => ("name a directory", Exit::Usage),
        ConfigError::Busy(_) | ConfigError::Syncing => ("wait until it has ended", Exit::Conflict),
    };
    Failure::new("read the configuration", error, next).exit(exit)
}

/// What the admin reads when a call to Proxmox failed.
pub(super) fn call_failure(tried: impl Into<String>, error: &CallError) -> Failure {
    let (next, exit) = call_advice(error);
    Failure::new(tried, error, next).exit(exit)
}

fn call_advice(error: &CallError) -> (String, Exit) {
    match error {
        CallError::Api(api) => api_advice(api.kind()),
        CallError::Unreachable { .. } => {
            ("is the address right, is the host up, does a firewall stand between?".to_owned(), Exit::Unreachable)
        }
        CallError::CertificateChanged { seen, .. } => (
            format!(
                "if the host has a new certificate (compare on the host: openssl x509 -noout -fingerprint -sha256 -in \
                 /etc/pve/local/pve-ssl.pem), accept it with: pvemesh init --fingerprint {seen}"
            ),
            Exit::Denied,
        ),
        CallError::CertificateUntrusted { seen, .. } => (
            format!(
                "compare the fingerprint on the host (openssl x509 -noout -fingerprint -sha256 -in /etc/pve/local/pve-ssl.pem), then: \
                 pvemesh init --fingerprint {seen}"
            ),
            Exit::Denied,
        ),
        CallError::SecondFactor { challenge, .. } if challenge.can_be_typed() => {
            ("give the code of the authenticator app, or a recovery key, with --otp or --otp-file".to_owned(), Exit::Denied)
        }
        CallError::SecondFactor { .. } => {
            ("none of them works without a browser; add TOTP for this user in Proxmox, or use an API token".to_owned(), Exit::Denied)
        }
        CallError::CodeRefused { user } => (
            format!(
                "wait for the next code rather than try this one again: Proxmox locks the factor after some wrong ones. A recovery key still \
                 opens it then, and so does another administrator: pveum user tfa unlock {user}"
            ),
            Exit::Denied,
        ),
        CallError::Setup(_) => ("correct that setting".to_owned(), Exit::Usage),
        CallError::File { .. } => ("check the path and its permissions".to_owned(), Exit::Usage),
        CallError::Garbled { .. } => {
            ("is this really the address of a Proxmox host? it usually ends in :8006".to_owned(), Exit::Unreachable)
        }
        CallError::Build(_) | CallError::Reply(_) | CallError::SecretInArguments => {
            ("this is a defect of pvemesh; please report it".to_owned(), Exit::Failed)
        }
    }
}

fn api_advice(kind: ErrorKind) -> (String, Exit) {
    let (next, exit) = match kind {
        ErrorKind::Login => ("check user and password (pvemesh init sets them); a user of Linux itself is root@pam", Exit::Denied),
        ErrorKind::Authentication | ErrorKind::Csrf => {
            ("log in again: pvemesh init; for a token, check its id, secret and expiry", Exit::Denied)
        }
        ErrorKind::Denied => ("give the user or token the privilege named, under Datacenter > Permissions", Exit::Denied),
        ErrorKind::RootOnly => {
            ("log in as root@pam with a password (pvemesh init --user root@pam), or run pvemesh as root on the host", Exit::Denied)
        }
        ErrorKind::HostUnreachable | ErrorKind::Timeout | ErrorKind::NoQuorum => {
            ("check the node and the cluster: pvecm status", Exit::Unreachable)
        }
        ErrorKind::VmidInUse => ("choose another number", Exit::Conflict),
        ErrorKind::Locked | ErrorKind::Busy => ("wait for the operation that holds the guest, then try again", Exit::Conflict),
        ErrorKind::NoSuchBridge
        | ErrorKind::NoSuchGuest
        | ErrorKind::NoSuchHost
        | ErrorKind::NoSuchStorage
        | ErrorKind::NoSuchVolume
        | ErrorKind::NoSuchDevice
        | ErrorKind::NoSuchScript
        | ErrorKind::StorageUnusable => ("it was there a moment ago; look at the node, then try again", Exit::Conflict),
        ErrorKind::Modified => ("somebody changed the guest at the same time; try again", Exit::Conflict),
        _ => ("the text is Proxmox's own; the task log in its panel may say more", Exit::Failed),
    };
    (next.to_owned(), exit)
}

/// What the admin reads when a plan was refused before it began.
pub(super) fn refusal(tried: impl Into<String>, refusal: &Refusal) -> Failure {
    let exit = match refusal.fault() {
        Fault::Usage => Exit::Usage,
        Fault::Denied => Exit::Denied,
        Fault::Conflict => Exit::Conflict,
        Fault::Internal => Exit::Failed,
    };
    Failure::new(tried, refusal, refusal.next()).exit(exit)
}

/// The exit code, the advice and the log lines of a failed step.
pub(super) fn step_advice(error: &StepError) -> (String, Exit, &[String]) {
    match error {
        StepError::Call(error) => {
            let (next, exit) = call_advice(error);
            (next, exit, &[])
        }
        StepError::Task(task) => match &**task {
            TaskError::Failed { why, log, .. } => {
                let (next, exit) = api_advice(ErrorKind::of(why));
                (next, exit, log)
            }
            TaskError::TooLong { .. } => ("look at the task in Proxmox's panel; the host may be very busy".to_owned(), Exit::Failed, &[]),
            TaskError::Unknown { source, .. } => {
                let (next, exit) = call_advice(source);
                (next, exit, &[])
            }
        },
        StepError::Inside(error) => {
            let (next, exit) = super::ways::inside_advice(error);
            (next, exit, &[])
        }
        StepError::Mesh(_) => ("is the coordinator running? pvemesh list".to_owned(), Exit::Unreachable, &[]),
        StepError::TooLong { .. } => ("pvemesh status and the container's console in Proxmox show more".to_owned(), Exit::Unreachable, &[]),
        StepError::NameLost { .. } => {
            ("run it again: it takes the next free name, or choose one with --name".to_owned(), Exit::Conflict, &[])
        }
        StepError::Overtaken(_) => ("run it again: it looks anew".to_owned(), Exit::Conflict, &[]),
        StepError::Interrupted => ("run the command again when you like".to_owned(), Exit::Failed, &[]),
        StepError::Image(_) => {
            ("use the released binary, or build in the repository, which links statically".to_owned(), Exit::Failed, &[])
        }
        StepError::GuestConfig(error) => match error {
            GuestConfigError::Busy(_) | GuestConfigError::Locked { .. } => {
                ("wait for the operation that works on it, then try again".to_owned(), Exit::Conflict, &[])
            }
            GuestConfigError::Missing { .. } => ("pvemesh list shows where it is".to_owned(), Exit::Conflict, &[]),
            GuestConfigError::Io { .. } => ("is the cluster quorate? pvecm status".to_owned(), Exit::Failed, &[]),
        },
        StepError::Config(_) => ("check the directory of the configuration".to_owned(), Exit::Failed, &[]),
        StepError::Render(_) | StepError::Missing(_) => ("this is a defect of pvemesh; please report it".to_owned(), Exit::Failed, &[]),
    }
}
