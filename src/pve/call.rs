//! The calls pvemesh makes, one function each.
//!
//! Built through the generated types of `proxmox-api` (see [`super::recorder`]) wherever they can express the call. By hand, because they
//! cannot: `env` (the pattern of its type does not compile), texts in Proxmox's own form, high availability (its types know 9.1 only), uploads (multipart; `sys::pve` sends them), and ids in paths that the
//! generated builders would leave unchecked are only taken as checked types here.

use proxmox_api::cluster::ClusterClient;
use proxmox_api::cluster::resources::{GetParams as ResourcesParams, Type as ResourceType};
use proxmox_api::nodes::NodesClient;
use proxmox_api::nodes::node::lxc::vmid::DeleteParams;
use proxmox_api::nodes::node::lxc::vmid::VmidClient;
use proxmox_api::nodes::node::lxc::vmid::config::{GetParams as ConfigParams, PutParams};
use proxmox_api::nodes::node::lxc::vmid::status::{reboot, shutdown, start, stop};
use proxmox_api::nodes::node::lxc::{Arch as ApiArch, Cmode, Ostype, PostParams};
use proxmox_api::nodes::node::network::{GetParams as NetworkParams, Type as NetworkType};
use proxmox_api::nodes::node::storage::GetParams as StorageParams;
use proxmox_api::nodes::node::storage::storage::content::GetParams as ContentParams;
use proxmox_api::nodes::node::storage::storage::content::volume::DeleteParams as VolumeDeleteParams;
use proxmox_api::nodes::node::tasks::upid::log::GetParams as LogParams;
use proxmox_api::version::VersionClient;

use super::recorder::{Recorder, record};
use super::{BuildError, Device, HostName, Method, NetworkInterface, Request, RootVolume, StorageId, Tag, Upid, VolumeId};
use crate::ident::{NodeName, Secret, Vmid};

type Built = Result<Request, BuildError>;

fn host(name: &HostName) -> proxmox_api::nodes::node::NodeClient<Recorder> {
    NodesClient::new(Recorder).node(name.as_str())
}

pub(super) fn container(on: &HostName, vmid: Vmid) -> Result<VmidClient<Recorder>, BuildError> {
    Ok(host(on).lxc().vmid(value("vmid", &vmid, i128::from(u32::from(vmid)))?))
}

/// Turns a value into the schema's bounded type, naming the parameter if it does not fit.
pub(super) fn value<T, V>(name: &'static str, shown: &impl ToString, value: V) -> Result<T, BuildError>
where
    T: TryFrom<V>,
    T::Error: std::fmt::Display,
{
    T::try_from(value).map_err(|why| BuildError::Value { name, value: super::name::shown(&shown.to_string()), why: why.to_string() })
}

/// The version of the host that answers.
pub fn version() -> Built {
    record(VersionClient::new(Recorder).get())
}

/// The version of one host.
pub fn host_version(on: &HostName) -> Built {
    record(host(on).version().get())
}

/// The hosts of the cluster.
pub fn hosts() -> Built {
    record(NodesClient::new(Recorder).get())
}

/// The guests of the whole cluster.
pub fn guests() -> Built {
    let params = ResourcesParams { ty: Some(ResourceType::Vm), ..Default::default() };
    record(ClusterClient::new(Recorder).resources().get(params))
}

/// The containers of one host, as they are at this moment. Built by hand: the generated type of the reply is not needed.
pub fn containers(on: &HostName) -> Request {
    Request::new(Method::Get, format!("/nodes/{on}/lxc"))
}

/// The storages that a host has and uses.
pub fn storages(on: &HostName) -> Built {
    let params = StorageParams { enabled: Some(true), ..Default::default() };
    record(host(on).storage().get(params))
}

/// The bridges of a host.
pub fn bridges(on: &HostName) -> Built {
    let params = NetworkParams { ty: Some(NetworkType::AnyBridge), ..Default::default() };
    record(host(on).network().get(params))
}

/// The container templates on a storage.
pub fn templates(on: &HostName, storage: &StorageId) -> Built {
    let params = ContentParams { content: Some("vztmpl".to_owned()), ..Default::default() };
    record(host(on).storage().storage(storage.as_str()).content().get(params))
}

/// Removes a volume. Waits up to `wait_secs` (1 to 30) for it, then replies with a task or nothing.
pub fn delete_volume(on: &HostName, volume: &VolumeId, wait_secs: u8) -> Built {
    let params = VolumeDeleteParams { delay: Some(value("delay", &wait_secs, i128::from(wait_secs))?), ..Default::default() };
    record(host(on).storage().storage(volume.storage().as_str()).content().volume(&volume.to_string()).delete(params))
}

/// A processor architecture, as Proxmox names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// x86-64
    Amd64,
    /// 64-bit ARM
    Arm64,
}

