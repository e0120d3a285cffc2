//! Memory of an idle agent.

use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use super::{BenchOptions, Row, fleet};
use crate::cluster::Cluster;
use crate::process::{Process, Role};
use crate::usage::Usage;

/// Time between heartbeats of idle agents, as usual.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// After the last agent has connected, until memory is read.
const REST: Duration = Duration::from_secs(15);

/// Memory of `muster serve`, every role in one process.
pub(super) async fn embedded(options: &BenchOptions) -> Result<Vec<Row>> {
    let logs = TempDir::new()?;
    let mut server = Process::start(
        &options.program,
        Role::Embedded,
        1,
        "telemetry: {logs: {format: json}}\n",
        logs.path(),
    )
    .await?;
    let url = server.opamp_url();
    let rows = growth(options, &server, &url, "of the embedded server", "").await?;
    server.terminate().await;
    Ok(rows)
}

/// Memory of a gateway process.
pub(super) async fn gateway(options: &BenchOptions, cluster: &Cluster) -> Result<Vec<Row>> {
    let gateway = cluster.process(Role::Gateway, 0);
    growth(options, gateway, &gateway.opamp_url(), "of a gateway", "<= 3.5 KB (0.15 x peer)").await
}

async fn growth(
    options: &BenchOptions,
    process: &Process,
    url: &str,
    of: &str,
    goal: &str,
) -> Result<Vec<Row>> {
    println!("memory {of}: {} idle agents", options.agents);
    // What the first connections cost is not the agents'.
    let first = options.agents / 3;
    let empty = process.usage()?;
    let one = fleet(url, 0, first, HEARTBEAT).await?;
    tokio::time::sleep(REST).await;
    let some = process.usage()?;
    let more = fleet(url, first, options.agents - first, HEARTBEAT).await?;
    tokio::time::sleep(REST).await;
    let all = process.usage()?;
    let each = |of: fn(&Usage) -> u64, from: &Usage, agents: usize| {
        (of(&all) as f64 - of(from) as f64) / agents as f64 / 1000.0
    };
    let rss = |usage: &Usage| usage.rss;
    let whole = each(rss, &empty, options.agents);
    let slope = each(rss, &some, options.agents - first);
    let pss = each(|usage| usage.pss, &empty, options.agents);
    more.stop().await;
    one.stop().await;
    Ok(vec![
        Row::new(
            format!("memory per idle agent {of}, RSS growth over all {} agents", options.agents),
            whole,
            "KB",
            goal,
        ),
        Row::new(format!("memory per idle agent {of}, RSS growth from {first} agents on"), slope, "KB", goal),
        Row::new(format!("memory per idle agent {of}, PSS growth over all agents"), pss, "KB", goal),
        Row::new(format!("memory {of} without agents, RSS"), empty.rss as f64 / 1e6, "MB", ""),
    ])
}
