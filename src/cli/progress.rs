//! Progress on standard error: a spinner per step on a terminal, one line per finished step elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Output;
use crate::sys::pve::Watch;

/// Shows the steps of a run.
pub(super) struct Progress<'o> {
    output: &'o Output,
    bar: Option<ProgressBar>,
    title: String,
    live: bool,
}

impl<'o> Progress<'o> {
    pub(super) fn new(output: &'o Output) -> Self {
        use std::io::IsTerminal as _;
        Self { output, bar: None, title: String::new(), live: std::io::stderr().is_terminal() }
    }

    /// Something slow that is no step of a plan.
    pub(super) fn during<T>(&mut self, title: &str, work: impl FnOnce() -> T) -> T {
        let begun = std::time::Instant::now();
        self.begin(title);
        let value = work();
        self.end(begun.elapsed(), true);
        value
    }
}

impl Watch for Progress<'_> {
    fn begin(&mut self, title: &str) {
        title.clone_into(&mut self.title);
        if self.live {
            let bar = ProgressBar::new_spinner().with_message(title.to_owned());
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            self.bar = Some(bar);
        }
    }

    fn line(&mut self, text: &str) {
        if self.output.verbose() > 0 {
            let line = format!("      {text}");
            match &self.bar {
                Some(bar) => bar.suspend(|| self.output.note(line)),
                None => self.output.note(line),
            }
        }
    }

    fn end(&mut self, took: Duration, ok: bool) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let (colour, plain) = match (self.output.colour(), ok) {
            (true, true) => ("\x1b[32m", "\x1b[0m"),
            (true, false) => ("\x1b[31m", "\x1b[0m"),
            (false, _) => ("", ""),
        };
        let word = if ok { "done  " } else { "failed" };
        self.output.note(format!("  {colour}{word}{plain}  {:<44} {:>6.2} s", self.title, took.as_secs_f64()));
    }
}
