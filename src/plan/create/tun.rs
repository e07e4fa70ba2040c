//! The way of /dev/net/tun into a guest.

use crate::plan::choose::Choice;
use crate::plan::observed::{HostView, Observed, Target};
use crate::plan::options::Role;
use crate::plan::refusal::Refusal;
use crate::plan::step::{RAW_TUN_WHY, TunEdit};
use crate::pve::Version;
use crate::pve::conf::TunForm;

/// How a guest gets the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tun {
    /// It needs none.
    None,
    /// By `dev[n]`.
    Device,
    /// By lines in its configuration file, which we write ourselves.
    Lines,
}

impl Tun {
    /// What is possible on a host.
    pub(super) fn choose(role: &Role, observed: &Observed, host: &HostView) -> Result<Self, Refusal> {
        let version = host.known_version();
        if !role.needs_tun() {
            Ok(Self::None)
        } else if version >= Version::DEVICES {
            Ok(Self::Device)
        } else if observed.is_on(&host.name) {
            Ok(Self::Lines)
        } else {
            Err(Refusal::TooOld { host: host.name.clone(), version, needed: Version::DEVICES })
        }
    }

    pub(super) fn reason(self) -> Option<Choice> {
        let why = RAW_TUN_WHY.to_owned();
        (self == Self::Lines).then(|| Choice { what: "tun", value: "lines in the configuration file".to_owned(), why })
    }
}

/// What is to be done about the device of a guest that is there already: one made before its host could do better, or by somebody who put
/// both forms into it.
pub(super) fn mend(role: &Role, observed: &Observed, target: &Target) -> Option<TunEdit> {
    let old = matches!(TunForm::of(&target.config), TunForm::Raw | TunForm::Both);
    let modern = observed.host(&target.host).is_some_and(|host| host.known_version() >= Version::DEVICES);
    (role.needs_tun() && old && modern && observed.is_on(&target.host)).then_some(TunEdit::Device)
}
