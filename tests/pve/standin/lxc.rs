//! Real unprivileged LXC containers, configured as PVE configures them.
//!
//! As on a real host: the archive is unpacked inside the id map, device nodes for `dev[n]` are made on a small tmpfs by a pre-start
//! hook in the monitor's own mount namespace, an unmanaged container gets no network set-up, and the hookscript's post-stop phase is
//! run by LXC itself, whatever ended the container.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::backend::{Backend, Stop};
use super::guest_config::Config;
use super::schema::Params;
use super::tasks::TaskLog;

/// The first host id of an unprivileged container's ids.
const FIRST_ID: u32 = 100_000;

/// Containers below one directory, in one network namespace.
pub struct Lxc {
    dir: PathBuf,
    prefix: String,
    namespace: Option<PathBuf>,
    /// First process and its start time, of every container started.
    started: Mutex<BTreeMap<u32, (u32, u64)>>,
}

/// Why real containers cannot run here, if so.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("containers need root".to_owned());
    }
    let tools = ["lxc-start", "lxc-usernsexec", "nsenter", "ip"];
    let absent = tools.iter().find(|tool| !["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|d| Path::new(d).join(tool).exists()));
    absent.map(|tool| format!("{tool} is not installed (make deps)"))
}

impl Lxc {
    /// Containers below `dir`, named `PREFIX-ID`, their bridge in the named network namespace, or in the process's own.
    pub fn new(dir: impl Into<PathBuf>, prefix: &str, namespace: Option<PathBuf>) -> Self {
        Self { dir: dir.into().join("containers"), prefix: prefix.to_owned(), namespace, started: Mutex::default() }
    }

    fn name(&self, id: u32) -> String {
        format!("{}-{id}", self.prefix)
    }

    fn home(&self, id: u32) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// A command in the host's network namespace: LXC's command sockets are abstract, hence per network namespace.
    fn command(&self, program: &str) -> Command {
        match &self.namespace {
            Some(path) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", path.display())).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    fn lxc(&self, program: &str, id: u32, arguments: &[&str]) -> std::io::Result<Output> {
        self.command(program).arg("-P").arg(&self.dir).args(["-n", &self.name(id)]).args(arguments).stdin(Stdio::null()).output()
    }

    fn script(&self, id: u32, file: &str, lines: &str) -> Result<PathBuf, String> {
        let path = self.home(id).join(file);
        std::fs::write(&path, format!("#!/bin/sh\n{lines}")).map_err(|e| format!("{}: {e}", path.display()))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
        Ok(path)
    }

    fn write_config(&self, id: u32, config: &Config, post_stop: Option<&Path>) -> Result<(), String> {
        let home = self.home(id);
        let mut text = String::new();
        let mut set = |key: &str, value: &str| {
            let _ = writeln!(text, "{key} = {value}");
        };
        set("lxc.arch", config.get("arch").unwrap_or("amd64"));
        if config.is_set("unprivileged") {
            set("lxc.idmap", &format!("u 0 {FIRST_ID} 65536"));
            set("lxc.idmap", &format!("g 0 {FIRST_ID} 65536"));
        }
        set("lxc.uts.name", &config.get("hostname").map_or_else(|| format!("CT{id}"), str::to_owned));
        set("lxc.rootfs.path", &format!("dir:{}", home.join("rootfs").display()));
        set("lxc.mount.auto", "cgroup:mixed proc:mixed sys:mixed");
        // One of the few of LXC's own keys that Proxmox passes on from a container's file.
        let profile = config.raw().iter().find(|(key, _)| key == "lxc.seccomp.profile").map(|(_, path)| path.as_str());
        set("lxc.seccomp.profile", profile.unwrap_or("/usr/share/lxc/config/common.seccomp"));
        set("lxc.monitor.unshare", "1");
        set("lxc.pty.max", "1024");
        set("lxc.tty.max", config.get("tty").unwrap_or("2"));
        set("lxc.console.logfile", &home.join("console.log").display().to_string());
        if let Some(bytes) = config.get("memory").and_then(|m| m.parse::<u64>().ok()).map(|mib| mib << 20) {
            let v1 = Path::new("/sys/fs/cgroup/memory").is_dir();
            set(if v1 { "lxc.cgroup.memory.limit_in_bytes" } else { "lxc.cgroup2.memory.max" }, &bytes.to_string());
        }
        if let Some(entry) = config.get("entrypoint") {
            set("lxc.init.cmd", entry);
        }
        for pair in config.environment() {
            set("lxc.environment", pair);
        }
        let mut nodes = String::new();
        for (_, device) in config.family("dev") {
            let path = device.get("path").map_or("", String::as_str);
            let get = |key: &str, default: &str| device.get(key).map_or(default, String::as_str).to_owned();
            nodes += &device_node(path, &get("mode", "0660"), &get("uid", "0"), &get("gid", "0"), config.is_set("unprivileged"))?;
            let inside = path.trim_start_matches('/');
            let outside = home.join("passthrough").join(inside);
            set("lxc.mount.entry", &format!("{} {inside} none bind,create=file 0 0", outside.display()));
        }
        if !nodes.is_empty() {
            let tmpfs = "mkdir -p passthrough\nmount -t tmpfs -o mode=755,size=64k none passthrough\n";
            let lines = format!("set -e\ncd {}\n{tmpfs}cd passthrough\n{nodes}", home.display());
            set("lxc.hook.pre-start", &self.script(id, "devices", &lines)?.display().to_string());
        }
        if let Some(script) = post_stop {
            let line = format!("[ \"$LXC_TARGET\" = reboot ] || exec {} {id} post-stop\n", script.display());
            set("lxc.hook.post-stop", &self.script(id, "post-stop", &line)?.display().to_string());
        }
        for (number, keys) in config.family("net") {
            let net = format!("lxc.net.{number}");
            let get = |key: &str| keys.get(key).map(String::as_str);
            set(&format!("{net}.type"), "veth");
            set(&format!("{net}.veth.pair"), &format!("veth{id}i{number}"));
            for (key, ours) in [("name", "name"), ("hwaddr", "hwaddr"), ("mtu", "mtu")] {
                get(key).into_iter().for_each(|value| set(&format!("{net}.{ours}"), value));
            }
            let bridge = get("bridge").unwrap_or_default();
            let lines = format!("ip link set dev \"$5\" master {bridge} && ip link set dev \"$5\" up\n");
            set(&format!("{net}.script.up"), &self.script(id, &format!("net{number}-up"), &lines)?.display().to_string());
            if get("host-managed") == Some("1") {
                set(&format!("{net}.flags"), "up");
                let fixed = |key: &str| get(key).filter(|v| v.contains('/') || key.starts_with("gw"));
                for (key, ours) in [("ip", "ipv4.address"), ("gw", "ipv4.gateway"), ("ip6", "ipv6.address"), ("gw6", "ipv6.gateway")] {
                    fixed(key).into_iter().for_each(|value| set(&format!("{net}.{ours}"), value));
                }
            }
        }
        let lxc_dir = self.dir.join(self.name(id));
        std::fs::create_dir_all(&lxc_dir).and_then(|()| std::fs::write(lxc_dir.join("config"), text)).map_err(|e| e.to_string())
    }

    /// Waits until nothing of a container runs any more, its monitor included.
    fn gone(&self, id: u32, limit: Duration) -> bool {
        let title = format!("[lxc monitor] {} {}", self.dir.display(), self.name(id));
        until(limit, || !processes().any(|(_, line)| line.starts_with(&title)))
    }
}

/// The lines that make one device node, owned by the container's user.
fn device_node(path: &str, mode: &str, uid: &str, gid: &str, unprivileged: bool) -> Result<String, String> {
    let found = std::fs::metadata(path).map_err(|_| format!("Could not get mode or device ID of {path}"))?;
    let kind = if found.file_type().is_block_device() { 'b' } else { 'c' };
    let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
    let shift = |id: &str| id.parse().unwrap_or(0) + if unprivileged { FIRST_ID } else { 0 };
    let (uid, gid) = (shift(uid), shift(gid));
    let inside = path.trim_start_matches('/');
    Ok(format!("mkdir -p \"$(dirname {inside})\"\nmknod -m {mode} {inside} {kind} {major} {minor}\nchown {uid}:{gid} {inside}\n"))
}

/// Polls a condition.
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Every process with its command line.
pub fn processes() -> impl Iterator<Item = (u32, String)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_string_lossy().parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned()))
    })
}

