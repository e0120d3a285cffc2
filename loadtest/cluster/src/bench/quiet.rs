//! What heartbeats of a quiet fleet cost: processor time, and messages and writes as the increase between
//! two sizes of the fleet, so that what happens anyway is not counted.

use std::time::Duration;

use anyhow::{Context, Result};
use muster_fleet::Fleet;
use muster_testkit::engines::Postgres;

use super::{BenchOptions, Row, fleet};
use crate::cluster::Cluster;
use crate::process::{Process, Role};
use crate::usage::Usage;

/// Time between two heartbeats of an agent.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// After the last agent has connected, until the fleet is quiet.
const REST: Duration = Duration::from_secs(12);
/// Windows of each measurement; the median counts.
const WINDOWS: usize = 3;

/// Counters at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    heartbeats: f64,
    gateway: f64,
    muster: f64,
    engines: f64,
    bus: f64,
    transactions: f64,
    commits: f64,
    publishes: f64,
}

impl Counters {
    async fn read(cluster: &Cluster, fleets: &[&Fleet]) -> Result<Self> {
        let cpu = |role: Option<Role>| -> Result<f64> {
            let processes =
                cluster.processes().iter().filter(|process| role.is_none_or(|role| process.role == role));
            processes.map(|process: &Process| Ok(process.usage()?.cpu)).sum()
        };
        let engines = cluster.nats.servers().iter().map(|server| server.pid());
        let engines = engines.chain([cluster.redis.pid(), cluster.postgres.pid()]);
        let sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
        let transactions = Postgres::psql(&cluster.postgres.url(), sql).await;
        Ok(Self {
            heartbeats: fleets.iter().map(|fleet| fleet.stats().heartbeats as f64).sum(),
            gateway: cpu(Some(Role::Gateway))?,
            muster: cpu(None)?,
            engines: engines.map(Usage::cpu_with_children).sum(),
            bus: cluster.nats.sum("in_msgs").await?,
            transactions: transactions.trim().parse().context("pg_stat_database")?,
            commits: cluster.sum(Role::Control, "muster_control_commits_total").await,
            publishes: cluster.sum(Role::Gateway, "muster_gateway_publishes_total").await,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            heartbeats: self.heartbeats - before.heartbeats,
            gateway: self.gateway - before.gateway,
            muster: self.muster - before.muster,
            engines: self.engines - before.engines,
            bus: self.bus - before.bus,
            transactions: self.transactions - before.transactions,
            commits: self.commits - before.commits,
            publishes: self.publishes - before.publishes,
        }
    }
}

/// The increase of every counter in some windows of the same length.
async fn windows(options: &BenchOptions, cluster: &Cluster, fleets: &[&Fleet]) -> Result<Vec<Counters>> {
    let mut windows = Vec::new();
    let mut before = Counters::read(cluster, fleets).await?;
    let mut ends = tokio::time::interval(Duration::from_secs(options.seconds));
    ends.tick().await;
    for _ in 0..WINDOWS {
        ends.tick().await;
        let after = Counters::read(cluster, fleets).await?;
        windows.push(after.since(&before));
        before = after;
    }
    Ok(windows)
}

fn median(windows: &[Counters], of: impl Fn(&Counters) -> f64) -> f64 {
    let mut values: Vec<f64> = windows.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

pub(super) async fn measure(options: &BenchOptions, cluster: &Cluster) -> Result<Vec<Row>> {
    let url = cluster.process(Role::Gateway, 0).opamp_url();
    let few = options.agents / 3;
    println!("a quiet fleet: 0, {few}, then {} agents, a heartbeat a second each", options.agents);
    let nobody = windows(options, cluster, &[]).await?;
    let one = fleet(&url, 0, few, HEARTBEAT).await?;
    tokio::time::sleep(REST).await;
    let small = windows(options, cluster, &[&one]).await?;
    let more = fleet(&url, few, options.agents - few, HEARTBEAT).await?;
    tokio::time::sleep(REST).await;
    let large = windows(options, cluster, &[&one, &more]).await?;
    more.stop().await;
    one.stop().await;

    let heartbeats = median(&large, |window| window.heartbeats);
    let micros = |of: fn(&Counters) -> f64| 1e6 * median(&large, |window| of(window) / window.heartbeats);
    let beyond_idle =
        |of: fn(&Counters) -> f64| 1e6 * (median(&large, of) - median(&nobody, of)) / heartbeats;
    // In the same time: a window is as long as another.
    let increase = |of: fn(&Counters) -> f64| {
        let beats = heartbeats - median(&small, |window| window.heartbeats);
        (median(&large, of) - median(&small, of)) / beats
    };
    let background = |of: fn(&Counters) -> f64| median(&nobody, of) / options.seconds as f64;
    Ok(vec![
        Row::new("CPU per heartbeat, gateway", micros(|c| c.gateway), "us", "<= 3.6 us (0.5 x peer)"),
        Row::new(
            "CPU per heartbeat, all processes of Muster",
            micros(|c| c.muster),
            "us",
            "<= 7.2 us (1.0 x peer)",
        ),
        Row::new(
            "CPU per heartbeat, all of Muster without what it uses with no agent",
            beyond_idle(|c| c.muster),
            "us",
            "",
        ),
        Row::new(
            "CPU per heartbeat, NATS, Redis and Postgres without what they use with no agent",
            beyond_idle(|c| c.engines),
            "us",
            "",
        ),
        Row::new("bus messages per heartbeat, increase", increase(|c| c.bus), "", "<= 0.01"),
        Row::new("reports published per heartbeat, increase", increase(|c| c.publishes), "", "<= 0.01"),
        Row::new("store transactions per heartbeat, increase", increase(|c| c.transactions), "", "<= 0.01"),
        Row::new("commits of control per heartbeat, increase", increase(|c| c.commits), "", "<= 0.01"),
        Row::new("bus messages a second without agents (three servers)", background(|c| c.bus), "/s", ""),
        Row::new("store transactions a second without agents", background(|c| c.transactions), "/s", ""),
    ])
}
