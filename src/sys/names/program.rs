//! Programs of the system's that are told about names: started directly, without a shell, and not waited for without end.

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::sys::clock;

/// How long a program may take; systemd's wait longer for a bus that does not answer.
const LIMIT: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(5);
/// What is read of what it says.
const MAX_TEXT: usize = 16 * 1024;
/// Where programs are besides `PATH`, which a service may not have.
const PLACES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The program of this name.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runs = |file: &PathBuf| std::fs::metadata(file).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&path)
        .chain(PLACES.map(PathBuf::from))
        .filter(|place| place.is_absolute())
        .map(|place| place.join(name))
        .find(runs)
}

/// Runs a program with this on its standard input, and gives what it has written to its standard output.
///
/// # Errors
/// It cannot be started, fails, or takes too long; the error holds what it said.
pub(super) fn run<A: AsRef<OsStr>>(program: &Path, arguments: &[A], input: &str) -> io::Result<String> {
    let name = program.file_name().unwrap_or_default().display();
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("start {name}: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read what it is told says why, or succeeds.
        let _ = stdin.write_all(input.as_bytes());
    }
    let Some(succeeded) = wait(&mut child)? else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{name} does not end")));
    };
    let (said, complained) = (child.stdout.as_mut().map(written), child.stderr.as_mut().map(written));
    if succeeded {
        return Ok(said.unwrap_or_default());
    }
    let text: String = complained.unwrap_or_default().trim().chars().take(200).flat_map(char::escape_debug).collect();
    Err(io::Error::other(format!("{name} fails: {text}")))
}

/// Whether it succeeded; `None` if it still runs when time is up.
fn wait(child: &mut Child) -> io::Result<Option<bool>> {
    let end = clock::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if clock::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// What has been written so far. It is not read to its end: what the program has left running may hold it open.
fn written(pipe: &mut (impl io::Read + std::os::fd::AsFd)) -> String {
    let mut bytes = Vec::new();
    if rustix::io::ioctl_fionbio(&pipe, true).is_ok() {
        let _ = pipe.take(MAX_TEXT as u64).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_told_and_heard_and_one_that_stays_is_not_waited_for() {
        let sh = find("sh").unwrap();
        assert_eq!(run(&sh, &["-c", "cat; sleep 60 & exit 0"], "nameserver 1.1.1.1\n").unwrap(), "nameserver 1.1.1.1\n");
        let error = run(&sh, &["-c", "echo \"no bus\" >&2; exit 3"], "").unwrap_err().to_string();
        assert_eq!(error, "sh fails: no bus");
        assert_eq!(run(&sh, &["-c", "exec sleep 60"], "").unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!((find("no-such-program"), find("../bin/sh").is_some_and(|path| path.is_relative())), (None, false));
    }
}
