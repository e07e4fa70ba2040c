//! Guest hooks as Proxmox calls them: through the script on a storage, in all phases, and whatever hangs.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::estate::{Estate, host_files};
use crate::standin::faults::Fault;
use crate::standin::guest_config::Config;
use crate::world::World;

const PHASES: [&str; 4] = ["pre-start", "post-start", "pre-stop", "post-stop"];
const MARK: &str = "<!-- pvemesh vmid=101 role=exit-node name=exit-1 run=00000000000000000000000000000007 state=ready -->";

/// A node on paper, with TUN.
fn node() -> Config {
    let mut config = Config::default();
    for (key, value) in [("hostname", "exit-1"), ("tags", "pvemesh;exit-node"), ("description", MARK), ("dev0", "/dev/net/tun")] {
        config.set(key, value);
    }
    config
}

/// A host that has what containers with a TUN need.
fn ready_host(world: &World) {
    host_files(world);
    for module in ["tun", "nf_tables", "nft_chain_nat", "nft_masq"] {
        std::fs::create_dir_all(world.path("root/sys/module").join(module)).unwrap();
    }
    std::fs::create_dir_all(world.path("root/dev/net")).unwrap();
    std::os::unix::fs::symlink("/dev/null", world.path("root/dev/net/tun")).unwrap();
}

fn script(world: &World) -> std::path::PathBuf {
    world.standin.storage_dir("local").join("snippets/pvemesh-hook")
}

fn run_script(world: &World, phase: &str) -> (Option<i32>, String, Duration) {
    let begun = Instant::now();
    let output = std::process::Command::new(script(world)).args(["101", phase]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said, begun.elapsed())
}

