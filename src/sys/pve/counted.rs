//! An executor that counts: how many calls a command made is part of what it reports.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{CallError, Executor, GuestConfigs, Upload};
use crate::pve::{Principal, Request, Upid};

/// How many calls were made so far, uploads among them.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<AtomicU64>);

impl Calls {
    /// The number.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Passes calls on and counts them.
pub struct Counted {
    inner: Box<dyn Executor>,
    calls: Calls,
}

impl Counted {
    /// Around this executor.
    pub fn new(inner: Box<dyn Executor>) -> (Self, Calls) {
        let calls = Calls::default();
        (Self { inner, calls: calls.clone() }, calls)
    }
}

impl Executor for Counted {
    fn call<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, CallError>> {
        self.calls.0.fetch_add(1, Ordering::Relaxed);
        self.inner.call(request)
    }

    fn upload<'a>(&'a self, upload: &'a Upload) -> BoxFuture<'a, Result<Upid, CallError>> {
        self.calls.0.fetch_add(1, Ordering::Relaxed);
        self.inner.upload(upload)
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        self.inner.settle()
    }

    fn guest_configs(&self) -> Option<&GuestConfigs> {
        self.inner.guest_configs()
    }

    fn principal(&self) -> Principal {
        self.inner.principal()
    }

    fn place(&self) -> String {
        self.inner.place()
    }
}
