//! What crosses the mesh: echo servers, connections, the page that tells callers their address.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Done;
use crate::machine::Machine;

/// Where every machine of a mesh echoes, TCP and UDP.
pub const ECHO: u16 = 7007;

/// Echoes TCP and UDP on all addresses, as long as the program runs.
pub fn echo(machine: &Machine) -> Done {
    let listener = machine.within(|| TcpListener::bind(("::", ECHO)))?.map_err(|e| format!("listen on {}: {e}", machine.name()))?;
    let socket = machine.within(|| UdpSocket::bind(("::", ECHO)))?.map_err(|e| format!("bind on {}: {e}", machine.name()))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut buffer = [0; 2048];
                while let Ok(n) = stream.read(&mut buffer) {
                    if n == 0 || stream.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    Ok(())
}

/// Serves a page that tells callers their address.
pub fn tell_address(machine: &Machine, address: &str) -> Done {
    let address: IpAddr = address.parse().map_err(|_| address.to_owned())?;
    let listener = machine.within(|| TcpListener::bind((address, 80)))?.map_err(|e| format!("listen on {}: {e}", machine.name()))?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let seen = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
            let _ = writeln!(stream, "{seen}");
        }
    });
    Ok(())
}

/// The address under which the server sees this machine.
pub fn seen_as(machine: &Machine, server: &str) -> Done<String> {
    let address: SocketAddr = format!("{server}:80").parse().map_err(|_| server.to_owned())?;
    machine.within(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).map_err(|e| e.to_string())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
        Ok(text.trim().to_owned())
    })?
}

/// Whether something listens there.
pub fn connects(machine: &Machine, address: &str) -> Done<bool> {
    let address: SocketAddr = address.parse().map_err(|_| address.to_owned())?;
    machine.within(move || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
}

/// Sends a line over a new TCP connection and gets it back.
pub fn tcp(from: &Machine, to: IpAddr) -> Done {
    from.within(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&(to, ECHO).into(), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut back = [0; 5];
        stream.write_all(b"hello")?;
        stream.read_exact(&mut back)?;
        if back == *b"hello" { Ok(()) } else { Err(std::io::Error::other("something else came back")) }
    })?
    .map_err(|e| format!("TCP from {} to {to}: {e}", from.name()))
}

/// Sends datagrams until one comes back.
pub fn udp(from: &Machine, to: IpAddr) -> Done {
    from.within(move || -> std::io::Result<()> {
        let socket = UdpSocket::bind(("::", 0)).or_else(|_| UdpSocket::bind(("0.0.0.0", 0)))?;
        let to = match to {
            IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
            v6 => v6,
        };
        socket.connect((to, ECHO))?;
        socket.set_read_timeout(Some(Duration::from_millis(400)))?;
        let mut back = [0; 16];
        for _ in 0..5 {
            let _ = socket.send(b"hello");
            if socket.recv(&mut back).is_ok_and(|n| back[..n] == *b"hello") {
                return Ok(());
            }
        }
        Err(std::io::Error::other("nothing came back"))
    })?
    .map_err(|e| format!("UDP from {} to {to}: {e}", from.name()))
}

/// One TCP connection that carries a byte there and back all the time.
pub struct Conversation {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Done<std::io::Result<Duration>>>>,
}

impl Conversation {
    pub fn start(from: &Machine, to: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = from.start(move || {
            let mut stream = TcpStream::connect_timeout(&(to, ECHO).into(), Duration::from_secs(3))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let (mut worst, mut byte) = (Duration::ZERO, [0]);
            while !told.load(Ordering::Relaxed) {
                let sent = Instant::now();
                stream.write_all(b"x")?;
                stream.read_exact(&mut byte)?;
                worst = worst.max(sent.elapsed());
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(worst)
        });
        Self { stop, thread: Some(thread) }
    }

    /// The longest that a byte took.
    pub fn end(mut self) -> Done<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        let worst = ended.ok_or("not started")?.map_err(|_| "the conversation died")??;
        worst.map_err(|e| format!("the connection through the mesh broke: {e}"))
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Asks a local API over its unix socket.
pub fn local_api(socket: &Path, host: &str, path: &str) -> Done<Vec<u8>> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        Ok(reply)
    };
    let reply = ask().map_err(|e| format!("{}: {e}", socket.display()))?;
    let head = reply.windows(4).position(|w| w == b"\r\n\r\n").ok_or("no HTTP answer")?;
    let (head, body) = (String::from_utf8_lossy(&reply[..head]).into_owned(), &reply[head + 4..]);
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_vec()),
        _ => Err(format!("{path}: {} {}", head.lines().next().unwrap_or_default(), String::from_utf8_lossy(body).trim())),
    }
}
