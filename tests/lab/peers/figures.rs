//! What is measured of one implementation.

use std::collections::BTreeMap;

use super::implementations::Subject;
use super::search::loss_free;
use crate::bench::measure::{Load, busy, median, percentile};
use crate::run::Done;

/// Figures by row, one entry a round.
#[derive(Debug, Default)]
pub struct Figures(BTreeMap<&'static str, Vec<f64>>);

/// A row of the table: its key, what it is, its unit.
pub type Row = (&'static str, &'static str, &'static str);

pub const ROWS: [Row; 19] = [
    ("tcp_1", "TCP, 1 stream", "Gbit/s"),
    ("tcp_1_back", "  towards here", "Gbit/s"),
    ("tcp_4", "TCP, 4 streams", "Gbit/s"),
    ("tcp_4_back", "  towards here", "Gbit/s"),
    ("udp_loss_free", "UDP, 1280 bytes, no loss", "Gbit/s"),
    ("cpu", "CPU, whole system", "s/Gbit"),
    ("ping_idle_p50", "ping idle, p50", "ms"),
    ("ping_idle_p99", "  p99", "ms"),
    ("ping_300m_p50", "ping at 300 Mbit/s, p50", "ms"),
    ("ping_300m_p99", "  p99", "ms"),
    ("ping_full_p50", "ping saturated, p50", "ms"),
    ("ping_full_p99", "  p99", "ms"),
    ("subnet", "by subnet router, TCP", "Gbit/s"),
    ("subnet_back", "  towards here", "Gbit/s"),
    ("exit", "by exit node, TCP", "Gbit/s"),
    ("exit_back", "  towards here", "Gbit/s"),
    ("relay", "by relay, TCP", "Gbit/s"),
    ("relay_ping_p50", "  ping idle, p50", "ms"),
    ("memory", "peak memory of a node", "MiB"),
];

impl Figures {
    /// The median of a row, if it was measured.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.0.get(key).map(|values| median(values))
    }

    /// All values of a row.
    pub fn all(&self, key: &str) -> &[f64] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    fn note(&mut self, key: &'static str, value: f64) {
        self.0.entry(key).or_default().push(value);
    }

    fn ping(&mut self, keys: [&'static str; 2], load: &Load<'_>, count: u32) -> Done {
        let times = load.ping(count, "0.01")?;
        self.note(keys[0], percentile(&times, 0.5));
        self.note(keys[1], percentile(&times, 0.99));
        Ok(())
    }

    /// One TCP connection or more in one direction.
    fn tcp(&mut self, key: &'static str, load: &Load<'_>, flags: &str) -> Done<f64> {
        const RATE: &str = "/end/sum_received/bits_per_second";
        let report = load.iperf(flags, RATE)?;
        let rate = report.pointer(RATE).and_then(serde_json::Value::as_f64).ok_or("iperf3 reports no rate")? / 1e9;
        self.note(key, rate);
        Ok(rate)
    }

    /// One round of everything that the subject offers.
    pub fn measure(&mut self, subject: &Subject, seconds: u32) -> Done {
        let load = Load { machine: &subject.stage.near, target: &subject.tunnel, seconds };
        self.ping(["ping_idle_p50", "ping_idle_p99"], &load, 200)?;
        let before = busy();
        let rate = self.tcp("tcp_1", &load, "-P 1")?;
        self.note("cpu", (busy() - before) / (rate * f64::from(seconds)));
        self.tcp("tcp_1_back", &load, "-P 1 -R")?;
        self.tcp("tcp_4", &load, "-P 4")?;
        self.tcp("tcp_4_back", &load, "-P 4 -R")?;
        for (keys, flags) in [(["ping_300m_p50", "ping_300m_p99"], "-b 300M"), (["ping_full_p50", "ping_full_p99"], "-P 1")] {
            let mut stream = load.background(flags)?;
            let answers = self.ping(keys, &load, seconds * 100);
            stream.0.wait().map_err(|e| e.to_string())?;
            answers?;
        }
        self.note("udp_loss_free", loss_free(&load)?);
        for (key, back, target) in [("subnet", "subnet_back", &subject.subnet), ("exit", "exit_back", &subject.exit)] {
            if let Some(target) = target {
                let load = Load { target, ..load };
                self.tcp(key, &load, "-P 1")?;
                self.tcp(back, &load, "-P 1 -R")?;
            }
        }
        if let Some(relayed) = &subject.relayed {
            let load = Load { machine: &relayed.stage.near, target: &relayed.target, seconds };
            self.note("relay_ping_p50", percentile(&load.ping(200, "0.01")?, 0.5));
            self.tcp("relay", &load, "-P 1")?;
        }
        if let Some(kib) = subject.peak_memory() {
            self.note("memory", kib as f64 / 1024.0);
        }
        Ok(())
    }
}
