//! The stand-in's logins, roles and templates, against what a real host does.

use serde_json::json;

use crate::client::{Answer, log_in};
use crate::standin::access::Login;
use crate::standin::factor::Factors;
use crate::standin::guest_config::Config;
use crate::standin::{Options, Standin, Version};

fn standin(version: Version) -> (tempfile::TempDir, Standin) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { version, ..Options::new(dir.path()) };
    let standin = Standin::start(options).unwrap();
    (dir, standin)
}

fn ask(standin: &Standin, headers: &str, method: &str, path: &str, form: &str) -> Answer {
    let params: Vec<(String, String)> = form_urlencoded::parse(form.as_bytes()).into_owned().collect();
    crate::client::call(standin, headers, method, path, &params)
}

#[test]
fn a_half_ticket_opens_nothing_and_a_challenge_is_answered_once() {
    let (_dir, standin) = standin(Version::V9_1);
    standin.access(|access| access.ask_for("root@pam", Factors::new(&["123456"], &[])));
    let half = standin.access(|access| {
        let login = Login { user: "root@pam", password: "secret", otp: "", challenge: "" };
        access.log_in(&login, true).json.unwrap()["data"].clone()
    });
    assert_eq!(half["NeedTFA"], 1);
    assert!(half["cap"].is_null(), "{half}");
    let ticket = half["ticket"].as_str().unwrap();
    assert!(ticket.starts_with("PVE:!tfa!%7B%22"), "{ticket}");
    let refused = ask(&standin, &format!("Cookie: PVEAuthCookie={}\r\n", ticket.replace('%', "%25")), "GET", "/nodes", "");
    assert_eq!((refused.status, refused.reason.as_str()), (401, "No ticket"));
    let answer = |code: &str| {
        let login = Login { user: "root@pam", password: code, otp: "", challenge: ticket };
        standin.access(|access| access.log_in(&login, true).status)
    };
    assert_eq!((answer("totp:123456"), answer("totp:123456")), (200, 401));
}

#[test]
fn releases_before_8_ask_in_the_old_form_unless_told_otherwise() {
    let (_dir, standin) = standin(Version(7, 4));
    standin.access(|access| access.ask_for("root@pam", Factors::new(&["123456"], &[])));
    let ticket = |new_format: bool| {
        let login = Login { user: "root@pam", password: "secret", otp: "", challenge: "" };
        standin.access(|access| access.log_in(&login, new_format).json.unwrap()["data"]["ticket"].as_str().unwrap().to_owned())
    };
    assert!(ticket(false).starts_with("PVE:tfa!") && ticket(true).starts_with("PVE:!tfa!"));
}

#[test]
fn a_clone_takes_over_every_key_but_notes_name_and_hardware_address() {
    let (_dir, standin) = standin(Version::V9_1);
    let mut original = Config::default();
    for (key, value) in [
        ("dev0", "/dev/net/tun"),
        ("rootfs", "local-lvm:vm-9000-disk-0,size=256M"),
        ("tags", "golden;pvemesh"),
        ("description", "of the original"),
        ("net0", "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01"),
    ] {
        original.set(key, value);
    }
    standin.add_guest(9000, original);
    let root = log_in(&standin, "secret");
    assert_eq!(ask(&standin, &root, "POST", "/nodes/pve/lxc/9000/template", "").status, 200);
    assert!(standin.settle(std::time::Duration::from_secs(5)));
    assert_eq!(standin.config(9000).unwrap().get("rootfs"), Some("local-lvm:base-9000-disk-0,size=256M"));
    let again = ask(&standin, &root, "POST", "/nodes/pve/lxc/9000/template", "");
    assert_eq!((again.status, again.reason.as_str()), (500, "you can't convert a template to a template"));
    let body = "newid=101&full=1&storage=local&hostname=x&description=of%20the%20clone";
    assert_eq!(ask(&standin, &root, "POST", "/nodes/pve/lxc/9000/clone", body).status, 200);
    assert!(standin.settle(std::time::Duration::from_secs(5)));
    let clone = standin.config(101).unwrap();
    for (key, value) in [
        ("dev0", Some("/dev/net/tun")),
        ("rootfs", Some("local:vm-101-disk-0,size=256M")),
        ("tags", Some("golden;pvemesh")),
        ("description", Some("of the clone")),
        ("hostname", Some("x")),
        ("template", None),
    ] {
        // Proxmox ends notes with a line break.
        assert_eq!(clone.get(key).map(str::trim_end), value, "{key}");
    }
    assert!(!clone.get("net0").unwrap().contains("00:00:01"));
}

#[test]
fn a_role_has_the_privileges_of_its_release_only_and_passes_them_to_its_users() {
    let (_dir, standin) = standin(Version(8, 4));
    let root = log_in(&standin, "secret");
    let unknown = ask(&standin, &root, "POST", "/access/roles", "roleid=Mesh&privs=VM.GuestAgent.Audit");
    assert_eq!((unknown.status, unknown.reason.as_str()), (500, "invalid privilege 'VM.GuestAgent.Audit'"));
    for (method, path, body) in [
        ("POST", "/access/roles", "roleid=Mesh&privs=VM.Audit%20VM.Monitor"),
        ("POST", "/access/users", "userid=mesh@pve"),
        ("PUT", "/access/acl", "path=%2Fvms&users=mesh@pve&roles=Mesh&propagate=1"),
    ] {
        assert_eq!(ask(&standin, &root, method, path, body).status, 200, "{path}");
    }
    let made = ask(&standin, &root, "POST", "/access/users/mesh@pve/token/t1", "privsep=0").data();
    let token = format!("Authorization: PVEAPIToken=mesh@pve!t1={}\r\n", made["value"].as_str().unwrap());
    let held = ask(&standin, &token, "GET", "/access/permissions?path=/vms/101", "").data();
    assert_eq!(held, json!({"/vms/101": {"VM.Audit": 1, "VM.Monitor": 1}}));
    let refused = ask(&standin, &token, "POST", "/access/roles", "roleid=More&privs=VM.Audit");
    assert_eq!((refused.status, refused.reason.as_str()), (403, "Permission check failed (/access, Sys.Modify)"));
}
