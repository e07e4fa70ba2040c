//! Upgrades of a guest on paper: what it is told, in which order, and what becomes of it.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::super::inside::{Push, Ran};
use super::super::mesh::MeshError;
use super::super::{CallError, Upload};
use super::*;
use crate::ident::MachinePublic;
use crate::plan::guest::{NodeFacts, ProgramFacts};
use crate::pve::{Principal, Request, Upid};

/// How the new program behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum New {
    Well,
    /// It runs, and its node does not answer.
    Idle,
    /// It does not even say its version.
    Mute,
    /// It takes the way in with it.
    CutsOff,
}

/// A guest on paper.
struct Paper {
    new: New,
    told: Mutex<Vec<String>>,
    on_trial: Mutex<bool>,
    installed: Mutex<String>,
}

impl Paper {
    fn new(new: New) -> Self {
        Self { new, told: Mutex::default(), on_trial: Mutex::new(false), installed: Mutex::new("old".to_owned()) }
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    fn facts(&self) -> GuestFacts {
        let trial = *self.on_trial.lock().unwrap();
        let installed = self.installed.lock().unwrap().clone();
        let node = NodeFacts {
            state: "Running".to_owned(),
            coordinator_online: true,
            addresses: vec!["100.64.0.1".parse().unwrap()],
            ..NodeFacts::default()
        };
        GuestFacts {
            machine: "x86_64".to_owned(),
            program: ProgramFacts {
                running: if trial { "new".to_owned() } else { installed.clone() },
                installed,
                trial,
                path: "/sbin/init".to_owned(),
            },
            node: (!(trial && self.new == New::Idle)).then_some(node),
            node_trouble: "nothing listens".to_owned(),
            ..GuestFacts::default()
        }
    }
}

fn ran(code: i32, output: Vec<u8>, errors: &str) -> Ran {
    Ran { code: Some(code), output, errors: errors.to_owned() }
}

impl Inside for Paper {
    fn run<'a>(&'a self, _vmid: Vmid, run: &'a Run) -> BoxFuture<'a, Result<Ran, InsideError>> {
        Box::pin(async move {
            let words: Vec<&str> = run.argv.iter().skip(1).map(String::as_str).collect();
            let cut = self.new == New::CutsOff && *self.on_trial.lock().unwrap();
            if cut && words != ["inside", "trial", "abort"] {
                return Err(InsideError::NoWay { place: "paper".to_owned(), why: "connection lost".to_owned() });
            }
            match words.as_slice() {
                ["node", "self-check"] => return Ok(ran(0, serde_json::to_vec(&self.facts()).unwrap(), "")),
                ["inside", "trial", "begin", ..] if self.new == New::Mute => {
                    self.told.lock().unwrap().push("begin".to_owned());
                    return Ok(ran(1, Vec::new(), "the new program does not run here"));
                }
                ["inside", "trial", verb, ..] => {
                    self.told.lock().unwrap().push((*verb).to_owned());
                    *self.on_trial.lock().unwrap() = *verb == "begin";
                    if *verb == "confirm" {
                        "new".clone_into(&mut self.installed.lock().unwrap());
                    }
                }
                ["inside", verb, ..] => self.told.lock().unwrap().push((*verb).to_owned()),
                _ => {}
            }
            Ok(ran(0, Vec::new(), ""))
        })
    }

    fn follow<'a>(
        &'a self,
        _: Vmid,
        _: &'a [String],
        _: &'a mut (dyn FnMut(&[u8]) + Send),
    ) -> BoxFuture<'a, Result<Option<i32>, InsideError>> {
        Box::pin(async { Ok(Some(0)) })
    }

    fn push<'a>(&'a self, _: Vmid, push: &'a Push) -> BoxFuture<'a, Result<(), InsideError>> {
        self.told.lock().unwrap().push(format!("push {} {:o}", push.to, push.mode));
        Box::pin(async { Ok(()) })
    }

    fn pull<'a>(&'a self, _: Vmid, _: &'a str, _: usize) -> BoxFuture<'a, Result<Option<Zeroizing<Vec<u8>>>, InsideError>> {
        Box::pin(async { Ok(None) })
    }

    fn host_file<'a>(&'a self, _: &'a str, _: usize) -> BoxFuture<'a, Result<Option<String>, InsideError>> {
        Box::pin(async { Ok(None) })
    }

    fn host_has<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<bool, InsideError>> {
        Box::pin(async { Ok(true) })
    }

    fn place(&self) -> String {
        "paper".to_owned()
    }
}

