//! `muster demo`: the server with a simulated fleet and an example configuration.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use muster_fleet::{Fleet, FleetOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::serve::{Process, Server};

/// The example configuration: a template and an assignment.
const MANIFESTS: [&str; 2] = [
    include_str!("../../../docs/examples/collector-template.yaml"),
    include_str!("../../../docs/examples/collector-assignment.yaml"),
];
/// How long the fleet may take to connect before the demo says what it has.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// Runs the demo until SIGINT or SIGTERM.
///
/// # Errors
/// If the server or the fleet cannot start.
pub async fn run(config: &Config, data_dir: &Path, agents: usize) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    if config.server.tls.enabled {
        bail!("the demo does not serve TLS: remove server.tls.enabled, or use `muster serve`");
    }
    let mut server = Server::start(config, data_dir, &Process::embedded()).await?;
    let api = format!("http://{}", server.http);
    apply(&api).await?;
    let agents_at = server.agents.context("the demo has no gateway")?;
    let options = FleetOptions {
        count: agents,
        stable_uids: true,
        ..FleetOptions::new(format!("ws://{agents_at}/v1/opamp"))
    };
    let fleet =
        Fleet::start(options, CancellationToken::new()).context("the simulated fleet cannot start")?;
    let connected = fleet.wait(|stats| stats.connected == agents, CONNECT_DEADLINE);
    let stop = tokio::select! {
        connected = connected => {
            let connected = connected.map_or_else(|late| late.stats.connected, |stats| stats.connected);
            welcome(&server, agents_at, &api, connected);
            false
        }
        _ = interrupt.recv() => true,
        _ = terminate.recv() => true,
    };
    let failed = if stop {
        None
    } else {
        tokio::select! {
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
            error = server.failed() => Some(error),
        }
    };
    println!("\nstopping");
    fleet.stop().await;
    server.stop().await;
    failed.map_or(Ok(()), Err)
}

/// Applies the example as a user would: through the API.
async fn apply(api: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
    let response = client
        .post(format!("{api}/api/v1/apply"))
        .header("content-type", "application/yaml")
        .body(MANIFESTS.join("\n---\n"))
        .send()
        .await
        .context("the example cannot be applied")?;
    if !response.status().is_success() {
        bail!("the example was refused: {}", response.text().await.unwrap_or_default());
    }
    Ok(())
}

fn welcome(server: &Server, agents_at: SocketAddr, api: &str, connected: usize) {
    let flag = if server.http.port() == 4321 { String::new() } else { format!(" --server {api}") };
    println!(
        "Muster is running with {connected} simulated agents.

  agents connect at   ws://{agents_at}/v1/opamp
  API                 {api}/api/v1/agents
  OpenAPI             {api}/api/v1/openapi.json
  metrics             http://{}/metrics

Try, in another terminal:

  muster agents list{flag}
  muster agents list{flag} --selector 'deployment.environment=prod'
  muster agents get{flag} INSTANCE_UID
  muster configs get{flag} standard-collector
  muster apply{flag} -f docs/examples/collector-assignment.yaml

(`muster` is target/release/muster, or `cargo run --release --` before the command.)
Press Ctrl-C to stop.",
        server.metrics
    );
}
