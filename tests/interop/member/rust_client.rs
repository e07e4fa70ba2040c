//! tailscale-rs: a small program around the crate, which says what happens in JSON lines.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::Done;
use crate::machine::{Machine, Process};
use crate::programs::Programs;
use crate::wait::get;

pub struct RustClient {
    machine: Machine,
    program: PathBuf,
    process: Option<Process>,
}

impl RustClient {
    pub fn new(programs: &Programs, machine: &Machine) -> Self {
        Self { machine: machine.clone(), program: programs.rust_client.clone(), process: None }
    }

    /// Joins and goes on to echo; told a peer's address, it pings that every now and then.
    pub fn start(&mut self, url: &str, key: &str, ping: Option<std::net::IpAddr>) -> Done {
        let log = self.machine.home().join("tailscale-rs.log");
        let _ = std::fs::remove_file(&log);
        let file = self.machine.home().join("join.key");
        std::fs::write(&file, key).map_err(|e| e.to_string())?;
        let mut command = self.machine.command(&self.program);
        command.arg("--control-url").arg(url).arg("--auth-key-file").arg(file).args(["--hostname", self.machine.name()]);
        command.arg("--key-file").arg(self.machine.home().join("keys.json"));
        if let Some(address) = ping {
            command.arg("--ping").arg(format!("{address}:{}", crate::traffic::ECHO));
        }
        self.process = Some(self.machine.spawn(command, "tailscale-rs")?);
        Ok(())
    }

    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    /// Waits until it says something of a kind.
    pub fn says(&mut self, event: &str, limit: Duration) -> Done<Value> {
        let process = self.process.as_mut().ok_or("tailscale-rs was not started")?;
        get(&format!("tailscale-rs says {event}"), limit, || {
            let log = std::fs::read_to_string(&process.log).map_err(|e| e.to_string())?;
            let mut lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let found = lines.find(|line| line["event"] == event);
            match (found, process.ended()) {
                (Some(found), _) => Ok(Some(found)),
                (None, Some(why)) => Err(why),
                (None, None) => Ok(None),
            }
        })
    }
}
