//! The steps that make one guest.

use super::delivery::Delivery;
use super::image::{IMAGE_END, IMAGE_STEM, Image};
use super::tun::Tun;
use super::{ADDRESS_LIMIT, CREATE_LIMIT, DELETE_LIMIT, INTERFACE, KEY_LIFE, ONLINE_LIMIT, OWNER, START_LIMIT, exit_routes};
use crate::ident::{NodeId, NodeName};
use crate::plan::choose::{self, Place};
use crate::plan::golden::Golden;
use crate::plan::mark::{RunId, TAG};
use crate::plan::observed::{Hookscript, Observed};
use crate::plan::options::{self, DEFAULT_CORES, DEFAULT_MEMORY, GuestOptions, Join, NodeKind, ROOT_VOLUME, Role};
use crate::plan::refusal::Refusal;
use crate::plan::render::{self, Notes};
use crate::plan::step::{Action, Step, TunEdit, Undo};
use crate::pve::call::{self, NewContainer};
use crate::pve::{Device, Ipv4Config, Ipv6Config, NetworkInterface, RootVolume, Tag, VolumeId, machine};
use crate::settings::{DEFAULT_COORDINATOR_PORT, Guest, Ipv4Setup, Ipv6Setup};
use crate::wire::admin::CreateKey;

/// What the steps of one guest are made from.
pub(super) struct Maker<'a> {
    pub(super) options: &'a GuestOptions,
    pub(super) role: &'a Role,
    pub(super) observed: &'a Observed,
    pub(super) image: &'a Image,
    pub(super) run: RunId,
    pub(super) place: &'a Place,
    pub(super) name: &'a NodeName,
    /// What it is cloned from, if not unpacked from the image.
    pub(super) golden: Option<&'a Golden>,
    pub(super) tun: Tun,
}

