//! The transport through `pvesh`, for root on a Proxmox host: no credentials, no HTTP.
//!
//! `pvesh` runs a task to its end before it returns, copies the task's log to standard output and prints the reply on the last line; its
//! exit status is 0 even when the task failed, so the caller asks for the task's status as with any other transport. Parameters travel in
//! the command line, which every user of the host can read: requests with secrets are refused.

use std::ffi::OsString;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::host::HostFiles;
use super::{CallError, Executor, GuestConfigs, Upload};
use crate::pve::{ApiError, HostName, Method, Principal, Request, Upid, reply};

/// Proxmox's cluster file system; there on every host.
const CLUSTER_FILES: &str = "/etc/pve";
/// Largest output read from `pvesh`.
const MAX_OUTPUT: u64 = 16 << 20;

/// How the name of a staged upload begins: as Proxmox wants it, then letters of ours as hex digits, so that none of Proxmox's own uploads is
/// taken for one of ours. The process that staged it follows, and a random number.
const STAGED: &str = "pveupload-70766d6573682d00";
/// More calls than are ever under way at once.
const MOST_CALLS: u32 = 1 << 16;

/// The transport.
#[derive(Debug, Clone)]
pub struct Pvesh {
    program: PathBuf,
    scratch: PathBuf,
    configs: GuestConfigs,
    /// Each call that changes something holds one permit until its program has ended, whoever waits for it or no longer does.
    under_way: Arc<Semaphore>,
}

impl Default for Pvesh {
    fn default() -> Self {
        Self::new("pvesh", "/var/tmp")
    }
}

impl Pvesh {
    /// The transport through this program; uploads are staged in `scratch`, which for Proxmox's own must be `/var/tmp`.
    pub fn new(program: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            scratch: scratch.into(),
            configs: GuestConfigs::default(),
            under_way: Arc::new(Semaphore::new(MOST_CALLS as usize)),
        }
    }

    /// The same with the host's files in other places.
    #[must_use]
    pub fn with_files(self, files: GuestConfigs) -> Self {
        Self { configs: files, ..self }
    }

    /// Whether this is a Proxmox host and we are its root.
    pub fn is_here() -> bool {
        let in_path = std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("pvesh").is_file()));
        rustix::process::geteuid().is_root() && HostFiles::here().path(CLUSTER_FILES).is_dir() && in_path
    }

    /// The name of this host as the cluster knows it.
    pub fn local_host() -> Option<HostName> {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        name.split('.').next()?.parse().ok()
    }

    async fn run(&self, request: &Request) -> Result<Value, CallError> {
        if request.carries_secret() {
            return Err(CallError::SecretInArguments);
        }
        let place = self.program.display().to_string();
        let lost = |why: String| CallError::Unreachable { place, why };
        let spoken = speak(self.program.clone(), arguments(request));
        let spoken = if request.method.is_safe() {
            spoken.await
        } else {
            // It must not end halfway when whoever asked for it gives up.
            let permit = Arc::clone(&self.under_way).acquire_owned().await;
            let ended = tokio::spawn(async move {
                let _held = permit;
                spoken.await
            });
            match ended.await {
                Ok(spoken) => spoken,
                Err(error) => return Err(lost(error.to_string())),
            }
        };
        let Spoken { good, out, err } = spoken.map_err(|e| lost(e.to_string()))?;
        if good { Ok(last_value(&out)) } else { Err(failure(&err, &out).into()) }
    }

    /// Removes what runs have staged that were killed.
    fn discard_orphans(&self) {
        for entry in std::fs::read_dir(&self.scratch).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| u32::from_str_radix(name.strip_prefix(STAGED)?.get(..8)?, 16).ok());
            if pid.is_some_and(|pid| !super::is_alive(pid)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    async fn stage(&self, upload: &Upload) -> Result<PathBuf, CallError> {
        // The name's form is fixed by the API: /var/tmp/pveupload-[0-9a-f]+; the file is private because it may hold a join key.
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(|e| CallError::Setup(format!("no randomness: {e}")))?;
        let (pid, random) = (std::process::id(), u64::from_be_bytes(random));
        let staged = self.scratch.join(format!("{STAGED}{pid:08x}{random:016x}"));
        let (from, to) = (upload.file.clone(), staged.clone());
        let copied = tokio::task::spawn_blocking(move || {
            let mut source = std::fs::File::open(from)?;
            let mut target = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
            std::io::copy(&mut source, &mut target)?;
            target.sync_all()
        })
        .await
        .map_err(std::io::Error::other)
        .and_then(|copied| copied);
        match copied {
            Ok(()) => Ok(staged),
            Err(source) => {
                let _ = std::fs::remove_file(&staged);
                Err(CallError::File { path: staged, source })
            }
        }
    }
}

impl Executor for Pvesh {
    fn call<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, CallError>> {
        tracing::debug!(%request, "calling pvesh");
        Box::pin(self.run(request))
    }

