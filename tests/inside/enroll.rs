//! A node in a container of somebody else's: put in, changed, looked at, given new keys, taken out.

use serde_json::json;

use crate::site::Site;
use crate::standin::Version;

/// A site with a coordinator in container 100.
pub fn with_coordinator() -> Option<Site> {
    let site = Site::new()?;
    site.run("create-coordinator 100 --ip 192.168.60.100/24 --gw 192.168.60.1 --ip6 none").succeeded();
    Some(site)
}

fn nodes(site: &Site) -> Vec<(String, bool)> {
    let listed = site.nodes();
    listed.as_array().unwrap().iter().map(|n| (n["name"].as_str().unwrap().to_owned(), n["online"].as_bool().unwrap())).collect()
}

#[test]
fn a_node_is_put_into_a_container_changed_and_taken_out_again() {
    let Some(site) = with_coordinator() else { return };
    let before = [("description", "# My wiki"), ("tags", "prod;wiki")];
    site.busybox(105, &before);
    let config = || site.standin.config(105).unwrap();
    let untouched = config();
    site.run("enroll 105").failed(4, &["no way into a container", "--ssh root@pve"]);
    let shown = site.run("enroll 105 --ssh root@pve --dry-run");
    assert!(shown.succeeded().out.contains("dev0=/dev/net/tun") && shown.out.contains("/usr/local/bin/pvemesh"), "{shown:?}");
    assert!(shown.out.contains("(secret, mode 600)") && !site.rootfs(105, "/etc/pvemesh").exists());
    assert_eq!(config().file(), untouched.file());

    let made = site.run("enroll 105 --ssh root@pve --json");
    let report = made.succeeded().json();
    assert_eq!((&report["name"], &report["role"], &report["changed"]), (&json!("wiki"), &json!("node"), &json!(true)));
    let address = report["mesh_addresses"][0].as_str().unwrap().to_owned();
    let notes = config().get("description").unwrap().to_owned();
    assert!(notes.starts_with("# My wiki\n") && notes.contains(&address) && notes.contains("unenroll 105"), "{notes}");
    assert_eq!(config().get("tags"), Some("node;prod;pvemesh;wiki"));
    let settings = std::fs::read_to_string(site.rootfs(105, "/etc/pvemesh/guest.toml")).unwrap();
    assert!(!settings.contains("pvmkey"), "the join key is still there");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(site.rootfs(105, "/etc/pvemesh/guest.toml")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!made.err.contains("pvmkey") && !made.out.contains("pvmkey"));
    // The device was plugged into the running container, which has not been restarted.
    assert_eq!(config().get("dev0"), Some("/dev/net/tun"));
    let seen = site.pct(&["exec", "105", "--", "ip", "addr", "show", "pvemesh0"]);
    assert!(seen.succeeded().out.contains(&address), "{seen:?}");

    let again = site.run("enroll 105 --ssh root@pve --json");
    assert_eq!(again.succeeded().json()["changed"], json!(false));
    site.run("destroy 105 --yes").failed(5, &["its owner's", "unenroll 105"]);

    let change = site.run("enroll 105 --ssh root@pve --route 192.168.60.0/24 --json");
    let steps: Vec<String> =
        change.succeeded().json()["steps"].as_array().unwrap().iter().map(|s| s["step"].as_str().unwrap().to_owned()).collect();
    assert!(steps.iter().all(|step| !step.contains("program") && !step.contains("join key")), "{steps:?}");
    let carried = || site.nodes()[0]["carried_routes"].clone();
    site.wait("the route is carried", 20, || carried() == json!(["192.168.60.0/24"]));
    assert_eq!(config().get("tags"), Some("prod;pvemesh;subnet-router;wiki"));
    site.run("enroll 105 --ssh root@pve --route 192.168.60.0/24").succeeded();

    let said = site.run("logs 105 --ssh root@pve --lines 50");
    assert!(said.succeeded().out.contains("the node runs"), "{said:?}");
    assert_eq!(site.run("logs 105 --ssh root@pve --lines 2 --json").succeeded().json()["lines"].as_array().unwrap().len(), 2);

    new_keys(&site, &address);

    let gone = site.run("unenroll 105 --ssh root@pve --yes");
    gone.succeeded();
    assert_eq!(config().get("description").map(str::trim_end), Some("# My wiki"));
    assert_eq!(config().get("tags"), Some("prod;wiki"));
    for path in ["/usr/local/bin/pvemesh", "/etc/pvemesh", "/var/lib/pvemesh", "/etc/init.d/S99pvemesh", "/run/pvemesh"] {
        assert!(!site.rootfs(105, path).exists(), "{path} was left");
    }
    assert_eq!(nodes(&site), []);
    let processes = site.pct(&["exec", "105", "--", "ps"]);
    assert!(!processes.succeeded().out.contains("pvemesh"), "{processes:?}");
    site.run("unenroll 105 --ssh root@pve --yes").failed(5, &["was not enrolled"]);
}

