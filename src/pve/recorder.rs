//! Requests built by the generated types of the `proxmox-api` crate: a "client" that records instead of sending.
//!
//! The crate's builders give parameter names, types and ranges as the schema has them; its own HTTP client does not fit (it drops the
//! `errors` map, fails on void replies and posts uploads as forms). So every call is made against [`Recorder`], whose future is ready
//! at once with the recorded request in the place of an error.

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proxmox_api::client::{Client, Method as ApiMethod};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Method, Param, Request};

/// Why a request could not be built: a value is outside what the schema allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The value of a parameter is not allowed.
    #[error("{name} cannot be `{value}`: {why}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// What was given, escaped.
        value: String,
        /// What is allowed.
        why: String,
    },
    /// A generated type did not turn into plain parameters; a defect of ours.
    #[error("the request cannot be encoded: {0}")]
    Encoding(String),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Recorder;

#[derive(Debug)]
pub(super) enum Recorded {
    Request(Request),
    Unencodable(String),
}

impl Client for Recorder {
    type Error = Recorded;

    async fn request_with_body_and_query<B, Q, R>(
        &self,
        method: ApiMethod,
        path: &str,
        body: Option<&B>,
        query: Option<&Q>,
    ) -> Result<R, Recorded>
    where
        B: Serialize,
        Q: Serialize,
        R: DeserializeOwned,
    {
        let mut params = BTreeMap::new();
        let encoded = body
            .map(serde_json::to_value)
            .into_iter()
            .chain(query.map(serde_json::to_value))
            .try_for_each(|part| flatten(part.map_err(|e| e.to_string())?, &mut params));
        Err(match encoded {
            Ok(()) => Recorded::Request(Request { method: method_of(method), path: path.to_owned(), params }),
            Err(why) => Recorded::Unencodable(why),
        })
    }
}

fn method_of(method: ApiMethod) -> Method {
    match method {
        ApiMethod::Get => Method::Get,
        ApiMethod::Post => Method::Post,
        ApiMethod::Put => Method::Put,
        ApiMethod::Delete => Method::Delete,
    }
}

fn flatten(value: Value, params: &mut BTreeMap<String, Param>) -> Result<(), String> {
    let fields = match value {
        Value::Null => return Ok(()),
        Value::Object(fields) => fields,
        other => return Err(format!("parameters are not an object: {other}")),
    };
    for (name, value) in fields {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text,
            // At the top level the API takes 1 and 0 only (type check of `boolean`).
            Value::Bool(yes) => u8::from(yes).to_string(),
            Value::Number(number) => number.to_string(),
            other => return Err(format!("{name} is not a plain value: {other}")),
        };
        params.insert(name, Param::Plain(text));
    }
    Ok(())
}

/// The request that a call of the generated client would have sent.
pub(super) fn record<R>(call: impl Future<Output = Result<R, Recorded>>) -> Result<Request, BuildError> {
    match pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(Recorded::Request(request))) => Ok(request),
        Poll::Ready(Err(Recorded::Unencodable(why))) => Err(BuildError::Encoding(why)),
        Poll::Ready(Ok(_)) | Poll::Pending => Err(BuildError::Encoding("the generated call did not reach the recorder".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proxmox_api::nodes::NodesClient;
    use proxmox_api::nodes::node::lxc::PostParams;

    use super::*;

    #[test]
    fn generated_calls_become_plain_parameters() {
        let mut params = PostParams::new("local:vztmpl/x.tar.gz".to_owned().try_into().unwrap(), 101.try_into().unwrap());
        params.unprivileged = Some(true);
        params.devs.insert(0, "/dev/net/tun".to_owned());
        let lxc = NodesClient::new(Recorder).node("pve").lxc();
        let request = record(lxc.post(params)).unwrap();
        assert_eq!(request.to_string(), "POST /nodes/pve/lxc dev0=/dev/net/tun ostemplate=local:vztmpl/x.tar.gz unprivileged=1 vmid=101");
    }
}
