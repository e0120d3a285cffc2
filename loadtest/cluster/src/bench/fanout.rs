//! The push of a config of 64 KiB to every agent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{BenchOptions, Row, fleet};
use crate::cluster::Cluster;
use crate::manifests;
use crate::process::Role;
use crate::usage::Usage;

/// Size of the config.
const BYTES: usize = 64 << 10;
/// Time between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Until memory is at rest, before and after.
const REST: Duration = Duration::from_secs(10);
/// How long the push may take.
const PUSH: Duration = Duration::from_secs(120);
/// Time between two looks at the gateway's memory.
const LOOK: Duration = Duration::from_millis(10);

pub(super) async fn measure(options: &BenchOptions, cluster: &Cluster) -> Result<Vec<Row>> {
    let gateway = cluster.process(Role::Gateway, 0);
    println!("fan-out: {BYTES} bytes to {} agents", options.agents);
    let fleet = fleet(&gateway.opamp_url(), 0, options.agents, HEARTBEAT).await?;
    tokio::time::sleep(REST).await;
    let before = gateway.usage()?;
    let peak = Peak::start(gateway.id().context("the gateway runs")?, before.rss);

    let asked = Instant::now();
    cluster.apis().apply(&manifests::large(1, BYTES), PUSH).await?;
    let committed = asked.elapsed();
    let agents = options.agents as u64;
    let mut times = Vec::new();
    for share in [agents.div_ceil(2), (agents * 99).div_ceil(100), agents] {
        fleet.wait(|stats| stats.configs_received.values().sum::<u64>() >= share, PUSH).await?;
        times.push((asked.elapsed() - committed).as_secs_f64());
    }
    tokio::time::sleep(REST).await;
    let (after, peak) = (gateway.usage()?, peak.end().await);
    let offers: u64 = fleet.stats().configs_received.values().sum();
    // Without the reports of what was applied, which are no part of the push.
    fleet.kill().await;
    let each = |bytes: u64| bytes.saturating_sub(before.rss) as f64 / options.agents as f64;
    Ok(vec![
        Row::new("apply of 64 KiB, request to commit", committed.as_secs_f64(), "s", ""),
        Row::new("64 KiB, API commit to received, p50", times[0], "s", ""),
        Row::new("64 KiB, API commit to received, p99", times[1], "s", ""),
        Row::new(
            "64 KiB, API commit to received, max",
            times[2],
            "s",
            "<= 2 s for 15,000; push <= 0.1 x peer (0.26 to 0.67 s for 15,000)",
        ),
        Row::new("64 KiB, offers received per agent", offers as f64 / options.agents as f64, "", "1"),
        Row::new("memory growth during the push, peak per agent", each(peak), "B", "<= 256 B + one body"),
        Row::new("memory growth 10 s after the push, per agent", each(after.rss), "B", ""),
        Row::new(
            "memory growth during the push, peak of the gateway",
            peak.saturating_sub(before.rss) as f64 / 1e6,
            "MB",
            "",
        ),
    ])
}

/// The most memory that a process had.
struct Peak {
    stop: CancellationToken,
    task: JoinHandle<u64>,
}

impl Peak {
    fn start(process: u32, from: u64) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut peak = from;
            while tokio::time::timeout(LOOK, stopped.cancelled()).await.is_err() {
                peak = peak.max(Usage::rss_of(process).unwrap_or_default());
            }
            peak
        });
        Self { stop, task }
    }

    async fn end(self) -> u64 {
        self.stop.cancel();
        self.task.await.unwrap_or_default()
    }
}
