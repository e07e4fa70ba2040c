//! The HTTPS transport.
//!
//! HTTP/1.1 only, no redirects, idle connections dropped before Proxmox's own five seconds, GETs repeated after a lost connection and
//! nothing else. Parameters of GET and DELETE go into the query, those of POST and PUT into a form body; Proxmox wants no chunked bodies.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;
use tokio::sync::Mutex;

use super::ticket::{self, Granted, RENEW_AFTER, Ticket};
use super::trust::{Trust, Verifier};
use super::{CallError, Challenge, Credentials, Executor, Upload};
use crate::ident::Secret;
use crate::pve::{ApiError, ErrorKind, Method, Principal, Request, Upid, reply};

/// pveproxy gives its workers 30 s for a call; ours lasts a little longer, so that its answer comes before our impatience.
const CALL_LIMIT: Duration = Duration::from_secs(40);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// pveproxy closes idle connections after 5 s; using one at that moment would lose a request.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
const UPLOAD_LIMIT: Duration = Duration::from_secs(15 * 60);
/// How often and with what pause a GET is repeated after a lost connection.
const GET_RETRIES: u32 = 3;
const GET_PAUSE: Duration = Duration::from_millis(400);
/// Largest reply read; a cluster of thousands of guests stays far below.
const MAX_REPLY: usize = 16 << 20;

/// How to reach an API.
#[derive(Debug, Clone)]
pub struct HttpsOptions {
    /// `https://host[:port]`; the port is 8006 unless named.
    pub url: Url,
    /// Which certificate is believed.
    pub trust: Trust,
    /// Who we are.
    pub credentials: Credentials,
}

/// The HTTPS transport.
#[derive(Debug)]
pub struct Https {
    client: reqwest::Client,
    base: Url,
    verifier: Arc<Verifier>,
    credentials: Credentials,
    ticket: Mutex<Option<Ticket>>,
    renew_after: Duration,
}

