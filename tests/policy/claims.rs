//! Tags, approvals, attributes, and the tests a policy holds.

use pvemesh::coord::policy::Policy;
use serde_json::json;

use crate::mesh::{compiled, id, node, routing, tagged};

const CLAIMS: &str = r#"{
    "groups": {"group:ops": ["ann@", "bob@example.com"]},
    "tagOwners": {"tag:web": ["group:ops"], "tag:part": ["tag:web"], "tag:all": ["autogroup:member"], "tag:closed": [], "tag:loop": ["tag:pool"], "tag:pool": ["tag:loop"]},
    "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:web", "ann@"], "0.0.0.0/0": ["tag:part"]}, "exitNode": ["group:ops"]},
    "nodeAttrs": [
        {"target": ["tag:web"], "attr": ["suggest-exit-node", "custom:x"]},
        {"target": ["*"], "app": {"example.com/app": [{"a": 1}]}},
        {"target": ["100.64.0.3"], "app": {"example.com/app": [{"b": 2}, {"a": 1}]}},
    ],
    "randomizeClientPort": true,
}"#;

#[test]
fn tags_are_claimed_by_their_owners_and_by_owners_of_their_owners() {
    let policy = Policy::parse(CLAIMS).unwrap();
    let no_tags = Vec::new();
    for (login, tag, may) in [
        (Some("ann"), "tag:web", true),
        (Some("bob@example.com"), "tag:web", true),
        (Some("bob"), "tag:web", false),
        (Some("cid"), "tag:web", false),
        (Some("ann"), "tag:part", true),
        (Some("cid"), "tag:all", true),
        (Some("ann"), "tag:closed", false),
        (Some("ann"), "tag:loop", false),
        (Some("ann"), "tag:unknown", false),
        (None, "tag:all", false),
    ] {
        assert_eq!(policy.may_tag(login, &no_tags, tag), may, "{login:?} {tag}");
    }
    assert!(policy.may_tag(None, &["tag:web".to_owned()], "tag:part"));
    assert!(!policy.may_tag(None, &["tag:part".to_owned()], "tag:web"));
    assert!(!Policy::allow_all().may_tag(Some("ann"), &no_tags, "tag:web"), "without a policy no tag is defined");
}

#[test]
fn routes_are_approved_inside_the_prefixes_of_the_policy_and_exits_by_their_own_list() {
    let policy = Policy::parse(CLAIMS).unwrap();
    let web = vec!["tag:web".to_owned()];
    let approves = |login: &str, tags: &[String], net: &str| policy.auto_approves(login, tags, &net.parse().unwrap());
    assert!(approves("x", &web, "10.0.0.0/8") && approves("x", &web, "10.1.0.0/16"));
    assert!(!approves("x", &web, "11.0.0.0/8") && !approves("x", &web, "8.0.0.0/5"));
    assert!(approves("ann", &[], "10.1.0.0/16") && approves("ann@", &[], "10.1.0.0/16"));
    assert!(!approves("ann", &web[..0], "192.168.0.0/16"));
    assert!(!approves("ann", &["tag:closed".to_owned()], "10.1.0.0/16"), "a node with tags is nobody's");
    assert!(approves("ann", &[], "0.0.0.0/0") && approves("ann", &[], "::/0"));
    assert!(!approves("x", &["tag:part".to_owned()], "0.0.0.0/0"), "exit nodes follow exitNode only");
    assert!(approves("x", &["tag:part".to_owned()], "192.168.0.0/16"));
}

#[test]
fn attributes_add_up() {
    let web = routing(tagged(3, &["tag:web"]), &[]);
    let mesh = compiled(CLAIMS, &[node(1, "ann"), pvemesh::coord::policy::Subject { exit: true, ..web }]);
    let names = |n| mesh.attributes(id(n)).keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(1), ["example.com/app", "randomize-client-port"]);
    assert_eq!(names(3), ["custom:x", "example.com/app", "randomize-client-port", "suggest-exit-node"]);
    assert_eq!(mesh.attributes(id(3))["example.com/app"], [json!({"a": 1}), json!({"b": 2})]);
    assert_eq!(mesh.peer_attributes(id(3)).into_keys().collect::<Vec<_>>(), ["suggest-exit-node"]);
    assert!(mesh.attributes(id(9)).is_empty() && mesh.peer_attributes(id(1)).is_empty());
}

