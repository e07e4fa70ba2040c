//! What had to be changed to make routing what it should be.

use std::fmt;

/// What [`super::Router::apply`] changed; nothing, if everything was there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    /// The interface was down, or had another MTU.
    pub link: bool,
    /// Addresses of the interface that were missing or one too many.
    pub addresses: usize,
    /// Policy rules.
    pub rules: usize,
    /// Routes of the mesh's table.
    pub routes: usize,
    /// Kernel settings.
    pub settings: usize,
    /// The firewall table.
    pub firewall: bool,
}

impl Changed {
    /// Whether everything was as it should be.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// As a list for people: `2 policy rules, 14 routes`.
impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |count: usize, thing: &str| {
            (count > 0).then(|| {
                format!(
                    "{count} {thing}{}",
                    if count == 1 {
                        ""
                    } else if thing.ends_with('s') {
                        "es"
                    } else {
                        "s"
                    }
                )
            })
        };
        let parts = [
            self.link.then(|| "the state of the interface".to_owned()),
            counted(self.addresses, "address"),
            counted(self.rules, "policy rule"),
            counted(self.routes, "route"),
            counted(self.settings, "kernel setting"),
            self.firewall.then(|| "the firewall table".to_owned()),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(&if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_as_a_list() {
        assert_eq!(Changed::default().to_string(), "nothing");
        let changed = Changed { addresses: 2, rules: 1, routes: 14, firewall: true, ..Changed::default() };
        assert_eq!(changed.to_string(), "2 addresses, 1 policy rule, 14 routes, the firewall table");
        assert!(!changed.is_nothing());
    }
}
