//! Brings a new identity into a running guest: a file put into it, on its own host; else its environment and a restart.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use tokio::process::Command;

use super::provision::{StepError, Watch, run_call};
use super::{CallError, Executor};
use crate::ident::Vmid;
use crate::pve::{HostName, Principal, Version, call, reply};
use crate::settings::{RENEWAL_FILE, RENEWAL_VARIABLE, Renewal};

/// `pct push` waits ten seconds for the guest's lock, which a start may hold.
const PUSH_LIMIT: Duration = Duration::from_secs(30);
const STOP_SECS: u16 = 10;
const TASK_LIMIT: Duration = Duration::from_secs(90);

/// The way into guests.
#[derive(Debug, Clone)]
pub struct Handover {
    pct: PathBuf,
    scratch: PathBuf,
    local: Option<HostName>,
}

impl Handover {
    /// With Proxmox's own tool for guests of this host (`local`), if it is one; files are staged in `scratch`, which is private.
    pub fn new(pct: impl Into<PathBuf>, scratch: &Path, local: Option<HostName>) -> Self {
        Self { pct: pct.into(), scratch: scratch.to_owned(), local }
    }

    /// Hands a new identity to a running guest.
    ///
    /// # Errors
    /// If it does not get there.
    pub(super) async fn bring(
        &self,
        executor: &dyn Executor,
        host: &HostName,
        vmid: Vmid,
        renewal: &Renewal,
        watch: &mut dyn Watch,
    ) -> Result<(), StepError> {
        if executor.principal() != Principal::RootHost {
            return by_environment(executor, host, vmid, renewal, watch).await;
        }
        if self.local.as_ref() != Some(host) {
            return Err(setup(format!("guest {vmid} is on {host}, and only that host can put a file into it: run `pvemesh sync` there")));
        }
        self.push(vmid, renewal).await
    }

    async fn push(&self, vmid: Vmid, renewal: &Renewal) -> Result<(), StepError> {
        let text = renewal.to_toml().map_err(|e| setup(e.to_string()))?;
        let staged = self.scratch.join(format!("renewal-{vmid}-{}.toml", std::process::id()));
        let failed = |source| StepError::Call(CallError::File { path: staged.clone(), source });
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged).map_err(failed)?;
        let written = file.write_all(text.expose().as_bytes());
        let outcome = match written {
            Ok(()) => self.run_push(vmid, &staged).await,
            Err(e) => Err(failed(e)),
        };
        let _ = std::fs::remove_file(&staged);
        outcome
    }

    async fn run_push(&self, vmid: Vmid, staged: &Path) -> Result<(), StepError> {
        let mut command = Command::new(&self.pct);
        command.arg("push").arg(vmid.to_string()).arg(staged).arg(RENEWAL_FILE).args(["--user", "0", "--group", "0", "--perms", "0600"]);
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).kill_on_drop(true);
        let unreachable = |why: String| StepError::Call(CallError::Unreachable { place: self.pct.display().to_string(), why });
        let output = tokio::time::timeout(PUSH_LIMIT, command.output()).await;
        let output = output.map_err(|_| unreachable("it does not end".to_owned()))?.map_err(|e| unreachable(e.to_string()))?;
        // Its exit status is 0 even when the copy failed; whether the node takes the file shows by its joining.
        if output.status.success() {
            return Ok(());
        }
        Err(setup(format!("pct push {vmid}: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }
}

fn setup(text: String) -> StepError {
    StepError::Call(CallError::Setup(text))
}

/// The environment is read by a guest's init when it starts, so it has to start. It is taken back at once.
async fn by_environment(
    executor: &dyn Executor,
    host: &HostName,
    vmid: Vmid,
    renewal: &Renewal,
    watch: &mut dyn Watch,
) -> Result<(), StepError> {
    // Before it is stopped for nothing.
    let version = reply::version(&executor.call(&call::host_version(host)?).await?)?;
    if version < Version::ENVIRONMENT {
        let why = format!("{host} has Proxmox VE {version}, which has no `env` yet: run `pvemesh sync` on that host, as root");
        return Err(setup(format!("nothing can be handed to guest {vmid} from here: {why}")));
    }
    let text = renewal.to_toml().map_err(|e| setup(e.to_string()))?;
    let content = crate::ident::Secret::new(base64::engine::general_purpose::STANDARD.encode(text.expose()));
    run_call(executor, &call::shutdown(host, vmid, STOP_SECS)?, Some(TASK_LIMIT), watch).await?;
    let set = run_call(executor, &call::set_environment(host, vmid, RENEWAL_VARIABLE, &content)?, None, watch).await;
    // Whatever became of it, the guest runs again.
    let started = run_call(executor, &call::start(host, vmid)?, Some(TASK_LIMIT), watch).await;
    let cleared = run_call(executor, &call::clear_environment(host, vmid)?, None, watch).await;
    set.and(started).and(cleared)
}
