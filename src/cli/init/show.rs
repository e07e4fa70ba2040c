//! `pvemesh init --show`: what is set up, without a secret in it.

use std::path::PathBuf;

use crate::cli::hosts::ways;
use crate::pve::Fingerprint;
use crate::sys::config::{Config, Store};
use crate::sys::pve::Pvesh;

#[derive(serde::Serialize)]
struct Way {
    name: String,
    addresses: Vec<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    cluster_ca: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    fingerprint: Option<Fingerprint>,
}

/// The settings, as shown.
#[derive(serde::Serialize)]
pub(super) struct Shown {
    configuration: PathBuf,
    hosts: Vec<Way>,
    /// Without any of them, this is a Proxmox host on which root needs none.
    on_a_host: bool,
    coordinator: Option<serde_json::Value>,
    join: Option<serde_json::Value>,
}

impl Shown {
    pub(super) fn of(config: &Config, store: &Store) -> Self {
        let hosts = ways(config).into_iter().map(|(name, pve)| Way {
            name,
            addresses: std::iter::once(&pve.url).chain(&pve.also).cloned().collect(),
            user: pve.user.clone(),
            password_file: pve.password_file.clone(),
            token_file: pve.token_file.clone(),
            cluster_ca: pve.cluster_ca.clone(),
            ca_file: pve.ca_file.clone(),
            fingerprint: pve.fingerprint,
        });
        Self {
            configuration: store.directory().join("config.toml"),
            hosts: hosts.collect(),
            on_a_host: Pvesh::is_here(),
            coordinator: config.coordinator.as_ref().and_then(|coordinator| serde_json::to_value(coordinator).ok()),
            join: config.join.as_ref().and_then(|join| serde_json::to_value(join).ok()),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("settings in {}", self.configuration.display());
        for way in &self.hosts {
            text.push_str(&format!("\n{}\n  address      {}", way.name, way.addresses.join(", then ")));
            let file = |label: &str, path: &Option<PathBuf>| path.as_ref().map(|p| format!("\n  {label:<12} {}", p.display()));
            text.extend(way.user.as_ref().map(|user| format!("\n  user         {user}")));
            text.extend(file("password in", &way.password_file));
            text.extend(file("token in", &way.token_file));
            text.extend(file("authority", &way.cluster_ca.clone().or_else(|| way.ca_file.clone())));
            text.extend(way.fingerprint.map(|fingerprint| format!("\n  fingerprint  {fingerprint}")));
        }
        if self.hosts.is_empty() {
            text.push_str(if self.on_a_host {
                "\nnothing set up: on this Proxmox host, root needs no credentials"
            } else {
                "\nnothing set up: pvemesh init --url https://HOST:8006 --user root@pam"
            });
        }
        let field = |value: &Option<serde_json::Value>, key: &str| {
            value.as_ref().and_then(|value| value.get(key)).and_then(|value| value.as_str().map(ToOwned::to_owned))
        };
        text.extend(field(&self.coordinator, "url").map(|url| format!("\ncoordinator    {url}")));
        text.extend(field(&self.join, "login_server").map(|url| format!("\nnew guests join {url}")));
        text
    }
}
