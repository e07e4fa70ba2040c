//! Making a guest: from what is wanted and what is there to the steps, or to the reason why not.

use std::time::Duration;

use super::choose::{self, Choice, Place};
use super::lan;
use super::mark::{Mark, RunId, TAG};
use super::observed::{Observed, Target};
use super::options::{GuestOptions, Join, NodeKind, ROOT_VOLUME, Role};
use super::refusal::Refusal;
use super::render::{self, Notes};
use super::step::{Action, RELAY_PORT, Step, Undo};
use crate::ident::{NodeId, NodeName, Vmid};
use crate::pve::call::{self, Arch, NewContainer};
use crate::pve::{Device, HostName, Identity, Ipv4Config, Ipv6Config, NetworkInterface, RootVolume, Tag, Version, VolumeId};
use crate::settings::{self, DEFAULT_COORDINATOR_PORT, DEFAULT_PORT, Guest, Ipv4Setup, Ipv6Setup, Network};
use crate::wire::admin::CreateKey;

/// Name of the environment variable that carries a guest's configuration to its init.
pub const CONFIG_VARIABLE: &str = "PVEMESH_CONFIG";
/// Whose nodes the guests made here are, at our coordinator.
pub const OWNER: &str = "pvemesh";
/// A join key's life: long enough for a slow host to upload, unpack and boot.
const KEY_LIFE: Duration = Duration::from_secs(15 * 60);
/// Limits of the waits; each many times what a small host needs.
const CREATE_LIMIT: Duration = Duration::from_secs(300);
const START_LIMIT: Duration = Duration::from_secs(90);
const DELETE_LIMIT: Duration = Duration::from_secs(60);
const ADDRESS_LIMIT: Duration = Duration::from_secs(60);
const ONLINE_LIMIT: Duration = Duration::from_secs(90);
const INTERFACE: &str = "eth0";

/// The appliance image that would be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its file name, which holds a hash of its content: the same name is the same image.
    pub file: String,
    /// The architecture of the program in it.
    pub arch: Arch,
    /// The version of the program in it.
    pub version: String,
}

impl Image {
    /// The image of a version with this content.
    pub fn new(version: &str, sha256_hex: &str, arch: Arch) -> Self {
        let file = format!("{IMAGE_STEM}{version}-{}{IMAGE_END}", sha256_hex.get(..12).unwrap_or(sha256_hex));
        Self { file, arch, version: version.to_owned() }
    }

    /// Whether a template was uploaded by us.
    pub fn is_ours(file: &str) -> bool {
        file.starts_with(IMAGE_STEM) && file.ends_with(IMAGE_END)
    }
}

const IMAGE_STEM: &str = "pvemesh-";
const IMAGE_END: &str = ".tar.gz";

/// What to do.
#[derive(Debug)]
pub enum Outcome {
    /// Everything is there already.
    AlreadyThere(Existing),
    /// These steps.
    Plan(Plan),
}

/// A guest of ours that is there and complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// Its number.
    pub vmid: Vmid,
    /// Where it is.
    pub host: HostName,
    /// Its name.
    pub name: NodeName,
    /// Running; if not, starting it is what is left to do.
    pub running: bool,
}

/// The steps that bring a complete guest up again and, for a coordinator this machine does not know, learn its address and key.
///
/// # Errors
/// If a request cannot be built.
pub fn revive(existing: &Existing, role: &Role, is_known: bool, run: RunId) -> Result<Plan, Refusal> {
    let (host, vmid) = (&existing.host, existing.vmid);
    let mut steps = Vec::new();
    if !existing.running {
        let request = call::start(host, vmid)?;
        steps.push(Step::plain(format!("start container {vmid}"), Action::Call { request, task: Some(START_LIMIT) }));
    }
    if let Role::Coordinator { url, .. } = role
        && !is_known
    {
        let (host, interface) = (host.clone(), INTERFACE.to_owned());
        let action = Action::AwaitAddress { host, vmid, interface, expected: None, limit: ADDRESS_LIMIT };
        steps.push(Step::plain("look up its address", action));
        let action = Action::MeetCoordinator { vmid, port: DEFAULT_COORDINATOR_PORT, url: url.clone(), limit: ONLINE_LIMIT };
        steps.push(Step::plain("meet the coordinator", action));
    }
    Ok(Plan { vmid, name: existing.name.clone(), role: role.name(), host: host.clone(), run, choices: Vec::new(), steps })
}

