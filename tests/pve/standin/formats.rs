//! The named formats of the schema, as far as the endpoints in use need them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether `text` has the format; the reason otherwise.
///
/// # Errors
/// PVE's words for what is wrong.
pub fn named(format: &str, text: &str) -> Result<(), String> {
    if let Some(item) = format.strip_suffix("-list") {
        return text.split([',', ';', ' ', '\0']).filter(|t| !t.is_empty()).try_for_each(|t| named(item, t));
    }
    let (fits, what) = match format {
        "pve-vmid" => (text.parse::<u64>().is_ok_and(|id| (100..1_000_000_000).contains(&id)), "value does not look like a valid VM ID"),
        "dns-name" => (is_dns_name(text), "value does not look like a valid DNS name"),
        "pve-node" => (is_word(text, "-"), "value does not look like a valid node name"),
        "ipv4" => (text.parse::<Ipv4Addr>().is_ok(), "value does not look like a valid IPv4 address"),
        "ipv6" => (text.parse::<Ipv6Addr>().is_ok(), "value does not look like a valid IPv6 address"),
        "lxc-ip-with-ll-iface" => (
            text == "host" || text.split('%').next().is_some_and(|a| a.parse::<IpAddr>().is_ok()),
            "value does not look like a valid IP address",
        ),
        "pve-ipv4-config" => {
            let fits = matches!(text, "dhcp" | "manual") || is_net(text, |a| a.parse::<Ipv4Addr>().is_ok(), 32);
            (fits, "value does not look like a valid ipv4 network configuration")
        }
        "pve-ipv6-config" => {
            let fits = matches!(text, "auto" | "dhcp" | "manual") || is_net(text, |a| a.parse::<Ipv6Addr>().is_ok(), 128);
            (fits, "value does not look like a valid ipv6 network configuration")
        }
        "mac-addr" => (is_unicast_mac(text), "value does not look like a valid unicast MAC address"),
        "pve-storage-id" | "pve-configid" => return storage_id(format, text),
        "pve-volume-id" => {
            let fits = text.split_once(':').is_some_and(|(storage, name)| storage_id(format, storage).is_ok() && !name.is_empty());
            return if fits { Ok(()) } else { Err(format!("unable to parse volume ID '{text}'")) };
        }
        "pve-lxc-dev-string" => return device_path(text),
        "pve-lxc-mp-string" => {
            let fits = !text.split('/').any(|part| part == ".." || part == ".");
            (fits, "value does not look like a valid mount point")
        }
        "pve-tag" => {
            let start = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let fits = text.starts_with(start) && text.chars().all(|c| start(c) || "-+.".contains(c));
            return if fits { Ok(()) } else { Err(format!("invalid characters in tag\n{text}")) };
        }
        "disk-size" => {
            let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
            (text.len() - digits.len() <= 1 && digits.parse::<f64>().is_ok(), "value does not look like a valid disk size")
        }
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(what.to_owned()) }
}

fn is_word(text: &str, also: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

fn is_dns_name(text: &str) -> bool {
    !text.is_empty() && text.split('.').all(|label| !label.ends_with('-') && label.len() <= 63 && is_word(label, "-"))
}

fn is_net(text: &str, address: impl Fn(&str) -> bool, most: u8) -> bool {
    text.split_once('/').is_some_and(|(a, bits)| address(a) && bits.parse::<u8>().is_ok_and(|b| b <= most))
}

fn is_unicast_mac(text: &str) -> bool {
    let bytes: Vec<_> = text.split(':').map(|b| (b.len() == 2).then(|| u8::from_str_radix(b, 16).ok()).flatten()).collect();
    bytes.len() == 6 && bytes.iter().all(Option::is_some) && bytes.first().copied().flatten().is_some_and(|b| b & 1 == 0)
}

fn storage_id(format: &str, text: &str) -> Result<(), String> {
    if text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.len() >= 2 && is_word(text, "-_.") {
        return Ok(());
    }
    Err(if format == "pve-configid" {
        format!("invalid configuration ID '{text}'")
    } else {
        format!("storage ID '{text}' contains illegal characters")
    })
}

fn device_path(text: &str) -> Result<(), String> {
    let fits = text.starts_with("/dev/") && text.len() > 5 && !text.split('/').any(|part| part == ".." || part == ".");
    if fits { Ok(()) } else { Err(format!("{text} is not a valid device path")) }
}
