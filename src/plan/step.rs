//! A plan's steps as values: what is done, what would undo it, and how it reads.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::inside::{InsideAction, InsideUndo};
use super::mark::{Mark, RunId};
use super::render::Notes;
use crate::ident::{NodeId, NodeName, Vmid};
use crate::pve::{HostName, Request, VolumeId, conf};
use crate::settings::Guest;
use crate::wire::admin::CreateKey;

/// The TCP port of a relay in its own guest.
pub const RELAY_PORT: u16 = 443;

/// One step.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it does, for progress: `create container 101`.
    pub title: String,
    /// How.
    pub action: Action,
    /// What takes it back; written to the journal before the action begins.
    pub undo: Option<Undo>,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Uploads the appliance image.
    Upload {
        /// The host whose API stores it.
        host: HostName,
        /// The volume it becomes.
        volume: VolumeId,
    },
    /// Builds an image that holds this guest's configuration, and uploads it.
    UploadPersonal {
        /// The host whose API stores it.
        host: HostName,
        /// The volume it becomes.
        volume: VolumeId,
        /// The configuration; the join key is added when it is known.
        guest: Box<Guest>,
    },
    /// Has the coordinator make a join key, which the later steps use.
    MintKey(CreateKey),
    /// Makes a request, and waits for its task if it starts one.
    Call {
        /// The request.
        request: Request,
        /// How long its task may take; `None` if the request is done when it returns.
        task: Option<Duration>,
    },
    /// Changes how /dev/net/tun comes into a container, in its configuration file on the host we are on.
    EditTun {
        /// Where the guest is.
        host: HostName,
        /// The guest.
        vmid: Vmid,
        /// What becomes of it.
        edit: TunEdit,
    },
    /// Puts the guest's configuration into its environment.
    Deliver {
        /// Where the guest is.
        host: HostName,
        /// The configuration; the join key is added when it is known.
        guest: Box<Guest>,
    },
    /// Puts changed settings, which hold no secret, into the environment of a guest that is there.
    Redeliver {
        /// Where the guest is.
        host: HostName,
        /// The settings.
        guest: Box<Guest>,
    },
    /// Has the coordinator allow a node to carry networks, and no longer allow others.
    ApproveRoutes {
        /// The node.
        name: NodeName,
        /// Allowed from now on.
        add: Vec<IpNet>,
        /// No longer allowed.
        remove: Vec<IpNet>,
    },
    /// Renames a node at the coordinator.
    RenameNode {
        /// Its name.
        from: NodeName,
        /// Its new name.
        to: NodeName,
    },
    /// Waits until the guest has an address on the LAN.
    AwaitAddress {
        /// Where the guest is.
        host: HostName,
        /// The guest.
        vmid: Vmid,
        /// The interface inside it.
        interface: String,
        /// The address it was given, if fixed.
        expected: Option<IpAddr>,
        /// How long to wait.
        limit: Duration,
    },
    /// Waits until the coordinator in the guest answers, learns its key and keeps both as the known coordinator.
    MeetCoordinator {
        /// The guest.
        vmid: Vmid,
        /// Its port on the LAN.
        port: u16,
        /// The address other clients are told, if it is not the one on the LAN.
        url: Option<String>,
        /// How long to wait.
        limit: Duration,
    },
    /// Waits until the relay in the guest answers, learns its certificate, and has the coordinator tell all nodes of it.
    MeetRelay {
        /// Its name, also of its region.
        name: NodeName,
        /// The name or address clients are told, if it is not its own on the LAN.
        address: Option<String>,
        /// How long to wait.
        limit: Duration,
    },
    /// Waits until the coordinator sees the node online.
    AwaitNode {
        /// The node.
        name: NodeName,
        /// How long to wait.
        limit: Duration,
    },
    /// Waits until the guest has an address of the mesh; for coordinators that we cannot ask.
    AwaitMeshAddress {
        /// Where the guest is.
        host: HostName,
        /// The guest.
        vmid: Vmid,
        /// How long to wait.
        limit: Duration,
    },
    /// Waits until a container has become a template.
    AwaitTemplate {
        /// Where it is.
        host: HostName,
        /// Its number.
        vmid: Vmid,
        /// How long to wait.
        limit: Duration,
    },
    /// Writes the final notes, with the address in the mesh.
    Finish {
        /// Where the guest is.
        host: HostName,
        /// What people read.
        notes: Box<Notes>,
        /// What we read.
        mark: Mark,
    },
    /// Removes the node of this name from the coordinator.
    RemoveNode(NodeName),
    /// Takes the relay of this name out of the coordinator's relay map.
    RemoveRelay(NodeName),
    /// Forgets the known coordinator.
    ForgetCoordinator(Vmid),
    /// Does something within a running guest.
    Inside(InsideAction),
}

/// Why lines are written where `dev[n]` is not there yet.
pub(super) const RAW_TUN_WHY: &str = "this Proxmox VE has no `dev[n]` yet, it came with 8.1";

/// A change of how /dev/net/tun comes into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunEdit {
    /// Raw LXC lines are put in, as Proxmox VE needs them before 8.1.
    Lines,
    /// Such lines make way for `dev[n]`.
    Device,
}

