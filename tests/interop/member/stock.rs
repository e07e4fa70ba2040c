//! Stock tailscaled with a kernel TUN, driven by the `tailscale` command and its local API.

use std::path::PathBuf;

use serde_json::Value;

use super::{Daemon, Detail, Join, Member, Messages, Status};
use crate::Done;
use crate::machine::{Machine, Process, output};
use crate::programs::Programs;
use crate::traffic::local_api;
use crate::wait::secs;

const API_HOST: &str = "local-tailscaled.sock";

pub struct Stock {
    machine: Machine,
    client: PathBuf,
    program: PathBuf,
    daemon: Daemon,
    process: Option<Process>,
}

impl Stock {
    pub fn new(programs: &Programs, daemon: Daemon) -> Self {
        Self {
            machine: daemon.machine.clone(),
            daemon,
            client: programs.tailscale.clone(),
            program: programs.tailscaled.clone(),
            process: None,
        }
    }

    fn socket(&self) -> PathBuf {
        self.machine.home().join("tailscaled.sock")
    }

    fn ask(&self, words: &[&str]) -> Done<String> {
        let mut command = self.machine.command("timeout");
        command.arg("40").arg(&self.client).arg(format!("--socket={}", self.socket().display())).args(words);
        output(&mut command, &format!("tailscale {}", words.join(" ")))
    }
}

impl Member for Stock {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn start(&mut self) -> Done {
        if self.process.is_some() {
            return Ok(());
        }
        let mut command = self.daemon.command(&self.program);
        command.args(["--tun=ts0", "--no-logs-no-support", "--verbose=1"]);
        command.arg(format!("--statedir={}", self.state_dir().display())).arg(format!("--socket={}", self.socket().display()));
        command.env("TS_NO_LOGS_NO_SUPPORT", "true").env("TS_DEBUG_FIREWALL_MODE", "nftables");
        let mut process = self.machine.spawn(command, "tailscaled")?;
        process.ready("tailscaled answers", secs(20), || self.status().map(|status| status.state != "NoState"))?;
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
        let key = format!("--auth-key=file:{}", file.display());
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
        let mut status = Status::parse(&local_api(&self.socket(), API_HOST, "/localapi/v0/status")?)?;
        if status.suffix.is_empty() {
            status.suffix = status.current_tailnet.clone().unwrap_or_default().suffix;
        }
        Ok(status)
    }

    fn ping(&self, target: &str) -> Done<String> {
        self.ask(&["ping", "-c", "5", "--timeout=2s", target])
    }

    fn detail(&self, peer: &str) -> Done<Detail> {
        let map: Value = serde_json::from_str(&self.ask(&["debug", "netmap"])?).map_err(|e| e.to_string())?;
        let start = format!("{peer}.");
        let peers = map["Peers"].as_array().into_iter().flatten();
        let node = peers.into_iter().find(|node| node["Name"].as_str().is_some_and(|name| name.starts_with(&start)));
        let node = node.ok_or_else(|| format!("the network map has no {peer}"))?;
        Ok(Detail {
            endpoints: node["Endpoints"].as_array().into_iter().flatten().filter_map(|e| e.as_str().map(str::to_owned)).collect(),
            home: node["HomeDERP"].as_i64().unwrap_or_default(),
            disco: node["DiscoKey"].as_str().unwrap_or_default().to_owned(),
        })
    }

    fn messages(&self) -> Done<Option<Messages>> {
        let text = String::from_utf8_lossy(&local_api(&self.socket(), API_HOST, "/localapi/v0/metrics")?).into_owned();
        let count = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
        };
        Ok(Some(Messages {
            streams: count("controlclient_map_requests_poll"),
            maps: count("controlclient_map_response_map"),
            deltas: count("controlclient_map_response_map_delta"),
        }))
    }

    fn state_dir(&self) -> PathBuf {
        self.machine.home().join("state")
    }
}
