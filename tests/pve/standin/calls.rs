//! The calls that were made, for tests that count them or look for what must not be in them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::faults::is_write;
use super::http::{Request, percent_decode};

/// A call as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `GET`, `POST` ...
    pub method: String,
    /// The path below `/api2/json`.
    pub path: String,
    /// The parameters as sent: query and form, decoded; of an upload only the size.
    pub params: Vec<(String, String)>,
    /// It came through `pvesh`.
    pub by_pvesh: bool,
}

impl Call {
    /// Whether it changes something; logging in does not.
    pub fn is_write(&self) -> bool {
        is_write(&self.method, &self.path)
    }

    /// A parameter's value.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// `PUT /nodes/pve/lxc/101/config`.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// All of them, in their order.
#[derive(Debug, Default)]
pub struct Calls(Mutex<Vec<Call>>, AtomicUsize);

/// A call being answered, until it is dropped.
pub struct Answering<'a>(&'a AtomicUsize);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Calls {
    pub(super) fn note(&self, request: &Request, by_pvesh: bool) -> Answering<'_> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let path = percent_decode(request.path.strip_prefix("/api2/json").unwrap_or(&request.path));
        let mut params: Vec<(String, String)> = form_urlencoded::parse(request.query.as_bytes()).into_owned().collect();
        if request.is_upload() {
            params.push(("(bytes)".to_owned(), request.body.len().to_string()));
        } else {
            params.extend(form_urlencoded::parse(&request.body).into_owned());
        }
        self.0.lock().unwrap().push(Call { method: request.method.clone(), path, params, by_pvesh });
        Answering(&self.1)
    }

    /// Whether none is being answered.
    pub fn is_idle(&self) -> bool {
        self.1.load(Ordering::SeqCst) == 0
    }

    /// All calls so far.
    pub fn all(&self) -> Vec<Call> {
        self.0.lock().unwrap().clone()
    }

    /// Those that changed something.
    pub fn writes(&self) -> Vec<Call> {
        self.all().into_iter().filter(Call::is_write).collect()
    }

    /// Forgets them.
    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}