impl TunEdit {
    /// The new text of the configuration file; `None` if nothing is to be done.
    pub fn apply(self, text: &str) -> Option<String> {
        match self {
            Self::Lines => conf::with_raw_tun(text),
            Self::Device => conf::with_tun_device(text),
        }
    }
}

/// How changed settings get into a guest that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// In the environment of its init, from Proxmox VE 9.1 on.
    #[default]
    Environment,
    /// As a file, by a way into the running guest.
    Inside,
}

/// What takes a step back.
///
/// Each names what it removes so exactly that nothing else can be hit, also when it runs days later from the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "kebab-case")]
pub enum Undo {
    /// Remove a volume that was not there before.
    RemoveVolume {
        /// The host to ask.
        host: HostName,
        /// The volume.
        volume: VolumeId,
    },
    /// Remove the container, if its mark names this run.
    RemoveContainer {
        /// Where it is.
        host: HostName,
        /// Its number.
        vmid: Vmid,
        /// The run that made it.
        run: RunId,
    },
    /// Revoke the join key; without a number until the coordinator gave it one.
    RevokeKey {
        /// Its number.
        id: Option<i64>,
    },
    /// Remove the node that joined with this key; where the coordinator does not say by which key nodes joined, the one of this name. Not if
    /// it is one of these, which were there before.
    RemoveNode {
        /// Its name.
        name: NodeName,
        /// Nodes there before.
        before: Vec<NodeId>,
        /// The number of the join key, as soon as it was made.
        #[serde(default)]
        key: Option<i64>,
    },
    /// Take the relay out of the coordinator's relay map; without a number until the coordinator gave it one.
    RemoveRelay {
        /// Its name.
        name: NodeName,
        /// Its region's number.
        number: Option<i32>,
    },
    /// Forget the coordinator in this guest.
    ForgetCoordinator {
        /// The guest.
        vmid: Vmid,
    },
    /// Set a container's keys back to what they were.
    PutBack {
        /// Where it is.
        host: HostName,
        /// Its number.
        vmid: Vmid,
        /// The keys and their values before.
        values: BTreeMap<String, String>,
        /// Keys that were not there before.
        added: Vec<String>,
    },
    /// Hand a guest its earlier settings again.
    HandBack {
        /// Where it is.
        host: HostName,
        /// The settings, without a join key.
        settings: Box<Guest>,
        /// It was running, and reads them when it is started again.
        restart: bool,
        /// How they get there.
        #[serde(default)]
        carrier: Carrier,
    },
    /// Stop a guest that did not run before.
    Stop {
        /// Where it is.
        host: HostName,
        /// Its number.
        vmid: Vmid,
    },
    /// Give a node back the networks it might carry before.
    ApproveRoutes {
        /// The node.
        name: NodeName,
        /// Allowed again.
        add: Vec<IpNet>,
        /// No longer allowed.
        remove: Vec<IpNet>,
    },
    /// Take a container out of high availability.
    LeaveHighAvailability {
        /// Its number.
        vmid: Vmid,
    },
    /// Give a node its name back.
    RenameNode {
        /// The name it may have now.
        from: NodeName,
        /// The name it had.
        to: NodeName,
    },
    /// Take back what was done within a guest.
    Inside(InsideUndo),
}

impl Undo {
    /// The host of this guest, if the step was about it there.
    pub fn host_of(&self, guest: Vmid) -> Option<&HostName> {
        match self {
            Self::RemoveContainer { host, vmid, .. } | Self::PutBack { host, vmid, .. } | Self::Stop { host, vmid } => {
                (*vmid == guest).then_some(host)
            }
            Self::HandBack { host, settings, .. } => (settings.vmid == guest).then_some(host),
            Self::Inside(InsideUndo { host, vmid, .. }) => (*vmid == guest).then_some(host),
            _ => None,
        }
    }

    /// The host of the guest that has to be entered for it, if one has to be.
    pub fn enters(&self) -> Option<&HostName> {
        match self {
            Self::HandBack { host, carrier: Carrier::Inside, .. } => Some(host),
            Self::Inside(undo) if undo.deed.enters() => Some(&undo.host),
            _ => None,
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveVolume { volume, .. } => write!(f, "remove {volume}"),
            Self::RemoveContainer { host, vmid, .. } => write!(f, "remove container {vmid} from {host}"),
            Self::RevokeKey { id: Some(id) } => write!(f, "revoke join key {id}"),
            Self::RevokeKey { id: None } => f.write_str("let the join key expire"),
            Self::RemoveNode { name, .. } => write!(f, "remove node {name} from the coordinator"),
            Self::RemoveRelay { name, .. } => write!(f, "take relay {name} out of the relay map"),
            Self::ForgetCoordinator { vmid } => write!(f, "forget the coordinator in container {vmid}"),
            Self::PutBack { vmid, values, added, .. } => {
                let keys: Vec<&str> = values.keys().chain(added).map(String::as_str).collect();
                write!(f, "set {} of container {vmid} back", keys.join(", "))
            }
            Self::HandBack { settings, .. } => write!(f, "hand container {} its earlier settings again", settings.vmid),
            Self::Stop { vmid, .. } => write!(f, "stop container {vmid} again"),
            Self::ApproveRoutes { name, .. } => write!(f, "approve the earlier routes of {name} again"),
            Self::LeaveHighAvailability { vmid } => write!(f, "take container {vmid} out of high availability"),
            Self::RenameNode { to, .. } => write!(f, "name the node {to} again"),
            Self::Inside(undo) => undo.fmt(f),
        }
    }
}

