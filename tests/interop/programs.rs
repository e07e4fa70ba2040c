//! The peers: built by name and version, once. `go.mod`/`go.sum` here and `rust-client/Cargo.lock` pin them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{Arguments, Done};

const GO_TOOLS: [&str; 6] = ["tailscale", "tailscaled", "derper", "headscale", "skew", "judge"];

/// Which releases are played against.
#[derive(Debug, Clone, Default)]
pub struct Versions {
    pub tailscale: String,
    pub headscale: String,
    pub tailscale_rs: String,
    pub pvemesh: String,
}

impl Versions {
    pub fn text(&self) -> String {
        format!("Tailscale {}, Headscale {}, tailscale-rs {}", self.tailscale, self.headscale, self.tailscale_rs)
    }

    fn read(pvemesh: &Path) -> Done<Self> {
        let text = |file: &str| std::fs::read_to_string(source().join(file)).map_err(|e| format!("{file}: {e}"));
        let modules = text("go.mod")?;
        let module = |name: &str| {
            let line = modules.lines().map(str::trim).find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(" v")));
            line.and_then(|line| line.split_whitespace().nth(1)).map(|v| v.trim_start_matches('v').to_owned())
        };
        let lock = text("rust-client/Cargo.lock")?;
        let crates = lock.split("[[package]]").find(|p| p.contains("name = \"tailscale\"\n"));
        let version = crates.and_then(|p| p.split("version = \"").nth(1)).and_then(|v| v.split('"').next());
        let own = crate::machine::output(Command::new(pvemesh).arg("--version"), "pvemesh --version")?;
        Ok(Self {
            tailscale: module("tailscale.com").ok_or("tests/interop/go.mod names no tailscale.com")?,
            headscale: module("github.com/juanfont/headscale").ok_or("tests/interop/go.mod names no headscale")?,
            tailscale_rs: version.ok_or("tests/interop/rust-client/Cargo.lock names no tailscale")?.to_owned(),
            pvemesh: own.trim().trim_start_matches("pvemesh ").to_owned(),
        })
    }
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    pub pvemesh: PathBuf,
    pub tailscale: PathBuf,
    pub tailscaled: PathBuf,
    pub derper: PathBuf,
    pub headscale: PathBuf,
    pub skew: PathBuf,
    pub judge: PathBuf,
    pub rust_client: PathBuf,
    pub versions: Versions,
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

impl Programs {
    /// The programs, built before.
    pub fn found(arguments: &Arguments) -> Done<Self> {
        let absolute = |path: &Path| path.canonicalize().map_err(|e| format!("{}: {e}", path.display()));
        let bin = absolute(&arguments.dir.join("bin"))?;
        let pvemesh = absolute(&arguments.binary)?;
        Ok(Self {
            versions: Versions::read(&pvemesh)?,
            tailscale: bin.join("tailscale"),
            tailscaled: bin.join("tailscaled"),
            derper: bin.join("derper"),
            headscale: bin.join("headscale"),
            skew: bin.join("skew"),
            judge: bin.join("judge"),
            rust_client: bin.join("interop-rust-client"),
            pvemesh,
        })
    }

    /// Builds what is missing or of another version.
    pub fn build(arguments: &Arguments) -> Done<Self> {
        let bin = arguments.dir.join("bin");
        std::fs::create_dir_all(&bin).map_err(|e| format!("{}: {e}", bin.display()))?;
        let bin = bin.canonicalize().map_err(|e| e.to_string())?;
        go(&bin)?;
        rust(&arguments.dir, &bin)?;
        Self::found(arguments)
    }
}

/// Builds something unless its stamp says that it is there already.
fn once(bin: &Path, name: &str, made_of: &str, makes: &[&str], build: impl FnOnce() -> Done) -> Done {
    let mut hasher = DefaultHasher::new();
    made_of.hash(&mut hasher);
    let mark = format!("{:016x}", hasher.finish());
    let stamp = bin.join(format!("{name}.stamp"));
    if std::fs::read_to_string(&stamp).is_ok_and(|old| old == mark) && makes.iter().all(|made| bin.join(made).exists()) {
        return Ok(());
    }
    println!("building {} (once)", makes.join(", "));
    let start = Instant::now();
    build()?;
    println!("built in {:.0} s", start.elapsed().as_secs_f64());
    std::fs::write(&stamp, mark).map_err(|e| format!("{}: {e}", stamp.display()))
}

fn go(bin: &Path) -> Done {
    let source = source();
    let read = |file: &str| std::fs::read_to_string(source.join(file)).map_err(|e| format!("{file}: {e}"));
    let compiler = crate::machine::output(Command::new("go").arg("version").current_dir(&source), "go version")?;
    let versions = read("go.mod")?;
    let version = versions.lines().find_map(|l| l.trim().strip_prefix("tailscale.com v")).and_then(|l| l.split(' ').next()).unwrap_or("0");
    // What the release scripts set; without it the programs complain about their build.
    let flags = format!("-s -w -X tailscale.com/version.longStamp={version} -X tailscale.com/version.shortStamp={version}");
    let made_of =
        [&compiler, &versions, &read("go.sum")?, &read("skew/main.go")?, &read("judge/main.go")?, &flags].map(String::as_str).join("\n");
    once(bin, "go", &made_of, &GO_TOOLS, || {
        let mut build = Command::new("go");
        build
            .args(["build", "-p", "2", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"])
            .arg(bin)
            .args(["tool", "./skew", "./judge"]);
        said(build.current_dir(&source).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly"), "go build")
    })
}

fn rust(dir: &Path, bin: &Path) -> Done {
    let source = source().join("rust-client");
    let mut made_of = String::new();
    for file in ["Cargo.toml", "Cargo.lock", "src/main.rs"] {
        made_of.push_str(&std::fs::read_to_string(source.join(file)).map_err(|e| format!("{file}: {e}"))?);
    }
    once(bin, "rust", &made_of, &["interop-rust-client"], || {
        let target = dir.canonicalize().map_err(|e| e.to_string())?.join("rust-client");
        let mut build = Command::new("cargo");
        build.args(["build", "--locked", "--quiet", "--jobs", "2"]).current_dir(&source).env("CARGO_TARGET_DIR", &target);
        said(&mut build, "cargo build")?;
        // The workspace's configuration names the target, so the program is a directory deeper.
        let found = crate::machine::run(&["find", &target.display().to_string(), "-path", "*/debug/interop-rust-client", "-type", "f"])?;
        let program = found.lines().next().ok_or("cargo built no interop-rust-client")?;
        std::fs::copy(program, bin.join("interop-rust-client")).map(drop).map_err(|e| format!("{program}: {e}"))
    })
}

/// Runs a command whose output the user sees.
fn said(command: &mut Command, name: &str) -> Done {
    let status = command.stdin(Stdio::null()).status().map_err(|e| format!("{name}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} failed ({status})")) }
}
