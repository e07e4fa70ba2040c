//! The way into guests through `pct`: on the host itself as root, or on another one by `ssh`.
//!
//! What `pct` is like (pve-container, `CLI/pct.pm`): `exec` gives the program's exit code and takes no lock; `push` takes the guest's
//! configuration lock, makes no directories, writes in place, and ends with 0 even if nothing was copied, so what was pushed is read back.
//! Both ways run the same lines in a shell, so that quoting is one thing. Secrets are never in a line; they travel through standard input and
//! lie on the host only in a directory that root alone can enter, for as long as the copy takes.

use std::process::Stdio;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use super::inside::{Inside, InsideError, Push, Ran, Run, Source};
use crate::ident::Vmid;
use crate::pve::HostName;

/// What is read of complaints.
const MAX_ERRORS: usize = 64 * 1024;
/// How long copying a file may take.
const COPY_LIMIT: Duration = Duration::from_secs(180);
/// What the way itself may take beyond the program's own limit.
const SLACK: Duration = Duration::from_secs(15);
/// Exit code of coreutils' `timeout` when it ended the program.
const TIMED_OUT: i32 = 124;

/// Where `ssh` logs in: `root@host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshTarget(String);

/// A text that is no place to log in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is root@HOST, or a name that ssh's own configuration knows")]
pub struct SshTargetError;

impl FromStr for SshTarget {
    type Err = SshTargetError;

    fn from_str(text: &str) -> Result<Self, SshTargetError> {
        let clean = (1..=255).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'@' | b'.' | b'-' | b'_' | b':' | b'[' | b']'));
        if clean { Ok(Self(text.to_owned())) } else { Err(SshTargetError) }
    }
}

impl std::fmt::Display for SshTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone)]
enum Way {
    Here,
    /// Another host, and the options that make `ssh` find its key.
    Ssh(SshTarget, Vec<String>),
}

/// The way through `pct`.
#[derive(Debug)]
pub struct Pct {
    way: Way,
    pct: String,
    ssh: String,
    /// `--keep-env` came with pve-container 5.0.9; cleared when this one does not know it.
    knows_keep_env: AtomicBool,
}

impl Pct {
    fn of(way: Way) -> Self {
        Self { way, pct: "pct".to_owned(), ssh: "ssh".to_owned(), knows_keep_env: AtomicBool::new(true) }
    }

    /// The same with other programs in the place of `pct` (on the host) and `ssh` (here).
    #[must_use]
    pub fn programs(mut self, pct: impl Into<String>, ssh: impl Into<String>) -> Self {
        (self.pct, self.ssh) = (pct.into(), ssh.into());
        self
    }

    /// On this host.
    pub fn here() -> Self {
        Self::of(Way::Here)
    }

    /// On the host that `ssh` reaches as this.
    pub fn ssh(target: SshTarget) -> Self {
        Self::of(Way::Ssh(target, Vec::new()))
    }

    /// On another host of the cluster, with the keys that the cluster keeps of its hosts.
    pub fn cluster(host: &HostName) -> Self {
        // Since PVE 8.2 each host's key lies in its own file; before, in the system's one.
        let known = format!("/etc/pve/nodes/{host}/ssh_known_hosts");
        let mut options = vec!["-o".to_owned(), format!("HostKeyAlias={host}")];
        if std::path::Path::new(&known).exists() {
            options.extend([
                "-o".to_owned(),
                format!("UserKnownHostsFile={known}"),
                "-o".to_owned(),
                "GlobalKnownHostsFile=none".to_owned(),
            ]);
        }
        Self::of(Way::Ssh(SshTarget(format!("root@{host}")), options))
    }

