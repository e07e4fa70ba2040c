//! The machine led to our resolver, by whoever has that in hand (`names::system` says who), and led back.
//!
//! Where that is systemd-resolved, the tunnel's link gets a server and domains by `resolvectl`; where it is `resolvconf`, a record is handed in;
//! else `/etc/resolv.conf` is written. What these programs forget, or others take away, is put back at the next look.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::program::{find, run};
use super::resolv_conf::{PATH, ResolvConf, is_another_networks, is_ours, read};
use crate::ident::QUAD100_V4;
use crate::names::Upstream;
use crate::names::system::{Lead, Manager, ResolvConf as Contents, Resolvconf, Seen, search_list};
use crate::sys::clock;
use crate::time::Time;

const NSSWITCH: &str = "/etc/nsswitch.conf";
/// Where systemd-resolved is asked by programs beside DNS.
const RESOLVED_SOCKET: &str = "/run/systemd/resolve/io.systemd.Resolve";
/// Where the two programs keep records.
const RECORDS: [(Resolvconf, &str); 2] =
    [(Resolvconf::Debian, "/run/resolvconf/interface"), (Resolvconf::Open, "/run/resolvconf/interfaces")];
/// A directory for each link.
const LINKS: &str = "/sys/class/net";
const DNS_PORT: u16 = 53;
/// How often systemd-resolved is asked whether the link still has its server.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(10);

/// Who leads the machine to us, and by what.
#[derive(Debug, Clone)]
struct Led {
    manager: Manager,
    lead: Lead,
    /// Which run of systemd-resolved was told.
    run: Option<u64>,
    asked: Time,
}

/// The machine's resolving of names.
#[derive(Debug)]
pub(in crate::sys) struct System {
    interface: String,
    file: ResolvConf,
    led: Option<Led>,
    /// What was tried in vain, and when.
    failed: Option<(Time, Manager, Lead)>,
}

impl System {
    /// The machine's, for a tunnel's interface; nothing is changed yet.
    pub(in crate::sys) fn of(interface: &str) -> Self {
        Self { interface: interface.to_owned(), file: ResolvConf::at(Path::new(PATH)), led: None, failed: None }
    }

    /// Gives the machine back what a killed node has left. What systemd-resolved was told went with the link.
    pub(in crate::sys) fn clean(&self) -> io::Result<()> {
        if is_another_networks(Path::new(PATH)) {
            return Ok(());
        }
        for (kind, place) in RECORDS {
            if Path::new(place).join(self.record(kind)).exists() {
                self.remove_record(kind)?;
            }
        }
        self.file.clean()
    }

    /// Who leads the machine to us; nobody, while it is not led here.
    pub(in crate::sys) fn manager(&self) -> Option<Manager> {
        self.led.as_ref().map(|led| led.manager)
    }

    /// The machine's own servers.
    pub(in crate::sys) fn servers(&self) -> Vec<Upstream> {
        let contents = match self.manager() {
            Some(Manager::Resolvconf(kind)) => self.others_records(kind),
            _ => self.file.base(),
        };
        contents.servers.into_iter().map(|server| Upstream::At((server, DNS_PORT).into())).collect()
    }

    /// Leads the machine here, or looks whether it still is. Says whether something had to be changed. What has just failed is not tried again at
    /// once.
    ///
    /// # Errors
    /// The file cannot be written, or the program that has it in hand does not do what it is told.
    pub(in crate::sys) fn take(&mut self, lead: &Lead) -> io::Result<bool> {
        if is_another_networks(Path::new(PATH)) {
            return Ok(false);
        }
        let (manager, run) = look();
        let now = clock::now();
        if self.failed.as_ref().is_some_and(|(at, by, what)| now.since(*at) < PAUSE && *by == manager && what == lead) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.manager().is_some_and(|before| before != manager) {
            // Somebody else has it in hand from now on; his predecessor may be gone.
            let _ = self.give_back();
        }
        let done = match manager {
            Manager::File => self.file.take(&lead.search),
            Manager::Resolved => self.tell_resolved(lead, run, now),
            Manager::Resolvconf(kind) => self.hand_in(kind, lead),
        };
        match &done {
            Ok(changed) => {
                let asked = self.led.as_ref().filter(|_| !changed).map_or(now, |led| led.asked);
                self.led = Some(Led { manager, lead: lead.clone(), run, asked });
                self.failed = None;
            }
            Err(_) => self.failed = Some((now, manager, lead.clone())),
        }
        done
    }

