//! The stand-in as a cluster: several hosts, some down, guests that belong to one and move, high availability, virtual machines.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Answer, call, log_in, token};
use crate::standin::cluster::Host;
use crate::standin::faults::Fault;
use crate::standin::guest_config::Config;
use crate::standin::lxc::until;
use crate::standin::qemu::Machine;
use crate::standin::{Options, Standin, Storage, Version};

/// Three hosts of different releases; `tank` is shared by the first two, `pve3` has a bridge of its own.
fn cluster(dir: &Path) -> (Standin, String) {
    let tank = || Storage { name: "tank".to_owned(), kind: "dir".to_owned(), content: "rootdir,vztmpl,snippets".to_owned() };
    let mut options = Options::new(dir);
    "pve1".clone_into(&mut options.node);
    options.storages.push(tank());
    options.shared.push("tank".to_owned());
    let mut second = Host { version: Version(8, 4), ..Host::new("pve2") };
    second.storages.push(tank());
    let third = Host { version: Version(8, 0), bridges: vec![("lan9".to_owned(), "10.9.0.1/24".to_owned())], ..Host::new("pve3") };
    options.others = vec![second, third];
    let standin = Standin::start(options).unwrap();
    let root = log_in(&standin, "secret");
    for host in ["pve1", "pve2", "pve3"] {
        std::fs::write(standin.storage_dir_on(host, "local").join("template/cache/t.tar.gz"), host).unwrap();
    }
    (standin, root)
}

struct Caller<'a>(&'a Standin, &'a str);

impl Caller<'_> {
    fn call(&self, method: &str, path: &str, params: &[(&str, &str)]) -> Answer {
        let params: Vec<_> = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        call(self.0, self.1, method, path, &params)
    }

    fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[])
    }

    /// How the task that a call starts ends.
    fn task(&self, method: &str, path: &str, params: &[(&str, &str)]) -> String {
        let answer = self.call(method, path, params);
        let upid = answer.data().as_str().unwrap_or_else(|| panic!("no task: {answer:?}")).to_owned();
        let node = upid.split(':').nth(1).unwrap();
        let mut exit = Value::Null;
        assert!(until(Duration::from_secs(20), || {
            exit = self.get(&format!("/nodes/{node}/tasks/{upid}/status")).data()["exitstatus"].clone();
            exit.is_string()
        }));
        exit.as_str().unwrap().to_owned()
    }

    fn create(&self, host: &str, id: &str, more: &[(&str, &str)]) -> String {
        let usual = [("vmid", id), ("ostemplate", "local:vztmpl/t.tar.gz"), ("rootfs", "local-lvm:0.25"), ("unprivileged", "1")];
        let params: Vec<_> = usual.iter().filter(|(k, _)| !more.iter().any(|(m, _)| m == k)).chain(more).copied().collect();
        self.task("POST", &format!("/nodes/{host}/lxc"), &params)
    }
}

#[track_caller]
fn died(answer: &Answer, text: &str) {
    assert!(answer.status == 500 && answer.reason.contains(text), "{text}: {answer:?}");
}

