//! What each action of a plan does.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::calls::{follow, until, upload};
use super::{Carried, Images, StepError, Watch};
use crate::ident::{NodeName, Vmid, is_mesh_address};
use crate::plan::create::CONFIG_VARIABLE;
use crate::plan::identity::first_mac;
use crate::plan::mark::{Identity, Mark};
use crate::plan::options::KnownCoordinator;
use crate::plan::render::{self, Notes};
use crate::plan::{Action, RELAY_PORT, TunEdit, block, environment};
use crate::pve::reply::ContainerConfig;
use crate::pve::{ErrorKind, HostName, Request, call};
use crate::relay::region;
use crate::settings::{DEFAULT_STUN_PORT, Guest};
use crate::sys::config::Store;
use crate::sys::pve::deeds::{Doer, Known};
use crate::sys::pve::{Door, Executor, Inside, Mesh, changing, notes, observe};
use crate::wire::admin::NodeInfo;
use crate::wire::control::DerpRegion;

/// Performs the actions of one plan.
pub(super) struct Actor<'a> {
    pub(super) executor: &'a dyn Executor,
    pub(super) door: &'a dyn Door,
    pub(super) mesh: Option<&'a dyn Mesh>,
    pub(super) inside: Option<&'a dyn Inside>,
    pub(super) images: &'a dyn Images,
    pub(super) store: &'a Store,
    /// Calls that change something and have not returned.
    pub(super) under_way: &'a AtomicU32,
}

/// Counts while it lives.
struct UnderWay<'a>(&'a AtomicU32);