/// A new container. Always unprivileged, of unmanaged system type, and started by a call of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewContainer {
    /// Its number.
    pub vmid: Vmid,
    /// What its root is unpacked from.
    pub template: VolumeId,
    /// Its root volume.
    pub root: RootVolume,
    /// Its host name.
    pub hostname: NodeName,
    /// Architecture of what is in the template; Proxmox cannot find it out for an unmanaged system.
    pub arch: Arch,
    /// Cores it may use.
    pub cores: u16,
    /// Memory in MiB; there is no swap.
    pub memory: u32,
    /// Its interface to the LAN.
    pub network: NetworkInterface,
    /// The device passed through, which only root@pam may ask for.
    pub device: Option<Device>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Its notes, Markdown.
    pub notes: String,
}

/// Creates a container; replies with a task.
///
/// # Errors
/// If a value is outside what the schema allows.
pub fn create(on: &HostName, new: &NewContainer) -> Built {
    let template = value("ostemplate", &new.template, new.template.to_string())?;
    let vmid = value("vmid", &new.vmid, i128::from(u32::from(new.vmid)))?;
    let mut params = PostParams::new(template, vmid);
    params.rootfs = Some(new.root.to_string());
    params.hostname = Some(value("hostname", &new.hostname, new.hostname.to_string())?);
    params.arch = Some(match new.arch {
        Arch::Amd64 => ApiArch::Amd64,
        Arch::Arm64 => ApiArch::Arm64,
    });
    params.ostype = Some(Ostype::Unmanaged);
    // The default was 0 before PVE 9.0.
    params.unprivileged = Some(true);
    params.cores = Some(value("cores", &new.cores, i128::from(new.cores))?);
    params.memory = Some(value("memory", &new.memory, i128::from(new.memory))?);
    params.swap = Some(value("swap", &0, 0_i128)?);
    params.nets.insert(0, new.network.to_string());
    if let Some(device) = new.device {
        params.devs.insert(0, device.to_string());
    }
    params.onboot = Some(true);
    params.cmode = Some(Cmode::Console);
    params.tags = Some(new.tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(";"));
    params.description = Some(value("description", &new.notes, new.notes.clone())?);
    record(host(on).lxc().post(params))
}

/// A container's configuration as it will be after the next start.
pub fn container_config(on: &HostName, vmid: Vmid) -> Built {
    record(container(on, vmid)?.config().get(ConfigParams::default()))
}

/// A container's state.
pub fn container_status(on: &HostName, vmid: Vmid) -> Built {
    record(container(on, vmid)?.status().current().get())
}

/// A running container's interfaces.
pub fn interfaces(on: &HostName, vmid: Vmid) -> Built {
    record(container(on, vmid)?.interfaces().get())
}

/// Replaces a container's notes; with the `digest` of the configuration they were made from, only if it is still that one.
///
/// # Errors
/// If they are longer than 8192 bytes.
pub fn set_notes(on: &HostName, vmid: Vmid, notes: &str, digest: Option<&str>) -> Built {
    let digest = digest.map(|digest| value("digest", &digest, digest.to_owned())).transpose()?;
    let params = PutParams { description: Some(value("description", &notes, notes.to_owned())?), digest, ..Default::default() };
    record(container(on, vmid)?.config().put(params))
}

