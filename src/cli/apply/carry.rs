//! Carrying a fleet's plans out, several at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::show::Row;
use crate::cli::connect::{Session, call_failure, config_failure};
use crate::cli::interrupt::Interrupt;
use crate::cli::ways::WayArgs;
use crate::cli::{Exit, Failure, Output, carry};
use crate::ident::Vmid;
use crate::plan::create::Plan;
use crate::plan::fleet::{AfterFailure, Draft, Job, Limits, Schedule, View, Work};
use crate::plan::high_availability;
use crate::pve::{HostName, Version, VolumeId, call, reply};
use crate::sys::pve::{CallError, Door, Mesh, Provisioner, Stock, Watch, upload_image, wait_task};

/// How long the removal of an image nobody uses may take.
const DELETE_LIMIT: Duration = Duration::from_secs(60);

/// Everything the work on a fleet needs.
pub(super) struct Crew<'a> {
    pub(super) session: &'a Session,
    pub(super) mesh: Option<&'a dyn Mesh>,
    pub(super) stock: &'a Stock,
    pub(super) output: &'a Output,
    pub(super) tried: &'a str,
}

impl Crew<'_> {
    /// Does what there is to do. Gives what became of each guest, and what the command fails with, if something failed.
    pub(super) async fn work(
        &self,
        draft: &Draft,
        jobs: &[Job],
        limits: Limits,
        after: AfterFailure,
        view: &View,
    ) -> Result<(Vec<Row>, Option<Failure>), Failure> {
        let interrupt = Interrupt::listen(self.output)?;
        let door = self.session.door()?;
        let board = Board::new(self.output, jobs.len());
        self.upload(draft, &board).await?;
        let plans: BTreeMap<Vmid, (&Plan, &Work)> =
            draft.works.iter().filter_map(|(vmid, work)| Some((*vmid, (work.plan()?, work)))).collect();
        let mut schedule = Schedule::new(jobs.to_vec(), limits, after);
        let mut running = FuturesUnordered::new();
        let mut rows: Vec<Row> = draft.works.iter().filter_map(|(vmid, work)| unchanged(*vmid, work, view)).collect();
        let mut failure: Option<Failure> = None;
        let stop = interrupt.for_one();
        tokio::pin!(stop);
        let mut stopped = false;
        loop {
            while let Some(job) = schedule.poll_job() {
                let Some((plan, work)) = plans.get(&job.vmid) else { continue };
                running.push(self.one(plan, work, &door, &interrupt, &board));
            }
            tokio::select! {
                biased;
                () = &mut stop, if !stopped => {
                    stopped = true;
                    schedule.stop();
                }
                ended = running.next() => {
                    let Some((row, failed)) = ended else { break };
                    schedule.ended(row.vmid, failed.is_none());
                    board.ended(&row);
                    rows.push(row);
                    failure = worse(failure, failed);
                }
            }
        }
        for vmid in schedule.not_begun() {
            rows.extend(plans.get(&vmid).map(|(plan, _)| Row::of(plan, "not begun", 0.0)));
        }
        board.finish();
        self.discard_unused(draft, &rows).await;
        Ok((rows, failure))
    }

    /// Works on one guest.
    async fn one(&self, plan: &Plan, work: &Work, door: &dyn Door, interrupt: &Interrupt, board: &Board<'_>) -> (Row, Option<Failure>) {
        let begun = Instant::now();
        let tried = format!("{}: guest {} ({})", self.tried, plan.vmid, plan.name);
        let mut watch = board.guest(plan);
        let outcome = async {
            let _lock = self.session.store.lock(plan.vmid).map_err(config_failure)?;
            carry::recover(self.session, &WayArgs::default(), self.mesh, plan.vmid, self.output, &mut watch).await?;
            let mut interrupted = interrupt.for_one();
            let provisioner = Provisioner {
                executor: &*self.session.executor,
                door,
                mesh: self.mesh,
                inside: None,
                images: self.stock,
                store: &self.session.store,
                watch: &mut watch,
                interrupted: &mut interrupted,
            };
            provisioner.run(plan).await.map_err(|error| carry::failed(self.output, &tried, &error))
        }
        .await;
        let seconds = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(findings) => {
                let outcome = match work {
                    Work::Create(_) => "created",
                    Work::Change(_) => "changed",
                    Work::Start(_) | Work::Nothing(_) => "started",
                };
                (Row { mesh_addresses: findings.mesh_addresses, ..Row::of(plan, outcome, seconds) }, None)
            }
            Err(failure) => (Row { error: Some(failure.happened.clone()), ..Row::of(plan, "failed", seconds) }, Some(failure)),
        }
    }

    /// Uploads the image to each host whose new guests need it.
    async fn upload(&self, draft: &Draft, board: &Board<'_>) -> Result<(), Failure> {
        for (host, volume) in &draft.uploads {
            let begun = Instant::now();
            let uploaded = upload_image(&*self.session.executor, host, volume, self.stock).await;
            if let Err(error) = uploaded {
                let (next, exit, _) = crate::cli::connect::step_advice(&error);
                return Err(Failure::new(format!("{}: upload the image to {host}", self.tried), &error, next).exit(exit));
            }
            board.say(&format!("  done    {:<44} {:>6.2} s", format!("upload the image to {host}"), begun.elapsed().as_secs_f64()));
        }
        Ok(())
    }

    /// Has the rules keep the guests of a group on different hosts, where Proxmox looks after them.
    pub(super) async fn keep_apart(&self, draft: &Draft, view: &View) -> Result<(), Failure> {
        if draft.apart.values().all(|guests| guests.len() < 2) {
            return Ok(());
        }
        let tried = format!("{}: keep the guests of a group on different hosts", self.tried);
        let executor = &*self.session.executor;
        let failed = |e: CallError| call_failure(&tried, &e);
        let version = match view.observed.hosts.iter().find_map(|host| host.version) {
            Some(version) => version,
            None => {
                let request = call::version().map_err(|e| failed(e.into()))?;
                reply::version(&executor.call(&request).await.map_err(failed)?).map_err(|e| failed(e.into()))?
            }
        };
        let there = if version >= Version::HA_RULES {
            reply::ha_rules(&executor.call(&call::ha_rules()).await.map_err(failed)?).map_err(|e| failed(e.into()))?
        } else {
            Vec::new()
        };
        match high_availability::rules(&draft.apart, &there, version) {
            Ok(requests) => {
                for request in requests {
                    executor.call(&request).await.map_err(failed)?;
                    self.output.note(format!("  done    {request}"));
                }
            }
            Err(why) => self.output.note(why),
        }
        Ok(())
    }

    /// Removes images that were uploaded for guests none of which came to be.
    async fn discard_unused(&self, draft: &Draft, rows: &[Row]) {
        for (host, volume) in &draft.uploads {
            let used =
                rows.iter().any(|row| row.node == host.as_str() && matches!(row.outcome, "created" | "changed" | "unchanged" | "started"));
            if !used && let Err(failure) = self.discard(host, volume).await {
                self.output.note(format!("the image {volume} stays on {host}: {}", failure.happened));
            }
        }
    }

    async fn discard(&self, host: &HostName, volume: &VolumeId) -> Result<(), Failure> {
        let tried = format!("remove {volume}");
        let executor = &*self.session.executor;
        let request = call::delete_volume(host, volume, 15).map_err(|e| call_failure(&tried, &e.into()))?;
        let value = executor.call(&request).await.map_err(|e| call_failure(&tried, &e))?;
        if let Ok(task) = reply::upid(&value) {
            let waited = wait_task(executor, &task, DELETE_LIMIT, &mut |_| {}).await;
            waited.map_err(|e| Failure::new(&tried, e, "look at the task in Proxmox"))?;
        }
        Ok(())
    }
}

