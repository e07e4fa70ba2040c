//! The coordinator with the relay in it, and programs that run on a machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::netns::{Machine, eventually};
use crate::place::{CENTRE, Internet};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_pvemesh");

/// A program that is killed when the test ends.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn spawn(machine: &Machine, mut command: Command, log: File) -> Process {
    machine.run(move || {
        let errors = log.try_clone().unwrap();
        Process(command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap())
    })
}

pub fn call(machine: &Machine, mut command: Command) -> String {
    machine.run(move || {
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

/// Our program with arguments that have no blanks in them.
pub fn ours(line: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(line.split_whitespace());
    command
}

/// The coordinator in the middle, at port 443 with a certificate of an authority of its own.
pub struct Coordinator {
    process: Option<Process>,
    arguments: String,
    log: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
}

fn certificates(home: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "an authority of the test's own");
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![CENTRE.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(home.join("ca.pem"), issuer.pem()).unwrap();
    std::fs::write(home.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(home.join("key.pem"), key.serialize_pem()).unwrap();
}

impl Coordinator {
    /// With a relay in it.
    pub fn start(machine: &Machine, home: &Path) -> Self {
        Self::start_with(machine, home, "")
    }

    pub fn start_with(machine: &Machine, home: &Path, options: &str) -> Self {
        certificates(home);
        let at = |name: &str| home.join(name).display().to_string();
        let arguments = format!(
            "coordinator serve --url https://{CENTRE} --listen 0.0.0.0:443 --tls-cert {} --tls-key {} --state-dir {} --socket {} {options}",
            at("cert.pem"),
            at("key.pem"),
            at("coordinator"),
            at("c.sock")
        );
        let process = spawn(machine, ours(&arguments), File::create(home.join("coordinator.log")).unwrap());
        eventually("the coordinator's socket", Duration::from_secs(20), || home.join("c.sock").exists());
        let key = call(machine, ours(&format!("coordinator keys create --reusable --socket {}", at("c.sock"))));
        std::fs::write(home.join("join.key"), key).unwrap();
        let log = home.join("coordinator.log");
        Self { process: Some(process), arguments, log, key: home.join("join.key"), authority: home.join("ca.pem") }
    }

    /// Kills it, and the relay in it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it with what it has on disk.
    pub fn start_again(&mut self, machine: &Machine) {
        self.process = Some(spawn(machine, ours(&self.arguments), File::options().append(true).open(&self.log).unwrap()));
    }
}

/// A relay on a machine of its own, known to the coordinator as a region.
pub struct Relay {
    machine: Machine,
    arguments: String,
    log: PathBuf,
    process: Option<Process>,
}

impl Relay {
    pub fn start(internet: &Internet, home: &Path, region: usize) -> Self {
        let machine = Machine::new();
        let n = internet.plug(&machine);
        let at = |what: &str| home.join(format!("relay-{region}{what}"));
        // Whom it serves is the coordinator's to say, and while that is away whom it said before.
        let arguments = format!(
            "relay serve --hostname 203.0.113.{n} --region {region} --verify-url https://{CENTRE}/verify --verify-ca {} --state-dir {}",
            home.join("ca.pem").display(),
            at("").display()
        );
        let mut relay = Self { machine, arguments, log: at(".log"), process: None };
        relay.run();
        let map = || {
            let text = std::fs::read_to_string(&relay.log).unwrap_or_default();
            let (start, end) = (text.find('{')?, text.rfind('}')?);
            serde_json::from_str::<serde_json::Value>(text.get(start..=end)?).ok()
        };
        eventually("the relay's map", Duration::from_secs(20), || map().is_some());
        std::fs::write(at(".json"), map().unwrap().to_string()).unwrap();
        let add = format!("coordinator relays add {} --socket {}", at(".json").display(), home.join("c.sock").display());
        call(&internet.centre, ours(&add));
        relay
    }

    pub fn run(&mut self) {
        let log = File::create(&self.log).unwrap();
        self.process = Some(spawn(&self.machine, ours(&self.arguments), log));
    }

    pub fn kill(&mut self) {
        self.process = None;
    }
}
