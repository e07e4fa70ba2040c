//! Looks around in a guest: what [`GuestFacts`] holds, gathered with reads only.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::{files, trial};
use crate::plan::guest::{APPLIANCE_PROGRAM, Clock, Forwarding, GuestFacts, NodeFacts, ProgramFacts, RECORD, Service, TunFacts};
use crate::sys::local_api::{Client, LocalError};
use crate::sys::{clock, nft};

/// The words of the command line by which our services are recognised.
const SERVICES: [[&str; 2]; 3] = [["node", "run"], ["coordinator", "serve"], ["relay", "serve"]];
/// Programs that lead the same addresses elsewhere.
const OTHERS: [&str; 4] = ["tailscaled", "netbird", "zerotier-one", "nebula"];
/// A `resolv.conf` is far shorter.
const MAX_TEXT: u64 = 16 * 1024;
/// A node that is well answers in milliseconds.
const NODE_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
/// The TUN device's number, `Documentation/admin-guide/devices.txt` of Linux.
const TUN_DEVICE: (u32, u32) = (10, 200);

/// Looks around. `socket` is where the node listens.
pub async fn look(socket: &Path) -> GuestFacts {
    let uname = rustix::system::uname();
    let text = |t: &std::ffi::CStr| t.to_string_lossy().into_owned();
    let service = service();
    let gateway = gateway_interface();
    let (node, node_trouble) = node(socket).await;
    GuestFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: text(uname.machine()),
        kernel: text(uname.release()),
        service,
        program: program(service),
        tun: tun(Path::new("/dev/net/tun")),
        forwarding: Forwarding {
            v4: number("/proc/sys/net/ipv4/ip_forward") == Some(1),
            v6: number("/proc/sys/net/ipv6/conf/all/forwarding") == Some(1),
            accept_ra: gateway.as_ref().and_then(|name| number(&format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"))),
        },
        nft_trouble: nft::trouble(),
        mtu: gateway.as_ref().and_then(|name| number(&format!("/sys/class/net/{name}/mtu"))),
        hardware: hardware(),
        resolv_conf: read("/etc/resolv.conf"),
        clock: Clock { unix: clock::wall().as_second() },
        free_bytes: rustix::fs::statvfs("/var/lib/pvemesh").ok().map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize)),
        others: processes().filter_map(|(_, words)| others(&words)).collect(),
        node,
        node_trouble,
    }
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    let _ = std::fs::File::open(path).and_then(|file| file.take(MAX_TEXT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn number<T: std::str::FromStr>(path: &str) -> Option<T> {
    read(path).trim().parse().ok()
}

/// Who keeps us running: what `enroll` has recorded, or our own init.
fn service() -> Option<Service> {
    #[derive(serde::Deserialize)]
    struct Record {
        service: Service,
    }
    let recorded = std::fs::read(RECORD).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    let appliance = || Path::new("/proc/1/exe").read_link().is_ok_and(|exe| undeleted(&exe) == Path::new(APPLIANCE_PROGRAM));
    let ours =
        std::env::current_exe().is_ok_and(|exe| undeleted(&exe).starts_with("/sbin") && Path::new(crate::sys::init::STORED).exists());
    recorded.map(|record| record.service).or_else(|| (ours && appliance()).then_some(Service::Appliance))
}

/// A program's path without what Linux appends when its file has another name by now.
fn undeleted(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text))
}

/// Every process with the words of its command line.
fn processes() -> impl Iterator<Item = (u32, Vec<String>)> {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_string_lossy().parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<String> = line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        Some((pid, words))
    })
}

fn others(words: &[String]) -> Option<String> {
    let name = Path::new(words.first()?).file_name()?.to_str()?.to_owned();
    OTHERS.contains(&name.as_str()).then_some(name)
}

fn program(service: Option<Service>) -> ProgramFacts {
    let path = std::env::current_exe().map(|exe| undeleted(&exe)).unwrap_or_default();
    let path = if service == Some(Service::Appliance) { PathBuf::from(APPLIANCE_PROGRAM) } else { path };
    let serves = |words: &[String]| SERVICES.iter().any(|service| words.get(1..3).is_some_and(|w| w == service.as_slice()));
    let running = processes().find(|(_, words)| serves(words)).map(|(pid, _)| PathBuf::from(format!("/proc/{pid}/exe")));
    let installed = files::sha256(&path).unwrap_or_default();
    let file = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let hash = |exe: PathBuf| {
        // Mostly it is the very same file, which need not be read twice.
        let same = file(&exe).is_some_and(|exe| Some(exe) == file(&path));
        if same { installed.clone() } else { files::sha256(&exe).unwrap_or_default() }
    };
    ProgramFacts {
        running: running.map(hash).unwrap_or_default(),
        installed: installed.clone(),
        path: path.display().to_string(),
        trial: trial::is_on(),
    }
}

fn tun(path: &Path) -> TunFacts {
    let Ok(meta) = std::fs::metadata(path) else { return TunFacts::default() };
    let device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let is_device = meta.file_type().is_char_device() && device == TUN_DEVICE;
    let trouble = OpenOptions::new().read(true).write(true).open(path).err().map(|e| e.to_string());
    TunFacts { exists: true, is_device, mode: meta.permissions().mode() & 0o7777, user: meta.uid(), group: meta.gid(), trouble }
}

/// The interface of the IPv4 default route.
fn gateway_interface() -> Option<String> {
    let table = read("/proc/net/route");
    let mut rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.get(1) == Some(&"00000000") && row.get(7) == Some(&"00000000")).and_then(|row| row.first().map(|n| (*n).to_owned()))
}

fn hardware() -> Vec<String> {
    let links = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut all: Vec<String> = links
        .filter(|link| number::<u32>(&format!("{}/type", link.path().display())) == Some(1))
        .map(|link| read(&format!("{}/address", link.path().display())).trim().to_ascii_lowercase())
        .filter(|address| !address.is_empty())
        .collect();
    all.sort();
    all
}

async fn node(socket: &Path) -> (Option<NodeFacts>, String) {
    let client = Client::new(socket);
    let asked = tokio::time::timeout(NODE_LIMIT, async { Ok::<_, LocalError>((client.status().await?, client.prefs().await?)) });
    let (status, prefs) = match asked.await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => return (None, error.to_string()),
        Err(_) => return (None, format!("nothing within {NODE_LIMIT:?}; it hangs")),
    };
    let own = status.node.as_ref();
    let facts = NodeFacts {
        state: format!("{:?}", status.backend_state),
        name: own.map(|node| node.name().to_owned()).unwrap_or_default(),
        key: own.map(|node| node.public_key.to_string()).unwrap_or_default(),
        addresses: status.addresses.clone(),
        login_server: status.login_server.clone(),
        coordinator_online: status.coordinator_online,
        refusal: status.refusal.clone(),
        health: status.health.clone(),
        repairs: status.repairs.count,
        carries: !prefs.offered().is_empty(),
        accepts_routes: prefs.accept_routes,
        accepts_dns: prefs.accept_dns,
        userspace: status.interface.is_empty(),
        version: status.version,
    };
    (Some(facts), String::new())
}
