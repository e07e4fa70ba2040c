//! The role for API tokens: printed, made, enough for every command, and nothing in it for nothing.

use std::collections::BTreeSet;

use crate::standin::Version;
use crate::standin::access::ALL;
use crate::world::{CREATE, Ran, World};

const GOLDEN: &str = "image golden 9000 --image {dir}/image.tar.gz";
const USERSPACE: &str =
    "create-node 102 --tun userspace --image {dir}/image.tar.gz --login-server http://mesh.example.org --auth-key-file {dir}/auth-key";

/// The privileges in the printed `pveum role add`.
fn printed(ran: &Ran) -> BTreeSet<String> {
    let line = ran.out.lines().find(|line| line.starts_with("pveum role add PVEMesh")).unwrap();
    line.split('"').nth(1).unwrap().split(' ').map(ToOwned::to_owned).collect()
}

/// A world in which the role, its user and its token were made by root, and which goes on as that token.
fn with_role(golden: bool) -> World {
    let world = World::new();
    world.init();
    if golden {
        world.run(GOLDEN).succeeded();
    }
    world.run("init --create-role").succeeded();
    world.run("init --token-file {dir}/config/token").succeeded();
    world
}

fn set_role(world: &World, role: &BTreeSet<String>) {
    world.standin.access(|access| access.roles.insert("PVEMesh".to_owned(), role.clone()));
}

#[test]
fn the_commands_and_the_reason_for_each_privilege_are_printed() {
    let world = World::new();
    let ran = world.run("init --print-role --token-name bot@pve!mesh --pve-version 9.1");
    let out = &ran.succeeded().out;
    for line in [
        "pveum role add PVEMesh -privs \"",
        "pveum user add bot@pve",
        "pveum acl modify /vms -users bot@pve -roles PVEMesh",
        "pveum acl modify /storage -users bot@pve -roles PVEMesh",
        "pveum acl modify /sdn/zones -users bot@pve -roles PVEMesh",
        "pveum user token add bot@pve mesh -privsep 0",
        "POST /nodes/{node}/lxc/{vmid}/clone (create-* from a golden container)",
        "pvemesh image golden 9000",
    ] {
        assert!(out.contains(line), "`{line}` is missing: {out}");
    }
    let older = printed(world.run("init --print-role --pve-version 7.4").succeeded());
    assert!(!older.contains("SDN.Use") && !older.contains("VM.Clone") && older.contains("VM.Monitor"), "{older:?}");
    world.run("init --print-role --token-name x;y").failed(2, &["--token-name"]);
    world.run("init --print-role --pve-version x").failed(2, &["--pve-version"]);
    // Where a host is set up, the role is for its version.
    let on = World::with(|options| options.version = Version(8, 2));
    assert!(on.init().run("init --print-role").succeeded().out.contains("Proxmox VE 8.2"));
}

#[test]
fn the_role_is_made_once_and_its_token_kept_in_a_private_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let made = world.init().run("init --create-role");
    made.succeeded();
    let file = world.path("config/token");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let line = std::fs::read_to_string(&file).unwrap();
    let secret = line.trim().strip_prefix("pvemesh@pve!mesh=").unwrap();
    assert!(!made.out.contains(secret) && !made.err.contains(secret), "{made:?}");
    let role = world.standin.access(|access| access.roles["PVEMesh"].clone());
    assert_eq!(role, printed(world.run("init --print-role --pve-version 9.1").succeeded()));
    world.run("init --create-role").failed(5, &["is there already"]);
    // Somebody without the right is told who may.
    let other = World::new();
    other.standin.access(|access| {
        access.add_token("root@pam!x", "8f6e1d0c-5b7a-4c39-9e2d-1f0a3b5c7d9e", true);
        access.grant("/vms", "root@pam!x", ALL);
    });
    other.secret("token", "root@pam!x=8f6e1d0c-5b7a-4c39-9e2d-1f0a3b5c7d9e");
    other.run("init --url {url} --token-file {dir}/token --fingerprint {fingerprint}").succeeded();
    other.run("init --create-role").failed(3, &["/access, Sys.Modify", "--print-role", "root"]);
}

