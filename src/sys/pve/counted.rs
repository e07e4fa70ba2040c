//! An executor that counts: how many calls a command made is part of what it reports.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{CallError, Executor, Upload};
use crate::pve::{Identity, Request, Upid};

/// Passes calls on and counts them.
pub struct Counted {
    inner: Box<dyn Executor>,
    calls: AtomicU64,
}

impl Counted {
    /// Around this executor.
    pub fn new(inner: Box<dyn Executor>) -> Self {
        Self { inner, calls: AtomicU64::new(0) }
    }

    /// Calls so far, uploads among them.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Executor for Counted {
    fn call<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, CallError>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.inner.call(request)
    }

    fn upload<'a>(&'a self, upload: &'a Upload) -> BoxFuture<'a, Result<Upid, CallError>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.inner.upload(upload)
    }

    fn identity(&self) -> Identity {
        self.inner.identity()
    }

    fn place(&self) -> String {
        self.inner.place()
    }
}
