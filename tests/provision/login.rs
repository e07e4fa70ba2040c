//! Credentials and certificates.

use crate::standin::faults::Fault;
use crate::world::World;

/// A call with the stand-in's own tools: what somebody else does in Proxmox's panel.
pub fn raw(world: &World, method: &str, path: &str, _password: &str) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(world.standin.socket()).unwrap();
    stream.write_all(format!("{method} /api2/json{path} HTTP/1.1\r\nContent-Length: 0\r\n\r\n").as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start[9..], b"200", "{method} {path}");
}

#[test]
fn a_wrong_password_is_told_and_nothing_is_saved() {
    let world = World::new();
    world.secret("password", "wrong");
    let ran = world.run("init --url {url} --user root@pam --password-file {dir}/password --fingerprint {fingerprint}");
    ran.failed(3, &["authentication failure", "check user and password"]);
    assert!(!world.path("config/config.toml").exists());
    assert!(!ran.err.contains("wrong\n"), "the password is shown: {ran:?}");
}

#[test]
fn a_password_changed_later_is_told_when_it_is_used() {
    let world = World::new();
    world.init();
    world.secret("password", "old");
    world.create("").failed(3, &["authentication failure"]);
    assert!(world.is_untouched());
}

#[test]
fn an_unknown_certificate_is_refused_with_its_fingerprint_and_the_way_to_accept_it() {
    let world = World::new();
    let ran = world.run("init --url {url} --user root@pam --password-file {dir}/password");
    let accept = format!("pvemesh init --fingerprint {}", world.standin.fingerprint());
    ran.failed(3, &["is not trusted", world.standin.fingerprint(), &accept]);
    assert!(!world.path("config/config.toml").exists());
}

#[test]
fn a_changed_certificate_is_refused_with_both_fingerprints() {
    let world = World::new();
    let expected = "AB:".repeat(31) + "AB";
    let ran = world.run(&format!("init --url {{url}} --user root@pam --password-file {{dir}}/password --fingerprint {expected}"));
    ran.failed(3, &[&expected, world.standin.fingerprint(), "pvemesh init --fingerprint"]);
}

#[test]
fn a_certificate_is_believed_on_first_use_and_only_it_from_then_on() {
    let world = World::new();
    let first = world.run("init --url {url} --user root@pam --password-file {dir}/password --trust-on-first-use");
    assert!(first.succeeded().err.contains(world.standin.fingerprint()), "{first:?}");
    let saved = std::fs::read_to_string(world.path("config/config.toml")).unwrap();
    assert!(saved.contains(world.standin.fingerprint()) && !saved.contains(crate::world::PASSWORD), "{saved}");
    world.run("list").succeeded();
    let other = World::new();
    let moved = std::fs::read_to_string(world.path("config/config.toml")).unwrap().replace(&world.standin.url(), &other.standin.url());
    std::fs::write(world.path("config/config.toml"), moved).unwrap();
    world.run("list").failed(3, &["was expected", other.standin.fingerprint(), world.standin.fingerprint()]);
}

#[test]
fn a_certificate_is_believed_by_its_authority() {
    let world = World::new();
    std::fs::write(world.path("ca.pem"), world.standin.certificate()).unwrap();
    world.run("init --url {url} --user root@pam --password-file {dir}/password --ca-file {dir}/ca.pem").succeeded();
    world.run("list").succeeded();
    std::fs::write(world.path("ca.pem"), World::new().standin.certificate()).unwrap();
    world.run("list").failed(3, &["is not trusted"]);
}

#[test]
fn a_ticket_that_expired_is_replaced_by_one_new_login() {
    let world = World::with(|options| options.task_delay = std::time::Duration::from_millis(400));
    world.init();
    let child = world.start(crate::world::CREATE);
    world.wait("the container is there", || !world.standin.guests().is_empty());
    world.standin.access(crate::standin::access::Access::expire_tickets);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(world.standin.is_running(101));
}

#[test]
fn a_secret_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    std::fs::set_permissions(world.path("password"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let ran = world.run("init --url {url} --user root@pam --password-file {dir}/password --fingerprint {fingerprint}");
    ran.failed(3, &["mode 644", "chmod 600"]);
}

#[test]
fn a_refused_ticket_is_renewed_once_and_the_work_goes_on() {
    let world = World::new();
    world.init();
    world.standin.faults().on("POST", "/nodes/pve/lxc", 1, Fault::Answer(401, "Authentication failed!".to_owned()));
    world.create("").succeeded();
    assert!(world.standin.faults().is_empty());
    assert_eq!(world.standin.guests(), [101]);
}

/// Types each answer when its question is on the screen.
pub fn converse(world: &World, words: &str, answers: &[(&str, &str)]) -> String {
    use std::io::{Read as _, Write as _};
    let mut child = world.on_a_terminal(words).expect("`script` is there");
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut seen, mut answers) = (String::new(), answers.iter());
    let mut next = answers.next();
    let mut chunk = [0; 1024];
    let mut at = 0;
    while let Ok(length @ 1..) = screen.read(&mut chunk) {
        seen.push_str(&String::from_utf8_lossy(&chunk[..length]));
        while let Some((question, answer)) = next {
            let Some(place) = seen[at..].find(question) else { break };
            at += place + question.len();
            keyboard.write_all(format!("{answer}\n").as_bytes()).unwrap();
            next = answers.next();
        }
    }
    assert!(child.wait().unwrap().success(), "{seen}");
    assert!(next.is_none(), "never asked {next:?}: {seen}");
    seen
}

#[test]
fn on_a_terminal_init_asks_for_what_it_needs_and_shows_no_password() {
    if !std::path::Path::new("/usr/bin/script").exists() {
        println!("skipped: /usr/bin/script is missing");
        return;
    }
    let world = World::new();
    let url = world.standin.url();
    let seen = converse(
        &world,
        "init",
        &[
            ("address of a Proxmox host", &url),
            ("(yes/no)", "yes"),
            ("user (empty", ""),
            ("password of root@pam:", crate::world::PASSWORD),
            ("coordinator: a free number", ""),
        ],
    );
    assert!(seen.contains(world.standin.fingerprint()) && !seen.contains(crate::world::PASSWORD), "{seen}");
    assert!(std::fs::read_to_string(world.path("config/password")).unwrap().trim() == crate::world::PASSWORD);
    world.create("").succeeded();
    // On a terminal, removing asks for the number.
    let seen = converse(&world, "destroy 101", &[("type 101 to remove it", "101")]);
    assert!(seen.contains("is gone"), "{seen}");
    assert!(world.is_untouched());
}

#[test]
fn nobody_home_is_told() {
    let world = World::new();
    let ran = world.run("init --url https://127.0.0.1:1 --user root@pam --password-file {dir}/password --fingerprint {fingerprint}");
    ran.failed(4, &["https://127.0.0.1:1 cannot be reached", "is the host up"]);
}

#[test]
fn no_host_at_all_is_told() {
    let world = World::new();
    world.create("").failed(2, &["pvemesh init --url"]);
}
