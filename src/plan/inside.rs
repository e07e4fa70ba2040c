//! Steps within a running guest, and what takes them back.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::guest::Command;
use super::mark::{Mark, RunId};
use super::render::Notes;
use crate::ident::{NodeId, NodeName, Vmid};
use crate::pve::HostName;
use crate::settings::Guest;

/// A step within a guest.
#[derive(Debug, Clone)]
pub struct InsideAction {
    /// Where the guest is.
    pub host: HostName,
    /// The guest.
    pub vmid: Vmid,
    /// What is done.
    pub deed: Deed,
}

/// What a written file holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// This text, which may be read by anybody.
    Text(String),
    /// A guest's settings; the join key is added when it is known.
    Settings(Box<Guest>),
}

/// What is done within a guest.
#[derive(Debug, Clone)]
pub enum Deed {
    /// A program of this machine is put there, beside its place at first; it has to run there before it gets its place.
    Program {
        /// The file here.
        source: PathBuf,
        /// Its place there.
        to: String,
    },
    /// A file is written by our program there, whole or not at all.
    Write {
        /// Our program there.
        program: String,
        /// The file.
        to: String,
        /// Its permission bits.
        mode: u32,
        /// What it holds.
        content: Content,
    },
    /// Programs are run one after the other; each has to succeed.
    Run {
        /// Their command lines.
        commands: Vec<Command>,
        /// The last one reads the join key from its standard input.
        with_key: bool,
    },
    /// Files and directories are removed by our program there.
    Remove {
        /// Our program there.
        program: String,
        /// Which; those that are not there are passed over.
        paths: Vec<String>,
    },
    /// The coordinator lets the node carry these networks, and no others.
    Approve {
        /// The node.
        name: NodeName,
        /// The networks.
        routes: Vec<IpNet>,
    },
    /// Waits until a node that was not there before is online: one that has joined in the place of another.
    AwaitSuccessor {
        /// The name it asks for.
        name: NodeName,
        /// The nodes that were there.
        before: Vec<NodeId>,
        /// How long, in seconds.
        limit_secs: u64,
    },
    /// The node that has joined in the place of another gets that one's name and address, and the other one goes.
    Succeed {
        /// The one that goes.
        old: NodeId,
        /// Its name.
        name: NodeName,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// The guest's Notes: what its owner wrote stays, then ours.
    Notes {
        /// Ours; absent if it goes.
        ours: Option<Box<(Notes, Mark)>>,
    },
}

impl Deed {
    /// Whether the guest has to be entered for it.
    pub fn enters(&self) -> bool {
        matches!(self, Self::Program { .. } | Self::Write { .. } | Self::Run { .. } | Self::Remove { .. })
    }
}

impl fmt::Display for InsideAction {
    /// As `--dry-run` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vmid = self.vmid;
        match &self.deed {
            Deed::Program { source, to } => write!(f, "pct push {vmid} {} {to} (checked, then renamed into its place)", source.display()),
            Deed::Write { to, mode, content: Content::Text(text), .. } => {
                write!(f, "pct exec {vmid}: write {to} ({} bytes, mode {mode:03o})", text.len())
            }
            Deed::Write { to, mode, content: Content::Settings(_), .. } => {
                write!(f, "pct exec {vmid}: write {to} (secret, mode {mode:03o})")
            }
            Deed::Run { commands, with_key } => {
                for (number, command) in commands.iter().enumerate() {
                    let join = if number == 0 { "" } else { "; " };
                    write!(f, "{join}pct exec {vmid} -- {}", command.join(" "))?;
                }
                if *with_key { f.write_str(" (the join key on its standard input)") } else { Ok(()) }
            }
            Deed::Remove { paths, .. } => write!(f, "pct exec {vmid}: remove {}", paths.join(" ")),
            Deed::Approve { name, routes } => {
                write!(f, "coordinator: POST node {name} routes={}", routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
            Deed::AwaitSuccessor { name, limit_secs, .. } => {
                write!(f, "coordinator: GET nodes (until another {name} is online, at most {limit_secs} s)")
            }
            Deed::Succeed { name, addresses, .. } => {
                let address = addresses.first().map(ToString::to_string).unwrap_or_default();
                write!(f, "coordinator: DELETE the old node {name}; give the new one its name and {address}")
            }
            Deed::Notes { ours } => {
                let what = if ours.is_some() { "the owner's notes and ours" } else { "the owner's notes" };
                write!(f, "PUT /nodes/{}/lxc/{vmid}/config description=({what})", self.host)
            }
        }
    }
}

/// What takes back what was done within a guest, or to its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsideUndo {
    /// Where the guest is.
    pub host: HostName,
    /// The guest.
    pub vmid: Vmid,
    /// What is done.
    pub deed: UndoDeed,
}

/// What takes a deed back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "deed", rename_all = "kebab-case")]
pub enum UndoDeed {
    /// Remove these files; with our program, which is among them, or without it if it is not there yet.
    Remove {
        /// Our program there.
        program: String,
        /// The files.
        paths: Vec<String>,
        /// What is run when they are gone.
        #[serde(default)]
        then: Vec<Command>,
    },
    /// Write these files as they were, then run these programs.
    Rewrite {
        /// Our program there.
        program: String,
        /// The files.
        files: Vec<FileBefore>,
        /// What has their readers read them again.
        then: Vec<Command>,
    },
    /// Give the guest's Notes our part back as it was, if this run has written it.
    Notes {
        /// The run.
        run: RunId,
        /// Our part before; absent if there was none.
        before: Option<String>,
    },
    /// Run these programs; that one of them fails is told, and the rest is run.
    Run {
        /// Their command lines.
        commands: Vec<Command>,
    },
    /// Give these keys of the configuration the values back that they had, unless somebody has changed them since.
    Restore {
        /// By key: the value before, if there was one, and the value that we set.
        keys: BTreeMap<String, Changed>,
    },
    /// Have a node be what it was before it joined anew, and remove what it had become from the coordinator. If the old one has gone from there
    /// already, there is no way back: then the new one is given its name and address.
    Unrekey {
        /// The node that was.
        old: NodeId,
        /// Its name.
        name: NodeName,
        /// Its addresses.
        addresses: Vec<IpAddr>,
        /// Nodes there before.
        before: Vec<NodeId>,
        /// What has the guest be the old one again.
        back: Command,
    },
}

impl UndoDeed {
    /// Whether the guest has to be entered for it.
    pub fn enters(&self) -> bool {
        matches!(self, Self::Remove { .. } | Self::Rewrite { .. } | Self::Run { .. } | Self::Unrekey { .. })
    }
}

/// A file as it was. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileBefore {
    /// The file.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// What it held; absent if it was not there.
    pub text: Option<String>,
}

