//! What init keeps running, without I/O: which child is due to start, and how long to wait after one has died.

use std::time::Duration;

use crate::time::{Deadline, Time};

/// The first pause before a dead child is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause; a node that cannot run should not fill the console.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A child that ran this long was well: its next pause is the first one again.
const WELL_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Time },
    Running { pid: i32, since: Time },
}

/// One child process.
#[derive(Debug)]
pub(super) struct Service {
    /// Its name, for the console.
    pub(super) name: &'static str,
    /// The program's arguments.
    pub(super) arguments: Vec<String>,
    state: State,
    failures: u32,
    /// It is to end and to start again at once.
    restarting: bool,
}

/// A child that ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// Its name.
    pub(super) name: &'static str,
    /// How long it ran.
    pub(super) ran: Duration,
    /// How long until it is started again.
    pub(super) pause: Duration,
}

/// The children of init.
#[derive(Debug, Default)]
pub(super) struct Services(Vec<Service>);

impl Services {
    /// Adds a child to be started at `now`.
    pub(super) fn add(&mut self, now: Time, name: &'static str, arguments: Vec<String>) {
        self.0.push(Service { name, arguments, state: State::Waiting { until: now }, failures: 0, restarting: false });
    }

    /// The children to start now.
    pub(super) fn due(&mut self, now: Time) -> impl Iterator<Item = &mut Service> {
        self.0.iter_mut().filter(move |service| matches!(service.state, State::Waiting { until } if until <= now))
    }

    /// When the next child is to be started.
    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let waiting = self.0.iter().filter_map(|service| match service.state {
            State::Waiting { until } => Some(until),
            State::Running { .. } => None,
        });
        waiting.min().map(|at| Deadline { at, why: "start a child" })
    }

    /// All that run are about to be told to end, to start again at once; those that wait for their next try need not wait any more.
    pub(super) fn restart(&mut self) {
        for service in &mut self.0 {
            service.failures = 0;
            match &mut service.state {
                State::Running { .. } => service.restarting = true,
                State::Waiting { until } => *until = Time::default(),
            }
        }
    }

    /// The process ids of the running children.
    pub(super) fn running(&self) -> Vec<i32> {
        let pid = |service: &Service| match service.state {
            State::Running { pid, .. } => Some(pid),
            State::Waiting { .. } => None,
        };
        self.0.iter().filter_map(pid).collect()
    }

    /// A process has ended. `None` if it was not one of the children: an orphan that init inherited.
    pub(super) fn ended(&mut self, now: Time, pid: i32) -> Option<Ended> {
        self.0.iter_mut().find_map(|service| match service.state {
            State::Running { pid: own, since } if own == pid => {
                let ran = now.since(since);
                if ran >= WELL_AFTER {
                    service.failures = 0;
                }
                if std::mem::take(&mut service.restarting) {
                    service.state = State::Waiting { until: now };
                    return Some(Ended { name: service.name, ran, pause: Duration::ZERO });
                }
                Some(Ended { name: service.name, ran, pause: service.pause(now) })
            }
            _ => None,
        })
    }
}

impl Service {
    /// It runs, as this process.
    pub(super) fn started(&mut self, now: Time, pid: i32) {
        self.state = State::Running { pid, since: now };
    }

    /// It could not be started; gives the pause until the next try.
    pub(super) fn pause(&mut self, now: Time) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(6)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting { until: now + pause };
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_child_that_keeps_dying_is_started_less_and_less_often() {
        let mut services = Services::default();
        services.add(at(0), "node", Vec::new());
        let (mut now, mut pauses) = (at(0), Vec::new());
        for pid in 2..12 {
            services.due(now).for_each(|service| service.started(now, pid));
            assert_eq!((services.running(), services.poll_timeout()), (vec![pid], None));
            let ended = services.ended(now + Duration::from_millis(10), pid).unwrap();
            pauses.push(ended.pause.as_millis());
            assert_eq!(services.due(now + Duration::from_millis(10)).count(), 0);
            now = services.poll_timeout().unwrap().at;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000, 30000]);
        services.due(now).for_each(|service| service.started(now, 99));
        assert_eq!(services.ended(now + WELL_AFTER, 99).unwrap().pause, FIRST_PAUSE);
    }

    #[test]
    fn a_restart_starts_those_that_run_and_those_that_wait_at_once() {
        let mut services = Services::default();
        services.add(at(0), "node", Vec::new());
        services.add(at(0), "relay", Vec::new());
        let mut pid = 7;
        services.due(at(0)).for_each(|service| {
            service.started(at(0), pid);
            pid += 1;
        });
        services.ended(at(1), 8).unwrap();
        services.restart();
        assert_eq!(services.ended(at(5), 7).unwrap().pause, Duration::ZERO);
        assert_eq!(services.due(at(5)).count(), 2);
        // Once: the next death is one like others.
        services.due(at(5)).for_each(|service| service.started(at(5), 9));
        assert_eq!(services.ended(at(6), 9).unwrap().pause, FIRST_PAUSE);
    }

    #[test]
    fn an_orphan_is_no_child() {
        let mut services = Services::default();
        services.add(at(0), "node", Vec::new());
        services.due(at(0)).for_each(|service| service.started(at(0), 7));
        assert_eq!(services.ended(at(5), 8), None);
        assert_eq!(services.running(), [7]);
    }
}
