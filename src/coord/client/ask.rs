//! What the coordinator may ask of a node over the map stream, and the answers.

use std::net::IpAddr;

use crate::wire::control::{PingKind, PingRequest};

/// What to send, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// `HEAD` to this URL, outside the control connection.
    HeadOutside(String),
    /// `HEAD` to this path, inside the control connection.
    HeadInside(String),
    /// These bytes posted to this path, inside the control connection.
    Post(String, Vec<u8>),
    /// What comes of pings of these kinds to this address, each posted by itself.
    Pings(Vec<PingKind>, IpAddr, ReplyTo),
}

/// Where an answer is posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyTo {
    /// To this URL, outside the control connection.
    Outside(String),
    /// To this path, inside the control connection.
    Inside(String),
}

/// Decides how a request is answered; `None` if it is not. `payload` is the request's decoded payload.
///
/// Nobody but the coordinator is called on: it must not be able to make its nodes talk to others. What is answered inside the control
/// connection ends there whatever host the address names (a coordinator may know itself by another name than the node does); what is
/// answered outside has to be at the coordinator's own address.
pub fn answer_ping(request: &PingRequest, payload: &[u8], coordinator: &str) -> Option<Answer> {
    match request.types.as_str() {
        "" => Some(match reply_to(request, coordinator)? {
            ReplyTo::Inside(path) => Answer::HeadInside(path),
            ReplyTo::Outside(url) => Answer::HeadOutside(url),
        }),
        "c2n" => Some(Answer::Post(path_of(&request.url)?.to_owned(), answer_http(payload))),
        kinds => {
            let kinds = Some(PingKind::list(kinds)).filter(|kinds| !kinds.is_empty())?;
            Some(Answer::Pings(kinds, request.ip.parse().ok()?, reply_to(request, coordinator)?))
        }
    }
}

fn reply_to(request: &PingRequest, coordinator: &str) -> Option<ReplyTo> {
    if request.url_is_noise {
        return Some(ReplyTo::Inside(path_of(&request.url)?.to_owned()));
    }
    request.url.strip_prefix(coordinator).filter(|path| path.starts_with('/'))?;
    Some(ReplyTo::Outside(request.url.clone()))
}

/// Path and query of an `http(s)` URL.
fn path_of(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    rest.find('/').and_then(|at| rest.get(at..))
}

/// Answers an HTTP/1 request: `/echo` gives its body back, nothing else exists.
fn answer_http(request: &[u8]) -> Vec<u8> {
    let end_of_line = request.iter().position(|b| *b == b'\r' || *b == b'\n').unwrap_or(request.len());
    let line = String::from_utf8_lossy(request.get(..end_of_line).unwrap_or_default()).into_owned();
    let target = line.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let body = request.windows(4).position(|w| w == b"\r\n\r\n").and_then(|at| request.get(at + 4..)).unwrap_or_default();
    let (status, body): (_, &[u8]) = if path == "/echo" { ("200 OK", body) } else { ("400 Bad Request", b"unknown path\n") };
    let mut answer = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    const COORDINATOR: &str = "https://mesh.example";

    fn ask(url: &str, types: &str, inside: bool, payload: &[u8]) -> Option<Answer> {
        let request = PingRequest { url: url.to_owned(), types: types.to_owned(), url_is_noise: inside, ..Default::default() };
        answer_ping(&request, payload, COORDINATOR)
    }

    #[test]
    fn probes_are_answered_where_they_say() {
        let url = "https://mesh.example/machine/ping-response?id=1";
        assert_eq!(ask(url, "", false, b""), Some(Answer::HeadOutside(url.to_owned())));
        assert_eq!(ask(url, "", true, b""), Some(Answer::HeadInside("/machine/ping-response?id=1".to_owned())));
    }

    #[test]
    fn pings_are_of_the_kinds_that_are_known_each_once() {
        let ask = |url: &str, types: &str, ip: &str, inside| {
            let request =
                PingRequest { url: url.to_owned(), types: types.to_owned(), ip: ip.to_owned(), url_is_noise: inside, ..Default::default() };
            answer_ping(&request, b"", COORDINATOR)
        };
        let url = "https://mesh.example/machine/ping?id=1";
        let ip = "100.64.0.2";
        let at: IpAddr = ip.parse().unwrap();
        let both = vec![PingKind::Disco, PingKind::Tsmp];
        assert_eq!(ask(url, "TSMP,disco,TSMP,x", ip, false), Some(Answer::Pings(both, at, ReplyTo::Outside(url.to_owned()))));
        let others = vec![PingKind::Icmp, PingKind::PeerApi];
        let inside = ReplyTo::Inside("/machine/ping?id=1".to_owned());
        assert_eq!(ask("https://x/machine/ping?id=1", "ICMP,peerapi", ip, true), Some(Answer::Pings(others, at, inside)));
        for (url, types, ip) in [(url, "tsmp", ip), (url, "TSMP", "exit-1"), (url, "TSMP", ""), ("https://192.168.1.1/", "TSMP", ip)] {
            assert_eq!(ask(url, types, ip, false), None, "{url} {types} {ip}");
        }
    }

    #[test]
    fn nobody_else_is_called_on() {
        for url in ["http://192.168.1.1/", "https://mesh.example.evil/x", "https://mesh.example@evil/x", "", "/x"] {
            assert_eq!(ask(url, "", false, b""), None, "{url}");
        }
        // Inside, the host does not matter: the answer stays in the connection.
        assert_eq!(ask("https://192.168.1.1/x?y", "", true, b""), Some(Answer::HeadInside("/x?y".to_owned())));
        assert!(matches!(ask("https://other.name/r", "c2n", false, b""), Some(Answer::Post(path, _)) if path == "/r"));
        for url in ["", "/x", "https://mesh.example", "ftp://mesh.example/x"] {
            assert_eq!(ask(url, "", true, b""), None, "{url}");
            assert_eq!(ask(url, "c2n", true, b""), None, "{url}");
        }
    }

    #[test]
    fn echo_gives_the_body_back_and_other_paths_do_not_exist() {
        let text = |payload: &[u8]| match ask("https://mesh.example/r/1", "c2n", true, payload) {
            Some(Answer::Post(path, bytes)) if path == "/r/1" => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        };
        assert!(text(b"POST /echo?x HTTP/1.1\r\nHost: x\r\n\r\nhello").ends_with("Content-Length: 5\r\n\r\nhello"));
        for payload in [&b"GET /debug/prefs HTTP/1.1\r\n\r\n"[..], b"", b"\xff\xff", b"GET"] {
            assert!(text(payload).starts_with("HTTP/1.1 400 "), "{payload:?}");
        }
    }
}
