//! What is there, as gathered by `sys::pve` with reads only.

use super::golden::Golden;
use crate::ident::{NodeId, NodeName, Vmid};
use crate::pve::reply::{Bridge, ContainerConfig, GuestSummary, Storage};
use crate::pve::{HostName, Principal, Version, VolumeId};

/// Everything a plan looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Whom Proxmox takes us for.
    pub principal: Principal,
    /// The host we run on, when we run on one.
    pub local: Option<HostName>,
    /// The hosts of the cluster.
    pub hosts: Vec<HostView>,
    /// Every guest of the cluster.
    pub guests: Vec<GuestSummary>,
    /// The nodes our coordinator knows; empty without one.
    pub mesh: Vec<(NodeId, NodeName)>,
    /// The golden containers of the cluster.
    pub goldens: Vec<Golden>,
    /// The container with the number asked about, if there is one.
    pub target: Option<Target>,
    /// What Proxmox is to call when a new guest starts and stops.
    pub hookscript: Hookscript,
}

/// The hook script for new guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hookscript {
    /// Every host that may run the guest has it.
    Ready(VolumeId),
    /// It is not set, for this reason.
    Left(String),
}

impl Default for Hookscript {
    fn default() -> Self {
        Self::Left("nobody has looked for it".to_owned())
    }
}

/// A host and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostView {
    /// Its name.
    pub name: HostName,
    /// The cluster sees it, and it answered.
    pub online: bool,
    /// Its version; absent when it did not answer or was not asked.
    pub version: Option<Version>,
    /// Its storages.
    pub storages: Vec<Storage>,
    /// Its bridges.
    pub bridges: Vec<Bridge>,
    /// The container templates on its storages.
    pub templates: Vec<VolumeId>,
}

/// The container that already has the number asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub host: HostName,
    /// Its configuration; without notes and tags while it is being created.
    pub config: ContainerConfig,
    /// Running.
    pub running: bool,
}

impl HostView {
    /// Its version; the oldest there can be where none is known.
    pub fn known_version(&self) -> Version {
        self.version.unwrap_or(Version::new(0, 0, 0))
    }
}

impl Observed {
    /// Whether we are root on this very host, whose files are then ours to edit.
    pub fn is_on(&self, host: &HostName) -> bool {
        self.principal == Principal::RootHost && self.local.as_ref() == Some(host)
    }

    /// The guest with this number.
    pub fn guest(&self, vmid: Vmid) -> Option<&GuestSummary> {
        self.guests.iter().find(|guest| guest.vmid == vmid)
    }

    /// The host of this name.
    pub fn host(&self, name: &HostName) -> Option<&HostView> {
        self.hosts.iter().find(|host| host.name == *name)
    }
}
