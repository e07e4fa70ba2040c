//! Numbers and opaque ids.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A node's number in its coordinator. Signed 64 bits: the hosted service has ids above 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub i64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A relay region's number. On the wire it is wider, but it also has to fit a port number, which every program keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegionId(pub u16);

impl RegionId {
    /// A number of the wire's; 0 is no region, and neither is one that fits no port.
    pub fn new(number: i32) -> Option<Self> {
        u16::try_from(number).ok().filter(|number| *number != 0).map(Self)
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node's stable opaque id; preferences such as the chosen exit node refer to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StableId(pub String);

impl fmt::Display for StableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A user's number in the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub i64);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A guest's number in Proxmox, 100 to 999999999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vmid(u32);

/// A number outside Proxmox's range of guest ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a VMID is a number from 100 to 999999999, not `{0}`")]
pub struct VmidError(String);

impl TryFrom<u32> for Vmid {
    type Error = VmidError;

    fn try_from(number: u32) -> Result<Self, VmidError> {
        if (100..=999_999_999).contains(&number) { Ok(Self(number)) } else { Err(VmidError(number.to_string())) }
    }
}

impl From<Vmid> for u32 {
    fn from(vmid: Vmid) -> Self {
        vmid.0
    }
}

impl FromStr for Vmid {
    type Err = VmidError;

    fn from_str(text: &str) -> Result<Self, VmidError> {
        let number = text.parse::<u32>().map_err(|_| VmidError(text.escape_default().take(40).collect()))?;
        Self::try_from(number)
    }
}

impl fmt::Display for Vmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmid_outside_the_range_is_refused() {
        assert!("99".parse::<Vmid>().is_err());
        assert!("1000000000".parse::<Vmid>().is_err());
        assert!("10\n1".parse::<Vmid>().is_err());
        assert_eq!(u32::from("100".parse::<Vmid>().unwrap()), 100);
    }
}
