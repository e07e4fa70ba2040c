//! From the configuration to an open way to Proxmox and to the coordinator, and from their errors to what the admin reads.

use std::path::Path;

use super::{Exit, Failure};
use crate::ident::Secret;
use crate::plan::options::KnownCoordinator;
use crate::plan::{Fault, Refusal};
use crate::pve::ErrorKind;
use crate::sys::config::{Config, ConfigError, Pve, Store, read_secret};
use crate::sys::entropy;
use crate::sys::pve::{
    AdminDoor, CallError, Credentials, Door as _, Executor, HostFileError, Https, HttpsOptions, Mesh, Pvesh, StepError, TaskError, Trust,
};

/// What every command that talks to Proxmox takes.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ConnectArgs {
    /// The six digits of a second factor (TOTP), if the user has one.
    #[arg(long, value_name = "CODE")]
    pub(super) otp: Option<String>,
}

/// An open way to Proxmox, and the files of this machine.
pub(super) struct Session {
    pub(super) executor: Box<dyn Executor>,
    pub(super) store: Store,
    pub(super) config: Config,
}

impl Session {
    /// Opens the way that the configuration names; without one, `pvesh` on a Proxmox host.
    pub(super) async fn open(args: &ConnectArgs) -> Result<Self, Failure> {
        let store = Store::open().map_err(config_failure)?;
        let config = store.load().map_err(config_failure)?;
        let executor: Box<dyn Executor> = match &config.pve {
            Some(pve) => Box::new(https(pve, args.otp.as_deref()).await?),
            None if Pvesh::is_here() => Box::new(Pvesh::default()),
            None => {
                let happened = "this is no Proxmox host (or we are not its root), and no other one is set up";
                let next = "on the host, run it as root; elsewhere: pvemesh init --url https://HOST:8006 --user root@pam";
                return Err(Failure::new("find a Proxmox host", happened, next).exit(Exit::Usage));
            }
        };
        Ok(Self { executor, store, config })
    }

    /// The known coordinator, opened.
    pub(super) async fn mesh(&self) -> Result<Option<(KnownCoordinator, Box<dyn Mesh>)>, Failure> {
        let Some(kept) = self.config.coordinator.clone() else { return Ok(None) };
        let known = KnownCoordinator::from(kept);
        let door = self.door()?;
        let mesh = door.open(&known.lan_url, Some(known.server_key)).await.map_err(|e| {
            let next = match known.vmid {
                Some(vmid) => format!("is container {vmid} running? pvemesh status {vmid}; is this machine on its network?"),
                None => "is it running, and is this machine on its network?".to_owned(),
            };
            Failure::new(format!("reach the coordinator at {}", known.lan_url), e, next).exit(Exit::Unreachable)
        })?;
        Ok(Some((known, mesh)))
    }

    /// The way to coordinators with this machine's admin key.
    pub(super) fn door(&self) -> Result<AdminDoor, Failure> {
        let seed = entropy::seed().map_err(|e| Failure::new("make the admin key", e, "this system has no randomness"))?;
        Ok(AdminDoor::new(self.store.admin_key(seed).map_err(config_failure)?))
    }
}

async fn https(pve: &Pve, otp: Option<&str>) -> Result<Https, Failure> {
    let https = build(pve, credentials(pve, otp)?)?;
    https.log_in().await.map_err(|e| call_failure("log in to Proxmox", &e))?;
    Ok(https)
}

/// An HTTPS transport as set up.
pub(super) fn build(pve: &Pve, credentials: Credentials) -> Result<Https, Failure> {
    let url = Https::parse_url(&pve.url).map_err(|e| call_failure("read the address of Proxmox", &e))?;
    let trust = match (pve.fingerprint, &pve.ca_file) {
        (Some(fingerprint), _) => Trust::Fingerprint(fingerprint),
        (None, Some(file)) => Trust::CaFile(file.clone()),
        (None, None) => Trust::System,
    };
    Https::new(HttpsOptions { url, trust, credentials }).map_err(|e| call_failure("set up HTTPS", &e))
}

fn credentials(pve: &Pve, otp: Option<&str>) -> Result<Credentials, Failure> {
    match (&pve.token_file, &pve.user, &pve.password_file) {
        (Some(file), _, _) => token(file),
        (None, Some(user), Some(file)) => {
            let password = read_secret(file).map_err(config_failure)?;
            Ok(Credentials::Password { user: user.clone(), password, otp: otp.map(Secret::new) })
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
        ConfigError::Busy(_) => ("wait until it has ended", Exit::Conflict),
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
        CallError::SecondFactor { .. } => ("give the six digits of the authenticator app with --otp".to_owned(), Exit::Denied),
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
        StepError::Mesh(_) => ("is the coordinator running? pvemesh list".to_owned(), Exit::Unreachable, &[]),
        StepError::TooLong { .. } => ("pvemesh status and the container's console in Proxmox show more".to_owned(), Exit::Unreachable, &[]),
        StepError::Interrupted => ("run the command again when you like".to_owned(), Exit::Failed, &[]),
        StepError::Image(_) => {
            ("use the released binary, or build in the repository, which links statically".to_owned(), Exit::Failed, &[])
        }
        StepError::HostFile(error) => match error {
            HostFileError::Busy(_) | HostFileError::Locked { .. } => {
                ("wait for the operation that works on it, then try again".to_owned(), Exit::Conflict, &[])
            }
            HostFileError::Missing { .. } => ("pvemesh list shows where it is".to_owned(), Exit::Conflict, &[]),
            HostFileError::Io { .. } => ("is the cluster quorate? pvecm status".to_owned(), Exit::Failed, &[]),
        },
        StepError::Config(_) => ("check the directory of the configuration".to_owned(), Exit::Failed, &[]),
        StepError::Render(_) | StepError::Missing(_) => ("this is a defect of pvemesh; please report it".to_owned(), Exit::Failed, &[]),
    }
}
