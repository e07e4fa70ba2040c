//! A guest's configuration file as it lies in `/etc/pve`: read, for who must not wait for Proxmox's tools (they take most of a second to
//! start), and edited as text where no call can do it ([`TunForm`]).
//!
//! Read leniently, as Proxmox does: what is not understood is passed over. Only the part in force counts, the lines before the first `[`;
//! `[pve:pending]` and the sections of snapshots say something of another time. Grammar: PVE::LXC::Config, `parse_pct_config`, and
//! PVE::QemuServer, `parse_vm_config`. Reading and replacing the file is for `sys::pve`.

mod tun;

use std::collections::BTreeMap;

use super::reply::{ContainerConfig, tag_list};
pub use tun::{RAW_LINES, TunForm, with_raw_tun, with_tun_device, without_raw_tun};

/// A configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestFile {
    /// The plain values by key.
    pub values: BTreeMap<String, String>,
    /// The raw lines for LXC, in their order.
    pub raw: Vec<(String, String)>,
    /// The notes.
    pub notes: String,
}

impl GuestFile {
    /// Reads a file's text.
    pub fn parse(text: &str) -> Self {
        let mut file = Self::default();
        for line in parts(text).0.lines() {
            if let Some(comment) = line.strip_prefix('#') {
                file.notes.push_str(&decoded(comment.trim_end()));
                file.notes.push('\n');
                continue;
            }
            match key_value(line) {
                None => {}
                Some(("description", value)) => file.notes = decoded(value),
                Some((key, value)) if key.starts_with("lxc.") => file.raw.push((key.to_owned(), value.to_owned())),
                Some((key, value)) => drop(file.values.insert(key.to_owned(), value.to_owned())),
            }
        }
        file
    }

    /// The values as the API would give them.
    pub fn config(&self) -> ContainerConfig {
        let value = |key: &str| self.values.get(key).cloned();
        ContainerConfig {
            hostname: value("hostname").or_else(|| value("name")),
            description: self.notes.clone(),
            tags: tag_list(&value("tags").unwrap_or_default()),
            lock: value("lock"),
            values: self.values.clone(),
            raw: self.raw.clone(),
            ..ContainerConfig::default()
        }
    }
}

/// The part in force, and all the rest.
fn parts(text: &str) -> (&str, &str) {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with('[') {
            break;
        }
        at += line.len();
    }
    text.split_at(at)
}

/// A line's key and value; LXC's own keys may also be written with `=`. Comments have none.
fn key_value(line: &str) -> Option<(&str, &str)> {
    if line.starts_with(['#', '[']) {
        return None;
    }
    let at = if line.starts_with("lxc.") { line.find([':', '=']) } else { line.find(':') }?;
    let (key, value) = line.split_at(at);
    Some((key.trim(), value.get(1..).unwrap_or_default().trim()))
}

/// Undoes Proxmox's percent-encoding of notes.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let pair = after.get(..2).filter(|_| *first == b'%').and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn the_part_in_force_is_read_and_no_snapshot() {
        let text = "#my notes%3A 100%25\n#<!-- x -->\narch: amd64\ndev0: /dev/net/tun\nhostname: exit-1\nnet0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01\n\
                    tags: exit-node;pvemesh\nlxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file\nlxc.cgroup2.devices.allow = c 10:200 rwm\n\
                    odd line\nodd=too\n\n[before]\nhostname: old\nlxc.environment: X=1\n";
        let file = GuestFile::parse(text);
        assert_eq!(file.notes, "my notes: 100%\n<!-- x -->\n");
        assert_eq!(file.values["hostname"], "exit-1");
        assert_eq!(file.values["net0"], "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01");
        assert_eq!(file.raw.len(), 2);
        assert!(!file.values.contains_key("odd"), "only LXC's own keys may be written with an equals sign");
        assert_eq!(file.raw[1], ("lxc.cgroup2.devices.allow".to_owned(), "c 10:200 rwm".to_owned()));
        let config = file.config();
        assert_eq!((config.hostname.as_deref(), config.tags.len()), (Some("exit-1"), 2));
    }

    #[test]
    fn notes_of_the_old_form_and_broken_codes_are_read() {
        assert_eq!(GuestFile::parse("description: a%0Ab %zz %4").notes, "a\nb %zz %4");
        assert_eq!(GuestFile::parse("").notes, "");
        assert_eq!(GuestFile::parse("#%C3%BC").notes, "ü\n");
    }
}
