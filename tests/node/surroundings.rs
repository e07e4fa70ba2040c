//! Bad surroundings: what a node needs is missing or taken. It says what it tried, what happened and what to do, and leaves nothing behind.

use std::process::{Output, Stdio};

use super::lan::{join, table, taken};
use super::world::{Machine, PROGRAM, World, possible, text, wait_for};

/// `up` in mounts of its own, after a preparation in the shell that knows `$STATE`; `wrapper` comes between the shell and the program.
fn up(machine: &Machine, prepare: &str, wrapper: &[&str]) -> Output {
    let state = machine.path("state");
    std::fs::create_dir_all(&state).unwrap();
    let mut command = machine.command("unshare");
    command.args(["-m", "sh", "-c", &format!("set -e; {prepare}\nexec \"$@\""), "sh"]).args(wrapper).env("STATE", &state);
    command.arg(PROGRAM).args(["node", "--socket"]).arg(machine.path("node.sock"));
    command.args(["up", "--timeout", "1s", "--login-server", "http://127.0.0.1:9", "--state-dir"]).arg(&state);
    command.output().unwrap()
}

/// It fails, says all of this, and the machine is as before.
fn fails(machine: &Machine, prepare: &str, wrapper: &[&str], says: &[&str]) {
    let before = machine.traces();
    let out = up(machine, prepare, wrapper);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    for part in says {
        assert!(said.contains(part), "`{part}` in: {said}");
    }
    wait_for("the end of what `up` started", || machine.status().is_none().then_some(()));
    assert_eq!(machine.traces(), before);
    assert!(!machine.path("node.sock").exists());
}

/// In ordinary surroundings the same machine starts a node with the same files.
fn starts(machine: &Machine) {
    let out = up(machine, "", &[]);
    assert_eq!(out.status.code(), Some(4), "only the coordinator is missing: {}", text(&out.stderr));
    assert!(machine.sh("ip link").contains("pvemesh0"));
}

#[test]
fn without_the_tun_device_a_node_says_how_to_get_it() {
    if !possible() {
        return;
    }
    let machine = Machine::new("l");
    let says = [
        "cannot make the TUN interface pvemesh0 through /dev/net/tun: No such file or directory",
        "next: in a container, pass /dev/net/tun through",
    ];
    fails(&machine, "mount -t tmpfs none /dev/net", &[], &says);
    starts(&machine);
}

#[test]
fn without_the_right_to_change_the_network_a_node_says_which_it_needs() {
    if !possible() {
        return;
    }
    let machine = Machine::new("l");
    let says = ["cannot make the TUN interface pvemesh0", "Operation not permitted", "next: run as root with CAP_NET_ADMIN"];
    fails(&machine, "", &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"], &says);
    // The same as root of a user namespace that the network does not belong to.
    fails(&machine, "", &["unshare", "--user", "--map-root-user"], &["Operation not permitted", "CAP_NET_ADMIN"]);
    starts(&machine);
}

#[test]
fn an_interface_of_the_same_name_is_named_and_left_as_it_is() {
    if !possible() {
        return;
    }
    let machine = Machine::new("l");
    machine.sh("ip link add pvemesh0 type bridge && ip addr add 192.0.2.9/24 dev pvemesh0 && ip link set pvemesh0 up");
    let says = ["cannot make the TUN interface pvemesh0", "an interface of this name exists, and is no TUN", "with --tun"];
    fails(&machine, "", &[], &says);
    assert!(machine.sh("ip addr show dev pvemesh0").contains("192.0.2.9/24"));
    machine.sh("ip link del pvemesh0");
    starts(&machine);
}

#[test]
fn a_second_node_on_a_running_ones_interface_is_refused_and_takes_nothing_from_it() {
    if !possible() {
        return;
    }
    let world = World::new();
    world.start_exit_node();
    let before = world.exit.traces();
    let repairs = |machine: &Machine| machine.status().unwrap()["Repairs"]["Count"].as_u64().unwrap_or_default();
    let mut second = world.exit.command(PROGRAM);
    second.args(["node", "--socket"]).arg(world.exit.path("second.sock")).args([
        "up",
        "--timeout",
        "1s",
        "--login-server",
        "http://10.9.1.1:8080",
    ]);
    let out = second.arg("--state-dir").arg(world.exit.path("second")).output().unwrap();
    let said = text(&out.stderr);
    assert!(said.contains("another program holds an interface of this name") && said.contains("with --tun"), "{said}");
    assert_eq!((world.exit.traces(), repairs(&world.exit)), (before, 0), "the first one had nothing to put right");
}

#[test]
fn a_state_directory_that_takes_no_files_is_named_with_the_reason() {
    if !possible() {
        return;
    }
    let machine = Machine::new("l");
    let state = machine.path("state");
    let at = state.to_str().unwrap();
    fails(&machine, "mount -t tmpfs -o ro none $STATE", &[], &[at, "Read-only file system", "next: make it writable"]);
    let full = "mount -t tmpfs -o size=8k none $STATE; head -c 8192 /dev/zero > $STATE/else";
    fails(&machine, full, &[], &[at, "No space left on device", "next: free some space there"]);
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);

    // A service says the same, and no half file is left of its attempt.
    let run = |prepare: &str| {
        let line =
            format!("set -e; {prepare}; \"$0\" node --socket $STATE.sock run --state-dir $STATE; code=$?; ls $STATE >&2; exit $code");
        let out = machine
            .command("unshare")
            .args(["-m", "sh", "-c", &line.replace("set -e; ", ""), PROGRAM])
            .env("STATE", &state)
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(1));
        text(&out.stderr)
    };
    let said = run(full);
    assert!(said.contains("state.json: No space left on device") && said.contains("next: free some space there"), "{said}");
    assert!(!said.contains("state.new"), "{said}");
    let said = run("mount -t tmpfs -o ro none $STATE");
    assert!(said.contains(&format!("{at}/lock: Read-only file system")) && said.contains("next: make it writable"), "{said}");
    starts(&machine);
}

