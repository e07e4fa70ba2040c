//! The administration requests, whichever way they came in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hyper::{Method, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::body::{Body, json};
use super::hub::Hub;
use crate::coord::server::{CommandError, Moment, Server};
use crate::ident::{NodeId, Secret, UserId};
use crate::wire::admin::{
    AdminFailure, Approve, ApproveRoutes, Backup, CreateKey, CreateUser, DnsSettings, Drain, Expire, MoveNode, Rename, RenameUser,
    SetAddress, SetPolicy, SetTags,
};
use crate::wire::control::{DerpRegion, json as lenient};

/// Values in a relay's region.
const MAX_RELAY_VALUES: usize = 1024;

/// Which way a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the control protocol, from a machine key that is trusted with administration.
    Control,
    /// Over the local socket, from someone who may read the state's files as well.
    Socket,
}

/// The answer to a request; `path` is what follows the prefix.
pub(super) async fn answer(hub: &Hub, way: Way, method: &Method, path: &str, body: &Bytes) -> Response<Body> {
    let answer = match (method.as_str(), path.trim_end_matches('/'), way) {
        ("GET", "backup", Way::Socket) => backup(hub).await,
        ("GET", "backup", Way::Control) => {
            let error = "the server's key leaves the coordinator's machine by its local socket only: run it there";
            Err((StatusCode::FORBIDDEN, error.to_owned()))
        }
        _ => route(hub, method, path, body).await,
    };
    match answer {
        Ok(response) => response,
        Err((status, error)) => json(status, &AdminFailure { error }),
    }
}

type Refused = (StatusCode, String);

