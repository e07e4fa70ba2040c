//! Where a new guest goes: host, storages, bridge, name; each with the reason, for the output.

use super::golden::Golden;
use super::observed::{HostView, Observed};
use super::options::{GuestOptions, ROOT_VOLUME, Role};
use super::refusal::Refusal;
use crate::ident::NodeName;
use crate::pve::reply::Storage;
use crate::pve::{BridgeName, HostName, StorageId, VolumeId};

const MIB: u64 = 1 << 20;
/// Room that an uploaded image takes at most, twice: Proxmox spools it first.
const TEMPLATE_ROOM: u64 = 64;

/// One decision and its reason.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Choice {
    /// What was decided, as in `node`.
    pub what: &'static str,
    /// The decision.
    pub value: String,
    /// Why.
    pub why: String,
}

/// Where the guest goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: HostName,
    pub(super) storage: StorageId,
    /// Where an image would be uploaded; the root volume's own where none is.
    pub(super) template_storage: StorageId,
    pub(super) bridge: BridgeName,
    pub(super) reasons: Vec<Choice>,
}

/// What the guest's root comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// The image in this file, on a storage for templates.
    Image(&'a str),
    /// A golden container; only hosts that have one will do.
    Golden(&'a [&'a Golden]),
}

/// Decides host, storages and bridge; `can` says whether a host that is up can take the guest at all.
pub(super) fn place(
    options: &GuestOptions,
    observed: &Observed,
    source: Source<'_>,
    can: &dyn Fn(&HostView) -> Result<(), Refusal>,
) -> Result<Place, Refusal> {
    if let Some(wanted) = &options.host {
        let host = observed
            .host(wanted)
            .ok_or_else(|| Refusal::UnknownHost { wanted: wanted.clone(), known: names(&observed.hosts, |h| h.name.as_str()) })?;
        return on_host(options, host, source, can, "given with --node".to_owned());
    }
    let mut refusals = Vec::new();
    let mut fits = Vec::new();
    let has_source = |host: &&HostView| match source {
        Source::Image(_) => true,
        Source::Golden(all) => all.iter().any(|golden| golden.host == host.name),
    };
    for host in observed.hosts.iter().filter(has_source) {
        match on_host(options, host, source, can, String::new()) {
            Ok(place) => fits.push((host, place)),
            Err(refusal) => refusals.push(refusal),
        }
    }
    let local = fits.iter().position(|(host, _)| Some(&host.name) == observed.local.as_ref());
    let free = |host: &HostView, place: &Place| storage_of(host, &place.storage).and_then(|s| s.available).unwrap_or(0);
    let most_free =
        fits.iter().enumerate().max_by_key(|(_, (host, place))| (free(host, place), std::cmp::Reverse(host.name.clone()))).map(|(i, _)| i);
    let why = match (local, observed.hosts.len()) {
        (_, 1) => "the only node",
        _ if matches!(source, Source::Golden(_)) => "it has a golden container",
        (Some(_), _) => "the node this command runs on",
        (None, _) => "the most free space among the nodes that have what is needed",
    };
    let Some((_, mut place)) = local.or(most_free).map(|i| fits.swap_remove(i)) else {
        // One host only: its own reason says more than a list of one.
        return Err(match <[Refusal; 1]>::try_from(refusals) {
            Ok([only]) => only,
            Err(all) if all.is_empty() => Refusal::NoHost("the cluster shows none".to_owned()),
            Err(all) => Refusal::NoHost(all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        });
    };
    if let Some(choice) = place.reasons.first_mut() {
        why.clone_into(&mut choice.why);
    }
    Ok(place)
}

fn on_host(
    options: &GuestOptions,
    host: &HostView,
    source: Source<'_>,
    can: &dyn Fn(&HostView) -> Result<(), Refusal>,
    why_host: String,
) -> Result<Place, Refusal> {
    if !host.online {
        return Err(Refusal::HostOffline(host.name.clone()));
    }
    can(host)?;
    let (storage, why_storage) = root_storage(options, host)?;
    let template = match source {
        Source::Image(image) => Some(template_storage(options, host, image)?),
        Source::Golden(_) => None,
    };
    let (bridge, why_bridge) = bridge(options, host)?;
    let mut reasons = vec![
        Choice { what: "node", value: host.name.to_string(), why: why_host },
        Choice { what: "storage", value: storage.to_string(), why: why_storage },
        Choice { what: "bridge", value: bridge.to_string(), why: why_bridge },
    ];
    let template_storage = match template {
        Some((name, why)) => {
            reasons.insert(2, Choice { what: "template storage", value: name.to_string(), why });
            name
        }
        None => storage.clone(),
    };
    Ok(Place { host: host.name.clone(), storage, template_storage, bridge, reasons })
}

fn storage_of<'h>(host: &'h HostView, name: &StorageId) -> Option<&'h Storage> {
    host.storages.iter().find(|storage| storage.name == *name)
}

