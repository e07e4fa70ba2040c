//! The calls of a golden container: made into a template once, cloned for ever.

use proxmox_api::nodes::node::lxc::vmid::clone;
use proxmox_api::nodes::node::lxc::vmid::config::PutParams;

use super::call::{container, value};
use super::recorder::record;
use super::{BuildError, HostName, NetworkInterface, Request, StorageId, Tag};
use crate::ident::{NodeName, Vmid};

type Built = Result<Request, BuildError>;

/// Turns a stopped container into a template; replies at once, while a task of the host works on it. It cannot be turned back.
pub fn make_template(on: &HostName, vmid: Vmid) -> Built {
    record(container(on, vmid)?.template().post())
}

/// A full copy of a template, on the same host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The number of the copy.
    pub vmid: Vmid,
    /// The storage of its root volume.
    pub storage: StorageId,
    /// Its host name.
    pub hostname: NodeName,
    /// Its notes; what the template's say is replaced in the same call, so that the copy is known from its first moment.
    pub notes: String,
}

/// Copies a container; every key is taken over but those of `copy` and the interfaces' hardware addresses. Replies with a task, whose id
/// names the original.
///
/// # Errors
/// If a value is outside what the schema allows.
pub fn copy(on: &HostName, from: Vmid, copy: &Copy) -> Built {
    let mut params = clone::PostParams::new(value("newid", &copy.vmid, i128::from(u32::from(copy.vmid)))?);
    params.full = Some(true);
    params.storage = Some(copy.storage.to_string());
    params.hostname = Some(copy.hostname.to_string());
    params.description = Some(copy.notes.clone());
    record(container(on, from)?.clone().post(params))
}

/// What a copy gets of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Cores it may use.
    pub cores: u16,
    /// Memory in MiB.
    pub memory: u32,
    /// Its interface to the LAN.
    pub network: NetworkInterface,
    /// Its tags.
    pub tags: Vec<Tag>,
}

/// Gives a copy what is its own, and has it started with the host.
///
/// # Errors
/// If a value is outside what the schema allows.
pub fn give_own(on: &HostName, vmid: Vmid, own: &Own) -> Built {
    let mut params = PutParams {
        cores: Some(value("cores", &own.cores, i128::from(own.cores))?),
        memory: Some(value("memory", &own.memory, i128::from(own.memory))?),
        onboot: Some(true),
        tags: Some(own.tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(";")),
        ..Default::default()
    };
    params.nets.insert(0, own.network.to_string());
    record(container(on, vmid)?.config().put(params))
}

#[cfg(test)]
mod tests {
    use super::super::{Ipv4Config, Ipv6Config};
    use super::*;

    #[test]
    fn the_calls_have_the_parameters_of_the_schema() {
        let (pve, golden, vmid): (HostName, Vmid, Vmid) = ("pve".parse().unwrap(), "9000".parse().unwrap(), "101".parse().unwrap());
        let new =
            Copy { vmid, storage: "local-lvm".parse().unwrap(), hostname: "exit-1".parse().unwrap(), notes: "made by pvemesh".to_owned() };
        let network = NetworkInterface {
            name: "eth0".to_owned(),
            bridge: "vmbr0".parse().unwrap(),
            ipv4: Ipv4Config::Dhcp,
            ipv6: Ipv6Config::Auto,
            firewall: false,
        };
        let own = Own { cores: 2, memory: 64, network, tags: vec!["pvemesh".parse().unwrap(), "exit-node".parse().unwrap()] };
        for (request, text) in [
            (make_template(&pve, golden), "POST /nodes/pve/lxc/9000/template"),
            (
                copy(&pve, golden, &new),
                "POST /nodes/pve/lxc/9000/clone description=\"made by pvemesh\" full=1 hostname=exit-1 newid=101 storage=local-lvm",
            ),
            (
                give_own(&pve, vmid, &own),
                "PUT /nodes/pve/lxc/101/config cores=2 memory=64 net0=name=eth0,bridge=vmbr0,firewall=0,ip=dhcp,ip6=auto,type=veth onboot=1 \
                 tags=pvemesh;exit-node",
            ),
        ] {
            assert_eq!(request.unwrap().to_string(), text);
        }
    }
}
