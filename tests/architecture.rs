//! The layers of ARCHITECTURE.md, checked against the source: who may use whom, file sizes, banned module names.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The rank of every top-level module. A module may use modules of lower rank only.
const RANKS: [(&str, u8); 20] = [
    ("ident", 0),
    ("time", 0),
    ("settings", 1),
    ("wire", 1),
    ("coord", 2),
    ("dhcp", 2),
    ("filter", 2),
    ("names", 2),
    ("netcheck", 2),
    ("netstack", 2),
    ("path", 2),
    ("portmap", 2),
    ("pve", 2),
    ("relay", 2),
    ("tunnel", 2),
    ("node", 3),
    ("plan", 3),
    ("sys", 4),
    ("cli", 5),
    ("main", 6),
];

/// Lines a source file may have; aim at 300.
const MAX_LINES: usize = 700;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    rust_files(&root().join(dir), &mut files);
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect()
}

fn top_module(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules a text names as `crate::x` or `pvemesh::x`, also within `use crate::{a, b::c}`.
fn used_modules(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    let code: String = text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    for prefix in ["crate::", "pvemesh::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let mut depth = 0;
                let mut word = String::new();
                let mut take = true;
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            used.push(std::mem::take(&mut word));
                            take = true;
                        }
                        ':' if depth == 0 => take = false,
                        c if depth == 0 && take && (c.is_alphanumeric() || c == '_') => word.push(c),
                        _ => {}
                    }
                }
                used.push(word);
            } else {
                used.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            }
        }
    }
    used.retain(|w| !w.is_empty());
    used
}

#[test]
fn modules_use_lower_ranks_only() {
    let ranks: BTreeMap<_, _> = RANKS.into_iter().collect();
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        let module = top_module(&path);
        if module == "lib" {
            continue;
        }
        let Some(&rank) = ranks.get(module.as_str()) else {
            faults.push(format!("{}: module `{module}` has no rank", path.display()));
            continue;
        };
        for used in used_modules(&text) {
            match ranks.get(used.as_str()) {
                _ if used == module => {}
                Some(&other) if other < rank => {}
                Some(&other) => faults.push(format!("{}: `{module}` (rank {rank}) uses `{used}` (rank {other})", path.display())),
                None => faults.push(format!("{}: `crate::{used}` is not a module of the table", path.display())),
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn cores_name_no_runtime() {
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        if matches!(top_module(&path).as_str(), "sys" | "cli" | "main" | "lib") {
            continue;
        }
        for banned in ["tokio::", "std::net::UdpSocket", "std::net::Tcp", "std::fs::", "std::process::", "getrandom::", "OsRng"] {
            if text.contains(banned) {
                faults.push(format!("{}: a core names `{banned}`", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn only_the_command_line_prints() {
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        if top_module(&path) == "cli" {
            continue;
        }
        for banned in ["println!(", "print!(", "eprintln!(", "eprint!(", "dbg!("] {
            if text.contains(banned) {
                faults.push(format!("{}: `{banned}` outside cli", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_code_stands_only_in_the_named_files() {
    const NAMED: [&str; 1] = ["src/sys/offload.rs"];
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        let relative = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        if text.contains("unsafe_code") && !NAMED.contains(&relative.as_str()) {
            faults.push(format!("{relative}: lifts the ban on unsafe code"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_stay_readable() {
    let mut faults = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            faults.push(format!("{}: {lines} lines, at most {MAX_LINES}", path.display()));
        }
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if ["util", "utils", "common", "shared", "helpers", "manager", "misc"].contains(&stem) {
            faults.push(format!("{}: a name that says nothing", path.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_checker_sees_grouped_and_nested_paths() {
    let text = "use crate::{ident::{NodeId, Vmid}, time};\nlet x = crate::wire::y;\n// crate::cli::z\n";
    assert_eq!(used_modules(text), ["ident", "time", "wire"]);
}
