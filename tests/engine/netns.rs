//! Two machines in one process: threads in network namespaces of their own, joined by a veth pair.
//!
//! The namespaces have no name and die with their threads, so nothing is left behind, however a test ends.

use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce() + Send>;

/// A thread in its own network namespace that runs what it is given.
pub struct Machine {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    tid: i32,
}

/// Runs `ip` in the namespace of the calling thread.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Machine {
    pub fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (told, tid) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            enter_namespace();
            ip("link set lo up");
            told.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            for job in queue {
                job();
            }
        });
        let tid = tid.recv().expect("a network namespace can be made");
        Self { jobs: Some(jobs), thread: Some(thread), tid }
    }

    /// Runs something in the machine and waits for its result.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.start(move || {
            let _ = done.send(job());
        });
        result.recv().expect("the job did not panic")
    }

    /// Runs something in the machine while the caller goes on; jobs of one machine run one after the other.
    pub fn start(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
    }

    /// What `ip link ... netns` and `nsenter` know it by.
    #[allow(dead_code, reason = "not every test program needs it")]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    pub fn ip(&self, arguments: &str) {
        let arguments = arguments.to_owned();
        self.run(move || ip(&arguments));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().unwrap().join();
    }
}

#[allow(deprecated, reason = "the unsafe replacement is about shared file descriptor tables, which a new network namespace leaves alone")]
fn enter_namespace() {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("root may make a network namespace");
}

#[allow(dead_code, reason = "not every test program needs it")]
/// Two machines with 192.0.2.1 and 192.0.2.2 (and fd00::1, fd00::2) on a cable between them.
pub fn pair() -> (Machine, Machine) {
    let (a, b) = (Machine::new(), Machine::new());
    a.ip(&format!("link add data-a type veth peer name data-b netns {}", b.tid));
    for (machine, end, n) in [(&a, "data-a", 1), (&b, "data-b", 2)] {
        machine.ip(&format!("addr add 192.0.2.{n}/24 dev {end}"));
        machine.ip(&format!("addr add fd00::{n}/64 dev {end} nodad"));
        machine.ip(&format!("link set {end} up"));
    }
    (a, b)
}

/// Waits until something holds, at most so long.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Why these tests cannot run here, if they cannot.
pub fn lacking() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("needs /dev/net/tun");
    }
    None
}