#[test]
fn a_policy_names_its_logins_and_tags() {
    let policy = Policy::parse(CLAIMS).unwrap();
    assert_eq!(policy.logins().into_iter().collect::<Vec<_>>(), ["ann", "bob@example.com"]);
    assert_eq!(policy.tags().count(), 6);
}

#[test]
fn failing_tests_say_what_was_wanted() {
    let policy = |tests: &str| {
        format!(
            r#"{{"groups": {{"group:ops": ["ann@", "bob@"]}}, "tagOwners": {{"tag:web": []}}, "hosts": {{"nas": "10.0.0.5"}},
            "acls": [
                {{"action": "accept", "src": ["ann@"], "dst": ["tag:web:22"], "proto": "tcp"}},
                {{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:80", "10.0.0.0/24:445"]}},
            ], "tests": [{tests}]}}"#
        )
    };
    for (test, failures) in [
        (r#"{"src": "ann@", "accept": ["tag:web:22", "tag:web:80", "nas:445"], "deny": ["tag:web:23", "10.0.1.5:445"]}"#, vec![]),
        (r#"{"src": "group:ops", "accept": ["tag:web:80"], "deny": ["tag:web:443"]}"#, vec![]),
        (
            r#"{"src": "group:ops", "accept": ["tag:web:22"]}"#,
            vec!["tests[0]: `group:ops` to `tag:web:22` should be allowed, but is denied"],
        ),
        (
            r#"{"src": "autogroup:member", "deny": ["tag:web:22"]}"#,
            vec!["tests[0]: `autogroup:member` to `tag:web:22` should be denied, but is allowed"],
        ),
        (
            r#"{"src": "ann@", "proto": "udp", "accept": ["tag:web:22"]}"#,
            vec!["tests[0]: `ann@` to `tag:web:22` should be allowed, but is denied"],
        ),
        (r#"{"src": "tag:web", "deny": ["tag:web:80", "ann@:1"]}"#, vec![]),
        (r#"{"src": "100.64.0.1", "accept": ["100.64.0.3:80"]}, {"src": "100.64.0.3", "deny": ["100.64.0.1:80"]}"#, vec![]),
        (r#"{"src": "100.64.0.9", "accept": ["nas:445"]}"#, vec!["tests[0]: `100.64.0.9` to `nas:445` should be allowed, but is denied"]),
    ] {
        let mesh = compiled(&policy(test), &[node(1, "cid"), tagged(3, &["tag:web"])]);
        let got: Vec<String> = mesh.run_tests().err().into_iter().flatten().map(|failure| failure.to_string()).collect();
        assert_eq!(got, failures, "{test}");
    }
}

#[test]
fn a_policy_that_cuts_everybody_off_is_recognised() {
    let nodes = [node(1, "ann"), node(2, "bob"), tagged(3, &["tag:web"])];
    let rule = |src: &str, dst: &str| {
        format!(r#"{{"tagOwners": {{"tag:web": []}}, "acls": [{{"action": "accept", "src": ["{src}"], "dst": ["{dst}:*"]}}]}}"#)
    };
    for (src, dst, locks_out, isolated) in [
        ("ann@", "tag:web", false, vec![id(2)]),
        ("eve@", "*", true, vec![id(1), id(2), id(3)]),
        ("ann@", "ann@", true, vec![id(1), id(2), id(3)]),
        ("autogroup:member", "autogroup:self", true, vec![id(1), id(2), id(3)]),
    ] {
        let mesh = compiled(&rule(src, dst), &nodes);
        assert_eq!((mesh.locks_out(), mesh.isolated()), (locks_out, isolated), "{src} {dst}");
    }
    assert!(compiled(r#"{"acls": []}"#, &[]).locks_out());
    assert!(!compiled(&rule("eve@", "*"), &nodes[..1]).locks_out(), "with one node nobody is cut off yet");
}
