//! Hosts and what they have: storages, bridges, volumes.

use serde_json::Value;

use super::{ReplyError, flag, list, number, parsed, text};
use crate::pve::machine::StorageDefinition;
use crate::pve::{HostName, StorageId, VolumeId};

/// A machine of the cluster, from `GET /nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Whether the cluster sees it.
    pub online: bool,
}

/// Reads `GET /nodes`.
///
/// # Errors
/// If it is no list.
pub fn hosts(value: &Value) -> Result<Vec<Host>, ReplyError> {
    list(value, "the nodes", |item| {
        Some(Host { name: parsed(item.get("node"))?, online: text(item.get("status")).is_none_or(|status| status == "online") })
    })
}

/// A storage as one host sees it, from `GET /nodes/N/storage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Its name.
    pub name: StorageId,
    /// What it may hold, as in `rootdir`, `vztmpl`.
    pub content: Vec<String>,
    /// Reachable and enabled.
    pub usable: bool,
    /// The same storage on several hosts.
    pub shared: bool,
    /// Free bytes, where known.
    pub available: Option<u64>,
}

impl Storage {
    /// Whether it may hold this kind of content.
    pub fn holds(&self, content: &str) -> bool {
        self.content.iter().any(|c| c == content)
    }
}

/// Reads `GET /nodes/N/storage`.
///
/// # Errors
/// If it is no list.
pub fn storages(value: &Value) -> Result<Vec<Storage>, ReplyError> {
    list(value, "the storages", |item| {
        Some(Storage {
            name: parsed(item.get("storage"))?,
            content: text(item.get("content"))?.split(',').map(|c| c.trim().to_owned()).collect(),
            usable: flag(item.get("active"), true) && flag(item.get("enabled"), true),
            shared: flag(item.get("shared"), false),
            available: number(item.get("avail")),
        })
    })
}

/// Reads `GET /storage`.
pub(in crate::pve) fn definitions(value: &Value) -> Result<Vec<StorageDefinition>, ReplyError> {
    list(value, "the storages", |item| {
        let kind = text(item.get("type")).unwrap_or_default();
        let networked = matches!(kind.as_str(), "nfs" | "cifs" | "cephfs" | "glusterfs");
        Some(StorageDefinition {
            name: parsed(item.get("storage"))?,
            path: text(item.get("path")).map(Into::into),
            content: text(item.get("content")).unwrap_or_default().split(',').map(|c| c.trim().to_owned()).collect(),
            shared: flag(item.get("shared"), networked),
            limited: text(item.get("nodes")).is_some_and(|nodes| !nodes.is_empty()),
            enabled: !flag(item.get("disable"), false),
            kind,
        })
    })
}

/// A bridge of a host, from `GET /nodes/N/network?type=any_bridge`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Up.
    pub active: bool,
    /// The host's own address on it, with prefix length.
    pub address: Option<ipnet::IpNet>,
    /// The host's default gateway lies behind it.
    pub has_gateway: bool,
}

/// Reads `GET /nodes/N/network`.
///
/// # Errors
/// If it is no list.
pub fn bridges(value: &Value) -> Result<Vec<Bridge>, ReplyError> {
    list(value, "the bridges", |item| {
        Some(Bridge {
            name: text(item.get("iface"))?,
            active: flag(item.get("active"), false),
            address: parsed(item.get("cidr")),
            has_gateway: text(item.get("gateway")).is_some(),
        })
    })
}

/// A volume on a storage, from `GET /nodes/N/storage/S/content`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its size in bytes, where known.
    pub size: Option<u64>,
}

/// Reads `GET /nodes/N/storage/S/content`; volumes with names that pvemesh would never give are passed over.
///
/// # Errors
/// If it is no list.
pub fn volumes(value: &Value) -> Result<Vec<Volume>, ReplyError> {
    list(value, "the content of a storage", |item| Some(Volume { id: parsed(item.get("volid"))?, size: number(item.get("size")) }))
}
