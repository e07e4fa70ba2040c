//! Asking relays over plain HTTP whether it is they who answer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::{Request, header};

use crate::netcheck::{Family, MAX_ASKED, Place, Region, Server, challenge, is_the_relays, judge};
use crate::sys::dial::plain_http;
use crate::wire::derp::http::CHALLENGE;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(3);
/// The longest answer that is read: a portal's page is not looked at.
const LONGEST: usize = 64 * 1024;
const PORT: u16 = 80;

/// Whether a portal stands in the way; `None` if nobody answers.
pub(super) async fn stands_in_the_way(regions: Vec<Region>) -> Option<bool> {
    let servers = regions.into_iter().filter_map(|region| region.servers.into_iter().find(|server| server.port80));
    let asked: FuturesUnordered<_> = servers.take(MAX_ASKED).map(ask).collect();
    judge(asked.filter_map(std::future::ready).collect::<Vec<bool>>().await)
}

/// Whether the answer is the relay's own; `None` if there is none.
async fn ask(server: Server) -> Option<bool> {
    let address = match server.place(Family::V4) {
        Place::At(address) => *address,
        Place::Nowhere => return None,
        // A portal may answer for the name server, too: whatever it says, the challenge tells.
        Place::Named => tokio::time::timeout(LIMIT, tokio::net::lookup_host((server.host.as_str(), PORT)))
            .await
            .ok()?
            .ok()?
            .map(|found| found.ip())
            .find(IpAddr::is_ipv4)?,
    };
    let request = Request::get("/generate_204")
        .header(header::HOST, server.host.as_str())
        .header(header::CONNECTION, "close")
        .header(CHALLENGE.0, challenge(&server.host))
        .body(Full::default())
        .ok()?;
    let response = plain_http(SocketAddr::new(address, PORT), None, request, LONGEST, LIMIT).await.ok()?;
    let answer = response.headers().get(CHALLENGE.1).and_then(|value| value.to_str().ok());
    Some(is_the_relays(response.status().as_u16(), answer, &server.host))
}