fn unchanged(vmid: Vmid, work: &Work, view: &View) -> Option<Row> {
    let Work::Nothing(existing) = work else { return None };
    let mark = view.targets.get(&vmid).and_then(|target| crate::plan::mark::Mark::of_container(vmid, &target.config));
    Some(Row {
        vmid,
        name: existing.name.to_string(),
        role: mark.map(|mark| mark.role).unwrap_or_default(),
        node: existing.host.to_string(),
        outcome: "unchanged",
        seconds: 0.0,
        mesh_addresses: Vec::new(),
        error: None,
    })
}

/// Of two failures the one whose exit code says more: that something is left counts most, then the first.
fn worse(one: Option<Failure>, other: Option<Failure>) -> Option<Failure> {
    match (one, other) {
        (Some(one), Some(other)) if other.exit == Exit::Left && one.exit != Exit::Left => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}

/// Progress: on a terminal a line for each guest under work and one for the whole, elsewhere a line for each guest that is done.
struct Board<'o> {
    output: &'o Output,
    bars: MultiProgress,
    whole: ProgressBar,
    live: bool,
}

impl<'o> Board<'o> {
    fn new(output: &'o Output, guests: usize) -> Self {
        use std::io::IsTerminal as _;
        let (bars, live) = (MultiProgress::new(), std::io::stderr().is_terminal());
        let mut whole = ProgressBar::hidden();
        if live && guests > 0 {
            whole = bars.add(ProgressBar::new(guests as u64));
            if let Ok(style) = ProgressStyle::with_template("  {bar:30} {pos} of {len} guests, {elapsed}") {
                whole.set_style(style);
            }
            whole.enable_steady_tick(Duration::from_millis(250));
        }
        Self { output, bars, whole, live }
    }

    fn guest(&self, plan: &Plan) -> Line<'_> {
        let bar = if self.live { self.bars.insert_before(&self.whole, ProgressBar::new_spinner()) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_prefix(format!("{} {}", plan.vmid, plan.name));
        if self.live {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Line { board: self, bar, who: format!("{} {}", plan.vmid, plan.name), title: String::new() }
    }

    fn say(&self, text: &str) {
        self.bars.suspend(|| self.output.note(text));
    }

    fn ended(&self, row: &Row) {
        self.whole.inc(1);
        let word = if row.error.is_some() { "failed" } else { "done  " };
        self.say(&format!(
            "  {word}  {:<44} {:>6.2} s",
            format!("{} {} on {}: {}", row.vmid, row.name, row.node, row.outcome),
            row.seconds
        ));
    }

    fn finish(&self) {
        self.whole.finish_and_clear();
    }
}

/// Progress of one guest.
struct Line<'b> {
    board: &'b Board<'b>,
    bar: ProgressBar,
    who: String,
    title: String,
}

impl Watch for Line<'_> {
    fn begin(&mut self, title: &str) {
        title.clone_into(&mut self.title);
        self.bar.set_message(title.to_owned());
    }

    fn line(&mut self, text: &str) {
        if self.board.output.verbose() > 1 {
            self.board.say(&format!("      {}: {text}", self.who));
        }
    }

    fn end(&mut self, took: Duration, ok: bool) {
        if self.board.output.verbose() > 0 {
            let word = if ok { "done  " } else { "failed" };
            self.board.say(&format!("    {word}  {:<44} {:>6.2} s", format!("{}: {}", self.who, self.title), took.as_secs_f64()));
        }
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