/// The steps that make a guest.
#[derive(Debug)]
pub struct Plan {
    /// The guest's number.
    pub vmid: Vmid,
    /// Its name.
    pub name: NodeName,
    /// Its role's name.
    pub role: &'static str,
    /// Where it goes.
    pub host: HostName,
    /// The run this is.
    pub run: RunId,
    /// What was decided and why.
    pub choices: Vec<Choice>,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// Plans the making of a guest.
///
/// # Errors
/// With the first reason why nothing should be begun.
pub fn create(options: &GuestOptions, role: &Role, observed: &Observed, image: &Image, run: RunId) -> Result<Outcome, Refusal> {
    if let Some(existing) = existing(options, role, observed)? {
        return Ok(Outcome::AlreadyThere(existing));
    }
    if role.needs_tun() && !observed.identity.is_root() {
        let host = options.host.as_ref().map_or_else(|| "NODE".to_owned(), ToString::to_string);
        return Err(Refusal::NeedsRoot { identity: observed.identity.clone(), host });
    }
    let place = choose::place(options, observed, &image.file)?;
    let version = observed.host(&place.host).and_then(|host| host.version).unwrap_or(Version::new(0, 0, 0));
    if role.needs_tun() && version < Version::DEVICES {
        return Err(Refusal::TooOld { host: place.host, version, needed: Version::DEVICES });
    }
    let (role, route) = lan::resolved(role, options, &place, observed)?;
    let (name, why_name) = choose::name(options, &role, observed)?;
    let delivery = Delivery::choose(&observed.identity, version);
    let mut choices = vec![Choice { what: "name", value: name.to_string(), why: why_name }];
    choices.extend(place.reasons.iter().cloned());
    choices.push(Choice { what: "address", value: address_words(options), why: address_why(options).to_owned() });
    choices.extend(route);
    choices.push(delivery.reason());
    let maker = Maker { options, role: &role, observed, image, run, place: &place, name: &name };
    let steps = maker.steps(delivery)?;
    Ok(Outcome::Plan(Plan { vmid: options.vmid, name, role: role.name(), host: place.host.clone(), run, choices, steps }))
}

/// What is there under the number: nothing, the very guest wanted, or something in the way.
fn existing(options: &GuestOptions, role: &Role, observed: &Observed) -> Result<Option<Existing>, Refusal> {
    let vmid = options.vmid;
    let Some(target) = &observed.target else {
        return match observed.guest(vmid) {
            Some(guest) => Err(Refusal::VmidInUse { vmid, name: guest.name.clone(), host: guest.host.clone() }),
            None => Ok(None),
        };
    };
    let Some(mark) = Mark::of_container(vmid, &target.config) else {
        return Err(foreign(vmid, target, observed));
    };
    if mark.role != role.name() {
        return Err(Refusal::OtherRole { vmid, is: mark.role, wanted: role.name() });
    }
    if let Some(wanted) = options.name.as_ref().filter(|wanted| **wanted != mark.name) {
        return Err(Refusal::OtherName { vmid, is: mark.name.to_string(), wanted: wanted.to_string() });
    }
    if !mark.ready {
        return Err(Refusal::Unfinished { vmid });
    }
    Ok(Some(Existing { vmid, host: target.host.clone(), name: mark.name, running: target.running }))
}

fn foreign(vmid: Vmid, target: &Target, observed: &Observed) -> Refusal {
    if let Some(lock) = target.config.lock.clone().filter(|lock| lock == "create") {
        return Refusal::Locked { vmid, lock };
    }
    let listed = observed.guest(vmid).map(|guest| guest.name.clone());
    let name = target.config.hostname.clone().or(listed).unwrap_or_default();
    Refusal::VmidInUse { vmid, name, host: target.host.clone() }
}

/// How the configuration reaches the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// In the environment of its init (PVE 9.1+); one image serves all guests.
    Environment,
    /// In an image of its own, removed as soon as it is unpacked.
    Image(&'static str),
}

impl Delivery {
    fn choose(identity: &Identity, version: Version) -> Self {
        if version < Version::ENVIRONMENT {
            Self::Image("this Proxmox VE has no `env` yet, it came with 9.1")
        } else if *identity == Identity::RootHost {
            Self::Image("pvesh would show a join key in the process list")
        } else {
            Self::Environment
        }
    }

