//! Administration, locally and from elsewhere.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use pvemesh::ident::MachinePrivate;
use pvemesh::sys::admin::{AdminClient, AdminError, LocalAdmin};
use pvemesh::sys::coordinator::{Coordinator, StartError};

use crate::net::*;
use crate::world::{key_wanted, net};

#[tokio::test]
async fn a_trusted_machine_key_administers_from_elsewhere() {
    let server = Running::start().await;
    let pinned = server.coordinator.server_key();
    let admin = within("connecting", AdminClient::connect(&server.url(), Some(pinned), &admin_key())).await.unwrap();
    let info = admin.info().await.unwrap();
    assert_eq!((info.server_key, admin.server_key(), info.base_domain.as_str()), (pinned, pinned, "mesh.test"));
    let made = admin.create_key(&key_wanted()).await.unwrap();
    let node = Client::connect(&server.url(), 1).await;
    assert_eq!(node.register(Some(&made.key), "exit-1").await.error, "");
    let listed = admin.nodes().await.unwrap();
    let routes = [net("0.0.0.0/0"), net("::/0")];
    assert_eq!(admin.approve_routes(listed[0].id, &routes[..1]).await.unwrap().approved_routes, routes);
    admin.delete_node(listed[0].id).await.unwrap();
    assert!(admin.nodes().await.unwrap().is_empty());
    assert!(matches!(admin.delete_node(listed[0].id).await, Err(AdminError::Refused { status: 404, .. })));
    assert!(matches!(admin.create_user("alice").await, Err(AdminError::Refused { status: 409, .. })));
}

