//! Attached guests on two hosts of a cluster, as the hosts' own programs follow them: named from the first start to the last stop, by the hook
//! alone, by what an agent says or the neighbours show, through migrations, and bounded in time by whatever hangs.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::estate::Estate;
use crate::standin::Storage;
use crate::standin::cluster::Host;
use crate::standin::guest_config::Config;
use crate::standin::lxc::{processes, until};
use crate::standin::qemu::Machine;
use crate::versions::cannot_be_on_the_host;
use crate::world::Ran;

const MAC: &str = "BC:24:11:00:02:00";
const PHASES: [&str; 4] = ["pre-start", "post-start", "pre-stop", "post-stop"];

/// A network of the hosts' own, with the bridge, and a machine at it.
struct Network(String);

impl Network {
    fn new() -> Self {
        let network = Self(format!("pvf-{}", std::process::id()));
        let (name, guest) = (&network.0, network.guest());
        network.ip(&format!("netns add {name}"));
        network.ip(&format!("netns add {guest}"));
        let file = std::fs::File::open(Path::new("/run/netns").join(name)).unwrap();
        // This thread's, and so that of all it starts: stand-in, hooks, commands.
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
        for line in [
            "link set lo up".to_owned(),
            "link add vmbr0 type bridge".to_owned(),
            "link set vmbr0 up".to_owned(),
            "addr add 192.168.50.2/24 dev vmbr0".to_owned(),
            format!("link add tap2200i0 type veth peer name eth0 address {MAC} netns {guest}"),
            "link set tap2200i0 master vmbr0 up".to_owned(),
            format!("-n {guest} addr add 192.168.50.77/24 dev eth0"),
            format!("-n {guest} link set eth0 up"),
        ] {
            network.ip(&line);
        }
        network
    }

    fn guest(&self) -> String {
        format!("{}-vm", self.0)
    }

    fn ip(&self, line: &str) {
        let status = Command::new("ip").args(line.split(' ')).status().unwrap();
        assert!(status.success(), "ip {line}");
    }

