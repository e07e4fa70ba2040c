//! iperf3 and ping, and what they say.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::machines::Machine;
use crate::run::{Done, output};
use crate::standin::lxc::until;

/// A command that is killed when the thread that started it ends: with its machine, or with this program.
pub fn bound(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.stdin(Stdio::null());
    command
}

/// A child that is killed when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a command in a machine.
pub fn start(machine: &Machine, mut command: Command) -> Done<Running> {
    machine.run(move || command.spawn().map(Running).map_err(|e| format!("{:?}: {e}", command.get_program())))
}

/// An iperf3 server in the far machine.
pub struct Server(#[allow(dead_code, reason = "kept for its end")] Running);

impl Server {
    pub fn start(machine: &Machine) -> Done<Self> {
        let mut command = bound("iperf3");
        command.args(["-s"]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = start(machine, command)?;
        let listening = || machine.run(|| TcpStream::connect(("127.0.0.1", 5201)).is_ok());
        if until(Duration::from_secs(5), listening) { Ok(Self(child)) } else { Err("the iperf3 server did not start".to_owned()) }
    }
}

/// Where a measurement starts, and where it goes.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    pub machine: &'a Machine,
    pub target: &'a str,
    pub seconds: u32,
}

/// All figures of one subject, one entry a round.
#[derive(Debug, Default)]
pub struct Figures {
    pub tcp_1: Vec<f64>,
    pub tcp_4: Vec<f64>,
    /// Processor seconds of the whole machine for each Gbit of one TCP stream.
    pub cpu: Vec<f64>,
    pub udp: Vec<f64>,
    pub udp_loss: Vec<f64>,
    pub ping_idle_p50: Vec<f64>,
    pub ping_idle_p99: Vec<f64>,
    pub ping_loaded_p50: Vec<f64>,
    pub ping_loaded_p99: Vec<f64>,
    /// Microseconds for a name, and thousands of names a second.
    pub name_p50: Vec<f64>,
    pub name_p99: Vec<f64>,
    pub names: Vec<f64>,
    pub memory_kib: Vec<f64>,
}

/// The middle value; 0 without any.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(0.0)
}

impl Load<'_> {
    /// Runs iperf3, again if it gives up: under its own UDP flood it may lose the connection it reports over.
    pub fn iperf(&self, extra: &str, wanted: &str) -> Done<Value> {
        let mut why = String::new();
        for _ in 0..4 {
            match self.iperf_once(extra) {
                Ok(report) if report.pointer(wanted).is_some_and(Value::is_number) => return Ok(report),
                Ok(report) => why = format!("iperf3 reports no {wanted}: {}", report["error"]),
                Err(error) => why = error,
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Err(why)
    }

    /// Runs iperf3 once, with these flags more.
    pub fn iperf_once(&self, extra: &str) -> Done<Value> {
        let line = format!("-c {} -J --connect-timeout 5000 -t {} {extra}", self.target, self.seconds);
        let text = self.machine.run(move || output(bound("iperf3").args(line.split_whitespace()), &format!("iperf3 {line}")))?;
        serde_json::from_str(&text).map_err(|e| format!("iperf3: {e}"))
    }

    /// A stream that goes on for two seconds more than a measurement.
    pub fn background(&self, flags: &str) -> Done<Running> {
        let mut command = bound("iperf3");
        command.args(["-c", self.target, "-t", &(self.seconds + 2).to_string()]).args(flags.split_whitespace()).stdout(Stdio::null());
        start(self.machine, command)
    }

    /// The times of so many pings in milliseconds.
    pub fn ping(&self, count: u32, interval: &str) -> Done<Vec<f64>> {
        let line = format!("-n -i {interval} -c {count} -w 20 {}", self.target);
        // Some loss is no failure here: ping's exit code says so, its lines are what counts.
        let text = self.machine.run(move || {
            let output = bound("ping").args(line.split_whitespace()).output().map_err(|e| format!("ping: {e}"))?;
            Ok::<_, String>(String::from_utf8_lossy(&output.stdout).into_owned())
        })?;
        let times: Vec<f64> = text.lines().filter_map(|l| l.split_once("time=")?.1.split(' ').next()?.parse().ok()).collect();
        if times.is_empty() { Err(format!("no answer to ping {}: {text}", self.target)) } else { Ok(times) }
    }
}

/// Processor time used so far by everything on this machine, in seconds.
pub fn busy() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> = text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal: all but idle, iowait and steal, in hundredths.
    [0, 1, 2, 5, 6].iter().filter_map(|n| ticks.get(*n)).sum::<f64>() / 100.0
}

impl Figures {
    pub fn tcp(&mut self, load: &Load<'_>, streams: u32) -> Done {
        let before = busy();
        let report = load.iperf(&format!("-P {streams}"), "/end/sum_received/bits_per_second")?;
        let used = busy() - before;
        let gigabits = report["end"]["sum_received"]["bits_per_second"].as_f64().ok_or("iperf3 reports no rate")? / 1e9;
        if streams == 1 {
            self.tcp_1.push(gigabits);
            self.cpu.push(used / (gigabits * f64::from(load.seconds)));
        } else {
            self.tcp_4.push(gigabits);
        }
        Ok(())
    }

    /// As many datagrams as the sender can make: what arrives counts.
    pub fn udp(&mut self, load: &Load<'_>) -> Done {
        let report = load.iperf("-u -b 0 -l 1200", "/end/sum/lost_percent")?;
        let sum = &report["end"]["sum"];
        let (rate, lost) = (sum["bits_per_second"].as_f64(), sum["lost_percent"].as_f64());
        let (Some(rate), Some(lost)) = (rate, lost) else { return Err("iperf3 reports no UDP rate".to_owned()) };
        self.udp.push(rate * (1.0 - lost / 100.0) / 1e9);
        self.udp_loss.push(lost);
        Ok(())
    }

    pub fn ping_idle(&mut self, load: &Load<'_>) -> Done {
        let times = load.ping(200, "0.01")?;
        self.ping_idle_p50.push(percentile(&times, 0.5));
        self.ping_idle_p99.push(percentile(&times, 0.99));
        Ok(())
    }

    /// While one TCP stream takes all it can.
    pub fn ping_loaded(&mut self, load: &Load<'_>) -> Done {
        let mut stream = load.background("")?;
        let times = load.ping(load.seconds * 100, "0.01");
        stream.0.wait().map_err(|e| e.to_string())?;
        let times = times?;
        self.ping_loaded_p50.push(percentile(&times, 0.5));
        self.ping_loaded_p99.push(percentile(&times, 0.99));
        Ok(())
    }

    pub fn memory(&mut self, kib: Option<u64>) {
        self.memory_kib.extend(kib.map(|k| k as f64));
    }
}