#[tokio::test]
async fn anyone_elses_key_is_told_that_it_is_not_trusted() {
    let server = Running::start().await;
    let member = server.joined(1, "alpha").await;
    drop(member);
    for n in [1, 2] {
        let admin = AdminClient::connect(&server.url(), None, &MachinePrivate::from_seed([n; 32])).await.unwrap();
        match admin.create_key(&key_wanted()).await {
            Err(AdminError::Refused { status: 403, text }) => assert!(text.contains("admin keys"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.admin().keys().await.unwrap().len(), 1);
}

#[tokio::test]
async fn another_server_key_than_the_pinned_one_is_noticed() {
    let server = Running::start().await;
    let wrong = MachinePrivate::from_seed([77; 32]).public();
    let failed = AdminClient::connect(&server.url(), Some(wrong), &admin_key()).await.unwrap_err();
    assert!(matches!(failed, AdminError::Unreachable { .. }), "{failed}");
}

#[tokio::test]
async fn state_and_socket_are_for_their_owner_only() {
    let server = Running::start().await;
    server.joined(1, "alpha").await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let state = server.dir.path().join("state");
    assert_eq!(mode(&state), 0o700);
    let mut files = 0;
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        files += 1;
    }
    assert!(files >= 2, "{files} files");
    assert_eq!(mode(&server.dir.path().join("run/coordinator.sock")), 0o600);
}

#[tokio::test]
async fn a_second_coordinator_on_the_same_state_is_refused() {
    let server = Running::start().await;
    let mut second = options(server.dir.path());
    second.socket = server.dir.path().join("run/second.sock");
    let error = Coordinator::start(second).await.unwrap_err();
    assert!(matches!(error, StartError::Store(_)) && error.to_string().contains("in use"), "{error}");
    server.admin().info().await.unwrap();
}

#[tokio::test]
async fn settings_that_would_lock_clients_out_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (url, base) in [
        ("http://coord.mesh.test", "mesh.test"),
        ("http://mesh.test:8080", "mesh.test"),
        ("ftp://x.example", "mesh.test"),
        ("http://x.example/path", "mesh.test"),
        ("http://x.example", ""),
        ("http://x.example", "a..b"),
        ("http://x.example", "-bad.test"),
    ] {
        let mut options = options(dir.path());
        (options.settings.url, options.settings.base_domain) = (url.to_owned(), base.to_owned());
        assert!(matches!(Coordinator::start(options).await, Err(StartError::Setting(_))), "{url} {base}");
    }
}

#[tokio::test]
async fn the_command_line_manages_users_keys_nodes_and_routes() {
    let server = Running::start().await;
    let socket = server.dir.path().join("run/coordinator.sock");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pvemesh"));
        command.arg("coordinator").args(arguments).arg("--socket").arg(&socket);
        async move { tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap() }
    };
    let text = |output: &std::process::Output| String::from_utf8(output.stdout.clone()).unwrap();
    let made = run(&["keys", "create", "--user", "carol", "--approve-exit-node", "--expires", "10m"]).await;
    assert!(made.status.success());
    let key = pvemesh::ident::Secret::new(text(&made).trim());
    assert_eq!(text(&made).lines().count(), 1, "the key alone, for scripts");
    let file = server.dir.path().join("key");
    let kept = run(&["keys", "create", "--output-file", file.to_str().unwrap(), "--json"]).await;
    assert!(!text(&kept).contains("pvmkey") && std::fs::read_to_string(&file).unwrap().starts_with("pvmkey-auth-"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let node = Client::connect(&server.url(), 1).await;
    assert_eq!(node.register(Some(&key), "exit-1").await.error, "");
    let listed = run(&["nodes", "list"]).await;
    assert!(
        text(&listed).contains("exit-1") && text(&listed).contains("100.64.0.1") && text(&listed).contains("carol"),
        "{}",
        text(&listed)
    );
    let json: serde_json::Value = serde_json::from_str(&text(&run(&["nodes", "list", "--json"]).await)).unwrap();
    assert_eq!(json["nodes"][0]["name"], "exit-1");
    let routes = run(&["routes", "approve", "exit-1", "192.168.1.0/24"]).await;
    assert!(text(&routes).contains("0.0.0.0/0,192.168.1.0/24,::/0"), "{}", text(&routes));
    assert!(text(&run(&["routes", "list"]).await).contains("192.168.1.0/24"));
    assert!(text(&run(&["nodes", "rename", "exit-1", "gate"]).await).contains("gate.mesh.test"));
    assert!(run(&["nodes", "expire", "gate"]).await.status.success());
    assert!(text(&run(&["nodes", "list"]).await).contains("expired"));
    assert_eq!(run(&["users", "delete", "carol"]).await.status.code(), Some(5), "it has a node");
    assert!(run(&["nodes", "delete", "1"]).await.status.success());
    assert!(run(&["users", "delete", "carol"]).await.status.success());
    assert!(run(&["keys", "revoke", "2"]).await.status.success());
    assert!(text(&run(&["keys", "list"]).await).contains("revoked"));
    let info: serde_json::Value = serde_json::from_str(&text(&run(&["info", "--json"]).await)).unwrap();
    assert_eq!(info["nodes"], 0);
    let missing = run(&["nodes", "delete", "nobody"]).await;
    assert_eq!(missing.status.code(), Some(5));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("next: see `pvemesh coordinator nodes list`"));
}

#[tokio::test]
async fn the_command_line_addresses_tags_moves_and_expires_nodes_and_renames_users() {
    let server = Running::start().await;
    let socket = server.dir.path().join("run/coordinator.sock");
    let run = |arguments: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pvemesh"));
        command.arg("coordinator").args(arguments.split(' ')).arg("--json").arg("--socket").arg(&socket);
        async move {
            let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
            let text = if output.status.success() { output.stdout } else { output.stderr };
            (output.status.code(), serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_default())
        }
    };
    server.joined(1, "alpha").await;
    let addressed = run("nodes set-address alpha 100.64.0.50").await.1;
    assert_eq!(addressed["addresses"], serde_json::json!(["100.64.0.50", "fd7a:115c:a1e0::32"]));
    let (code, refused) = run("nodes set-address alpha 10.0.0.1").await;
    assert!(code == Some(2) && refused["error"]["happened"].as_str().unwrap().contains("100.64.0.0/10"), "{refused}");
    assert_eq!(run("nodes tag alpha tag:web tag:db").await.1["tags"], serde_json::json!(["tag:db", "tag:web"]));
    assert_eq!(run("nodes untag alpha tag:db").await.1["tags"], serde_json::json!(["tag:web"]));
    assert_eq!(run("nodes untag alpha").await.1["tags"], serde_json::json!([]));
    assert_eq!(run("nodes move alpha bob").await.0, Some(1), "bob does not exist");
    run("users create bob").await;
    assert_eq!(run("users rename bob robert").await.1["name"], "robert");
    assert_eq!(run("nodes move alpha robert").await.1["user"], "robert");
    assert_eq!(run("nodes expire alpha --expiry never").await.1.get("key_expiry"), None);
    let shown = run("nodes show 1").await.1;
    assert_eq!((shown["user"].as_str(), shown["ephemeral"].as_bool()), (Some("robert"), Some(false)));
    let day = run("nodes expire alpha --expiry 1d").await.1;
    assert!(day["key_expiry"].as_str().unwrap() > shown["created"].as_str().unwrap());
    assert!(run("nodes expire alpha --expiry soon").await.0 == Some(2));
    assert!(run("nodes expire alpha").await.1["key_expiry"].as_str().unwrap() < day["key_expiry"].as_str().unwrap());
    let key = run("keys create --address 100.64.0.60").await.1;
    assert!(key["key"].as_str().unwrap().starts_with("pvmkey-auth-"));
    assert_eq!(run("keys list").await.1[1]["address"], "100.64.0.60");
}

