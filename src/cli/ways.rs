//! Which way leads into a guest from here.

use std::path::Path;

use super::connect::{Session, refusal};
use super::{Exit, Failure};
use crate::ident::Vmid;
use crate::plan::Refusal;
use crate::plan::create::Plan;
use crate::plan::observed::{HostView, Observed};
use crate::pve::{HostName, Version};
use crate::sys::pve::{Inside, InsideError, Pct, Pvesh, SshTarget};

/// How guests are entered.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct WayArgs {
    /// Enter guests through this host by ssh with a key, as in root@pve; `{node}` stands for the Proxmox node of the guest. Without it, through
    /// `pct` on the Proxmox host itself.
    #[arg(long, value_name = "root@HOST")]
    pub(super) ssh: Option<String>,
}

impl WayArgs {
    /// The way into the guests of a host, if there is one from here.
    pub(super) fn find(&self, session: &Session, host: &HostName) -> Result<Option<Box<dyn Inside>>, Failure> {
        if let Some(text) = self.ssh.as_ref().or(session.config.ssh.as_ref()) {
            let target: SshTarget = text.replace("{node}", host.as_str()).parse().map_err(|e| {
                let next = "write --ssh root@HOST, or ssh = \"root@HOST\" in config.toml";
                Failure::new(format!("read the place for ssh `{}`", text.escape_default()), e, next).exit(Exit::Usage)
            })?;
            return Ok(Some(Box::new(Pct::ssh(target))));
        }
        if !is_host() {
            return Ok(None);
        }
        Ok(Some(if Pvesh::local_host().as_ref() == Some(host) { Box::new(Pct::here()) } else { Box::new(Pct::cluster(host)) }))
    }

    /// The way that a plan about a guest that is there needs, if it needs one.
    pub(super) fn of_plan(
        &self,
        session: &Session,
        plan: &Plan,
        observed: &Observed,
        tried: &str,
    ) -> Result<Option<Box<dyn Inside>>, Failure> {
        if !plan.enters() {
            return Ok(None);
        }
        let found = self.find(session, &plan.host)?;
        found.map(Some).ok_or_else(|| {
            let version = observed.host(&plan.host).map_or(Version::new(0, 0, 0), HostView::known_version);
            refusal(tried, &Refusal::TooOldToTell { vmid: plan.vmid, host: plan.host.clone(), version })
        })
    }

    /// The same, where nothing can be done without.
    pub(super) fn need(&self, session: &Session, host: &HostName, tried: &str, vmid: Vmid) -> Result<Box<dyn Inside>, Failure> {
        self.find(session, host)?.ok_or_else(|| no_way(tried, host, vmid))
    }
}

/// Whether this is a Proxmox host whose root we are.
fn is_host() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/etc/pve").is_dir()
}

/// Proxmox's API does not lead into containers.
pub(super) fn no_way(tried: &str, host: &HostName, vmid: Vmid) -> Failure {
    let happened = "Proxmox's API has no way into a container: it runs no program there and writes no file";
    let next = format!(
        "two ways: (1) run the command as root on {host} itself; (2) let it go there by ssh with a key: add --ssh root@{host}, or once and for all \
         ssh = \"root@{{node}}\" in config.toml. For a guest that pvemesh made there is a third: pvemesh destroy {vmid} and create it again"
    );
    Failure::new(tried, happened, next).exit(Exit::Unreachable)
}

/// What the admin reads when the way into a guest failed.
pub(super) fn inside_advice(error: &InsideError) -> (String, Exit) {
    match error {
        InsideError::NoWay { .. } => {
            ("is the host up, is this key allowed there (ssh root@HOST true), is it a Proxmox host?".to_owned(), Exit::Unreachable)
        }
        InsideError::NotRunning(vmid) => (format!("start it: pct start {vmid}"), Exit::Conflict),
        InsideError::NotThere { .. } => ("name the host it is on with --ssh; `{node}` stands for the right one".to_owned(), Exit::Conflict),
        InsideError::NoProgram { .. } => ("pvemesh doctor says more".to_owned(), Exit::Failed),
        InsideError::NotCopied { .. } => ("look at the container's disk (pct df) and at locks (pct config)".to_owned(), Exit::Failed),
        InsideError::File { .. } => ("check the path and its permissions".to_owned(), Exit::Usage),
        InsideError::Failed { .. } | InsideError::TooLong { .. } | InsideError::NotRead { .. } | InsideError::Garbled { .. } => {
            ("pvemesh logs and pvemesh doctor say more".to_owned(), Exit::Failed)
        }
    }
}

/// The failure of a command.
pub(super) fn inside_failure(tried: &str, error: &InsideError) -> Failure {
    let (next, exit) = inside_advice(error);
    Failure::new(tried, error, next).exit(exit)
}
