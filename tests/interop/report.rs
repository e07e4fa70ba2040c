//! The matrix: shown as it grows, printed as a table, written as JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Done;
use crate::programs::Versions;
use crate::rows::ACTS;
use crate::scene::Cast;

/// What became of a cell.
#[derive(Debug, Clone)]
pub enum Result {
    Passed(String),
    Failed(String),
    Skipped(String),
}

#[derive(Debug, Clone)]
pub struct Cell {
    pub act: &'static str,
    pub row: &'static str,
    pub cast: Cast,
    pub found: Result,
    pub time: Duration,
}

/// One line as soon as a cell is known.
pub fn show(cell: &Cell) {
    let (word, note) = match &cell.found {
        Result::Passed(note) => ("ok", note),
        Result::Failed(note) => ("FAILED", note),
        Result::Skipped(note) => ("skipped:", note),
    };
    println!("{:5.1} s  {:<42} {}: {word} {note}", cell.time.as_secs_f64(), cell.cast.name(), cell.row);
}

pub struct Report {
    cells: Vec<Cell>,
    versions: Versions,
    time: Duration,
}

impl Report {
    pub fn new(cells: Vec<Cell>, versions: Versions, time: Duration) -> Self {
        Self { cells, versions, time }
    }

    fn count(&self, which: impl Fn(&Result) -> bool) -> usize {
        self.cells.iter().filter(|cell| which(&cell.found)).count()
    }

    pub fn all_well(&self) -> bool {
        self.count(|r| matches!(r, Result::Failed(_))) == 0 && self.count(|r| matches!(r, Result::Passed(_))) > 0
    }

    /// The table, as Markdown that also reads well on a terminal.
    pub fn text(&self) -> String {
        let casts: Vec<Cast> = Cast::ALL.into_iter().filter(|cast| self.cells.iter().any(|cell| cell.cast == *cast)).collect();
        let mut rows: Vec<Vec<String>> = vec![std::iter::once(String::new()).chain(casts.iter().map(Cast::name)).collect()];
        for act in ACTS {
            for row in act.rows.iter().filter(|row| self.cells.iter().any(|cell| cell.row == row.sentence)) {
                let found = |cast: &Cast| self.cells.iter().find(|cell| cell.cast == *cast && cell.row == row.sentence);
                rows.push(std::iter::once(row.sentence.to_owned()).chain(casts.iter().map(|cast| brief(found(cast)))).collect());
            }
        }
        let mut text = format!("\npvemesh {} with {}\n\n", self.versions.pvemesh, self.versions.text());
        let widths: Vec<usize> = (0..rows[0].len()).map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0)).collect();
        for (n, row) in rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let _ = writeln!(text, "| {} |", cells.join(" | "));
            if n == 0 {
                let _ = writeln!(text, "|{}|", widths.iter().map(|w| "-".repeat(w + 2)).collect::<Vec<_>>().join("|"));
            }
        }
        for (word, failed) in [("failed", true), ("skipped", false)] {
            let reasons = self.cells.iter().filter_map(|cell| match &cell.found {
                Result::Failed(why) if failed => Some((cell, why)),
                Result::Skipped(why) if !failed => Some((cell, why)),
                _ => None,
            });
            for (n, (cell, why)) in reasons.enumerate() {
                let _ = write!(text, "{}{word}: {}: {}: {why}", if n == 0 { "\n" } else { "" }, cell.cast.name(), cell.row);
                text.push('\n');
            }
        }
        let _ = write!(
            text,
            "\nin {:.0} s: {} cells passed, {} failed, {} skipped",
            self.time.as_secs_f64(),
            self.count(|r| matches!(r, Result::Passed(_))),
            self.count(|r| matches!(r, Result::Failed(_))),
            self.count(|r| matches!(r, Result::Skipped(_))),
        );
        text
    }

    pub fn write(&self, path: &Path) -> Done {
        let cells: Vec<Value> = self
            .cells
            .iter()
            .map(|cell| {
                let (outcome, note) = match &cell.found {
                    Result::Passed(note) => ("passed", note),
                    Result::Failed(note) => ("failed", note),
                    Result::Skipped(note) => ("skipped", note),
                };
                json!({
                    "act": cell.act, "row": cell.row, "clients": cell.cast.clients_name(), "coordinator": cell.cast.coordinator_name(),
                    "reference": cell.cast.reference(), "outcome": outcome, "note": note, "seconds": cell.time.as_secs_f64(),
                })
            })
            .collect();
        let whole = json!({
            "versions": {
                "pvemesh": self.versions.pvemesh, "tailscale": self.versions.tailscale,
                "headscale": self.versions.headscale, "tailscale-rs": self.versions.tailscale_rs,
            },
            "seconds": self.time.as_secs_f64(),
            "cells": cells,
        });
        std::fs::write(path, format!("{whole:#}\n")).map_err(|e| format!("{}: {e}", path.display()))
    }
}

fn brief(cell: Option<&Cell>) -> String {
    match cell.map(|cell| &cell.found) {
        None => "".to_owned(),
        Some(Result::Passed(note)) if note.is_empty() => "ok".to_owned(),
        Some(Result::Passed(note)) => format!("ok, {note}"),
        Some(Result::Failed(_)) => "FAILED".to_owned(),
        Some(Result::Skipped(_)) => "skipped".to_owned(),
    }
}
