//! Asking by HTTP (RFC 8484): servers that the coordinator names by URL, and exit nodes.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, RwLock};

use bytes::Bytes;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use reqwest::dns::{Addrs, Name as HostName, Resolve, Resolving};
use tokio::time::timeout;

use super::Known;
use super::forward::{self, LIMIT, MAX_REPLY, Way};
use crate::names::{is_reply_to, with_id};
use crate::sys::entropy;
use crate::sys::userspace::Dialer;

const MESSAGE: &str = "application/dns-message";

/// What asks. The connections stay open for the next question.
#[derive(Debug)]
pub(super) struct HttpClient {
    known: Arc<RwLock<Known>>,
    client: OnceLock<reqwest::Client>,
    dialer: Option<Dialer>,
}

/// Resolves a server's own name by the machine's servers: the system's resolver would ask us.
struct ByMachine(Arc<RwLock<Known>>);

impl Resolve for ByMachine {
    fn resolve(&self, name: HostName) -> Resolving {
        let fallback = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).fallback.clone();
        Box::pin(async move {
            let number = entropy::bytes::<2>().map(u16::from_be_bytes)?;
            let mut question = Message::new(number, MessageType::Query, OpCode::Query);
            question.metadata.recursion_desired = true;
            question.add_query(Query::query(Name::from_ascii(format!("{}.", name.as_str().trim_end_matches('.')))?, RecordType::A));
            let reply = forward::plainly(&fallback, &question.to_vec()?, Way::Outside).await.ok_or("no server answers")?;
            let answers = Message::from_vec(&reply)?.answers;
            let found: Vec<SocketAddr> = answers
                .iter()
                .filter_map(|record| if let RData::A(a) = &record.data { Some(SocketAddr::new(a.0.into(), 0)) } else { None })
                .collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

impl HttpClient {
    pub(super) fn new(known: Arc<RwLock<Known>>, dialer: Option<Dialer>) -> Self {
        Self { known, client: OnceLock::new(), dialer }
    }

    fn client(&self) -> io::Result<&reqwest::Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let builder =
            rustls::ClientConfig::builder_with_provider(crate::sys::certificate::provider()).with_safe_default_protocol_versions();
        let roots = crate::sys::dial::roots(None).map_err(io::Error::other)?;
        let tls = builder.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .dns_resolver(Arc::new(ByMachine(self.known.clone())))
            .timeout(LIMIT)
            .build()
            .map_err(io::Error::other)?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Asks, and gives the reply the question's number.
    pub(super) async fn ask(&self, url: &str, question: &[u8]) -> io::Result<Vec<u8>> {
        // The number is 0, so that the same question looks the same to a cache (section 4.1).
        let numbered = with_id(question, 0);
        let reply = match exit_node(url).and_then(|address| Some((address, self.dialer.as_ref()?))) {
            Some((address, dialer)) => {
                timeout(LIMIT, through(dialer, address, url, &numbered)).await.map_err(|_| io::ErrorKind::TimedOut)??
            }
            None => self.post(url, &numbered).await?,
        };
        if !is_reply_to(&reply, &numbered) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no reply to the question"));
        }
        Ok(with_id(&reply, question.first_chunk::<2>().copied().map_or(0, u16::from_be_bytes)))
    }

    async fn post(&self, url: &str, question: &[u8]) -> io::Result<Vec<u8>> {
        let request = self.client()?.post(url).header("content-type", MESSAGE).header("accept", MESSAGE).body(question.to_vec());
        let mut response = request.send().await.map_err(io::Error::other)?;
        check(response.status(), response.headers())?;
        let mut reply = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(io::Error::other)? {
            if reply.len() + chunk.len() > MAX_REPLY {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply is too long"));
            }
            reply.extend_from_slice(&chunk);
        }
        Ok(reply)
    }
}

fn check(status: StatusCode, headers: &HeaderMap) -> io::Result<()> {
    let is_message = headers.get(CONTENT_TYPE).is_some_and(|kind| kind == MESSAGE);
    if status.is_success() && is_message { Ok(()) } else { Err(io::Error::other(format!("the server says {status}"))) }
}

/// The address in an exit node's URL: only those are reached without TLS.
fn exit_node(url: &str) -> Option<SocketAddr> {
    url.parse::<Uri>().ok().filter(|url| url.scheme_str() == Some("http"))?.authority()?.as_str().parse().ok()
}

/// Asks an exit node where the system knows no way into the mesh.
async fn through(dialer: &Dialer, address: SocketAddr, url: &str, question: &[u8]) -> io::Result<Vec<u8>> {
    let stream = TokioIo::new(dialer.connect(&[address]).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
    let work = async {
        let path = url.parse::<Uri>().map_err(io::Error::other)?.path().to_owned();
        let request = Request::post(path).header(HOST, address.to_string()).header(CONTENT_TYPE, MESSAGE).header(ACCEPT, MESSAGE);
        let request = request.body(Full::new(Bytes::copy_from_slice(question))).map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        check(response.status(), response.headers())?;
        let body = Limited::new(response.into_body(), MAX_REPLY).collect().await.map_err(io::Error::other)?;
        Ok(body.to_bytes().to_vec())
    };
    tokio::select! {
        result = work => result,
        // It ends by itself only with the connection.
        Err(error) = connection => Err(io::Error::other(error)),
    }
}