    fn reason(self) -> Choice {
        let (value, why) = match self {
            Self::Environment => ("environment of the container's init", "it is removed again as soon as the guest has read it"),
            Self::Image(why) => ("an image of its own, removed after use", why),
        };
        Choice { what: "configuration", value: value.to_owned(), why: why.to_owned() }
    }
}

fn address_words(options: &GuestOptions) -> String {
    match options.lan.ipv4 {
        Ipv4Setup::Dhcp => "dhcp".to_owned(),
        Ipv4Setup::Fixed(net) => net.to_string(),
        Ipv4Setup::None => "no IPv4".to_owned(),
    }
}

fn address_why(options: &GuestOptions) -> &'static str {
    match options.lan.ipv4 {
        Ipv4Setup::Dhcp => "unless given with --ip; reserve the lease in your router to keep it",
        Ipv4Setup::Fixed(_) | Ipv4Setup::None => "given with --ip",
    }
}

struct Maker<'a> {
    options: &'a GuestOptions,
    role: &'a Role,
    observed: &'a Observed,
    image: &'a Image,
    run: RunId,
    place: &'a Place,
    name: &'a NodeName,
}

impl Maker<'_> {
    fn steps(&self, delivery: Delivery) -> Result<Vec<Step>, Refusal> {
        let (host, vmid) = (&self.place.host, self.options.vmid);
        let guest = Box::new(self.guest());
        // Rendering may refuse; better now than after the first write.
        render::guest(&guest)?;
        let mut steps = Vec::new();
        steps.extend(self.mint_key());
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
        match delivery {
            Delivery::Environment => {
                steps.push(Step::plain("hand over the configuration", Action::Deliver { host: host.clone(), guest }));
            }
            Delivery::Image(_) => {
                let request = call::delete_volume(host, &template, 15)?;
                steps.push(Step::plain("remove its image", Action::Call { request, task: Some(DELETE_LIMIT) }));
            }
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

    fn volume(&self, file: &str) -> Result<VolumeId, Refusal> {
        VolumeId::template(&self.place.template_storage, file)
            .map_err(|e| Refusal::Option(super::options::OptionError::new("the image's name", e)))
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
                Some(Undo::RemoveNode { name: self.name.clone(), before })
            }
            _ => None,
        }
    }

    fn push_waits(&self, steps: &mut Vec<Step>) {
        let (host, vmid, name) = (self.place.host.clone(), self.options.vmid, self.name.clone());
        match self.role {
            Role::Coordinator { url, .. } => {
                let expected = match self.options.lan.ipv4 {
                    Ipv4Setup::Fixed(net) => Some(net.addr().into()),
                    Ipv4Setup::Dhcp | Ipv4Setup::None => None,
                };
                let action = Action::AwaitAddress { host, vmid, interface: INTERFACE.to_owned(), expected, limit: ADDRESS_LIMIT };
                steps.push(Step::plain("wait for its address", action));
                let action = Action::MeetCoordinator { vmid, port: DEFAULT_COORDINATOR_PORT, url: url.clone(), limit: ONLINE_LIMIT };
                steps.push(Step::undone_by("wait for the coordinator", action, Undo::ForgetCoordinator { vmid }));
            }
            Role::Relay { address, .. } => {
                let expected = match self.options.lan.ipv4 {
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

    fn container(&self, template: VolumeId) -> Result<NewContainer, Refusal> {
        let tag = |text: &str| text.parse::<Tag>().map_err(|e| Refusal::Option(super::options::OptionError::new("tag", e)));
        let lan = &self.options.lan;
        let network = NetworkInterface {
            name: INTERFACE.to_owned(),
            bridge: self.place.bridge.clone(),
            // Proxmox sets nothing up in an unmanaged system; it shows these to the admin.
            ipv4: match lan.ipv4 {
                Ipv4Setup::Dhcp => Ipv4Config::Dhcp,
                Ipv4Setup::Fixed(net) => Ipv4Config::Fixed(net, lan.gateway4),
                Ipv4Setup::None => Ipv4Config::Manual,
            },
            ipv6: match lan.ipv6 {
                Ipv6Setup::Auto => Ipv6Config::Auto,
                Ipv6Setup::Fixed(net) => Ipv6Config::Fixed(net, lan.gateway6),
                Ipv6Setup::None => Ipv6Config::Manual,
            },
            // With it, a second bridge per guest and a filter of forwarded sources would stand between the node and its LAN.
            firewall: false,
        };
        Ok(NewContainer {
            vmid: self.options.vmid,
            template,
            root: RootVolume { storage: self.place.storage.clone(), mebibytes: ROOT_VOLUME },
            hostname: self.name.clone(),
            arch: self.image.arch,
            cores: self.options.cores,
            memory: self.options.memory,
            network,
            device: self.role.needs_tun().then_some(Device::Tun),
            tags: vec![tag(TAG)?, tag(self.role.name())?],
            notes: self.mark(false).attach(&render::notes(&self.notes())?),
        })
    }

    fn mark(&self, ready: bool) -> Mark {
        Mark { vmid: self.options.vmid, role: self.role.name().to_owned(), name: self.name.clone(), run: self.run, ready }
    }

    fn notes(&self) -> Notes {
        let (coordinator, offers) = match self.role {
            Role::Coordinator { url, .. } => (url.clone().unwrap_or_else(|| self.own_url()), Vec::new()),
            Role::Relay { coordinator, .. } => (coordinator.lan_url.clone(), Vec::new()),
            Role::Node { kind, join, .. } => {
                let server = match join {
                    Join::Ours(known) => known.lan_url.clone(),
                    Join::Other { login_server, .. } => login_server.clone(),
                };
                let offers = match kind {
                    NodeKind::Member => Vec::new(),
                    NodeKind::ExitNode => exit_routes(),
                    NodeKind::SubnetRouter { routes, .. } => routes.clone(),
                };
                (server, offers)
            }
        };
        Notes {
            vmid: self.options.vmid,
            name: self.name.clone(),
            role: self.role.words().to_owned(),
            coordinator,
            offers,
            version: self.image.version.clone(),
        }
    }

    /// A coordinator's address if none was given: its fixed address, else its name (which a home router's DNS often knows).
    fn own_url(&self) -> String {
        match self.options.lan.ipv4 {
            Ipv4Setup::Fixed(net) => format!("http://{}:{DEFAULT_COORDINATOR_PORT}", net.addr()),
            Ipv4Setup::Dhcp | Ipv4Setup::None => format!("http://{}:{DEFAULT_COORDINATOR_PORT}", self.name),
        }
    }

    fn guest(&self) -> Guest {
        let lan = &self.options.lan;
        let network = Network {
            interface: INTERFACE.to_owned(),
            ipv4: lan.ipv4,
            gateway4: lan.gateway4,
            ipv6: lan.ipv6,
            gateway6: lan.gateway6,
            nameservers: lan.nameservers.clone(),
        };
        let mut guest = Guest { vmid: self.options.vmid, hostname: self.name.clone(), network, node: None, coordinator: None, relay: None };
        match self.role {
            Role::Coordinator { url, base_domain, admin_key, trusted_proxies } => {
                guest.coordinator = Some(settings::Coordinator {
                    url: url.clone().unwrap_or_else(|| self.own_url()),
                    listen: ([0, 0, 0, 0], DEFAULT_COORDINATOR_PORT).into(),
                    admin_keys: vec![*admin_key],
                    base_domain: base_domain.clone(),
                    front: settings::Front { trusted_proxies: trusted_proxies.clone(), ..settings::Front::default() },
                    relay: settings::EmbeddedRelay::default(),
                });
            }
            Role::Relay { coordinator, address } => {
                let all = |port| std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
                guest.relay = Some(settings::Relay {
                    // The certificate is made before the guest has an address; a name serves as well, for clients are told both.
                    hostname: address.clone().unwrap_or_else(|| self.name.to_string()),
                    verify_url: format!("{}/verify", coordinator.lan_url),
                    listen: all(RELAY_PORT),
                    stun: all(settings::DEFAULT_STUN_PORT),
                });
            }
            Role::Node { kind, join, endpoints, userspace } => {
                let (login_server, server_key, auth_key) = match join {
                    Join::Ours(known) => (known.lan_url.clone(), Some(known.server_key), None),
                    Join::Other { login_server, auth_key } => (login_server.clone(), None, Some(auth_key.clone())),
                };
                guest.node = Some(settings::Node {
                    login_server,
                    server_key,
                    auth_key,
                    port: DEFAULT_PORT,
                    endpoints: endpoints.clone(),
                    advertise_exit_node: *kind == NodeKind::ExitNode,
                    advertise_routes: if let NodeKind::SubnetRouter { routes, .. } = kind { routes.clone() } else { Vec::new() },
                    accept_routes: false,
                    accept_dns: true,
                    snat_subnet_routes: !matches!(kind, NodeKind::SubnetRouter { snat: false, .. }),
                    userspace: *userspace,
                    lan_gateway: matches!(kind, NodeKind::SubnetRouter { gateway: true, .. }),
                });
            }
        }
        guest
    }
}

pub(super) fn exit_routes() -> Vec<ipnet::IpNet> {
    vec![ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()]
}
