//! Joins a mesh with tailscale-rs, says what it sees in JSON lines, echoes UDP and pings a peer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use tailscale::{Config, Device};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    control_url: url::Url,
    #[arg(long)]
    auth_key_file: PathBuf,
    #[arg(long)]
    hostname: String,
    #[arg(long)]
    key_file: PathBuf,
    /// Where a peer echoes UDP.
    #[arg(long)]
    ping: Option<SocketAddr>,
}

const ECHO: u16 = 7007;

fn say(line: &serde_json::Value) {
    println!("{line}");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let mut config = Config::default_with_key_file(&arguments.key_file).await?;
    config.requested_hostname = Some(arguments.hostname);
    config.control_server_url = arguments.control_url;
    config.client_name = Some("pvemesh-interop".to_owned());
    let key = std::fs::read_to_string(&arguments.auth_key_file)?.trim().to_owned();
    let device = match Device::new(&config, Some(key)).await {
        Ok(device) => device,
        Err(error) => {
            say(&json!({ "event": "refused", "error": error.to_string() }));
            return Err(error.into());
        }
    };
    let (v4, v6) = (device.ipv4_addr().await?, device.ipv6_addr().await?);
    let own = device.self_node().await?;
    say(&json!({ "event": "joined", "v4": v4, "v6": v6, "node": format!("{own:?}") }));

    let echo = device.udp_bind((v4, ECHO).into()).await?;
    tokio::spawn(async move {
        while let Ok((from, data)) = echo.recv_from_bytes().await {
            say(&json!({ "event": "pinged", "from": from.to_string() }));
            let _ = echo.send_to(from, &data).await;
        }
    });
    let Some(peer) = arguments.ping else { return std::future::pending().await };
    let pinger = Arc::new(device.udp_bind((v4, ECHO + 1).into()).await?);
    let start = Instant::now();
    // One receiver that is never given up: a cancelled receive stays in tailscale-rs's queue, and takes the next packet with it.
    let answers = pinger.clone();
    tokio::spawn(async move {
        while let Ok((from, data)) = answers.recv_from_bytes().await {
            let sent = data.as_ref().try_into().map(|bytes| Duration::from_micros(u64::from_be_bytes(bytes)));
            match sent {
                Ok(sent) if from == peer => say(&json!({ "event": "pong", "ms": (start.elapsed() - sent).as_secs_f64() * 1000.0 })),
                _ => say(&json!({ "event": "noise", "from": from.to_string() })),
            }
        }
    });
    let mut shown = false;
    loop {
        if !shown && let Some(found) = device.peer_by_tailnet_ip(peer.ip()).await? {
            say(&json!({ "event": "peer", "node": format!("{found:?}") }));
            shown = true;
        }
        let sent = u64::try_from(start.elapsed().as_micros())?;
        pinger.send_to(peer, &sent.to_be_bytes()).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