/// Sets the environment of a container's init to one variable (PVE 9.1+); it is seen at the next start.
///
/// Built by hand: the generated type of `env` cannot be constructed, its pattern is a Perl one.
///
/// # Errors
/// If the name or the value has characters that cannot be part of an environment.
pub fn set_environment(on: &HostName, vmid: Vmid, name: &'static str, content: &Secret) -> Built {
    let clean = !content.expose().chars().any(char::is_control);
    if !clean || name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(BuildError::Value { name: "env", value: name.to_owned(), why: "control characters are not allowed".to_owned() });
    }
    let variable = Secret::new(format!("{name}={}", content.expose()));
    Ok(Request::new(Method::Put, format!("/nodes/{on}/lxc/{vmid}/config")).with_secret("env", variable))
}

/// As [`set_environment`], for a value that is no secret: it may be seen in a process list.
///
/// # Errors
/// As there.
pub fn set_open_environment(on: &HostName, vmid: Vmid, name: &'static str, content: &str) -> Built {
    let mut request = set_environment(on, vmid, name, &Secret::new(content))?;
    request.params.insert("env".to_owned(), super::request::Param::Plain(format!("{name}={content}")));
    Ok(request)
}

/// Sets keys of a container's configuration to texts in Proxmox's own form; refused if the configuration is not the one with this digest.
pub fn set_values<K: AsRef<str>>(
    on: &HostName,
    vmid: Vmid,
    values: &std::collections::BTreeMap<K, String>,
    digest: Option<&str>,
) -> Request {
    let mut request = Request::new(Method::Put, format!("/nodes/{on}/lxc/{vmid}/config"));
    for (key, value) in values {
        request = request.with(key.as_ref(), value.clone());
    }
    match digest {
        Some(digest) => request.with("digest", digest),
        None => request,
    }
}

/// Sets keys back to what they were, and removes those that were not there.
pub fn put_back(on: &HostName, vmid: Vmid, values: &std::collections::BTreeMap<String, String>, added: &[String]) -> Request {
    let request = set_values(on, vmid, values, None);
    if added.is_empty() { request } else { request.with("delete", added.join(",")) }
}

/// Removes the environment of a container's init.
pub fn clear_environment(on: &HostName, vmid: Vmid) -> Built {
    let params = PutParams { delete: Some("env".to_owned()), ..Default::default() };
    record(container(on, vmid)?.config().put(params))
}

/// Starts a container; replies with a task.
pub fn start(on: &HostName, vmid: Vmid) -> Built {
    record(container(on, vmid)?.status().start().post(start::PostParams::default()))
}

/// Stops a container at once; replies with a task.
pub fn stop(on: &HostName, vmid: Vmid) -> Built {
    record(container(on, vmid)?.status().stop().post(stop::PostParams::default()))
}

/// Asks a container to end within `timeout_secs`, then stops it; replies with a task.
pub fn shutdown(on: &HostName, vmid: Vmid, timeout_secs: u16) -> Built {
    let params = shutdown::PostParams {
        forcestop: Some(true),
        timeout: Some(value("timeout", &timeout_secs, i128::from(timeout_secs))?),
        ..Default::default()
    };
    record(container(on, vmid)?.status().shutdown().post(params))
}

/// Stops a container, by its halt signal within `timeout_secs`, and starts it again; replies with a task.
pub fn reboot(on: &HostName, vmid: Vmid, timeout_secs: u16) -> Built {
    let timeout = Some(value("timeout", &timeout_secs, i128::from(timeout_secs))?);
    record(container(on, vmid)?.status().reboot().post(reboot::PostParams { timeout, ..Default::default() }))
}

/// Removes a stopped container with its volumes and its entries in backup, replication and HA jobs; replies with a task.
pub fn destroy(on: &HostName, vmid: Vmid) -> Built {
    let params = DeleteParams { purge: Some(true), ..Default::default() };
    record(container(on, vmid)?.delete(params))
}

/// Puts a container under high availability.
pub fn ha_add(vmid: Vmid) -> Request {
    Request::new(Method::Post, "/cluster/ha/resources").with("sid", format!("ct:{vmid}")).with("state", "started")
}