#[test]
fn every_host_answers_for_its_own_guests_and_by_its_own_release() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    assert_eq!(pve.create("pve2", "201", &[]), "OK");
    assert_eq!(standin.place_of(201).as_deref(), Some("pve2"));
    assert!(standin.cluster_files().join("nodes/pve2/lxc/201.conf").exists());
    died(&pve.get("/nodes/pve1/lxc/201/config"), "Configuration file 'nodes/pve1/lxc/201.conf' does not exist");
    died(&pve.call("POST", "/nodes/pve1/lxc/201/status/stop", &[]), "CT 201 not running");
    let taken = pve.call("POST", "/nodes/pve1/lxc", &[("vmid", "201"), ("ostemplate", "local:vztmpl/t.tar.gz")]);
    died(&taken, "CT 201 already exists on node 'pve2'");
    assert_eq!(pve.get("/cluster/nextid").data(), "100");
    assert_eq!(pve.get("/nodes/pve1/lxc").data(), json!([]));
    assert_eq!(pve.get("/nodes/pve2/lxc").data()[0]["vmid"], 201);

    let versions: Vec<_> = ["pve1", "pve2", "pve3"].map(|h| pve.get(&format!("/nodes/{h}/version")).data()["release"].clone()).into();
    assert_eq!(versions, ["9.1", "8.4", "8.0"]);
    let refused = |host: &str, key: &str, value: &str| {
        let params = [("vmid", "300"), ("ostemplate", "no:vztmpl/t.tar.gz"), (key, value)];
        pve.call("POST", &format!("/nodes/{host}/lxc"), &params).json()["errors"][key].is_string()
    };
    assert!(!refused("pve1", "env", "A=1") && refused("pve2", "env", "A=1"));
    assert!(!refused("pve2", "dev0", "/dev/null") && refused("pve3", "dev0", "/dev/null"));
    let (old, new) = (pve.get("/nodes/pve3/lxc/9/config"), pve.get("/nodes/pve2/lxc/9/config"));
    assert!(old.json().get("message").is_none() && new.json().get("message").is_some(), "{old:?} {new:?}");
    assert_eq!(pve.get("/nodes/pve3/lxc/9/interfaces").status, 501);
    assert_eq!(pve.get("/nodes/pve3/network").data()[0]["iface"], "lan9");
}

#[test]
fn storages_are_a_host_s_own_or_shared() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    let content = |host: &str, storage: &str| {
        let rows = pve.get(&format!("/nodes/{host}/storage/{storage}/content")).data();
        rows.as_array().unwrap().iter().map(|r| r["volid"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    std::fs::write(standin.storage_dir_on("pve2", "tank").join("template/cache/s.tar.gz"), "x").unwrap();
    assert_eq!(content("pve1", "tank"), ["tank:vztmpl/s.tar.gz"]);
    std::fs::remove_file(standin.storage_dir_on("pve2", "local").join("template/cache/t.tar.gz")).unwrap();
    assert_eq!((content("pve1", "local").len(), content("pve2", "local").len()), (1, 0));
    died(&pve.get("/nodes/pve3/storage/tank/content"), "storage 'tank' is not available on node 'pve3'");
    let shared = |host: &str| pve.call("GET", &format!("/nodes/{host}/storage"), &[("storage", "tank")]).data()[0]["shared"].clone();
    assert_eq!((shared("pve1"), shared("pve3")), (json!(1), Value::Null));

    standin.set_room("pve1", "local-lvm", 3);
    let free = pve.get("/nodes/pve1/storage/local-lvm/status").data()["avail"].clone();
    assert_eq!(free, 3);
    let exit = pve.create("pve1", "202", &[]);
    assert!(exit.starts_with("unable to create CT 202 - command 'lxc-usernsexec") && exit.ends_with("failed: exit code 2"), "{exit}");
    assert!(standin.guests().is_empty() && standin.task_lines().iter().any(|l| l.contains("No space left on device")));
    assert_eq!(pve.create("pve3", "202", &[]), "OK", "another host has a storage of its own by that name");
}

#[test]
fn a_host_that_is_down_is_shown_so_and_cannot_be_called() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    assert_eq!(pve.create("pve2", "201", &[("hostname", "router"), ("tags", "pvemesh")]), "OK");
    standin.set_down("pve2", true);
    let refused = pve.get("/nodes/pve2/lxc/201/config");
    assert_eq!((refused.status, refused.reason.as_str(), refused.body.as_str()), (595, "No route to host", ""));
    let nodes = pve.get("/nodes").data();
    assert_eq!((&nodes[1]["status"], &nodes[0]["status"]), (&json!("offline"), &json!("online")));
    let status = pve.get("/cluster/status").data();
    assert_eq!((&status[0]["nodes"], &status[0]["quorate"], &status[2]["online"]), (&json!(3), &json!(1), &json!(0)));
    let row = pve.call("GET", "/cluster/resources", &[("type", "vm")]).data()[0].clone();
    assert_eq!((&row["status"], &row["node"], &row["tags"], row.get("name")), (&json!("unknown"), &json!("pve2"), &json!("pvemesh"), None));
    standin.set_down("pve2", false);
    assert_eq!(pve.get("/nodes/pve2/lxc/201/config").status, 200);
}

#[test]
fn without_a_quorum_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    assert_eq!(pve.create("pve1", "201", &[]), "OK");
    standin.set_quorum(false);
    let no_quorum = "cluster not ready - no quorum?";
    died(&pve.call("POST", "/nodes/pve1/lxc", &[("vmid", "202"), ("ostemplate", "local:vztmpl/t.tar.gz")]), no_quorum);
    died(&pve.call("DELETE", "/nodes/pve1/lxc/201", &[]), no_quorum);
    died(&pve.call("PUT", "/nodes/pve1/lxc/201/config", &[("memory", "64")]), "Permission denied");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/201/status/start", &[]), no_quorum);
    assert_eq!((pve.get("/nodes/pve1/lxc/201/config").status, standin.guests()), (200, vec![201]));
}