impl Https {
    /// Reads the address of an API: `https` only, port 8006 unless named, no path.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn parse_url(text: &str) -> Result<Url, CallError> {
        let invalid = |why: &str| CallError::Setup(format!("`{}` is not the address of a Proxmox API: {why}", text.escape_default()));
        let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let mut url = Url::parse(&full).map_err(|e| invalid(&e.to_string()))?;
        if url.scheme() != "https" {
            return Err(invalid("it starts with https://"));
        }
        if url.path() != "/" || url.query().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("it is https://HOST[:PORT] and nothing more"));
        }
        // `Url` forgets a port that is the scheme's default, so an explicit :443 is looked for in the text.
        if url.port().is_none() && !full.trim_end_matches('/').ends_with(":443") {
            url.set_port(Some(8006)).map_err(|()| invalid("it cannot have a port"))?;
        }
        Ok(url)
    }

    /// A transport; nothing is sent yet.
    ///
    /// # Errors
    /// If the trust settings or credentials cannot be used.
    pub fn new(options: HttpsOptions) -> Result<Self, CallError> {
        let verifier = Verifier::new(&options.trust)?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(verifier.client_config()?)
            .https_only(true)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("pvemesh/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .pool_idle_timeout(IDLE_LIMIT)
            .build()
            .map_err(|e| CallError::Setup(format!("the HTTPS client cannot be set up: {}", causes(&e))))?;
        let (credentials, ticket) = (options.credentials, Mutex::new(None));
        Ok(Self { client, base: options.url, verifier, credentials, ticket, renew_after: RENEW_AFTER })
    }

    /// Renews tickets of this age instead of the usual one.
    #[must_use]
    pub fn renewing_after(self, age: Duration) -> Self {
        Self { renew_after: age, ..self }
    }

    /// The fingerprint of the certificate that the host showed last.
    pub fn certificate(&self) -> Option<crate::pve::Fingerprint> {
        self.verifier.seen()
    }

    /// Logs in now, so that wrong credentials are found before anything else; without effect for tokens.
    ///
    /// # Errors
    /// If the login is refused or nobody answers.
    pub async fn log_in(&self) -> Result<(), CallError> {
        match &self.credentials {
            Credentials::Token { .. } => Ok(()),
            Credentials::Password { .. } => self.fresh_ticket(None).await.map(|_| ()),
        }
    }

    fn place(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    fn url(&self, path: &str) -> Result<Url, CallError> {
        self.base.join(&format!("/api2/json{path}")).map_err(|e| CallError::Setup(format!("{path} cannot be asked for: {e}")))
    }

    /// A valid ticket. With `refused`, the one Proxmox did not take: a new login unless somebody else made one meanwhile.
    async fn fresh_ticket(&self, refused: Option<&Secret>) -> Result<Ticket, CallError> {
        let Credentials::Password { user, password, .. } = &self.credentials else {
            return Err(CallError::Setup("a token needs no ticket".to_owned()));
        };
        let mut held = self.ticket.lock().await;
        if let Some(ticket) = held.as_ref() {
            let was_refused = refused == Some(&ticket.cookie);
            if ticket.is_fresh(self.renew_after) && !was_refused {
                return Ok(ticket.clone());
            }
            if ticket.can_renew() && !was_refused {
                // A valid ticket in the place of the password asks for no second factor.
                let reply = self.exchange(&ticket::login(user, &ticket.cookie), None).await;
                if let Ok(Granted::Ticket(renewed)) = reply.and_then(|reply| ticket::granted(&self.place(), &reply)) {
                    *held = Some(renewed.clone());
                    return Ok(renewed);
                }
            }
        }
        *held = None;
        let reply = self.exchange(&ticket::login(user, password), None).await?;
        let ticket = match ticket::granted(&self.place(), &reply)? {
            Granted::Ticket(ticket) => ticket,
            Granted::Half { ticket, challenge } => self.answer(user, &ticket, challenge).await?,
        };
        *held = Some(ticket.clone());
        Ok(ticket)
    }

    /// The second step of a login. A code is asked for and sent once: what is wrong about it will not be right the next time.
    async fn answer(&self, user: &str, half: &Secret, challenge: Challenge) -> Result<Ticket, CallError> {
        let Credentials::Password { second, .. } = &self.credentials else {
            return Err(CallError::Setup("a token has no second factor".to_owned()));
        };
        let needed = || CallError::SecondFactor { user: user.to_owned(), challenge };
        let code =
            second.as_ref().filter(|_| challenge.can_be_typed()).and_then(|second| second.code(user, &challenge)).ok_or_else(needed)?;
        let reply = match self.exchange(&ticket::second_step(user, half, &challenge, &code), None).await {
            Err(CallError::Api(error)) if error.status == 401 => return Err(CallError::CodeRefused { user: user.to_owned() }),
            other => other?,
        };
        match ticket::granted(&self.place(), &reply)? {
            Granted::Ticket(ticket) => Ok(ticket),
            Granted::Half { .. } => Err(CallError::CodeRefused { user: user.to_owned() }),
        }
    }

    fn authorised(&self, request: RequestBuilder, ticket: Option<&Ticket>) -> RequestBuilder {
        match (&self.credentials, ticket) {
            (Credentials::Token { id, secret }, _) => {
                sensitive(request, "authorization", &format!("PVEAPIToken={}={}", escaped(id), escaped(secret.expose())))
            }
            (Credentials::Password { .. }, Some(ticket)) => {
                let request = sensitive(request, "cookie", &format!("PVEAuthCookie={}", escaped(ticket.cookie.expose())));
                sensitive(request, "csrfpreventiontoken", ticket.csrf.expose())
            }
            (Credentials::Password { .. }, None) => request,
        }
    }

    fn encoded(&self, request: &Request) -> Result<RequestBuilder, CallError> {
        let url = self.url(&request.path)?;
        let params: Vec<(&str, &str)> = request.params.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        Ok(match request.method {
            Method::Get => self.client.get(url).query(&params),
            Method::Delete => self.client.delete(url).query(&params),
            Method::Post => self.client.post(url).form(&params),
            Method::Put => self.client.put(url).form(&params),
        }
        .timeout(CALL_LIMIT))
    }

    /// Sends one request as it is and reads the reply.
    async fn exchange(&self, request: &Request, ticket: Option<&Ticket>) -> Result<Value, CallError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let sent = self.authorised(self.encoded(request)?, ticket).send().await;
            match sent {
                Ok(response) => return self.read(response).await,
                Err(error) => {
                    let error = self.lost(&error);
                    let again = request.method.is_safe() && attempt < GET_RETRIES && matches!(error, CallError::Unreachable { .. });
                    if !again {
                        return Err(error);
                    }
                    tracing::debug!(%request, %error, "asking again");
                    tokio::time::sleep(GET_PAUSE).await;
                }
            }
        }
    }

    fn lost(&self, error: &reqwest::Error) -> CallError {
        let why = causes(error);
        self.verifier.explain(&self.place(), &why).unwrap_or(CallError::Unreachable { place: self.place(), why })
    }

    async fn read(&self, mut response: Response) -> Result<Value, CallError> {
        let status = response.status();
        let reason = response.extensions().get::<hyper::ext::ReasonPhrase>().map(|r| String::from_utf8_lossy(r.as_bytes()).into_owned());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.lost(&e))? {
            if body.len() + chunk.len() > MAX_REPLY {
                return Err(CallError::Garbled { place: self.place(), why: format!("it is longer than {MAX_REPLY} bytes") });
            }
            body.extend_from_slice(&chunk);
        }
        if status != StatusCode::OK {
            if status.is_redirection() {
                let why = format!("it redirects elsewhere (status {}), which no Proxmox API does", status.as_u16());
                return Err(CallError::Garbled { place: self.place(), why });
            }
            let reason = reason.as_deref().or_else(|| status.canonical_reason());
            return Err(ApiError::read(status.as_u16(), reason, &body).into());
        }
        let mut envelope: Value = serde_json::from_slice(&body)
            .map_err(|e| CallError::Garbled { place: self.place(), why: format!("it is no JSON ({e}); is this a Proxmox API?") })?;
        Ok(envelope.get_mut("data").map(Value::take).unwrap_or_default())
    }

    /// Runs `send` with credentials, and once more after a new login if the ticket was refused. A refused ticket means that nothing was
    /// done, so this repeats no request that took effect.
    async fn with_login<'a, T, F>(&'a self, send: F) -> Result<T, CallError>
    where
        F: Fn(Option<Ticket>) -> BoxFuture<'a, Result<T, CallError>>,
    {
        if matches!(self.credentials, Credentials::Token { .. }) {
            return send(None).await;
        }
        let ticket = self.fresh_ticket(None).await?;
        let outcome = send(Some(ticket.clone())).await;
        match &outcome {
            Err(CallError::Api(error)) if error.status == 401 && matches!(error.kind(), ErrorKind::Authentication | ErrorKind::Csrf) => {
                tracing::debug!(%error, "the ticket was refused, logging in again");
                let ticket = self.fresh_ticket(Some(&ticket.cookie)).await?;
                send(Some(ticket)).await
            }
            _ => outcome,
        }
    }

    async fn send_file(&self, upload: &Upload, ticket: Option<&Ticket>) -> Result<Upid, CallError> {
        let file_error = |source| CallError::File { path: upload.file.clone(), source };
        let file = tokio::fs::File::open(&upload.file).await.map_err(file_error)?;
        let length = file.metadata().await.map_err(file_error)?.len();
        // Proxmox's parser takes the parts in this order only, and a body of known length only.
        let form = Form::new()
            .text("content", "vztmpl")
            .text("checksum-algorithm", "sha256")
            .text("checksum", upload.sha256.clone())
            .part("filename", Part::stream_with_length(reqwest::Body::from(file), length).file_name(upload.name.clone()));
        let url = self.url(&format!("/nodes/{}/storage/{}/upload", upload.host, upload.storage))?;
        let request = self.client.post(url).timeout(UPLOAD_LIMIT).multipart(form);
        let response = self.authorised(request, ticket).send().await.map_err(|e| self.lost(&e))?;
        Ok(reply::upid(&self.read(response).await?)?)
    }
}