/// Takes a container out of high availability and of the rules it is named in.
pub fn ha_remove(vmid: Vmid) -> Request {
    Request::new(Method::Delete, format!("/cluster/ha/resources/ct:{vmid}"))
}

/// The rules of the high availability manager (PVE 9.0+).
pub fn ha_rules() -> Request {
    Request::new(Method::Get, "/cluster/ha/rules")
}

/// Makes a rule that keeps resources on different hosts.
pub fn ha_rule_add(name: &str, resources: &[String]) -> Request {
    apart(Request::new(Method::Post, "/cluster/ha/rules").with("rule", name).with("comment", "kept by pvemesh"), resources)
}

/// Has such a rule name these resources.
pub fn ha_rule_set(name: &str, resources: &[String]) -> Request {
    apart(Request::new(Method::Put, format!("/cluster/ha/rules/{name}")), resources)
}

fn apart(request: Request, resources: &[String]) -> Request {
    request.with("type", "resource-affinity").with("affinity", "negative").with("resources", resources.join(","))
}

/// How a task stands.
pub fn task_status(task: &Upid) -> Built {
    record(host(task.host()).tasks().upid(task.as_str()).status().get())
}

/// A task's log from line `from` (counted from 0), at most `lines` of it.
pub fn task_log(task: &Upid, from: u64, lines: u32) -> Built {
    let params = LogParams {
        start: Some(value("start", &from, i128::from(from))?),
        limit: Some(value("limit", &lines, i128::from(lines))?),
        ..Default::default()
    };
    record(host(task.host()).tasks().upid(task.as_str()).log().get(params))
}

/// Stops a task.
pub fn stop_task(task: &Upid) -> Built {
    record(host(task.host()).tasks().upid(task.as_str()).delete())
}

#[cfg(test)]
mod tests {
    use super::super::{Ipv4Config, Ipv6Config};
    use super::*;

    fn pve() -> HostName {
        "pve".parse().unwrap()
    }

    fn vmid() -> Vmid {
        "101".parse().unwrap()
    }

    #[test]
    fn a_new_container_says_everything_it_depends_on() {
        let new = NewContainer {
            vmid: vmid(),
            template: "local:vztmpl/pvemesh-0.1.0-0123456789ab.tar.gz".parse().unwrap(),
            root: RootVolume { storage: "local-lvm".parse().unwrap(), mebibytes: 256 },
            hostname: "exit-1".parse().unwrap(),
            arch: Arch::Amd64,
            cores: 2,
            memory: 64,
            network: NetworkInterface {
                name: "eth0".to_owned(),
                bridge: "vmbr0".parse().unwrap(),
                ipv4: Ipv4Config::Dhcp,
                ipv6: Ipv6Config::Auto,
                firewall: false,
            },
            device: Some(Device::Tun),
            tags: vec!["pvemesh".parse().unwrap(), "exit-node".parse().unwrap()],
            notes: "made by pvemesh".to_owned(),
        };
        assert_eq!(
            create(&pve(), &new).unwrap().to_string(),
            "POST /nodes/pve/lxc arch=amd64 cmode=console cores=2 description=\"made by pvemesh\" dev0=/dev/net/tun hostname=exit-1 memory=64 \
             net0=name=eth0,bridge=vmbr0,firewall=0,ip=dhcp,ip6=auto,type=veth onboot=1 ostemplate=local:vztmpl/pvemesh-0.1.0-0123456789ab.tar.gz \
             ostype=unmanaged rootfs=local-lvm:0.25 swap=0 tags=pvemesh;exit-node unprivileged=1 vmid=101"
        );
        let error = create(&pve(), &NewContainer { memory: 8, ..new }).unwrap_err().to_string();
        assert!(error.starts_with("memory cannot be `8`"), "{error}");
    }