    fn shell(&self, line: &str) -> Command {
        let mut command = match &self.way {
            Way::Here => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", line]);
                command
            }
            Way::Ssh(target, options) => {
                let mut command = Command::new(&self.ssh);
                // No password is asked for: nobody may be there to type it.
                command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10"]).args(options);
                command.arg(&target.0).arg(line);
                command
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// The line that runs a program in a guest, ended on the host after `limit`.
    fn exec_line(&self, vmid: Vmid, argv: &[String], limit: Option<Duration>) -> String {
        let limit = limit.map(|limit| format!("timeout -k 5 {} ", limit.as_secs().max(1))).unwrap_or_default();
        let keep_env = if self.knows_keep_env.load(Ordering::Relaxed) { " --keep-env 0" } else { "" };
        let words: Vec<String> = argv.iter().map(|word| quoted(word)).collect();
        format!("exec {limit}{} exec {vmid}{keep_env} -- {}", quoted(&self.pct), words.join(" "))
    }

    async fn exchange(&self, line: &str, input: Feed<'_>, limit: Duration, max_output: usize) -> Result<Ran, Trouble> {
        let mut child = self.shell(line).spawn().map_err(Trouble::Spawn)?;
        let talk = talk(&mut child, input, max_output);
        match tokio::time::timeout(limit, talk).await {
            Ok(ran) => ran,
            Err(_) => Err(Trouble::TooLong),
        }
    }

    /// A line for the host's own shell.
    async fn on_host(&self, line: &str, limit: usize) -> Result<Ran, InsideError> {
        match self.exchange(line, Feed::Bytes(&[]), SLACK, limit).await {
            Ok(ran) if ran.code == Some(255) => Err(self.no_way(ran.last_words())),
            Ok(ran) => Ok(ran),
            Err(Trouble::TooLong) => Err(self.no_way("no answer")),
            Err(Trouble::Spawn(error) | Trouble::Io(error) | Trouble::File(_, error)) => Err(self.no_way(error)),
        }
    }

    fn no_way(&self, why: impl ToString) -> InsideError {
        InsideError::NoWay { place: self.place(), why: why.to_string() }
    }

    async fn exec(&self, vmid: Vmid, run: &Run) -> Result<Ran, InsideError> {
        let program = || run.argv.join(" ");
        loop {
            let line = self.exec_line(vmid, &run.argv, Some(run.limit));
            let done = self.exchange(&line, Feed::Bytes(&run.input), run.limit + SLACK, run.max_output).await;
            let ran = match done {
                Ok(ran) => ran,
                Err(Trouble::TooLong) => return Err(InsideError::TooLong { vmid, program: program(), limit: run.limit }),
                Err(Trouble::Spawn(error) | Trouble::Io(error)) => return Err(self.no_way(error)),
                Err(Trouble::File(path, source)) => return Err(InsideError::File { path, source }),
            };
            if ran.errors.contains("Unknown option: keep-env") && self.knows_keep_env.swap(false, Ordering::Relaxed) {
                continue;
            }
            return match (ran.code, self.read_trouble(vmid, &ran)) {
                (Some(TIMED_OUT), _) => Err(InsideError::TooLong { vmid, program: program(), limit: run.limit }),
                (_, Some(error)) => Err(error),
                (Some(126 | 127), None) => {
                    let program = run.argv.first().cloned().unwrap_or_default();
                    Err(InsideError::NoProgram { vmid, program, why: ran.last_words() })
                }
                _ => Ok(ran),
            };
        }
    }

    /// What `pct` and `ssh` themselves complain of, told from a program's own failure by their texts.
    fn read_trouble(&self, vmid: Vmid, ran: &Ran) -> Option<InsideError> {
        if ran.code == Some(0) {
            return None;
        }
        let errors = ran.errors.as_str();
        if errors.contains(&format!("CT {vmid} not running")) || errors.contains("is not running") && errors.contains("lxc-attach") {
            return Some(InsideError::NotRunning(vmid));
        }
        if errors.contains(&format!("/lxc/{vmid}.conf' does not exist")) {
            return Some(InsideError::NotThere { vmid, place: self.place() });
        }
        let lost = [
            "ssh: ",
            "Permission denied (",
            "Host key verification failed",
            "Connection closed by",
            "pct: not found",
            "pct: command not found",
            // Of coreutils; it runs nothing but `pct` there.
            "timeout: failed to run command",
        ];
        if lost.iter().any(|words| errors.contains(words)) {
            return Some(self.no_way(ran.last_words()));
        }
        None
    }

    async fn copy_in(&self, vmid: Vmid, push: &Push) -> Result<(), InsideError> {
        let not_copied = |why: String| InsideError::NotCopied { vmid, path: push.to.clone(), why };
        let (digest, feed) = match &push.source {
            Source::Bytes(bytes) => (hex(&Sha256::digest(&**bytes)), Feed::Bytes(bytes)),
            Source::File(path) => {
                let file = path.clone();
                let hashed = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
                    let mut digest = Sha256::new();
                    std::io::copy(&mut std::fs::File::open(file)?, &mut digest)?;
                    Ok(hex(&digest.finalize()))
                });
                let digest = hashed.await.map_err(std::io::Error::other).and_then(|done| done);
                (digest.map_err(|source| InsideError::File { path: path.clone(), source })?, Feed::File(path))
            }
        };
        let (pct, to, (user, group)) = (quoted(&self.pct), quoted(&push.to), push.owner);
        let line = format!(
            "{SCRATCH}cat > \"$d/in\" && [ \"$(sha256sum < \"$d/in\")\" = \"{digest}  -\" ] && {pct} push {vmid} \"$d/in\" {to} --perms {:04o} --user {user} --group {group} && \
             {pct} pull {vmid} {to} \"$d/out\" && sha256sum < \"$d/out\"",
            push.mode
        );
        let ran = match self.exchange(&line, feed, COPY_LIMIT, 4096).await {
            Ok(ran) => ran,
            Err(Trouble::TooLong) => return Err(not_copied(format!("it took longer than {COPY_LIMIT:?}"))),
            Err(Trouble::Spawn(error) | Trouble::Io(error)) => return Err(self.no_way(error)),
            Err(Trouble::File(path, source)) => return Err(InsideError::File { path, source }),
        };
        if let Some(error) = self.read_trouble(vmid, &ran) {
            return Err(error);
        }
        let seen = ran.text().split_whitespace().next().unwrap_or_default().to_owned();
        if ran.code == Some(0) && seen == digest {
            return Ok(());
        }
        Err(not_copied(if ran.errors.trim().is_empty() {
            format!("it reads back as {seen:.16}, not {digest:.16}")
        } else {
            ran.last_words()
        }))
    }

