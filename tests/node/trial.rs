//! Changes of routing on trial: one that cuts the machine off is taken back.

use std::time::{Duration, Instant};

use pvemesh::node::trial::LIMIT;

use super::world::{World, possible, text, wait_for};

#[test]
fn an_exit_node_that_cuts_the_machine_off_from_the_coordinator_is_taken_back_and_one_that_does_not_stays() {
    if !possible() {
        return;
    }
    let world = World::new();
    world.start_exit_node();
    let key = world.key(&[]);
    let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "laptop"];
    assert!(world.laptop.up(&up).status.success());
    let wanted = || -> serde_json::Value {
        let out = world.laptop.node(&["--json", "set"]);
        serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}{}", text(&out.stdout), text(&out.stderr)))
    };
    // Another program's rule, which leads the node's own packets into its tunnel as soon as that is the way to everywhere.
    world.laptop.sh("ip rule add pref 100 lookup 52");
    world.laptop.wait_until_running();
    assert!(world.laptop.node(&["set", "--exit-node", "exit-1", "--shields-up"]).status.success());
    assert_eq!(wanted()["exit_node"], "exit-1");
    let begun = Instant::now();
    wait_for("the change is taken back", || (wanted()["exit_node"] == "").then_some(()));
    let took = begun.elapsed();
    println!("taken back after {took:?}");
    assert!(took > LIMIT - Duration::from_secs(1) && took < LIMIT + Duration::from_secs(8), "{took:?}");
    assert_eq!(wanted()["shields_up"], true, "only what cuts off is taken back");
    let status = world.laptop.wait_until_running();
    let health = status["Health"].to_string();
    assert!(health.contains("the exit node was taken back: the coordinator was no longer reached"), "{health}");

    world.laptop.sh("ip rule del pref 100 lookup 52");
    assert!(world.laptop.node(&["set", "--exit-node", "exit-1"]).status.success());
    wait_for("the way through the exit node", || (world.seen_by_web().as_deref() == Some("203.0.113.2")).then_some(()));
    let begun = Instant::now();
    while begun.elapsed() < LIMIT + Duration::from_secs(1) {
        assert_eq!(world.seen_by_web().as_deref(), Some("203.0.113.2"));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(!world.laptop.status().unwrap()["Health"].to_string().contains("taken back"));
}
