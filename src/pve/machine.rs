//! Calls and replies beyond those for our own containers: virtual machines, hookscripts of any guest, and where storages lie.

use std::path::PathBuf;

use proxmox_api::nodes::NodesClient;
use proxmox_api::nodes::node::lxc::vmid::config::PutParams as ContainerParams;
use proxmox_api::nodes::node::qemu::vmid::VmidClient;
use proxmox_api::nodes::node::qemu::vmid::config::{GetParams, PutParams};
use proxmox_api::storage::{GetParams as StorageParams, StorageClient};
use serde_json::Value;

use super::recorder::{Recorder, record};
use super::reply::{GuestInterface, ReplyError};
use super::{BuildError, HostName, Request, StorageId, VolumeId, reply};
use crate::ident::{NodeName, Vmid};

type Built = Result<Request, BuildError>;

/// A guest where it is.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// Its host.
    pub host: &'a HostName,
    /// Its number.
    pub vmid: Vmid,
    /// A container, not a virtual machine.
    pub container: bool,
}

fn wrong(name: &'static str, shown: impl ToString, why: impl ToString) -> BuildError {
    BuildError::Value { name, value: super::name::shown(&shown.to_string()), why: why.to_string() }
}

fn machine(on: &HostName, vmid: Vmid) -> Result<VmidClient<Recorder>, BuildError> {
    let number = i128::from(u32::from(vmid))
        .try_into()
        .map_err(|e: proxmox_api::types::bounded_integer::BoundedIntegerError| wrong("vmid", vmid, e))?;
    Ok(NodesClient::new(Recorder).node(on.as_str()).qemu().vmid(number))
}

fn container(on: &HostName, vmid: Vmid) -> Result<proxmox_api::nodes::node::lxc::vmid::VmidClient<Recorder>, BuildError> {
    let number = i128::from(u32::from(vmid))
        .try_into()
        .map_err(|e: proxmox_api::types::bounded_integer::BoundedIntegerError| wrong("vmid", vmid, e))?;
    Ok(NodesClient::new(Recorder).node(on.as_str()).lxc().vmid(number))
}

/// A guest's configuration.
pub fn config(guest: Guest<'_>) -> Built {
    if guest.container {
        return super::call::container_config(guest.host, guest.vmid);
    }
    record(machine(guest.host, guest.vmid)?.config().get(GetParams::default()))
}

/// Replaces a guest's notes, if its configuration is still the one with this digest.
///
/// # Errors
/// If they are longer than 8192 bytes.
pub fn set_notes(guest: Guest<'_>, notes: &str, digest: Option<&str>) -> Built {
    if guest.container {
        return super::call::set_notes(guest.host, guest.vmid, notes, digest);
    }
    let digest = digest.map(|text| text.to_owned().try_into().map_err(|e| wrong("digest", text, e))).transpose()?;
    let description = Some(notes.to_owned().try_into().map_err(|e| wrong("description", notes, e))?);
    record(machine(guest.host, guest.vmid)?.config().put(PutParams { description, digest, ..Default::default() }))
}

/// Sets a guest's hookscript, or takes it away. Only the literal root@pam may.
pub fn set_hookscript(guest: Guest<'_>, volume: Option<&VolumeId>) -> Built {
    let hookscript = volume.map(ToString::to_string);
    let delete = volume.is_none().then(|| "hookscript".to_owned());
    if guest.container {
        let params = ContainerParams { hookscript, delete, ..Default::default() };
        return record(container(guest.host, guest.vmid)?.config().put(params));
    }
    record(machine(guest.host, guest.vmid)?.config().put(PutParams { hookscript, delete, ..Default::default() }))
}

/// Gives a container another host name.
pub fn set_hostname(on: &HostName, vmid: Vmid, name: &NodeName) -> Built {
    let hostname = Some(name.to_string().try_into().map_err(|e| wrong("hostname", name, e))?);
    record(container(on, vmid)?.config().put(ContainerParams { hostname, ..Default::default() }))
}

/// The interfaces that the agent in a running virtual machine reports.
pub fn agent_interfaces(on: &HostName, vmid: Vmid) -> Built {
    record(machine(on, vmid)?.agent().network_get_interfaces().get())
}

