//! How a node behaves towards its coordinator, whatever that does: what it sends, how often, and what it makes of the answers.

use std::time::{Duration, Instant};

use pvemesh::ident::NodePublic;
use pvemesh::sys::control::Event;
use serde_json::Value;

use super::client::{Session, identity};
use super::scripted::{ADMITTED, Asked, MAP, Piece, Reply, Scripted, ordinary};

fn message(json: &str) -> Piece {
    Piece::Message(json.to_owned())
}

/// Everything in a JSON value that is a leaf, with its path.
fn leaves(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(key, value)| leaves(value, &format!("{path}.{key}"), found)),
        Value::Array(list) => list.iter().for_each(|value| leaves(value, path, found)),
        leaf => found.push((path.to_owned(), leaf.clone())),
    }
}

#[tokio::test]
async fn trap_04_one_version_number_is_told_everywhere() {
    let server = Scripted::start(ordinary).await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    session.map().await;
    server.until("a report", |asked| asked.iter().any(Asked::is_report).then_some(())).await;
    assert_eq!(server.versions(), [130], "the server made its prologue of it, and the handshake went well");
    for asked in server.asked() {
        match asked.path.as_str() {
            "/key?v=130" => {}
            "/machine/register" | "/machine/map" => assert_eq!(asked.json()["Version"], 130),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn trap_10_nothing_carries_over_to_the_next_stream() {
    let server = Scripted::start(|asked| match asked.is_stream() {
        true if asked.before == 0 => {
            let first = r#"{"Node":{"ID":1,"Name":"a.x."},"Peers":[{"ID":2}],"DNSConfig":{"Domains":["x"]},"PacketFilter":[],
                "Domain":"x","Health":["h"],"UserProfiles":[{"ID":1}],"DERPMap":{"Regions":{"1":{}}}}"#;
            Reply::Stream(vec![message(first), Piece::Pause(Duration::from_millis(100))])
        }
        _ => ordinary(asked),
    })
    .await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    assert_eq!(session.map().await.peers.len(), 1);
    let mut second = session.map().await;
    second.node = Default::default();
    assert_eq!(second, Default::default());
}

#[tokio::test]
async fn trap_13_no_request_holds_a_null_or_an_empty_key() {
    let server = Scripted::start(ordinary).await;
    let mut identity = identity(&server.url, Some("key"));
    let mut session = Session::start(&identity, "alpha");
    session.map().await;
    let registration = server.of(Asked::is_registration)[0].json();
    assert_eq!(registration["OldNodeKey"], format!("nodekey:{}", "0".repeat(64)));
    identity.previous = NodePublic::from_bytes([5; 32]);
    let mut again = Session::start(&identity, "alpha");
    again.map().await;
    server.until("a report", |asked| asked.iter().any(Asked::is_report).then_some(())).await;
    for asked in server.of(|asked| !asked.body.is_empty()) {
        let mut found = Vec::new();
        leaves(&asked.json(), "", &mut found);
        for (path, value) in found {
            assert!(!value.is_null(), "{} {path}", asked.path);
            assert!(!path.ends_with("Key") || value.as_str().is_some_and(|text| text.len() > 2), "{} {path} {value}", asked.path);
        }
    }
}

/// Whether a map request carries everything that the node reports.
fn is_complete(asked: &Asked, hostname: &str) -> bool {
    let json = asked.json();
    json["Hostinfo"]["Hostname"] == hostname
        && json["Hostinfo"]["OS"] == "linux"
        && json["DiscoKey"].as_str().is_some_and(|key| key.starts_with("discokey:") && !key.ends_with(&"0".repeat(64)))
        && json["Endpoints"].as_array().is_some_and(|list| list.len() == 1)
        && json["EndpointTypes"].as_array().is_some_and(|list| list.len() == 1)
}

#[tokio::test]
async fn trap_15_streams_and_reports_always_carry_the_whole_state() {
    let server = Scripted::start(ordinary).await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    session.map().await;
    server.until("a first report", |asked| asked.iter().any(Asked::is_report).then_some(())).await;
    session.report.send_modify(|report| report.hostinfo.hostname = "beta".to_owned());
    server
        .until("the change", |asked| asked.iter().find(|a| a.is_report() && a.json()["Hostinfo"]["Hostname"] == "beta").map(|_| ()))
        .await;
    session.wake.notify_one();
    server.until("another stream", |asked| (asked.iter().filter(|a| a.is_stream()).count() == 2).then_some(())).await;
    for asked in server.of(|asked| asked.path == "/machine/map") {
        assert!(is_complete(&asked, "alpha") || is_complete(&asked, "beta"), "{}", asked.json());
    }
    assert!(is_complete(server.of(Asked::is_stream).last().unwrap(), "beta"));
}

#[tokio::test]
async fn changes_are_reported_one_report_at_a_time_and_many_in_one() {
    let server = Scripted::start(|asked| if asked.is_report() { Reply::Late(Duration::from_millis(150)) } else { ordinary(asked) }).await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    session.map().await;
    for n in 0..200 {
        session.report.send_modify(|report| report.hostinfo.hostname = format!("name-{n}"));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.until("the last change", |asked| asked.iter().find(|a| a.is_report() && is_complete(a, "name-199")).map(|_| ())).await;
    assert_eq!(server.most_reports_at_once(), 1);
    let count = server.of(Asked::is_report).len();
    assert!((2..=12).contains(&count), "{count} reports");
}

#[tokio::test]
async fn a_report_is_not_held_up_by_a_stream_that_nobody_takes_maps_from() {
    let flood: Vec<Piece> = (0..400)
        .map(|n| message(&format!(r#"{{"Node":{{"ID":1,"Name":"n{n}.x."}}}}"#)))
        .flat_map(|m| [m, Piece::Pause(Duration::from_millis(1))])
        .collect();
    let server = Scripted::start(
        move |asked| {
            if asked.is_stream() { Reply::Stream([&flood[..], &[Piece::Silence]].concat()) } else { ordinary(asked) }
        },
    )
    .await;
    let mut session = Session::start_with(&identity(&server.url, None), "alpha", 1);
    session.map().await;
    session.report.send_modify(|report| report.hostinfo.hostname = "beta".to_owned());
    server.until("the report", |asked| asked.iter().find(|a| a.is_report() && is_complete(a, "beta")).map(|_| ())).await;
    // Nor are old maps kept for whoever comes late: a few, and then the newest.
    tokio::time::sleep(Duration::from_millis(800)).await;
    let mut maps = 1;
    while session.map().await.node.name != "n399.x." {
        maps += 1;
    }
    assert!(maps < 60, "{maps} maps");
}

#[tokio::test]
async fn a_report_that_is_refused_or_not_answered_is_repeated_and_the_stream_stays() {
    let server = Scripted::start(|asked| match (asked.is_report(), asked.before) {
        (true, 0) => Reply::Status(500, None),
        (true, 1) => Reply::Status(429, Some(("Retry-After", "1"))),
        _ => ordinary(asked),
    })
    .await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    session.map().await;
    server.until("a third report", |asked| (asked.iter().filter(|a| a.is_report()).count() == 3).then_some(())).await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn the_coordinators_questions_are_answered_once_and_to_itself_only() {
    let payload = |request: &str| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, request);
    let (echo, other) = (payload("POST /echo HTTP/1.1\r\n\r\nhello"), payload("GET /debug/prefs HTTP/1.1\r\n\r\n"));
    let server = Scripted::start(move |asked| {
        if !asked.is_stream() {
            return ordinary(asked);
        }
        // A question may come with a keep-alive, and the client does not know by what name this server knows itself.
        let ask = |rest: &str| message(&format!(r#"{{"KeepAlive":true,"PingRequest":{{{rest}}}}}"#));
        let mut pieces = vec![message(MAP)];
        for _ in 0..3 {
            pieces.push(ask(r#""URL":"https://other.name/inside?id=1","URLIsNoise":true"#));
        }
        pieces.push(ask(r#""URL":"http://127.0.0.1:1/elsewhere""#));
        pieces.push(ask(&format!(r#""URL":"https://x/reply/1","Types":"c2n","Payload":"{echo}""#)));
        pieces.push(Piece::Pause(Duration::from_millis(50)));
        pieces.push(ask(&format!(r#""URL":"https://x/reply/2","Types":"c2n","Payload":"{other}""#)));
        pieces.push(Piece::Silence);
        Reply::Stream(pieces)
    })
    .await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    session.map().await;
    server.until("all answers", |asked| asked.iter().any(|a| a.path == "/reply/2").then_some(())).await;
    let inside = server.of(|asked| asked.path == "/inside?id=1");
    assert_eq!(inside.len(), 1, "asked three times");
    assert_eq!((&inside[0].method, inside[0].connection), (&http::Method::HEAD, 1));
    let text = |path: &str| String::from_utf8(server.of(|asked| asked.path == path)[0].body.to_vec()).unwrap();
    assert!(text("/reply/1").starts_with("HTTP/1.1 200 OK\r\n") && text("/reply/1").ends_with("hello"));
    assert!(text("/reply/2").starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_probe_from_outside_is_answered_outside() {
    let url = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let own = url.clone();
    let server = Scripted::start(move |asked| {
        let probe = format!(r#"{{"KeepAlive":true,"PingRequest":{{"URL":"{}/machine/ping-response?id=1"}}}}"#, own.get().unwrap());
        if asked.is_stream() { Reply::Stream(vec![message(MAP), message(&probe), Piece::Silence]) } else { ordinary(asked) }
    })
    .await;
    url.set(server.url.clone()).unwrap();
    let _session = Session::start(&identity(&server.url, None), "alpha");
    let probe = server.until("the answer", |asked| asked.iter().find(|a| a.path.starts_with("/machine/ping-response")).cloned()).await;
    assert_eq!((probe.method, probe.connection), (http::Method::HEAD, 0));
}

#[tokio::test]
async fn trap_19_a_coordinator_that_calls_every_key_expired_is_not_hammered() {
    let expired = r#"{"NodeKeyExpired":true,"MachineAuthorized":true}"#;
    let server = Scripted::start(|asked| if asked.is_registration() { Reply::Json(expired.to_owned()) } else { ordinary(asked) }).await;
    let mut identity = identity(&server.url, None);
    identity.registered = true;
    let mut session = Session::start(&identity, "alpha");
    assert!(session.refusal().await.contains("made just now"));
    tokio::time::sleep(Duration::from_secs(4)).await;
    let asked = server.of(Asked::is_registration);
    // Two each: with the key it has, and with the new one. A pause of up to 2 s, then 2 to 6 s.
    assert!((2..=6).contains(&asked.len()), "{} registrations", asked.len());
    assert_eq!(asked[1].json()["OldNodeKey"], asked[0].json()["NodeKey"]);
    assert_ne!(asked[1].json()["NodeKey"], asked[0].json()["NodeKey"]);
}

#[tokio::test]
async fn a_stream_that_ends_behind_its_first_map_is_not_opened_in_a_hurry() {
    let server = Scripted::start(|asked| if asked.is_stream() { Reply::Stream(vec![message(MAP)]) } else { ordinary(asked) }).await;
    let _session = Session::start(&identity(&server.url, None), "alpha");
    server.until("a second stream", |asked| (asked.iter().filter(|a| a.is_stream()).count() > 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // 40, 90, 160, 250, 360, 490, 640 ms ...
    let count = server.of(Asked::is_stream).len();
    assert!((3..=13).contains(&count), "{count} streams");
}

#[tokio::test]
async fn a_coordinator_that_wants_to_be_left_alone_is() {
    let server = Scripted::start(|asked| match (asked.is_registration(), asked.before) {
        (true, 0) => Reply::Status(429, Some(("Retry-After", "1"))),
        _ => ordinary(asked),
    })
    .await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    assert!(session.offline().await.contains("429"));
    session.map().await;
    let asked = server.of(Asked::is_registration);
    let waited = asked[1].at - asked[0].at;
    assert!(waited >= Duration::from_secs(1) && waited < Duration::from_secs(4), "{waited:?}");
}

#[tokio::test]
async fn a_page_outlives_the_connection_on_which_it_was_shown() {
    let server = Scripted::start(|asked| match (asked.is_registration(), asked.before) {
        (true, 0) => Reply::Json(r#"{"AuthURL":"https://c/register/1","MachineAuthorized":true}"#.to_owned()),
        // The proxy in front has had enough of waiting.
        (true, 1) => Reply::Status(504, None),
        _ => ordinary(asked),
    })
    .await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    assert_eq!(session.visit().await, "https://c/register/1");
    session.map().await;
    let asked: Vec<Value> = server.of(Asked::is_registration).iter().map(Asked::json).collect();
    assert_eq!(asked.len(), 3);
    assert_eq!((asked[0]["Followup"].as_str(), asked[2]["Followup"].as_str()), (Some(""), Some("https://c/register/1")));
    assert!(asked.iter().all(|a| a["NodeKey"] == asked[0]["NodeKey"]));
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_woken_session_opens_its_connection_anew_at_once() {
    let server = Scripted::start(ordinary).await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    session.map().await;
    let begun = Instant::now();
    session.wake.notify_one();
    let quiet = |event: &Event| match event {
        Event::Offline(text) => panic!("offline: {text}"),
        Event::Map(_) => Some(()),
        _ => None,
    };
    session.until("another map", quiet).await;
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!((server.connections(), server.of(Asked::is_registration).len()), (2, 1), "it is still let in");
}

#[tokio::test]
async fn no_wake_up_parts_a_new_key_from_its_telling() {
    let server = Scripted::start(ordinary).await;
    let mut identity = identity(&server.url, None);
    (identity.registered, identity.renew) = (true, true);
    let mut session = Session::start_with(&identity, "alpha", 2);
    // The places for news are taken while the registration is answered, and the session is woken then.
    server.until("a registration", |asked| asked.iter().any(Asked::is_registration).then_some(())).await;
    for _ in 0..3 {
        session.wake.notify_one();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let admitted = |event: &Event| if let Event::Admitted { new_key, .. } = event { Some(new_key.clone()) } else { None };
    let new_key = session.until("admission", admitted).await.expect("the new key is told");
    session.map().await;
    let used = server.of(|asked| asked.path == "/machine/map").pop().unwrap().json()["NodeKey"].clone();
    assert_eq!(used, new_key.public().to_string());
}

#[tokio::test]
async fn a_session_is_woken_out_of_a_pause() {
    let server = Scripted::start(|asked| match (asked.is_registration(), asked.before) {
        (true, 0) => Reply::Status(429, Some(("Retry-After", "600"))),
        _ => ordinary(asked),
    })
    .await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    session.offline().await;
    session.wake.notify_one();
    session.map().await;
}

#[tokio::test]
async fn trap_22_a_removed_node_learns_it_and_asks_again_instead_of_retrying_for_ever() {
    let server = Scripted::start(|asked| match (asked.is_registration(), asked.is_stream(), asked.before) {
        (_, true, 0) => {
            let farewell = r#"{"Node":{"ID":1,"Name":"a.x.","KeyExpiry":"2020-01-01T00:00:00Z"}}"#;
            Reply::Stream(vec![
                message(MAP),
                Piece::Pause(Duration::from_millis(100)),
                message(farewell),
                Piece::Pause(Duration::from_millis(100)),
            ])
        }
        (_, true, 1) => Reply::Status(404, None),
        (true, _, 1) => Reply::Json(r#"{"AuthURL":"https://c/register/1","MachineAuthorized":true}"#.to_owned()),
        (true, _, 2) => Reply::Never,
        _ => ordinary(asked),
    })
    .await;
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    let now = pvemesh::sys::clock::wall();
    session.map_with("an expired key", |map| map.has_expired(now)).await;
    assert!(session.unknown().await.contains("404"));
    assert_eq!(session.visit().await, "https://c/register/1");
    assert_eq!(server.of(Asked::is_stream).len(), 2, "no third stream while nobody has let it in");
}

#[tokio::test]
async fn trap_21_a_followup_offers_the_key_of_the_request_that_it_follows() {
    let server = Scripted::start(|asked| match (asked.is_registration(), asked.before) {
        (true, 0) => Reply::Json(r#"{"NodeKeyExpired":true,"MachineAuthorized":true}"#.to_owned()),
        (true, 1) => Reply::Json(r#"{"AuthURL":"https://c/register/1","MachineAuthorized":true}"#.to_owned()),
        (true, _) => Reply::Json(ADMITTED.to_owned()),
        _ => ordinary(asked),
    })
    .await;
    let mut identity = identity(&server.url, None);
    (identity.registered, identity.previous) = (true, NodePublic::from_bytes([5; 32]));
    let mut session = Session::start(&identity, "alpha");
    let admitted = |event: &Event| if let Event::Admitted { new_key, .. } = event { new_key.clone() } else { None };
    let new_key = session.until("admission with a new key", admitted).await.public().to_string();
    session.map().await;
    let asked: Vec<Value> = server.of(Asked::is_registration).iter().map(Asked::json).collect();
    let old = identity.node.public().to_string();
    let keys = |n: usize| (asked[n]["NodeKey"].as_str().unwrap().to_owned(), asked[n]["OldNodeKey"].as_str().unwrap().to_owned());
    assert_eq!(keys(0), (old.clone(), identity.previous.to_string()), "history is told, and is no rotation");
    assert_eq!((keys(1), keys(2)), ((new_key.clone(), old.clone()), (new_key.clone(), old)));
    assert!(server.of(|asked| asked.path == "/machine/map").iter().all(|asked| asked.json()["NodeKey"] == new_key));
}
