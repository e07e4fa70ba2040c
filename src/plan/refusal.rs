//! Why nothing was begun: every reason is found before the first write.

use crate::ident::Vmid;
use crate::pve::{BridgeName, BuildError, HostName, Principal, StorageId, Version};

use super::options::OptionError;
use super::permission::Missing;
use super::render::RenderError;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The command line is wrong.
    Usage,
    /// The credentials are not enough.
    Denied,
    /// What is there is in the way.
    Conflict,
    /// A defect of ours.
    Internal,
}

/// Why a plan was not made. The text says what is; [`Refusal::next`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// An option cannot be used.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A container or virtual machine of somebody else has the number.
    #[error("VMID {vmid} is in use by `{name}` on {host}, which pvemesh did not make")]
    VmidInUse {
        /// The number.
        vmid: Vmid,
        /// Its guest.
        name: String,
        /// Where.
        host: HostName,
    },
    /// A guest of ours has the number, but it is something else.
    #[error("container {vmid} is a pvemesh {is}, not a {wanted}")]
    OtherRole {
        /// The number.
        vmid: Vmid,
        /// What it is.
        is: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// Something about a guest that is there differs, and it is not ours to change.
    #[error("container {vmid} is there, and its {what} is {is}, not {wanted}; pvemesh does not change that")]
    CannotChange {
        /// The number.
        vmid: Vmid,
        /// What differs.
        what: &'static str,
        /// As it is.
        is: String,
        /// As it was asked for.
        wanted: String,
        /// What to do.
        next: String,
    },
    /// A change depends on what the guest was told, and its notes do not say it.
    #[error("what container {vmid} was told is not kept in its notes: an older pvemesh made it, or somebody edited them")]
    Untold {
        /// The number.
        vmid: Vmid,
    },
    /// Changed settings cannot be handed over: the API has no way, and there is none into the guest.
    #[error(
        "{host} has Proxmox VE {version}, whose API hands no new settings to a guest that is there (env came with {}), and from here no other \
         way leads into container {vmid}",
        Version::ENVIRONMENT
    )]
    TooOldToTell {
        /// The guest.
        vmid: Vmid,
        /// Where it is.
        host: HostName,
        /// Its version.
        version: Version,
    },
    /// A guest of ours whose making did not come to its end, begun elsewhere.
    #[error("container {vmid} was begun by another run of pvemesh that did not come to its end")]
    Unfinished {
        /// The number.
        vmid: Vmid,
    },
    /// The guest carries a lock.
    #[error("container {vmid} is locked ({lock})")]
    Locked {
        /// The number.
        vmid: Vmid,
        /// The lock.
        lock: String,
    },
    /// Another guest has the name.
    #[error("the name {name} is taken by {by}")]
    NameTaken {
        /// The name.
        name: String,
        /// By whom.
        by: String,
    },
    /// The credentials cannot pass a device through, and no golden container will do.
    #[error(
        "as {principal}, Proxmox would refuse dev0 (/dev/net/tun) of POST /nodes/{host}/lxc: passing devices through is for the literal \
         root@pam only, and no API token and no role changes that; golden containers to clone: {golden}"
    )]
    NeedsRoot {
        /// Who we are.
        principal: Principal,
        /// Where the container would be.
        host: String,
        /// The golden containers there are and why none will do.
        golden: String,
    },
    /// A parameter that no privilege allows.
    #[error("as {principal}, Proxmox would refuse {parameter} in the step \"{step}\": it is for the literal root@pam only")]
    RootOnly {
        /// Who we are.
        principal: Principal,
        /// The step.
        step: String,
        /// The parameter.
        parameter: String,
    },
    /// Rights are missing.
    #[error("as {principal}, Proxmox would refuse what needs {list}", list = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Rights {
        /// Who we are.
        principal: Principal,
        /// What is missing.
        missing: Vec<Missing>,
    },
    /// Nothing is shown to somebody without the right to see it.
    #[error("Proxmox shows no {what} to {principal}: {privilege} is granted nowhere below {path}")]
    Hidden {
        /// Who we are.
        principal: Principal,
        /// What is not shown.
        what: &'static str,
        /// The privilege that shows it.
        privilege: String,
        /// Where it would be granted.
        path: &'static str,
    },
    /// Only root makes golden containers.
    #[error(
        "as {principal}, Proxmox would refuse dev0 (/dev/net/tun) of a golden container: passing devices through is for the literal root@pam only"
    )]
    GoldenNeedsRoot {
        /// Who we are.
        principal: Principal,
        /// The number asked for.
        vmid: Vmid,
    },
    /// Clones get their configuration by `env`.
    #[error("{host} has Proxmox VE {version}; a clone gets its configuration by `env`, which came with 9.1")]
    NoEnvironment {
        /// Where.
        host: HostName,
        /// Its version.
        version: Version,
    },
    /// The Proxmox VE is too old.
    #[error("{host} has Proxmox VE {version}; passing /dev/net/tun through (dev0) came with {needed}")]
    TooOld {
        /// Where.
        host: HostName,
        /// Its version.
        version: Version,
        /// The first version that will do.
        needed: Version,
    },
    /// The guest has TUN in both forms, and we are not where that can be mended.
    #[error("container {vmid} has /dev/net/tun both by dev[n] and by a line `lxc.mount.entry`; such a container does not start")]
    TunTwice {
        /// The number.
        vmid: Vmid,
        /// Where it is.
        host: HostName,
    },
    /// The guest's address would be needed and nobody tells it.
    #[error("{host} has Proxmox VE {version}, whose API does not tell the address a container got by DHCP (8.1 and later do)")]
    UnseenAddress {
        /// Where.
        host: HostName,
        /// Its version.
        version: Version,
    },
    /// No such host.
    #[error("there is no node {wanted}; there is {known}")]
    UnknownHost {
        /// The name asked for.
        wanted: HostName,
        /// The names there are.
        known: String,
    },
    /// The host is down.
    #[error("node {0} is offline or does not answer")]
    HostOffline(HostName),
    /// No such storage.
    #[error("there is no storage {wanted} on {host}; there is {known}")]
    UnknownStorage {
        /// The name asked for.
        wanted: StorageId,
        /// Where.
        host: HostName,
        /// The names there are.
        known: String,
    },
    /// The storage cannot hold this.
    #[error("storage {storage} on {host} does not hold {what} ({content}); its content is {has}")]
    WrongContent {
        /// Which.
        storage: StorageId,
        /// Where.
        host: HostName,
        /// What it should hold, in words.
        what: &'static str,
        /// Proxmox's word for it.
        content: &'static str,
        /// What it holds.
        has: String,
    },
    /// The storage is not active.
    #[error("storage {storage} on {host} is not active")]
    StorageDown {
        /// Which.
        storage: StorageId,
        /// Where.
        host: HostName,
    },
    /// The storage is full.
    #[error("storage {storage} on {host} has {free} MiB free, {needed} MiB are needed")]
    StorageFull {
        /// Which.
        storage: StorageId,
        /// Where.
        host: HostName,
        /// Free, MiB.
        free: u64,
        /// Needed, MiB.
        needed: u64,
    },
    /// No storage will do.
    #[error("no storage on {host} holds {what} ({content}), is active and has {needed} MiB free{}", rooms(full))]
    NoStorage {
        /// Where.
        host: HostName,
        /// What it should hold, in words.
        what: &'static str,
        /// Proxmox's word for it.
        content: &'static str,
        /// Needed, MiB.
        needed: u64,
        /// Those that would do if they were not so full, and what they have free, MiB.
        full: Vec<(StorageId, u64)>,
    },
    /// No such bridge.
    #[error("there is no bridge {wanted} on {host}; there is {known}")]
    UnknownBridge {
        /// The name asked for.
        wanted: BridgeName,
        /// Where.
        host: HostName,
        /// The names there are.
        known: String,
    },
    /// Nobody says which network a bridge leads to.
    #[error("the network behind {bridge} on {host} is not known: the host has no address on it, and the guest gets its own by DHCP")]
    NoNetwork {
        /// Where.
        host: HostName,
        /// The bridge.
        bridge: BridgeName,
    },
    /// No bridge at all.
    #[error("{0} has no active bridge")]
    NoBridge(HostName),
    /// No host will do; the reason of each.
    #[error("no node can take the container: {0}")]
    NoHost(String),
    /// The guest is not ours.
    #[error("container {vmid} (`{name}`) was not made by pvemesh: it lacks the tag `pvemesh` or the mark in its notes")]
    NotOurs {
        /// The number.
        vmid: Vmid,
        /// Its name.
        name: String,
    },
    /// The guest is not what the command can work on, or lacks something.
    #[error("{why}")]
    Guest {
        /// Why.
        why: String,
        /// What to do.
        next: String,
    },
    /// No such guest.
    #[error("there is no guest {0}")]
    NoSuchGuest(Vmid),
    /// A request could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A template could not be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
}