impl<'a> UnderWay<'a> {
    fn begin(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Actor<'_> {
    /// Performs one.
    pub(super) async fn act(&self, action: &Action, carried: &mut Carried, watch: &mut dyn Watch) -> Result<(), StepError> {
        match action {
            Action::Upload { host, volume } => {
                // With its task: what that one is about to store would be missed by whoever takes it back.
                let _counted = UnderWay::begin(self.under_way);
                upload(self.executor, (host, volume), self.images.shared(), watch).await
            }
            Action::UploadPersonal { host, volume, guest } => {
                let toml = render::guest(&with_key(guest, carried))?;
                let image = self.images.personal(&toml)?;
                let private = Removed(image.path.clone());
                let _counted = UnderWay::begin(self.under_way);
                let outcome = upload(self.executor, (host, volume), &image, watch).await;
                drop(private);
                outcome
            }
            Action::MintKey(wanted) => {
                let made = self.mesh()?.create_key(wanted).await?;
                (carried.minted, carried.key) = (Some(made.id), Some(made.id));
                carried.join_key = Some(made.key);
                Ok(())
            }
            Action::Call { request, task } => self.call(request, *task, watch).await,
            Action::EditTun { host, vmid, edit } => self.edit_tun(host.clone(), *vmid, *edit).await,
            Action::Deliver { host, guest } => {
                let content = environment(&with_key(guest, carried))?;
                let request = call::set_environment(host, guest.vmid, CONFIG_VARIABLE, &content)?;
                self.call(&request, None, watch).await
            }
            Action::Redeliver { host, guest } => changing::redeliver(self.executor, host, guest, watch).await,
            Action::ApproveRoutes { name, add, remove } => changing::approve_routes(self.mesh()?, name, add, remove).await,
            Action::RenameNode { from, to } => changing::rename_node(self.mesh()?, from, to).await,
            Action::AwaitAddress { host, vmid, interface, expected, limit } => {
                carried.findings.lan_address = Some(self.lan_address(host, *vmid, interface, *expected, *limit).await?);
                Ok(())
            }
            Action::MeetCoordinator { vmid, port, url, limit } => {
                let address = carried.findings.lan_address.ok_or(StepError::Missing("the coordinator's address is not known"))?;
                let lan_url = format!("http://{}", std::net::SocketAddr::new(address, *port));
                let known = self.meet(*vmid, lan_url, url.as_ref(), *limit).await?;
                self.store.remember(known.clone())?;
                carried.findings.coordinator = Some(known);
                Ok(())
            }
            Action::MeetRelay { name, address, limit } => {
                let own = carried.findings.lan_address.ok_or(StepError::Missing("the relay's address is not known"))?;
                let region = self.meet_relay(name, own, address.as_deref(), *limit).await?;
                carried.relayed = Some(self.mesh()?.add_relay(&region).await?.region_id);
                Ok(())
            }
            Action::AwaitNode { name, limit } => {
                let (mesh, key) = (self.mesh()?, carried.key);
                carried.findings.mesh_addresses = until(*limit, || async {
                    let nodes = mesh.nodes().await?;
                    match nodes.into_iter().find(|node| joined_as(node, name, key)) {
                        Some(node) if node.name != *name => Err(StepError::NameLost { wanted: name.clone(), given: node.name }),
                        Some(node) if node.online => Ok(Ok(node.addresses)),
                        Some(_) => Ok(Err("it has joined but is not connected".to_owned())),
                        None => Ok(Err("the coordinator has not heard of it; its console in Proxmox shows why".to_owned())),
                    }
                })
                .await?;
                Ok(())
            }
            Action::AwaitMeshAddress { host, vmid, limit } => {
                carried.findings.mesh_addresses = until(*limit, || async {
                    let all = match observe::interfaces(self.executor, host, *vmid).await {
                        // Before 8.1 nobody tells, and this coordinator is none that we could ask.
                        Err(error) if error.kind() == Some(ErrorKind::NotSupported) => return Ok(Ok(Vec::new())),
                        all => all?,
                    };
                    let mesh: Vec<IpAddr> =
                        all.iter().flat_map(|i| &i.addresses).map(ipnet::IpNet::addr).filter(|a| is_mesh_address(*a)).collect();
                    Ok(if mesh.is_empty() {
                        Err("it has no address of the mesh yet; its console in Proxmox shows why".to_owned())
                    } else {
                        Ok(mesh)
                    })
                })
                .await?;
                Ok(())
            }
            Action::AwaitTemplate { host, vmid, limit } => {
                until(*limit, || async {
                    let config = observe::container_config(self.executor, host, *vmid).await?;
                    let done = config.is_some_and(|c| c.lock.is_none() && c.values.get("template").is_some_and(|flag| flag == "1"));
                    Ok(if done { Ok(()) } else { Err("it is not a template yet; the task's log in Proxmox says why".to_owned()) })
                })
                .await
            }
            Action::Finish { host, notes, mark } => self.finish(host, notes, mark, carried, watch).await,
            Action::RemoveNode(name) => {
                let mesh = self.mesh()?;
                for node in mesh.nodes().await?.into_iter().filter(|node| node.name == *name) {
                    mesh.delete_node(node.id).await?;
                }
                Ok(())
            }
            Action::RemoveRelay(name) => {
                let mesh = self.mesh()?;
                for region in mesh.relays().await?.into_iter().filter(|region| region.region_code == name.as_str()) {
                    mesh.remove_relay(region.region_id).await?;
                }
                Ok(())
            }
            Action::ForgetCoordinator(vmid) => Ok(self.store.forget(*vmid)?),
            Action::Inside(action) => {
                let Carried { join_key, successor, findings, .. } = carried;
                let known = Known { join_key: join_key.as_ref(), addresses: &findings.mesh_addresses, successor };
                Doer { executor: self.executor, inside: self.inside, mesh: self.mesh }.act(action, known).await
            }
        }
    }

    fn mesh(&self) -> Result<&dyn Mesh, StepError> {
        self.mesh.ok_or(StepError::Missing("the coordinator is not known"))
    }

    async fn call(&self, request: &Request, task: Option<Duration>, watch: &mut dyn Watch) -> Result<(), StepError> {
        let value = {
            let _counted = UnderWay::begin(self.under_way);
            self.executor.call(request).await?
        };
        follow(self.executor, &value, task, watch).await
    }

    async fn edit_tun(&self, host: HostName, vmid: Vmid, edit: TunEdit) -> Result<(), StepError> {
        let files = self.executor.guest_configs().ok_or(StepError::Missing("the host's files are out of reach"))?.clone();
        let edited = tokio::task::spawn_blocking(move || files.edit(&host, vmid, |text| edit.apply(text))).await;
        edited.map_err(|_| StepError::Missing("the edit of a host's file was given up"))??;
        Ok(())
    }

    async fn lan_address(
        &self,
        host: &HostName,
        vmid: Vmid,
        interface: &str,
        expected: Option<IpAddr>,
        limit: Duration,
    ) -> Result<IpAddr, StepError> {
        until(limit, || async {
            let all = match (observe::interfaces(self.executor, host, vmid).await, expected) {
                // Before 8.1 nobody tells; what was asked for must do.
                (Err(error), Some(wanted)) if error.kind() == Some(ErrorKind::NotSupported) => return Ok(Ok(wanted)),
                (all, _) => all?,
            };
            let Some(there) = all.iter().find(|i| i.name == interface) else { return Ok(Err(format!("{interface} is not there yet"))) };
            let usable = |address: &IpAddr| match address {
                IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback(),
                IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
            };
            let mut addresses: Vec<IpAddr> = there.addresses.iter().map(ipnet::IpNet::addr).filter(usable).collect();
            // IPv4 first: every home LAN has it.
            addresses.sort_by_key(|address| address.is_ipv6());
            Ok(match expected {
                Some(wanted) if addresses.contains(&wanted) => Ok(wanted),
                Some(wanted) => Err(format!("{interface} does not have {wanted} yet")),
                None => addresses
                    .first()
                    .copied()
                    .ok_or_else(|| format!("{interface} got no address; is there a DHCP server on this bridge? --ip sets a fixed one")),
            })
        })
        .await
    }

    async fn meet(&self, vmid: Vmid, lan_url: String, url: Option<&String>, limit: Duration) -> Result<KnownCoordinator, StepError> {
        let server_key = until(limit, || async {
            Ok(match self.door.open(&lan_url, None).await {
                Ok(mesh) => mesh.info().await.map(|info| info.server_key).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            })
        })
        .await?;
        let url = url.cloned().unwrap_or_else(|| lan_url.clone());
        Ok(KnownCoordinator { vmid: Some(vmid), lan_url, url, server_key })
    }

    /// The region of a new relay, with the certificate it shows. Clients that are not on the LAN reach it under `address`, if there is one.
    async fn meet_relay(&self, name: &NodeName, own: IpAddr, address: Option<&str>, limit: Duration) -> Result<DerpRegion, StepError> {
        let host = address.unwrap_or(name.as_str());
        let socket = std::net::SocketAddr::new(own, RELAY_PORT);
        let pin = until(limit, || async { Ok(self.door.meet_relay(socket, host).await.map_err(|e| e.to_string())) }).await?;
        let mut region = region::with_one_relay(0, host, RELAY_PORT, Some(DEFAULT_STUN_PORT), Some(&pin));
        (region.region_code, region.region_name) = (name.to_string(), name.to_string());
        if address.is_none() {
            for node in &mut region.nodes {
                region::place_at(node, own);
            }
        }
        Ok(region)
    }

    async fn finish(&self, host: &HostName, notes: &Notes, mark: &Mark, carried: &Carried, watch: &mut dyn Watch) -> Result<(), StepError> {
        let mut text = render::notes(notes)?;
        for address in carried.findings.lan_address.iter().chain(&carried.findings.mesh_addresses) {
            let place = if is_mesh_address(*address) { "in the mesh" } else { "on the LAN" };
            text.push_str(&format!("\n- address {place}: `{address}`"));
        }
        // What tells the guest from a copy of it is known only now that Proxmox has made it.
        let v4 = carried.findings.mesh_addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) if self.mesh.is_some() => Some(*v4),
            _ => None,
        });
        let compose = |config: &ContainerConfig| {
            let identity = Identity { mac: first_mac(config), address: v4.or(mark.identity.address), ..mark.identity };
            block::replaced(&config.description, &text, &Mark { identity, ..mark.clone() })
        };
        notes::rewrite(self.executor, host, mark.vmid, &compose, watch).await
    }
}

fn with_key(guest: &Guest, carried: &Carried) -> Guest {
    let mut guest = guest.clone();
    if let (Some(node), Some(key)) = (guest.node.as_mut(), carried.join_key.clone()) {
        node.auth_key = Some(key);
    }
    guest
}

/// Whether a node is the one that joined with our key: two runs at once may have the same name in mind, and the coordinator gives it to one.
/// An older coordinator does not say by which key, and then it is the name.
pub(in crate::sys::pve) fn joined_as(node: &NodeInfo, name: &NodeName, key: Option<i64>) -> bool {
    match (node.join_key, key) {
        (Some(with), Some(ours)) => with == ours,
        _ => node.name == *name,
    }
}

/// Removes a file when dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
