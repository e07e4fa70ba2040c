//! The golden container: a template with the TUN device and the image, made once by root, which API tokens clone for ever.
//!
//! Proxmox lets nobody but the literal `root@pam` pass a device through, but a clone takes `dev0` over from its original whoever makes it
//! (pve-container, clone_vm). The template has no interface of its own, so that a clone needs no right to a bridge it will not use.

use super::choose;
use super::create::{Image, Plan};
use super::mark::{Identity, Mark, RunId, TAG};
use super::observed::{Observed, Target};
use super::options::{DEFAULT_CORES, DEFAULT_MEMORY, GuestOptions, OptionError, ROOT_VOLUME};
use super::refusal::Refusal;
use super::step::{Action, Step, Undo};
use crate::ident::{NodeName, Vmid};
use crate::pve::call::{self, Arch, NewContainer};
use crate::pve::reply::ContainerConfig;
use crate::pve::{Device, HostName, Principal, RootVolume, Tag, Version, VolumeId, golden};

/// The role's name in marks and tags.
pub const ROLE: &str = "golden";
const NAME: &str = "pvemesh-golden";
const OPEN: &str = "<!-- pvemesh-image ";
const CLOSE: &str = " -->";
const CREATE_LIMIT: std::time::Duration = std::time::Duration::from_secs(300);
const DESTROY_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);
/// Converting renames a volume.
const TEMPLATE_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// A golden container that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Golden {
    /// Its number.
    pub vmid: Vmid,
    /// Where it is; its clones are made there.
    pub host: HostName,
    /// The architecture of the program in it.
    pub arch: Option<Arch>,
    /// The version of the program in it.
    pub version: String,
    /// The first digits of its image's hash.
    pub image: String,
    /// It is a template, and the run that made it came to its end.
    pub usable: bool,
}

impl Golden {
    /// Reads one from a container's configuration; `None` if the container is something else.
    pub fn read(vmid: Vmid, host: &HostName, config: &ContainerConfig) -> Option<Self> {
        let mark = Mark::of_container(vmid, config).filter(|mark| mark.role == ROLE)?;
        let inside = config.description.split(OPEN).nth(1)?.split(CLOSE).next()?;
        let value = |key: &str| inside.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')).map(ToOwned::to_owned);
        let arch = match config.values.get("arch").map(String::as_str) {
            Some("amd64") => Some(Arch::Amd64),
            Some("arm64") => Some(Arch::Arm64),
            _ => None,
        };
        let template = config.values.get("template").is_some_and(|flag| flag == "1");
        let usable = template && mark.ready && config.lock.is_none();
        Some(Self { vmid, host: host.clone(), arch, version: value("version")?, image: value("image")?, usable })
    }

    /// Why a guest with this image cannot be cloned from it; `None` if it can.
    pub fn unfit(&self, image: &Image) -> Option<String> {
        let (vmid, host) = (self.vmid, &self.host);
        if !self.usable {
            Some(format!("{vmid} on {host} is not finished (pvemesh image golden {vmid})"))
        } else if self.arch != Some(image.arch) {
            Some(format!("{vmid} on {host} is for another architecture"))
        } else if self.version != image.version {
            let (has, wanted) = (&self.version, &image.version);
            Some(format!("{vmid} on {host} has version {has}, this is {wanted} (as root: pvemesh image golden {vmid})"))
        } else {
            None
        }
    }
}

/// What to do.
#[derive(Debug)]
pub enum Outcome {
    /// It is there, with this very image.
    AlreadyThere(Golden),
    /// These steps.
    Plan(Plan),
}