/// What storages have free, in words; nothing if there are none.
fn rooms(full: &[(StorageId, u64)]) -> String {
    let each: Vec<String> = full.iter().map(|(storage, free)| format!("{storage} has {free} MiB")).collect();
    if each.is_empty() { String::new() } else { format!(" ({})", each.join(", ")) }
}

impl Refusal {
    /// What to do next.
    pub fn next(&self) -> String {
        match self {
            Self::Option(error) => format!("give {} another value", error.option),
            Self::VmidInUse { .. } | Self::OtherRole { .. } | Self::NameTaken { .. } => {
                "choose another number or name; `pvemesh list` shows the guests of pvemesh".to_owned()
            }
            Self::CannotChange { next, .. } => next.clone(),
            Self::TooOldToTell { host, .. } => format!(
                "run this command as root on {host} itself, or let it go there by ssh with a key: add --ssh root@{host} (once and for all: \
                 ssh = \"root@{{node}}\" in config.toml); or leave that option out"
            ),
            Self::Untold { vmid } => {
                format!("leave that option out, or make the guest anew: pvemesh destroy {vmid}, then this command again")
            }
            Self::Unfinished { vmid } => format!("if no other pvemesh is at work, remove it and try again: pvemesh destroy {vmid}"),
            Self::Locked { vmid, .. } => format!("wait for the operation that holds the lock; if none does any more: pct unlock {vmid}"),
            Self::NeedsRoot { .. } => "four ways round: (1) have root make a golden container once, which tokens clone for ever (Proxmox VE 9.1): \
                                       pvemesh image golden 9000; (2) do without the device: add --tun userspace (slower, and the node sees its \
                                       peers' connections end in itself); (3) log in as root@pam with a password: pvemesh init --user root@pam; \
                                       (4) run pvemesh as root on the Proxmox host itself, where no credentials are needed"
                .to_owned(),
            Self::RootOnly { .. } => "log in as root@pam with a password: pvemesh init --user root@pam; or run pvemesh as root on the host".to_owned(),
            Self::Rights { .. } => "pvemesh init --print-role shows the role that is enough, and the commands that grant it; as root, pvemesh init \
                                    --create-role makes it"
                .to_owned(),
            Self::Hidden { privilege, path, .. } => {
                format!("grant {privilege} on {path}; pvemesh init --print-role shows the whole role and the commands")
            }
            Self::GoldenNeedsRoot { vmid, .. } => {
                format!("as root on the Proxmox host, or after pvemesh init --user root@pam: pvemesh image golden {vmid}")
            }
            Self::NoEnvironment { .. } => "upgrade the host; until then make the nodes as root@pam, or with --tun userspace".to_owned(),
            Self::TooOld { host, needed, .. } => format!(
                "run pvemesh as root on {host} itself, where it writes the lines that older versions take instead; or do without the device: \
                 --tun userspace; or upgrade {host} to {needed}, or choose another node with --node"
            ),
            Self::TunTwice { vmid, host } => format!(
                "run the same command as root on {host} itself, which takes the line out; or remove one form by hand: the line in \
                 /etc/pve/nodes/{host}/lxc/{vmid}.conf, or the device"
            ),
            Self::UnseenAddress { host, .. } => format!("give it a fixed address with --ip and --gw, or run pvemesh as root on {host} itself"),
            Self::UnknownHost { .. } | Self::HostOffline(_) | Self::NoHost(_) => "choose a node with --node".to_owned(),
            Self::UnknownStorage { .. } | Self::StorageFull { .. } | Self::StorageDown { .. } => {
                "choose another one with --storage or --template-storage".to_owned()
            }
            Self::NoStorage { full, .. } if !full.is_empty() => {
                let lists: Vec<String> = full.iter().map(|(storage, _)| format!("pvesm list {storage}")).collect();
                format!("make room there: {} shows what it holds", lists.join(", "))
            }
            Self::WrongContent { content, .. } | Self::NoStorage { content, .. } => {
                format!("choose another storage, or allow this content: Datacenter > Storage > Edit > Content ({content})")
            }
            Self::UnknownBridge { .. } => "choose one of them with --bridge".to_owned(),
            Self::NoNetwork { .. } => "say which: --route 192.168.1.0/24".to_owned(),
            Self::NoBridge(host) => format!("make a bridge on {host}: Node > System > Network > Create > Linux Bridge"),
            Self::NotOurs { .. } => "remove it with Proxmox's own tools if you mean it".to_owned(),
            Self::Guest { next, .. } => next.clone(),
            Self::NoSuchGuest(_) => "pvemesh list shows what is there".to_owned(),
            Self::Build(_) | Self::Render(_) => "this is a defect of pvemesh; please report it".to_owned(),
        }
    }

    /// Whose turn it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Option(_) => Fault::Usage,
            Self::NeedsRoot { .. } | Self::RootOnly { .. } | Self::Rights { .. } | Self::Hidden { .. } | Self::GoldenNeedsRoot { .. } => {
                Fault::Denied
            }
            Self::Build(_) | Self::Render(_) => Fault::Internal,
            _ => Fault::Conflict,
        }
    }
}