    async fn copy_out(&self, vmid: Vmid, path: &str, limit: usize) -> Result<Option<Zeroizing<Vec<u8>>>, InsideError> {
        let line = format!("{SCRATCH}{} pull {vmid} {} \"$d/out\" && cat \"$d/out\"", quoted(&self.pct), quoted(path));
        let ran = match self.exchange(&line, Feed::Bytes(&[]), COPY_LIMIT, limit).await {
            Ok(ran) => ran,
            Err(Trouble::TooLong) => {
                return Err(InsideError::NotRead { vmid, path: path.to_owned(), why: format!("it took longer than {COPY_LIMIT:?}") });
            }
            Err(Trouble::Spawn(error) | Trouble::Io(error)) => return Err(self.no_way(error)),
            Err(Trouble::File(path, source)) => return Err(InsideError::File { path, source }),
        };
        if let Some(error) = self.read_trouble(vmid, &ran) {
            return Err(error);
        }
        if ran.code == Some(0) {
            return Ok(Some(Zeroizing::new(ran.output)));
        }
        if ran.errors.contains("No such file or directory") || ran.errors.contains("does not exist") {
            return Ok(None);
        }
        Err(InsideError::NotRead { vmid, path: path.to_owned(), why: ran.last_words() })
    }

    async fn stream(&self, vmid: Vmid, argv: &[String], sink: &mut (dyn FnMut(&[u8]) + Send)) -> Result<Option<i32>, InsideError> {
        let line = self.exec_line(vmid, argv, None);
        let mut command = self.shell(&line);
        let mut child = command.stdin(Stdio::null()).spawn().map_err(|e| self.no_way(e))?;
        let (Some(mut out), errors) = (child.stdout.take(), child.stderr.take()) else { return Ok(None) };
        let errors = tokio::spawn(bounded(errors, MAX_ERRORS));
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = out.read(&mut buffer).await.map_err(|e| self.no_way(e))?;
            match buffer.get(..count) {
                Some([]) | None => break,
                Some(bytes) => sink(bytes),
            }
        }
        let code = child.wait().await.map_err(|e| self.no_way(e))?.code();
        let errors = String::from_utf8_lossy(&errors.await.unwrap_or_else(|_| Ok(Vec::new())).unwrap_or_default()).into_owned();
        if errors.contains("Unknown option: keep-env") && self.knows_keep_env.swap(false, Ordering::Relaxed) {
            return Box::pin(self.stream(vmid, argv, sink)).await;
        }
        let ran = Ran { code, output: Vec::new(), errors };
        match self.read_trouble(vmid, &ran) {
            Some(error) => Err(error),
            None if code == Some(0) || code.is_none() => Ok(code),
            None => Err(InsideError::Failed { vmid, program: argv.join(" "), why: ran.last_words() }),
        }
    }
}

