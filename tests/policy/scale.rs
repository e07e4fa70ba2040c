//! What a large mesh costs. Prints figures; `cargo test --release --test policy scale -- --ignored --nocapture` makes them mean something.

use std::time::Duration;

use pvemesh::coord::policy::{Compiled, Subject, Touched};

use crate::mesh::{compiled, id, node, routing, tagged};

const NODES: i64 = 5_000;

/// A hundred rules over users, groups, tags, addresses and routes.
fn policy() -> String {
    let members = |n: usize| (0..50).map(|k| format!("\"user{}@\"", (n * 37 + k) % 500)).collect::<Vec<_>>().join(",");
    let groups: Vec<String> = (0..20).map(|n| format!("\"group:g{n}\": [{}]", members(n))).collect();
    let tags: Vec<String> = (0..20).map(|n| format!("\"tag:t{n}\": []")).collect();
    let rules: Vec<String> = (0..100)
        .map(|n| {
            let (src, dst) = match n % 5 {
                0 => (format!("group:g{}", n % 20), format!("tag:t{}:443", n % 20)),
                1 => (format!("tag:t{}", n % 20), format!("tag:t{}:5432", (n + 1) % 20)),
                2 => (format!("user{n}@"), format!("10.{n}.0.0/16:*")),
                3 => ("autogroup:member".to_owned(), format!("tag:t{}:80,8080-8090", n % 20)),
                _ => (format!("group:g{}", n % 20), format!("group:g{}:22", (n + 3) % 20)),
            };
            format!(r#"{{"action": "accept", "src": ["{src}"], "dst": ["{dst}"]}}"#)
        })
        .collect();
    format!("{{\"groups\": {{{}}}, \"tagOwners\": {{{}}}, \"acls\": [{}]}}", groups.join(","), tags.join(","), rules.join(","))
}

fn subjects() -> Vec<Subject> {
    let subject = |n: i64| match n % 10 {
        0..6 => node(n, &format!("user{}", n % 500)),
        6..9 => tagged(n, &[&format!("tag:t{}", n % 20)]),
        _ => routing(tagged(n, &["tag:t1"]), &[&format!("10.{}.0.0/16", n % 250)]),
    };
    (1..=NODES).map(subject).collect()
}

/// Processor time of this thread: what others do on the machine does not count.
fn spent() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn timed<T>(what: &str, times: u32, work: impl FnOnce() -> T) -> T {
    let start = spent();
    let value = work();
    println!("{what}: {:?}", (spent() - start) / times);
    value
}

#[test]
#[ignore = "a measurement"]
fn a_mesh_of_5000_nodes_under_100_rules() {
    let (text, subjects) = (policy(), subjects());
    let mut mesh: Compiled = timed("read the policy and compile 5,000 nodes", 1, || compiled(&text, &subjects));
    let written: usize = timed("write out a filter, all 5,000, each", 5_000, || (1..=NODES).map(|n| mesh.filter(id(n)).len()).sum());
    println!("{written} filter rules");
    let seen =
        timed("sees, a pair", 25_000_000, || (1..=NODES).map(|a| (1..=NODES).filter(|b| mesh.sees(id(a), id(*b))).count()).sum::<usize>());
    println!("{seen} of 25,000,000 pairs see each other");
    let mut touched = [0_usize; 2];
    timed("a node leaves and comes back, each of the two", 1_000, || {
        for subject in subjects.iter().take(500) {
            for affected in [mesh.remove(subject.id), mesh.upsert(subject.clone())] {
                for (count, set) in touched.iter_mut().zip([affected.filters, affected.peers]) {
                    *count += if let Touched::Some(set) = set { set.len() } else { 0 };
                }
            }
        }
    });
    println!("touched per change: {} filters, {} peers", touched[0] / 1_000, touched[1] / 1_000);
    timed("write out the stale filters after one change", 1, || (1..=NODES).map(|n| mesh.filter(id(n)).len()).sum::<usize>());
    let one_owner: Vec<Subject> = (1..=NODES).map(|n| node(n, "ann")).collect();
    let own = r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#;
    let mut own = compiled(own, &one_owner);
    timed("one owner: a node joins, and all 5,000 filters are written out", 1, || {
        own.upsert(node(NODES + 1, "ann"));
        (1..=NODES).map(|n| own.filter(id(n)).len()).sum::<usize>()
    });
    let mut open = compiled("{}", &subjects);
    timed("a node leaves and comes back without rules, each of the two", 10_000, || {
        for subject in &subjects {
            open.remove(subject.id);
            open.upsert(subject.clone());
        }
    });
}
