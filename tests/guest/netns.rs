//! Network namespaces for tests: made, entered and removed here.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Whether the test can run; says why not otherwise.
pub(crate) fn root() -> bool {
    let root =
        rustix::process::geteuid().is_root() && Command::new("ip").args(["netns", "list"]).output().is_ok_and(|out| out.status.success());
    if !root {
        println!("skipped: needs root and iproute2");
    }
    root
}

/// Whether a program is installed; says so otherwise.
pub(crate) fn has(program: &str) -> bool {
    let found = std::env::split_paths("/usr/sbin:/usr/bin:/sbin:/bin").any(|dir| dir.join(program).exists());
    if !found {
        println!("skipped: needs `{program}`");
    }
    found
}

/// Polls until the condition holds, for at most the given seconds.
pub(crate) fn wait_for<T>(what: &str, seconds: u64, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited {seconds} s for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Compares two dumps line by line and shows what differs.
pub(crate) fn assert_same(before: &str, after: &str) {
    let gone: Vec<&str> = before.lines().filter(|line| !after.lines().any(|other| other == *line)).collect();
    let new: Vec<&str> = after.lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
    assert!(gone.is_empty() && new.is_empty() && before.lines().count() == after.lines().count(), "gone: {gone:#?}\nnew: {new:#?}");
}

/// A network namespace, removed on drop.
pub(crate) struct Netns {
    pub(crate) name: String,
}

impl Netns {
    pub(crate) fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("guest-{}-{}-{what}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let netns = Self { name };
        // Without duplicate address detection nothing changes by itself after the set-up.
        netns.run("ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
        netns
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a shell command inside; its output, whatever its status.
    pub(crate) fn try_run(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).output().unwrap()
    }

    /// Runs a shell command inside that must succeed; its standard output.
    pub(crate) fn run(&self, line: &str) -> String {
        let out = self.try_run(line);
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs code on a thread inside, with a tokio runtime of its own.
    pub(crate) fn enter<T: Send>(&self, code: impl AsyncFnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
                use std::os::fd::AsFd as _;
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(code())
            });
            thread.join().unwrap()
        })
    }

    /// Everything the router may change, as text.
    pub(crate) fn dump(&self) -> String {
        self.run(
            "ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all | grep -v '^multicast\\|^ff00'; ip addr; nft list ruleset; \
             for f in $(find /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf /proc/sys/net/ipv4/ip_forward -type f | sort); do \
             case $f in *stable_secret|*mtu) ;; *) echo $f $(cat $f);; esac; done",
        )
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for pid in Command::new("ip")
            .args(["netns", "pids", &self.name])
            .output()
            .map(|out| out.stdout)
            .into_iter()
            .flat_map(|out| String::from_utf8_lossy(&out).split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}
