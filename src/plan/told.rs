//! What a guest was told when it was made or last changed, kept in its notes, so that a later run from any machine knows what a change
//! changes and what it leaves.
//!
//! It is the guest's TOML without the join key, in a comment that the panel does not show. Nothing in it is secret: notes are readable
//! with `VM.Audit` and travel with backups.

use crate::settings::Guest;

// Not as a mark begins, which would be looked for within it.
const OPEN: &str = "<!-- settings of this pvemesh guest\n";
const CLOSE: &str = "-->";

/// The comment for the notes of this guest; `None` if its settings cannot stand in one.
pub(super) fn comment(guest: &Guest) -> Option<String> {
    let mut guest = guest.clone();
    if let Some(node) = &mut guest.node {
        node.auth_key = None;
    }
    let text = toml::to_string(&guest).ok()?;
    // Two hyphens and a bracket in a row end a comment; no setting has them unless somebody put them into a URL.
    (!text.contains(CLOSE)).then(|| format!("{OPEN}{text}{CLOSE}"))
}

/// The comment as it stands in these notes.
pub(super) fn text_of(notes: &str) -> Option<&str> {
    let from = notes.find(OPEN)?;
    let length = notes.get(from..)?.find(CLOSE)? + CLOSE.len();
    notes.get(from..from + length)
}

/// The settings kept in these notes; `None` if there are none or somebody edited them into something else.
pub(super) fn find(notes: &str) -> Option<Guest> {
    let text = text_of(notes)?.strip_prefix(OPEN)?.strip_suffix(CLOSE)?;
    Guest::from_toml(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::Secret;
    use crate::settings::{Ipv4Setup, Ipv6Setup, Network, Node};

    fn guest() -> Guest {
        let network = Network {
            interface: "eth0".to_owned(),
            ipv4: Ipv4Setup::Dhcp,
            gateway4: None,
            ipv6: Ipv6Setup::Auto,
            gateway6: None,
            nameservers: vec!["192.168.1.1".parse().unwrap()],
        };
        let node = Node {
            login_server: "http://192.168.1.100:8080".to_owned(),
            server_key: None,
            auth_key: Some(Secret::new("tskey-auth-secret")),
            port: 41641,
            endpoints: Vec::new(),
            advertise_exit_node: true,
            advertise_routes: Vec::new(),
            accept_routes: false,
            accept_dns: true,
            snat_subnet_routes: true,
            userspace: false,
            lan_gateway: false,
        };
        Guest {
            vmid: "101".parse().unwrap(),
            hostname: "exit-1".parse().unwrap(),
            network,
            node: Some(node),
            coordinator: None,
            relay: None,
        }
    }

    #[test]
    fn settings_are_found_again_in_notes_without_their_join_key() {
        let comment = comment(&guest()).unwrap();
        assert!(!comment.contains("tskey") && comment.len() < 700, "{comment}");
        let notes = format!("# mine\n\n{comment}\n\nmore of mine");
        let mut wanted = guest();
        wanted.node.as_mut().unwrap().auth_key = None;
        assert_eq!(find(&notes), Some(wanted));
    }

    #[test]
    fn notes_without_whole_settings_tell_nothing() {
        for notes in ["", "<!-- settings of this pvemesh guest\n", "<!-- settings of this pvemesh guest\nvmid = 7\n-->"] {
            assert_eq!(find(notes), None, "{notes}");
        }
    }

    #[test]
    fn settings_that_would_end_the_comment_are_not_kept() {
        let mut guest = guest();
        guest.node.as_mut().unwrap().login_server = "http://a/-->".to_owned();
        assert_eq!(comment(&guest), None);
    }
}
