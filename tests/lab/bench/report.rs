//! The table and the file.

use std::fmt;

use serde_json::{Map, Value, json};

use super::measure::{Figures, median};

/// Figures by subject; the first is the bare path.
pub struct Report(Vec<(String, Figures)>);

type Row = (&'static str, &'static str, fn(&Figures) -> f64);

const ROWS: [Row; 13] = [
    ("TCP, 1 stream", "Gbit/s", |f| median(&f.tcp_1)),
    ("TCP, 4 streams", "Gbit/s", |f| median(&f.tcp_4)),
    ("CPU, 1 stream", "s/Gbit", |f| median(&f.cpu)),
    ("UDP, 1200 bytes", "Gbit/s", |f| median(&f.udp)),
    ("  lost", "%", |f| median(&f.udp_loss)),
    ("ping idle, p50", "ms", |f| median(&f.ping_idle_p50)),
    ("           p99", "ms", |f| median(&f.ping_idle_p99)),
    ("ping loaded, p50", "ms", |f| median(&f.ping_loaded_p50)),
    ("             p99", "ms", |f| median(&f.ping_loaded_p99)),
    ("a name, p50", "us", |f| median(&f.name_p50)),
    ("        p99", "us", |f| median(&f.name_p99)),
    ("names, 64 at once", "1000/s", |f| median(&f.names)),
    ("memory", "MiB", |f| median(&f.memory_kib) / 1024.0),
];

const KEYS: [&str; 13] = [
    "tcp_1_gbit",
    "tcp_4_gbit",
    "cpu_s_per_gbit",
    "udp_gbit",
    "udp_lost_percent",
    "ping_idle_p50_ms",
    "ping_idle_p99_ms",
    "ping_loaded_p50_ms",
    "ping_loaded_p99_ms",
    "name_p50_us",
    "name_p99_us",
    "names_thousand_per_s",
    "memory_mib",
];

impl Report {
    pub fn new(subjects: Vec<(String, Figures)>) -> Self {
        Self(subjects)
    }

    /// Each subject's medians, and its throughput as a part of the bare path's.
    pub fn json(&self) -> Value {
        let mut all = Map::new();
        for (name, figures) in &self.0 {
            let mut one: Map<String, Value> =
                KEYS.iter().zip(ROWS).map(|(key, (_, _, value))| ((*key).to_owned(), json!(value(figures)))).collect();
            if let Some((_, bare)) = self.0.first() {
                one.insert("tcp_1_ratio".into(), json!(median(&figures.tcp_1) / median(&bare.tcp_1)));
                one.insert("tcp_4_ratio".into(), json!(median(&figures.tcp_4) / median(&bare.tcp_4)));
                one.insert("udp_ratio".into(), json!(median(&figures.udp) / median(&bare.udp)));
            }
            all.insert(name.clone(), Value::Object(one));
        }
        json!({ "medians": all })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18}{:<8}", "", "")?;
        for (name, _) in &self.0 {
            write!(f, "{name:>22}")?;
        }
        for (n, (what, unit, value)) in ROWS.into_iter().enumerate() {
            if self.0.iter().all(|(_, figures)| value(figures) == 0.0) {
                // Not measured in this run.
                continue;
            }
            write!(f, "\n{what:<18}{unit:<8}")?;
            let bare = self.0.first().map_or(0.0, |(_, figures)| value(figures));
            for (at, (_, figures)) in self.0.iter().enumerate() {
                let own = value(figures);
                let ratio = if at > 0 && n != 4 && bare > 0.0 { format!("{:>8.3}x", own / bare) } else { " ".repeat(9) };
                write!(f, "{own:>13.3}{ratio}")?;
            }
        }
        Ok(())
    }
}
