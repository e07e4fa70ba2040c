//! Making a guest: from what is wanted and what is there to the steps, or to the reason why not.

mod cloning;
mod content;
mod delivery;
mod existing;
mod image;
mod maker;
mod tun;

pub use existing::{Existing, revive};
pub use image::Image;

use std::time::Duration;

use super::change::{self, Difference};
use super::choose::{self, Choice, Source};
use super::golden::{self, Golden};
use super::lan;
use super::mark::RunId;
use super::observed::{Hookscript, HostView, Observed};
use super::options::{GuestOptions, Role};
use super::refusal::Refusal;
use super::step::Step;
use crate::ident::{NodeName, Vmid};
use crate::pve::{HostName, Version};
use crate::settings::Ipv4Setup;

use delivery::Delivery;
use maker::Maker;
use tun::Tun;

/// Name of the environment variable that carries a guest's configuration to its init.
pub const CONFIG_VARIABLE: &str = "PVEMESH_CONFIG";
/// Whose nodes the guests made here are, at our coordinator.
pub const OWNER: &str = "pvemesh";
/// A join key's life: long enough for a slow host to upload, unpack and boot.
const KEY_LIFE: Duration = Duration::from_secs(15 * 60);
/// Limits of the waits; each many times what a small host needs.
const CREATE_LIMIT: Duration = Duration::from_secs(300);
pub(super) const START_LIMIT: Duration = Duration::from_secs(90);
const DELETE_LIMIT: Duration = Duration::from_secs(60);
pub(super) const ADDRESS_LIMIT: Duration = Duration::from_secs(60);
pub(super) const ONLINE_LIMIT: Duration = Duration::from_secs(90);
pub(super) const INTERFACE: &str = "eth0";

/// What to do.
#[derive(Debug)]
pub enum Outcome {
    /// Everything is there already.
    AlreadyThere(Existing),
    /// It is there, and these steps change what differs.
    Change(Plan),
    /// These steps.
    Plan(Plan),
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
    /// What is changed about a guest that is there; none for a new one.
    pub differences: Vec<Difference>,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether a way into the guest is needed for it.
    pub fn enters(&self) -> bool {
        self.steps.iter().any(|step| step.action.enters())
    }
}

/// Plans the making of a guest.
///
/// # Errors
/// With the first reason why nothing should be begun.
pub fn create(options: &GuestOptions, role: &Role, observed: &Observed, image: &Image, run: RunId) -> Result<Outcome, Refusal> {
    if let Some((existing, target)) = existing::existing(options, role, observed)? {
        let change = change::plan((options, role), (&existing, target), observed, run, &image.version)?;
        return Ok(change.map_or(Outcome::AlreadyThere(existing), Outcome::Change));
    }
    let golden = golden(options, role, observed, image)?;
    let source = if golden.is_empty() { Source::Image(&image.file) } else { Source::Golden(&golden) };
    let can = |host: &HostView| if golden.is_empty() { Tun::choose(role, observed, host).map(drop) } else { Ok(()) };
    let place = choose::place(options, observed, source, &can)?;
    let golden = golden.into_iter().find(|golden| golden.host == place.host);
    let host = observed.host(&place.host);
    let version = host.map_or(Version::new(0, 0, 0), HostView::known_version);
    // A golden container has the device already.
    let tun = match host {
        Some(host) if golden.is_none() => Tun::choose(role, observed, host)?,
        _ => Tun::None,
    };
    unseen_address(options, role, observed, &place.host, version)?;
    let (role, route) = lan::resolved(role, options, &place, observed)?;
    let (name, why_name) = choose::name(options, &role, observed)?;
    let delivery = Delivery::choose(&observed.principal, version);
    let mut choices = vec![Choice { what: "name", value: name.to_string(), why: why_name }];
    choices.extend(place.reasons.iter().cloned());
    choices.push(Choice { what: "address", value: address_words(options), why: address_why(options).to_owned() });
    choices.extend(route);
    choices.extend(tun.reason());
    choices.push(delivery.reason());
    choices.extend(hookscript(&role, observed));
    choices.extend(golden.map(|golden| cloning::reason(golden, image)));
    let maker = Maker { options, role: &role, observed, image, run, place: &place, name: &name, golden, tun };
    let steps = maker.steps(delivery)?;
    Ok(Outcome::Plan(Plan {
        vmid: options.vmid,
        name,
        role: role.name(),
        host: place.host.clone(),
        run,
        choices,
        differences: Vec::new(),
        steps,
    }))
}

/// The golden containers to choose from; none if the guest is unpacked from the image.
fn golden<'o>(options: &GuestOptions, role: &Role, observed: &'o Observed, image: &Image) -> Result<Vec<&'o Golden>, Refusal> {
    if !golden::clones(&observed.principal) {
        return Ok(Vec::new());
    }
    let (fit, unfit) = golden::candidates(options, observed, image);
    if fit.is_empty() && role.needs_tun() {
        let host = options.host.as_ref().map_or_else(|| "NODE".to_owned(), ToString::to_string);
        let golden = if unfit.is_empty() { "there is none".to_owned() } else { unfit.join("; ") };
        return Err(Refusal::NeedsRoot { principal: observed.principal.clone(), host, golden });
    }
    Ok(fit)
}

/// What Proxmox calls when the guest starts and stops; only nodes have use for it.
fn hookscript(role: &Role, observed: &Observed) -> Option<Choice> {
    matches!(role, Role::Node { .. }).then(|| match &observed.hookscript {
        Hookscript::Ready(volume) => {
            let why = "names, notes and routes follow its starts and stops".to_owned();
            Choice { what: "hookscript", value: volume.to_string(), why }
        }
        Hookscript::Left(why) => {
            Choice { what: "hookscript", value: "none".to_owned(), why: format!("{why}; `pvemesh sync` does the same, later") }
        }
    })
}

/// Refuses a guest whose address we need to know and nobody can tell us.
fn unseen_address(options: &GuestOptions, role: &Role, observed: &Observed, host: &HostName, version: Version) -> Result<(), Refusal> {
    let needed = matches!(role, Role::Coordinator { .. } | Role::Relay { .. });
    let fixed = matches!(options.lan.ipv4, Some(Ipv4Setup::Fixed(_)));
    if needed && !fixed && version < Version::INTERFACES && !observed.is_on(host) {
        return Err(Refusal::UnseenAddress { host: host.clone(), version });
    }
    Ok(())
}

fn address_words(options: &GuestOptions) -> String {
    match options.lan.new_ipv4() {
        Ipv4Setup::Dhcp => "dhcp".to_owned(),
        Ipv4Setup::Fixed(net) => net.to_string(),
        Ipv4Setup::None => "no IPv4".to_owned(),
    }
}

fn address_why(options: &GuestOptions) -> &'static str {
    match options.lan.new_ipv4() {
        Ipv4Setup::Dhcp => "unless given with --ip; reserve the lease in your router to keep it",
        Ipv4Setup::Fixed(_) | Ipv4Setup::None => "given with --ip",
    }
}

pub(super) fn exit_routes() -> Vec<ipnet::IpNet> {
    vec![ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()]
}
