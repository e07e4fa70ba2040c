//! A Proxmox host in a network namespace of its own: the stand-in with real containers, `pct` and an `ssh` that leads to it, and the binary.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use serde_json::Value;

use crate::standin::lxc::{Lxc, missing, until};
use crate::standin::{Options, Standin, Version, pct};

const PASSWORD: &str = "correct horse";

/// Containers are many processes on few cores: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

/// The program under test, without what only debuggers read: it is copied into every guest.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pvemesh-stripped");
        let stripped = Command::new("strip").arg("-o").arg(&path).arg(env!("CARGO_BIN_EXE_pvemesh")).status();
        if !stripped.is_ok_and(|status| status.success()) {
            std::fs::copy(env!("CARGO_BIN_EXE_pvemesh"), &path).unwrap();
        }
        path
    })
}

pub struct Site {
    pub standin: Standin,
    pub dir: tempfile::TempDir,
    pub namespace: String,
    _one: MutexGuard<'static, ()>,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    #[track_caller]
    pub fn failed(&self, code: i32, said: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for part in said {
            assert!(self.err.contains(part), "`{part}` is missing: {self:?}");
        }
        self
    }

    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
}

pub fn read(output: Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

pub fn shell(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Site {
    /// The site, or nothing where it cannot be, which is said.
    pub fn new() -> Option<Self> {
        Self::with(Version::V9_1, false)
    }

    /// A site of another release; with `old_pct`, one whose `pct exec` does not know `--keep-env` yet.
    pub fn with(version: Version, old_pct: bool) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if let Some(why) = missing() {
            println!("skipped: {why}");
            return None;
        }
        let one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let namespace = format!("pvi-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        shell(&format!("ip netns add {namespace}"));
        let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
        // This thread's, and so that of all it starts: stand-in, containers, commands.
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
        shell(
            "ip link set lo up; ip link add vmbr0 type bridge; ip link set vmbr0 up; ip addr add 192.168.60.2/24 dev vmbr0; \
             ip addr add 192.168.60.1/24 dev vmbr0",
        );
        let dir = tempfile::Builder::new().prefix("pvi-").tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let host = dir.path().join("host");
        let mut options = Options::new(&host);
        options.password = PASSWORD.to_owned();
        options.version = version;
        // Where machines beyond the LAN find it, too.
        options.listen = ([192, 168, 60, 2], 0).into();
        options.bridges = vec![("vmbr0".to_owned(), "192.168.60.2/24".to_owned())];
        options.backend = Box::new(Lxc::new(&host, &namespace, None));
        let standin = Standin::start(options).unwrap();
        let site = Self { standin, dir, namespace, _one: one };
        let bin = site.path("bin");
        std::fs::create_dir(&bin).unwrap();
        site.script("bin/pct", &pct::script(&host, &site.namespace, None, old_pct));
        // The way of `ssh root@pve LINE`: options, the place, and a line for the other side's shell.
        let ssh = "#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\n[ \"$1\" = root@pve ] || { echo \"ssh: connect to host $1 port 22: No route to host\" >&2; exit 255; }\nexec sh -c \"$2\"\n";
        site.script("bin/ssh", ssh);
        let password = site.path("password");
        std::fs::write(&password, PASSWORD).unwrap();
        std::fs::set_permissions(&password, Permissions::from_mode(0o600)).unwrap();
        let init = format!(
            "init --url {} --user root@pam --password-file {} --fingerprint {}",
            site.standin.url(),
            password.display(),
            site.standin.fingerprint()
        );
        // Packing the image takes long in a debug build; all sites share one.
        let images = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("inside-images");
        std::fs::create_dir_all(&images).unwrap();
        std::fs::create_dir(site.path("config")).unwrap();
        std::fs::set_permissions(site.path("config"), Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&images, site.path("config/images")).unwrap();
        site.run(&init).succeeded();
        Some(site)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn script(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), Permissions::from_mode(0o755)).unwrap();
    }

    /// A command with the site's `pct` and `ssh` in its path.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display()));
        command.env("TMPDIR", self.dir.path()).env("PVEMESH_CONFIG_DIR", self.path("config"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn pvemesh(&self, words: &str) -> Command {
        let mut command = self.command(program());
        command.args(words.split_whitespace());
        command
    }

    pub fn run(&self, words: &str) -> Ran {
        let ran = read(self.pvemesh(words).output().unwrap());
        println!("$ pvemesh {words}\n{}{}", ran.out, ran.err);
        ran
    }

    /// `pct` with these words.
    pub fn pct(&self, words: &[&str]) -> Ran {
        read(self.command(self.path("bin/pct")).args(words).output().unwrap())
    }

    /// The nodes that the coordinator in container 100 knows.
    pub fn nodes(&self) -> Value {
        self.pct(&["exec", "100", "--keep-env", "0", "--", "/sbin/init", "--json", "coordinator", "nodes", "list"]).succeeded().json()["nodes"].clone()
    }

    /// A file of a container, seen from the host.
    pub fn rootfs(&self, id: u32, path: &str) -> PathBuf {
        self.path("host/containers").join(id.to_string()).join("rootfs").join(path.trim_start_matches('/'))
    }

    /// A call as root on the host.
    pub fn api(&self, method: &str, path: &str, params: &[(&str, &str)]) -> Value {
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        let request = match method {
            "POST" | "PUT" => format!("{method} /api2/json{path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{form}", form.len()),
            _ => format!("{method} /api2/json{path}?{form} HTTP/1.1\r\n\r\n"),
        };
        let mut stream = UnixStream::connect(self.standin.socket()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let (mut status, mut length) = (String::new(), 0);
        reader.read_line(&mut status).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        assert!(status.contains(" 200 "), "{method} {path}: {status}{}", String::from_utf8_lossy(&body));
        self.standin.settle(Duration::from_secs(60));
        serde_json::from_slice::<Value>(&body).unwrap()["data"].clone()
    }

    /// A container of somebody else's: a small distribution of BusyBox alone with a plain `/etc/init.d`, and its own address.
    pub fn busybox(&self, id: u32, more: &[(&str, &str)]) {
        let root = self.path(&format!("busybox-{id}"));
        let line = format!(
            "r={}; mkdir -p $r/bin $r/sbin $r/usr/bin $r/usr/local/bin $r/etc/init.d $r/dev $r/proc $r/sys $r/tmp $r/run $r/var/log $r/root
             cp /bin/busybox $r/bin/busybox 2>/dev/null || cp /usr/bin/busybox $r/bin/busybox
             for a in sh ls cat echo mkdir rm mv cp ln ps kill sleep ip head stat uname df pidof sha256sum setsid awk sed grep printf true readlink id chmod seq nc httpd wget; do ln -sf busybox $r/bin/$a; done
             ln -sf ../bin/busybox $r/sbin/init
             printf 'ID=tinybox\\nVERSION_ID=1\\n' > $r/etc/os-release; printf 'root:x:0:0:root:/root:/bin/sh\\n' > $r/etc/passwd
             printf 'nameserver 192.168.60.1\\n' > $r/etc/resolv.conf
             printf '::sysinit:/etc/init.d/rcS\\n::shutdown:/bin/true\\n' > $r/etc/inittab
             printf '#!/bin/sh\\nip link set lo up; ip link set eth0 up; ip addr add 192.168.60.{}/24 dev eth0; ip route add default via 192.168.60.1\\nfor s in /etc/init.d/S??*; do [ -x \"$s\" ] && \"$s\" start; done\\n' > $r/etc/init.d/rcS
             chmod 755 $r/etc/init.d/rcS; tar -czf {} -C $r ./bin ./sbin ./usr ./etc ./dev ./proc ./sys ./tmp ./run ./var ./root",
            root.display(),
            id,
            self.standin.storage_dir("local").join("template/cache").join(format!("tinybox-{id}.tar.gz")).display()
        );
        shell(&line);
        let template = format!("local:vztmpl/tinybox-{id}.tar.gz");
        let vmid = id.to_string();
        let mut params = vec![
            ("vmid", vmid.as_str()),
            ("ostemplate", template.as_str()),
            ("hostname", "wiki"),
            ("ostype", "unmanaged"),
            ("arch", "amd64"),
            ("unprivileged", "1"),
            ("rootfs", "local-lvm:1"),
            ("memory", "512"),
            ("net0", "name=eth0,bridge=vmbr0"),
        ];
        params.extend(more);
        self.api("POST", "/nodes/pve/lxc", &params);
        self.start(id);
    }

    pub fn start(&self, id: u32) {
        self.api("POST", &format!("/nodes/pve/lxc/{id}/status/start"), &[]);
        assert!(self.standin.is_running(id), "{:?}", self.standin.task_exits());
    }

    pub fn stop(&self, id: u32) {
        self.api("POST", &format!("/nodes/pve/lxc/{id}/status/stop"), &[]);
    }

    /// Waits for what takes so many seconds at most where there is not much else to do; three times as long, for a busy machine.
    #[track_caller]
    pub fn wait(&self, what: &str, limit: u64, condition: impl FnMut() -> bool) {
        let limit = 3 * limit;
        assert!(until(Duration::from_secs(limit), condition), "did not happen within {limit} s: {what}");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.path("host/containers")).into_iter().flatten().flatten() {
                for log in ["console.log", "rootfs/var/lib/pvemesh/log"] {
                    let text = std::fs::read_to_string(entry.path().join(log)).unwrap_or_default();
                    let lines: Vec<_> = text.lines().collect();
                    println!("--- {}/{log}\n{}", entry.path().display(), lines[lines.len().saturating_sub(40)..].join("\n"));
                }
            }
        }
        // The containers go with the stand-in, which is dropped after this.
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}
