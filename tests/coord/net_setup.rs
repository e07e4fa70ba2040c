//! Ways to start a coordinator: TLS, relay map, settings files.

use std::process::{Command, Stdio};
use std::time::Duration;

use pvemesh::sys::admin::LocalAdmin;
use pvemesh::sys::coordinator::{Coordinator, StartError};
use pvemesh::wire::control::MapResponse;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::net::*;
use crate::tls;

#[tokio::test]
async fn trap_27_with_a_certificate_it_speaks_tls_and_plain_http_is_closed_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let (made, files) = (tls::make(), tls::files(dir.path()));
    made.write(&files);
    let server = Running::start_with(dir, |options| {
        options.settings.url = "https://coord.example.test".to_owned();
        options.settings.front.certificate = Some(files);
    })
    .await;
    let address = server.coordinator.address();
    let stream = tls::connect(address, tls::NAME, &[made.certificate]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "the upgrade needs HTTP/1.1");

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"POST /ts2021 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let begun = std::time::Instant::now();
    let mut rest = Vec::new();
    let _ = within("the end", plain.read_to_end(&mut rest)).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "stock clients wait for it: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_relay_map_is_read_from_its_file_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("derp.json");
    std::fs::write(&file, relay_map(&[900])).unwrap();
    let mut with_map = options(dir.path());
    with_map.derp_map = Some(file.clone());
    let coordinator = Coordinator::start(with_map.clone()).await.unwrap();
    let running = Running { dir, coordinator };
    let map = running.joined(1, "alpha").await.stream("").await.next().await.unwrap();
    assert_eq!(map.derp_map.unwrap().regions.unwrap().len(), 1);
    running.coordinator.stop().await;
    std::fs::write(&file, "{").unwrap();
    assert!(matches!(Coordinator::start(with_map).await, Err(StartError::Path { .. })));
}

fn relay_map(regions: &[u16]) -> String {
    let region = |id: &u16| {
        let node = serde_json::json!({ "Name": format!("{id}a"), "RegionID": id, "HostName": "relay.example.test" });
        (id.to_string(), serde_json::json!({ "RegionID": id, "Nodes": [node] }))
    };
    serde_json::json!({ "Regions": regions.iter().map(region).collect::<serde_json::Map<_, _>>() }).to_string()
}

#[tokio::test]
async fn a_relay_map_is_read_again_on_sighup_and_told_and_a_broken_one_leaves_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("derp.json");
    std::fs::write(&file, relay_map(&[900])).unwrap();
    let mut server = Process::start_at(dir.path(), free_port(), "http://coord.example.test", |command| {
        command.arg("--derp-map").arg(&file);
    })
    .await;
    let url = server.listening();
    let client = Client::connect(&url, 1).await;
    assert_eq!(client.register(Some(&new_key(&server.admin(), |_| {}).await), "alpha").await.error, "");
    let mut stream = client.stream("").await;
    let regions = |map: &MapResponse| map.derp_map.as_ref().map(|map| map.regions.as_ref().map_or(0, |regions| regions.len()));
    assert_eq!(regions(&stream.next().await.unwrap()), Some(1));
    std::fs::write(&file, "{").unwrap();
    server.signal(rustix::process::Signal::HUP);
    server.admin().info().await.unwrap();
    std::fs::write(&file, relay_map(&[900, 901])).unwrap();
    server.signal(rustix::process::Signal::HUP);
    let told = stream.until("another relay map", |map| map.derp_map.is_some()).await;
    assert_eq!(regions(&told), Some(2));
    assert!(server.is_running());
}

#[tokio::test]
async fn lifetimes_of_keys_and_of_ephemeral_nodes_are_options() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start_at(dir.path(), free_port(), "http://coord.example.test", |command| {
        command.args(["--key-expiry", "1h", "--ephemeral-after", "1s"]);
    })
    .await;
    let admin = server.admin();
    let (stays, passes) = (Client::connect(&server.listening(), 1).await, Client::connect(&server.listening(), 2).await);
    assert_eq!(stays.register(Some(&new_key(&admin, |_| {}).await), "stays").await.error, "");
    assert_eq!(passes.register(Some(&new_key(&admin, |key| key.ephemeral = true).await), "passes").await.error, "");
    let nodes = admin.nodes().await.unwrap();
    let life = |name: &str| {
        let node = nodes.iter().find(|node| node.name.as_str() == name).unwrap();
        node.key_expiry.unwrap().duration_since(node.created.unwrap())
    };
    assert_eq!(life("stays").as_secs(), 3600);
    let stream = passes.stream("").await;
    drop((stream, passes));
    within("the ephemeral node's removal", async {
        while admin.nodes().await.unwrap().len() > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let left = admin.nodes().await.unwrap();
    assert_eq!(left[0].name.as_str(), "stays");
    for (option, value) in [("--key-expiry", "soon"), ("--ephemeral-after", "never"), ("--ephemeral-after", "0s")] {
        let output = Command::new(env!("CARGO_BIN_EXE_pvemesh")).args(["coordinator", "serve", option, value]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{option} {value}");
    }
}

#[tokio::test]
async fn a_damaged_server_key_is_named_and_not_replaced() {
    let running = Running::start().await;
    let file = running.dir.path().join("state/noise.key");
    running.coordinator.stop().await;
    std::fs::write(&file, "privkey:00").unwrap();
    let error = Coordinator::start(options(running.dir.path())).await.unwrap_err().to_string();
    assert!(error.contains("noise.key") && error.contains("backup"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "privkey:00");
}

#[tokio::test]
async fn settings_come_from_a_guest_configuration_or_a_file_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let role = |port: u16| format!("url = \"http://127.0.0.1:{port}\"\nlisten = \"127.0.0.1:{port}\"\nbase_domain = \"mesh.internal\"\n");
    for option in ["--guest-config", "--config"] {
        let (file, port) = (dir.path().join("settings.toml"), free_port());
        let guest = format!("vmid = 100\nhostname = \"coordinator\"\n[network]\nipv4 = \"dhcp\"\n[coordinator]\n{}", role(port));
        std::fs::write(&file, if option == "--config" { role(port) } else { guest }).unwrap();
        let socket = dir.path().join("c.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_pvemesh"))
            .args(["coordinator", "serve", option])
            .arg(&file)
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let admin = LocalAdmin::connect(&socket);
        let info = within("its start", async {
            loop {
                if let Ok(info) = admin.info().await {
                    return info;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(info.url, format!("http://127.0.0.1:{port}"), "{option}");
    }
    let wrong = dir.path().join("wrong.toml");
    std::fs::write(&wrong, "url = \"http://x.example\"\nlisten = \"127.0.0.1:1\"\nbase_domain = \"m.test\"\nadmin_kees = []\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pvemesh")).args(["coordinator", "serve", "--config"]).arg(&wrong).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("admin_kees"), "{text}");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let running = Running::start().await;
    let other = tempfile::tempdir().unwrap();
    let mut options = options(other.path());
    options.settings.listen = running.coordinator.address();
    let error = Coordinator::start(options).await.unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }) && error.to_string().contains("127.0.0.1:"), "{error}");
}
