//! Questions on the terminal. Nothing is asked where there is none.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::connect::config_failure;
use super::{Exit, Failure, Output};
use crate::ident::Secret;
use crate::sys::config::read_secret;
use crate::sys::pve::{Challenge, SecondFactor};

/// Whether somebody can be asked.
pub(super) fn is_possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for a line.
pub(super) fn line(output: &Output, question: &str) -> Result<String, Failure> {
    output.note(format!("{question}:"));
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).map_err(|e| Failure::new("read an answer", e, "give it as an option"))?;
    if read == 0 {
        return Err(Failure::new("read an answer", "the input ended", "give it as an option").exit(Exit::Usage));
    }
    Ok(line.trim().to_owned())
}

/// Asks for a line that the terminal does not show. It stops showing before the question is there, so that nothing typed early is seen.
pub(super) fn unseen(question: &str) -> std::io::Result<Secret> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    use std::io::Write as _;
    let before = tcgetattr(std::io::stdin())?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(std::io::stdin(), OptionalActions::Now, &silent)?;
    let asked = writeln!(std::io::stderr().lock(), "{question}");
    let mut line = String::new();
    let read = asked.and_then(|()| std::io::stdin().read_line(&mut line));
    tcsetattr(std::io::stdin(), OptionalActions::Now, &before)?;
    read?;
    Ok(Secret::new(line.trim_end_matches(['\n', '\r'])))
}

/// A secret on the first line of standard input, or in a file that only its owner may read.
pub(super) fn secret_from(file: &Path, what: &str) -> Result<Secret, Failure> {
    if file != Path::new("-") {
        return read_secret(file).map_err(config_failure);
    }
    let tried = format!("read {what} from standard input");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|e| Failure::new(&tried, e, "pipe it in"))?;
    let secret = line.trim_end_matches(['\n', '\r']);
    if secret.is_empty() {
        return Err(Failure::new(tried, "there is none", "pipe it in").exit(Exit::Usage));
    }
    Ok(Secret::new(secret))
}

/// The code of a second factor: the one given, once; else the one typed on the terminal.
#[derive(Debug)]
pub(super) struct Code {
    given: Mutex<Option<Secret>>,
}

impl Code {
    /// From the command line's options.
    pub(super) fn new(otp: Option<&str>, otp_file: Option<&PathBuf>) -> Result<Self, Failure> {
        let given = match (otp, otp_file) {
            (Some(code), _) => Some(Secret::new(code)),
            (None, Some(file)) => Some(secret_from(file, "the code")?),
            (None, None) => None,
        };
        Ok(Self { given: Mutex::new(given) })
    }
}

impl SecondFactor for Code {
    fn code(&self, user: &str, challenge: &Challenge) -> Option<Secret> {
        // Held while somebody types: two logins at once ask one after the other.
        let mut given = self.given.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(code) = given.take() {
            return Some(code);
        }
        if !is_possible() {
            return None;
        }
        unseen(&format!("code of {user}'s second factor ({challenge}):")).ok().filter(|code| !code.expose().trim().is_empty())
    }
}
