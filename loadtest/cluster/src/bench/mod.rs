//! A first measurement beside the goals: memory, processor time, fan-out, and what a quiet fleet costs the
//! bus and the store.

mod fanout;
mod memory;
mod quiet;
mod report;
mod storm;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_fleet::{Fleet, FleetOptions, Kind, Mix};
use tokio_util::sync::CancellationToken;

pub use report::Row;

use crate::cluster::{Cluster, ClusterOptions};

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The `muster` program, a release build.
    pub program: PathBuf,
    /// Simulated agents.
    pub agents: usize,
    /// Seconds of each measurement of processor time.
    pub seconds: u64,
    /// What the machine is.
    pub machine: String,
    /// The date.
    pub date: String,
    /// Whether to write the results into the repository.
    pub write: bool,
}

/// How long agents may take to connect.
const CONNECT: Duration = Duration::from_secs(120);

/// Measures, prints a table, and writes it if it is to be kept.
///
/// # Errors
/// If something does not start, or does not come about in time.
pub async fn run(options: &BenchOptions) -> Result<()> {
    ensure!((300..=12_000).contains(&options.agents), "--agents: 300 to 12,000, for the descriptor limit");
    let mut rows = memory::embedded(options).await?;
    let cluster = cluster(options, 1).await?;
    rows.extend(memory::gateway(options, &cluster).await?);
    cluster.terminate().await;
    let cluster = self::cluster(options, 1).await?;
    rows.extend(quiet::measure(options, &cluster).await?);
    cluster.terminate().await;
    let cluster = self::cluster(options, 1).await?;
    rows.extend(fanout::measure(options, &cluster).await?);
    cluster.terminate().await;
    rows.extend(storm::measure(options).await?);
    println!("\n{}", report::table(&rows));
    if options.write {
        report::write(options, &rows)?;
    }
    Ok(())
}

/// A new cluster; with one gateway all agents are on it.
async fn cluster(options: &BenchOptions, gateways: usize) -> Result<Cluster> {
    let cluster = ClusterOptions { gateways, controls: 2, apis: 1, ..ClusterOptions::new(&options.program) };
    Cluster::start(&cluster).await
}

/// Agents from `first` on, connected.
async fn fleet(url: &str, first: usize, count: usize, heartbeat: Duration) -> Result<Fleet> {
    let options = FleetOptions {
        count,
        first_index: first,
        mix: Mix::only(Kind::Collector),
        heartbeat,
        connect_rate: 400.0,
        // Longer than the measurement of a push: what agents report of it is not part of it.
        apply_delay: Duration::from_secs(120)..=Duration::from_secs(180),
        stop_timeout: Duration::from_secs(30),
        ..FleetOptions::new(url)
    };
    let fleet = Fleet::start(options, CancellationToken::new())?;
    // Each has an answer to its first report.
    fleet.wait(|stats| stats.connected == count && stats.received >= count as u64, CONNECT).await?;
    Ok(fleet)
}
