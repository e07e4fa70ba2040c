//! Machines whose names somebody else has in hand: the real systemd-resolved, resolvconf and openresolv, in mounts of their own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hickory_proto::rr::RecordType;

use super::names::{addresses, ask, start_name_server, up};
use super::world::{Machine, PROGRAM, World, possible, text, wait_for};

/// Where a package's files are; says so if they are not.
fn unpacked(package: &str) -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/name-programs").join(package);
    let there = place.is_dir();
    if !there {
        println!("skipped: {package} is not there; `make test-deps` fetches it");
    }
    there.then_some(place)
}

/// A machine with `/etc` and `/run` of the test's, and more in `/usr`.
struct Managed<'a> {
    machine: &'a mut Machine,
    etc: PathBuf,
    holder: String,
}

impl<'a> Managed<'a> {
    fn new(machine: &'a mut Machine, package: &Path, files: &[(&str, &str)]) -> Self {
        let etc = machine.path("etc");
        std::fs::create_dir_all(etc.join("systemd")).unwrap();
        let copied = |file: &str, more: &str| std::fs::read_to_string(format!("/etc/{file}")).unwrap() + more;
        std::fs::write(etc.join("passwd"), copied("passwd", "systemd-resolve:x:64990:64990::/:/usr/sbin/nologin\n")).unwrap();
        std::fs::write(etc.join("group"), copied("group", "systemd-resolve:x:64990:\n")).unwrap();
        std::fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n").unwrap();
        for (file, contents) in files {
            std::fs::write(etc.join(file), contents).unwrap();
        }
        // The package as it would be installed: what it has in `/lib` and `/sbin` lies in `/usr` on today's systems.
        let layer = machine.path("layer");
        std::fs::create_dir(&layer).unwrap();
        let copy = "for d in lib sbin; do test ! -e $0/$d || cp -r $0/$d $1/; done; test ! -e $0/usr || cp -r $0/usr/. $1/; \
                    test ! -e $0/etc/resolvconf || cp -r $0/etc/resolvconf $2/";
        assert!(Command::new("sh").args(["-ec", copy]).args([package, &layer, &etc]).status().unwrap().success());
        let mounts = format!(
            "mount --bind {} /etc; mount -t tmpfs none /run; mkdir -p /run/dbus /run/systemd/resolve /run/resolvconf/interface; \
             chown 64990:64990 /run/systemd/resolve; mount -t overlay overlay -o lowerdir={}:/usr /usr; echo ready >{}; exec sleep 600",
            etc.display(),
            layer.display(),
            machine.path("ready").display()
        );
        let mut command = machine.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &mounts]);
        let child = command.spawn().unwrap();
        let holder = child.id().to_string();
        machine.children.push(child);
        wait_for("the mounts", || machine.path("ready").exists().then_some(()));
        Self { machine, etc, holder }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.machine.command("nsenter");
        command.args([&format!("--mount=/proc/{}/ns/mnt", self.holder), program]);
        command
    }

    /// What a command says; nothing if it fails.
    fn said(&self, line: &str) -> String {
        let out = self.command("sh").args(["-ec", line]).stderr(Stdio::null()).output().unwrap();
        if out.status.success() { text(&out.stdout) } else { String::new() }
    }

    fn start(&mut self, program: &str, arguments: &[&str]) {
        let mut command = self.command(program);
        let child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.machine.children.push(child);
    }

    fn start_node(&mut self) {
        let (socket, state) = (self.machine.path("node.sock"), self.machine.path("state"));
        self.start(PROGRAM, &["node", "--socket", socket.to_str().unwrap(), "run", "--state-dir", state.to_str().unwrap()]);
        wait_for("the node's socket", || socket.exists().then_some(()));
    }

    fn start_resolved(&mut self) {
        self.start("/lib/systemd/systemd-resolved", &[]);
        wait_for("systemd-resolved", || (!self.said("resolvectl status").is_empty()).then_some(()));
    }

    /// Kills what was started last.
    fn kill_last(&mut self) {
        let mut child = self.machine.children.pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The IPv4 address of a name, as this machine's programs find it.
    fn found(&self, name: &str) -> Option<Ipv4Addr> {
        self.said(&format!("getent ahostsv4 {name}")).split_whitespace().next()?.parse().ok()
    }

    fn resolv_conf(&self) -> String {
        self.said("cat /etc/resolv.conf")
    }

    fn led_by(&self) -> String {
        let out = self.machine.node(&["--json", "dns", "status"]);
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()["LedBy"].to_string()
    }
}

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true"/><allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/>
<allow receive_type="signal"/></policy></busconfig>
"#;

