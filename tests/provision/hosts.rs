//! Several hosts and clusters in one configuration.

use crate::standin::guest_config::Config;
use crate::world::{CREATE, World};

/// A second host that the first world's admin knows as `office`; the first is known as `home`.
pub fn two() -> (World, World) {
    let (home, office) = (World::new(), World::new());
    for (name, world) in [("home", &home), ("office", &office)] {
        let (url, fingerprint) = (world.standin.url(), world.standin.fingerprint());
        let init = format!("init --name {name} --url {url} --user root@pam --password-file {{dir}}/password --fingerprint {fingerprint}");
        home.run(&init).succeeded();
    }
    (home, office)
}

fn names(value: &serde_json::Value) -> Vec<String> {
    let rows = value.as_array().unwrap().iter();
    rows.map(|row| format!("{}/{}", row["cluster"].as_str().unwrap_or("-"), row["vmid"])).collect()
}

#[test]
fn the_host_that_has_the_guest_is_found_by_its_number() {
    let (home, office) = two();
    home.run(&format!("{CREATE} --host home")).succeeded();
    home.run(&format!("{} --host office", CREATE.replace("101", "102"))).succeeded();
    assert_eq!((home.standin.guests(), office.standin.guests()), (vec![101], vec![102]));
    assert_eq!(names(&home.run("list --json").succeeded().json()), ["home/101", "office/102"]);
    assert!(home.run("list").succeeded().out.contains("office/pve"));
    assert_eq!(home.run("status 102 --json").succeeded().json()["vmid"], 102);
    // The second run finds it by itself, and has nothing to do.
    assert_eq!(home.run(&format!("{} --json", CREATE.replace("101", "102"))).succeeded().json()["changed"], false);
    home.run("destroy 102 --yes").succeeded();
    assert_eq!((home.standin.guests(), office.standin.guests()), (vec![101], vec![]));
}

#[test]
fn a_number_on_two_hosts_is_ambiguous_and_both_are_named() {
    let (home, office) = two();
    home.run(&format!("{CREATE} --host home")).succeeded();
    office.standin.add_guest(101, Config::default());
    home.run("status 101").failed(5, &["home and office have a guest 101", "--host home or --host office"]);
    home.run("destroy 101 --yes").failed(5, &["home and office"]);
    assert_eq!((home.standin.guests(), office.standin.guests()), (vec![101], vec![101]));
    home.run("destroy 101 --yes --host home").succeeded();
    assert_eq!((home.standin.guests(), office.standin.guests()), (vec![], vec![101]));
}

#[test]
fn a_new_guest_needs_a_host_where_there_are_several() {
    let (home, _office) = two();
    home.create("").failed(2, &["none of them has a guest 101", "--host home or --host office"]);
    home.create("--host nosuch").failed(2, &["no host or cluster is called nosuch", "home, office"]);
    assert!(home.standin.guests().is_empty());
}

#[test]
fn a_host_that_is_down_is_said_so_and_hides_no_other() {
    let (home, office) = two();
    home.run(&format!("{CREATE} --host home")).succeeded();
    drop(office);
    let listed = home.run("list --json");
    assert_eq!(names(&listed.succeeded().json()), ["home/101"]);
    assert!(listed.err.contains("office is left out") && listed.err.contains("cannot be reached"), "{listed:?}");
    let status = home.run("status 101");
    assert!(status.succeeded().err.contains("office is left out"), "{status:?}");
    home.run("status 102").failed(4, &["office cannot be asked", "--host"]);
}

#[test]
fn journals_of_two_hosts_are_told_apart() {
    use crate::standin::faults::Fault;
    let (home, office) = two();
    // The container stays, since it cannot be removed.
    office.standin.faults().on("POST", "/nodes/pve/lxc/101/status/start", 1, Fault::Answer(500, "no".to_owned()));
    office.standin.faults().on("DELETE", "/nodes/pve/lxc/101", 1, Fault::Answer(500, "not now".to_owned()));
    home.create("--host office").failed(6, &["not taken back"]);
    assert_eq!(office.standin.guests(), [101]);
    home.create("--host home").succeeded();
    assert_eq!(office.standin.guests(), [101]);
    let again = home.create("--host office");
    assert!(again.succeeded().err.contains("an earlier run for 101"), "{again:?}");
    assert!(office.standin.is_running(101) && home.standin.is_running(101));
}

#[test]
fn the_next_address_of_a_cluster_is_taken_when_one_does_not_answer() {
    let world = World::new();
    let init = "init --url https://127.0.0.1:1 --url {url} --user root@pam --password-file {dir}/password --fingerprint {fingerprint}";
    world.run(init).succeeded();
    let listed = world.run("list");
    let said = &listed.succeeded().err;
    assert!(said.contains("https://127.0.0.1:1 cannot be reached") && said.contains(&world.standin.url()), "{listed:?}");
    world.create("").succeeded();
    assert_eq!(world.standin.guests(), [101]);
    let dead = World::new();
    dead.run("init --url https://127.0.0.1:1 --url https://127.0.0.1:2 --user root@pam --password-file {dir}/password --fingerprint {fingerprint}")
        .failed(4, &["cannot be reached"]);
}
