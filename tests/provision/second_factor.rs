//! Logins that ask for a second factor.

use std::sync::Mutex;
use std::time::Duration;

use pvemesh::ident::Secret;
use pvemesh::pve::call;
use pvemesh::sys::pve::{Challenge, Credentials, Executor as _, Https, HttpsOptions, SecondFactor, Trust};

use crate::login::converse;
use crate::standin::Version;
use crate::standin::access::Access;
use crate::standin::factor::Factors;
use crate::world::{PASSWORD, World};

const RECOVERY: &str = "0a1b-2c3d-4e5f-6071";
const INIT: &str = "init --url {url} --user root@pam --password-file {dir}/password --fingerprint {fingerprint}";

fn guarded(version: Version) -> World {
    let world = World::with(|options| options.version = version);
    world.standin.access(|access| access.ask_for("root@pam", Factors::new(&["123456", "234567", "345678"], &[RECOVERY])));
    world
}

fn wrong_codes(world: &World) -> u32 {
    world.standin.access(|access| access.factors("root@pam").unwrap().wrong())
}

#[test]
fn a_login_takes_the_code_it_asks_for_on_every_release() {
    for version in [Version(7, 4), Version(8, 0), Version::V9_1] {
        let world = guarded(version);
        world.run(&format!("{INIT} --otp 123456")).succeeded();
        world.secret("code", RECOVERY);
        world.run("list --otp-file {dir}/code").succeeded();
        assert_eq!(wrong_codes(&world), 0, "{version:?}");
    }
}

#[test]
fn without_a_code_the_factors_are_named_and_none_is_guessed() {
    let world = guarded(Version::V9_1);
    let ran = world.run(INIT);
    ran.failed(3, &["root@pam logs in with a second factor (totp, recovery)", "--otp", "--otp-file"]);
    assert!(!world.path("config/config.toml").exists(), "a half ticket was taken for a login");
    assert_eq!(wrong_codes(&world), 0);
}

#[test]
fn a_wrong_code_is_sent_once() {
    let world = guarded(Version::V9_1);
    world.run(&format!("{INIT} --otp 999999")).failed(3, &["code was not accepted", "not sent again", "pveum user tfa unlock root@pam"]);
    assert_eq!(wrong_codes(&world), 1);
    // A code that was used is a wrong one.
    world.run(&format!("{INIT} --otp 123456")).succeeded();
    world.run("list --otp 123456").failed(3, &["code was not accepted"]);
    assert_eq!(wrong_codes(&world), 1);
}

#[test]
fn a_locked_factor_still_opens_with_a_recovery_key() {
    let world = guarded(Version::V9_1);
    for _ in 0..8 {
        world.run(&format!("{INIT} --otp 999999")).failed(3, &["code was not accepted"]);
    }
    let ran = world.run(INIT);
    ran.failed(3, &["second factor (recovery)"]);
    world.run(&format!("{INIT} --otp {RECOVERY}")).succeeded();
}

#[test]
fn on_a_terminal_the_code_is_asked_for_and_not_shown() {
    if !std::path::Path::new("/usr/bin/script").exists() {
        println!("skipped: /usr/bin/script is missing");
        return;
    }
    let world = guarded(Version::V9_1);
    let seen = converse(&world, INIT, &[("code of root@pam's second factor (totp, recovery)", "123456")]);
    assert!(!seen.contains("123456"), "{seen}");
    let seen = converse(&world, "list", &[("code of root@pam's second factor", "234567")]);
    assert!(!seen.contains("234567"), "{seen}");
}

#[test]
fn a_code_is_not_sent_again_when_a_ticket_ends_early() {
    let world = guarded(Version::V9_1);
    world.run(&format!("{INIT} --otp 123456")).succeeded();
    let child = world.start(&format!("{} --otp 234567", crate::world::CREATE));
    world.wait("the container is there", || !world.standin.guests().is_empty());
    world.standin.access(Access::expire_tickets);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // It may have come to its end before; if not, it says that a new code is needed rather than send the old one.
    assert!(output.status.success() || said.contains("second factor"), "{said}");
    assert_eq!(wrong_codes(&world), 0, "{said}");
}

#[derive(Debug)]
struct OneCode(Mutex<Option<&'static str>>);

impl SecondFactor for OneCode {
    fn code(&self, _: &str, _: &Challenge) -> Option<Secret> {
        self.0.lock().unwrap().take().map(Secret::new)
    }
}

#[test]
fn a_ticket_is_renewed_by_itself_in_a_long_run_and_asks_for_no_second_code() {
    let world = guarded(Version::V9_1);
    let credentials = Credentials::Password {
        user: "root@pam".to_owned(),
        password: Secret::new(PASSWORD),
        second: Some(std::sync::Arc::new(OneCode(Mutex::new(Some("123456"))))),
    };
    let options = HttpsOptions {
        url: Https::parse_url(&world.standin.url()).unwrap(),
        trust: Trust::Fingerprint(world.standin.fingerprint().parse().unwrap()),
        credentials,
    };
    // Every call finds its ticket too old.
    let https = Https::new(options).unwrap().renewing_after(Duration::ZERO);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        https.log_in().await.unwrap();
        // Only the ticket is good now.
        world.standin.access(|access| access.set_password("root@pam", "another one"));
        for _ in 0..3 {
            https.call(&call::hosts().unwrap()).await.unwrap();
        }
    });
    assert_eq!(world.standin.access(|access| access.tickets()), 4);
    assert_eq!(wrong_codes(&world), 0);
}
