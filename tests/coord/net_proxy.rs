//! Behind a reverse proxy: the real nginx, with the settings that docs/reverse-proxy.md gives.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::Method;
use pvemesh::ident::{MachinePrivate, NodePrivate};
use pvemesh::wire::control::frame::Deframer;
use pvemesh::wire::control::{MAP_PATH, MapResponse, REGISTER_PATH, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::net::*;
use crate::raw::{self, Tunnel};
use crate::tls;

struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its children end with it when it is asked to, not when it is killed.
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// The settings of the guide, with this test's addresses in them.
fn settings(dir: &Path, port: u16, upstream: SocketAddr, certificate: &pvemesh::settings::CertificateFiles) -> String {
    let guide = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reverse-proxy.md")).unwrap();
    let block = guide.split("```nginx\n").nth(1).expect("the guide has settings for nginx").split("```").next().unwrap();
    let block = block
        .lines()
        .filter(|line| !line.contains("listen [::]"))
        .map(|line| match line.trim() {
            line if line.starts_with("listen ") => format!("listen 127.0.0.1:{port} ssl;"),
            line if line.starts_with("server_name ") => format!("server_name {};", tls::NAME),
            line if line.starts_with("ssl_certificate ") => format!("ssl_certificate {};", certificate.chain.display()),
            line if line.starts_with("ssl_certificate_key ") => format!("ssl_certificate_key {};", certificate.key.display()),
            line if line.starts_with("proxy_pass ") => format!("proxy_pass http://{upstream};"),
            line => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n");
    let place = |name: &str| dir.join(name).display().to_string();
    format!(
        "daemon off;\nmaster_process on;\nworker_processes 1;\npid {};\nerror_log {} info;\nevents {{ worker_connections 256; }}\n\
         http {{\naccess_log off;\nclient_body_temp_path {};\nproxy_temp_path {};\nfastcgi_temp_path {};\nuwsgi_temp_path {};\n\
         scgi_temp_path {};\n{block}\n}}\n",
        place("nginx.pid"),
        place("nginx.log"),
        place("body"),
        place("proxy"),
        place("fastcgi"),
        place("uwsgi"),
        place("scgi"),
    )
}

/// Starts it, or says why this machine cannot.
async fn nginx(dir: &Path, upstream: SocketAddr, made: &tls::Made) -> Result<(Nginx, SocketAddr), String> {
    let program =
        ["/usr/sbin/nginx", "/usr/local/sbin/nginx"].into_iter().find(|path| Path::new(path).exists()).ok_or("nginx is not installed")?;
    let files = tls::files(dir);
    made.write(&files);
    let port = free_port();
    let config = dir.join("nginx.conf");
    std::fs::write(&config, settings(dir, port, upstream, &files)).unwrap();
    let log = std::fs::File::create(dir.join("start.log")).unwrap();
    let mut child = Command::new(program)
        .arg("-p")
        .arg(dir)
        .arg("-e")
        .arg(dir.join("nginx.log"))
        .arg("-c")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| e.to_string())?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    within("nginx's start", async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("nginx: {status}: {}", std::fs::read_to_string(dir.join("start.log")).unwrap());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    Ok((Nginx(child), address))
}

#[tokio::test]
async fn trap_26_through_nginx_the_upgrade_passes_and_a_change_arrives_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start_with(tempfile::tempdir().unwrap(), |options| {
        options.settings.url = format!("https://{}", tls::NAME);
        options.settings.front.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let made = tls::make();
    let (_nginx, proxy) = match nginx(dir.path(), server.coordinator.address(), &made).await {
        Ok(started) => started,
        Err(why) => return println!("skipped: {why}"),
    };
    let connect = async || tls::connect(proxy, tls::NAME, std::slice::from_ref(&made.certificate)).await.unwrap();
    let mut stream = connect().await;
    stream.write_all(format!("GET /key?v=145 HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", tls::NAME).as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = within("the key", stream.read_to_string(&mut answer)).await;
    assert!(answer.contains(&server.coordinator.server_key().to_string()), "{answer}");

    let key = server.key(|_| {}).await;
    let (noise, _) = raw::upgrade(connect().await, &server.coordinator.server_key(), &MachinePrivate::from_seed([1; 32]), 145).await;
    let tunnel = Tunnel::over(noise).await;
    let node = NodePrivate::from_seed([1; 32]).public();
    let body = format!(r#"{{"Version":145,"NodeKey":"{node}","Auth":{{"AuthKey":"{}"}},"Hostinfo":{{"Hostname":"alpha"}}}}"#, key.expose());
    let answer = tunnel.post(REGISTER_PATH, body).await;
    assert!(answer.status == 200 && answer.text.contains("\"Error\":\"\""), "{answer:?}");
    let wanted = format!(r#"{{"Version":145,"NodeKey":"{node}","Stream":true,"KeepAlive":true}}"#);
    let mut body = within("the stream", tunnel.send(raw::request(Method::POST, MAP_PATH), wanted)).await.unwrap().into_body();
    let mut deframer = Deframer::default();
    let next = async |body: &mut h2::RecvStream, deframer: &mut Deframer| loop {
        if let Some(message) = deframer.next_message().unwrap() {
            return json::from_slice::<MapResponse>(&message).unwrap();
        }
        let bytes = within("a message", body.data()).await.unwrap().unwrap();
        body.flow_control().release_capacity(bytes.len()).unwrap();
        deframer.push(&bytes);
    };
    assert!(next(&mut body, &mut deframer).await.node.is_some());
    let beta = server.joined(2, "beta").await;
    while next(&mut body, &mut deframer).await.peers_changed.is_empty() {}
    for port in 1..=3u16 {
        let begun = Instant::now();
        beta.report(|request| request.endpoints = vec![SocketAddr::from(([192, 0, 2, 7], port))]).await.unwrap();
        loop {
            let told = next(&mut body, &mut deframer).await;
            if told.peers_changed_patch.iter().any(|patch| patch.endpoints.as_ref().is_some_and(|ends| ends[0].port() == port)) {
                break;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "nginx holds the stream back: {:?}", begun.elapsed());
    }
    // The login page comes through, too.
    let mut stream = connect().await;
    stream.write_all(format!("GET /register/x HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", tls::NAME).as_bytes()).await.unwrap();
    let mut page = String::new();
    let _ = within("the page", stream.read_to_string(&mut page)).await;
    assert!(page.starts_with("HTTP/1.1 404 ") && page.contains("no longer valid"), "{page}");
}
