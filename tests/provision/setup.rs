//! `pvemesh init`: settings, certificates, and what is kept.

use crate::world::{PASSWORD, World};

const INIT: &str = "init --url {url} --user root@pam --password-file {dir}/password";

fn saved(world: &World) -> String {
    std::fs::read_to_string(world.path("config/config.toml")).unwrap()
}

#[test]
fn everything_wrong_is_named_at_once_and_nothing_is_saved() {
    let world = World::new();
    let ran =
        world.run("init --name Office --url http://pve --user root --password-file {dir}/nosuch --fingerprint AB --trust-on-first-use");
    ran.failed(2, &["cannot be used with"]);
    let ran = world.run("init --name Office --url http://pve --user root --password-file {dir}/nosuch --fingerprint AB");
    ran.failed(2, &["--name:", "--url:", "--user:", "--password-file:", "nosuch", "--fingerprint:", "nothing was saved"]);
    world.run("init --user root@pam").failed(2, &["--url is missing", "--password-file"]);
    assert!(!world.path("config").exists());
}

#[test]
fn a_renewed_certificate_is_believed_and_one_of_somebody_else_is_not() {
    let world = World::new();
    let first = world.run(&format!("{INIT} --trust-on-first-use"));
    assert!(first.succeeded().out.contains("the cluster's own authority"), "{first:?}");
    assert!(saved(&world).contains("cluster_ca"), "{}", saved(&world));
    world.standin.certificates().renew();
    assert_ne!(world.standin.certificates().fingerprint(), world.standin.fingerprint());
    world.run("list").succeeded();
    world.standin.certificates().replace();
    let seen = world.standin.certificates().fingerprint();
    let accept = format!("pvemesh init --fingerprint {seen}");
    world.run("list").failed(3, &["was expected", &seen, world.standin.fingerprint(), "compare on the host", &accept]);
    // Accepted on purpose, it is believed alone: the cluster's authority did not sign it.
    let accepted = world.run(&accept.replace("pvemesh ", ""));
    assert!(accepted.succeeded().out.contains("its fingerprint alone"), "{accepted:?}");
    assert!(accepted.err.contains("only this very certificate is believed"), "{accepted:?}");
    world.run("list").succeeded();
    world.standin.certificates().renew();
    world.run("list").failed(3, &["was expected"]);
}

#[test]
fn a_fingerprint_given_leads_to_the_authority_too() {
    let world = World::new();
    world.init();
    world.standin.certificates().renew();
    world.run("list").succeeded();
}

#[test]
fn running_it_again_changes_just_what_is_given() {
    let world = World::new();
    world.init();
    let before = saved(&world);
    world.run("init").succeeded();
    assert_eq!(saved(&world), before);
    world.secret("other", PASSWORD);
    world.run("init --password-file {dir}/other --user root@pam").succeeded();
    assert_eq!(saved(&world), before.replace("/password\"", "/other\""));
    world.secret("wrong", "wrong");
    let kept = saved(&world);
    world.run("init --password-file {dir}/wrong").failed(3, &["authentication failure"]);
    assert_eq!(saved(&world), kept, "something that does not work was saved");
    world.run("list").succeeded();
}

#[test]
fn what_is_set_up_is_shown_without_a_secret() {
    let world = World::new();
    let nothing = world.run("init --show");
    assert!(nothing.succeeded().out.contains("nothing set up"), "{nothing:?}");
    world.init();
    world.run("init --login-server https://mesh.example.org --auth-key-file {dir}/auth-key").succeeded();
    for shown in [world.run("init --show"), world.run("init --show --json")] {
        let text = &shown.succeeded().out;
        for part in [world.standin.url().as_str(), "root@pam", world.standin.fingerprint(), "mesh.example.org"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains(PASSWORD) && !text.contains("tskey-auth"), "{text}");
    }
}

#[test]
fn a_coordinator_of_somebody_else_is_joined_by_every_new_node() {
    let world = World::new();
    world.init();
    world.run("create-exit-node 101 --image {dir}/image.tar.gz").failed(5, &["no coordinator is known"]);
    world.run("init --login-server https://mesh.example.org --auth-key-file {dir}/auth-key").succeeded();
    let dry = world.run("create-exit-node 101 --image {dir}/image.tar.gz --dry-run");
    assert!(dry.succeeded().out.contains("wait for exit-1 to join"), "{dry:?}");
    world.run("create-exit-node 101 --image {dir}/image.tar.gz").succeeded();
    assert!(world.standin.config(101).unwrap().get("description").unwrap().contains("https://mesh.example.org"));
}

#[test]
fn on_a_terminal_a_token_can_be_typed_too() {
    if !std::path::Path::new("/usr/bin/script").exists() {
        println!("skipped: /usr/bin/script is missing");
        return;
    }
    let world = World::new();
    let secret = "8f6e1d0c-5b7a-4c39-9e2d-1f0a3b5c7d9e";
    world.standin.access(|access| {
        access.add_token("root@pam!full", secret, false);
        access.grant("/", "root@pam!full", crate::standin::access::ALL);
    });
    let url = world.standin.url();
    let seen = crate::login::converse(
        &world,
        "init",
        &[
            ("address of a Proxmox host", &url),
            ("(yes/no)", "yes"),
            ("user (empty", "root@pam!full"),
            ("secret of root@pam!full:", secret),
            ("coordinator: a free number", ""),
        ],
    );
    assert!(!seen.contains(secret) && seen.contains("later: pvemesh create-coordinator"), "{seen}");
    assert_eq!(std::fs::read_to_string(world.path("config/token")).unwrap().trim(), format!("root@pam!full={secret}"));
    world.run("list").succeeded();
}
