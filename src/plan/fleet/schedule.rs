//! Which guest of a fleet is worked on when: bounded in all and on each host, one at a time where two would cut somebody off, and none
//! begun any more once one has failed.

use crate::ident::Vmid;
use crate::pve::HostName;

/// One guest to be worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Which of the hosts or clusters, by its number among them.
    pub site: usize,
    /// The guest.
    pub vmid: Vmid,
    /// The host that does the work.
    pub host: HostName,
    /// Jobs with the same word here never run at once: routers of one network, of which one has to carry it at any time.
    pub alone_among: Option<String>,
}

/// How much is done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all; at least 1.
    pub in_all: usize,
    /// On one host; at least 1. A host has three workers for its API and one disk.
    pub per_host: usize,
}

/// What to do once one has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// Begin nothing more; what runs comes to its end.
    Stop,
    /// Go on with the others.
    GoOn,
}

/// The jobs not yet done, in their order.
#[derive(Debug)]
pub struct Schedule {
    waiting: Vec<Job>,
    running: Vec<Job>,
    limits: Limits,
    after_failure: AfterFailure,
    stopped: bool,
}

impl Schedule {
    /// These jobs, in this order of preference.
    pub fn new(jobs: Vec<Job>, limits: Limits, after_failure: AfterFailure) -> Self {
        let limits = Limits { in_all: limits.in_all.max(1), per_host: limits.per_host.max(1) };
        Self { waiting: jobs, running: Vec::new(), limits, after_failure, stopped: false }
    }

    /// The next job that may begin now; call again until there is none.
    pub fn poll_job(&mut self) -> Option<Job> {
        if self.stopped || self.running.len() >= self.limits.in_all {
            return None;
        }
        let at = self.waiting.iter().position(|job| self.may_begin(job))?;
        let job = self.waiting.remove(at);
        self.running.push(job.clone());
        Some(job)
    }

    fn may_begin(&self, job: &Job) -> bool {
        let here = self.running.iter().filter(|other| (other.site, &other.host) == (job.site, &job.host)).count();
        let meets = |other: &Job| job.alone_among.is_some() && other.alone_among == job.alone_among;
        here < self.limits.per_host && !self.running.iter().any(meets)
    }

    /// A job has come to its end, well or not.
    pub fn ended(&mut self, site: usize, vmid: Vmid, well: bool) {
        self.running.retain(|job| (job.site, job.vmid) != (site, vmid));
        if !well && self.after_failure == AfterFailure::Stop {
            self.stop();
        }
    }

    /// Begins nothing more.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// The jobs that were not begun.
    pub fn not_begun(&self) -> impl Iterator<Item = &Job> {
        self.waiting.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(vmid: u32, host: &str, alone_among: Option<&str>) -> Job {
        Job { site: 0, vmid: vmid.try_into().unwrap(), host: host.parse().unwrap(), alone_among: alone_among.map(ToOwned::to_owned) }
    }

    fn begun(schedule: &mut Schedule) -> Vec<u32> {
        std::iter::from_fn(|| schedule.poll_job()).map(|job| u32::from(job.vmid)).collect()
    }

    const LIMITS: Limits = Limits { in_all: 3, per_host: 2 };

    #[test]
    fn neither_a_host_nor_the_whole_gets_more_than_its_share() {
        let jobs = [(101, "pve1"), (102, "pve1"), (103, "pve1"), (104, "pve2"), (105, "pve3")];
        let jobs = jobs.map(|(vmid, host)| job(vmid, host, None)).to_vec();
        let mut schedule = Schedule::new(jobs, LIMITS, AfterFailure::Stop);
        assert_eq!(begun(&mut schedule), [101, 102, 104]);
        schedule.ended(0, "104".parse().unwrap(), true);
        assert_eq!(begun(&mut schedule), [105]);
        schedule.ended(0, "101".parse().unwrap(), true);
        assert_eq!(begun(&mut schedule), [103]);
        assert_eq!(schedule.not_begun().count(), 0);
    }

    #[test]
    fn hosts_of_one_name_in_two_clusters_are_two_and_the_whole_is_one() {
        let at = |site, vmid| Job { site, ..job(vmid, "pve", None) };
        let jobs = vec![at(0, 101), at(0, 102), at(0, 103), at(1, 101), at(1, 102)];
        let mut schedule = Schedule::new(jobs, LIMITS, AfterFailure::Stop);
        assert_eq!(begun(&mut schedule), [101, 102, 101]);
        schedule.ended(1, "101".parse().unwrap(), true);
        assert_eq!(begun(&mut schedule), [102]);
        schedule.ended(0, "101".parse().unwrap(), true);
        assert_eq!(begun(&mut schedule), [103]);
    }

    #[test]
    fn of_the_routers_of_one_network_one_is_worked_on_at_a_time() {
        let jobs = vec![job(101, "pve1", Some("lan")), job(102, "pve2", Some("lan")), job(103, "pve3", Some("dmz"))];
        let mut schedule = Schedule::new(jobs, LIMITS, AfterFailure::Stop);
        assert_eq!(begun(&mut schedule), [101, 103]);
        schedule.ended(0, "103".parse().unwrap(), true);
        assert_eq!(begun(&mut schedule), [0_u32; 0]);
        schedule.ended(0, "101".parse().unwrap(), true);
        assert_eq!(begun(&mut schedule), [102]);
    }

    #[test]
    fn after_a_failure_nothing_more_begins_unless_asked_to_go_on() {
        let jobs = vec![job(101, "pve1", None), job(102, "pve1", None), job(103, "pve1", None), job(104, "pve1", None)];
        for (after, later) in [(AfterFailure::Stop, &[][..]), (AfterFailure::GoOn, &[103][..])] {
            let mut schedule = Schedule::new(jobs.clone(), LIMITS, after);
            assert_eq!(begun(&mut schedule), [101, 102]);
            schedule.ended(0, "101".parse().unwrap(), false);
            assert_eq!(begun(&mut schedule), later);
            assert_eq!(schedule.not_begun().count(), 2 - later.len());
        }
    }
}
