//! Headscale, by its own commands.

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

pub struct Headscale {
    machine: Machine,
    program: PathBuf,
    home: PathBuf,
    authority: Option<Authority>,
    process: Option<Process>,
}

impl Headscale {
    pub fn new(programs: &Programs, internet: &Internet) -> Done<Self> {
        let machine = internet.centre.clone();
        let home = machine.home().join("headscale");
        std::fs::create_dir_all(&home).map_err(|e| e.to_string())?;
        let this = Self { machine, program: programs.headscale.clone(), home, authority: None, process: None };
        let write = |name: &str, text: String| std::fs::write(this.home.join(name), text).map_err(|e| e.to_string());
        // Their YAML names the fields of the map in lower case. JSON is YAML, but for keys that are numbers.
        let regions = lower_keys(&Internet::derp_map()["Regions"]);
        let lines = regions.as_object().into_iter().flatten().map(|(id, region)| format!("  {id}: {region}\n"));
        write("derp.yaml", format!("regions:\n{}", lines.collect::<String>()))?;
        Ok(this)
    }

    fn configuration(&self) -> Value {
        let file = |name: &str| self.home.join(name).display().to_string();
        json!({
            "server_url": self.url(),
            "listen_addr": format!("[::]:{PORT}"),
            "metrics_listen_addr": "127.0.0.1:9090",
            "grpc_listen_addr": "127.0.0.1:50443",
            "noise": { "private_key_path": file("noise.key") },
            "prefixes": { "v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential" },
            "derp": { "server": { "enabled": false }, "urls": [], "paths": [file("derp.yaml")], "auto_update_enabled": false },
            "disable_check_updates": true,
            "database": { "type": "sqlite", "sqlite": { "path": file("db.sqlite"), "write_ahead_log": true } },
            "log": { "level": "info", "format": "text" },
            "policy": { "mode": "database" },
            "dns": { "magic_dns": true, "base_domain": DOMAIN, "override_local_dns": false, "nameservers": { "global": [] } },
            "unix_socket": file("headscale.sock"),
            "logtail": { "enabled": false },
            "tls_cert_path": self.authority.as_ref().map(|a| a.chain().display().to_string()).unwrap_or_default(),
            "tls_key_path": self.authority.as_ref().map(|a| a.key().display().to_string()).unwrap_or_default(),
        })
    }

    fn tell(&self, words: &[&str]) -> Done<String> {
        let mut command = self.machine.command(&self.program);
        command.args(["-o", "json", "--force", "-c"]).arg(self.home.join("config.yaml")).args(words);
        output(&mut command, &format!("headscale {}", words.join(" ")))
    }

    fn ask(&self, words: &[&str]) -> Done<Value> {
        let text = self.tell(words)?;
        serde_json::from_str(&text).map_err(|e| format!("headscale {}: {e}: {text}", words.join(" ")))
    }
}

fn lower_keys(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.iter().map(|(k, v)| (k.to_lowercase(), lower_keys(v))).collect()),
        Value::Array(list) => Value::Array(list.iter().map(lower_keys).collect()),
        other => other.clone(),
    }
}

impl Coordinator for Headscale {
    fn which(&self) -> Which {
        Which::Headscale
    }

    fn start(&mut self) -> Done {
        std::fs::write(self.home.join("config.yaml"), self.configuration().to_string()).map_err(|e| e.to_string())?;
        let mut command = self.machine.command(&self.program);
        command.arg("serve").arg("-c").arg(self.home.join("config.yaml"));
        let mut process = self.machine.spawn(command, "headscale")?;
        let there = || Ok(self.home.join("headscale.sock").exists() && traffic::connects(&self.machine, &format!("127.0.0.1:{PORT}"))?);
        process.ready("Headscale listens", secs(30), there)?;
        self.process = Some(process);
        let known = self.ask(&["users", "list"])?;
        if known.as_array().is_none_or(Vec::is_empty) {
            self.ask(&["users", "create", USER])?;
            self.put_in_force(&json!({
                "tagOwners": { "tag:server": [format!("{USER}@")] },
                "grants": [{ "src": ["*"], "dst": ["*"], "ip": ["*"] }],
            }))?;
        }
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
        let mut words = vec!["preauthkeys", "create", "-u", "1", "-e", if wish.brief { "1s" } else { "1h" }];
        if wish.reusable {
            words.push("--reusable");
        }
        if wish.ephemeral {
            words.push("--ephemeral");
        }
        if let Some(tag) = wish.tag {
            words.extend(["--tags", tag]);
        }
        let made = self.ask(&words)?;
        Ok(JoinKey { id: made["id"].as_i64().unwrap_or_default(), text: made["key"].as_str().unwrap_or_default().to_owned() })
    }

    fn revoke(&self, key: &JoinKey) -> Done {
        self.tell(&["preauthkeys", "expire", "-i", &key.id.to_string()]).map(drop)
    }

    fn nodes(&self) -> Done<Vec<Listed>> {
        let listed = self.ask(&["nodes", "list"])?;
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        Ok(listed
            .as_array()
            .into_iter()
            .flatten()
            .map(|node| Listed {
                id: node["id"].as_i64().unwrap_or_default(),
                name: node["given_name"].as_str().unwrap_or_default().to_owned(),
                key: node["node_key"].as_str().unwrap_or_default().to_owned(),
                addresses: texts(&node["ip_addresses"]).iter().filter_map(|a| a.parse().ok()).collect(),
                online: node["online"].as_bool().unwrap_or_default(),
                tags: texts(&node["tags"]),
                advertised: texts(&node["available_routes"]),
                approved: texts(&node["approved_routes"]),
                expires: !node["expiry"].is_null(),
            })
            .collect())
    }

    fn set_relays(&self, _map: &Value) -> Done {
        Err("no row changes the relays of Headscale".to_owned())
    }

    fn admit(&self, url: &str) -> Done {
        let id = url.rsplit('/').next().unwrap_or_default();
        self.tell(&["auth", "register", "--auth-id", id, "--user", USER]).map(drop)
    }

    fn rename(&self, id: i64, name: &str) -> Done {
        self.tell(&["nodes", "rename", "-i", &id.to_string(), name]).map(drop)
    }

    fn delete(&self, id: i64) -> Done {
        self.tell(&["nodes", "delete", "-i", &id.to_string()]).map(drop)
    }

    fn expire(&self, id: i64) -> Done {
        self.tell(&["nodes", "expire", "-i", &id.to_string()]).map(drop)
    }

    fn approve(&self, id: i64, routes: &[&str]) -> Done {
        self.tell(&["nodes", "approve-routes", "-i", &id.to_string(), "-r", &routes.join(",")]).map(drop)
    }

    /// Its own grace is ten seconds, and it looks every second.
    fn set_policy(&self, rules: &Value) -> Done {
        self.put_in_force(&json!({ "acls": rules }))
    }

    fn offline_limit(&self) -> Duration {
        secs(15)
    }
}

impl Headscale {
    fn put_in_force(&self, policy: &Value) -> Done {
        let path = self.home.join("policy.json");
        std::fs::write(&path, policy.to_string()).map_err(|e| e.to_string())?;
        self.tell(&["policy", "set", "--file", &path.display().to_string()]).map(drop)
    }
}
