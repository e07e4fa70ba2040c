//! Progress of a fleet: on a terminal a line for each guest under work and one for the whole, elsewhere a line for each guest that is done.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::show::Row;
use crate::cli::Output;
use crate::sys::pve::Watch;

/// Progress of the whole.
pub(super) struct Board<'o> {
    output: &'o Output,
    bars: MultiProgress,
    whole: ProgressBar,
    live: bool,
}

impl<'o> Board<'o> {
    pub(super) fn new(output: &'o Output, guests: usize) -> Self {
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

    /// The line of one guest, called `who`.
    pub(super) fn guest(&self, who: String) -> Line<'_> {
        let bar = if self.live { self.bars.insert_before(&self.whole, ProgressBar::new_spinner()) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_prefix(who.clone());
        if self.live {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Line { board: self, bar, who, title: String::new() }
    }

    pub(super) fn say(&self, text: &str) {
        self.bars.suspend(|| self.output.note(text));
    }

    pub(super) fn ended(&self, row: &Row) {
        self.whole.inc(1);
        let word = if row.error.is_some() { "failed" } else { "done  " };
        self.say(&format!(
            "  {word}  {:<44} {:>6.2} s",
            format!("{} {} on {}: {}", row.vmid, row.name, row.place(), row.outcome),
            row.seconds
        ));
    }

    pub(super) fn finish(&self) {
        self.whole.finish_and_clear();
    }
}

/// Progress of one guest.
pub(super) struct Line<'b> {
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
