//! What a container of somebody else's is like, by a shell script that changes nothing, and the reading of what it prints.

use std::net::IpAddr;

use crate::plan::guest::Service;

/// The script. POSIX, for whatever shell there is; prints lines `key=value`.
pub const SCRIPT: &str = r#"p() { printf '%s=%s\n' "$1" "$2"; }
p user "$(id -u)"
p machine "$(uname -m)"
if [ -r /etc/os-release ]; then p os "$(. /etc/os-release; printf '%s' "${ID:-}")"; fi
for d in /usr/local/bin /usr/local/sbin /opt/bin $(printf '%s' "$PATH" | tr ':' ' '); do
  if [ -d "$d" ] && [ -w "$d" ]; then p writable "$d"; fi
done
if [ -d /run/systemd/system ]; then p service systemd; fi
if command -v openrc-run >/dev/null 2>&1 || [ -x /sbin/openrc-run ]; then p service openrc; fi
if command -v runsvdir >/dev/null 2>&1; then for d in /var/service /etc/service /service; do if [ -d "$d" ]; then p service runit; fi; done; fi
if [ -d /etc/init.d ]; then
  if command -v update-rc.d >/dev/null 2>&1 || [ -d /etc/rc2.d ]; then p service sysv; elif [ -x /etc/init.d/rcS ]; then p service rcs; fi
fi
if [ -c /dev/net/tun ]; then if ( : <> /dev/net/tun ) 2>/dev/null; then p tun usable; else p tun denied; fi
elif [ -e /dev/net/tun ]; then p tun wrong; else p tun absent; fi
while read -r a b; do p resolv "$a $b"; done < /etc/resolv.conf 2>/dev/null
if [ -e /etc/.pve-ignore.resolv.conf ]; then p resolv_ignored 1; fi
for o in tailscaled netbird zerotier-one; do if pidof "$o" >/dev/null 2>&1; then p other "$o"; fi; done
p free "$(df -Pk /usr 2>/dev/null | while read -r _ _ _ a _; do printf '%s' "$a "; done)"
"#;

/// `/dev/net/tun` as the script sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TunSeen {
    /// It can be opened.
    Usable,
    /// It is there and cannot be opened.
    Denied,
    /// Something else has its name.
    Wrong,
    /// It is not there.
    #[default]
    Absent,
}

/// What the script found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The user that programs run as.
    pub user: u32,
    /// The machine's kind, as in `x86_64`.
    pub machine: String,
    /// The distribution, as in `debian`.
    pub os: String,
    /// Directories for programs that can be written, the best first.
    pub writable: Vec<String>,
    /// Who starts services, if it is one we know.
    pub service: Option<Service>,
    /// `/dev/net/tun`.
    pub tun: TunSeen,
    /// The name servers in `/etc/resolv.conf`.
    pub nameservers: Vec<IpAddr>,
    /// The search domains there.
    pub search: Vec<String>,
    /// Proxmox is told to leave that file alone.
    pub resolv_ignored: bool,
    /// Other mesh programs that run.
    pub others: Vec<String>,
    /// Free KiB where programs go, if known.
    pub free_kib: Option<u64>,
}

impl Seen {
    /// Reads what the script printed; lines that are none of its own are passed over.
    pub fn read(text: &str) -> Self {
        let mut seen = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "user" => seen.user = value.parse().unwrap_or(u32::MAX),
                "machine" => value.clone_into(&mut seen.machine),
                "os" => value.clone_into(&mut seen.os),
                "writable" if is_path(value) && !seen.writable.iter().any(|known| known == value) => seen.writable.push(value.to_owned()),
                // The first one counts: on a system with several, the one that runs is asked for first.
                "service" => seen.service = seen.service.or_else(|| value.parse().ok()),
                "tun" => {
                    seen.tun = match value {
                        "usable" => TunSeen::Usable,
                        "denied" => TunSeen::Denied,
                        "wrong" => TunSeen::Wrong,
                        _ => TunSeen::Absent,
                    }
                }
                "resolv" => match value.split_once(' ') {
                    Some(("nameserver", server)) => seen.nameservers.extend(server.trim().parse::<IpAddr>().ok()),
                    Some(("search" | "domain", domains)) => seen.search = domains.split_whitespace().map(str::to_owned).collect(),
                    _ => {}
                },
                "resolv_ignored" => seen.resolv_ignored = true,
                "other" => seen.others.push(value.to_owned()),
                "free" => seen.free_kib = value.split_whitespace().last().and_then(|n| n.parse().ok()),
                _ => {}
            }
        }
        seen
    }
}

/// A directory that can stand in a service's file without quoting.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() < 200 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_prints_is_read_and_the_rest_passed_over() {
        let text = "user=0\nmachine=x86_64\nos=debian\nwritable=/usr/local/bin\nwritable=/usr/bin\nwritable=/usr/bin\nwritable=/a b\nservice=systemd\n\
                    service=sysv\ntun=denied\nresolv=nameserver 192.168.1.1\nresolv=nameserver ::g\nresolv=search lan home\nresolv=# x\n\
                    other=tailscaled\nfree=Available 1024 \nlxc-attach: odd\n=\nmotd\n";
        let seen = Seen::read(text);
        assert_eq!((seen.user, seen.os.as_str(), seen.service, seen.tun), (0, "debian", Some(Service::Systemd), TunSeen::Denied));
        assert_eq!(seen.writable, ["/usr/local/bin", "/usr/bin"]);
        assert_eq!((seen.nameservers, seen.search), (vec!["192.168.1.1".parse().unwrap()], vec!["lan".to_owned(), "home".to_owned()]));
        assert_eq!((seen.others, seen.free_kib), (vec!["tailscaled".to_owned()], Some(1024)));
        assert_eq!(Seen::read("").tun, TunSeen::Absent);
    }
}