#[test]
fn every_command_works_with_just_the_role() {
    for golden in [true, false] {
        let world = with_role(golden);
        if golden {
            world.create("").succeeded();
            assert_eq!(world.standin.config(101).unwrap().get("dev0"), Some("/dev/net/tun"));
        } else {
            world.create("").failed(3, &["there is none", "pvemesh image golden 9000"]);
        }
        world.run(USERSPACE).succeeded();
        assert!(world.standin.is_running(102));
        assert!(world.run("list").succeeded().out.contains("102"));
        world.run("status 102").succeeded();
        let gone = world.run("destroy 102 --yes");
        gone.succeeded();
        assert!(!world.standin.guests().contains(&102));
        if golden {
            world.run("destroy 101 --yes").succeeded();
        } else {
            // The image that serves every guest may stay; that is said.
            assert!(gone.err.contains("stays on the storage"), "{gone:?}");
        }
    }
}

#[test]
fn on_older_releases_the_role_is_enough_for_nodes_without_a_device() {
    // There the configuration travels in an image of its own, which has to be removed again.
    let world = World::with(|options| options.version = Version(8, 4));
    world.init().run("init --create-role").succeeded();
    world.run("init --token-file {dir}/config/token").succeeded();
    world.run(USERSPACE).succeeded();
    assert!(world.standin.is_running(102) && world.templates().is_empty());
    world.run("destroy 102 --yes").succeeded();
    let mut less = world.standin.access(|access| access.roles["PVEMesh"].clone());
    assert!(less.remove("Datastore.Allocate") && !less.contains("VM.Clone"), "{less:?}");
    set_role(&world, &less);
    world.run(USERSPACE).failed(3, &["Datastore.Allocate on /storage/local"]);
    assert!(world.standin.guests().is_empty() && world.templates().is_empty());
}

/// Runs what makes the calls of the role; gives what was said, and whether anything was written although it failed.
fn tries(cloning: &World, unpacking: &World) -> Vec<Ran> {
    let mut said = Vec::new();
    for (world, command) in [(cloning, CREATE), (unpacking, USERSPACE), (cloning, "destroy 110 --yes"), (cloning, "status 110")] {
        let (guests, templates, tasks) = (world.standin.guests(), world.templates(), world.standin.task_exits().len());
        let ran = world.run(command);
        if ran.code != Some(0) {
            let now = (world.standin.guests(), world.templates(), world.standin.task_exits().len());
            assert_eq!(now, (guests, templates, tasks), "{command} was not refused beforehand: {ran:?}");
        }
        said.push(ran);
    }
    said
}

#[test]
fn each_privilege_of_the_role_is_needed_and_named_before_anything_is_done() {
    let (cloning, unpacking) = (with_role(true), with_role(false));
    let other = CREATE.replace("101", "110");
    cloning.run(&other).succeeded();
    let role = cloning.standin.access(|access| access.roles["PVEMesh"].clone());
    // Virtual machines are attached, not made: the calls for them are checked by value, beside the table.
    for privilege in role.iter().filter(|privilege| !privilege.starts_with("VM.GuestAgent.")) {
        let mut less = role.clone();
        less.remove(privilege);
        set_role(&cloning, &less);
        set_role(&unpacking, &less);
        let said = tries(&cloning, &unpacking);
        let named = said.iter().any(|ran| ran.code == Some(3) && ran.err.contains(privilege.as_str()));
        assert!(named, "nothing is refused without {privilege}: {said:?}");
        set_role(&cloning, &role);
        set_role(&unpacking, &role);
        for (world, id) in [(&cloning, 101), (&unpacking, 102)] {
            if world.standin.guests().contains(&id) {
                world.run(&format!("destroy {id} --yes")).succeeded();
            }
        }
        if !cloning.standin.guests().contains(&110) {
            cloning.run(&other).succeeded();
        }
    }
}

#[test]
fn a_privilege_that_does_not_go_on_to_paths_below_counts_where_it_stands() {
    let world = with_role(true);
    let role = world.standin.access(|access| access.roles["PVEMesh"].iter().cloned().collect::<Vec<_>>().join(" "));
    world.standin.access(|access| {
        access.revoke("pvemesh@pve");
        for path in ["/vms/101", "/vms/9000", "/storage/local-lvm", "/sdn/zones/localnetwork/vmbr0"] {
            access.grant_here(path, "pvemesh@pve", &role);
        }
    });
    world.create("").succeeded();
    world.run(USERSPACE).failed(3, &["on /vms/102"]);
}
