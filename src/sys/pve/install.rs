//! Puts the hook script and the timer on this host, and takes both away again.

use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::host::{HostFiles, ROOT_VARIABLE};
use crate::plan::hook::HOOK_FILE;

/// The script, with what differs between hosts left open.
const SCRIPT: &str = include_str!("../../../hooks/pvemesh-hook");
/// What all versions of the script have in their second line of comment; a file without it is not ours.
const SIGNATURE: &str = "pvemesh hook uninstall";
const UNITS: &str = "/etc/systemd/system";
const TIMER: &str = "pvemesh-sync.timer";
const SERVICE: &str = "pvemesh-sync.service";

/// Why something was not installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be written or removed.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is in the place of our script.
    #[error("{} is there already, and pvemesh did not write it", .0.display())]
    Foreign(PathBuf),
    /// There is no systemd.
    #[error("this machine is not run by systemd, so there is no timer; have `pvemesh sync` run every minute by other means, such as cron")]
    NoSystemd,
    /// systemd refused.
    #[error("systemctl {arguments}: {why}")]
    Systemd {
        /// What it was asked.
        arguments: String,
        /// What it said.
        why: String,
    },
    /// A path that a script or a unit cannot name.
    #[error("{} has characters in its name that a script should not hold", .0.display())]
    Name(PathBuf),
}

/// Installs on this host.
#[derive(Debug, Clone)]
pub struct Installer {
    files: HostFiles,
    program: PathBuf,
    config: PathBuf,
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { path, source }
}

impl Installer {
    /// With the program that the script is to call and the directory of its settings.
    ///
    /// # Errors
    /// If one of them has a name that cannot be written into a script.
    pub fn new(files: HostFiles, program: PathBuf, config: PathBuf) -> Result<Self, InstallError> {
        for path in [&program, &config] {
            let plain = |c: char| c.is_alphanumeric() || "/._-+@ ".contains(c);
            if !path.is_absolute() || !path.to_str().is_some_and(|text| text.chars().all(plain)) {
                return Err(InstallError::Name(path.clone()));
            }
        }
        Ok(Self { files, program, config })
    }

    /// The script as it is on this host. Single quotes are enough: no name has any.
    pub fn script(&self) -> String {
        let quoted = |path: &Path| format!("'{}'", path.display());
        let script = SCRIPT.replace("@PROGRAM@", &quoted(&self.program)).replace("@CONFIG@", &quoted(&self.config));
        match self.files.elsewhere() {
            // The hook looks at the same host as whoever installed it.
            Some(root) => script.replace(
                "export PVEMESH_CONFIG_DIR\n",
                &format!("{ROOT_VARIABLE}={}\nexport PVEMESH_CONFIG_DIR {ROOT_VARIABLE}\n", quoted(root)),
            ),
            None => script,
        }
    }

    fn script_path(&self, directory: &Path) -> PathBuf {
        self.files.path(&directory.display().to_string()).join(HOOK_FILE)
    }

    /// Whether the script is there as it should be.
    pub fn has_script(&self, directory: &Path) -> bool {
        let path = self.script_path(directory);
        let executable = std::fs::metadata(&path).is_ok_and(|data| data.permissions().mode() & 0o111 != 0);
        executable && std::fs::read_to_string(path).is_ok_and(|text| text == self.script())
    }

    /// Whether nothing, or a script of ours, is where the script goes.
    pub fn is_free(&self, directory: &Path) -> bool {
        let path = self.script_path(directory);
        !path.exists() || is_ours(&path)
    }

    /// Writes the script; false if it was there already.
    ///
    /// # Errors
    /// If it cannot be written, or something else is in its place.
    pub fn install_script(&self, directory: &Path) -> Result<bool, InstallError> {
        if self.has_script(directory) {
            return Ok(false);
        }
        let path = self.script_path(directory);
        if !self.is_free(directory) {
            return Err(InstallError::Foreign(path));
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(file_error(parent))?;
        }
        write(&path, &self.script(), 0o755)?;
        Ok(true)
    }