/// A directory of root's alone that goes with the shell, whatever ends it.
const SCRATCH: &str = "umask 077; d=$(mktemp -d \"${TMPDIR:-/var/tmp}/pvemesh-XXXXXXXXXX\") || exit 1; trap 'rm -rf \"$d\"' EXIT; trap 'exit 1' HUP INT TERM; ";

/// What goes into a program.
enum Feed<'a> {
    Bytes(&'a [u8]),
    File(&'a std::path::Path),
}

enum Trouble {
    Spawn(std::io::Error),
    Io(std::io::Error),
    File(std::path::PathBuf, std::io::Error),
    TooLong,
}

async fn talk(child: &mut Child, input: Feed<'_>, max_output: usize) -> Result<Ran, Trouble> {
    let (stdin, out, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async move {
        let Some(mut stdin) = stdin else { return Ok(()) };
        // A program that ends without reading everything is judged by its exit code.
        match input {
            Feed::Bytes(bytes) => drop(stdin.write_all(bytes).await),
            Feed::File(path) => {
                let mut file = tokio::fs::File::open(path).await.map_err(|e| Trouble::File(path.to_owned(), e))?;
                let _ = tokio::io::copy(&mut file, &mut stdin).await;
            }
        }
        let _ = stdin.shutdown().await;
        Ok(())
    };
    let (fed, out, errors) = tokio::join!(feed, bounded(out, max_output), bounded(errors, MAX_ERRORS));
    fed?;
    let status = child.wait().await.map_err(Trouble::Io)?;
    let errors = String::from_utf8_lossy(&errors.map_err(Trouble::Io)?).into_owned();
    Ok(Ran { code: status.code(), output: out.map_err(Trouble::Io)?, errors })
}

/// Reads to the end and keeps the beginning.
async fn bounded(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return Ok(kept) };
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(kept) };
        kept.extend_from_slice(bytes.get(..bytes.len().min(limit - kept.len())).unwrap_or_default());
    }
}

