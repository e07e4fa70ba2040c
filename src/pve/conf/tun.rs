//! `/dev/net/tun` in a container's configuration file: what raw LXC lines are there for it, and such lines put in, taken out, or turned into
//! `dev[n]`.
//!
//! Only the part in force is touched. What follows (`[pve:pending]` and a section for each snapshot) stays as it is, byte for byte: a line
//! appended to the end of the file would land in the last of those, where it does nothing until somebody rolls back.

use super::{key_value, parts};
use crate::pve::reply::ContainerConfig;

/// The device that is passed through.
const TUN: &str = "/dev/net/tun";
/// What lets a container use `/dev/net/tun`, and what brings it into the container's `/dev`; the form every Proxmox VE understands.
pub const RAW_LINES: [&str; 2] =
    ["lxc.cgroup2.devices.allow: c 10:200 rwm", "lxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file"];

/// How `/dev/net/tun` comes into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunForm {
    /// It does not.
    Absent,
    /// By `dev[n]` (PVE 8.1+).
    Device,
    /// By raw lines for LXC, as before 8.1.
    Raw,
    /// By both. Such a container does not start: the second finds the node of the first in its place (`Script exited with status 17`).
    Both,
}

impl TunForm {
    /// The form in a configuration as the API shows it.
    pub fn of(config: &ContainerConfig) -> Self {
        let device = config.values.iter().any(|(key, value)| is_tun_device(key, value));
        Self::from_parts(device, config.raw.iter().any(|(key, value)| brings_tun(key, value)))
    }

    /// The form in a configuration file; what is pending or belongs to a snapshot does not count.
    pub fn of_file(text: &str) -> Self {
        let lines = || parts(text).0.lines().filter_map(key_value);
        Self::from_parts(lines().any(|(key, value)| is_tun_device(key, value)), lines().any(|(key, value)| brings_tun(key, value)))
    }

    fn from_parts(device: bool, raw: bool) -> Self {
        match (device, raw) {
            (false, false) => Self::Absent,
            (true, false) => Self::Device,
            (false, true) => Self::Raw,
            (true, true) => Self::Both,
        }
    }
}

/// The file with the raw lines for `/dev/net/tun`; `None` if it needs none of them: they are there, or a `dev[n]` is.
pub fn with_raw_tun(text: &str) -> Option<String> {
    let (head, rest) = parts(text);
    if matches!(TunForm::of_file(text), TunForm::Device | TunForm::Both) {
        return None;
    }
    let there = |wanted: &str| key_value(wanted).is_some_and(|wanted| head.lines().filter_map(key_value).any(|line| same(line, wanted)));
    let missing: Vec<&str> = RAW_LINES.into_iter().filter(|line| !there(line)).collect();
    if missing.is_empty() { None } else { Some(join(head, &missing, rest)) }
}

/// The file without raw lines for `/dev/net/tun`; `None` if there are none.
pub fn without_raw_tun(text: &str) -> Option<String> {
    let (head, rest) = parts(text);
    let kept: String = head.split_inclusive('\n').filter(|line| !is_raw_tun(line)).collect();
    if kept.len() == head.len() { None } else { Some(kept + rest) }
}

/// The file with a `dev[n]` in place of raw lines for `/dev/net/tun` (PVE 8.1+); `None` if there are no such lines.
pub fn with_tun_device(text: &str) -> Option<String> {
    let bare = without_raw_tun(text)?;
    if TunForm::of_file(&bare) == TunForm::Device {
        return Some(bare);
    }
    let (head, rest) = parts(&bare);
    // A number that some section uses already would mean another device after a rollback or the next start.
    let used: Vec<u32> = bare.lines().filter_map(|line| device_number(key_value(line)?.0)).collect();
    let free = (0..256).find(|number| !used.contains(number))?;
    Some(join(head, &[&format!("dev{free}: {TUN}")], rest))
}