/// When a process started, in clock ticks since boot; nothing for a dead one.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Backend for Lxc {
    fn create(&self, id: u32, config: &Config, archive: &Path, log: &TaskLog) -> Result<(), String> {
        let rootfs = self.home(id).join("rootfs");
        let fault = |e: std::io::Error| e.to_string();
        std::fs::create_dir_all(&rootfs).map_err(fault)?;
        std::fs::set_permissions(&rootfs, Permissions::from_mode(0o755)).map_err(fault)?;
        let owner = if config.is_set("unprivileged") { FIRST_ID } else { 0 };
        std::os::unix::fs::chown(&rootfs, Some(owner), Some(owner)).map_err(fault)?;
        log.line(format!("extracting archive '{}'", archive.display()));
        let mut command = Command::new(if owner == 0 { "tar" } else { "lxc-usernsexec" });
        if owner != 0 {
            command.args(["-m", "u:0:100000:65536", "-m", "g:0:100000:65536", "--", "tar"]);
        }
        let kind = match archive.extension().and_then(|e| e.to_str()).unwrap_or_default() {
            "gz" => Some("-z"),
            "xz" => Some("-J"),
            "zst" => Some("--zstd"),
            "bz2" => Some("-j"),
            _ => None,
        };
        command.args(["xpf", "-"]).args(kind).args([
            "--totals",
            "--one-file-system",
            "-p",
            "--sparse",
            "--numeric-owner",
            "--acls",
            "--xattrs",
        ]);
        command.args(["--xattrs-include=user.*", "--xattrs-include=security.capability", "--warning=no-file-ignored"]);
        command.args(["--warning=no-xattr-write", "-C"]).arg(&rootfs);
        command.args(["--skip-old-files", "--anchored", "--exclude", "./dev/*"]);
        let output = command.stdin(File::open(archive).map_err(fault)?).output().map_err(fault)?;
        String::from_utf8_lossy(&output.stderr).lines().for_each(|line| log.line(line));
        if output.status.success() { Ok(()) } else { Err(format!("command 'tar' failed: {}", output.status)) }
    }

    fn start(&self, id: u32, config: &Config, post_stop: Option<&Path>) -> Result<(), String> {
        self.gone(id, Duration::from_secs(10));
        self.write_config(id, config, post_stop)?;
        let log = self.home(id).join("lxc.log");
        let _ = std::fs::remove_file(&log);
        let output = self.lxc("lxc-start", id, &["-o", &log.display().to_string(), "-l", "INFO"]).map_err(|e| e.to_string())?;
        if !output.status.success() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let why = text.lines().find(|l| l.contains(" ERROR ")).unwrap_or("no error in its log").to_owned();
            return Err(format!("startup for container '{id}' failed: {why}"));
        }
        let output = self.lxc("lxc-info", id, &["-p", "-H"]).map_err(|e| e.to_string())?;
        if let Ok(pid) = String::from_utf8_lossy(&output.stdout).trim().parse()
            && let Some(start) = start_time(pid)
        {
            self.started.lock().unwrap().insert(id, (pid, start));
        }
        Ok(())
    }

    fn stop(&self, id: u32, how: Stop) -> bool {
        let _ = match how {
            Stop::Kill => self.lxc("lxc-stop", id, &["-k"]),
            Stop::Halt(limit) => self.lxc("lxc-stop", id, &["--nokill", "-t", &limit.as_secs().max(1).to_string()]),
        };
        self.pid(id).is_none()
    }

    /// A real host mounts the node into the container's namespace. Here it is made in the root file system, which is the host's own and so
    /// may hold devices, and a link leads to it.
    fn plug(&self, id: u32, device: &Params) -> Result<(), String> {
        let path = device.get("path").map_or("", String::as_str);
        let get = |key: &str, default: &str| device.get(key).map_or(default, String::as_str).to_owned();
        let inside = path.trim_start_matches('/');
        let place = format!(".plugged/{inside}");
        let node = device_node(path, &get("mode", "0660"), &get("uid", "0"), &get("gid", "0"), true)?.replace(inside, &place);
        let pid = self.pid(id).ok_or("not running")?;
        // The container's /dev belongs to its own users, so the link is made by its root.
        let link = format!("d=/proc/{pid}/root/{inside}; mkdir -p $(dirname $d) && {{ [ -e $d ] || ln -s /{place} $d; }}");
        let rootfs = self.home(id).join("rootfs");
        let line = format!("set -e\ncd {}\nrm -f {place}\n{node}nsenter -t {pid} -U sh -c '{link}'\n", rootfs.display());
        let output = Command::new("sh").args(["-c", &line]).output().map_err(|e| e.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn destroy(&self, id: u32) {
        self.stop(id, Stop::Kill);
        self.gone(id, Duration::from_secs(10));
        self.started.lock().unwrap().remove(&id);
        let _ = std::fs::remove_dir_all(self.home(id));
        let _ = std::fs::remove_dir_all(self.dir.join(self.name(id)));
    }

    fn pid(&self, id: u32) -> Option<u32> {
        let mut started = self.started.lock().unwrap();
        let (pid, start) = *started.get(&id)?;
        if start_time(pid) == Some(start) {
            return Some(pid);
        }
        // A reboot from inside gives it a new first process.
        let output = self.lxc("lxc-info", id, &["-p", "-H"]).ok()?;
        let again = String::from_utf8_lossy(&output.stdout).trim().parse().ok().and_then(|pid| Some((pid, start_time(pid)?)));
        match again {
            Some((pid, start)) => {
                started.insert(id, (pid, start));
                Some(pid)
            }
            None => {
                started.remove(&id);
                None
            }
        }
    }

    fn interfaces(&self, id: u32) -> Value {
        let Some(pid) = self.pid(id) else { return Value::Null };
        let output = Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "ip", "-j", "addr"]).output();
        let found: Value = output.ok().and_then(|o| serde_json::from_slice(&o.stdout).ok()).unwrap_or_default();
        let rows = found.as_array().into_iter().flatten().filter(|i| i["ifname"].is_string()).map(|interface| {
            let mut row = json!({ "name": interface["ifname"], "hwaddr": interface["address"], "hardware-address": interface["address"] });
            let mut addresses = Vec::new();
            for address in interface["addr_info"].as_array().into_iter().flatten() {
                let (family, local) = (address["family"].as_str().unwrap_or_default(), address["local"].as_str().unwrap_or_default());
                let prefix = address["prefixlen"].to_string();
                if row.get(family).is_none() {
                    row[family] = json!(format!("{local}/{prefix}"));
                }
                addresses.push(json!({ "ip-address": local, "ip-address-type": family, "prefix": prefix }));
            }
            row["ip-addresses"] = json!(addresses);
            row
        });
        rows.collect()
    }

    fn memory(&self, id: u32) -> u64 {
        let files = ["/sys/fs/cgroup/memory/lxc.payload.NAME/memory.usage_in_bytes", "/sys/fs/cgroup/lxc.payload.NAME/memory.current"];
        let read = |file: &&str| std::fs::read_to_string(file.replace("NAME", &self.name(id))).ok()?.trim().parse().ok();
        files.iter().find_map(read).unwrap_or(0)
    }

    fn clear(&self) {
        let homes = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let ids: Vec<u32> = homes.filter_map(|e| e.file_name().to_string_lossy().parse().ok()).collect();
        for id in ids {
            self.destroy(id);
        }
    }
}
