//! Our coordinator, by its own commands.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Coordinator, DOMAIN, JoinKey, Listed, PORT, USER, Which, Wish};
use crate::Done;
use crate::authority::Authority;
use crate::internet::Internet;
use crate::machine::{Machine, Process, output};
use crate::programs::Programs;
use crate::traffic;
use crate::wait::secs;

pub struct Ours {
    machine: Machine,
    program: PathBuf,
    home: PathBuf,
    authority: Option<Authority>,
    process: Option<Process>,
}

impl Ours {
    pub fn new(programs: &Programs, internet: &Internet) -> Done<Self> {
        let machine = internet.centre.clone();
        let home = machine.home().join("coordinator");
        std::fs::create_dir_all(&home).map_err(|e| e.to_string())?;
        std::fs::write(home.join("derp.json"), Internet::derp_map().to_string()).map_err(|e| e.to_string())?;
        Ok(Self { machine, program: programs.pvemesh.clone(), home, authority: None, process: None })
    }

    fn ask(&self, words: &[&str]) -> Done<Value> {
        let mut command = self.machine.command(&self.program);
        command.args(["--json", "coordinator"]).args(words).arg("--socket").arg(self.home.join("admin.sock"));
        let text = output(&mut command, &format!("pvemesh coordinator {}", words.join(" ")))?;
        serde_json::from_str(&text).map_err(|e| format!("pvemesh coordinator {}: {e}: {text}", words.join(" ")))
    }
}

impl Coordinator for Ours {
    fn which(&self) -> Which {
        Which::Ours
    }

    fn start(&mut self) -> Done {
        let mut command = self.machine.command(&self.program);
        command.args([
            "-v",
            "coordinator",
            "serve",
            "--url",
            &self.url(),
            "--listen",
            &format!("[::]:{PORT}"),
            "--base-domain",
            DOMAIN,
            "--no-relay",
        ]);
        command.arg("--state-dir").arg(self.home.join("state")).arg("--socket").arg(self.home.join("admin.sock"));
        command.arg("--derp-map").arg(self.home.join("derp.json"));
        if let Some(authority) = &self.authority {
            command.arg("--tls-cert").arg(authority.chain()).arg("--tls-key").arg(authority.key());
        }
        let mut process = self.machine.spawn(command, "coordinator")?;
        process.ready("the coordinator listens", secs(20), || traffic::connects(&self.machine, &format!("127.0.0.1:{PORT}")))?;
        self.process = Some(process);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    fn secure(&mut self, authority: &Authority) {
        self.authority = Some(authority.clone());
    }

    fn url(&self) -> String {
        super::url(self.authority.is_some())
    }

    fn key(&self, wish: Wish) -> Done<JoinKey> {
        let mut words = vec!["keys", "create", "--user", USER, "--expires", if wish.brief { "1s" } else { "1h" }];
        if wish.reusable {
            words.push("--reusable");
        }
        if wish.ephemeral {
            words.push("--ephemeral");
        }
        if let Some(tag) = wish.tag {
            words.extend(["--tag", tag]);
        }
        let made = self.ask(&words)?;
        Ok(JoinKey { id: made["id"].as_i64().unwrap_or_default(), text: made["key"].as_str().unwrap_or_default().to_owned() })
    }

    fn revoke(&self, key: &JoinKey) -> Done {
        self.ask(&["keys", "revoke", &key.id.to_string()]).map(drop)
    }

    fn nodes(&self) -> Done<Vec<Listed>> {
        let listed = self.ask(&["nodes", "list"])?;
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let nodes = listed["nodes"].as_array().ok_or("no list of nodes")?;
        Ok(nodes
            .iter()
            .map(|node| Listed {
                id: node["id"].as_i64().unwrap_or_default(),
                name: node["name"].as_str().unwrap_or_default().to_owned(),
                key: node["key"].as_str().unwrap_or_default().to_owned(),
                addresses: texts(&node["addresses"]).iter().filter_map(|a| a.parse().ok()).collect(),
                online: node["online"].as_bool().unwrap_or_default(),
                tags: texts(&node["tags"]),
                advertised: texts(&node["advertised_routes"]),
                approved: texts(&node["approved_routes"]),
                expires: !node["key_expiry"].is_null(),
            })
            .collect())
    }

    fn set_host(&self, name: &str, address: Option<&str>) -> Done {
        let words = match address {
            Some(address) => vec!["dns", "hosts", "add", name, address],
            None => vec!["dns", "hosts", "remove", name],
        };
        self.ask(&words).map(drop)
    }

    fn set_relays(&self, map: &Value) -> Done {
        std::fs::write(self.home.join("derp.json"), map.to_string()).map_err(|e| e.to_string())?;
        self.process.as_ref().ok_or("the coordinator does not run")?.reread();
        Ok(())
    }

    fn admit(&self, url: &str) -> Done {
        let id = url.rsplit('/').next().unwrap_or_default();
        self.ask(&["nodes", "register", id, "--user", USER]).map(drop)
    }

    fn rename(&self, id: i64, name: &str) -> Done {
        self.ask(&["nodes", "rename", &id.to_string(), name]).map(drop)
    }

    fn delete(&self, id: i64) -> Done {
        self.ask(&["nodes", "delete", &id.to_string()]).map(drop)
    }

    fn expire(&self, id: i64) -> Done {
        self.ask(&["nodes", "expire", &id.to_string()]).map(drop)
    }

    fn approve(&self, id: i64, routes: &[&str]) -> Done {
        let id = id.to_string();
        let mut words = vec!["routes", "approve", &id];
        words.extend(routes);
        self.ask(&words).map(drop)
    }

    fn set_policy(&self, rules: &Value) -> Done {
        let path = self.home.join("policy.json");
        std::fs::write(&path, json!({ "acls": rules }).to_string()).map_err(|e| e.to_string())?;
        self.ask(&["policy", "set", &path.display().to_string()]).map(drop)
    }

    fn offline_limit(&self) -> Duration {
        secs(2)
    }
}
