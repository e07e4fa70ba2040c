//! What a command says in the end: a result (text or JSON), or a failure with what was tried, what happened and what to do next.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use super::Global;

/// The program's exit codes; scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It failed for a reason none of the others names.
    Failed = 1,
    /// The command line or a settings file is wrong (also what the argument parser uses).
    Usage = 2,
    /// Credentials are missing, wrong or not enough for this.
    Denied = 3,
    /// The other side could not be reached.
    Unreachable = 4,
    /// What was asked for conflicts with what is there (a VMID in use, an unknown storage).
    Conflict = 5,
    /// It failed midway and what it had made could not all be undone; the message lists what is left.
    Left = 6,
}

/// A failure as the user reads it.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What was being done, as in "create container 101 on pve".
    pub tried: String,
    /// What happened.
    pub happened: String,
    /// What to do next.
    pub next: String,
    /// The exit code.
    pub exit: Exit,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(tried: impl Into<String>, happened: impl fmt::Display, next: impl Into<String>) -> Self {
        Self { tried: tried.into(), happened: happened.to_string(), next: next.into(), exit: Exit::Failed }
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

/// Prints a line about progress on standard error, whatever the output is.
pub(super) fn say(text: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Where and how results are printed.
#[derive(Debug, Clone)]
pub struct Output {
    json: bool,
    colour: bool,
    verbose: u8,
}

impl Output {
    /// Output as the global options and the terminal ask for.
    pub fn new(global: &Global) -> Self {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json: global.json, colour, verbose: global.verbose }
    }

    /// Whether results are JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// How much more to say: 0, 1 or 2.
    pub fn verbose(&self) -> u8 {
        self.verbose
    }

    /// Whether standard error takes colours.
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// Prints a result: the value as JSON, or the text.
    pub fn result(&self, value: &impl serde::Serialize, text: impl fmt::Display) {
        let mut out = std::io::stdout().lock();
        // A closed pipe is the reader's choice (`pvemesh list | head`), not a failure of ours.
        let _ = if self.json {
            serde_json::to_string_pretty(value).map_err(std::io::Error::other).and_then(|json| writeln!(out, "{json}"))
        } else {
            writeln!(out, "{text}")
        };
    }

    /// Prints a line about progress on standard error.
    pub fn note(&self, text: impl fmt::Display) {
        say(text);
    }

    /// Ends the program: prints the failure, if any, and gives the exit code.
    pub fn finish(&self, result: Result<(), Failure>) -> ExitCode {
        let Err(failure) = result else { return ExitCode::SUCCESS };
        let mut err = std::io::stderr().lock();
        let _ = if self.json {
            let value = serde_json::json!({
                "error": { "tried": failure.tried, "happened": failure.happened, "next": failure.next, "exit": failure.exit as u8 }
            });
            writeln!(err, "{value}")
        } else {
            let (red, plain) = if self.colour { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
            writeln!(err, "{red}error{plain}: {}: {}\n  next: {}", failure.tried, failure.happened, failure.next)
        };
        ExitCode::from(failure.exit as u8)
    }
}
