//! A new identity for a guest that is there already: what its host hands to it.

use serde::{Deserialize, Serialize};

use super::GuestError;
use crate::ident::{NodeName, Secret, Vmid};

/// Where it is put inside the guest. The node takes it away as soon as it has been taken over, for it may hold a join key.
pub const RENEWAL_FILE: &str = "/var/lib/pvemesh/renewal.toml";
/// The environment variable that brings it to a guest's init where nothing can be put into the guest: base64 of the TOML.
pub const RENEWAL_VARIABLE: &str = "PVEMESH_RENEWAL";

/// A new identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renewal {
    /// The guest it is for.
    pub vmid: Vmid,
    /// Its name from now on.
    pub hostname: NodeName,
    /// Which of the guest's identities this is; one that is not newer than the guest's own is passed over.
    pub generation: u64,
    /// The join key. Without one the guest discards the keys it has, and waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_key: Option<Secret>,
}

impl Renewal {
    /// Reads the TOML form.
    ///
    /// # Errors
    /// When it is not TOML, or a key is missing, unknown or of the wrong kind. Nothing of the text is quoted.
    pub fn from_toml(text: &str) -> Result<Self, GuestError> {
        toml::from_str(text).map_err(|error| GuestError::in_text(text, &error))
    }

    /// Writes the TOML form.
    ///
    /// # Errors
    /// When it does not read back as it is.
    pub fn to_toml(&self) -> Result<Secret, GuestError> {
        let fault = |message: String| GuestError { line: 0, message };
        let text = Secret::new(toml::to_string(self).map_err(|error| fault(error.to_string()))?);
        let same = Self::from_toml(text.expose())? == *self;
        if same { Ok(text) } else { Err(fault("a value changed in writing".to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_and_shows_no_key() {
        let renewal = Renewal {
            vmid: "102".parse().unwrap(),
            hostname: "exit-2".parse().unwrap(),
            generation: 3,
            auth_key: Some(Secret::new("hidden-key")),
        };
        let text = renewal.to_toml().unwrap();
        assert_eq!(Renewal::from_toml(text.expose()).unwrap(), renewal);
        assert!(!format!("{renewal:?} {text:?}").contains("hidden-key"));
        let error = Renewal::from_toml("vmid = 102\nhostname = \"exit-2\"\ngeneration = 3\nauth_kye = \"hidden-key\"\n").unwrap_err();
        assert!(error.to_string().contains("line 4") && !error.to_string().contains("hidden-key"), "{error}");
    }
}