    /// Leads the machine back to what it was.
    ///
    /// # Errors
    /// The file cannot be written, or the program that has it in hand fails.
    pub(in crate::sys) fn give_back(&mut self) -> io::Result<()> {
        self.failed = None;
        let Some(led) = self.led.take() else { return Ok(()) };
        match led.manager {
            Manager::File if is_another_networks(Path::new(PATH)) => Ok(()),
            Manager::File => self.file.give_back().map(drop),
            // What it was told of a link goes with that.
            Manager::Resolved if !Path::new(LINKS).join(&self.interface).exists() => Ok(()),
            Manager::Resolved => self.resolvectl(&["revert", &self.interface]).map(drop),
            Manager::Resolvconf(kind) => self.remove_record(kind),
        }
    }

    fn resolvectl(&self, arguments: &[&str]) -> io::Result<String> {
        let program = find("resolvectl").ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "resolvectl is not there"))?;
        run(&program, arguments, "")
    }

    /// Gives the tunnel's link a server and domains, unless it has them.
    fn tell_resolved(&mut self, lead: &Lead, run: Option<u64>, now: Time) -> io::Result<bool> {
        let link = self.interface.clone();
        let server = QUAD100_V4.to_string();
        if let Some(led) = &mut self.led
            && led.lead == *lead
            && led.run == run
        {
            if now.since(led.asked) < ASK_EVERY {
                return Ok(false);
            }
            led.asked = now;
            if self.resolvectl(&["dns", &link])?.split_whitespace().any(|word| word == server) {
                return Ok(false);
            }
        }
        let domains = lead.link_domains();
        let none = [""];
        let listed: Vec<&str> = if domains.is_empty() { none.to_vec() } else { domains.iter().map(String::as_str).collect() };
        self.resolvectl(&["dns", &link, &server])?;
        self.resolvectl(&[&["domain", link.as_str()], listed.as_slice()].concat())?;
        for (what, value) in [
            // Whether it is asked what is in nobody's domains; older versions do not know that.
            ("default-route", if lead.everything { "yes" } else { "no" }),
            // The mesh is no local network, signs nothing, and is encrypted as it is.
            ("llmnr", "no"),
            ("mdns", "no"),
            ("dnssec", "no"),
            ("dnsovertls", "no"),
        ] {
            if let Err(error) = self.resolvectl(&[what, &link, value]) {
                tracing::debug!(%error, "systemd-resolved does not take everything");
            }
        }
        let _ = self.resolvectl(&["flush-caches"]);
        Ok(true)
    }

    /// The name of our record. Debian's program sorts records by their names, those that begin with `tun` before those of network cards.
    fn record(&self, kind: Resolvconf) -> String {
        match kind {
            Resolvconf::Debian => format!("tun-{}.pvemesh", self.interface),
            Resolvconf::Open => format!("{}.pvemesh", self.interface),
        }
    }

    /// What others have handed in.
    fn others_records(&self, kind: Resolvconf) -> Contents {
        let own = self.record(kind);
        let mut all = Contents::default();
        let places = RECORDS.iter().filter(|(whose, _)| *whose == kind).filter_map(|(_, place)| std::fs::read_dir(place).ok());
        let mut files: Vec<PathBuf> = places.flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|file| file.file_name().is_some_and(|name| *name != *own));
        files.sort();
        for contents in files.iter().filter_map(|file| read(file)).map(|text| Contents::parse(&text)) {
            all.servers.extend(contents.servers);
            all.search.extend(contents.search);
        }
        if all.servers.is_empty() {
            all.servers = Contents::parse(&read(Path::new(PATH)).unwrap_or_default()).servers;
        }
        all
    }

    /// Hands our record in, unless it is there and the file leads here.
    fn hand_in(&self, kind: Resolvconf, lead: &Lead) -> io::Result<bool> {
        let leads_here = || Contents::parse(&read(Path::new(PATH)).unwrap_or_default()).leads_here;
        let record = self.record(kind);
        let is_in = RECORDS.iter().any(|(whose, place)| *whose == kind && Path::new(place).join(&record).exists());
        if is_in && leads_here() && self.led.as_ref().is_some_and(|led| led.lead == *lead) {
            return Ok(false);
        }
        // openresolv makes ours the only one that counts, so it has the machine's own domains, too. Debian's program adds them up.
        let own = if kind == Resolvconf::Open { self.others_records(kind).search } else { Vec::new() };
        let search = search_list(&lead.search, &own).join(" ");
        let mut text = format!("nameserver {QUAD100_V4}\n");
        if !search.is_empty() {
            text += &format!("search {search}\n");
        }
        let arguments: &[&str] = match kind {
            Resolvconf::Debian => &["-a", &record],
            Resolvconf::Open => &["-m", "0", "-x", "-a", &record],
        };
        run(&resolvconf()?, arguments, &text)?;
        if leads_here() { Ok(true) } else { Err(io::Error::other("resolvconf has put another server in front")) }
    }

    fn remove_record(&self, kind: Resolvconf) -> io::Result<()> {
        let record = self.record(kind);
        let arguments: &[&str] = match kind {
            Resolvconf::Debian => &["-d", &record],
            Resolvconf::Open => &["-f", "-d", &record],
        };
        run(&resolvconf()?, arguments, "").map(drop)
    }
}