/// Puts lines behind the last one of the part in force; blank lines before the next section stay where they are.
fn join(head: &str, lines: &[&str], rest: &str) -> String {
    let written = head.trim_end_matches(['\n', '\r']);
    let (written, blank) = head.split_at(written.len());
    let mut text = written.to_owned();
    if !written.is_empty() {
        text.push('\n');
    }
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(blank.strip_prefix("\r\n").or_else(|| blank.strip_prefix('\n')).unwrap_or(blank));
    text + rest
}

fn same(a: (&str, &str), b: (&str, &str)) -> bool {
    a.0 == b.0 && a.1.split_whitespace().eq(b.1.split_whitespace())
}

fn device_number(key: &str) -> Option<u32> {
    key.strip_prefix("dev")?.parse().ok()
}

/// `dev0: /dev/net/tun,mode=0666`, the path also as `path=...`.
fn is_tun_device(key: &str, value: &str) -> bool {
    device_number(key).is_some() && value.split(',').any(|part| part.strip_prefix("path=").unwrap_or(part) == TUN)
}

/// A mount of the device, or of the directory it is in, as some instructions have it.
fn brings_tun(key: &str, value: &str) -> bool {
    let mut words = value.split_whitespace();
    let (source, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().trim_start_matches('/'));
    key == "lxc.mount.entry" && ((source == TUN && target == "dev/net/tun") || (source == "/dev/net" && target == "dev/net"))
}

