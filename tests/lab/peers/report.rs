//! The table, what is asked of our node, and the file.

use std::fmt;

use serde_json::{Map, Value, json};

use super::figures::{Figures, ROWS};

/// Figures by implementation, with its version.
pub struct Report(Vec<((&'static str, String), Figures)>);

/// What is asked of our node: what, how it is measured, the least, the goal, and whether less is better.
type Demand = (&'static str, fn(&Report) -> Option<f64>, f64, f64, bool);

const DEMANDS: [Demand; 9] = [
    ("TCP, to tailscaled (x)", |r| r.ratio("tcp_1", "tailscaled"), 1.7, 2.5, false),
    ("TCP, to wireguard-go (x)", |r| r.ratio("tcp_1", "wireguard-go"), 1.7, 2.5, false),
    ("UDP without loss, to the best peer (x)", Report::udp, 1.5, 2.0, false),
    ("CPU per Gbit, to wireguard-go (x)", |r| r.ratio("cpu", "wireguard-go"), 0.6, 0.4, true),
    ("ping idle, p50, added (ms)", |r| Some(r.of("pvemesh", "ping_idle_p50")? - r.of("bare", "ping_idle_p50")?), 0.2, 0.1, true),
    ("peak memory of a node (MiB)", |r| r.of("pvemesh", "memory"), 32.0, 12.0, true),
    ("as subnet router, to its tunnel (x)", |r| Some(r.of("pvemesh", "subnet")? / r.of("pvemesh", "tcp_1")?), 0.85, 0.95, false),
    ("as exit node, to its tunnel (x)", |r| Some(r.of("pvemesh", "exit")? / r.of("pvemesh", "tcp_1")?), 0.85, 0.95, false),
    ("by relay, to tailscaled (x)", |r| r.ratio("relay", "tailscaled"), 1.0, 2.0, false),
];

impl Report {
    pub fn new(subjects: Vec<((&'static str, String), Figures)>) -> Self {
        Self(subjects)
    }

    fn of(&self, name: &str, key: &str) -> Option<f64> {
        self.0.iter().find(|((n, _), _)| *n == name)?.1.get(key)
    }

    /// Our figure as a multiple of a peer's.
    fn ratio(&self, key: &str, peer: &str) -> Option<f64> {
        Some(self.of("pvemesh", key)? / self.of(peer, key)?)
    }

    fn udp(&self) -> Option<f64> {
        let peers = self.0.iter().filter(|((name, _), _)| !matches!(*name, "pvemesh" | "bare"));
        let best = peers.filter_map(|(_, figures)| figures.get("udp_loss_free")).max_by(f64::total_cmp)?;
        Some(self.of("pvemesh", "udp_loss_free")? / best)
    }

    /// Medians, every value, versions, and what is asked of our node.
    pub fn json(&self) -> Value {
        let mut all = Map::new();
        for ((name, version), figures) in &self.0 {
            let rows = ROWS.iter().filter_map(|(key, _, unit)| {
                let value = json!({ "unit": unit, "median": figures.get(key)?, "all": figures.all(key) });
                Some(((*key).to_owned(), value))
            });
            let rows: Map<String, Value> = rows.collect();
            all.insert((*name).to_owned(), json!({ "version": version, "rows": rows }));
        }
        let demands = DEMANDS.iter().filter_map(|(what, value, floor, goal, less)| {
            let value = value(self)?;
            Some(json!({ "what": what, "value": value, "floor": floor, "goal": goal, "reached": reached(value, *floor, *goal, *less) }))
        });
        json!({ "implementations": all, "demands": demands.collect::<Vec<_>>() })
    }
}

fn reached(value: f64, floor: f64, goal: f64, less: bool) -> &'static str {
    let holds = |bound| if less { value <= bound } else { value >= bound };
    if holds(goal) {
        "goal"
    } else if holds(floor) {
        "floor"
    } else {
        "missed"
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<26}{:<8}", "medians", "")?;
        for ((name, _), _) in &self.0 {
            write!(f, "{name:>14}")?;
        }
        for (key, what, unit) in ROWS {
            if self.0.iter().all(|(_, figures)| figures.get(key).is_none()) {
                continue;
            }
            write!(f, "\n{what:<26}{unit:<8}")?;
            for (_, figures) in &self.0 {
                match figures.get(key) {
                    Some(value) => write!(f, "{value:>14.3}")?,
                    None => write!(f, "{:>14}", "-")?,
                }
            }
        }
        write!(f, "\n\n{:<42}{:>8}{:>8}{:>8}", "asked of pvemesh", "is", "floor", "goal")?;
        for (what, value, floor, goal, less) in DEMANDS {
            if let Some(value) = value(self) {
                write!(f, "\n{what:<42}{value:>8.2}{floor:>8}{goal:>8}  {}", reached(value, floor, goal, less))?;
            }
        }
        for ((name, version), _) in self.0.iter().filter(|((_, version), _)| !version.is_empty()) {
            write!(f, "\n{name}: {version}")?;
        }
        Ok(())
    }
}
