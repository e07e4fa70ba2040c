//! What a policy file must not hold, and how the refusal says it.

use pvemesh::coord::policy::{MAX_BYTES, Policy, PolicyError};

fn refused(text: &str) -> PolicyError {
    match Policy::parse(text) {
        Ok(_) => panic!("taken: {text}"),
        Err(error) => error,
    }
}

/// A policy around one rule of `acls`.
fn acl(rule: &str) -> String {
    format!(
        r#"{{"groups": {{"group:ops": ["ann@"]}}, "hosts": {{"nas": "10.0.0.5"}}, "tagOwners": {{"tag:web": []}},
"acls": [{rule}]}}"#
    )
}

#[test]
fn faults_of_rules_are_named_with_what_is_allowed() {
    for (rule, path, what) in [
        (r#"{"action": "deny", "src": ["*"], "dst": ["*:*"]}"#, "acls[0].action", "rules only allow: `accept`"),
        (r#"{"src": ["*"], "dst": ["*:*"]}"#, "acls[0]", "`action` is missing"),
        (r#"{"action": "accept", "dst": ["*:*"]}"#, "acls[0]", "`src` is missing"),
        (r#"{"action": "accept", "src": "*", "dst": ["*:*"]}"#, "acls[0].src", "a list in [ ] is wanted here, not the text `*`"),
        (r#"{"action": "accept", "src": [1], "dst": ["*:*"]}"#, "acls[0].src[0]", "not the number `1`"),
        (
            r#"{"action": "accept", "src": ["tag:nope"], "dst": ["*:*"]}"#,
            "acls[0].src[0]",
            "tag `tag:nope` is not in `tagOwners` (defined: `tag:web`)",
        ),
        (r#"{"action": "accept", "src": ["group:nope"], "dst": ["*:*"]}"#, "acls[0].src[0]", "(defined: `group:ops`)"),
        (
            r#"{"action": "accept", "src": ["nope"], "dst": ["*:*"]}"#,
            "acls[0].src[0]",
            "`nope` is neither a name in `hosts` (defined: `nas`) nor an address",
        ),
        (r#"{"action": "accept", "src": ["@"], "dst": ["*:*"]}"#, "acls[0].src[0]", "`@` is not a user"),
        (
            r#"{"action": "accept", "src": ["autogroup:self"], "dst": ["*:*"]}"#,
            "acls[0].src[0]",
            "cannot stand here (allowed: `autogroup:member`",
        ),
        (r#"{"action": "accept", "src": ["autogroup:admin"], "dst": ["*:*"]}"#, "acls[0].src[0]", "has no roles"),
        (r#"{"action": "accept", "src": ["autogroup:nope"], "dst": ["*:*"]}"#, "acls[0].src[0]", "there is no `autogroup:nope`"),
        (r#"{"action": "accept", "src": ["tag:web"], "dst": ["autogroup:self:*"]}"#, "acls[0].dst[0]", "needs sources that have owners"),
        (r#"{"action": "accept", "src": ["svc:x"], "dst": ["*:*"]}"#, "acls[0].src[0]", "does not offer"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas"]}"#, "acls[0].dst[0]", "`nas` has no ports"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:0"]}"#, "acls[0].dst[0]", "`0` are not ports"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:65536"]}"#, "acls[0].dst[0]", "from 1 to 65535"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:90-80"]}"#, "acls[0].dst[0]", "are not ports"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:ssh"]}"#, "acls[0].dst[0]", "are not ports"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["0.0.0.0/0:*"]}"#, "acls[0].dst[0]", "autogroup:internet"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["10.0.0.1/8:*"]}"#, "acls[0].dst[0]", "write 10.0.0.0/8"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:22"], "proto": "icmp"}"#, "acls[0].dst[0]", "protocol 1 has no ports"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:22"], "proto": "tpc"}"#, "acls[0].proto", "`tpc` is not a protocol"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:22"], "proto": "06"}"#, "acls[0].proto", "is not a protocol"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:22"], "proto": "256"}"#, "acls[0].proto", "is not a protocol"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:22"], "ports": []}"#, "acls[0].ports", "is the old form"),
        (r#"{"action": "accept", "src": ["*"], "dst": ["nas:22"], "srcPosture": []}"#, "acls[0].srcPosture", "device postures"),
        (
            r#"{"action": "accept", "src": ["*"], "dst": ["nas:22"], "Dst": []}"#,
            "acls[0].Dst",
            "there is no key `Dst` here (allowed: `action`",
        ),
    ] {
        let error = refused(&acl(rule));
        assert_eq!(error.path, path, "{rule}: {error}");
        assert!(error.what.contains(what), "{rule}: {error}");
        assert_eq!(error.line, 2, "{rule}: {error}");
    }
}

#[test]
fn faults_of_other_sections_are_named_too() {
    for (text, path, what) in [
        (r#"{"acl": []}"#, "acl", "there is no key `acl` here (allowed: `groups`"),
        (r#"{"ACLs": []}"#, "ACLs", "write `ACLs` as `acls`"),
        (r#"{"ssh": []}"#, "ssh", "SSH rules are a feature of the hosted service that pvemesh does not offer"),
        (r#"{"derpMap": {}}"#, "derpMap", "does not offer"),
        (r#"{"ipsets": {}}"#, "ipsets", "does not offer"),
        (r#"{"postures": {}}"#, "postures", "does not offer"),
        (r#"{"sshTests": []}"#, "sshTests", "does not offer"),
        (r#"{"acls": [], "acls": []}"#, "acls", "the key stands twice"),
        (r#"[]"#, "", "an object in { } is wanted here, not a list"),
        (r#"{"groups": {"ops": []}}"#, "groups.ops", "write `group:name`"),
        (r#"{"groups": {"group:a": ["group:b"]}}"#, "groups[`group:a`][0]", "members are users only"),
        (r#"{"hosts": {"10.0.0.1": "10.0.0.1"}}"#, "hosts[`10.0.0.1`]", "must not look like one"),
        (r#"{"hosts": {"a": "b"}}"#, "hosts.a", "`b` is not an address or network"),
        (r#"{"tagOwners": {"tag:1": []}}"#, "tagOwners[`tag:1`]", "the first a letter"),
        (r#"{"tagOwners": {"tag:a": ["tag:b"]}}"#, "tagOwners[`tag:a`][0]", "`tag:b` is not in `tagOwners`"),
        (r#"{"grants": [{"src": ["*"], "dst": ["*"]}]}"#, "grants[0]", "the grant gives nothing"),
        (r#"{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp"]}]}"#, "grants[0].ip[0]", "are not ports"),
        (r#"{"grants": [{"src": ["*"], "dst": ["*"], "app": {"x": [{}]}}]}"#, "grants[0].app.x", "has not the form domain/path"),
        (
            r#"{"grants": [{"src": ["*"], "dst": ["*"], "app": {"tailscale.com/cap/funnel": []}}]}"#,
            "grants[0].app[`tailscale.com/cap/funnel`]",
            "not given by policies",
        ),
        (r#"{"grants": [{"src": ["*"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["ann@"]}]}"#, "grants[0].via[0]", "takes tags only"),
        (
            r#"{"tagOwners": {"tag:a": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], "via": ["tag:a"]}]}"#,
            "grants[0].dst[0]",
            "with `via`",
        ),
        (r#"{"nodeAttrs": [{"target": ["*"], "attr": ["funnel"]}]}"#, "nodeAttrs[0].attr[0]", "not offered"),
        (r#"{"nodeAttrs": [{"target": ["*"], "ipPool": []}]}"#, "nodeAttrs[0].ipPool", "address pools"),
        (r#"{"autoApprovers": {"routes": {"lan": []}}}"#, "autoApprovers.routes.lan", "`lan` is not a network"),
        (r#"{"autoApprovers": {"exitNode": ["10.0.0.1"]}}"#, "autoApprovers.exitNode[0]", "cannot stand here"),
        (r#"{"randomizeClientPort": "yes"}"#, "randomizeClientPort", "true or false is wanted here"),
        (r#"{"tests": [{"src": "ann@"}]}"#, "tests[0]", "expects nothing"),
        (r#"{"tests": [{"src": "ann@", "accept": ["10.0.0.0/8:1"]}]}"#, "tests[0].accept[0]", "a test names one address"),
        (r#"{"tests": [{"src": "ann@", "accept": ["10.0.0.1:1-2"]}]}"#, "tests[0].accept[0]", "a test names one port"),
    ] {
        let error = refused(text);
        assert_eq!(error.path, path, "{text}: {error}");
        assert!(error.what.contains(what), "{text}: {error}");
    }
}

#[test]
fn a_fault_is_shown_with_its_line_and_foreign_text_is_escaped() {
    let error = refused("{\n  // names\n  \"hosts\": {\"nas\": \"10.0.0.5\\u001b[31m\\n\"},\n}");
    assert_eq!(error.to_string(), "line 3, column 20, hosts.nas: `10.0.0.5\\u{1b}[31m\\n` is not an address or network");
    let error = refused("{\"acls\": [}");
    assert!(error.to_string().starts_with("line 1, column 11: not valid HuJSON"), "{error}");
}

#[test]
fn a_million_entries_are_refused_quickly() {
    let list =
        |entry: &str, n: usize| format!("{{\"acls\": [{{\"action\": \"accept\", \"src\": [{}], \"dst\": [\"*:*\"]}}]}}", entry.repeat(n));
    assert!(refused(&list("\"ann@\",", 1_000_000)).what.contains(&format!("at most {MAX_BYTES}")));
    let error = refused(&list("\"\",", 300_000));
    assert_eq!((error.path.as_str(), error.what.contains("300000 entries")), ("acls[0].src", true), "{error}");
    let rules = format!("{{\"acls\": [{}]}}", "{},".repeat(300_000));
    assert!(refused(&rules).what.contains("at most"));
    let names: String = (0..40_000).map(|n| format!("\"h{n}\":\"1.1.1.1\",")).collect();
    assert!(refused(&format!("{{\"hosts\": {{{names}}}}}")).what.contains("members; at most"));
    assert!(refused(&"[".repeat(1_000_000)).what.contains("nested"));
}
