//! Proxmox VE versions, compared by number.

use std::fmt;
use std::str::FromStr;

/// A version such as `9.1.9` or `8.4-1`; what follows the third number does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    major: u16,
    minor: u16,
    patch: u16,
}

impl Version {
    /// `dev[n]`, the passing through of devices: pve-container 5.0.7.
    pub const DEVICES: Self = Self::new(8, 1, 0);
    /// The addresses of a container's interfaces: pve-container 5.0.6.
    pub const INTERFACES: Self = Self::new(8, 1, 0);
    /// Rules of the high availability manager, in the place of groups: pve-ha-manager 5.0.
    pub const HA_RULES: Self = Self::new(9, 0, 0);
    /// Devices plugged into a running container: pve-container 6.0.4.
    pub const HOT_PLUG: Self = Self::new(9, 0, 0);
    /// `env` and `entrypoint`: pve-container 6.0.15.
    pub const ENVIRONMENT: Self = Self::new(9, 1, 0);

    /// `major.minor.patch`.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }
}

/// A text that does not start like a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a Proxmox VE version")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let invalid = || VersionError(super::name::shown(text));
        let mut numbers = text.split(['.', '-', '~', '+', '/']);
        let major = numbers.next().and_then(|n| n.parse().ok()).ok_or_else(invalid)?;
        let minor = numbers.next().and_then(|n| n.parse().ok()).ok_or_else(invalid)?;
        let patch = numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        let v = |text: &str| text.parse::<Version>().unwrap();
        assert!(v("8.10") > v("8.9.5"));
        assert!(v("9.1.9") >= Version::ENVIRONMENT && v("9.0.11") < Version::ENVIRONMENT);
        assert!(v("8.1.0~rc1") >= Version::DEVICES && v("8.0-4") < Version::DEVICES);
        assert_eq!(v("9.1.9/ee7bad0a3d1546c9"), Version::new(9, 1, 9));
        assert!("".parse::<Version>().is_err() && "9".parse::<Version>().is_err() && "x.y".parse::<Version>().is_err());
    }
}
