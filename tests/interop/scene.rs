//! What a row plays with: a stage's internet, its coordinator, its machines and the members on them.

use std::path::Path;

use crate::Done;
use crate::coordinator::{self, Coordinator, Which, Wish};
use crate::internet::Internet;
use crate::machine::Machine;
use crate::member::{self, JOIN_LIMIT, Join, Kind, Member, Peer};
use crate::programs::Programs;
use crate::wait::{secs, until};

/// A column of the matrix: who plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    pub clients: Clients,
    pub coordinator: Which,
}

/// The clients of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Our node alone.
    Ours,
    /// Stock tailscaled alone.
    Stock,
    /// Our node, and stock tailscaled as its peer.
    Mixed,
    /// tailscale-rs, and stock tailscaled as its peer.
    Rust,
}

impl Cast {
    /// The columns, in the order they are shown.
    pub const ALL: [Self; 8] = {
        use Clients::{Mixed, Ours, Rust, Stock};
        const fn cast(clients: Clients, coordinator: Which) -> Cast {
            Cast { clients, coordinator }
        }
        [
            cast(Ours, Which::Ours),
            cast(Stock, Which::Ours),
            cast(Mixed, Which::Ours),
            cast(Rust, Which::Ours),
            cast(Ours, Which::Headscale),
            cast(Mixed, Which::Headscale),
            cast(Stock, Which::Headscale),
            cast(Rust, Which::Headscale),
        ]
    };

    pub fn name(&self) -> String {
        format!("{} on {}", self.clients_name(), self.coordinator_name())
    }

    pub fn clients_name(&self) -> &'static str {
        match self.clients {
            Clients::Ours => "our node",
            Clients::Stock => "tailscaled",
            Clients::Mixed => "our node + tailscaled",
            Clients::Rust => "tailscale-rs",
        }
    }

    pub fn coordinator_name(&self) -> &'static str {
        match self.coordinator {
            Which::Ours => "our coordinator",
            Which::Headscale => "Headscale",
        }
    }

    /// Nothing of ours takes part: what is seen there is how things are.
    pub fn reference(&self) -> bool {
        self.coordinator == Which::Headscale && matches!(self.clients, Clients::Stock | Clients::Rust)
    }

    /// The program of the n-th machine.
    pub fn kind(&self, n: usize) -> Kind {
        match self.clients {
            Clients::Ours => Kind::Ours,
            Clients::Mixed if n.is_multiple_of(2) => Kind::Ours,
            Clients::Stock | Clients::Rust | Clients::Mixed => Kind::Stock,
        }
    }
}

/// What a row found: it holds, with a figure perhaps; or it could not be seen, and why.
#[derive(Debug, Clone)]
pub enum Seen {
    Holds(String),
    #[allow(dead_code, reason = "at this moment every row can be played everywhere")]
    Skipped(String),
}

/// A row's end; the error is what was seen instead.
pub type Outcome = Done<Seen>;

/// It holds, and there is nothing to add.
pub fn holds() -> Outcome {
    Ok(Seen::Holds(String::new()))
}

/// It holds; this is worth showing.
pub fn with(note: impl Into<String>) -> Outcome {
    Ok(Seen::Holds(note.into()))
}

/// Fails with what was seen unless something holds.
#[macro_export]
macro_rules! see {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

pub struct Scene {
    pub cast: Cast,
    pub programs: Programs,
    pub internet: Internet,
    pub coordinator: Box<dyn Coordinator>,
    /// By how much each machine's clock is wrong; to be said before the machine is first asked for.
    pub offsets: [&'static str; 4],
    /// Which of our nodes do without a TUN; to be said before, too.
    pub userspace: [bool; 4],
    /// Members by the order of their machines: alpha, beta, gamma, delta ...
    members: Vec<Box<dyn Member>>,
}

/// The names of the machines.
pub const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

impl Scene {
    /// Internet and coordinator, started.
    pub fn new(cast: Cast, programs: &Programs, stage: &str, home: &Path) -> Done<Self> {
        let internet = Internet::new(programs, stage, home)?;
        let mut coordinator = coordinator::new(cast.coordinator, programs, &internet)?;
        coordinator.start()?;
        Ok(Self { cast, programs: programs.clone(), internet, coordinator, offsets: [""; 4], userspace: [false; 4], members: Vec::new() })
    }

    /// The n-th member; its machine is made when it is first asked for, and its daemon runs.
    pub fn member(&mut self, n: usize) -> Done<&mut Box<dyn Member>> {
        while self.members.len() <= n {
            let machine = self.internet.client(NAMES[self.members.len()])?;
            crate::traffic::echo(&machine)?;
            let n = self.members.len();
            let mut member = member::new(self.cast.kind(n), &self.programs, &machine, self.offsets[n], self.userspace[n]);
            member.start()?;
            self.members.push(member);
        }
        self.members[n].start()?;
        Ok(&mut self.members[n])
    }

    /// The n-th member, which is there.
    pub fn at(&self, n: usize) -> Done<&dyn Member> {
        self.members.get(n).map(AsRef::as_ref).ok_or_else(|| format!("there is no {} yet", NAMES[n]))
    }

    pub fn machine(&self, n: usize) -> Done<Machine> {
        Ok(self.at(n)?.machine().clone())
    }

    /// The n-th member, joined and running under its machine's name.
    pub fn joined(&mut self, n: usize) -> Done<&mut Box<dyn Member>> {
        let running = self.member(n)?.running()?;
        if !running {
            let key = self.coordinator.any_key()?;
            self.join(n, &key.text, &[])?;
        }
        self.member(n)
    }

    /// Joins by a key; an error is what the client showed its user.
    pub fn join(&mut self, n: usize, key: &str, flags: &[&str]) -> Done {
        let url = self.coordinator.url();
        let name = format!("--hostname={}", NAMES[n]);
        let flags: Vec<&str> = std::iter::once(name.as_str()).chain(flags.iter().copied()).collect();
        let member = self.member(n)?;
        member.up(&Join { url: &url, key: Some(key), flags: &flags })?;
        member.becomes("Running", JOIN_LIMIT).map(drop)
    }

    /// Waits until two joined members see each other online.
    pub fn acquainted(&mut self, a: usize, b: usize) -> Done {
        self.joined(a)?;
        self.joined(b)?;
        for (one, other) in [(a, b), (b, a)] {
            let member = self.at(one)?;
            until(&format!("{} sees {} online", NAMES[one], NAMES[other]), secs(10), || {
                let status = member.status()?;
                Ok(status.find(NAMES[other]).is_some_and(|peer| peer.online))
            })?;
        }
        Ok(())
    }

    /// A peer as another member sees it.
    pub fn seen(&self, by: usize, peer: usize) -> Done<Peer> {
        self.at(by)?.status()?.peer(NAMES[peer]).cloned()
    }

    /// Brings a member back to where it had never joined: daemon ended, state gone, daemon started.
    pub fn afresh(&mut self, n: usize) -> Done {
        let member = self.member(n)?;
        member.stop();
        let _ = std::fs::remove_dir_all(member.state_dir());
        member.start()
    }

    /// Ends a member's daemon and starts it by the right clock.
    pub fn put_right(&mut self, n: usize) -> Done {
        let machine = self.machine(n)?;
        self.members[n].stop();
        self.members[n] = member::new(self.cast.kind(n), &self.programs, &machine, "", self.userspace[n]);
        self.member(n).map(drop)
    }

    /// A single-use key with nothing special.
    pub fn single_use_key(&self) -> Done<String> {
        Ok(self.coordinator.key(Wish::default())?.text)
    }
}
