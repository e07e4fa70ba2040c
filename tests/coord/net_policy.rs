//! The policy commands, over the admin socket.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::net::*;

const APART: &str = r#"{
    // Comments and commas at the end are allowed.
    "acls": [{"action": "accept", "src": ["alice@"], "dst": ["alice@:*"]}],
}"#;
const NOTHING: &str = r#"{"acls": []}"#;

/// `pvemesh coordinator policy` with these arguments; a last one of `-` gets `input`. Gives the exit code, and what was said where.
async fn policy(socket: &Path, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pvemesh"));
    command.args(["coordinator", "policy"]).args(arguments).arg("--socket").arg(socket);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let run = move || {
        let mut child = command.spawn().unwrap();
        // A command that reads no input has closed it perhaps.
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
        child.wait_with_output().unwrap()
    };
    let output = within("the command", tokio::task::spawn_blocking(run)).await.unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn a_policy_is_checked_put_in_force_shown_and_taken_away() {
    let server = Running::start().await;
    let socket = server.dir.path().join("run/coordinator.sock");
    let own = |n: u8, user: &'static str| {
        let server = &server;
        async move {
            let client = Client::connect(&server.url(), n).await;
            assert_eq!(client.register(Some(&server.key(|key| key.user = user.to_owned()).await), &format!("n{n}")).await.error, "");
            client
        }
    };
    let nodes = [own(1, "alice").await, own(2, "alice").await, own(3, "bob").await];
    let mut stream = nodes[2].stream("").await;
    assert_eq!(stream.next().await.unwrap().peers.len(), 2, "without a policy everything is allowed");

    let (code, said, notes) = policy(&socket, &["get"], "").await;
    assert_eq!((code, said.as_str()), (Some(0), ""), "so that a redirection gets no file that is none");
    assert!(notes.contains("every node may reach every other"), "{notes}");
    assert_eq!(json_of(&policy(&socket, &["get", "--json"], "").await.1).get("text").unwrap_or(&Value::Null), &Value::Null);

    let (code, said, notes) = policy(&socket, &["check", "-"], APART).await;
    assert_eq!(code, Some(0), "{notes}");
    assert!(said.contains("not in force") && notes.contains("n3"), "{said}{notes}");
    assert_eq!(policy(&socket, &["get"], "").await.1, "", "checking changes nothing");

    let (_, said, _) = policy(&socket, &["set", "-", "--json"], APART).await;
    let report = json_of(&said);
    assert_eq!((&report["in_force"], &report["nodes"], &report["isolated"]), (&json!(true), &json!(3), &json!(["n3"])));
    let told = stream.until("bob's node losing sight of the others", |map| !map.peers_removed.is_empty()).await;
    assert_eq!(told.peers_removed.len(), 2);

    let (_, said, _) = policy(&socket, &["get"], "").await;
    assert_eq!(said.trim_end(), APART, "as it was written, comments included");
    let file = server.dir.path().join("policy.hujson");
    let written = policy(&socket, &["get", "--output-file", file.to_str().unwrap()], "").await;
    assert!(written.1.contains("policy.hujson"), "{}", written.1);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), APART);

    assert_eq!(json_of(&policy(&socket, &["remove", "--json"], "").await.1), json!({ "in_force": false }));
    stream.until("bob's node seeing the others again", |map| map.peers_changed.len() == 2).await;
}

#[tokio::test]
async fn a_policy_that_does_not_read_fails_its_tests_or_locks_everybody_out_is_refused_with_the_place_or_the_reason() {
    let server = Running::start().await;
    let socket = server.dir.path().join("run/coordinator.sock");
    let _nodes = (server.joined(1, "n1").await, server.joined(2, "n2").await);
    assert_eq!(policy(&socket, &["set", "-"], APART).await.0, Some(0));

    let untrue = r#"{"acls": [{"action": "accept", "src": ["alice@"], "dst": ["alice@:22"]}],
        "tests": [{"src": "alice@", "accept": ["100.64.0.1:80"]}]}"#;
    let cases = [
        ("{\n  \"acls\": [},\n}", 2, "line 2"),
        (r#"{"aclz": []}"#, 2, "aclz"),
        (r#"{"acls": [{"action": "accept", "src": ["group:none"], "dst": ["*:*"]}]}"#, 2, "group:none"),
        (untrue, 5, "100.64.0.1:80"),
        (NOTHING, 5, "--force"),
    ];
    for (text, code, named) in cases {
        let (exit, said, error) = policy(&socket, &["set", "-"], text).await;
        assert_eq!((exit, said.as_str()), (Some(code), ""), "{text}: {error}");
        assert!(error.contains(named), "{text}: {error}");
        let (_, in_force, _) = policy(&socket, &["get"], "").await;
        assert_eq!(in_force.trim_end(), APART, "what was in force stays after {text}");
    }
    let (exit, _, error) = policy(&socket, &["set", "/nonexistent/policy"], "").await;
    assert!(exit == Some(2) && error.contains("/nonexistent/policy"), "{error}");
    let endless = " ".repeat(pvemesh::coord::policy::MAX_BYTES + 2);
    assert_eq!(policy(&socket, &["set", "-"], &endless).await.0, Some(2), "longer than any policy may be");

    let (exit, said, _) = policy(&socket, &["set", "-", "--force", "--json"], NOTHING).await;
    assert_eq!((exit, &json_of(&said)["isolated"]), (Some(0), &json!(["n1", "n2"])));
}

#[tokio::test]
async fn a_policy_stays_in_force_through_a_restart() {
    let server = Running::start().await;
    let file = server.dir.path().join("run/coordinator.sock");
    let (exit, _, error) = policy(&file, &["set", "-"], APART).await;
    assert_eq!(exit, Some(0), "{error}");
    assert!(error.contains("alice"), "a user who does not exist yet is named: {error}");
    let server = server.restart().await;
    let socket = server.dir.path().join("run/coordinator.sock");
    assert_eq!(policy(&socket, &["get"], "").await.1.trim_end(), APART);
}
