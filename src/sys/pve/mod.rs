//! Carrying Proxmox requests: over HTTPS, or through `pvesh` on the host itself.
//!
//! Everything above talks to an [`Executor`] and does not know which. What is asked for and why is decided in `plan`.

mod changing;
mod counted;
mod deeds;
mod door;
pub mod fleet;
mod guest_configs;
mod guest_net;
mod handover;
mod host;
mod https;
pub mod inside;
mod install;
mod mesh;
pub mod notes;
pub mod observe;
mod pct;
mod provision;
mod pvesh;
pub mod reconcile;
mod stock;
mod task;
mod ticket;
mod trust;
mod undeeds;
mod undo;
mod upgrade;

use std::path::PathBuf;

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::ident::Secret;
use crate::pve::reply::ReplyError;
use crate::pve::{ApiError, BuildError, Fingerprint, HostName, Principal, Request, StorageId, Upid};

pub use counted::{Calls, Counted};
pub use door::AdminDoor;
pub use guest_configs::{GuestConfigError, GuestConfigs};
pub use handover::Handover;
pub use host::{HostFiles, ROOT_VARIABLE};
pub use https::{Https, HttpsOptions};
pub use inside::{Inside, InsideError};
pub use install::{InstallError, Installer};
pub use mesh::{Door, Mesh, MeshError};
pub use pct::{Pct, SshTarget, SshTargetError};
pub use provision::{Findings, Images, Provisioner, RunError, StepError, Watch, upload_image};
pub use pvesh::Pvesh;
pub use stock::Stock;
pub use task::{TaskError, wait_task};
pub use ticket::{Challenge, SecondFactor};
pub use trust::{Trust, probe_fingerprint, probe_trust};
pub use undo::Undoer;
pub use upgrade::{Fate, NewProgram, Ping, Upgraded, Upgrader, facts};

/// How long the task that stores an upload may take.
const UPLOAD_TASK_LIMIT: std::time::Duration = std::time::Duration::from_secs(300);

/// Whether a process of this number runs. It may be another one than the one meant; what hangs on it is then kept a little longer.
fn is_alive(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}

/// A way to a Proxmox API.
pub trait Executor: Send + Sync {
    /// Makes one request and gives the `data` of the reply.
    fn call<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, CallError>>;

    /// Uploads a container template; gives the task that stores it, which may be on another host than the one named.
    fn upload<'a>(&'a self, upload: &'a Upload) -> BoxFuture<'a, Result<Upid, CallError>>;

    /// Whom Proxmox takes us for.
    fn principal(&self) -> Principal;

    /// Where the requests go, for messages.
    fn place(&self) -> String;

    /// Waits until no call that changes something is under way, and clears away what killed runs have staged. A caller that gave a call up
    /// cannot know whether it is still to come.
    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// The host's own files, where we are root on a host: for what no call can do. They are those of [`Observed::local`] only.
    ///
    /// [`Observed::local`]: crate::plan::observed::Observed::local
    fn guest_configs(&self) -> Option<&GuestConfigs> {
        None
    }
}

/// A file to be uploaded as a container template.
#[derive(Debug, Clone)]
pub struct Upload {
    /// The host whose API stores it.
    pub host: HostName,
    /// The storage, which must hold `vztmpl`.
    pub storage: StorageId,
    /// The local file.
    pub file: PathBuf,
    /// Its name on the storage; an existing file of that name would be overwritten.
    pub name: String,
    /// Its SHA-256 in lower-case hex; Proxmox checks it.
    pub sha256: String,
}

/// How we show who we are.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A login with a password, and with a code where a second factor is set up.
    Password {
        /// `user@realm`
        user: String,
        /// The password.
        password: Secret,
        /// Who is asked for the code, if Proxmox wants one.
        second: Option<std::sync::Arc<dyn SecondFactor>>,
    },
    /// An API token.
    Token {
        /// `user@realm!name`
        id: String,
        /// Its secret, a UUID.
        secret: Secret,
    },
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Proxmox answered and refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The request could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// No connection, or it was lost. After a POST, PUT or DELETE nobody knows whether the request was carried out.
    #[error("{place} cannot be reached: {why}")]
    Unreachable {
        /// Where.
        place: String,
        /// The causes, outermost first.
        why: String,
    },
    /// The certificate is not the pinned one.
    #[error("the certificate of {place} has the fingerprint {seen}, but {expected} was expected")]
    CertificateChanged {
        /// Where.
        place: String,
        /// The fingerprint shown.
        seen: Fingerprint,
        /// The fingerprint pinned.
        expected: Fingerprint,
    },
    /// The certificate is signed by nobody we trust.
    #[error("the certificate of {place} (fingerprint {seen}) is not trusted: {why}")]
    CertificateUntrusted {
        /// Where.
        place: String,
        /// The fingerprint shown.
        seen: Fingerprint,
        /// What the check says.
        why: String,
    },
    /// Proxmox wants a second factor, and there is no code.
    #[error("{user} logs in with a second factor ({challenge})")]
    SecondFactor {
        /// The user.
        user: String,
        /// The factors set up.
        challenge: Challenge,
    },
    /// The code of a second factor was not accepted.
    #[error("{user}'s code was not accepted; it was sent once and is not sent again")]
    CodeRefused {
        /// The user.
        user: String,
    },
    /// The credentials or settings cannot be used.
    #[error("{0}")]
    Setup(String),
    /// The reply was not understood.
    #[error(transparent)]
    Reply(#[from] ReplyError),
    /// The reply is no JSON or too long.
    #[error("{place} sent a reply that is not understood: {why}")]
    Garbled {
        /// Where.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// A local file could not be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A request with a secret would have to go through the command line of a program.
    #[error("a secret cannot be handed to pvesh, since every user of the host could read it in the process list")]
    SecretInArguments,
}

impl CallError {
    /// Whether the request may have been carried out although it failed.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Garbled { .. })
    }

    /// Whether it passes by itself: nobody answered, or another operation holds what is wanted.
    pub fn is_passing(&self) -> bool {
        let kind = self.kind();
        self.is_ambiguous()
            || matches!(kind, Some(crate::pve::ErrorKind::HostUnreachable | crate::pve::ErrorKind::Timeout | crate::pve::ErrorKind::Busy))
    }

    /// What Proxmox's refusal means, if it is one.
    pub fn kind(&self) -> Option<crate::pve::ErrorKind> {
        match self {
            Self::Api(error) => Some(error.kind()),
            _ => None,
        }
    }
}
