//! What a person sees: the page that the address of a waiting registration leads to. No scripts, nothing from elsewhere, nothing about
//! the device but where its login stands.

use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::body::{Body, answer};
use crate::coord::server::WaitingState;

/// How often a page that waits looks again, in seconds.
const LOOK_AGAIN: &str = "4";

/// The page of a registration.
pub(super) fn login(state: WaitingState, id: &str) -> Response<Body> {
    match state {
        // An id that waits was made here: it goes into the page as it is.
        WaitingState::Waiting => {
            let mut page = show(
                StatusCode::OK,
                "Almost there",
                &format!(
                    "<p>To let this device in, run on the coordinator:</p><pre>pvemesh coordinator nodes register {id} --user NAME</pre>\
                 <p>NAME is the user it belongs to. It connects by itself as soon as that is done, and this page says so.</p>\
                 <p class=\"q\">Did you not just log in on a device of yours? Then leave this page and do not run the command.</p>"
                ),
            );
            page.headers_mut().insert(header::REFRESH, HeaderValue::from_static(LOOK_AGAIN));
            page
        }
        WaitingState::Approved => {
            show(StatusCode::OK, "This device is in", "<p>It is part of the mesh now. You can close this page and return to the app.</p>")
        }
        WaitingState::Unknown => show(
            StatusCode::NOT_FOUND,
            "This address is no longer valid",
            "<p>A login waits for a quarter of an hour. Start it again on the device: it shows a new address.</p>",
        ),
    }
}

fn show(status: StatusCode, heading: &str, body: &str) -> Response<Body> {
    let page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <meta name=robots content=noindex><title>{heading} - pvemesh</title><style>:root{{color-scheme:light dark}}\
         body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:10vh auto;padding:0 1.2rem}}h1{{font-size:1.5rem}}\
         pre{{padding:.8rem;border:1px solid;border-radius:.4rem;white-space:pre-wrap;overflow-wrap:anywhere;user-select:all}}\
         .q{{opacity:.75;font-size:.95rem}}</style><h1>{heading}</h1>{body}"
    );
    let mut response = answer(status, "text/html; charset=utf-8", page);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
        ),
    );
    // The address is what lets its holder see how the login stands: no other site gets it.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}