/// The storages of the cluster, as they are defined.
pub fn storages() -> Built {
    record(StorageClient::new(Recorder).get(StorageParams::default()))
}

/// Reads what the guest agent replies: its answer lies in `result`.
///
/// # Errors
/// If it is no list.
pub fn read_agent_interfaces(value: &Value) -> Result<Vec<GuestInterface>, ReplyError> {
    reply::interfaces(value.get("result").unwrap_or(value))
}

/// A storage as it is defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageDefinition {
    /// Its name.
    pub name: StorageId,
    /// `dir`, `nfs` ...
    pub kind: String,
    /// Where it lies on the hosts, if it is a directory.
    pub path: Option<PathBuf>,
    /// What it may hold.
    pub content: Vec<String>,
    /// The same files on all hosts that have it.
    pub shared: bool,
    /// It is on some hosts only.
    pub limited: bool,
    /// In use.
    pub enabled: bool,
}

/// Reads `GET /storage`.
///
/// # Errors
/// If it is no list.
pub fn read_storages(value: &Value) -> Result<Vec<StorageDefinition>, ReplyError> {
    reply::definitions(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_have_the_paths_and_parameters_of_the_schema() {
        let host: HostName = "pve".parse().unwrap();
        let guest = |container| Guest { host: &host, vmid: "200".parse().unwrap(), container };
        let volume: VolumeId = "local:snippets/pvemesh-hook".parse().unwrap();
        for (request, text) in [
            (config(guest(false)), "GET /nodes/pve/qemu/200/config"),
            (config(guest(true)), "GET /nodes/pve/lxc/200/config"),
            (set_notes(guest(false), "x", Some("ab")), "PUT /nodes/pve/qemu/200/config description=x digest=ab"),
            (set_hookscript(guest(false), Some(&volume)), "PUT /nodes/pve/qemu/200/config hookscript=local:snippets/pvemesh-hook"),
            (set_hookscript(guest(true), None), "PUT /nodes/pve/lxc/200/config delete=hookscript"),
            (set_hostname(&host, "200".parse().unwrap(), &"exit-2".parse().unwrap()), "PUT /nodes/pve/lxc/200/config hostname=exit-2"),
            (agent_interfaces(&host, "200".parse().unwrap()), "GET /nodes/pve/qemu/200/agent/network-get-interfaces"),
            (storages(), "GET /storage"),
        ] {
            assert_eq!(request.unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_agent_s_answer_is_read() {
        // The form of QEMU's guest-network-get-interfaces, as Proxmox passes it on.
        let value = json!({"result": [
            {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [{"ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8}]},
            {"name": "ens18", "hardware-address": "bc:24:11:00:00:01", "statistics": {"rx-bytes": 1},
             "ip-addresses": [{"ip-address": "192.168.50.20", "ip-address-type": "ipv4", "prefix": 24}]},
            {"name": "odd"}
        ]});
        let interfaces = read_agent_interfaces(&value).unwrap();
        assert_eq!(
            interfaces.iter().map(|i| (i.name.as_str(), i.mac.is_some(), i.addresses.len())).collect::<Vec<_>>(),
            [("lo", false, 1), ("ens18", true, 1), ("odd", false, 0)]
        );
    }

    #[test]
    fn storages_are_read_with_their_places() {
        let value = json!([
            {"storage": "local", "type": "dir", "path": "/var/lib/vz", "content": "iso,vztmpl,backup"},
            {"storage": "nas", "type": "nfs", "path": "/mnt/pve/nas", "content": "snippets,backup", "shared": 1, "nodes": "a,b"},
            {"storage": "local-lvm", "type": "lvmthin", "content": "rootdir", "disable": 1}
        ]);
        let [local, nas, lvm] = read_storages(&value).unwrap().try_into().unwrap();
        assert_eq!((local.path, local.shared, local.limited, local.enabled), (Some("/var/lib/vz".into()), false, false, true));
        assert_eq!((nas.shared, nas.limited, nas.content.len()), (true, true, 2));
        assert_eq!((lvm.path, lvm.enabled), (None, false));
    }
}
