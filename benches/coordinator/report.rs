//! The table and the file.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::phases::{Change, Outcome};

type Row = (&'static str, &'static str, &'static str, fn(&Outcome, f64) -> f64);

/// What is shown, its unit, its name in the file, and how it is worked out from a run with so many nodes.
const ROWS: [Row; 24] = [
    ("all have a full map", "s", "join_s", |o, _| o.join_seconds),
    ("  CPU time", "ms/node", "join_cpu_ms_per_node", |o, n| o.join_cpu_seconds * 1000.0 / n),
    ("  bytes of maps", "KB/node", "join_kb_per_node", |o, n| o.join_megabytes * 1000.0 / n),
    ("  memory, peak", "KiB/node", "join_peak_kib_per_node", |o, n| o.peak_kib as f64 / n),
    ("at rest: memory", "KiB/node", "rest_kib_per_node", |o, n| o.rest_kib as f64 / n),
    ("  CPU", "% of a core", "rest_cpu_percent", |o, _| o.rest_cpu_part * 100.0),
    ("  messages by no-ops", "", "silent_messages", |o, _| o.silent_messages as f64),
    ("endpoint change, p50", "ms", "endpoint_p50_ms", |o, _| o.single[0].p50_ms),
    ("  p99", "ms", "endpoint_p99_ms", |o, _| o.single[0].p99_ms),
    ("  each listener", "bytes", "endpoint_bytes", |o, _| o.single[0].bytes),
    ("join, p50", "ms", "join_p50_ms", |o, _| o.single[1].p50_ms),
    ("  p99", "ms", "join_p99_ms", |o, _| o.single[1].p99_ms),
    ("  each listener", "bytes", "join_bytes", |o, _| o.single[1].bytes),
    ("leave, p50", "ms", "leave_p50_ms", |o, _| o.single[2].p50_ms),
    ("  p99", "ms", "leave_p99_ms", |o, _| o.single[2].p99_ms),
    ("  each listener", "bytes", "leave_bytes", |o, _| o.single[2].bytes),
    ("1 %/s: changes", "", "load_changes", |o, _| o.load_changes as f64),
    ("  CPU", "% of a core", "load_cpu_percent", |o, _| o.load_cpu_part * 100.0),
    ("  each listener", "bytes/change", "load_bytes", |o, _| o.load_bytes),
    ("  endpoint, p50", "ms", "load_endpoint_p50_ms", |o, _| o.load[0].p50_ms),
    ("  endpoint, p99", "ms", "load_endpoint_p99_ms", |o, _| o.load[0].p99_ms),
    ("  join, p50", "ms", "load_join_p50_ms", |o, _| o.load[1].p50_ms),
    ("  leave, p50", "ms", "load_leave_p50_ms", |o, _| o.load[2].p50_ms),
    ("streams opened again", "", "streams_reopened", |o, _| o.reopened as f64),
];

struct Entry {
    count: usize,
    subject: &'static str,
    failure: Option<String>,
    figures: Vec<f64>,
    sound: bool,
}

pub struct Report {
    entries: Vec<Entry>,
}

impl Report {
    pub fn new() -> Self {
        Self { entries: Vec::new() }
    }

    pub fn add(&mut self, count: usize, subject: &'static str, outcome: &Outcome) {
        let figures = ROWS.iter().map(|(_, _, _, value)| value(outcome, count as f64)).collect();
        let failure = outcome.failure.clone();
        let sound = failure.is_none()
            && outcome.silent_messages == 0
            && outcome.reopened == 0
            && outcome.single.iter().all(|c: &Change| c.count > 0);
        self.entries.push(Entry { count, subject, failure, figures, sound });
    }

    /// Whether our coordinator did what it has to at every size.
    pub fn is_sound(&self) -> bool {
        self.entries.iter().all(|entry| entry.sound || entry.subject != "pvemesh")
    }

    pub fn json(&self) -> Value {
        let mut sizes = Map::new();
        for entry in &self.entries {
            let figure = |value: &f64| if value.is_finite() { json!(value) } else { Value::Null };
            let mut one: Map<String, Value> =
                ROWS.iter().zip(&entry.figures).map(|((_, _, key, _), value)| ((*key).to_owned(), figure(value))).collect();
            one.insert("failure".to_owned(), json!(entry.failure));
            let size = sizes.entry(entry.count.to_string()).or_insert_with(|| json!({}));
            size[entry.subject] = Value::Object(one);
        }
        json!({ "cores": std::thread::available_parallelism().map_or(0, usize::from), "nodes": sizes })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<22}{:<13}", "", "")?;
        for entry in &self.entries {
            write!(f, "{:>18}", format!("{} {}", entry.subject, entry.count))?;
        }
        for (row, (what, unit, _, _)) in ROWS.iter().enumerate() {
            write!(f, "\n{what:<22}{unit:<13}")?;
            for entry in &self.entries {
                // What comes after the point where a run ended has not been measured.
                match entry.figures[row] {
                    value if entry.failure.is_some() && row > 3 && value == 0.0 => write!(f, "{:>18}", "-")?,
                    value => write!(f, "{value:>18.1}")?,
                }
            }
        }
        for entry in &self.entries {
            if let Some(failure) = &entry.failure {
                write!(f, "\n{} with {} nodes did not finish: {failure}", entry.subject, entry.count)?;
            }
        }
        Ok(())
    }
}
