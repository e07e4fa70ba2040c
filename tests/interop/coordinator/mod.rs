//! The coordinators: ours and Headscale behind one set of requests, each made through the program's own command line.

mod headscale;
mod ours;

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::Done;
use crate::authority::Authority;
use crate::internet::Internet;
use crate::programs::Programs;

/// Which coordinator a stage has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Ours,
    Headscale,
}

/// Who owns the nodes.
pub const USER: &str = "admin";
/// Where clients reach the coordinator.
pub const PORT: u16 = 8080;
/// The suffix of names.
pub const DOMAIN: &str = "mesh.internal";

/// A join key that is wished for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    pub reusable: bool,
    pub ephemeral: bool,
    pub tag: Option<&'static str>,
    /// Valid for a moment only.
    pub brief: bool,
}

#[derive(Debug, Clone)]
pub struct JoinKey {
    pub id: i64,
    pub text: String,
}

/// A node as the coordinator lists it.
#[derive(Debug, Clone)]
pub struct Listed {
    pub id: i64,
    pub name: String,
    pub key: String,
    pub addresses: Vec<IpAddr>,
    pub online: bool,
    pub tags: Vec<String>,
    pub advertised: Vec<String>,
    pub approved: Vec<String>,
    pub expires: bool,
}

pub trait Coordinator: Send + Sync {
    fn which(&self) -> Which;
    fn start(&mut self) -> Done;
    fn stop(&mut self);
    /// From the next start on it speaks TLS, by the authority's certificate.
    fn secure(&mut self, authority: &Authority);
    fn url(&self) -> String;
    fn key(&self, wish: Wish) -> Done<JoinKey>;
    fn revoke(&self, key: &JoinKey) -> Done;
    fn nodes(&self) -> Done<Vec<Listed>>;
    /// Lets a node in that shows this URL.
    fn admit(&self, url: &str) -> Done;
    fn rename(&self, id: i64, name: &str) -> Done;
    fn delete(&self, id: i64) -> Done;
    fn expire(&self, id: i64) -> Done;
    fn approve(&self, id: i64, routes: &[&str]) -> Done;
    /// From now on clients are told of these relays and no others.
    fn set_relays(&self, map: &Value) -> Done;
    /// Puts these access rules (`acls`) in force.
    fn set_policy(&self, rules: &Value) -> Done;

    /// Gives a machine without a client a name, or takes it away; what only our coordinator can be told while it runs.
    fn set_host(&self, name: &str, _address: Option<&str>) -> Done {
        Err(format!("this coordinator is not told of {name} by a command"))
    }

    /// How long it may take until peers know that a node whose stream ended is offline.
    fn offline_limit(&self) -> Duration;

    /// A reusable key.
    fn any_key(&self) -> Done<JoinKey> {
        self.key(Wish { reusable: true, ..Wish::default() })
    }

    fn node(&self, name: &str) -> Done<Listed> {
        let nodes = self.nodes()?;
        let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
        nodes.into_iter().find(|n| n.name == name).ok_or_else(|| format!("the coordinator lists no {name}, but {names:?}"))
    }
}

/// Where clients find a coordinator.
fn url(secure: bool) -> String {
    format!("{}://{}:{PORT}", if secure { "https" } else { "http" }, crate::internet::CENTRE)
}

/// A coordinator on the internet's centre, not started.
pub fn new(which: Which, programs: &Programs, internet: &Internet) -> Done<Box<dyn Coordinator>> {
    Ok(match which {
        Which::Ours => Box::new(ours::Ours::new(programs, internet)?),
        Which::Headscale => Box::new(headscale::Headscale::new(programs, internet)?),
    })
}