    /// The machine speaks to the host, which knows it as a neighbour from then on.
    fn speak(&self) {
        let guest = self.guest();
        let pinged = || {
            let mut ping = Command::new("ip");
            ping.args(["netns", "exec", &guest, "ping", "-c1", "-W1", "192.168.50.2"]).stdout(Stdio::null()).status().unwrap().success()
        };
        assert!(until(Duration::from_secs(10), pinged), "the machine does not reach its host");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [self.guest(), self.0.clone()] {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

/// Two hosts with a storage that both share, where the hook is; two routers of networks of which nothing is approved yet.
struct Place {
    estate: Estate,
    network: Network,
}

impl Place {
    fn new() -> Self {
        let network = Network::new();
        let estate = Estate::with("pve", |options| {
            let shared = Storage { name: "nas".to_owned(), kind: "dir".to_owned(), content: "snippets,backup".to_owned() };
            options.storages.push(shared.clone());
            options.others = vec![Host { storages: options.storages.clone(), ..Host::new("pve2") }];
            options.shared = vec!["nas".to_owned()];
            options.tools = Some(options.dir.join("bin"));
        });
        for (id, net) in [(101, "192.168.50.0/24"), (102, "192.168.60.0/24")] {
            let words = format!("create-subnet-router {id} --name router-{id} --route {net} --image {{dir}}/image.tar.gz --tun userspace");
            estate.world.run(&words).succeeded();
            estate.wait_online(&format!("router-{id}"));
            estate.world.run(&format!("coordinator routes approve router-{id} --replace --socket {{dir}}/c.sock")).succeeded();
        }
        // From here on as root of the hosts: without credentials, the settings where all hosts see them.
        let (config, shared) = (estate.world.path("config"), estate.world.path("host/etc/pve/priv/pvemesh"));
        let text = std::fs::read_to_string(config.join("config.toml")).unwrap();
        let known = text.split_once("[coordinator]").map(|(_, rest)| format!("[coordinator]{rest}")).unwrap();
        std::fs::write(config.join("config.toml"), known).unwrap();
        std::fs::rename(&config, &shared).unwrap();
        std::os::unix::fs::symlink(&shared, &config).unwrap();
        estate.world.pvesh();
        let place = Self { estate, network };
        let installed = place.on("pve", "hook install --no-timer --json").succeeded().json();
        assert_eq!((&installed["changed"], &installed["hookscript"]), (&json!(true), &json!("nas:snippets/pvemesh-hook")));
        assert!(place.on("pve2", "hook install --no-timer").succeeded().out.contains("nothing to do"), "both share it");
        place
    }

    /// A command as root of a host.
    fn on(&self, host: &str, words: &str) -> Ran {
        let mut command = self.estate.world.standin.on_host(host, Path::new(env!("CARGO_BIN_EXE_pvemesh")));
        Ran::of(command.args(words.split(' ')).stdin(Stdio::null()).output().unwrap())
    }

    fn sync(&self, host: &str) -> Value {
        self.on(host, "sync --json").succeeded().json()
    }

    fn call(&self, method: &str, path: &str, parameters: &[(&str, &str)]) {
        self.estate.call(method, path, parameters);
    }

    fn records(&self) -> Value {
        self.estate.world.run("coordinator dns show --json --socket {dir}/c.sock").succeeded().json()["records"].clone()
    }

    fn named(&self, addresses: &[&str]) -> bool {
        self.records() == if addresses.is_empty() { json!({}) } else { json!({ "nas.mesh.internal": addresses }) }
    }

    #[track_caller]
    fn wait_named(&self, what: &str, addresses: &[&str]) {
        let there = until(Duration::from_secs(60), || self.named(addresses));
        assert!(there, "{what}: {} instead of {addresses:?}; {:#?}", self.records(), self.estate.world.standin.task_lines());
    }

    /// The routes that each of the routers may carry.
    fn approved(&self) -> [Value; 2] {
        ["router-101", "router-102"].map(|name| self.estate.node(name).unwrap()["approved_routes"].clone())
    }

    /// A line of the last task's log.
    fn said(&self, part: &str) -> bool {
        self.estate.world.standin.task_lines().iter().any(|line| line.contains(part))
    }

    fn jobs(&self) -> usize {
        // Other tests' guests have other numbers.
        let own = |line: &str| line.ends_with(" hook 2200 settle") || line.ends_with(" hook 2210 settle");
        processes().filter(|(_, line)| own(line)).count()
    }
}

/// What an agent reports: its own interface and one that Proxmox does not know.
fn agent(address: &str) -> Value {
    let interface = |name: &str, mac: &str, address: &str, prefix: u8| {
        json!({ "name": name, "hardware-address": mac,
                "ip-addresses": [{ "ip-address": address, "ip-address-type": "ipv4", "prefix": prefix }] })
    };
    json!([
        interface("lo", "00:00:00:00:00:00", "127.0.0.1", 8),
        interface("ens18", &MAC.to_lowercase(), address, 24),
        interface("docker0", "02:42:ac:11:00:01", "172.17.0.1", 16)
    ])
}

fn machine() -> Machine {
    let values = [("name", "nas"), ("agent", "1"), ("net0", &format!("virtio={MAC},bridge=vmbr0")), ("description", "my NAS\n")];
    Machine { values: values.map(|(k, v)| (k.to_owned(), v.to_owned())).into(), ..Machine::default() }
}

#[test]
fn attached_guests_keep_name_and_route_wherever_they_run_and_lose_them_with_the_last_stop() {
    if let Some(why) = cannot_be_on_the_host() {
        println!("skipped: {why}");
        return;
    }
    let place = Place::new();
    a_virtual_machine_by_its_agent(&place);
    a_virtual_machine_by_its_neighbours(&place);
    a_coordinator_that_hangs_delays_no_phase(&place);
    a_virtual_machine_that_is_destroyed(&place);
    a_container(&place);
    let ended = until(Duration::from_secs(30), || place.jobs() == 0);
    assert!(ended, "jobs go on");
}

/// Started on one host, moved to the other while it runs, where it gets an address of another network.
fn a_virtual_machine_by_its_agent(place: &Place) {
    let pve = &place.estate.world.standin;
    pve.add_machine("pve", 2200, machine());
    let shown = place.on("pve", "attach 2200 --route --dry-run");
    assert!(shown.succeeded().out.contains("hookscript=nas:snippets/pvemesh-hook") && shown.out.contains("is stopped"), "{shown:?}");
    assert!(!pve.machine(2200).unwrap().values.contains_key("hookscript"));
    place.on("pve", "attach 2200 --route").succeeded();
    assert_eq!(pve.machine(2200).unwrap().values["hookscript"], "nas:snippets/pvemesh-hook");
    assert!(pve.machine(2200).unwrap().values["description"].starts_with("my NAS\n"));
    assert!(place.named(&[]), "it does not run");

    // Its agent takes a while, as that of a large system does.
    place.call("POST", "/nodes/pve/qemu/2200/status/start", &[]);
    assert!(place.named(&[]), "nobody knows its address yet");
    pve.set_agent(2200, Some(agent("192.168.50.20")));
    place.wait_named("the start brings it about by itself", &["192.168.50.20"]);
    place.estate.world.wait("its route is approved", || place.approved() == [json!(["192.168.50.20/32"]), json!([])]);
    assert_eq!(place.sync("pve")["changed"], json!(false), "nothing is left to do");

    place.call("POST", "/nodes/pve/qemu/2200/migrate", &[("target", "pve2"), ("online", "1")]);
    assert_eq!(pve.place_of(2200).as_deref(), Some("pve2"));
    assert!(place.named(&["192.168.50.20"]), "it went on all the while");
    assert_eq!(place.sync("pve2")["changed"], json!(false));
    pve.set_agent(2200, Some(agent("192.168.60.20")));
    let moved = place.sync("pve2");
    assert!(moved["changed"] == true && place.named(&["192.168.60.20"]), "{moved}");
    assert_eq!(place.approved(), [json!([]), json!(["192.168.60.20/32"])], "{moved}");

    // Both at once with the stop, before any pass.
    place.call("POST", "/nodes/pve2/qemu/2200/status/stop", &[]);
    assert!(place.named(&[]), "{:#?}", pve.task_lines());
    assert_eq!(place.approved(), [json!([]), json!([])]);
}

/// Without an agent the host itself has seen its address.
fn a_virtual_machine_by_its_neighbours(place: &Place) {
    let pve = &place.estate.world.standin;
    pve.set_agent(2200, None);
    place.call("POST", "/nodes/pve2/qemu/2200/migrate", &[("target", "pve")]);
    place.call("POST", "/nodes/pve/qemu/2200/status/start", &[]);
    let report = place.sync("pve");
    assert!(report["notes"].to_string().contains("QEMU guest agent is not running"), "{report}");
    assert!(place.named(&[]));
    place.network.speak();
    place.wait_named("the table of neighbours shows it", &["192.168.50.77"]);
    // From another host it cannot be seen, and what was told stays.
    assert_eq!(place.sync("pve2")["changed"], json!(false));
    assert!(place.named(&["192.168.50.77"]));
}

fn a_coordinator_that_hangs_delays_no_phase(place: &Place) {
    let coordinator = place.estate.coordinator_pid();
    kill_process(coordinator, Signal::STOP).unwrap();
    place.call("POST", "/nodes/pve/qemu/2200/status/stop", &[]);
    let told = place.said("the name of guest 2200 stays for now: the coordinator does not answer within 2s");
    let script = place.estate.world.standin.storage_dir("nas").join("snippets/pvemesh-hook");
    let phases = PHASES.map(|phase| {
        let begun = Instant::now();
        let output = place.estate.world.standin.on_host("pve", &script).args(["2200", phase]).output().unwrap();
        (phase, output, begun.elapsed())
    });
    kill_process(coordinator, Signal::CONT).unwrap();
    assert!(told, "{:#?}", place.estate.world.standin.task_lines());
    for (phase, output, took) in phases {
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && took < Duration::from_secs(5), "{phase} took {took:?}: {said}");
        assert_eq!(said.contains("does not answer within 2s"), phase == "post-stop", "{phase}: {said}");
    }
    let made_up_for = until(Duration::from_secs(20), || place.sync("pve")["changed"] == false);
    assert!(made_up_for && place.named(&[]));
}

/// Nobody calls a hook, and then it is no more.
fn a_virtual_machine_that_is_destroyed(place: &Place) {
    let pve = &place.estate.world.standin;
    place.call("POST", "/nodes/pve/qemu/2200/status/start", &[]);
    place.wait_named("it is back", &["192.168.50.77"]);
    place.call("PUT", "/nodes/pve/qemu/2200/config", &[("delete", "hookscript")]);
    place.call("POST", "/nodes/pve/qemu/2200/status/stop", &[]);
    assert!(place.named(&["192.168.50.77"]), "no hook has told");
    place.call("DELETE", "/nodes/pve/qemu/2200", &[]);
    assert_eq!(pve.machine(2200).map(|_| ()), None);
    let report = place.sync("pve2");
    assert!(place.named(&[]), "{report}");
    assert_eq!(place.approved(), [json!([]), json!([])], "{report}");
    assert_eq!(place.sync("pve")["changed"], json!(false));
}

/// A container is stopped and started for its way to the other host, and each host's hooks are called.
fn a_container(place: &Place) {
    let pve = &place.estate.world.standin;
    let mut config = Config::default();
    for (key, value) in [("hostname", "nas"), ("net0", "name=eth0,bridge=vmbr0,ip=dhcp"), ("rootfs", "nas:2210/vm-2210-disk-0.raw,size=4G")]
    {
        config.set(key, value);
    }
    pve.add_guest_on("pve", 2210, config);
    place.on("pve2", "attach 2210 --route").succeeded();
    place.call("POST", "/nodes/pve/lxc/2210/status/start", &[]);
    place.wait_named("the start names it", &["192.168.50.210"]);
    place.call("POST", "/nodes/pve/lxc/2210/migrate", &[("target", "pve2"), ("restart", "1")]);
    assert_eq!((pve.place_of(2210).as_deref(), pve.is_running(2210)), (Some("pve2"), true));
    // The stop took the name away, or was passed over; the start on the other host brings it back, and nothing takes it away after that.
    place.estate.world.wait("the jobs are done", || place.jobs() == 0);
    place.wait_named("it is followed", &["192.168.50.210"]);
    assert_eq!(place.sync("pve2")["changed"], json!(false));
    assert_eq!(place.approved(), [json!(["192.168.50.210/32"]), json!([])]);
    place.call("POST", "/nodes/pve2/lxc/2210/status/stop", &[]);
    place.wait_named("the stop takes the name away", &[]);
    place.call("DELETE", "/nodes/pve2/lxc/2210", &[]);
    place.sync("pve");
    let ledger = std::fs::read_to_string(place.estate.world.path("config/guests.json")).unwrap_or_default();
    assert!(!ledger.contains("\"2210\"") && !ledger.contains("\"2200\""), "{ledger}");
}
