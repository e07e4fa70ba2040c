//! The internet's web server: it answers every request with the caller's address.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use crate::run::Done;

/// Serves port 80 in the namespace it was started in, both address families.
pub fn serve() -> Done {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).map_err(|e| format!("listen on port 80: {e}"))?;
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || drop(answer(stream)));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let caller = stream.peer_addr()?.ip().to_canonical();
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = format!("{caller}\n");
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}