async fn route(hub: &Hub, method: &Method, path: &str, body: &Bytes) -> Result<Response<Body>, Refused> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match (method.as_str(), parts.as_slice()) {
        ("GET", ["info"]) => {
            let key = hub.server_key();
            run(hub, |server, _| Ok(server.info(env!("CARGO_PKG_VERSION"), key))).await
        }
        ("GET", ["users"]) => run(hub, |server, _| Ok(server.users())).await,
        ("POST", ["users"]) => {
            let wanted: CreateUser = parse(body)?;
            run(hub, |server, at| server.create_user(at, &wanted.name)).await
        }
        ("DELETE", ["users", id]) => {
            let id = UserId(number(id)?);
            run(hub, |server, _| server.delete_user(id).map(nothing)).await
        }
        ("POST", ["users", id, "name"]) => {
            let (id, wanted) = (UserId(number(id)?), parse::<RenameUser>(body)?);
            run(hub, |server, _| server.rename_user(id, &wanted.name)).await
        }
        ("GET", ["keys"]) => run(hub, |server, _| Ok(server.keys())).await,
        ("POST", ["keys"]) => {
            let wanted: CreateKey = parse(body)?;
            run(hub, |server, at| server.create_key(at, &wanted)).await
        }
        ("DELETE", ["keys", id]) => {
            let id = number(id)?;
            run(hub, |server, _| server.revoke_key(id).map(nothing)).await
        }
        ("GET", ["nodes"]) => run(hub, |server, _| Ok(server.nodes())).await,
        ("DELETE", ["nodes", id]) => {
            let id = NodeId(number(id)?);
            run(hub, |server, at| server.delete_node(at, id).map(nothing)).await
        }
        ("POST", ["nodes", id, "routes"]) => {
            let (id, wanted) = (NodeId(number(id)?), parse::<ApproveRoutes>(body)?);
            run(hub, |server, at| server.approve_routes(at, id, &wanted.routes)).await
        }
        ("POST", ["nodes", id, "name"]) => {
            let (id, wanted) = (NodeId(number(id)?), parse::<Rename>(body)?);
            run(hub, |server, at| server.rename(at, id, &wanted.name)).await
        }
        ("POST", ["nodes", id, "expire"]) => {
            let (id, wanted) = (NodeId(number(id)?), parse::<Expire>(body)?);
            run(hub, |server, at| server.expire_node(at, id, wanted)).await
        }
        ("POST", ["nodes", id, "address"]) => {
            let (id, wanted) = (NodeId(number(id)?), parse::<SetAddress>(body)?);
            run(hub, |server, at| server.set_address(at, id, wanted.address)).await
        }
        ("POST", ["nodes", id, "tags"]) => {
            let (id, wanted) = (NodeId(number(id)?), parse::<SetTags>(body)?);
            run(hub, |server, at| server.tag_node(at, id, &wanted.tags)).await
        }
        ("POST", ["nodes", id, "drain"]) => {
            let (id, wanted) = (NodeId(number(id)?), parse::<Drain>(body)?);
            run(hub, |server, at| server.drain(at, id, wanted)).await
        }
        ("POST", ["nodes", id, "user"]) => {
            let (id, wanted) = (NodeId(number(id)?), parse::<MoveNode>(body)?);
            run(hub, |server, at| server.move_node(at, id, &wanted.user)).await
        }
        ("GET", ["policy"]) => run(hub, |server, _| Ok(server.policy())).await,
        ("POST", ["policy"]) => {
            let wanted: SetPolicy = parse(body)?;
            run(hub, |server, at| server.set_policy(at, &wanted)).await
        }
        ("DELETE", ["policy"]) => run(hub, |server, _| server.remove_policy().map(nothing)).await,
        ("GET", ["dns"]) => run(hub, |server, _| Ok(server.dns())).await,
        ("POST", ["dns"]) => {
            let wanted: DnsSettings = parse(body)?;
            run(hub, |server, _| server.set_dns(&wanted)).await
        }
        ("GET", ["relays"]) => run(hub, |server, _| Ok(server.relays())).await,
        ("POST", ["relays"]) => {
            let wanted: DerpRegion = lenient::from_slice_within(MAX_RELAY_VALUES, body)
                .map_err(|e| (StatusCode::BAD_REQUEST, format!("the request does not read: {e}")))?;
            run(hub, |server, _| server.add_relay(&wanted)).await
        }
        ("DELETE", ["relays", id]) => {
            let id = i32::try_from(number(id)?).unwrap_or(-1);
            run(hub, |server, _| server.remove_relay(id).map(nothing)).await
        }
        ("GET", ["registrations"]) => run(hub, |server, _| Ok(server.registrations())).await,
        ("POST", ["registrations", id]) => {
            let wanted: Approve = parse(body)?;
            run(hub, |server, at| server.approve(at, id, &wanted.user)).await
        }
        _ => {
            Err((StatusCode::NOT_FOUND, "this coordinator has no such administration request: use the same version of pvemesh".to_owned()))
        }
    }
}

/// One command, answered when its changes are stored.
async fn run<T: serde::Serialize>(
    hub: &Hub,
    act: impl FnOnce(&mut Server, Moment) -> Result<T, CommandError>,
) -> Result<Response<Body>, Refused> {
    let result = hub.call_stored(act).await.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    result.map(|value| json(StatusCode::OK, &value)).map_err(|error| {
        let status = match error {
            CommandError::Conflict(_) => StatusCode::CONFLICT,
            CommandError::Invalid(_) => StatusCode::BAD_REQUEST,
            CommandError::Missing(..) => StatusCode::NOT_FOUND,
        };
        (status, error.to_string())
    })
}

async fn backup(hub: &Hub) -> Result<Response<Body>, Refused> {
    let bytes = hub.backup().await.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(json(StatusCode::OK, &Backup { backup: Secret::new(BASE64.encode(&*bytes)) }))
}

fn nothing((): ()) -> serde_json::Value {
    serde_json::json!({})
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|e| (StatusCode::BAD_REQUEST, format!("the request does not read: {e}")))
}

fn number(text: &str) -> Result<i64, Refused> {
    let shown: String = text.escape_default().take(40).collect();
    text.parse().map_err(|_| (StatusCode::BAD_REQUEST, format!("{shown} is not a number")))
}