    /// Removes the script; false if there was none of ours.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_script(&self, directory: &Path) -> Result<bool, InstallError> {
        let path = self.script_path(directory);
        if !is_ours(&path) {
            return Ok(false);
        }
        std::fs::remove_file(&path).map_err(file_error(&path))?;
        Ok(true)
    }

    fn units(&self) -> [(PathBuf, String); 2] {
        let place = self.files.path(UNITS);
        let service = format!(
            "[Unit]\nDescription=Brings the guests of pvemesh up to date\nAfter=network-online.target pve-cluster.service\n\
             ConditionPathIsDirectory=/etc/pve\n\n[Service]\nType=oneshot\nEnvironment=\"PVEMESH_CONFIG_DIR={}\"\n\
             ExecStart=\"{}\" sync\nStandardOutput=null\nTimeoutStartSec=300\n",
            self.config.display(),
            self.program.display()
        );
        let timer = "[Unit]\nDescription=Brings the guests of pvemesh up to date every minute\n\n[Timer]\nOnBootSec=30\nOnUnitInactiveSec=60\n\
                     AccuracySec=5\n\n[Install]\nWantedBy=timers.target\n";
        [(place.join(SERVICE), service), (place.join(TIMER), timer.to_owned())]
    }

    /// Whether the timer is there as it should be.
    pub fn has_timer(&self) -> bool {
        self.units().iter().all(|(path, text)| std::fs::read_to_string(path).is_ok_and(|there| there == *text))
    }

    /// Installs the timer and starts it; false if it was there already.
    ///
    /// # Errors
    /// If there is no systemd, or it refuses.
    pub fn install_timer(&self) -> Result<bool, InstallError> {
        if !self.files.path("/run/systemd/system").is_dir() {
            return Err(InstallError::NoSystemd);
        }
        if self.has_timer() {
            return Ok(false);
        }
        for (path, text) in self.units() {
            write(&path, &text, 0o644)?;
        }
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", TIMER])?;
        Ok(true)
    }

    /// Stops the timer and removes it; false if there was none.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_timer(&self) -> Result<bool, InstallError> {
        let there: Vec<PathBuf> = self.units().into_iter().map(|(path, _)| path).filter(|path| path.exists()).collect();
        if there.is_empty() {
            return Ok(false);
        }
        let systemd = self.files.path("/run/systemd/system").is_dir();
        if systemd {
            systemctl(&["disable", "--now", TIMER])?;
        }
        for path in there {
            std::fs::remove_file(&path).map_err(file_error(&path))?;
        }
        if systemd {
            systemctl(&["daemon-reload"])?;
        }
        Ok(true)
    }
}

/// Whether a file is a script of ours, of whatever version.
fn is_ours(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.starts_with("#!/bin/sh\n") && text.contains(SIGNATURE))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), InstallError> {
    let fresh = path.with_extension("pvemesh-new");
    let written = (|| {
        let _ = std::fs::remove_file(&fresh);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written.map_err(file_error(path))
}

fn systemctl(arguments: &[&str]) -> Result<(), InstallError> {
    let failed = |why: String| InstallError::Systemd { arguments: arguments.join(" "), why };
    let output = Command::new("systemctl").args(arguments).stdin(Stdio::null()).output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() { Ok(()) } else { Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installer(root: &Path) -> Installer {
        Installer::new(HostFiles::at(root.to_owned()), "/opt/a b/pvemesh".into(), "/etc/pvemesh".into()).unwrap()
    }

    #[test]
    fn the_script_comes_and_goes_and_a_foreign_file_stays() {
        let root = tempfile::tempdir().unwrap();
        let (installer, directory) = (installer(root.path()), Path::new("/var/lib/vz/snippets"));
        assert!(installer.install_script(directory).unwrap() && !installer.install_script(directory).unwrap());
        let path = root.path().join("var/lib/vz/snippets/pvemesh-hook");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("program='/opt/a b/pvemesh'\n") && !text.contains('@'), "{text}");
        std::fs::write(&path, text.replace("4.4", "9")).unwrap();
        assert!(installer.install_script(directory).unwrap(), "one of another version is replaced");
        assert!(installer.remove_script(directory).unwrap() && !installer.remove_script(directory).unwrap());
        std::fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
        assert!(matches!(installer.install_script(directory), Err(InstallError::Foreign(_))));
        assert!(!installer.remove_script(directory).unwrap() && path.exists());
    }

    #[test]
    fn without_systemd_there_is_no_timer_and_that_is_said() {
        let root = tempfile::tempdir().unwrap();
        let error = installer(root.path()).install_timer().unwrap_err().to_string();
        assert!(error.contains("cron"), "{error}");
        assert!(!installer(root.path()).remove_timer().unwrap());
    }

    #[test]
    fn names_that_would_end_a_quote_are_refused() {
        for wrong in ["/opt/it's/pvemesh", "/opt/\"x\"", "relative/pvemesh", "/opt/%n/$x"] {
            let made = Installer::new(HostFiles::at("/".into()), wrong.into(), "/etc/pvemesh".into());
            assert!(matches!(made, Err(InstallError::Name(_))), "{wrong}");
        }
    }
}