impl Executor for Https {
    fn call<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, CallError>> {
        Box::pin(async move {
            tracing::debug!(%request, "calling");
            self.with_login(|ticket| Box::pin(async move { self.exchange(request, ticket.as_ref()).await })).await
        })
    }

    fn upload<'a>(&'a self, upload: &'a Upload) -> BoxFuture<'a, Result<Upid, CallError>> {
        Box::pin(self.with_login(move |ticket| Box::pin(async move { self.send_file(upload, ticket.as_ref()).await })))
    }

    fn principal(&self) -> Principal {
        match &self.credentials {
            Credentials::Token { id, .. } => Principal::Token(id.clone()),
            Credentials::Password { user, .. } => Principal::of_user(user),
        }
    }

    fn place(&self) -> String {
        Self::place(self)
    }
}

/// Proxmox decodes percent signs in cookies and tokens, as browsers write them; so what could be taken for an escape is escaped.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '%' => out.push_str("%25"),
            '+' => out.push_str("%2B"),
            ';' => out.push_str("%3B"),
            ',' => out.push_str("%2C"),
            '"' => out.push_str("%22"),
            c => out.push(c),
        }
        out
    })
}

fn sensitive(request: RequestBuilder, name: &'static str, value: &str) -> RequestBuilder {
    match reqwest::header::HeaderValue::from_str(value) {
        Ok(mut value) => {
            value.set_sensitive(true);
            request.header(name, value)
        }
        // A value no header can carry is left out; Proxmox then answers that credentials are missing.
        Err(_) => request,
    }
}

/// An error with its causes on one line, without the address (which the caller names anyway).
fn causes(error: &reqwest::Error) -> String {
    use std::error::Error as _;
    let mut source = error.source();
    let mut text = if error.is_timeout() { "no answer in time".to_owned() } else { String::new() };
    while let Some(cause) = source {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_the_port_of_the_api() {
        for (text, url) in [
            ("pve", "https://pve:8006/"),
            ("https://192.168.1.2", "https://192.168.1.2:8006/"),
            ("https://pve.lan:8443/", "https://pve.lan:8443/"),
            ("https://pve.lan:443", "https://pve.lan/"),
            ("[fd00::2]", "https://[fd00::2]:8006/"),
        ] {
            assert_eq!(Https::parse_url(text).unwrap().as_str(), url, "{text}");
        }
        for text in ["http://pve", "https://user@pve", "https://pve/x", "https://pve?x", "", "ftp://pve", "a\nb c"] {
            assert!(Https::parse_url(text).is_err(), "{text:?}");
        }
    }
}