    fn upload<'a>(&'a self, upload: &'a Upload) -> BoxFuture<'a, Result<Upid, CallError>> {
        Box::pin(async move {
            let staged = self.stage(upload).await?;
            let request = Request::new(Method::Post, format!("/nodes/{}/storage/{}/upload", upload.host, upload.storage))
                .with("content", "vztmpl")
                .with("filename", upload.name.clone())
                .with("checksum", upload.sha256.clone())
                .with("checksum-algorithm", "sha256")
                .with("tmpfilename", staged.display().to_string());
            let outcome = self.run(&request).await;
            // Proxmox removes it when the task ran; after a refusal it is still there.
            let _ = std::fs::remove_file(&staged);
            Ok(reply::upid(&outcome?)?)
        })
    }

    fn principal(&self) -> Principal {
        Principal::RootHost
    }

    fn place(&self) -> String {
        "this host (pvesh)".to_owned()
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let _all = self.under_way.acquire_many(MOST_CALLS).await;
            self.discard_orphans();
        })
    }

    fn guest_configs(&self) -> Option<&GuestConfigs> {
        Some(&self.configs)
    }
}

fn arguments(request: &Request) -> Vec<OsString> {
    let verb = match request.method {
        Method::Get => "get",
        Method::Post => "create",
        Method::Put => "set",
        Method::Delete => "delete",
    };
    let mut arguments: Vec<OsString> = vec![verb.into(), request.path.clone().into(), "--output-format".into(), "json".into()];
    for (name, value) in &request.params {
        arguments.push(format!("--{name}").into());
        arguments.push(value.expose().into());
    }
    arguments
}

/// What `pvesh` said.
struct Spoken {
    good: bool,
    out: String,
    err: String,
}

/// Runs it to its end. In a process group of its own: Ctrl-C on the terminal is for us, who take back what it did.
async fn speak(program: PathBuf, arguments: Vec<OsString>) -> std::io::Result<Spoken> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C.UTF-8").process_group(0);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err) = tokio::join!(read_all(out), read_all(err));
    Ok(Spoken { good: child.wait().await?.success(), out: out?, err: err? })
}

async fn read_all(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The reply: the last line that is not empty, as JSON; nothing at all means `null`. A call that went to another host gives its output as
/// one text, with the task's id on the last line.
fn last_value(output: &str) -> Value {
    let Some(last) = output.lines().rev().find(|line| !line.trim().is_empty()) else { return Value::Null };
    let value = serde_json::from_str(last).unwrap_or_else(|_| Value::String(last.trim().to_owned()));
    match value {
        Value::String(text) => {
            let end = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().trim_matches('"');
            if end.starts_with("UPID:") { Value::String(end.to_owned()) } else { Value::String(text) }
        }
        other => other,
    }
}

/// Reads what `pvesh` says when it refuses: `400 Parameter verification failed.`, lines `name: reason`, then its usage.
fn failure(errors: &str, output: &str) -> ApiError {
    let text = if errors.trim().is_empty() { output } else { errors };
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("pvesh failed without a word");
    let (status, message) = match first.split_once(' ') {
        Some((code, rest)) if code.len() == 3 => code.parse().map_or((500, first), |status: u16| (status, rest)),
        _ => (500, first),
    };
    let mut error = ApiError { status, ..ApiError::from_text(message) };
    if status == 400 {
        for line in lines.take_while(|line| !line.starts_with("pvesh ")).take(50) {
            if let Some((name, why)) = line.split_once(": ").filter(|(name, _)| !name.contains(' ')) {
                error.errors.insert(name.to_owned(), why.to_owned());
            }
        }
    }
    error
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pve::ErrorKind;

    #[test]
    fn the_reply_is_the_last_line() {
        assert_eq!(last_value(""), Value::Null);
        assert_eq!(last_value("\n\n"), Value::Null);
        assert_eq!(last_value("{\"a\":1}\n"), json!({"a": 1}));
        let upid = "UPID:pve:00003B61:00050BD6:6B02A9D3:vzcreate:190:root@pam:";
        assert_eq!(last_value(&format!("extracting archive\nTotal bytes read: 1\n\"{upid}\"\n")), json!(upid));
        let from_elsewhere = serde_json::to_string(&format!("extracting archive\n\"{upid}\"\n")).unwrap();
        assert_eq!(last_value(&from_elsewhere), json!(upid));
    }

    #[test]
    fn refusals_are_read_from_standard_error() {
        let error = failure(
            "400 Parameter verification failed.\nvmid: type check ('integer') failed - got 'abc'\npvesh create <api_path> [OPTIONS]\n",
            "",
        );
        assert_eq!((error.status, error.errors["vmid"].as_str()), (400, "type check ('integer') failed - got 'abc'"));
        assert_eq!(failure("CT 101 already exists on node 'pve'\n", "").kind(), ErrorKind::VmidInUse);
        assert_eq!(failure("", "").status, 500);
    }

    #[test]
    fn arguments_are_verb_path_and_options() {
        let request = Request::new(Method::Post, "/nodes/pve/lxc").with("vmid", "101").with("unprivileged", "1");
        let shown: Vec<String> = arguments(&request).into_iter().map(|a| a.into_string().unwrap()).collect();
        assert_eq!(shown, ["create", "/nodes/pve/lxc", "--output-format", "json", "--unprivileged", "1", "--vmid", "101"]);
    }
}