    #[test]
    fn calls_have_the_paths_and_parameters_of_the_schema() {
        let task: Upid = "UPID:pve:00003B61:00050BD6:6B02A9D3:vzcreate:190:root@pam!tb:".parse().unwrap();
        let volume: VolumeId = "local:vztmpl/x.tar.gz".parse().unwrap();
        for (request, text) in [
            (version(), "GET /version"),
            (host_version(&pve()), "GET /nodes/pve/version"),
            (hosts(), "GET /nodes"),
            (guests(), "GET /cluster/resources type=vm"),
            (Ok(containers(&pve())), "GET /nodes/pve/lxc"),
            (storages(&pve()), "GET /nodes/pve/storage enabled=1"),
            (bridges(&pve()), "GET /nodes/pve/network type=any_bridge"),
            (templates(&pve(), volume.storage()), "GET /nodes/pve/storage/local/content content=vztmpl"),
            (delete_volume(&pve(), &volume, 10), "DELETE /nodes/pve/storage/local/content/local:vztmpl/x.tar.gz delay=10"),
            (container_config(&pve(), vmid()), "GET /nodes/pve/lxc/101/config"),
            (container_status(&pve(), vmid()), "GET /nodes/pve/lxc/101/status/current"),
            (interfaces(&pve(), vmid()), "GET /nodes/pve/lxc/101/interfaces"),
            (set_notes(&pve(), vmid(), "x", None), "PUT /nodes/pve/lxc/101/config description=x"),
            (set_notes(&pve(), vmid(), "x", Some("d1")), "PUT /nodes/pve/lxc/101/config description=x digest=d1"),
            (set_environment(&pve(), vmid(), "K", &Secret::new("v")), "PUT /nodes/pve/lxc/101/config env=(secret)"),
            (clear_environment(&pve(), vmid()), "PUT /nodes/pve/lxc/101/config delete=env"),
            (start(&pve(), vmid()), "POST /nodes/pve/lxc/101/status/start"),
            (stop(&pve(), vmid()), "POST /nodes/pve/lxc/101/status/stop"),
            (shutdown(&pve(), vmid(), 10), "POST /nodes/pve/lxc/101/status/shutdown forceStop=1 timeout=10"),
            (reboot(&pve(), vmid(), 10), "POST /nodes/pve/lxc/101/status/reboot timeout=10"),
            (set_open_environment(&pve(), vmid(), "K", "v"), "PUT /nodes/pve/lxc/101/config env=K=v"),
            (
                Ok(set_values(&pve(), vmid(), &[("memory", "96".to_owned())].into(), Some("abc"))),
                "PUT /nodes/pve/lxc/101/config digest=abc memory=96",
            ),
            (
                Ok(put_back(&pve(), vmid(), &[("memory".to_owned(), "64".to_owned())].into(), &["dev0".to_owned()])),
                "PUT /nodes/pve/lxc/101/config delete=dev0 memory=64",
            ),
            (destroy(&pve(), vmid()), "DELETE /nodes/pve/lxc/101 purge=1"),
            (task_status(&task), "GET /nodes/pve/tasks/UPID:pve:00003B61:00050BD6:6B02A9D3:vzcreate:190:root@pam!tb:/status"),
            (
                task_log(&task, 7, 50),
                "GET /nodes/pve/tasks/UPID:pve:00003B61:00050BD6:6B02A9D3:vzcreate:190:root@pam!tb:/log limit=50 start=7",
            ),
            (stop_task(&task), "DELETE /nodes/pve/tasks/UPID:pve:00003B61:00050BD6:6B02A9D3:vzcreate:190:root@pam!tb:"),
        ] {
            assert_eq!(request.unwrap().to_string(), text);
        }
    }

    #[test]
    fn notes_longer_than_proxmox_takes_are_refused() {
        assert!(set_notes(&pve(), vmid(), &"x".repeat(8193), None).is_err());
    }

    #[test]
    fn an_environment_cannot_smuggle_a_second_line() {
        assert!(set_environment(&pve(), vmid(), "K", &Secret::new("a\nlxc.x = y")).is_err());
        assert!(set_environment(&pve(), vmid(), "K", &Secret::new("a\0B=c")).is_err());
    }
}
