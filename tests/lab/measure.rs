//! What the demo measures: who the web server sees, round-trip times, throughput, memory, sizes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::namespaces::{INET, inside};
use crate::network::WEB_ADDRESS;
use crate::run::{Done, output};
use crate::standin::lxc::{processes, until};

/// Does something in a thread that is in the namespace.
pub fn within<T: Send>(namespace: &str, action: impl FnOnce() -> T + Send) -> Done<T> {
    let entry = File::open(Path::new("/run/netns").join(namespace)).map_err(|e| format!("{namespace}: {e}"))?;
    let entered = || -> Done<T> {
        use std::os::fd::AsFd as _;
        move_into_link_name_space(entry.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| format!("enter {namespace}: {e}"))?;
        Ok(action())
    };
    std::thread::scope(|scope| scope.spawn(entered).join()).map_err(|_| "the thread in the namespace died".to_owned())?
}

/// Fetches the web page from a namespace: the address under which the server sees it.
pub fn web_page(namespace: &str) -> Done<String> {
    fetch(namespace, &format!("{WEB_ADDRESS}:80"), "/")
}

/// Fetches a page over plain HTTP from a namespace.
pub fn fetch(namespace: &str, server: &str, path: &str) -> Done<String> {
    let address: SocketAddr = server.parse().map_err(|_| format!("`{server}` is not an address with a port"))?;
    let get = move || -> std::io::Result<String> {
        let limit = Duration::from_secs(3);
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.trim().to_owned()),
            _ => Err(std::io::Error::other(head.lines().next().unwrap_or("no reply").to_owned())),
        }
    };
    within(namespace, get)?.map_err(|e| format!("fetch http://{server}{path} from {namespace}: {e}"))
}

/// The mean round-trip time in milliseconds.
pub fn round_trip(namespace: &str, target: &str, count: u32) -> Done<f64> {
    let said = format!("ping {target}");
    let text = output(inside(namespace, "ping").args(["-q", "-i", "0.1", "-w", "20", "-c", &count.to_string(), target]), &said)?;
    let mean = text.lines().find(|l| l.starts_with("rtt ")).and_then(|l| l.split('/').nth(4)).and_then(|m| m.parse().ok());
    mean.ok_or_else(|| format!("no answer to {said}: {text}"))
}

/// Starts the server that throughput is measured against; it ends with the lab.
pub fn throughput_server() -> Done {
    let mut command = inside(INET, "iperf3");
    command.args(["-s", "-B", WEB_ADDRESS]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().map_err(|e| format!("iperf3: {e}"))?;
    let listening = || within(INET, || TcpStream::connect((WEB_ADDRESS, 5201)).is_ok()).unwrap_or(false);
    if until(Duration::from_secs(5), listening) { Ok(()) } else { Err("the iperf3 server did not start".to_owned()) }
}

/// TCP throughput from a namespace to the internet, bits per second.
pub fn throughput(namespace: &str, seconds: u32) -> Done<f64> {
    let mut why = String::new();
    let mut rate = None;
    until(Duration::from_secs(u64::from(seconds) + 15), || {
        let mut command = inside(namespace, "iperf3");
        command.args(["-c", WEB_ADDRESS, "-J", "--connect-timeout", "3000", "-t", &seconds.to_string()]);
        match output(&mut command, "iperf3") {
            Ok(text) => {
                let report: Value = serde_json::from_str(&text).unwrap_or_default();
                rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
            }
            Err(error) => why = error,
        }
        rate.is_some()
    });
    rate.ok_or(why)
}

/// Resident memory, in KiB, of the mesh node's process in a container.
pub fn node_memory(id: u32) -> Done<u64> {
    let group = format!("pvl-{id}");
    let ours = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|g| g.contains(&group));
    let nodes = processes().filter(|(pid, line)| line.contains("node run") && ours(*pid));
    let sizes = nodes.filter_map(|(pid, _)| resident(pid));
    sizes.max().ok_or_else(|| format!("no node runs in container {id}"))
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
}