#[tokio::test]
async fn the_command_line_edits_dns_entry_by_entry() {
    let server = Running::start().await;
    let socket = server.dir.path().join("run/coordinator.sock");
    let run = |arguments: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pvemesh"));
        command.args(["coordinator", "dns"]).args(arguments.split(' ')).arg("--socket").arg(&socket);
        async move {
            let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
            (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
        }
    };
    let node = server.joined(1, "alpha").await;
    let mut stream = node.stream("").await;
    stream.next().await.unwrap();
    assert_eq!(run("set --override on").await.0, Some(2), "there is nothing to override with");
    assert!(run("nameservers add 192.168.1.1 9.9.9.9").await.1.contains("nameservers  192.168.1.1,9.9.9.9"));
    assert!(run("set --override on").await.1.contains("override     on"));
    assert!(run("split add home.lan 192.168.1.1 --with-exit-node").await.1.contains("home.lan: 192.168.1.1 (with exit node)"));
    assert!(run("search add home.lan").await.1.contains("search       home.lan"));
    let shown = run("records add nas.home.lan 192.168.1.9 fd00::9").await.1;
    assert!(shown.contains("record       nas.home.lan: 192.168.1.9,fd00::9"), "{shown}");
    let told = stream.until("all of it", |map| map.dns_config.as_ref().is_some_and(|dns| dns.extra_records.len() == 2)).await;
    let dns = told.dns_config.unwrap();
    assert_eq!((dns.resolvers.len(), dns.domains.len(), dns.routes["home.lan"][0].use_with_exit_node), (2, 2, true));
    assert_eq!(run("records remove nas.home.lan fd00::9").await.0, Some(0));
    assert!(run("records remove nas.home.lan").await.1.lines().all(|line| !line.starts_with("record")));
    let (code, text) = run("records remove nas.home.lan").await;
    assert!(code == Some(5) && text.contains("nas.home.lan is not among them") && text.contains("dns show"), "{text}");
    // A guest without a client, by its short name.
    assert!(run("hosts add printer 192.168.1.8").await.1.contains("record       printer.mesh.test: 192.168.1.8"));
    assert!(run("hosts list").await.1.contains("printer.mesh.test  192.168.1.8"));
    assert_eq!(run("aliases add paper printer").await.0, Some(0));
    assert!(run("aliases add paper alpha").await.1.contains("alias        paper.mesh.test: alpha"));
    assert_eq!(run("aliases remove paper").await.0, Some(0));
    assert_eq!(run("hosts remove printer").await.0, Some(0));
    let (code, text) = run("hosts add alpha 192.168.1.8").await;
    assert!(code == Some(5) && text.contains("is the name of the node alpha"), "{text}");
    assert_eq!(run("split remove home.lan").await.0, Some(0));
    assert_eq!(run("nameservers remove 192.168.1.1 9.9.9.9").await.0, Some(0));
    assert!(run("show").await.1.contains("override     off"), "without name servers nothing is overridden");
    assert!(run("set --magic off").await.1.contains("magic        off"));
    assert_eq!(run("set").await.0, Some(2));
}

#[tokio::test]
async fn a_coordinator_that_does_not_run_is_named_as_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let error = LocalAdmin::connect(&socket).info().await.unwrap_err();
    assert!(error.to_string().contains("it is not running"), "{error}");
    let output = Command::new(env!("CARGO_BIN_EXE_pvemesh")).args(["coordinator", "info", "--socket"]).arg(&socket).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("it is not running") && text.contains("next: run this as root"), "{text}");
}
