//! What is refused before the first write, with the reason and the way on.

use crate::standin::access::ALL;
use crate::standin::guest_config::Config;
use crate::standin::{Storage, Version};
use crate::world::World;

/// The last line of every failure says what to do.
fn refused(world: &World, more: &str, code: i32, said: &[&str]) {
    let ran = world.create(more);
    ran.failed(code, said);
    assert!(ran.err.contains("next: "), "{ran:?}");
    assert!(world.templates().is_empty() && !world.path("config/101.journal").exists(), "something was written: {ran:?}");
}

#[test]
fn a_vmid_of_somebody_else_is_a_conflict() {
    let world = World::new();
    world.standin.add_guest(101, Config::default());
    refused(world.init(), "", 5, &["VMID 101 is in use", "pvemesh did not make", "pvemesh list"]);
    assert_eq!(world.standin.guests(), [101]);
}

#[test]
fn a_guest_of_ours_with_another_role_is_a_conflict() {
    let world = World::new();
    world.init().create("").succeeded();
    let node = world.run(&crate::world::CREATE.replace("create-exit-node", "create-node"));
    node.failed(5, &["container 101 is a pvemesh exit-node, not a node"]);
}

#[test]
fn unknown_places_are_named_with_those_there_are() {
    let world = World::new();
    world.init();
    refused(&world, "--storage nosuch", 5, &["no storage nosuch", "local, local-lvm"]);
    refused(&world, "--template-storage nosuch", 5, &["no storage nosuch"]);
    refused(&world, "--template-storage local-lvm", 5, &["does not hold container templates (vztmpl)"]);
    refused(&world, "--storage local", 5, &["does not hold container volumes (rootdir)"]);
    refused(&world, "--bridge vmbr7", 5, &["no bridge vmbr7", "vmbr0"]);
    refused(&world, "--node pve9", 5, &["no node pve9", "pve"]);
    for (image, said) in [("nosuch.tar.gz", "pvemesh image build"), ("password", "it is no .tar.gz")] {
        let ran = world.run(&crate::world::CREATE.replace("image.tar.gz", image));
        ran.failed(2, &[image, said]);
    }
    assert!(world.is_untouched());
}

#[test]
fn a_host_without_a_place_for_containers_is_told() {
    let storage = |name: &str, content: &str| Storage { name: name.to_owned(), kind: "dir".to_owned(), content: content.to_owned() };
    let world = World::with(|options| options.storages = vec![storage("local", "iso,vztmpl,backup")]);
    refused(world.init(), "", 5, &["no storage on pve holds container volumes (rootdir)"]);
    let bare = World::with(|options| options.bridges.clear());
    refused(bare.init(), "", 5, &["pve has no active bridge"]);
}

#[test]
fn a_token_is_told_before_the_first_write_what_it_cannot_do_and_the_ways_round() {
    let world = World::new();
    world.standin.access(|access| {
        access.add_token("root@pam!full", "8f6e1d0c-5b7a-4c39-9e2d-1f0a3b5c7d9e", false);
        access.grant("/", "root@pam!full", ALL);
    });
    world.secret("token", "root@pam!full=8f6e1d0c-5b7a-4c39-9e2d-1f0a3b5c7d9e");
    let init = world.run("init --url {url} --token-file {dir}/token --fingerprint {fingerprint}");
    assert!(init.succeeded().out.contains("may NOT pass /dev/net/tun"), "{init:?}");
    refused(&world, "", 3, &["dev0", "POST /nodes/", "root@pam!full", "four ways round", "--tun userspace"]);
    assert!(world.is_untouched());
    // The first of the ways, by the same token.
    world.create("--tun userspace").succeeded();
    let config = world.standin.config(101).unwrap();
    assert_eq!(config.get("dev0"), None);
    assert!(world.standin.is_running(101));
}

#[test]
fn a_proxmox_before_8_1_is_too_old() {
    let world = World::with(|options| options.version = Version(8, 0));
    refused(world.init(), "", 5, &["Proxmox VE 8.0", "8.1"]);
}

#[test]
fn hostile_values_are_refused_with_the_option_named() {
    let world = World::new();
    world.init();
    let long = "x".repeat(10_000);
    for option in ["--name", "--node", "--storage", "--bridge", "--ip", "--gw", "--dns", "--endpoint"] {
        for value in ["a,b", "a;b", "a=b", "größe", &long] {
            refused(&world, &format!("{option} {value}"), 2, &[option]);
        }
    }
    assert!(world.is_untouched());
}

#[test]
fn without_a_coordinator_the_command_that_makes_one_is_named() {
    let world = World::new();
    let ran = world.init().run("create-exit-node 101 --image {dir}/image.tar.gz");
    ran.failed(5, &["no coordinator is known", "pvemesh create-coordinator 100", "--with-coordinator 100"]);
    assert!(world.is_untouched());
}

#[test]
fn only_guests_of_ours_are_removed() {
    let world = World::new();
    world.standin.add_guest(101, Config::default());
    world.init().run("destroy 101 --yes").failed(5, &["was not made by pvemesh"]);
    assert_eq!(world.standin.guests(), [101]);
    world.run("status 101").failed(5, &["was not made by pvemesh"]);
}

#[test]
fn a_locked_guest_is_left_alone() {
    let world = World::new();
    world.init().create("").succeeded();
    world.standin.set_lock(101, Some("backup"));
    world.run("destroy 101 --yes").failed(5, &["locked (backup)", "pct unlock 101"]);
    assert!(world.standin.is_running(101));
}