#[test]
fn systemd_resolved_is_told_of_the_mesh_by_its_link_and_its_file_stays_a_link() {
    let Some(package) = unpacked("systemd-resolved").filter(|_| possible()) else { return };
    let mut world = World::new();
    start_name_server(&world.coordinator, "10.9.2.1:53");
    let nas = up(&world, &world.exit, "nas");
    let files = [("bus.conf", BUS), ("systemd/resolved.conf", "[Resolve]\nDNS=10.9.2.1\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\n")];
    let (key, admin) = (world.key(&[]), world.coordinator.path("c.sock"));
    let mut laptop = Managed::new(&mut world.laptop, &package, &files);
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", laptop.etc.join("resolv.conf")).unwrap();
    laptop.start("dbus-daemon", &["--config-file=/etc/bus.conf", "--nofork", "--nopidfile"]);
    wait_for("the bus", || (!laptop.said("test -S /run/dbus/system_bus_socket && echo yes").is_empty()).then_some(()));
    // Before the node starts nothing of the mesh is known, and the machine's own server answers.
    laptop.start_node();
    laptop.start_resolved();
    let before = laptop.resolv_conf();
    assert!(before.contains("nameserver 127.0.0.53"), "{before}");
    let join = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "laptop"];
    let out = laptop.machine.up(&join);
    assert!(out.status.success(), "{}", text(&out.stderr));

    let told = |laptop: &Managed<'_>| laptop.said("resolvectl dns pvemesh0").contains("100.100.100.100");
    wait_for("the link's server", || told(&laptop).then_some(()));
    let domains =
        wait_for("the link's domains", || Some(laptop.said("resolvectl domain pvemesh0")).filter(|said| said.contains("mesh.internal")));
    assert!(domains.contains("~64.100.in-addr.arpa") && !domains.contains("~. ") && !domains.trim_end().ends_with("~."), "{domains}");
    wait_for("names of the mesh, by their short and full names", || (laptop.found("nas")? == nas).then_some(()));
    assert_eq!(laptop.found("nas.mesh.internal"), Some(nas));
    assert_eq!(laptop.found("example.com"), Some([192, 0, 2, 7].into()), "the machine's own server");
    assert_eq!(addresses(&ask(laptop.machine, "example.com.", RecordType::A).unwrap()), [Ipv4Addr::new(192, 0, 2, 7)], "by us, too");
    // It is systemd-resolved's own file still, which it has added the search domain to.
    assert_eq!(laptop.resolv_conf(), before.replace("search .", "search mesh.internal"));
    assert_eq!(laptop.led_by(), r#""systemd-resolved""#);
    assert!(std::fs::read_link(laptop.etc.join("resolv.conf")).is_ok());

    // It starts anew and has forgotten everything; somebody takes our settings away.
    laptop.kill_last();
    laptop.said("rm -rf /run/systemd/resolve/netif");
    laptop.start_resolved();
    wait_for("the link's server after a restart", || told(&laptop).then_some(()));
    assert_eq!(wait_for("the name again", || laptop.found("nas")), nas);
    laptop.said("resolvectl revert pvemesh0");
    assert!(!told(&laptop));
    wait_for("the link's server after it was taken away", || told(&laptop).then_some(()));

    // Servers for everything: everything is asked of us.
    let set = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        let out = command.args(["coordinator", "dns"]).args(arguments).arg("--socket").arg(&admin).output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
    };
    set(&["nameservers", "add", "10.9.1.1"]);
    set(&["set", "--override", "on"]);
    wait_for("everything", || laptop.said("resolvectl domain pvemesh0").trim_end().ends_with("~.").then_some(()));
    assert!(laptop.said("resolvectl default-route pvemesh0").contains("yes"));

    assert!(laptop.machine.node(&["set", "--accept-dns=false"]).status.success());
    wait_for("nothing of ours", || (!told(&laptop)).then_some(()));
    assert!(laptop.machine.node(&["set", "--accept-dns=true"]).status.success());
    wait_for("the link's server once more", || told(&laptop).then_some(()));
    assert!(laptop.machine.node(&["down"]).status.success());
    wait_for("the link is gone or has nothing of ours", || (!told(&laptop)).then_some(()));
    wait_for("the file as it was", || (laptop.resolv_conf() == before).then_some(()));
    assert!(std::fs::read_link(laptop.etc.join("resolv.conf")).is_ok());
}

