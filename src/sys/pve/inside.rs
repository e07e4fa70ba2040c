//! The way into a running guest: programs are run in it, files are put there and read.
//!
//! Proxmox's API has none for containers (no endpoint runs a program or writes a file), so it leads through a host; [`super::Pct`] is that
//! way. What is run and why is decided in `plan`.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use crate::ident::Vmid;

/// What a program may say unless asked otherwise, bytes.
pub const USUAL_OUTPUT: usize = 256 * 1024;
/// How long a program may take unless asked otherwise.
pub const USUAL_LIMIT: Duration = Duration::from_secs(30);

/// A program to be run in a guest, as its root.
#[derive(Debug, Clone)]
pub struct Run {
    /// The program, by its path in the guest or by a name of its search path, and its arguments. Every user of the host and of the guest can
    /// read them: no secrets.
    pub argv: Vec<String>,
    /// What it reads; secrets go here. Wiped when dropped.
    pub input: Zeroizing<Vec<u8>>,
    /// How long it may take; it is ended then.
    pub limit: Duration,
    /// How much of what it says is kept; the rest is read and thrown away.
    pub max_output: usize,
}

impl Run {
    /// A program without input, with the usual limits.
    pub fn new<W: Into<String>>(argv: impl IntoIterator<Item = W>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), input: Zeroizing::default(), limit: USUAL_LIMIT, max_output: USUAL_OUTPUT }
    }

    /// The same with this input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Zeroizing::new(bytes.into());
        self
    }

    /// The same with this limit.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

/// What a program in a guest left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; absent if a signal ended it.
    pub code: Option<i32>,
    /// What it said.
    pub output: Vec<u8>,
    /// What it complained of.
    pub errors: String,
}

impl Ran {
    /// What it said, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).trim_end().to_owned()
    }

    /// Its last words, for a message: one line, bounded.
    pub fn last_words(&self) -> String {
        let errors = self.errors.trim();
        let said = if errors.is_empty() { self.text() } else { errors.to_owned() };
        // Our own program says what happened first, and what to do next after it.
        let own = said.lines().find_map(|line| line.trim().strip_prefix("error: "));
        let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
        let line = own.or(last).unwrap_or("without a word");
        line.chars().filter(|c| !c.is_control()).take(300).collect()
    }
}

/// What a pushed file holds.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file of this machine.
    File(PathBuf),
    /// These bytes; wiped when dropped.
    Bytes(Zeroizing<Vec<u8>>),
}

/// A file to be put into a guest.
#[derive(Debug, Clone)]
pub struct Push {
    /// Its content.
    pub source: Source,
    /// Its path there; the directory must exist, and an existing file is written over in place, so a program that runs cannot be.
    pub to: String,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner and group in the guest.
    pub owner: (u32, u32),
}

/// Why there was no way into a guest, or something went wrong in it.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// The host could not be reached, or has no `pct`.
    #[error("{place}: {why}")]
    NoWay {
        /// Where the way leads.
        place: String,
        /// What it said.
        why: String,
    },
    /// The guest does not run.
    #[error("container {0} does not run")]
    NotRunning(Vmid),
    /// The guest is not on that host.
    #[error("container {vmid} is not on {place}")]
    NotThere {
        /// The guest.
        vmid: Vmid,
        /// Where it was looked for.
        place: String,
    },
    /// There is no such program in the guest, or it cannot run there.
    #[error("`{program}` cannot be run in container {vmid}: {why}")]
    NoProgram {
        /// The guest.
        vmid: Vmid,
        /// The program.
        program: String,
        /// What was said.
        why: String,
    },
    /// A program failed.
    #[error("`{program}` in container {vmid} failed: {why}")]
    Failed {
        /// The guest.
        vmid: Vmid,
        /// The program with its arguments.
        program: String,
        /// Its last words.
        why: String,
    },
    /// It took too long.
    #[error("`{program}` in container {vmid} did not end within {limit:?}")]
    TooLong {
        /// The guest.
        vmid: Vmid,
        /// The program with its arguments.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// A file did not arrive as it was sent.
    #[error("{path} did not arrive in container {vmid} as it was sent: {why}")]
    NotCopied {
        /// The guest.
        vmid: Vmid,
        /// The file there.
        path: String,
        /// What was said.
        why: String,
    },
    /// A file could not be read.
    #[error("{path} in container {vmid} cannot be read: {why}")]
    NotRead {
        /// The guest.
        vmid: Vmid,
        /// The file there.
        path: String,
        /// What was said.
        why: String,
    },
    /// A file of this machine.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What a program of ours said in the guest was not understood.
    #[error("container {vmid} answered something that is not understood: {why}")]
    Garbled {
        /// The guest.
        vmid: Vmid,
        /// What is wrong with it.
        why: String,
    },
}

type Answer<'a, T> = BoxFuture<'a, Result<T, InsideError>>;

/// A way into running guests of one host.
pub trait Inside: Send + Sync {
    /// Runs a program and waits for its end, whatever its exit code.
    fn run<'a>(&'a self, vmid: Vmid, run: &'a Run) -> Answer<'a, Ran>;

    /// Runs a program and hands on what it says as it says it, until it ends.
    fn follow<'a>(&'a self, vmid: Vmid, argv: &'a [String], sink: &'a mut (dyn FnMut(&[u8]) + Send)) -> Answer<'a, Option<i32>>;

    /// Puts a file there, and reads it back to see that it arrived.
    fn push<'a>(&'a self, vmid: Vmid, push: &'a Push) -> Answer<'a, ()>;

    /// Reads a file, at most `limit` bytes of it; `None` if there is none.
    fn pull<'a>(&'a self, vmid: Vmid, path: &'a str, limit: usize) -> Answer<'a, Option<Zeroizing<Vec<u8>>>>;

    /// Reads a file of the host itself, at most `limit` bytes of it; `None` if there is none.
    fn host_file<'a>(&'a self, path: &'a str, limit: usize) -> Answer<'a, Option<String>>;

    /// Whether the host itself has something of this name.
    fn host_has<'a>(&'a self, path: &'a str) -> Answer<'a, bool>;

    /// Where the way leads, for messages.
    fn place(&self) -> String;
}

/// Runs a program that is expected to succeed.
///
/// # Errors
/// If it does not, or there is no way in.
pub async fn run_well(inside: &dyn Inside, vmid: Vmid, run: &Run) -> Result<Ran, InsideError> {
    let ran = inside.run(vmid, run).await?;
    if ran.code == Some(0) {
        return Ok(ran);
    }
    Err(InsideError::Failed { vmid, program: run.argv.join(" "), why: ran.last_words() })
}
