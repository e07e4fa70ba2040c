//! Settings of real guests changed on releases that have no environment to hand them over in.

use serde_json::{Value, json};

use crate::site::Site;
use crate::standin::Version;
use crate::standin::faults::Fault;

const ROUTER: &str = "create-subnet-router 101 --ssh root@pve --route 192.168.60.0/24";

fn node(site: &Site) -> Value {
    let nodes = site.nodes();
    assert_eq!(nodes.as_array().unwrap().len(), 1, "{nodes}");
    nodes[0].clone()
}

fn changed(site: &Site, words: &str) -> bool {
    site.run(&format!("{ROUTER} {words} --json")).succeeded().json()["changed"].as_bool().unwrap()
}

#[test]
fn routes_and_a_name_get_into_a_guest_of_an_older_release_and_its_keys_stay() {
    let Some(site) = Site::with(Version(8, 4), false) else { return };
    site.run("create-coordinator 100 --ip 192.168.60.100/24 --gw 192.168.60.1 --ip6 none").succeeded();
    site.run(&format!("{ROUTER} --name router --ip 192.168.60.101/24 --gw 192.168.60.1 --ip6 none")).succeeded();
    let before = node(&site);
    assert_eq!(before["carried_routes"], json!(["192.168.60.0/24"]));

    // From afar without a way in it is said what to do, and nothing is done.
    site.run("create-subnet-router 101 --route 10.66.0.0/16").failed(5, &["--ssh root@pve", "as root on pve"]);
    site.run(&format!("{ROUTER} --route 10.66.0.0/16 --dry-run")).succeeded();
    assert_eq!(node(&site)["advertised_routes"], before["advertised_routes"]);

    // One that does not come up with them has the old ones again.
    site.standin.faults().on("POST", "/lxc/101/status/reboot", 1, Fault::TaskFails("no space left".to_owned()));
    let failed = site.run(&format!("{ROUTER} --route 10.66.0.0/16 --name gate"));
    failed.failed(1, &["restart container 101", "what had been made was taken back"]);
    site.wait("the node is what it was", 30, || node(&site)["online"] == true);
    for same in ["name", "advertised_routes", "approved_routes", "key"] {
        assert_eq!(node(&site)[same], before[same], "{same}");
    }
    assert!(!site.rootfs(101, "/etc/pvemesh/guest.toml").exists(), "the earlier settings were taken over");

    assert!(changed(&site, "--route 10.66.0.0/16 --name gate"));
    site.wait("both routes are carried", 20, || node(&site)["carried_routes"].as_array().is_some_and(|routes| routes.len() == 2));
    let after = node(&site);
    assert_eq!(after["name"], "gate");
    for same in ["key", "machine_key", "addresses"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    assert_eq!(
        site.pct(&["exec", "101", "--", "/sbin/init", "node", "ip", "-4"]).succeeded().out.trim(),
        before["addresses"][0].as_str().unwrap()
    );
    assert!(!changed(&site, "--route 10.66.0.0/16 --name gate"), "the second run has nothing to do");

    // One that is stopped takes them, too, and runs then.
    site.stop(101);
    assert!(changed(&site, "--name gate"));
    assert_eq!(node(&site)["advertised_routes"].as_array().unwrap().len(), 1);
}
