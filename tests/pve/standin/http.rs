//! HTTP/1.1 as PVE's own daemon speaks it: its limits, its refusals, its reason phrases, and connections closed after every error.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};

use base64::Engine as _;
use serde_json::{Value, json};

use super::schema::{Faults, name_nested};

/// Header bytes of one request.
const MAX_HEAD: u64 = 8 * 1024;
/// Bytes of a body that is not an upload.
pub const MAX_BODY: usize = 512 * 1024;
/// The same before PVE 8.4.
pub const MAX_BODY_BEFORE_8_4: usize = 64 * 1024;
/// Bytes of an upload; the real host has its disk as the limit.
const MAX_UPLOAD: usize = 256 * 1024 * 1024;
/// Of a body that is too long, what is still taken.
const MAX_UNREAD: u64 = 4 << 20;
/// Requests on one connection.
pub const MAX_REQUESTS: u32 = 100;

/// One parameter as it came.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    /// One value of a form or a query.
    Text(String),
    /// A name given more than once.
    Many(Vec<String>),
    /// A member of a JSON body.
    Json(Value),
}

/// A request, its parameters not yet looked at.
#[derive(Debug, Default)]
pub struct Request {
    /// `GET`, `POST` ...
    pub method: String,
    /// The path without the query, as sent.
    pub path: String,
    /// The query as sent.
    pub query: String,
    /// Header values by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Whether it is the one request whose body is multipart.
    pub fn is_upload(&self) -> bool {
        self.method == "POST" && self.path.ends_with("/upload") && self.header("content-type").starts_with("multipart/form-data")
    }

    /// All parameters: those of the query override equal ones of the body.
    ///
    /// # Errors
    /// The refusal of a body that cannot be read.
    pub fn parameters(&self) -> Result<BTreeMap<String, Param>, Reply> {
        let mut found = BTreeMap::new();
        let kind = self.header("content-type").split(';').next().unwrap_or_default().trim();
        match kind {
            "" | "application/x-www-form-urlencoded" => found = form(&String::from_utf8_lossy(&self.body)),
            "application/json" => match serde_json::from_slice(&self.body) {
                Ok(Value::Object(members)) => found.extend(members.into_iter().map(|(k, v)| (k, Param::Json(v)))),
                Ok(_) => return Err(Reply::text(500, "Not a HASH reference")),
                Err(error) => {
                    let what = "malformed JSON string, neither tag, array, object, number, string or atom, at character offset";
                    let at = error.column();
                    let place = "(before \"(end of string)\") at /usr/share/perl5/PVE/APIServer/AnyEvent.pm line 934.";
                    return Err(Reply::text(500, &format!("{what} {at} {place}")));
                }
            },
            "multipart/form-data" => {}
            other => return Err(Reply::text(506, &format!("upload 'Content-Type '{other}' not implemented"))),
        }
        found.extend(form(&self.query));
        Ok(found)
    }
}

/// Decodes as PVE does: `&` and `;` separate, and a value ends at a second `=`.
fn form(text: &str) -> BTreeMap<String, Param> {
    let mut found: BTreeMap<String, Param> = BTreeMap::new();
    for pair in text.split(['&', ';']).filter(|p| !p.is_empty()) {
        let mut halves = pair.split('=');
        let mut half = || percent_decode(&halves.next().unwrap_or_default().replace('+', " "));
        let (name, value) = (half(), half());
        let merged = match found.remove(&name) {
            None => Param::Text(value),
            Some(Param::Many(mut values)) => {
                values.push(value);
                Param::Many(values)
            }
            Some(Param::Text(first)) => Param::Many(vec![first, value]),
            Some(json) => json,
        };
        found.insert(name, merged);
    }
    found
}

/// Undoes percent-encoding; a `+` stays one (only in forms it is a blank).
pub fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                let digits = [*high, *low];
                match std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok()) {
                    Some(byte) => {
                        bytes.push(byte);
                        rest = after;
                    }
                    None => bytes.push(b'%'),
                }
            }
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Reason phrase; PVE puts the message here.
    pub reason: String,
    /// The envelope; `None` is an empty body.
    pub json: Option<Value>,
    /// A body that is not JSON.
    pub plain: Option<String>,
    /// Seconds it is held back, as PVE does with a failed login.
    pub held_back: bool,
}

impl Reply {
    /// `{"data": ...}`.
    pub fn data(data: Value) -> Self {
        Self::envelope(json!({ "data": data }))
    }

    /// A success with more in the envelope than `data`.
    pub fn envelope(json: Value) -> Self {
        Self { status: 200, reason: "OK".to_owned(), json: Some(json), plain: None, held_back: false }
    }

    /// A refusal without a body.
    pub fn empty(status: u16, reason: &str) -> Self {
        Self { status, reason: reason.to_owned(), json: None, plain: None, held_back: status == 401 }
    }

    /// A refusal whose body is the bare text.
    pub fn text(status: u16, reason: &str) -> Self {
        Self { plain: Some(format!("{reason}\n")), ..Self::empty(status, reason) }
    }