#[test]
fn a_move_stops_takes_along_and_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    assert_eq!(pve.create("pve1", "201", &[("net0", "name=eth0,bridge=vmbr0")]), "OK");
    let migrate = |from: &str, params: &[(&str, &str)]| pve.call("POST", &format!("/nodes/{from}/lxc/201/migrate"), params);
    assert_eq!(migrate("pve1", &[("target", "pve1")]).json()["errors"]["target"], "target is local node.");
    died(&migrate("pve1", &[("target", "pve9")]), "no such cluster node 'pve9'");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/201/status/start", &[]), "OK");
    died(&migrate("pve1", &[("target", "pve2")]), "can't migrate running container without --online or --restart");
    let online = [("target", "pve2"), ("online", "1")];
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/201/migrate", &online), "migration aborted");
    assert!(standin.task_lines().iter().any(|l| l.ends_with("lxc live migration is currently not implemented")));
    let restart = [("target", "pve2"), ("restart", "1")];
    standin.set_down("pve2", true);
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/201/migrate", &restart), "migration aborted");
    standin.set_down("pve2", false);
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/201/migrate", &restart), "OK");
    assert_eq!((standin.place_of(201).as_deref(), standin.is_running(201)), (Some("pve2"), true));
    died(&migrate("pve1", &restart), "nodes/pve1/lxc/201.conf' does not exist");
    // The third host lacks the bridge: the container is there, and down.
    let third = [("target", "pve3"), ("restart", "1")];
    assert_eq!(pve.task("POST", "/nodes/pve2/lxc/201/migrate", &third), "migration problems");
    assert_eq!((standin.place_of(201).as_deref(), standin.is_running(201)), (Some("pve3"), false));
}

#[test]
fn what_the_target_lacks_stops_a_move_or_the_start_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    assert_eq!(pve.create("pve1", "201", &[("rootfs", "tank:1")]), "OK");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/201/migrate", &[("target", "pve3")]), "migration aborted");
    assert_eq!(pve.create("pve1", "202", &[("dev0", "/dev/null")]), "OK");
    standin.take_device("pve2", "/dev/null");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/202/migrate", &[("target", "pve2")]), "OK");
    assert_eq!(pve.task("POST", "/nodes/pve2/lxc/202/status/start", &[]), "startup for container '202' failed");
    let script = standin.storage_dir_on("pve1", "local").join("snippets/hook.sh");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(pve.create("pve1", "203", &[("hookscript", "local:snippets/hook.sh")]), "OK");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/203/migrate", &[("target", "pve2")]), "OK");
    let exit = pve.task("POST", "/nodes/pve2/lxc/203/status/start", &[]);
    assert!(exit.starts_with("hookscript error for 203 on pre-start: script 'local:snippets/hook.sh' does not exist"), "{exit}");
    standin.set_lock(203, Some("backup"));
    assert_eq!(pve.task("POST", "/nodes/pve2/lxc/203/migrate", &[("target", "pve1")]), "migration aborted");
}