impl Action {
    /// Whether a way into the guest is needed for it.
    pub fn enters(&self) -> bool {
        matches!(self, Self::Inside(action) if action.deed.enters())
    }
}

impl Step {
    /// A step that needs no undoing.
    pub(super) fn plain(title: impl Into<String>, action: Action) -> Self {
        Self { title: title.into(), action, undo: None }
    }

    /// A step with what takes it back.
    pub(super) fn undone_by(title: impl Into<String>, action: Action, undo: Undo) -> Self {
        Self { title: title.into(), action, undo: Some(undo) }
    }
}

impl fmt::Display for Action {
    /// The calls it makes, as `--dry-run` prints them. Secrets are not among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upload = |f: &mut fmt::Formatter<'_>, host: &HostName, volume: &VolumeId| {
            write!(f, "POST /nodes/{host}/storage/{}/upload content=vztmpl filename={}", volume.storage(), volume.file_name())
        };
        match self {
            Self::Upload { host, volume } => upload(f, host, volume),
            Self::UploadPersonal { host, volume, .. } => {
                upload(f, host, volume)?;
                f.write_str(" (with the guest's configuration inside)")
            }
            Self::MintKey(key) => {
                write!(f, "coordinator: POST keys user={} expires_in_secs={} tags={}", key.user, key.expires_in_secs, key.tags.join(","))?;
                if let Some(name) = &key.only_for {
                    write!(f, " only_for={name}")?;
                }
                if !key.approve_routes.is_empty() {
                    write!(f, " approve_routes={}", key.approve_routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))?;
                }
                Ok(())
            }
            Self::Call { request, task: None } => write!(f, "{request}"),
            Self::Call { request, task: Some(limit) } => write!(f, "{request} (task, at most {} s)", limit.as_secs()),
            Self::EditTun { host, vmid, edit } => {
                write!(f, "/etc/pve/nodes/{host}/lxc/{vmid}.conf: ")?;
                match edit {
                    TunEdit::Lines => write!(f, "before the first section, {}", conf::RAW_LINES.join("; ")),
                    TunEdit::Device => f.write_str("dev[n]: /dev/net/tun instead of the lines `lxc.` for it"),
                }
            }
            Self::Deliver { host, guest } => write!(f, "PUT /nodes/{host}/lxc/{}/config env=(secret)", guest.vmid),
            Self::Redeliver { host, guest } => write!(f, "PUT /nodes/{host}/lxc/{}/config env=(the guest's settings)", guest.vmid),
            Self::ApproveRoutes { name, add, remove } => {
                let words = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                write!(f, "coordinator: POST node {name} routes add={} remove={}", words(add), words(remove))
            }
            Self::RenameNode { from, to } => write!(f, "coordinator: POST node {from} name={to}"),
            Self::AwaitAddress { host, vmid, interface, limit, .. } => {
                write!(f, "GET /nodes/{host}/lxc/{vmid}/interfaces (until {interface} has an address, at most {} s)", limit.as_secs())
            }
            Self::MeetCoordinator { limit, .. } => write!(f, "coordinator: GET info (until it answers, at most {} s)", limit.as_secs()),
            Self::MeetRelay { name, limit, .. } => {
                write!(
                    f,
                    "relay: TLS on port {RELAY_PORT} (until it answers, at most {} s); coordinator: POST relays {name}",
                    limit.as_secs()
                )
            }
            Self::AwaitNode { name, limit } => write!(f, "coordinator: GET nodes (until {name} is online, at most {} s)", limit.as_secs()),
            Self::AwaitMeshAddress { host, vmid, limit } => {
                write!(f, "GET /nodes/{host}/lxc/{vmid}/interfaces (until it has an address of the mesh, at most {} s)", limit.as_secs())
            }
            Self::AwaitTemplate { host, vmid, limit } => {
                write!(f, "GET /nodes/{host}/lxc/{vmid}/config (until it is a template, at most {} s)", limit.as_secs())
            }
            Self::Finish { host, mark, .. } => {
                write!(f, "PUT /nodes/{host}/lxc/{}/config description=(notes with the address in the mesh)", mark.vmid)
            }
            Self::RemoveNode(name) => write!(f, "coordinator: DELETE node {name}"),
            Self::RemoveRelay(name) => write!(f, "coordinator: DELETE relay {name}"),
            Self::Inside(action) => action.fmt(f),
            Self::ForgetCoordinator(vmid) => write!(f, "this machine: forget the coordinator in container {vmid}"),
        }
    }
}
