//! Fleets over several hosts or clusters, and guests that go when their file does not name them any more.

use std::io::Write as _;

use crate::hosts::two;
use crate::standin::faults::Fault;
use crate::world::{CREATE, Ran, World};

const APPLY: &str = "apply {dir}/fleet.toml --image {dir}/image.tar.gz";

fn write(world: &World, file: &str) {
    let head = "fleet = \"family\"\n[defaults]\nlogin_server = \"http://mesh.example.org\"\nauth_key_file = \"auth-key\"\n";
    std::fs::write(world.path("fleet.toml"), format!("{head}{file}")).unwrap();
}

fn guest(id: &str, more: &str) -> String {
    format!("[[guest]]\nid = {id}\nrole = \"node\"\n{more}\n")
}

fn rows(ran: &Ran) -> Vec<String> {
    let report = ran.json();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    report["guests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| format!("{}/{} {}", text(&row["cluster"]), row["vmid"], text(&row["outcome"])))
        .collect()
}

#[test]
fn guests_of_two_clusters_are_made_from_one_file_and_found_again_by_their_numbers() {
    let (home, office) = two();
    let far = "[group.far]\nhost = \"office\"\n";
    write(
        &home,
        &format!("{far}{}{}{}", guest("101", "host = \"home\""), guest("\"200-201\"", "group = \"far\""), guest("101", "group = \"far\"")),
    );
    let dry = home.run(&format!("{APPLY} --dry-run"));
    for part in ["+ 101 node-1 (node) on home/pve", "on office/pve", "4 to make"] {
        assert!(dry.succeeded().out.contains(part), "{part}: {dry:?}");
    }
    assert!(home.is_untouched() && office.is_untouched());
    let made = home.run(&format!("{APPLY} --json"));
    assert_eq!(rows(made.succeeded()), ["home/101 created", "office/101 created", "office/200 created", "office/201 created"]);
    assert_eq!((home.standin.guests(), office.standin.guests()), (vec![101], vec![101, 200, 201]));
    let names: std::collections::BTreeSet<String> =
        made.json()["guests"].as_array().unwrap().iter().map(|row| row["name"].to_string()).collect();
    assert_eq!(names.len(), 4, "one mesh has one node of a name: {names:?}");

    // Those that say nothing are looked for; one that two have is not guessed at.
    write(&home, &(guest("\"200-201\"", "memory = 96") + &guest("101", "host = \"home\"")));
    let again = home.run(&format!("{APPLY} --json"));
    assert_eq!(rows(again.succeeded()), ["home/101 unchanged", "office/200 changed", "office/201 changed"]);
    assert_eq!(office.standin.config(200).unwrap().get("memory"), Some("96"));
    let third = home.run(&format!("{APPLY} --json")).json();
    assert_eq!(third["calls"], 5, "one for each cluster's list, one for each guest: {third}");
    write(&home, &guest("101", ""));
    home.run(APPLY).failed(2, &["home and office have a guest of that number", "host = \"home\" or host = \"office\""]);
    write(&home, &guest("300", ""));
    home.run(APPLY).failed(2, &["guest 300", "host = \"home\" or host = \"office\""]);
    write(&home, &guest("300", "host = \"attic\""));
    home.run(APPLY).failed(2, &["attic", "home, office"]);
}

#[test]
fn one_limit_and_one_end_hold_for_all_clusters() {
    let (home, office) = two();
    write(&home, &(guest("\"200-201\"", "host = \"office\"") + &guest("101", "host = \"home\"")));
    office.standin.faults().on("POST", "/lxc/201/status/start", 1, Fault::TaskFails("no more memory".to_owned()));
    let failed = home.run(&format!("{APPLY} --parallel 1 --json"));
    failed.failed(1, &["guest 201", "no more memory"]);
    assert_eq!(rows(&failed), ["home/101 not begun", "office/200 created", "office/201 failed"]);
    assert_eq!((home.standin.guests(), office.standin.guests()), (vec![], vec![200]));
    assert!(home.templates().is_empty(), "an image for nobody is left at home");
    let rest = home.run(&format!("{APPLY} --json"));
    assert_eq!(rows(rest.succeeded()), ["home/101 created", "office/200 unchanged", "office/201 created"]);

    // One that does not answer ends it before anything is begun; where it is not needed, it is not asked.
    drop(office);
    write(&home, &(guest("102", "host = \"home\"") + &guest("202", "host = \"office\"")));
    home.run(APPLY).failed(4, &["office", "cannot be reached"]);
    assert_eq!(home.standin.guests(), [101]);
    write(&home, &guest("102", "host = \"home\""));
    home.run(APPLY).succeeded();
    assert_eq!(home.standin.guests(), [101, 102]);
}

/// A fleet on two clusters, and beside it what is not of it: a guest made by hand, one of another fleet, a clone of one of the fleet.
fn beside_others() -> (World, World) {
    let (home, office) = two();
    write(&home, &(guest("\"101-102\"", "host = \"home\"") + &guest("\"200-201\"", "host = \"office\"")));
    home.run(APPLY).succeeded();
    home.run(&format!("{} --host home", CREATE.replace("101", "150"))).succeeded();
    let other = std::fs::read_to_string(home.path("fleet.toml")).unwrap().replace("family", "friends");
    let other = format!("{}{}", other.split("[[guest]]").next().unwrap(), guest("160", "host = \"home\""));
    std::fs::write(home.path("other.toml"), other).unwrap();
    home.run("apply {dir}/other.toml --image {dir}/image.tar.gz").succeeded();
    let config = home.standin.config(102).unwrap();
    assert!(config.get("description").unwrap().contains("fleet=family"), "{config:?}");
    home.standin.add_guest(170, config);
    (home, office)
}

#[test]
fn guests_of_the_fleet_that_the_file_does_not_name_go_and_no_others() {
    let (home, office) = beside_others();
    let keep = guest("101", "host = \"home\"");
    write(&home, &keep);
    let all = || (home.standin.guests(), office.standin.guests());
    let before = (vec![101, 102, 150, 160, 170], vec![200, 201]);
    assert!(home.run(APPLY).succeeded().out.contains("1 guests are as wanted"));
    assert_eq!(all(), before);
    let dry = home.run(&format!("{APPLY} --prune --dry-run"));
    for part in ["- 102 node-2 (node) on home/pve", "- 200 ", "- 201 ", "on office/pve", "3 to remove", "DELETE /nodes/pve/lxc/102"] {
        assert!(dry.succeeded().out.contains(part), "{part}: {dry:?}");
    }
    for part in ["- 101", "- 150", "- 160", "- 170"] {
        assert!(!dry.out.contains(part), "{part}: {dry:?}");
    }
    home.run(&format!("{APPLY} --prune")).failed(2, &["102, 200, 201", "add --yes"]);
    assert_eq!(all(), before);
    let done = home.run(&format!("{APPLY} --prune --yes --json"));
    assert_eq!(rows(done.succeeded()), ["home/101 unchanged", "home/102 removed", "office/200 removed", "office/201 removed"]);
    assert_eq!(all(), (vec![101, 150, 160, 170], vec![]));
    assert!(office.templates().is_empty(), "with the last guest goes the image");
    assert!(home.run(&format!("{APPLY} --prune --yes")).succeeded().out.contains("nothing to do"));

    // A change keeps the mark, and the name of the fleet is needed.
    write(&home, &format!("{keep}memory = 96\n"));
    home.run(APPLY).succeeded();
    assert!(home.standin.config(101).unwrap().get("description").unwrap().contains("fleet=family"));
    let nameless = std::fs::read_to_string(home.path("fleet.toml")).unwrap().replace("fleet = \"family\"\n", "");
    std::fs::write(home.path("fleet.toml"), nameless).unwrap();
    home.run(&format!("{APPLY} --prune --yes")).failed(2, &["the fleet has no name"]);
    assert_eq!(home.standin.guests(), [101, 150, 160, 170]);
}

#[test]
fn on_a_terminal_it_is_asked_for_and_after_a_failure_nothing_goes() {
    let (home, office) = beside_others();
    write(&home, &(guest("\"101-102\"", "host = \"home\"") + &guest("200", "host = \"office\"") + &guest("300", "host = \"home\"")));
    home.standin.faults().on("POST", "/lxc/300/status/start", 1, Fault::TaskFails("no more memory".to_owned()));
    home.run(&format!("{APPLY} --prune --yes")).failed(1, &["no more memory"]);
    assert_eq!(office.standin.guests(), [200, 201]);
    let asked = |answer: &str| {
        let mut child = home.on_a_terminal(&format!("{APPLY} --prune")).ok()?;
        child.stdin.take().unwrap().write_all(format!("{answer}\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        Some((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let Some((done, said)) = asked("no") else {
        println!("skipped: there is no `script` to make a terminal with");
        return;
    };
    assert!(!done && said.contains("type family to remove 201"), "{said}");
    assert_eq!(office.standin.guests(), [200, 201]);
    assert!(!home.standin.guests().contains(&300), "it is asked before anything is begun");
    let (done, said) = asked("family").unwrap();
    assert!(done, "{said}");
    assert_eq!((home.standin.guests(), office.standin.guests()), (vec![101, 102, 150, 160, 170, 300], vec![200]));
}