/// Plans the making of a golden container, or its replacement by one with this image.
///
/// # Errors
/// With the first reason why nothing should be begun.
pub fn plan(options: &GuestOptions, observed: &Observed, image: &Image, run: RunId) -> Result<Outcome, Refusal> {
    if !observed.principal.is_root() {
        return Err(Refusal::GoldenNeedsRoot { principal: observed.principal.clone(), vmid: options.vmid });
    }
    let old = there(options.vmid, observed)?;
    if let Some((golden, target)) = &old
        && golden.image == image.digits()
        && golden.arch == Some(image.arch)
    {
        if golden.usable {
            return Ok(Outcome::AlreadyThere(golden.clone()));
        }
        if Mark::of_container(options.vmid, &target.config).is_some_and(|mark| mark.ready) {
            return finish_only(options.vmid, target, run).map(Outcome::Plan);
        }
    }
    // A replacement stays where its clones expect it.
    let at = old.as_ref().map(|(golden, _)| golden.host.clone());
    let placed = GuestOptions { host: options.host.clone().or(at), ..options.clone() };
    let place = choose::place(&placed, observed, choose::Source::Image(&image.file), &|_| Ok(()))?;
    let version = observed.host(&place.host).and_then(|host| host.version).unwrap_or(Version::new(0, 0, 0));
    if version < Version::ENVIRONMENT {
        return Err(Refusal::NoEnvironment { host: place.host, version });
    }
    let steps = steps(options, observed, image, run, &place, old.map(|(golden, _)| golden.host))?;
    let (vmid, name) = (options.vmid, NodeName::sanitised(NAME));
    Ok(Outcome::Plan(Plan {
        vmid,
        name,
        role: ROLE,
        host: place.host.clone(),
        run,
        choices: place.reasons,
        differences: Vec::new(),
        steps,
    }))
}

/// The golden container under the number, if one is there.
fn there(vmid: Vmid, observed: &Observed) -> Result<Option<(Golden, &Target)>, Refusal> {
    let Some(target) = &observed.target else {
        return match observed.guest(vmid) {
            Some(guest) => Err(Refusal::VmidInUse { vmid, name: guest.name.clone(), host: guest.host.clone() }),
            None => Ok(None),
        };
    };
    match (Golden::read(vmid, &target.host, &target.config), Mark::of_container(vmid, &target.config)) {
        (Some(golden), _) => Ok(Some((golden, target))),
        (None, Some(mark)) => Err(Refusal::OtherRole { vmid, is: mark.role, wanted: ROLE }),
        (None, None) => {
            let name = target.config.hostname.clone().unwrap_or_default();
            Err(Refusal::VmidInUse { vmid, name, host: target.host.clone() })
        }
    }
}

fn conversion(host: &HostName, vmid: Vmid) -> Result<[Step; 2], Refusal> {
    let request = golden::make_template(host, vmid)?;
    Ok([
        Step::plain(format!("turn {vmid} into a template"), Action::Call { request, task: None }),
        Step::plain("wait for the template", Action::AwaitTemplate { host: host.clone(), vmid, limit: TEMPLATE_LIMIT }),
    ])
}

/// Only the conversion is left: the run that made it was stopped before its last step.
fn finish_only(vmid: Vmid, target: &Target, run: RunId) -> Result<Plan, Refusal> {
    let steps = conversion(&target.host, vmid)?.into();
    let (name, host) = (NodeName::sanitised(NAME), target.host.clone());
    Ok(Plan { vmid, name, role: ROLE, host, run, choices: Vec::new(), differences: Vec::new(), steps })
}

fn steps(
    options: &GuestOptions,
    observed: &Observed,
    image: &Image,
    run: RunId,
    place: &choose::Place,
    old: Option<HostName>,
) -> Result<Vec<Step>, Refusal> {
    let (host, vmid) = (&place.host, options.vmid);
    let mut steps = Vec::new();
    let template = match choose::image_on(observed, place, &image.file) {
        Some(volume) => volume,
        None => {
            let volume = VolumeId::template(&place.template_storage, &image.file)
                .map_err(|e| Refusal::Option(OptionError::new("the image's name", e)))?;
            let undo = Undo::RemoveVolume { host: host.clone(), volume: volume.clone() };
            let action = Action::Upload { host: host.clone(), volume: volume.clone() };
            steps.push(Step::undone_by("upload the image", action, undo));
            volume
        }
    };
    if let Some(old) = old {
        let request = call::destroy(&old, vmid)?;
        let action = Action::Call { request, task: Some(DESTROY_LIMIT) };
        steps.push(Step::plain(format!("remove the golden container {vmid} of another version"), action));
    }
    let request = without_interface(call::create(host, &container(options, image, run, place, template)?)?);
    let undo = Undo::RemoveContainer { host: host.clone(), vmid, run };
    let action = Action::Call { request, task: Some(CREATE_LIMIT) };
    steps.push(Step::undone_by(format!("create container {vmid} on {host}"), action, undo));
    // Marked as finished before the conversion: a template can be told from a container, and the next run then only converts.
    let request = call::set_notes(host, vmid, &notes(vmid, image, run, true), None)?;
    steps.push(Step::plain("write the notes", Action::Call { request, task: None }));
    steps.extend(conversion(host, vmid)?);
    Ok(steps)
}