#[test]
fn a_template_is_cloned_full_or_linked_and_onto_other_hosts_where_storage_is_shared() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    let net = ("net0", "name=eth0,bridge=vmbr0");
    assert_eq!(pve.create("pve1", "900", &[("rootfs", "tank:1"), net, ("dev0", "/dev/null")]), "OK");
    died(&pve.call("POST", "/nodes/pve1/lxc/900/clone", &[("newid", "901"), ("full", "0")]), "Linked clone feature is not supported");
    assert_eq!(pve.call("POST", "/nodes/pve1/lxc/900/template", &[]).data(), Value::Null);
    assert!(standin.settle(Duration::from_secs(10)));
    died(&pve.call("POST", "/nodes/pve1/lxc/900/template", &[]), "you can't convert a template to a template");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/900/status/start", &[]), "you can't start a CT if it's a template");
    let clone = |params: &[(&str, &str)]| pve.call("POST", "/nodes/pve1/lxc/900/clone", params);
    died(&clone(&[("newid", "901"), ("storage", "tank")]), "parameter 'storage' not allowed for linked clones");
    died(&clone(&[("newid", "901"), ("full", "1"), ("storage", "local-lvm"), ("target", "pve2")]), "can't clone to non-shared storage");
    died(&clone(&[("newid", "901"), ("target", "pve3")]), "storage 'tank' is not available on node 'pve3'");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/900/clone", &[("newid", "901"), ("target", "pve2"), ("hostname", "copy")]), "OK");
    let (base, copy) = (standin.config(900).unwrap(), standin.config(901).unwrap());
    assert_eq!((standin.place_of(901).as_deref(), copy.get("hostname"), copy.get("dev0")), (Some("pve2"), Some("copy"), Some("/dev/null")));
    assert!(!copy.is_set("template") && copy.get("net0") != base.get("net0"), "a clone has an address of its own");
    assert!(copy.get("rootfs").unwrap().contains("base-900-disk-0"));
    let exit = pve.task("DELETE", "/nodes/pve1/lxc/900", &[]);
    assert!(exit.ends_with("is still in use (use by 'vm-901-disk-0')"), "{exit}");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/900/clone", &[("newid", "902"), ("full", "1"), ("storage", "local-lvm")]), "OK");
    assert!(standin.config(902).unwrap().get("rootfs").unwrap().starts_with("local-lvm:"));

    // A token may, device and all, with the rights that the issue of cloning needs and no more.
    standin.access(|access| {
        access.add_token("mesh@pve!t", crate::TOKEN_SECRET, false);
        access.grant("/vms", "mesh@pve", "VM.Allocate VM.Clone VM.Audit");
        access.grant("/storage/tank", "mesh@pve", "Datastore.AllocateSpace");
    });
    let id = token("mesh@pve!t");
    let by_token = Caller(&standin, &id);
    let refused = by_token.call("POST", "/nodes/pve1/lxc/900/clone", &[("newid", "903")]);
    assert_eq!(refused.reason, "Permission check failed (/sdn/zones/localnetwork/vmbr0, SDN.Use)");
    standin.access(|access| access.grant("/sdn/zones/localnetwork/vmbr0", "mesh@pve", "SDN.Use"));
    assert_eq!(by_token.task("POST", "/nodes/pve1/lxc/900/clone", &[("newid", "903")]), "OK");
}

