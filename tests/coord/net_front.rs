//! The ordinary HTTP side: certificate, port 80, pages, what relays ask, requests through a proxy.

use std::time::{Duration, Instant};

use pvemesh::ident::{MachinePrivate, NodePrivate};
use pvemesh::sys::coordinator::{Coordinator, StartError};
use pvemesh::wire::control::{REGISTER_PATH, RegisterRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::net::*;
use crate::raw::{self, Tunnel, get, http, post};
use crate::tls;

/// A coordinator with a certificate, and port 80 beside it.
async fn with_certificate() -> (Running, tls::Made) {
    let (dir, made) = (tempfile::tempdir().unwrap(), tls::make());
    let files = tls::files(dir.path());
    made.write(&files);
    let running = Running::start_with(dir, |options| {
        options.settings.url = format!("https://{}", tls::NAME);
        options.settings.front.certificate = Some(files);
        options.settings.front.listen_http = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    (running, made)
}

#[tokio::test]
async fn trap_27_port_80_beside_tls_takes_the_upgrade_at_once_and_sends_everything_else_to_https() {
    let (server, _) = with_certificate().await;
    let http_address = server.coordinator.http_address().unwrap();
    let key = server.key(|_| {}).await;
    let begun = Instant::now();
    let tunnel = Tunnel::connect(http_address, &server.coordinator.server_key(), &MachinePrivate::from_seed([1; 32])).await;
    let node = NodePrivate::from_seed([1; 32]).public();
    let body = format!(r#"{{"Version":130,"NodeKey":"{node}","Auth":{{"AuthKey":"{}"}},"Hostinfo":{{"Hostname":"a"}}}}"#, key.expose());
    let answer = tunnel.post(REGISTER_PATH, body).await;
    assert!(answer.status == 200 && answer.text.contains("\"Error\":\"\""), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    for (path, wanted) in [("/register/x?y=1", "https://coord.example.test/register/x?y=1"), ("/", "https://coord.example.test/")] {
        let answer = get(http_address, path).await;
        assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
        assert!(answer.to_ascii_lowercase().contains(&format!("location: {wanted}\r\n")), "{answer}");
    }
    // Whatever the client writes as its target, it is sent to our own address.
    let answer =
        http(http_address, "GET http://evil.example//evil.example/x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(answer.to_ascii_lowercase().contains("location: https://coord.example.test//evil.example/x\r\n"), "{answer}");
}

#[tokio::test]
async fn trap_32_where_there_is_a_certificate_the_key_is_given_under_it_only() {
    let (server, made) = with_certificate().await;
    let (address, http_address) = (server.coordinator.address(), server.coordinator.http_address().unwrap());
    let key = server.coordinator.server_key().to_string();
    let plain = get(http_address, "/key?v=145").await;
    assert!(plain.starts_with("HTTP/1.1 308 ") && !plain.contains(&key), "{plain}");
    let mut stream = tls::connect(address, tls::NAME, std::slice::from_ref(&made.certificate)).await.unwrap();
    stream.write_all(b"GET /key?v=145 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let _ = within("the key", stream.read_to_string(&mut answer)).await;
    assert!(answer.contains(&key), "{answer}");
    // A client that does not trust the certificate has no key; one that has the key needs no certificate for the rest.
    assert!(tls::connect(address, tls::NAME, &[tls::make().certificate]).await.is_err());
    let stream = tls::connect(address, tls::NAME, &[made.certificate]).await.unwrap();
    let wrong = MachinePrivate::from_seed([77; 32]).public();
    let initiator = raw::initiator(&wrong, &MachinePrivate::from_seed([1; 32]), 145);
    let mut stream = stream;
    stream.write_all(raw::upgrade_head("x", &raw::base64(initiator.message())).as_bytes()).await.unwrap();
    let head = within("the refusal", raw::read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
}

#[tokio::test]
async fn a_changed_certificate_is_served_without_a_restart_and_a_broken_one_never() {
    let (server, first) = with_certificate().await;
    let address = server.coordinator.address();
    let (second, third) = (tls::make(), tls::make());
    let all = [first.certificate.clone(), second.certificate.clone(), third.certificate.clone()];
    let files = tls::files(server.dir.path());
    let shows = async |wanted: &tls::Made| {
        within("the certificate", async {
            while tls::shown(&tls::connect(address, tls::NAME, &all).await.unwrap()) != wanted.certificate {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    };
    shows(&first).await;
    // A connection that is open meanwhile goes on.
    let stream = tls::connect(address, tls::NAME, &all).await.unwrap();
    let (noise, _) = raw::upgrade(stream, &server.coordinator.server_key(), &MachinePrivate::from_seed([1; 32]), 145).await;
    let tunnel = Tunnel::over(noise).await;
    // Half a change: a chain that does not fit the key.
    tls::replace(&files.chain, &second.chain);
    server.coordinator.reread_certificate();
    assert_eq!(tls::shown(&tls::connect(address, tls::NAME, &all).await.unwrap()), first.certificate);
    tls::replace(&files.key, &second.key);
    server.coordinator.reread_certificate();
    shows(&second).await;
    // And by itself, without being asked.
    third.write(&files);
    shows(&third).await;
    assert_eq!(tunnel.post("/machine/none", "").await.status, 501);
}

#[tokio::test]
async fn sighup_reads_the_certificate_again_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, files) = (tls::make(), tls::make(), tls::files(dir.path()));
    first.write(&files);
    let port = free_port();
    let mut process = Process::start_at(dir.path(), port, &format!("https://{}", tls::NAME), |command| {
        command.arg("--tls-cert").arg(&files.chain).arg("--tls-key").arg(&files.key);
    })
    .await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let all = [first.certificate.clone(), second.certificate.clone()];
    second.write(&files);
    process.signal(rustix::process::Signal::HUP);
    let begun = Instant::now();
    within("the new certificate", async {
        while tls::shown(&tls::connect(address, tls::NAME, &all).await.unwrap()) != second.certificate {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(4), "it was asked, and need not wait for its own look: {:?}", begun.elapsed());
    assert!(process.is_running());
}

#[tokio::test]
async fn settings_of_the_listener_that_do_not_fit_each_other_are_refused_with_the_reason() {
    use pvemesh::settings::Acme;
    let dir = tempfile::tempdir().unwrap();
    let missing = tls::files(dir.path());
    let files = move || Some(missing.clone());
    let acme = |domain: &str| Some(Acme { domain: domain.to_owned(), email: None, directory: None, ca: None });
    let address = Some(([127, 0, 0, 1], 0).into());
    type Change = Box<dyn Fn(&mut pvemesh::sys::coordinator::Options)>;
    let cases: [(Change, &str); 6] = [
        (Box::new(move |o| o.settings.front.certificate = files()), "tell them https://"),
        (Box::new(move |o| o.settings.front.acme = acme("coord.example.test")), "tell them https://"),
        (Box::new(move |o| o.settings.front.listen_http = address), "only where the first has a certificate"),
        (
            Box::new(move |o| (o.settings.url, o.settings.front.acme) = ("https://a.example".to_owned(), acme("b.example"))),
            "clients are told a.example",
        ),
        (
            Box::new(move |o| (o.settings.url, o.settings.front.acme) = ("https://192.0.2.1".to_owned(), acme("192.0.2.1"))),
            "not for the address",
        ),
        (
            Box::new(move |o| {
                o.settings.url = "https://a.example".to_owned();
                (o.settings.front.acme, o.settings.front.certificate) = (acme("a.example"), Some(tls::files("/".as_ref())));
            }),
            "not both",
        ),
    ];
    for (change, wanted) in cases {
        let mut options = options(dir.path());
        change(&mut options);
        let error = Coordinator::start(options).await.unwrap_err();
        assert!(matches!(error, StartError::Setting(_)) && error.to_string().contains(wanted), "{error}");
    }
    let mut missing = options(dir.path());
    missing.settings.url = "https://a.example".to_owned();
    missing.settings.front.certificate = Some(tls::files(dir.path()));
    let error = Coordinator::start(missing).await.unwrap_err();
    assert!(matches!(error, StartError::Path { .. }) && error.to_string().contains("chain.pem"), "{error}");
}

#[tokio::test]
async fn the_login_page_says_what_to_do_then_that_it_is_done_and_nothing_else() {
    let server = Running::start().await;
    let address = server.coordinator.address();
    let phone = Client::connect(&server.url(), 1).await;
    let request = phone.registration(None, "secret-phone-name");
    let url = phone.send_registration(&request).await.auth_url;
    let path = url.strip_prefix("http://coord.example.test:8080").unwrap();
    let id = path.rsplit('/').next().unwrap();
    let page = get(address, path).await;
    let lower = page.to_ascii_lowercase();
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains(&format!("pvemesh coordinator nodes register {id} --user NAME")), "{page}");
    assert!(lower.contains("\r\nrefresh: ") && lower.contains("width=device-width"), "it follows by itself, and fits a phone: {page}");
    for header in ["cache-control: no-store", "referrer-policy: no-referrer", "default-src 'none'", "frame-ancestors 'none'"] {
        assert!(lower.contains(header), "{header} in {page}");
    }
    assert!(!lower.contains("<script") && !lower.contains("secret-phone-name") && !lower.contains("nodekey:"), "{page}");

    let followup = RegisterRequest { followup: url.clone(), ..request };
    let connection = phone.connection.clone();
    let held =
        tokio::spawn(async move { connection.post_json::<_, pvemesh::wire::control::RegisterResponse>(REGISTER_PATH, &followup).await });
    server.admin().approve(id, "carol").await.unwrap();
    within("the held answer", held).await.unwrap().unwrap();
    let page = get(address, path).await;
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("This device is in"), "{page}");
    assert!(!page.to_ascii_lowercase().contains("\r\nrefresh: ") && !page.contains("carol") && !page.contains("100.64"), "{page}");

    for unknown in ["/register/pvmesh-authreq-0123456789abcdef01234567", "/register/", "/register/%3Cscript%3E", "/register/a/b"] {
        let page = get(address, unknown).await;
        assert!(page.starts_with("HTTP/1.1 404 ") && page.contains("no longer valid") && !page.contains("script"), "{page}");
    }
}

#[tokio::test]
async fn relays_learn_whom_to_serve() {
    let server = Running::start().await;
    let address = server.coordinator.address();
    server.joined(1, "alpha").await;
    let ask = async |n: u8| {
        let key = NodePrivate::from_seed([n; 32]).public();
        post(address, "/verify", &format!(r#"{{"NodePublic":"{key}","Source":"192.0.2.1"}}"#)).await
    };
    assert!(ask(1).await.ends_with(r#"{"Allow":true}"#));
    assert!(ask(2).await.ends_with(r#"{"Allow":false}"#));
    let id = server.admin().nodes().await.unwrap()[0].id;
    server.admin().expire_node(id, pvemesh::wire::admin::Expire::default()).await.unwrap();
    assert!(ask(1).await.ends_with(r#"{"Allow":false}"#), "an expired key is not served");
    for body in ["", "{", "{}", r#"{"NodePublic":"nodekey:1"}"#, r#"{"NodePublic":7}"#] {
        let answer = post(address, "/verify", body).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body}: {answer}");
    }
    let answer = post(address, "/verify", &format!(r#"{{"Source":"{}"}}"#, "x".repeat(5000))).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn known_paths_name_their_methods_and_unknown_ones_are_not_found() {
    let server = Running::start().await;
    let address = server.coordinator.address();
    for (path, allowed) in
        [("/key?v=145", "GET, HEAD"), ("/health", "GET, HEAD"), ("/robots.txt", "GET, HEAD"), ("/register/x", "GET, HEAD")]
    {
        let answer = post(address, path, "{}").await;
        assert!(
            answer.starts_with("HTTP/1.1 405 ") && answer.to_ascii_lowercase().contains(&format!("allow: {}", allowed.to_lowercase())),
            "{answer}"
        );
    }
    assert!(get(address, "/verify").await.starts_with("HTTP/1.1 405 "));
    let put = http(address, "PUT /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(put.starts_with("HTTP/1.1 405 "), "{put}");
    assert!(get(address, "/robots.txt").await.ends_with("Disallow: /\n"));
    let head = http(address, "HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    for path in ["/", "/admin", "/machine/register", "/derp", "/.well-known/acme-challenge/x", "/../../etc/passwd", "/%2e%2e/"] {
        assert!(get(address, path).await.starts_with("HTTP/1.1 404 "), "{path}");
    }
}

#[tokio::test]
async fn limits_of_addresses_count_a_trusted_proxys_clients_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start_with(dir, |options| options.settings.front.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]).await;
    let address = server.coordinator.address();
    let key = server.coordinator.server_key();
    // Upgraded strangers that have asked for something hold their places: more of one address than one address has.
    let upgraded = async |n: u16, client: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut seed = [9; 32];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        let initiator = raw::initiator(&key, &MachinePrivate::from_seed(seed), 145);
        let head =
            raw::upgrade_head("x", &raw::base64(initiator.message())).replace("Host: x", &format!("Host: x\r\nX-Forwarded-For: {client}"));
        stream.write_all(head.as_bytes()).await.unwrap();
        let head = within("an answer", raw::read_head(&mut stream)).await;
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(head);
        }
        let mut noise = raw::finish(stream, initiator).await;
        let mut early = [0; 9];
        noise.read_exact(&mut early).await.unwrap();
        let length = pvemesh::wire::control::noise::parse_early_header(early).unwrap().unwrap();
        noise.read_exact(&mut vec![0; length]).await.unwrap();
        let tunnel = Tunnel::over(noise).await;
        assert_eq!(tunnel.post("/machine/none", "").await.status, 501);
        Ok(tunnel)
    };
    let mut held = Vec::new();
    let refused = loop {
        match upgraded(held.len() as u16, "10.9.9.9, 192.0.2.1").await {
            Ok(tunnel) => held.push(tunnel),
            Err(head) => break head,
        }
        assert!(held.len() < 600, "there is no limit for one address");
    };
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.to_ascii_lowercase().contains("retry-after"), "{refused}");
    upgraded(1000, "10.9.9.9, 192.0.2.2").await.expect("another client of the same proxy is let in");
    held.clear();
}
