//! The binary by itself: help, usage errors and exit codes, without any host.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::disallowed_methods, clippy::panic, reason = "test code")]

use std::process::{Command, Output, Stdio};

fn pvemesh(words: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_pvemesh"))
        .args(words)
        .env_clear()
        .env("PATH", "/nowhere")
        .env("PVEMESH_CONFIG_DIR", dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn every_command_of_the_provisioner_has_help() {
    for command in [
        "init",
        "create-coordinator",
        "create-exit-node",
        "create-node",
        "create-relay",
        "create-subnet-router",
        "destroy",
        "list",
        "status",
        "keys",
    ] {
        let output = pvemesh(&[command, "--help"]);
        assert!(output.status.success(), "{command}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("--json"), "{command}");
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    for words in [
        &["create-exit-node"][..],
        &["create-exit-node", "12"],
        &["create-exit-node", "101", "--login-server", "http://x"],
        &["create-subnet-router", "101"],
        &["create-relay", "101", "--address", "a b"],
        &["relay", "serve"],
        &["relay", "serve", "--hostname", "192.0.2.1"],
        &["relay", "serve", "--hostname", "192.0.2.1", "--open", "--allow-list", "x"],
        &["create-subnet-router", "101", "--route", "0.0.0.0/0"],
        &["destroy", "a;b"],
        &["status", "10\n1"],
        &["nosuch"],
    ] {
        let output = pvemesh(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn a_failure_in_json_has_what_was_tried_what_happened_and_what_is_next() {
    let output = pvemesh(&["list", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    for field in ["tried", "happened", "next"] {
        assert!(error["error"][field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {error}");
    }
    assert_eq!(error["error"]["exit"], 2);
}