#[test]
fn high_availability_requests_and_its_manager_acts() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    let on_tank = ("rootfs", "tank:1");
    assert_eq!((pve.create("pve1", "201", &[on_tank]), pve.create("pve2", "202", &[on_tank])), ("OK".into(), "OK".into()));
    died(&pve.call("POST", "/cluster/ha/resources", &[("sid", "ct:777")]), "resource 'ct:777' does not exists in cluster");
    let rule = [("rule", "apart"), ("type", "resource-affinity"), ("affinity", "negative"), ("resources", "ct:201,ct:202")];
    let early = pve.call("POST", "/cluster/ha/rules", &rule);
    assert_eq!(early.json()["errors"]["resources"], "cannot use unmanaged resource(s) ct:201, ct:202.");
    for sid in ["ct:201", "202"] {
        assert_eq!(pve.call("POST", "/cluster/ha/resources", &[("sid", sid), ("state", "stopped")]).status, 200);
    }
    died(&pve.call("POST", "/cluster/ha/resources", &[("sid", "201")]), "resource ID 'ct:201' already defined");
    assert_eq!(pve.call("POST", "/cluster/ha/rules", &rule).status, 200);
    assert_eq!(pve.get("/cluster/ha/rules").data()[0]["resources"], "ct:201,ct:202");
    died(&pve.get("/cluster/ha/groups"), "ha groups have been migrated to rules");

    for (host, id) in [("pve1", 201), ("pve2", 202)] {
        assert_eq!(pve.task("POST", &format!("/nodes/{host}/lxc/{id}/status/start"), &[]), "OK");
        assert!(until(Duration::from_secs(10), || standin.is_running(id)), "the task only asks; the manager starts it");
    }
    assert!(standin.task_exits().iter().any(|(kind, _)| kind == "hastart"));
    assert_eq!(pve.get("/nodes/pve1/lxc/201/status/current").data()["ha"], json!({ "managed": 1, "state": "started" }));
    standin.set_down("pve1", true);
    assert_eq!(standin.fail_over(), [201]);
    assert!(standin.settle(Duration::from_secs(10)));
    assert_eq!(standin.place_of(201).as_deref(), Some("pve3"), "the rule keeps it away from pve2");
    standin.set_down("pve1", false);

    assert_eq!(pve.task("POST", "/nodes/pve2/lxc/202/migrate", &[("target", "pve1"), ("restart", "1")]), "OK");
    assert!(until(Duration::from_secs(10), || standin.place_of(202).as_deref() == Some("pve1")));
    assert!(standin.settle(Duration::from_secs(10)));
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/202/status/stop", &[]), "OK");
    assert!(until(Duration::from_secs(10), || !standin.is_running(202)) && standin.settle(Duration::from_secs(10)));
    died(&pve.call("DELETE", "/nodes/pve1/lxc/202", &[]), "used in HA resources and purge parameter not set.");
    assert_eq!(pve.task("DELETE", "/nodes/pve1/lxc/202", &[("purge", "1")]), "OK");
    assert_eq!(pve.get("/cluster/ha/resources").data().as_array().unwrap().len(), 1);
    assert_eq!(pve.get("/cluster/ha/rules").data()[0]["resources"], "ct:201");
}

#[test]
fn before_9_0_there_are_groups_and_no_rules() {
    let dir = tempfile::tempdir().unwrap();
    let standin = Standin::start(Options { version: Version(8, 4), ..Options::new(dir.path()) }).unwrap();
    let root = log_in(&standin, "secret");
    let pve = Caller(&standin, &root);
    standin.add_guest(201, Config::default());
    assert_eq!(pve.get("/cluster/ha/rules").status, 501);
    died(&pve.call("POST", "/cluster/ha/resources", &[("sid", "ct:201"), ("group", "mesh")]), "HA group 'mesh' does not exist");
    assert_eq!(pve.call("POST", "/cluster/ha/groups", &[("group", "mesh"), ("nodes", "pve")]).status, 200);
    assert_eq!(pve.call("POST", "/cluster/ha/resources", &[("sid", "ct:201"), ("group", "mesh")]).status, 200);
    let unknown = pve.call("PUT", "/cluster/ha/resources/ct:201", &[("failback", "0")]);
    assert_eq!(unknown.json()["errors"].as_object().unwrap().keys().collect::<Vec<_>>(), ["failback"]);
}

