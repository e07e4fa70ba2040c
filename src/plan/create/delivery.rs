//! The way of a guest's configuration into the guest.

use crate::plan::choose::Choice;
use crate::pve::{Principal, Version};

/// How the configuration reaches the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// In the environment of its init (PVE 9.1+); one image serves all guests.
    Environment,
    /// In an image of its own, removed as soon as it is unpacked.
    Image(&'static str),
}

impl Delivery {
    pub(super) fn choose(principal: &Principal, version: Version) -> Self {
        if version < Version::ENVIRONMENT {
            Self::Image("this Proxmox VE has no `env` yet, it came with 9.1")
        } else if *principal == Principal::RootHost {
            Self::Image("pvesh would show a join key in the process list")
        } else {
            Self::Environment
        }
    }

    pub(super) fn reason(self) -> Choice {
        let (value, why) = match self {
            Self::Environment => ("environment of the container's init", "it is removed again as soon as the guest has read it"),
            Self::Image(why) => ("an image of its own, removed after use", why),
        };
        Choice { what: "configuration", value: value.to_owned(), why: why.to_owned() }
    }
}