/// A word for the shell: nothing in it is special within single quotes but the quote itself.
pub(crate) fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b'=' | b','));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Inside for Pct {
    fn run<'a>(&'a self, vmid: Vmid, run: &'a Run) -> BoxFuture<'a, Result<Ran, InsideError>> {
        Box::pin(self.exec(vmid, run))
    }

    fn follow<'a>(
        &'a self,
        vmid: Vmid,
        argv: &'a [String],
        sink: &'a mut (dyn FnMut(&[u8]) + Send),
    ) -> BoxFuture<'a, Result<Option<i32>, InsideError>> {
        Box::pin(self.stream(vmid, argv, sink))
    }

    fn push<'a>(&'a self, vmid: Vmid, push: &'a Push) -> BoxFuture<'a, Result<(), InsideError>> {
        Box::pin(self.copy_in(vmid, push))
    }

    fn pull<'a>(&'a self, vmid: Vmid, path: &'a str, limit: usize) -> BoxFuture<'a, Result<Option<Zeroizing<Vec<u8>>>, InsideError>> {
        Box::pin(self.copy_out(vmid, path, limit))
    }

    fn host_file<'a>(&'a self, path: &'a str, limit: usize) -> BoxFuture<'a, Result<Option<String>, InsideError>> {
        Box::pin(async move {
            let ran = self.on_host(&format!("cat {}", quoted(path)), limit).await?;
            Ok((ran.code == Some(0)).then(|| ran.text()))
        })
    }

    fn host_has<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<bool, InsideError>> {
        Box::pin(async move { Ok(self.on_host(&format!("test -e {}", quoted(path)), 0).await?.code == Some(0)) })
    }

    fn place(&self) -> String {
        match &self.way {
            Way::Here => "this host (pct)".to_owned(),
            Way::Ssh(target, _) => format!("{target} (ssh)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_are() {
        for word in ["plain", "", "two words", "it's", "$(reboot)", "`id`", "a;b|c&d", "-x", "\\", "\"", "a\nb", "*", "größe", "'''"] {
            let echoed = std::process::Command::new("/bin/sh").args(["-c", &format!("printf %s {}", quoted(&format!("x{word}")))]).output();
            assert_eq!(String::from_utf8(echoed.unwrap().stdout).unwrap(), format!("x{word}"));
        }
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_place_for_ssh_is_no_option_and_no_command() {
        for good in ["root@pve", "root@192.168.1.5", "pve", "root@fd00::5", "pve-2.lan"] {
            assert_eq!(good.parse::<SshTarget>().unwrap().to_string(), good);
        }
        for bad in ["", "-oProxyCommand=x", "root@pve;reboot", "root@pve reboot", "root@$(id)", "a\nb", &"x".repeat(300)] {
            assert!(bad.parse::<SshTarget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_pct_and_ssh_say_is_told_from_a_programs_failure() {
        let pct = Pct::here();
        let vmid = "105".parse().unwrap();
        let said = |code, errors: &str| pct.read_trouble(vmid, &Ran { code: Some(code), output: Vec::new(), errors: errors.to_owned() });
        assert!(matches!(said(255, "CT 105 not running\n"), Some(InsideError::NotRunning(_))));
        let gone = said(2, "Configuration file 'nodes/pve/lxc/105.conf' does not exist\n");
        assert!(matches!(gone, Some(InsideError::NotThere { .. })));
        assert!(matches!(said(255, "ssh: connect to host pve2 port 22: No route to host\n"), Some(InsideError::NoWay { .. })));
        let nowhere = said(127, "timeout: failed to run command 'pct': No such file or directory\n");
        assert!(matches!(nowhere, Some(InsideError::NoWay { .. })));
        assert!(said(1, "grep: no match\n").is_none());
        assert!(said(0, "CT 105 not running\n").is_none());
    }

    #[test]
    fn an_old_pct_is_run_without_the_option_it_lacks() {
        let pct = Pct::here();
        let line = |pct: &Pct| pct.exec_line("105".parse().unwrap(), &["ls".to_owned(), "a b".to_owned()], Some(Duration::from_secs(5)));
        assert_eq!(line(&pct), "exec timeout -k 5 5 pct exec 105 --keep-env 0 -- ls 'a b'");
        pct.knows_keep_env.store(false, Ordering::Relaxed);
        assert_eq!(line(&pct), "exec timeout -k 5 5 pct exec 105 -- ls 'a b'");
    }
}