#[test]
fn what_a_privilege_is_needed_for_depends_on_the_release() {
    for (release, bridge, agent) in [(Version(7, 4), 200, 500), (Version(8, 0), 403, 500), (Version(9, 0), 403, 403)] {
        let dir = tempfile::tempdir().unwrap();
        let standin = Standin::start(Options { version: release, ..Options::new(dir.path()) }).unwrap();
        standin.access(|access| {
            access.add_token("mesh@pve!t", crate::TOKEN_SECRET, false);
            access.grant(
                "/vms",
                "mesh@pve",
                &format!("{} VM.Monitor", crate::standin::access::VM_ADMIN.replace("VM.GuestAgent", "VM.Old")),
            );
            access.grant("/storage", "mesh@pve", crate::standin::access::DATASTORE_USER);
        });
        let id = token("mesh@pve!t");
        let pve = Caller(&standin, &id);
        let params = [
            ("vmid", "201"),
            ("ostemplate", "local:vztmpl/t.tar.gz"),
            ("rootfs", "local-lvm:1"),
            ("unprivileged", "1"),
            ("net0", "name=eth0,bridge=vmbr0"),
        ];
        assert_eq!(pve.call("POST", "/nodes/pve/lxc", &params).status, bridge, "{release:?}");
        standin.add_machine("pve", 200, Machine { running: true, ..Machine::default() });
        assert_eq!(pve.get("/nodes/pve/qemu/200/agent/network-get-interfaces").status, agent, "{release:?}");
    }
}

#[test]
fn a_virtual_machine_runs_its_hook_and_its_agent_answers_when_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    let values = [("name", "nas"), ("agent", "1"), ("net0", "virtio=BC:24:11:00:00:05,bridge=vmbr0")];
    let values = values.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    standin.add_machine("pve1", 200, Machine { values, ..Machine::default() });
    assert_eq!(pve.get("/nodes/pve1/qemu").data()[0]["name"], "nas");
    died(&pve.get("/nodes/pve2/qemu/200/config"), "Configuration file 'nodes/pve2/qemu-server/200.conf' does not exist");
    died(
        &pve.call("POST", "/nodes/pve1/lxc", &[("vmid", "200"), ("ostemplate", "local:vztmpl/t.tar.gz")]),
        "VM 200 already exists on node",
    );
    let (marks, script) = (dir.path().join("phases"), standin.storage_dir("local").join("snippets/hook.sh"));
    std::fs::write(&script, format!("#!/bin/sh\necho $1 $2 >> {}\n", marks.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let digest = pve.get("/nodes/pve1/qemu/200/config").data()["digest"].as_str().unwrap().to_owned();
    let set = [("hookscript", "local:snippets/hook.sh"), ("digest", digest.as_str())];
    assert_eq!(pve.call("PUT", "/nodes/pve1/qemu/200/config", &set).status, 200);
    died(&pve.call("PUT", "/nodes/pve1/qemu/200/config", &set), "detected modified configuration");
    let agent = || pve.get("/nodes/pve1/qemu/200/agent/network-get-interfaces");
    died(&agent(), "VM 200 is not running");
    assert_eq!(pve.task("POST", "/nodes/pve1/qemu/200/status/start", &[]), "OK");
    died(&agent(), "QEMU guest agent is not running");
    let mut machine = standin.machine(200).unwrap();
    machine.interfaces = Some(json!([{ "name": "eth0", "ip-addresses": [{ "ip-address": "192.168.50.9", "prefix": 24 }] }]));
    standin.add_machine("pve1", 200, machine);
    assert_eq!(agent().data()["result"][0]["name"], "eth0");
    assert_eq!(pve.task("POST", "/nodes/pve1/qemu/200/status/stop", &[]), "OK");
    assert_eq!(std::fs::read_to_string(marks).unwrap(), "200 pre-start\n200 post-start\n200 pre-stop\n200 post-stop\n");
}

#[test]
fn a_file_of_the_cluster_that_somebody_edits_is_what_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    assert_eq!(pve.create("pve1", "201", &[("description", "two\nlines: 100%"), ("tags", "b;a")]), "OK");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/201/snapshot", &[("snapname", "before"), ("description", "x")]), "OK");
    let file = standin.cluster_files().join("lxc/201.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("#two\n#lines%3A 100%25\n") && text.contains("\n[before]\n"), "{text}");
    let (head, tail) = text.split_once("\n[before]").unwrap();
    let line = "lxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file";
    std::fs::write(&file, format!("{head}{line}\n\n[before]{tail}")).unwrap();
    let shown = pve.get("/nodes/pve1/lxc/201/config").data();
    assert_eq!(shown["lxc"], json!([["lxc.mount.entry", "/dev/net/tun dev/net/tun none bind,create=file"]]));
    assert_eq!((&shown["description"], &shown["tags"]), (&json!("two\nlines: 100%\n"), &json!("a;b")));
    assert_eq!(pve.call("PUT", "/nodes/pve1/lxc/201/config", &[("memory", "77")]).status, 200);
    let text = std::fs::read_to_string(&file).unwrap();
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} in {text}"));
    assert!(place(line) < place("[before]") && text.contains("memory: 77"), "{text}");
    assert_eq!(pve.task("POST", "/nodes/pve1/lxc/201/snapshot/before/rollback", &[]), "OK");
    let back = pve.get("/nodes/pve1/lxc/201/config").data();
    assert_eq!((back["memory"].as_u64(), back.get("lxc")), (Some(512), None));
    assert_eq!(back["description"], "two\nlines: 100%\n", "the notes stay those of the container");
    // Whoever holds the file's lock keeps the API waiting.
    let lock = std::fs::File::create(standin.lock_files().join("lxc/pve-config-201.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let set = scope.spawn(|| pve.call("PUT", "/nodes/pve1/lxc/201/config", &[("memory", "99")]).status);
        assert!(!until(Duration::from_millis(300), || set.is_finished()), "the change did not wait");
        drop(lock);
        assert_eq!(set.join().unwrap(), 200);
    });
}

