//! What the demo ends with: who is who, and the figures.

use serde_json::{Value, json};

use crate::network::{CAFE_ADDRESS, HOME_ADDRESS, WEB_ADDRESS};

/// One step of the demo.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it is for.
    pub name: String,
    /// What was typed.
    pub command: String,
    /// How long it took.
    pub seconds: f64,
}

/// What the demo found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Who the web server saw before and after.
    pub web_before: String,
    pub web_after: String,
    /// From `create-exit-node` to the first packet through it.
    pub seconds_to_first_packet: f64,
    pub steps: Vec<Step>,
    /// Round-trip times to the web server, milliseconds.
    pub rtt_ms: f64,
    pub bare_rtt_ms: f64,
    /// Throughput, bits per second.
    pub tcp: f64,
    pub bare_tcp: f64,
    pub node_rss_kib: u64,
    pub binary_bytes: u64,
    pub image_bytes: u64,
    /// The laptop's and the exit node's address in the mesh.
    pub laptop: String,
    pub exit_node: String,
}

impl Findings {
    /// What is wrong with them, if the demo is to count.
    pub fn fault(&self) -> Option<String> {
        if self.web_before != CAFE_ADDRESS {
            return Some(format!("before, the web server saw {:?}, not the cafe's {CAFE_ADDRESS}", self.web_before));
        }
        if self.web_after != HOME_ADDRESS {
            return Some(format!("after, the web server saw {:?}, not the home's {HOME_ADDRESS}", self.web_after));
        }
        None
    }

    /// The machine-readable form.
    pub fn json(&self) -> Value {
        let round = |x: f64| (x * 1000.0).round() / 1000.0;
        let steps: Vec<_> =
            self.steps.iter().map(|s| json!({ "name": s.name, "command": s.command, "seconds": round(s.seconds) })).collect();
        json!({
            "web_before": self.web_before, "web_after": self.web_after, "home_address": HOME_ADDRESS,
            "seconds_to_first_packet": round(self.seconds_to_first_packet), "steps": steps,
            "rtt_ms": round(self.rtt_ms), "bare_rtt_ms": round(self.bare_rtt_ms),
            "tcp_ratio": round(self.tcp / self.bare_tcp.max(1.0)), "tcp_bits_per_second": self.tcp.round(),
            "bare_tcp_bits_per_second": self.bare_tcp.round(), "node_rss_kib": self.node_rss_kib,
            "binary_bytes": self.binary_bytes, "image_bytes": self.image_bytes,
            "laptop_address": self.laptop, "exit_node_address": self.exit_node,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mbit = |rate: f64| rate / 1e6;
        let steps: String = self.steps.iter().map(|s| format!("  {:>7.2} s  {}\n", s.seconds, s.name)).collect();
        format!(
            "\n  \
  laptop ------- cafe ----------------- internet ----------------- home ------- pve (Proxmox VE)\n  \
  10.20.0.5      {CAFE_ADDRESS:<22} web {WEB_ADDRESS:<20}  {HOME_ADDRESS}   |- 100 coordinator\n  \
  {:<14} ===================== WireGuard =======================> |- 101 exit-1  {}\n\n  \
  the web server saw        {} before, {} after\n  \
  to the first packet       {:.2} s from `pvemesh create-exit-node`\n  \
  round trip                {:.3} ms through the tunnel, {:.3} ms on the bare path\n  \
  TCP, one stream           {:.0} Mbit/s through the tunnel, {:.0} Mbit/s on the bare path (ratio {:.3})\n  \
  node's resident memory    {:.1} MiB\n  \
  binary, appliance image   {:.1} MiB, {:.1} MiB\n\n{steps}",
            self.laptop,
            self.exit_node,
            self.web_before,
            self.web_after,
            self.seconds_to_first_packet,
            self.rtt_ms,
            self.bare_rtt_ms,
            mbit(self.tcp),
            mbit(self.bare_tcp),
            self.tcp / self.bare_tcp.max(1.0),
            self.node_rss_kib as f64 / 1024.0,
            mib(self.binary_bytes),
            mib(self.image_bytes),
        )
    }
}