/// What a storage is wanted for.
struct Need {
    what: &'static str,
    content: &'static str,
    mebibytes: u64,
}

fn given_storage<'h>(host: &'h HostView, name: &StorageId, need: &Need) -> Result<&'h Storage, Refusal> {
    let storage = storage_of(host, name).ok_or_else(|| Refusal::UnknownStorage {
        wanted: name.clone(),
        host: host.name.clone(),
        known: names(&host.storages, |s| s.name.as_str()),
    })?;
    if !storage.holds(need.content) {
        let (storage, has) = (name.clone(), storage.content.join(", "));
        return Err(Refusal::WrongContent { storage, host: host.name.clone(), what: need.what, content: need.content, has });
    }
    if !storage.usable {
        return Err(Refusal::StorageDown { storage: name.clone(), host: host.name.clone() });
    }
    match storage.available {
        Some(free) if free < need.mebibytes * MIB => {
            Err(Refusal::StorageFull { storage: name.clone(), host: host.name.clone(), free: free / MIB, needed: need.mebibytes })
        }
        _ => Ok(storage),
    }
}

fn fitting<'h>(host: &'h HostView, need: &Need) -> impl Iterator<Item = &'h Storage> {
    let (content, bytes) = (need.content, need.mebibytes * MIB);
    host.storages.iter().filter(move |s| s.usable && s.holds(content) && s.available.is_none_or(|free| free >= bytes))
}

fn none_fits(host: &HostView, need: &Need) -> Refusal {
    let full = fitting(host, &Need { what: need.what, content: need.content, mebibytes: 0 })
        .filter_map(|s| Some((s.name.clone(), s.available? / MIB)))
        .collect();
    Refusal::NoStorage { host: host.name.clone(), what: need.what, content: need.content, needed: need.mebibytes, full }
}

fn root_storage(options: &GuestOptions, host: &HostView) -> Result<(StorageId, String), Refusal> {
    let need = Need { what: "container volumes", content: "rootdir", mebibytes: u64::from(ROOT_VOLUME) };
    if let Some(name) = &options.storage {
        return given_storage(host, name, &need).map(|s| (s.name.clone(), "given with --storage".to_owned()));
    }
    // A local storage first: a mesh node should not hang on a network storage that may be reached through it.
    let best = fitting(host, &need).max_by_key(|s| (!s.shared, s.available.unwrap_or(0), std::cmp::Reverse(s.name.clone())));
    let storage = best.ok_or_else(|| none_fits(host, &need))?;
    let only = fitting(host, &need).count() == 1;
    let why = if only {
        "the only one that holds container volumes".to_owned()
    } else {
        "the most free space among the local ones that hold container volumes".to_owned()
    };
    Ok((storage.name.clone(), why))
}

