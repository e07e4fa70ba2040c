//! Who keeps a node running in a guest, and how that one is told.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A command line, as words.
pub type Command = Vec<String>;

/// A service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Our own init, in an appliance.
    Appliance,
    /// systemd.
    Systemd,
    /// OpenRC (Alpine, Gentoo).
    Openrc,
    /// runit with its services in `/etc/service` or `/var/service` (Void).
    Runit,
    /// `/etc/init.d` with `update-rc.d` or `/etc/rc?.d` (Devuan and old systems).
    Sysv,
    /// `/etc/init.d/S??*`, run by `rcS` in order (BusyBox, Buildroot).
    Rcs,
}

/// A text that names no service manager.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no service manager is called this")]
pub struct ServiceError;

impl Service {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Appliance, Self::Systemd, Self::Openrc, Self::Runit, Self::Sysv, Self::Rcs];

    /// Its word in options and files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Appliance => "appliance",
            Self::Systemd => "systemd",
            Self::Openrc => "openrc",
            Self::Runit => "runit",
            Self::Sysv => "sysv",
            Self::Rcs => "rcs",
        }
    }

    /// The file that describes the service to it, and the file's permission bits; none for our own.
    pub const fn file(self) -> Option<(&'static str, u32)> {
        match self {
            Self::Appliance => None,
            Self::Systemd => Some(("/etc/systemd/system/pvemesh.service", 0o644)),
            Self::Openrc | Self::Sysv => Some(("/etc/init.d/pvemesh", 0o755)),
            Self::Runit => Some(("/etc/sv/pvemesh/run", 0o755)),
            Self::Rcs => Some(("/etc/init.d/S99pvemesh", 0o755)),
        }
    }

    /// What is removed when the service goes: the file, or the directory that is its alone.
    pub fn owned(self) -> Option<&'static str> {
        if self == Self::Runit { Some("/etc/sv/pvemesh") } else { self.file().map(|(path, _)| path) }
    }

    /// Starts the service now and at every start of the system.
    pub fn enable(self) -> Vec<Command> {
        match self {
            Self::Appliance => Vec::new(),
            Self::Systemd => vec![words("systemctl daemon-reload"), words("systemctl enable --now pvemesh.service")],
            Self::Openrc => vec![words("rc-update add pvemesh default"), words("rc-service pvemesh start")],
            // Where the directory of running services is differs; the link is what starts it.
            Self::Runit => vec![sh(
                "for d in /var/service /etc/service /service; do [ -d $d ] && exec ln -sfn /etc/sv/pvemesh $d/pvemesh; done; exit 1",
            )],
            Self::Sysv => vec![
                sh("if command -v update-rc.d >/dev/null; then exec update-rc.d pvemesh defaults; fi; \
                    for l in 2 3 4 5; do [ ! -d /etc/rc$l.d ] || ln -sf ../init.d/pvemesh /etc/rc$l.d/S99pvemesh; done"),
                words("/etc/init.d/pvemesh start"),
            ],
            Self::Rcs => vec![words("/etc/init.d/S99pvemesh start")],
        }
    }

    /// Ends the service, now and for good. The file is removed by whoever put it there.
    pub fn disable(self) -> Vec<Command> {
        match self {
            Self::Appliance => Vec::new(),
            // What is not there is no failure: it may be ended a second time, by the next run.
            Self::Systemd => vec![sh("[ ! -e /etc/systemd/system/pvemesh.service ] || exec systemctl disable --now pvemesh.service")],
            Self::Openrc => vec![
                sh("[ ! -e /etc/init.d/pvemesh ] || exec rc-service pvemesh stop"),
                sh("[ ! -e /etc/runlevels/default/pvemesh ] || exec rc-update delete pvemesh default"),
            ],
            // Without its link nobody starts it again; that its supervisor has ended is waited for, for that one writes into its directory.
            Self::Runit => vec![sh("for d in /var/service /etc/service /service; do rm -f $d/pvemesh; done; \
                [ ! -e /etc/sv/pvemesh/supervise ] || sv force-shutdown /etc/sv/pvemesh; exit 0")],
            Self::Sysv => vec![
                words("/etc/init.d/pvemesh stop"),
                sh("if command -v update-rc.d >/dev/null; then exec update-rc.d -f pvemesh remove; fi; rm -f /etc/rc?.d/S99pvemesh"),
            ],
            Self::Rcs => vec![words("/etc/init.d/S99pvemesh stop")],
        }
    }

    /// Restarts the service; nothing for our own init, which is told by a signal.
    pub fn restart(self) -> Option<Command> {
        match self {
            Self::Appliance => None,
            Self::Systemd => Some(words("systemctl restart pvemesh.service")),
            Self::Openrc => Some(words("rc-service pvemesh restart")),
            Self::Runit => Some(words("sv restart pvemesh")),
            Self::Sysv => Some(words("/etc/init.d/pvemesh restart")),
            Self::Rcs => Some(words("/etc/init.d/S99pvemesh restart")),
        }
    }

    /// What makes the manager forget a service whose file is gone.
    pub fn forget(self) -> Vec<Command> {
        if self == Self::Systemd { vec![words("systemctl daemon-reload")] } else { Vec::new() }
    }

    /// Whether it keeps the log itself, so that the node writes none.
    pub const fn keeps_log(self) -> bool {
        matches!(self, Self::Systemd)
    }
}

fn words(line: &str) -> Command {
    line.split(' ').map(str::to_owned).collect()
}

fn sh(line: &str) -> Command {
    vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()]
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Service {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        Self::ALL.into_iter().find(|service| service.word() == text).ok_or(ServiceError)
    }
}