fn resolvconf() -> io::Result<PathBuf> {
    find("resolvconf").ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "resolvconf is not there"))
}

/// Who has the machine's resolving in hand, and which run of systemd-resolved there is.
fn look() -> (Manager, Option<u64>) {
    let path = Path::new(PATH);
    let text = read(path).unwrap_or_default();
    // A link may lead to where nothing is (yet).
    let target = std::fs::canonicalize(path).ok().or_else(|| std::fs::read_link(path).ok()).filter(|target| target != path);
    let nsswitch = read(Path::new(NSSWITCH)).unwrap_or_default();
    let run = resolveds_run();
    let seen = Seen {
        ours: is_ours(&text),
        text: &text,
        target: target.as_deref().and_then(Path::to_str).unwrap_or_default(),
        nsswitch: &nsswitch,
        resolved: run.is_some() && find("resolvectl").is_some(),
        resolvconf: which_resolvconf(),
    };
    (seen.manager(), run)
}

/// Which `resolvconf` there is. The one that is a link to `resolvectl` counts for nothing: who has that has systemd-resolved.
fn which_resolvconf() -> Option<Resolvconf> {
    let program = find("resolvconf")?;
    if program.canonicalize().ok()?.file_name()? == "resolvectl" {
        return None;
    }
    Some(if read(&program)?.contains("openresolv") { Resolvconf::Open } else { Resolvconf::Debian })
}

/// A number of the running systemd-resolved that its next run does not have: its socket's. `None` if it does not run.
fn resolveds_run() -> Option<u64> {
    let by_stub = std::fs::read_to_string("/proc/self/net/udp").ok().and_then(|table| stub_socket(&table));
    by_stub.or_else(|| {
        // Without a stub it may still be asked by the C library's module. The socket's file outlives it.
        UnixStream::connect(RESOLVED_SOCKET).ok()?;
        std::fs::metadata(RESOLVED_SOCKET).ok().map(|data| data.ino())
    })
}

/// The number of the socket on 127.0.0.53, port 53, in the kernel's table of them.
fn stub_socket(table: &str) -> Option<u64> {
    let stub = format!("{:08X}:0035", u32::from_ne_bytes([127, 0, 0, 53]));
    let line = table.lines().find(|line| line.split_whitespace().nth(1) == Some(stub.as_str()))?;
    line.split_whitespace().nth(9)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_of_systemd_resolved_is_told_by_its_address_and_port() {
        let address = |a: [u8; 4], port: u16| format!("{:08X}:{port:04X}", u32::from_ne_bytes(a));
        let line = |address: &str, inode: u64| {
            format!(" 15219: {address} 00000000:0000 07 00000000:00000000 00:00000000 00000000   990        0 {inode} 2 0 0\n")
        };
        let head = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n";
        let others = [line(&address([127, 0, 0, 54], 53), 1), line(&address([127, 0, 0, 53], 5353), 2)].concat();
        assert_eq!(stub_socket(&format!("{head}{others}")), None);
        assert_eq!(stub_socket(&format!("{head}{others}{}", line(&address([127, 0, 0, 53], 53), 78_304))), Some(78_304));
        assert_eq!(stub_socket("x 3500007F:0035"), None);
    }
}
