//! A bare HTTPS client that shows what came over the wire, reason phrase included.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::standin::Standin;

/// A reply as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub reason: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    pub fn data(&self) -> Value {
        self.json()["data"].clone()
    }
}

pub type Connection = BufReader<StreamOwned<ClientConnection, TcpStream>>;

pub fn connect(standin: &Standin) -> Connection {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(standin.certificate().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    BufReader::new(StreamOwned::new(session, TcpStream::connect(standin.address()).unwrap()))
}

/// Sends bytes as they are; nothing if the connection ends without a reply.
pub fn send(connection: &mut Connection, bytes: &[u8]) -> Option<Answer> {
    let _ = connection.get_mut().write_all(bytes);
    let _ = connection.get_mut().flush();
    let mut line = String::new();
    connection.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut first = line.trim_end().splitn(3, ' ').skip(1);
    let status = first.next()?.parse().ok()?;
    let reason = first.next().unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0)];
    connection.read_exact(&mut body).ok()?;
    Some(Answer { status, reason, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

pub fn encode(params: &[(String, String)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish()
}

/// One call on a connection of its own.
pub fn call(standin: &Standin, headers: &str, method: &str, path: &str, params: &[(String, String)]) -> Answer {
    let form = encode(params);
    let path = path.replace(' ', "%20");
    let text = if method == "POST" || method == "PUT" {
        let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
        format!("{method} /api2/json{path} HTTP/1.1\r\nHost: x\r\n{headers}{kind}Content-Length: {}\r\n\r\n{form}", form.len())
    } else {
        let query = if form.is_empty() { String::new() } else { format!("?{form}") };
        format!("{method} /api2/json{path}{query} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
    };
    send(&mut connect(standin), text.as_bytes()).expect("a reply")
}

/// Credentials of root@pam by password, as headers.
pub fn log_in(standin: &Standin, password: &str) -> String {
    let params = [("username".to_owned(), "root@pam".to_owned()), ("password".to_owned(), password.to_owned())];
    let data = call(standin, "", "POST", "/access/ticket", &params).data();
    let ticket: String = form_urlencoded::byte_serialize(data["ticket"].as_str().unwrap().as_bytes()).collect();
    format!("Cookie: PVEAuthCookie={ticket}\r\nCSRFPreventionToken: {}\r\n", data["CSRFPreventionToken"].as_str().unwrap())
}

pub fn token(id: &str) -> String {
    format!("Authorization: PVEAPIToken={id}={}\r\n", super::TOKEN_SECRET)
}