/// Both programs of that name. `before` is what they make of the machine's own record.
fn handed_in(package: &str, led_by: &str, link: bool) {
    let Some(place) = unpacked(package).filter(|_| possible()) else { return };
    let mut world = World::new();
    start_name_server(&world.coordinator, "10.9.2.1:53");
    let nas = up(&world, &world.exit, "nas");
    let key = world.key(&[]);
    let mut laptop = Managed::new(&mut world.laptop, &place, &[]);
    if link {
        std::os::unix::fs::symlink("/run/resolvconf/resolv.conf", laptop.etc.join("resolv.conf")).unwrap();
        laptop.said("resolvconf --enable-updates");
    }
    laptop.said("printf 'nameserver 10.9.2.1\\nsearch home.lan\\n' | resolvconf -a eth0.dhcp");
    let before = laptop.resolv_conf();
    assert!(before.contains("nameserver 10.9.2.1"), "{before}");
    laptop.start_node();
    let join = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "laptop"];
    let out = laptop.machine.up(&join);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let first = |laptop: &Managed<'_>| laptop.resolv_conf().lines().find(|line| line.starts_with("nameserver")).map(str::to_owned);
    let leads_here = |laptop: &Managed<'_>| (first(laptop)? == "nameserver 100.100.100.100").then_some(());
    wait_for("our record", || leads_here(&laptop));
    let now = laptop.resolv_conf();
    assert!(now.contains("search mesh.internal home.lan"), "{now}");
    assert_eq!(laptop.led_by(), format!("\"{led_by}\""));
    assert_eq!(wait_for("the name", || laptop.found("nas")), nas);
    assert_eq!(laptop.found("example.com"), Some([192, 0, 2, 7].into()), "the machine's own server, through us");

    // Another server by DHCP does not get in front, and is asked; a record that is taken away comes back.
    laptop.said("printf 'nameserver 10.9.1.1\\nsearch home.lan\\n' | resolvconf -a eth0.dhcp");
    assert_eq!(leads_here(&laptop), Some(()));
    let records = laptop.said("resolvconf -l");
    let ours = records.lines().find_map(|line| line.strip_prefix("# resolv.conf from ").filter(|name| name.contains("pvemesh"))).unwrap();
    laptop.said(&format!("resolvconf -d {ours}"));
    wait_for("our record again", || leads_here(&laptop));

    // A killed one leaves its record; the next one takes it away first, and `down` at last.
    laptop.kill_last();
    std::fs::remove_file(laptop.machine.path("node.sock")).unwrap();
    assert_eq!(leads_here(&laptop), Some(()));
    laptop.start_node();
    laptop.machine.wait_until_running();
    wait_for("our record after a new start", || leads_here(&laptop));
    assert!(laptop.machine.node(&["down"]).status.success());
    wait_for("the machine's own file", || {
        let now = laptop.resolv_conf();
        (now.contains("nameserver 10.9.1.1") && !now.contains("100.100.100.100") && !now.contains("mesh.internal")).then_some(())
    });
    assert!(!laptop.said("resolvconf -l").contains("pvemesh"));
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn debians_resolvconf_is_handed_a_record_that_comes_first() {
    handed_in("resolvconf", "resolvconf", true);
}

#[test]
fn openresolv_is_handed_a_record_that_is_the_only_one() {
    handed_in("openresolv", "openresolv", false);
}