fn new_keys(site: &Site, address: &str) {
    let listed = || site.nodes();
    let before = listed()[0].clone();
    // A node that does not come up with its new keys stays what it was.
    let script = site.rootfs(105, "/etc/init.d/S99pvemesh");
    let text = std::fs::read_to_string(&script).unwrap();
    std::fs::write(&script, text.replace("restart)", "restart) exit 0")).unwrap();
    let failed = site.run("rekey 105 --ssh root@pve");
    failed.failed(4, &["has not heard of a node with new keys", "what had been made was taken back"]);
    std::fs::write(&script, text).unwrap();
    assert_eq!(listed().as_array().unwrap().len(), 1);
    assert_eq!((&listed()[0]["key"], &listed()[0]["machine_key"]), (&before["key"], &before["machine_key"]));

    let done = site.run("rekey 105 --ssh root@pve --json");
    let report = done.succeeded().json();
    assert_eq!((&report["name"], report["mesh_addresses"][0].as_str()), (&json!("wiki"), Some(address)));
    let after = listed();
    assert_eq!(after.as_array().unwrap().len(), 1, "{after}");
    let after = after[0].clone();
    assert_ne!(after["key"], before["key"]);
    assert_ne!(after["machine_key"], before["machine_key"]);
    for same in ["name", "addresses", "tags", "approved_routes", "user"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    site.wait("it is online with its old address", 20, || {
        listed()[0]["online"] == true && site.pct(&["exec", "105", "--", "ip", "addr", "show", "pvemesh0"]).out.contains(address)
    });
    assert!(!site.rootfs(105, "/var/lib/pvemesh/node/state.before.json").exists(), "the old keys are still there");
    assert!(!done.out.contains("pvmkey") && !done.err.contains("pvmkey"));
}

#[test]
fn what_stands_in_the_way_is_said_before_anything_is_changed() {
    let Some(site) = Site::with(Version(8, 4), false) else { return };
    site.run("create-coordinator 100 --ip 192.168.60.100/24 --gw 192.168.60.1 --ip6 none").succeeded();
    site.run("enroll 777 --ssh root@pve").failed(5, &["no guest 777"]);
    site.run("enroll 100 --ssh root@pve").failed(5, &["is a pvemesh coordinator"]);
    site.busybox(105, &[]);
    site.run("enroll 105 --ssh root@pve").failed(5, &["after its next start only", "--restart"]);
    site.run("enroll 105 --ssh root@pve --exit-node --route 10.0.0.0/8").failed(2, &["--route"]);
    site.run("enroll 105 --ssh root@pve;reboot").failed(2, &["place for ssh"]);
    site.stop(105);
    site.run("enroll 105 --ssh root@pve").failed(5, &["does not run", "pct start 105"]);
    assert!(!site.rootfs(105, "/etc/pvemesh").exists() && site.standin.config(105).unwrap().get("dev0").is_none());
    site.start(105);
    let made = site.run("enroll 105 --ssh root@pve --restart --json");
    assert!(made.succeeded().json()["steps"].to_string().contains("restart container 105"));
    assert_eq!(nodes(&site), [("wiki".to_owned(), true)]);
}