fn settings(world: &World, more: &str) {
    let path = world.path("config/config.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(path, format!("{text}\n{more}\n")).unwrap();
}

#[test]
fn a_new_node_has_the_hook_and_its_life_is_followed() {
    let estate = Estate::new();
    let made = estate.create(101);
    let choice = made["choices"].as_array().unwrap().iter().find(|c| c["what"] == "hookscript").unwrap();
    assert_eq!(choice["value"], json!("local:snippets/pvemesh-hook"));
    assert_eq!(estate.world.standin.config(101).unwrap().get("hookscript"), Some("local:snippets/pvemesh-hook"));
    estate.at_rest();
    let notes = estate.notes(101);
    for part in ["<!-- pvemesh-begin -->", "100.64.0.1", "mac=BC:24:11:", "addr=100.64.0.1"] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    // The admin's own words stay, and a start counts.
    estate.call("PUT", "/nodes/pve/lxc/101/config", &[("description", &format!("mine\n\n{notes}"))]);
    estate.stop(101);
    estate.world.wait("the stop is noticed", || estate.node("exit-1").unwrap()["online"] == false);
    estate.start(101);
    estate.wait_online("exit-1");
    estate
        .world
        .wait("the start is written down", || estate.notes(101).contains(" gen=1 ") && estate.notes(101).starts_with("mine\n\n<!-- "));
    assert_eq!(estate.node("exit-1").unwrap()["id"], json!(1), "it is the same node as before");
}

#[test]
fn what_an_admin_writes_into_the_notes_while_a_pass_writes_them_stays() {
    let estate = Estate::remote("pve");
    estate.create(101);
    estate.at_rest();
    estate.stop(101);
    estate.start(101);
    estate.wait_online("exit-1");
    let standin = &estate.world.standin;
    standin.calls().clear();
    standin.faults().on(
        "PUT",
        "/lxc/101/config",
        1,
        Fault::meanwhile(|pve| {
            pve.edit(101, |config| config.set("description", &format!("mine\n\n{}", config.get("description").unwrap())))
        }),
    );
    estate.world.run("hook 101 settle").succeeded();
    assert!(standin.faults().is_empty());
    let notes = estate.notes(101);
    assert!(notes.starts_with("mine\n\n<!-- pvemesh-begin") && notes.contains(" gen=1 "), "{notes}");
    let written: Vec<_> = standin.calls().writes().into_iter().filter(|call| call.param("description").is_some()).collect();
    assert!(written.len() == 2 && written.iter().all(|call| call.param("digest").is_some()), "{written:?}");
    estate.at_rest();
    // So with a guest that is attached.
    let mut nas = Config::default();
    for (key, value) in [("hostname", "nas"), ("net0", "name=eth0,bridge=vmbr0,ip=dhcp")] {
        nas.set(key, value);
    }
    standin.add_guest(200, nas);
    standin.faults().on("PUT", "/lxc/200/config", 1, Fault::meanwhile(|pve| pve.edit(200, |config| config.set("description", "my NAS"))));
    estate.world.run("attach 200").succeeded();
    assert!(estate.notes(200).starts_with("my NAS\n") && estate.notes(200).contains("pvemesh detach 200"), "{}", estate.notes(200));
}

#[test]
fn the_coordinator_hears_of_a_stop_at_once_though_the_node_says_nothing() {
    let estate = Estate::new();
    estate.create(101);
    let pid = Pid::from_raw(i32::try_from(estate.guests.node_pid(101).unwrap()).unwrap()).unwrap();
    // It keeps its connection, as a machine does that is gone without a word.
    kill_process(pid, Signal::STOP).unwrap();
    let ran = estate.world.run("hook 101 post-stop");
    ran.succeeded();
    assert_eq!(estate.node("exit-1").unwrap()["online"], json!(false), "{ran:?}");
    kill_process(pid, Signal::CONT).unwrap();
    estate.wait_online("exit-1");
    // Where the guest runs again by the time the hook is called, it is left alone.
    let sockets = estate.world.path("root/proc/net");
    std::fs::create_dir_all(&sockets).unwrap();
    std::fs::write(sockets.join("unix"), "0: 0 0 0 0 0 0 @/var/lib/lxc/101/command\n").unwrap();
    let late = estate.world.run("hook 101 post-stop");
    assert!(late.succeeded().err.contains("runs again"), "{late:?}");
    assert_eq!(estate.node("exit-1").unwrap()["online"], json!(true));
}

#[test]
fn a_router_is_drained_by_hand_and_takes_part_again() {
    let estate = Estate::remote("pve");
    for id in [101, 102] {
        let words =
            format!("create-subnet-router {id} --name router-{id} --route 192.168.70.0/24 --image {{dir}}/image.tar.gz --tun userspace");
        estate.world.run(&words).succeeded();
        estate.wait_online(&format!("router-{id}"));
    }
    let carried = |id: u32| estate.node(&format!("router-{id}")).unwrap()["carried_routes"].clone();
    let (all, none) = (json!(["192.168.70.0/24"]), json!([]));
    assert_eq!((carried(101), carried(102)), (all.clone(), none.clone()));
    let drain = |words: &str| estate.world.run(&format!("coordinator nodes {words} --socket {{dir}}/c.sock"));
    let drained = drain("drain router-101 --for 10m --json").succeeded().json();
    assert_eq!((&drained["name"], &drained["carried_routes"]), (&json!("router-101"), &none));
    assert_eq!((carried(101), carried(102)), (none.clone(), all.clone()));
    // Nobody else can carry it then.
    let last = drain("drain router-102");
    assert!(last.succeeded().out.contains("only what no other can carry: 192.168.70.0/24"), "{last:?}");
    assert!(drain("undrain router-101").succeeded().out.contains("router-101 takes part again"));
    drain("undrain router-102").succeeded();
    drain("drain router-9").failed(5, &["router-9"]);
    drain("drain router-101 --for 2h").failed(2, &["at most 3600 seconds"]);
    drain("drain router-101 --for soon").failed(2, &["1h"]);
}

#[test]
fn a_coordinator_that_accepts_and_never_answers_delays_no_phase() {
    let world = World::new();
    world.init();
    ready_host(&world);
    world.standin.add_guest(101, node());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let key = pvemesh::ident::MachinePublic::from_bytes([9; 32]);
    let url = format!("http://{}", silent.local_addr().unwrap());
    settings(&world, &format!("[coordinator]\nlan_url = \"{url}\"\nurl = \"{url}\"\nserver_key = \"{key}\""));
    world.run("hook install --no-timer").succeeded();
    for phase in PHASES {
        let (code, said, took) = run_script(&world, phase);
        assert_eq!(code, Some(0), "{phase}: {said}");
        assert!(took < Duration::from_secs(5), "{phase} took {took:?}");
        let waits = matches!(phase, "pre-stop" | "post-stop");
        assert_eq!(said.contains("does not answer within 2s"), waits, "{phase}: {said}");
    }
}

#[test]
fn without_the_program_a_guest_starts_and_the_task_log_says_why_nothing_was_done() {
    let world = World::new();
    world.init();
    ready_host(&world);
    world.standin.add_guest(101, node());
    world.run("hook install --no-timer").succeeded();
    let text = std::fs::read_to_string(script(&world)).unwrap();
    let gone = text
        .lines()
        .map(|line| if line.starts_with("program=") { "program='/nowhere/pvemesh'" } else { line })
        .collect::<Vec<_>>()
        .join("\n");
    std::fs::write(script(&world), gone).unwrap();
    if ["/usr/local/bin/pvemesh", "/usr/bin/pvemesh", "/opt/pvemesh/pvemesh"].iter().any(|path| std::path::Path::new(path).exists()) {
        println!("skipped: pvemesh is installed on this machine");
        return;
    }
    for phase in PHASES {
        let (code, said, _) = run_script(&world, phase);
        assert!(code == Some(0) && said.contains("/nowhere/pvemesh is not there"), "{phase}: {said}");
    }
    settings(&world, "[guests]\nstrict = true");
    assert_eq!(run_script(&world, "pre-start").0, Some(1), "strict keeps it from starting");
    assert_eq!(run_script(&world, "pre-stop").0, Some(0), "and from nothing else");
    // A program that never ends is as good as none.
    let endless =
        text.lines().map(|line| if line.starts_with("program=") { "program=/usr/bin/yes" } else { line }).collect::<Vec<_>>().join("\n");
    std::fs::write(script(&world), endless).unwrap();
    let begun = Instant::now();
    let status =
        std::process::Command::new(script(&world)).args(["101", "post-start"]).stdout(std::process::Stdio::null()).status().unwrap();
    assert!(status.success() && begun.elapsed() < Duration::from_secs(5), "{status} {:?}", begun.elapsed());
}

#[test]
fn both_forms_of_tun_are_named_before_the_start_and_refused_only_if_strict() {
    let world = World::new();
    world.init();
    ready_host(&world);
    let mut both = node();
    both.set("lxc.mount.entry", "/dev/net/tun dev/net/tun none bind,create=file");
    world.run("hook install --no-timer").succeeded();
    both.set("hookscript", "local:snippets/pvemesh-hook");
    world.standin.add_guest(101, both);
    let (code, said, _) = run_script(&world, "pre-start");
    assert!(code == Some(0) && said.contains("twice") && said.contains("/etc/pve/lxc/101.conf"), "{said}");
    settings(&world, "[guests]\nstrict = true");
    let (code, said, _) = run_script(&world, "pre-start");
    assert!(code == Some(1) && said.contains("twice"), "{said}");
    crate::login::raw(&world, "POST", "/nodes/pve/lxc/101/status/start", crate::world::PASSWORD);
    assert!(world.standin.settle(Duration::from_secs(60)));
    let exits = world.standin.task_exits();
    let (_, exit) = exits.last().unwrap();
    assert!(exit.as_ref().unwrap().contains("hookscript error for 101 on pre-start"), "{exits:?}");
    assert!(!world.standin.is_running(101));
}

#[test]
fn the_hook_is_installed_once_and_uninstalled_without_leaving_a_guest_that_cannot_start() {
    let world = World::new();
    world.init().run("hook install --no-timer").failed(2, &["no Proxmox host", "on the host, as root"]);
    ready_host(&world);
    let shown = world.run("hook install --no-timer --dry-run --json").succeeded().json();
    assert_eq!((&shown["changed"], script(&world).exists()), (&json!(true), false));
    world.run("hook install --no-timer").succeeded();
    assert!(world.run("hook install --no-timer").succeeded().out.contains("nothing to do"));
    let mut named = node();
    named.set("hookscript", "local:snippets/pvemesh-hook");
    world.standin.add_guest(101, named);
    let mut other = Config::default();
    other.set("hookscript", "local:snippets/mine.sh");
    world.standin.add_guest(102, other);
    let gone = world.run("hook uninstall --json").succeeded().json();
    assert_eq!((&gone["released"], &gone["script"]), (&json!([101]), &json!("removed")));
    assert!(!script(&world).exists());
    assert_eq!(world.standin.config(101).unwrap().get("hookscript"), None);
    assert_eq!(world.standin.config(102).unwrap().get("hookscript"), Some("local:snippets/mine.sh"));
    assert!(world.run("hook uninstall").succeeded().out.contains("nothing to do"));
    world.run("sync --install-timer").failed(5, &["not run by systemd", "cron"]);
    world.run("hook 101 pre-strat").failed(2, &["pre-start, post-start, pre-stop or post-stop"]);
    world.run("hook 99 pre-start").failed(2, &["100 to 999999999"]);
}

#[test]
fn the_hook_script_goes_with_the_last_guest() {
    let estate = Estate::new();
    estate.create(101);
    assert!(script(&estate.world).exists());
    let refused = estate.world.run("create-exit-node 102 --image {dir}/image.tar.gz --tun userspace --storage nosuch");
    refused.failed(5, &["nosuch"]);
    estate.world.run("destroy 101 --yes").succeeded();
    assert!(!script(&estate.world).exists());
    estate.world.run("create-exit-node 102 --image {dir}/image.tar.gz --tun userspace --storage nosuch").failed(5, &["nosuch"]);
    assert!(!script(&estate.world).exists(), "what was not begun leaves nothing");
    assert!(estate.node("exit-1").is_none());
    assert!(!estate.world.path("config/guests.json").exists());
}

#[test]
fn the_timer_is_handed_to_systemd_once_and_taken_back() {
    let world = World::new();
    world.init();
    ready_host(&world);
    for place in ["run/systemd/system", "etc/systemd/system"] {
        std::fs::create_dir_all(world.path("root").join(place)).unwrap();
    }
    let bin = world.path("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let log = world.path("systemctl.log");
    std::fs::write(bin.join("systemctl"), format!("#!/bin/sh\necho \"$*\" >> {}\n", log.display())).unwrap();
    std::fs::set_permissions(bin.join("systemctl"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let run = |words: &str| {
        let output = world.command(words).env("PATH", &bin).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run("hook install").contains("timer: installed"));
    let units = world.path("root/etc/systemd/system");
    let service = std::fs::read_to_string(units.join("pvemesh-sync.service")).unwrap();
    assert!(service.contains("/pvemesh\" sync\n") && service.contains("PVEMESH_CONFIG_DIR="), "{service}");
    assert!(std::fs::read_to_string(units.join("pvemesh-sync.timer")).unwrap().contains("OnUnitInactiveSec=60"));
    assert!(run("hook install").contains("nothing to do") && run("sync --install-timer").contains("nothing to do"));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "daemon-reload\nenable --now pvemesh-sync.timer\n");
    assert!(run("hook uninstall").contains("timer: removed"));
    assert_eq!(std::fs::read_dir(&units).unwrap().count(), 0);
    assert!(std::fs::read_to_string(&log).unwrap().ends_with("disable --now pvemesh-sync.timer\ndaemon-reload\n"));
}
