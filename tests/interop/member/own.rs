//! Our node, driven by `pvemesh node` and its local socket.

use std::path::PathBuf;

use serde_json::Value;

use super::{Daemon, Detail, Join, Member, Messages, Status};
use crate::Done;
use crate::machine::{Machine, Process, output};
use crate::programs::Programs;
use crate::traffic::local_api;
use crate::wait::secs;

pub struct Own {
    machine: Machine,
    program: PathBuf,
    daemon: Daemon,
    /// What `--tun` says.
    tun: &'static str,
    process: Option<Process>,
}

impl Own {
    pub fn new(programs: &Programs, daemon: Daemon, userspace: bool) -> Self {
        let tun = if userspace { "userspace" } else { "pvm0" };
        Self { machine: daemon.machine.clone(), daemon, program: programs.pvemesh.clone(), tun, process: None }
    }

    fn socket(&self) -> PathBuf {
        self.machine.home().join("node.sock")
    }

    fn ask(&self, words: &[&str]) -> Done<String> {
        let mut command = self.machine.command(&self.program);
        command.args(["node", "--socket"]).arg(self.socket()).args(words);
        output(&mut command, &format!("pvemesh node {}", words.join(" ")))
    }
}

impl Member for Own {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn start(&mut self) -> Done {
        if self.process.is_some() {
            return Ok(());
        }
        let mut command = self.daemon.command(&self.program);
        command.args(["-v", "node", "--socket"]).arg(self.socket());
        command.args(["run", "--tun", self.tun, "--state-dir"]).arg(self.state_dir());
        let mut process = self.machine.spawn(command, "node")?;
        process.ready("the node answers", secs(20), || self.status().map(|_| true))?;
        self.process = Some(process);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    fn up(&self, join: &Join<'_>) -> Done {
        let server = format!("--login-server={}", join.url);
        let mut words = vec!["up", &server];
        let file = self.machine.home().join("join.key");
        let key = format!("--auth-key-file={}", file.display());
        if let Some(text) = join.key {
            std::fs::write(&file, text).map_err(|e| e.to_string())?;
            words.push(&key);
        }
        if !join.flags.iter().any(|flag| flag.starts_with("--timeout")) {
            words.push("--timeout=25s");
        }
        words.extend(join.flags);
        self.ask(&words).map(drop)
    }

    fn tell(&self, words: &[&str]) -> Done<String> {
        self.ask(words)
    }

    fn status(&self) -> Done<Status> {
        Status::parse(&local_api(&self.socket(), "node", "/v1/status")?)
    }

    fn ping(&self, target: &str) -> Done<String> {
        self.ask(&["ping", "-c", "5", "--timeout", "2s", target])
    }

    /// From the map that the node keeps on disk.
    fn detail(&self, peer: &str) -> Done<Detail> {
        let path = self.state_dir().join("map.json");
        let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let map: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        let start = format!("{peer}.");
        let peers = map["peers"].as_object().into_iter().flatten();
        let node = peers.map(|(_, node)| node).find(|node| node["Name"].as_str().is_some_and(|name| name.starts_with(&start)));
        let node = node.ok_or_else(|| format!("the network map has no {peer}"))?;
        Ok(Detail {
            endpoints: node["Endpoints"].as_array().into_iter().flatten().filter_map(|e| e.as_str().map(str::to_owned)).collect(),
            home: node["HomeDERP"].as_i64().unwrap_or_default(),
            disco: node["DiscoKey"].as_str().unwrap_or_default().to_owned(),
        })
    }

    fn messages(&self) -> Done<Option<Messages>> {
        Ok(None)
    }

    fn state_dir(&self) -> PathBuf {
        self.machine.home().join("state")
    }
}