impl Maker<'_> {
    /// All of them, in order.
    pub(super) fn steps(&self, delivery: Delivery) -> Result<Vec<Step>, Refusal> {
        let (host, vmid) = (&self.place.host, self.options.vmid);
        let guest = Box::new(self.guest());
        // Rendering may refuse; better now than after the first write.
        render::guest(&guest)?;
        let mut steps = Vec::new();
        steps.extend(self.mint_key());
        if let Some(golden) = self.golden {
            steps.extend(self.clone_steps(golden)?);
            steps.push(Step::plain("hand over the configuration", Action::Deliver { host: host.clone(), guest }));
        } else {
            self.push_container(&mut steps, delivery, guest)?;
        }
        let start = call::start(host, vmid)?;
        steps.push(Step {
            title: format!("start container {vmid}"),
            action: Action::Call { request: start, task: Some(START_LIMIT) },
            undo: self.undo_node(),
        });
        self.push_waits(&mut steps);
        if delivery == Delivery::Environment {
            let request = call::clear_environment(host, vmid)?;
            steps.push(Step::plain("take the configuration back", Action::Call { request, task: None }));
        }
        let finish = Action::Finish { host: host.clone(), notes: Box::new(self.notes()), mark: self.mark(true) };
        steps.push(Step::plain("write the notes", finish));
        Ok(steps)
    }

    /// The container as unpacked from an image, up to where its configuration is handed over.
    fn push_container(&self, steps: &mut Vec<Step>, delivery: Delivery, guest: Box<Guest>) -> Result<(), Refusal> {
        let (host, vmid) = (&self.place.host, self.options.vmid);
        let template = match delivery {
            Delivery::Environment => {
                let there = choose::image_on(self.observed, self.place, &self.image.file);
                match there {
                    Some(volume) => volume,
                    None => {
                        let volume = self.volume(&self.image.file)?;
                        let undo = Undo::RemoveVolume { host: host.clone(), volume: volume.clone() };
                        let action = Action::Upload { host: host.clone(), volume: volume.clone() };
                        // First of all: it is the longest step, and the join key's time should not run meanwhile.
                        steps.insert(0, Step::undone_by("upload the image", action, undo));
                        volume
                    }
                }
            }
            Delivery::Image(_) => {
                let volume = self.volume(&format!("{IMAGE_STEM}{}-ct{vmid}-{}{IMAGE_END}", self.image.version, self.run))?;
                let undo = Undo::RemoveVolume { host: host.clone(), volume: volume.clone() };
                let action = Action::UploadPersonal { host: host.clone(), volume: volume.clone(), guest: guest.clone() };
                steps.push(Step::undone_by(format!("upload an image for {vmid}"), action, undo));
                volume
            }
        };
        let create = call::create(host, &self.container(template.clone())?)?;
        let undo = Undo::RemoveContainer { host: host.clone(), vmid, run: self.run };
        steps.push(Step::undone_by(
            format!("create container {vmid} on {host}"),
            Action::Call { request: create, task: Some(CREATE_LIMIT) },
            undo,
        ));
        if let (Role::Node { .. }, Hookscript::Ready(volume)) = (self.role, &self.observed.hookscript) {
            let request = machine::set_hookscript(machine::Guest { host, vmid, container: true }, Some(volume))?;
            steps.push(Step::plain("set its hook", Action::Call { request, task: None }));
        }
        match delivery {
            Delivery::Environment => {
                steps.push(Step::plain("hand over the configuration", Action::Deliver { host: host.clone(), guest }));
            }
            Delivery::Image(_) => {
                let request = call::delete_volume(host, &template, 15)?;
                steps.push(Step::plain("remove its image", Action::Call { request, task: Some(DELETE_LIMIT) }));
            }
        }
        if self.tun == Tun::Lines {
            let action = Action::EditTun { host: host.clone(), vmid, edit: TunEdit::Lines };
            steps.push(Step::plain("write the lines for /dev/net/tun", action));
        }
        Ok(())
    }

    fn volume(&self, file: &str) -> Result<VolumeId, Refusal> {
        VolumeId::template(&self.place.template_storage, file)
            .map_err(|e| Refusal::Option(options::OptionError::new("the image's name", e)))
    }

    fn mint_key(&self) -> Option<Step> {
        let Role::Node { kind, join: Join::Ours(_), .. } = self.role else { return None };
        let approve_routes = match kind {
            NodeKind::Member => Vec::new(),
            NodeKind::ExitNode => exit_routes(),
            NodeKind::SubnetRouter { routes, .. } => routes.clone(),
        };
        let key = CreateKey {
            user: OWNER.to_owned(),
            reusable: false,
            ephemeral: false,
            expires_in_secs: KEY_LIFE.as_secs(),
            tags: vec![format!("tag:{}", self.role.name())],
            approve_routes,
            only_for: Some(self.name.clone()),
            address: None,
        };
        Some(Step::undone_by(format!("make a join key for {}", self.name), Action::MintKey(key), Undo::RevokeKey { id: None }))
    }

    /// The node that the guest may have become at our coordinator once it was started.
    fn undo_node(&self) -> Option<Undo> {
        match self.role {
            Role::Node { join: Join::Ours(_), .. } => {
                let before: Vec<NodeId> = self.observed.mesh.iter().map(|(id, _)| *id).collect();
                Some(Undo::RemoveNode { name: self.name.clone(), before, key: None })
            }
            _ => None,
        }
    }

    fn push_waits(&self, steps: &mut Vec<Step>) {
        let (host, vmid, name) = (self.place.host.clone(), self.options.vmid, self.name.clone());
        match self.role {
            Role::Coordinator { url, .. } => {
                let expected = match self.options.lan.new_ipv4() {
                    Ipv4Setup::Fixed(net) => Some(net.addr().into()),
                    Ipv4Setup::Dhcp | Ipv4Setup::None => None,
                };
                let action = Action::AwaitAddress { host, vmid, interface: INTERFACE.to_owned(), expected, limit: ADDRESS_LIMIT };
                steps.push(Step::plain("wait for its address", action));
                let action = Action::MeetCoordinator { vmid, port: DEFAULT_COORDINATOR_PORT, url: url.clone(), limit: ONLINE_LIMIT };
                steps.push(Step::undone_by("wait for the coordinator", action, Undo::ForgetCoordinator { vmid }));
            }
            Role::Relay { address, .. } => {
                let expected = match self.options.lan.new_ipv4() {
                    Ipv4Setup::Fixed(net) => Some(net.addr().into()),
                    Ipv4Setup::Dhcp | Ipv4Setup::None => None,
                };
                let action = Action::AwaitAddress { host, vmid, interface: INTERFACE.to_owned(), expected, limit: ADDRESS_LIMIT };
                steps.push(Step::plain("wait for its address", action));
                let undo = Undo::RemoveRelay { name: name.clone(), number: None };
                let action = Action::MeetRelay { name, address: address.clone(), limit: ONLINE_LIMIT };
                steps.push(Step::undone_by("wait for the relay and tell the mesh of it", action, undo));
            }
            Role::Node { join: Join::Ours(_), .. } => {
                steps.push(Step::plain(format!("wait for {name} to join"), Action::AwaitNode { name, limit: ONLINE_LIMIT }));
            }
            Role::Node { join: Join::Other { .. }, .. } => {
                steps.push(Step::plain(format!("wait for {name} to join"), Action::AwaitMeshAddress { host, vmid, limit: ONLINE_LIMIT }));
            }
        }
    }

    pub(super) fn tags(&self) -> Result<Vec<Tag>, Refusal> {
        let tag = |text: &str| text.parse::<Tag>().map_err(|e| Refusal::Option(options::OptionError::new("tag", e)));
        Ok(vec![tag(TAG)?, tag(self.role.name())?])
    }

    pub(super) fn interface(&self) -> NetworkInterface {
        let lan = &self.options.lan;
        NetworkInterface {
            name: INTERFACE.to_owned(),
            bridge: self.place.bridge.clone(),
            // Proxmox sets nothing up in an unmanaged system; it shows these to the admin.
            ipv4: match lan.new_ipv4() {
                Ipv4Setup::Dhcp => Ipv4Config::Dhcp,
                Ipv4Setup::Fixed(net) => Ipv4Config::Fixed(net, lan.gateway4),
                Ipv4Setup::None => Ipv4Config::Manual,
            },
            ipv6: match lan.new_ipv6() {
                Ipv6Setup::Auto => Ipv6Config::Auto,
                Ipv6Setup::Fixed(net) => Ipv6Config::Fixed(net, lan.gateway6),
                Ipv6Setup::None => Ipv6Config::Manual,
            },
            // With it, a second bridge per guest and a filter of forwarded sources would stand between the node and its LAN.
            firewall: false,
        }
    }

    fn container(&self, template: VolumeId) -> Result<NewContainer, Refusal> {
        Ok(NewContainer {
            vmid: self.options.vmid,
            template,
            root: RootVolume { storage: self.place.storage.clone(), mebibytes: ROOT_VOLUME },
            hostname: self.name.clone(),
            arch: self.image.arch,
            cores: self.options.cores.unwrap_or(DEFAULT_CORES),
            memory: self.options.memory.unwrap_or(DEFAULT_MEMORY),
            network: self.interface(),
            device: (self.tun == Tun::Device).then_some(Device::Tun),
            tags: self.tags()?,
            notes: self.mark(false).attach(&render::notes(&Notes { told: None, ..self.notes() })?),
        })
    }
}
