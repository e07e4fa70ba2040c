//! What stands behind the API: real containers (`lxc`), or none at all where a test is about the API alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::guest_config::Config;
use super::schema::Params;
use super::tasks::TaskLog;

/// How a container is asked to end.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// At once.
    Kill,
    /// By its halt signal, within this time.
    Halt(Duration),
}

/// Creates, runs and removes containers.
pub trait Backend: Send + Sync {
    /// Makes the root file system from an archive.
    ///
    /// # Errors
    /// What the task reports.
    fn create(&self, id: u32, config: &Config, archive: &Path, log: &TaskLog) -> Result<(), String>;
    /// Starts a container; `post_stop` is run by whoever notices that it ended.
    ///
    /// # Errors
    /// What the task reports.
    fn start(&self, id: u32, config: &Config, post_stop: Option<&Path>) -> Result<(), String>;
    /// Ends a container; false if it did not within the time.
    fn stop(&self, id: u32, how: Stop) -> bool;
    /// Plugs a device into a running container.
    ///
    /// # Errors
    /// What the call reports.
    fn plug(&self, _id: u32, _device: &Params) -> Result<(), String> {
        Ok(())
    }
    /// Removes the root file system.
    fn destroy(&self, id: u32);
    /// The first process of a running container, as the host counts.
    fn pid(&self, id: u32) -> Option<u32>;
    /// Addresses of a running container's interfaces.
    fn interfaces(&self, id: u32) -> Value;
    /// Bytes of memory in use.
    fn memory(&self, id: u32) -> u64;
    /// Removes every trace of every container.
    fn clear(&self);
}

/// No containers: remembers what should run.
#[derive(Debug, Default)]
pub struct Paper(Mutex<BTreeMap<u32, Option<std::path::PathBuf>>>);

impl Backend for Paper {
    fn create(&self, _id: u32, _config: &Config, archive: &Path, log: &TaskLog) -> Result<(), String> {
        log.line(format!("extracting archive '{}'", archive.display()));
        let bytes = std::fs::metadata(archive).map_err(|e| e.to_string())?.len();
        log.line(format!("Total bytes read: {bytes} (2.1MiB, 76MiB/s)"));
        Ok(())
    }

    fn start(&self, id: u32, _config: &Config, post_stop: Option<&Path>) -> Result<(), String> {
        self.0.lock().unwrap().insert(id, post_stop.map(Path::to_owned));
        Ok(())
    }

    fn stop(&self, id: u32, _how: Stop) -> bool {
        if let Some(Some(script)) = self.0.lock().unwrap().remove(&id) {
            std::thread::spawn(move || {
                std::process::Command::new(script).arg(id.to_string()).arg("post-stop").stdout(std::process::Stdio::null()).status()
            });
        }
        true
    }

    fn destroy(&self, id: u32) {
        self.stop(id, Stop::Kill);
    }

    fn pid(&self, id: u32) -> Option<u32> {
        self.0.lock().unwrap().contains_key(&id).then_some(10_000 + id)
    }

    fn interfaces(&self, _id: u32) -> Value {
        let address = json!({ "ip-address": "127.0.0.1", "ip-address-type": "inet", "prefix": "8" });
        json!([{ "name": "lo", "hwaddr": "00:00:00:00:00:00", "hardware-address": "00:00:00:00:00:00", "inet": "127.0.0.1/8", "inet6": "::1/128",
                 "ip-addresses": [address] }])
    }

    fn memory(&self, _id: u32) -> u64 {
        884_736
    }

    fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}