struct Api;

impl Executor for Api {
    fn call<'a>(&'a self, _: &'a Request) -> BoxFuture<'a, Result<Value, CallError>> {
        Box::pin(async { Ok(json!([{ "name": "eth0", "inet": "192.168.1.5/24" }])) })
    }

    fn upload<'a>(&'a self, _: &'a Upload) -> BoxFuture<'a, Result<Upid, CallError>> {
        Box::pin(async { Err(CallError::Setup("nothing is uploaded".to_owned())) })
    }

    fn principal(&self) -> Principal {
        Principal::RootHost
    }

    fn place(&self) -> String {
        "paper".to_owned()
    }
}

struct NoDoor;

impl Door for NoDoor {
    fn open<'a>(&'a self, _: &'a str, _: Option<MachinePublic>) -> BoxFuture<'a, Result<Box<dyn Mesh>, MeshError>> {
        Box::pin(async { Err(MeshError("nobody".to_owned())) })
    }

    fn meet_relay<'a>(&'a self, _: SocketAddr, _: &'a str) -> BoxFuture<'a, Result<String, MeshError>> {
        Box::pin(async { Err(MeshError("nobody".to_owned())) })
    }
}

fn upgrade(paper: &Paper, machine: &str) -> Result<Fate, InsideError> {
    let guest = Upgraded {
        vmid: "101".parse().unwrap(),
        host: "pve".parse().unwrap(),
        name: "exit-1".parse().unwrap(),
        role: "exit-node".to_owned(),
        program: "/sbin/init".to_owned(),
        service: Service::Appliance,
    };
    let new = NewProgram { path: "/nowhere/new".into(), sha256: "new".to_owned(), machine: machine.to_owned() };
    let upgrader = Upgrader { executor: &Api, inside: paper, door: &NoDoor, mesh: None, known: None, ping: None, seconds: 10 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), upgrader.upgrade(&guest, &new)).await.unwrap() })
}

#[test]
fn a_program_that_is_well_is_kept_and_one_that_is_there_already_is_left() {
    let paper = Paper::new(New::Well);
    assert_eq!(upgrade(&paper, "x86_64").unwrap(), Fate::New);
    assert_eq!(paper.told(), ["push /sbin/init.new 755", "begin", "confirm"]);
    assert_eq!(upgrade(&paper, "x86_64").unwrap(), Fate::Same);
    assert_eq!(paper.told().len(), 3);
}

#[test]
fn a_program_whose_node_does_not_answer_is_taken_back() {
    let paper = Paper::new(New::Idle);
    assert_eq!(upgrade(&paper, "x86_64").unwrap(), Fate::Back("its node does not answer: nothing listens".to_owned()));
    assert_eq!(paper.told(), ["push /sbin/init.new 755", "begin", "abort"]);
    assert_eq!(paper.facts().program.running, "old");
}

#[test]
fn a_way_in_that_is_lost_ends_with_the_old_program() {
    let paper = Paper::new(New::CutsOff);
    assert!(matches!(upgrade(&paper, "x86_64").unwrap(), Fate::Back(why) if why.contains("connection lost")));
}

#[test]
fn what_does_not_run_there_changes_nothing() {
    let paper = Paper::new(New::Mute);
    assert!(upgrade(&paper, "x86_64").unwrap_err().to_string().contains("does not run here"));
    assert_eq!(paper.told(), ["push /sbin/init.new 755", "begin", "remove"]);
    let paper = Paper::new(New::Well);
    assert!(upgrade(&paper, "aarch64").unwrap_err().to_string().contains("it is for aarch64"));
    assert_eq!(paper.told(), Vec::<String>::new());
}

#[test]
fn a_trial_that_an_ended_run_left_is_ended_first() {
    let paper = Paper::new(New::Well);
    *paper.on_trial.lock().unwrap() = true;
    assert_eq!(upgrade(&paper, "x86_64").unwrap(), Fate::New);
    assert_eq!(paper.told(), ["abort", "push /sbin/init.new 755", "begin", "confirm"]);
}