fn template_storage(options: &GuestOptions, host: &HostView, image: &str) -> Result<(StorageId, String), Refusal> {
    let need = Need { what: "container templates", content: "vztmpl", mebibytes: TEMPLATE_ROOM };
    if let Some(name) = &options.template_storage {
        return given_storage(host, name, &need).map(|s| (s.name.clone(), "given with --template-storage".to_owned()));
    }
    let holds_image =
        |storage: &Storage| host.templates.iter().any(|volume| *volume.storage() == storage.name && volume.file_name() == image);
    if let Some(storage) = fitting(host, &Need { mebibytes: 0, ..need }).find(|s| holds_image(s)) {
        return Ok((storage.name.clone(), "the image is there already".to_owned()));
    }
    let need = Need { what: "container templates", content: "vztmpl", mebibytes: TEMPLATE_ROOM };
    let best = fitting(host, &need)
        .max_by_key(|s| (s.name.as_str() == "local", !s.shared, s.available.unwrap_or(0), std::cmp::Reverse(s.name.clone())));
    let storage = best.ok_or_else(|| none_fits(host, &need))?;
    let why = if storage.name.as_str() == "local" { "Proxmox's own place for templates" } else { "it holds container templates" };
    Ok((storage.name.clone(), why.to_owned()))
}

fn bridge(options: &GuestOptions, host: &HostView) -> Result<(BridgeName, String), Refusal> {
    let known = || names(&host.bridges, |b| &b.name);
    if let Some(wanted) = &options.bridge {
        let there = host.bridges.iter().any(|b| b.name == wanted.as_str());
        return if there {
            Ok((wanted.clone(), "given with --bridge".to_owned()))
        } else {
            Err(Refusal::UnknownBridge { wanted: wanted.clone(), host: host.name.clone(), known: known() })
        };
    }
    let mut active: Vec<_> =
        host.bridges.iter().filter(|b| b.active).filter_map(|b| Some((b, b.name.parse::<BridgeName>().ok()?))).collect();
    active.sort_by_key(|(bridge, name)| (!bridge.has_gateway, name.as_str() != "vmbr0", bridge.address.is_none(), name.clone()));
    let only = active.len() == 1;
    let (bridge, name) = active.into_iter().next().ok_or_else(|| Refusal::NoBridge(host.name.clone()))?;
    let why = match () {
        () if only => "the only active bridge",
        () if bridge.has_gateway => "the node's own way to the internet",
        () if name.as_str() == "vmbr0" => "Proxmox's first bridge",
        () => "the first active bridge with an address",
    };
    Ok((name, why.to_owned()))
}

fn names<T>(items: &[T], name: impl Fn(&T) -> &str) -> String {
    let all: Vec<&str> = items.iter().map(name).take(20).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// The name of a new guest: the one asked for if nobody has it, else the next free number of its role.
pub(super) fn name(options: &GuestOptions, role: &Role, observed: &Observed) -> Result<(NodeName, String), Refusal> {
    let is_node = |name: &str| observed.mesh.iter().any(|(_, node)| node.as_str() == name);
    let holder = |name: &str| observed.guests.iter().find(|guest| guest.name == name && guest.vmid != options.vmid);
    if let Some(name) = &options.name {
        return match holder(name.as_str()) {
            Some(guest) => Err(Refusal::NameTaken { name: name.to_string(), by: format!("guest {}", guest.vmid) }),
            None if is_node(name.as_str()) => {
                Err(Refusal::NameTaken { name: name.to_string(), by: "a node of the coordinator".to_owned() })
            }
            None => Ok((name.clone(), "given with --name".to_owned())),
        };
    }
    let stem = role.name_stem();
    if matches!(role, Role::Coordinator { .. }) && holder(stem).is_none() {
        return Ok((NodeName::sanitised(stem), "the usual name".to_owned()));
    }
    let free = (1..=u32::MAX)
        .map(|n| format!("{stem}-{n}"))
        .find(|name| holder(name).is_none() && !is_node(name))
        .unwrap_or_else(|| stem.to_owned());
    Ok((NodeName::sanitised(&free), "the first free one".to_owned()))
}

/// The volume that already holds the image, if it is there.
pub(super) fn image_on(observed: &Observed, place: &Place, image: &str) -> Option<VolumeId> {
    let host = observed.host(&place.host)?;
    host.templates.iter().find(|volume| *volume.storage() == place.template_storage && volume.file_name() == image).cloned()
}
