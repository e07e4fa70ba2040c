//! Running commands, and the state directory.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A result whose failure is told to the user.
pub type Done<T = ()> = Result<T, String>;

/// Runs a command line split at blanks; its output on standard error is the reason of a failure.
pub fn quietly(line: &str) -> Done<String> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    output(Command::new(program).args(words), line)
}

/// Runs a command and takes its standard output.
pub fn output(command: &mut Command, said: &str) -> Done<String> {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().map_err(|e| format!("`{said}`: {e}"))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(format!("`{said}` failed ({status}): {}", String::from_utf8_lossy(&stderr).trim()))
}

/// The state directory, made if need be; refused where containers' users could not walk to it.
pub fn prepare(dir: &Path) -> Done<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return Err("the lab needs root: it makes network namespaces and containers".to_owned());
    }
    std::fs::create_dir_all(dir).and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(0o755))).map_err(|e| e.to_string())?;
    let dir = dir.canonicalize().map_err(|e| e.to_string())?;
    for above in dir.ancestors() {
        let mode = std::fs::metadata(above).map_err(|e| e.to_string())?.permissions().mode();
        if mode & 0o001 == 0 {
            let hint = "containers run as other users: choose a place with --dir, such as /var/tmp/pvemesh-lab";
            return Err(format!("{} cannot be entered by every user; {hint}", above.display()));
        }
    }
    Ok(dir)
}