    /// A refusal as the formatter writes it: the text in the reason phrase and in `message`.
    pub fn error(status: u16, message: &str) -> Self {
        let json = json!({ "data": null, "message": format!("{message}\n") });
        Self { json: Some(json), ..Self::empty(status, message) }
    }

    /// A Perl `die`: status 500.
    pub fn died(message: &str) -> Self {
        Self::error(500, message)
    }

    /// A missing privilege, or something only root@pam may do.
    pub fn forbidden(what: &str) -> Self {
        Self::error(403, &if what.is_empty() { "Permission check failed".to_owned() } else { format!("Permission check failed ({what})") })
    }

    /// Wrong parameters, with the reason for each.
    pub fn parameters(faults: Faults) -> Self {
        let mut reply = Self::error(400, "Parameter verification failed.");
        if let Some(Value::Object(members)) = &mut reply.json {
            members.insert("errors".to_owned(), json!(name_nested(faults)));
        }
        reply
    }

    /// One wrong parameter.
    pub fn parameter(name: &str, reason: &str) -> Self {
        Self::parameters(Faults::from([(name.to_owned(), reason.to_owned())]))
    }

    /// Writes it; `message` stands in bodies since PVE 8.4 only.
    pub fn write(&self, to: &mut impl Write, keep_alive: bool, with_message: bool) -> io::Result<()> {
        let mut json = self.json.clone();
        if let Some(Value::Object(members)) = &mut json
            && !with_message
        {
            members.remove("message");
        }
        let (kind, body) = match (&json, &self.plain) {
            (Some(json), _) => ("application/json;charset=UTF-8", json.to_string()),
            (None, Some(text)) => ("text/plain", text.clone()),
            (None, None) => ("", String::new()),
        };
        let reason = self.reason.lines().next().unwrap_or_default();
        let mut head = format!("HTTP/1.1 {} {reason}\r\nCache-Control: max-age=0\r\n", self.status);
        head += &format!("Connection: {}\r\nServer: pve-api-daemon/3.0\r\n", if keep_alive { "Keep-Alive" } else { "close" });
        if !kind.is_empty() {
            head += &format!("Content-Type: {kind}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        to.write_all(head.as_bytes())?;
        to.write_all(body.as_bytes())?;
        to.flush()
    }
}

/// Reads one request; `Ok(None)` at the end of the connection, `Err(Ok(reply))` for a refusal that closes it. `most` bytes
/// may be in a body that is no upload.
pub fn read(from: &mut BufReader<impl Read>, most: usize) -> Result<Option<Request>, Result<Reply, io::Error>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        let room = MAX_HEAD.saturating_sub(before as u64);
        let mut line = Vec::new();
        from.take(room).read_until(b'\n', &mut line).map_err(Err)?;
        head += &String::from_utf8_lossy(&line);
        match line.as_slice() {
            [] if before == 0 => return Ok(None),
            [] => return Err(Ok(Reply::text(400, "bad request"))),
            b"\r\n" | b"\n" if before > 0 => break,
            b"\r\n" | b"\n" => head.clear(),
            _ => {}
        }
    }
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let mut request = Request { method: first.next().unwrap_or_default().to_owned(), ..Request::default() };
    let target = first.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (request.path, request.query) = (path.to_owned(), query.to_owned());
    if !matches!(first.next(), Some("HTTP/1.1" | "HTTP/1.0")) {
        return Err(Ok(Reply::text(506, "http protocol version not supported")));
    }
    for line in lines.filter(|l| !l.is_empty()) {
        if let Some((name, value)) = line.split_once(':') {
            request.headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    if !matches!(request.method.as_str(), "GET" | "POST" | "PUT" | "DELETE") {
        return Err(Ok(Reply::empty(501, &format!("method '{}' not available", request.method))));
    }
    if !request.header("transfer-encoding").is_empty() {
        return Err(Ok(Reply::text(501, "chunked transfer encoding not supported")));
    }
    let length: usize = request.header("content-length").parse().unwrap_or(0);
    if length > 0 && matches!(request.method.as_str(), "GET" | "DELETE") {
        return Err(Ok(Reply::text(501, &format!("Unexpected content for method '{}'", request.method))));
    }
    if length > if request.is_upload() { MAX_UPLOAD } else { most } {
        // Taken all the same, within bounds: closing over unread data would take the reply back.
        let _ = io::copy(&mut from.by_ref().take(MAX_UNREAD.min(length as u64)), &mut io::sink());
        return Err(Ok(Reply::text(501, "for data too large")));
    }
    request.body = vec![0; length];
    from.read_exact(&mut request.body).map_err(Err)?;
    Ok(Some(request))
}

/// Base64 of random bytes, for tickets and the like.
pub fn random_text(bytes: usize) -> String {
    let mut raw = vec![0; bytes];
    getrandom::fill(&mut raw).expect("the system has randomness");
    base64::engine::general_purpose::STANDARD.encode(raw)
}