#[test]
fn a_firewall_that_cannot_be_set_is_told_at_once_and_until_it_can() {
    if !possible() {
        return;
    }
    let world = World::new();
    // Another program holds the table, as a second node in the same network would.
    let mut holder = world.exit.command("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = holder.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"add table inet pvemesh { flags owner; }\n").unwrap();
    wait_for("the table", || world.exit.sh("nft list tables").contains("pvemesh").then_some(()));
    let key = world.key(&["--approve-exit-node"]);
    let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "exit-1", "--advertise-exit-node"];
    let out = world.exit.up(&up);
    let said = text(&out.stderr);
    for part in ["note: routing is not as it should be", "firewall table `pvemesh` belongs to another process", "another node"] {
        assert!(said.contains(part), "{said}");
    }
    let health = || world.exit.status().unwrap()["Health"].to_string();
    assert!(health().contains("firewall table `pvemesh` belongs to another process"), "{}", health());
    drop(input);
    holder.wait().unwrap();
    wait_for("the firewall", || world.exit.sh("nft list ruleset").contains("masquerade").then_some(()));
    wait_for("the end of the note", || (!health().contains("firewall")).then_some(()));
}

#[test]
fn a_strangers_routes_are_nobodys_until_they_are_approved() {
    if !possible() {
        return;
    }
    let world = World::new();
    // A stranger offers the internet, the laptop's and the coordinator's networks, and what another node carries; nobody has approved it.
    let greedy = "10.9.1.0/24,10.9.2.0/24,10.9.7.0/24,10.9.7.128/25";
    join(&world, &world.exit, "stranger", &[], &["--advertise-exit-node", "--advertise-routes", greedy]);
    let lan = Machine::new("d");
    world.coordinator.cable("lan7", "10.9.7.1/24", &lan, "eth0", "10.9.7.200/24");
    lan.sh("ip route add default via 10.9.7.1");
    lan.tell_callers("10.9.7.200:80");
    join(&world, &world.coordinator, "router", &["--approve-routes", "10.9.7.0/24"], &["--advertise-routes", "10.9.7.0/24"]);
    join(&world, &world.laptop, "laptop", &[], &["--accept-routes"]);
    let routes = taken(&world, "10.9.7.0/24");
    assert!(
        !routes.contains("10.9.1.0") && !routes.contains("10.9.2.0") && !routes.contains("10.9.7.128") && !routes.contains("default"),
        "{routes}"
    );
    assert_eq!(world.laptop.seen_by("10.9.7.200:80").as_deref(), Some("10.9.7.1"), "through the router, in whose name it is");
    // As an exit node it is not offered, and what it sends from those networks is not let in.
    let out = world.laptop.up(&["--exit-node", "stranger", "--timeout", "1s"]);
    assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
    assert!(!table(&world.laptop).contains("default"));
    let received = || world.laptop.sh("cat /proc/net/snmp | awk '/^Icmp:/ {n++; if (n == 2) print $10}'").trim().parse::<u64>().unwrap();
    let laptop = world.laptop.status().unwrap()["TailscaleIPs"][0].as_str().unwrap().to_owned();
    let pinged = |from: &str| {
        let line = format!("-c 2 -i 0.2 -W 1 -I {from} {laptop}");
        world.exit.command("ping").args(line.split(' ')).output().unwrap()
    };
    let own = world.exit.status().unwrap()["TailscaleIPs"][0].as_str().unwrap().to_owned();
    assert!(pinged(&own).status.success());
    world.exit.sh("ip addr add 10.9.7.201/32 dev lo; ip addr add 203.0.113.77/32 dev lo");
    let before = received();
    for bogus in ["10.9.7.201", "203.0.113.77"] {
        pinged(bogus);
    }
    assert!(pinged(&own).status.success());
    assert_eq!(received(), before + 2, "echo requests: those of its own address alone");
}

#[test]
fn a_node_says_which_of_the_kernels_offloads_it_goes_without() {
    if !possible() {
        return;
    }
    let machine = Machine::new("l");
    let state = machine.path("state");
    for (wanted, tun, slower) in [("auto", "tcp-and-udp", false), ("tcp", "tcp", false), ("none", "none", true)] {
        let up =
            ["up", "--timeout", "1s", "--login-server", "http://127.0.0.1:9", "--offload", wanted, "--state-dir", state.to_str().unwrap()];
        let out = machine.node(&up);
        assert_eq!(out.status.code(), Some(4), "only the coordinator is missing: {}", text(&out.stderr));
        let status: serde_json::Value = serde_json::from_slice(&machine.node(&["status", "--json"]).stdout).unwrap();
        assert_eq!(status["Offloads"]["TUN"], tun, "{status}");
        assert_eq!(status["Offloads"]["Send"], !slower, "{status}");
        let said = text(&machine.node(&["status"]).stdout);
        let line = "Packets pass more slowly than they could, without segmentation on the TUN, UDP segmentation";
        assert_eq!(said.contains(line), slower, "{said}");
        assert!(machine.node(&["down"]).status.success());
        wait_for("the node's end", || machine.status().is_none().then_some(()));
    }
}