#[test]
fn calls_are_counted_and_faults_met_by_any_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let (standin, root) = cluster(dir.path());
    let pve = Caller(&standin, &root);
    standin.calls().clear();
    standin.faults().on_write(2, Fault::Answer(596, "Connection timed out".to_owned()));
    assert_eq!(pve.create("pve1", "201", &[("env", "A=b;c=d")]), "OK");
    assert_eq!(pve.call("PUT", "/nodes/pve1/lxc/201/config", &[("memory", "64")]).status, 596);
    let writes = standin.calls().writes();
    let lines: Vec<_> = writes.iter().map(|call| call.line()).collect();
    assert_eq!(lines, ["POST /nodes/pve1/lxc", "PUT /nodes/pve1/lxc/201/config"]);
    assert_eq!((writes[0].param("env"), writes[0].by_pvesh), (Some("A=b;c=d"), false));
    standin.faults().on_write(1, Fault::meanwhile(|pve| pve.edit(201, |config| config.set("memory", "999"))));
    let digest = pve.get("/nodes/pve1/lxc/201/config").data()["digest"].as_str().unwrap().to_owned();
    let set = [("memory", "64"), ("digest", digest.as_str())];
    died(&pve.call("PUT", "/nodes/pve1/lxc/201/config", &set), "detected modified configuration");
    assert_eq!(standin.config(201).unwrap().get("memory"), Some("999"));

    standin.faults().on("GET", "/version", 1, Fault::Restart(Duration::from_millis(300)));
    let get = b"GET /api2/json/version HTTP/1.1\r\n\r\n";
    assert!(crate::client::send(&mut crate::client::connect(&standin), get).is_none());
    assert!(!standin.faults().is_serving());
    assert!(until(Duration::from_secs(5), || standin.faults().is_serving()));
    assert_eq!(pve.get("/version").status, 200);
}
