//! A guest's configuration file as it lies in `/etc/pve`, for who must not wait for Proxmox's tools (they take most of a second to start).
//!
//! Read leniently, as Proxmox does: what is not understood is passed over. Only the part in force is read; `[pve:pending]` and the
//! sections of snapshots say something of another time. Grammar: PVE::LXC::Config and PVE::QemuServer, `parse_vm_config`.

use std::collections::BTreeMap;

use super::reply::ContainerConfig;

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
        for line in text.lines() {
            let line = line.trim_end();
            if line.starts_with('[') {
                break;
            }
            if let Some(comment) = line.strip_prefix('#') {
                file.notes.push_str(&decoded(comment));
                file.notes.push('\n');
                continue;
            }
            let Some(at) = line.find([':', '=']) else { continue };
            let (key, value) = line.split_at(at);
            let (key, value) = (key.trim(), value.get(1..).unwrap_or_default().trim());
            match key {
                "description" => file.notes = decoded(value),
                key if key.starts_with("lxc.") => file.raw.push((key.to_owned(), value.to_owned())),
                key => drop(file.values.insert(key.to_owned(), value.to_owned())),
            }
        }
        file
    }

    /// The values as the API would give them.
    pub fn config(&self) -> ContainerConfig {
        let value = |key: &str| self.values.get(key).cloned();
        let tags = value("tags").unwrap_or_default();
        ContainerConfig {
            hostname: value("hostname").or_else(|| value("name")),
            description: self.notes.clone(),
            tags: tags.split([';', ',', ' ']).filter(|tag| !tag.is_empty()).map(ToOwned::to_owned).collect(),
            lock: value("lock"),
            values: self.values.clone(),
            ..ContainerConfig::default()
        }
    }
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
                    odd line\n\n[before]\nhostname: old\nlxc.environment: X=1\n";
        let file = GuestFile::parse(text);
        assert_eq!(file.notes, "my notes: 100%\n<!-- x -->\n");
        assert_eq!(file.values["hostname"], "exit-1");
        assert_eq!(file.values["net0"], "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01");
        assert_eq!(file.raw.len(), 2);
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