fn is_raw_tun(line: &str) -> bool {
    let Some((key, value)) = key_value(line) else { return false };
    let allows = matches!(key, "lxc.cgroup2.devices.allow" | "lxc.cgroup.devices.allow");
    brings_tun(key, value) || (allows && value.split_whitespace().take(2).eq(["c", "10:200"]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str = "#made by pvemesh\narch: amd64\nhostname: exit-1\nunprivileged: 1\n";
    const SECTIONS: &str =
        "\n[pve:pending]\ndev0: /dev/zero\n\n[before]\nlxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file\n";

    fn raw() -> String {
        format!("{}\n{}\n", RAW_LINES[0], RAW_LINES[1])
    }

    #[test]
    fn the_lines_go_before_the_first_section_and_only_once() {
        let edited = with_raw_tun(&format!("{PLAIN}{SECTIONS}")).unwrap();
        assert_eq!(edited, format!("{PLAIN}{}{SECTIONS}", raw()));
        assert_eq!(TunForm::of_file(&edited), TunForm::Raw);
        assert_eq!(with_raw_tun(&edited), None);
        assert_eq!(with_raw_tun("").unwrap(), raw());
        assert_eq!(with_raw_tun("arch: amd64").unwrap(), format!("arch: amd64\n{}", raw()));
    }

    #[test]
    fn what_is_half_there_is_completed_and_a_device_is_enough() {
        let half = format!("{PLAIN}lxc.cgroup2.devices.allow = c 10:200   rwm\n");
        assert_eq!(with_raw_tun(&half).unwrap(), format!("{half}{}\n", RAW_LINES[1]));
        assert_eq!(with_raw_tun("dev3: path=/dev/net/tun,mode=0666\n"), None);
    }

    #[test]
    fn old_lines_become_a_device_with_a_number_that_nothing_uses() {
        for old in [
            raw(),
            "lxc.cgroup.devices.allow = c 10:200 rwm\nlxc.mount.entry = /dev/net dev/net none bind,create=dir\n".to_owned(),
            "lxc.mount.entry: /dev/net/tun /dev/net/tun none bind,create=file 0 0\n".to_owned(),
        ] {
            let text = format!("{PLAIN}dev1: /dev/null\n{old}lxc.cap.drop: sys_time\n{SECTIONS}");
            assert_eq!(TunForm::of_file(&text), TunForm::Raw, "{text}");
            let edited = with_tun_device(&text).unwrap();
            assert_eq!(edited, format!("{PLAIN}dev1: /dev/null\nlxc.cap.drop: sys_time\ndev2: /dev/net/tun\n{SECTIONS}"));
            assert_eq!(with_tun_device(&edited), None);
        }
    }

    #[test]
    fn both_forms_at_once_become_the_device_alone() {
        let text = format!("dev0: /dev/net/tun\n{}", raw());
        assert_eq!(TunForm::of_file(&text), TunForm::Both);
        assert_eq!(with_tun_device(&text).unwrap(), "dev0: /dev/net/tun\n");
    }

    #[test]
    fn what_is_no_such_line_stays() {
        for line in [
            "#lxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file\n",
            "lxc.mount.entry: /dev/net/tun2 dev/net/tun2 none bind\n",
            "lxc.mount.entry: /srv/dev/net/tun srv none bind\n",
            "lxc.cgroup2.devices.allow: c 10:2001 rwm\n",
            "lxc.cgroup2.devices.allow: a\n",
            "hostname: lxc.mount.entry\n",
        ] {
            assert_eq!(without_raw_tun(line), None, "{line}");
            assert_eq!(TunForm::of_file(line), TunForm::Absent, "{line}");
        }
    }

    #[test]
    fn the_form_is_seen_in_what_the_api_shows() {
        let device = ("dev0".to_owned(), "/dev/net/tun".to_owned());
        let entry = ("lxc.mount.entry".to_owned(), "/dev/net/tun dev/net/tun none bind,create=file".to_owned());
        let config = |values: &[(String, String)], raw: &[(String, String)]| ContainerConfig {
            values: values.iter().cloned().collect(),
            raw: raw.to_vec(),
            ..ContainerConfig::default()
        };
        for (config, form) in [
            (config(&[], &[]), TunForm::Absent),
            (config(std::slice::from_ref(&device), &[]), TunForm::Device),
            (config(&[], std::slice::from_ref(&entry)), TunForm::Raw),
            (config(&[device], &[entry]), TunForm::Both),
        ] {
            assert_eq!(TunForm::of(&config), form);
        }
    }

    fn line() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z]{1,8}: [ -~]{0,20}",
            "#[ -~]{0,20}",
            "dev[0-9]{1,2}: /dev/[a-z]{1,5}",
            "lxc\\.[a-z.]{1,12}[:=] ?[ -~]{0,20}",
            Just(String::new()),
            Just("dev0: /dev/net/tun".to_owned()),
            Just(RAW_LINES[0].to_owned()),
            Just(RAW_LINES[1].to_owned()),
            Just("lxc.mount.entry = /dev/net dev/net none bind,create=dir".to_owned()),
        ]
    }

    fn lines() -> impl Strategy<Value = String> {
        prop::collection::vec(line(), 0..8).prop_map(|lines| lines.iter().map(|line| format!("{line}\n")).collect())
    }

    fn sections() -> impl Strategy<Value = String> {
        let section = ("[a-z][a-z0-9:]{0,8}", lines(), any::<bool>());
        let one = section.prop_map(|(name, lines, crlf)| format!("[{name}]{}{lines}", if crlf { "\r\n" } else { "\n" }));
        prop::collection::vec(one, 0..4).prop_map(|all| all.concat())
    }

    proptest! {
        #[test]
        fn sections_stay_as_they_are_and_a_second_edit_changes_nothing(head in lines(), rest in sections(), cut in any::<bool>()) {
            let mut text = format!("{head}{rest}");
            if cut {
                text.pop();
            }
            let tail = parts(&text).1.to_owned();
            let others = |text: &str| {
                let kept = parts(text).0.lines().filter(|l| !is_raw_tun(l) && !key_value(l).is_some_and(|(k, v)| is_tun_device(k, v)));
                kept.filter(|l| !l.is_empty()).map(str::to_owned).collect::<Vec<_>>()
            };
            for edit in [with_raw_tun, without_raw_tun, with_tun_device] {
                let Some(edited) = edit(&text) else { continue };
                prop_assert!(edited.ends_with(&tail), "{edited:?} does not end as {text:?}");
                prop_assert_eq!(others(&edited), others(&text));
                prop_assert_eq!(edit(&edited), None);
                prop_assert_ne!(TunForm::of_file(&edited), TunForm::Both);
            }
        }
    }
}