/// A clone gets its own interface, and is asked for no right to the template's; nothing starts a template with the host.
fn without_interface(mut request: crate::pve::Request) -> crate::pve::Request {
    request.params.remove("net0");
    request.params.remove("onboot");
    request
}

fn container(
    options: &GuestOptions,
    image: &Image,
    run: RunId,
    place: &choose::Place,
    template: VolumeId,
) -> Result<NewContainer, Refusal> {
    let tag = |text: &str| text.parse::<Tag>().map_err(|e| Refusal::Option(OptionError::new("tag", e)));
    Ok(NewContainer {
        vmid: options.vmid,
        template,
        root: RootVolume { storage: place.storage.clone(), mebibytes: ROOT_VOLUME },
        hostname: NodeName::sanitised(NAME),
        arch: image.arch,
        cores: options.cores.unwrap_or(DEFAULT_CORES),
        memory: options.memory.unwrap_or(DEFAULT_MEMORY),
        network: crate::pve::NetworkInterface {
            name: "eth0".to_owned(),
            bridge: place.bridge.clone(),
            ipv4: crate::pve::Ipv4Config::Manual,
            ipv6: crate::pve::Ipv6Config::Manual,
            firewall: false,
        },
        device: Some(Device::Tun),
        tags: vec![tag(TAG)?, tag(ROLE)?],
        notes: notes(options.vmid, image, run, false),
    })
}

fn notes(vmid: Vmid, image: &Image, run: RunId, ready: bool) -> String {
    let mark =
        Mark { vmid, role: ROLE.to_owned(), name: NodeName::sanitised(NAME), run, ready, identity: Identity::default(), fleet: None };
    let (version, digits) = (&image.version, image.digits());
    mark.attach(&format!(
        "# pvemesh golden container\n\nA template with `/dev/net/tun` and pvemesh {version}. `pvemesh create-*` clones it where an API token may \
         not pass the device through itself. Replace it with `pvemesh image golden {vmid}`, as root, when pvemesh is upgraded.\n\n\
         {OPEN}version={version} image={digits}{CLOSE}"
    ))
}

/// The golden container a guest is cloned from, for somebody who may not pass a device through; `Err` says of each one why it will not do.
pub(super) fn candidates<'o>(options: &GuestOptions, observed: &'o Observed, image: &Image) -> (Vec<&'o Golden>, Vec<String>) {
    let mut fit = Vec::new();
    let mut unfit = Vec::new();
    for golden in &observed.goldens {
        let view = observed.host(&golden.host);
        let version = view.and_then(|host| host.version);
        let why = if options.host.as_ref().is_some_and(|wanted| *wanted != golden.host) {
            Some(format!("{} is on {}", golden.vmid, golden.host))
        } else if !view.is_some_and(|host| host.online) {
            Some(format!("{} is on {}, which is offline", golden.vmid, golden.host))
        } else if version.is_none_or(|version| version < Version::ENVIRONMENT) {
            Some(format!("{} has no `env` yet, by which a clone gets its configuration: it came with 9.1", golden.host))
        } else {
            golden.unfit(image)
        };
        match why {
            None => fit.push(golden),
            Some(why) => unfit.push(why),
        }
    }
    (fit, unfit)
}

/// Whether somebody clones rather than creates, where both would do: a token needs fewer rights for a clone.
pub(super) fn clones(principal: &Principal) -> bool {
    !principal.is_root()
}