/// A key's value before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Before; absent if the key was.
    pub before: Option<String>,
    /// After; absent if we removed it.
    pub after: Option<String>,
}

impl fmt::Display for InsideUndo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vmid = self.vmid;
        match &self.deed {
            UndoDeed::Remove { paths, .. } => write!(f, "remove {} from container {vmid}", paths.join(" ")),
            UndoDeed::Run { commands } => {
                let lines: Vec<String> = commands.iter().map(|command| command.join(" ")).collect();
                write!(f, "run in container {vmid}: {}", lines.join("; "))
            }
            UndoDeed::Rewrite { files, .. } => {
                let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
                write!(f, "put back {} in container {vmid}", paths.join(" "))
            }
            UndoDeed::Notes { .. } => write!(f, "put our part of the notes of container {vmid} back"),
            UndoDeed::Restore { keys } => {
                let names: Vec<&str> = keys.keys().map(String::as_str).collect();
                write!(f, "put back {} of container {vmid}", names.join(", "))
            }
            UndoDeed::Unrekey { name, .. } => write!(f, "give node {name} its old keys back, and remove what joined in its place"),
        }
    }
}

/// Whether a node's name is `wanted`, or what a coordinator makes of it while another node has that name (`wanted-1`).
pub fn is_successor_name(name: &NodeName, wanted: &NodeName) -> bool {
    let (name, wanted) = (name.as_str(), wanted.as_str());
    name == wanted
        || name
            .strip_prefix(wanted)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}
