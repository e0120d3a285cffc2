//! A storm: kill -9 of one gateway of two; its agents come to the other one, whose own must not notice.

use std::time::{Duration, Instant};

use anyhow::Result;
use muster_fleet::{Fleet, FleetOptions, Kind, Mix};
use muster_testkit::try_eventually;
use tokio_util::sync::CancellationToken;

use super::{BenchOptions, CONNECT, Row, cluster};
use crate::cluster::Cluster;
use crate::manifests;
use crate::process::Role;
use crate::reporter::Reporters;
use crate::usage::Usage;

/// Time between two heartbeats of an agent.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Agents of the gateway that stays, which report twice a second.
const SURVIVORS: usize = 50;
/// How long the survivors are watched before, and after at least.
const WATCH: Duration = Duration::from_secs(10);
/// How long it may take until all are settled.
const SETTLE: Duration = Duration::from_secs(120);

pub(super) async fn measure(options: &BenchOptions) -> Result<Vec<Row>> {
    let mut cluster = cluster(options, 2).await?;
    println!("a storm: kill -9 of one of two gateways, {} agents", options.agents);
    cluster.apis().apply(&manifests::both(1), SETTLE).await?;
    let fleet = FleetOptions {
        count: options.agents,
        mix: Mix::only(Kind::Collector),
        heartbeat: HEARTBEAT,
        connect_rate: 400.0,
        stop_timeout: Duration::from_secs(30),
        ..FleetOptions::new(cluster.opamp_url())
    };
    let fleet = Fleet::start(fleet, CancellationToken::new())?;
    let all = options.agents;
    fleet.wait(|stats| stats.connected == all && stats.applied >= all as u64, CONNECT).await?;

    let survivors = Reporters::start(&cluster.process(Role::Gateway, 1).opamp_url(), SURVIVORS);
    tokio::time::sleep(WATCH).await;
    survivors.take_waits();
    tokio::time::sleep(WATCH).await;
    let calm = p99(&survivors);
    let before = fleet.stats();
    let stayed = agents_of(&cluster, 1).await - SURVIVORS as f64;

    cluster.kill9(Role::Gateway, 0).await;
    let (killed, used) = (Instant::now(), cpu(&cluster)?);
    let settled = try_eventually(SETTLE, async || {
        let found = agents_of(&cluster, 1).await;
        let wanted = (all + SURVIVORS) as f64;
        if found == wanted { Ok(()) } else { Err(format!("{found} of {wanted} agents")) }
    });
    settled.await.map_err(anyhow::Error::msg)?;
    let took = killed.elapsed().as_secs_f64();
    let used = cpu(&cluster)? - used;
    tokio::time::sleep(WATCH).await;
    let storm = p99(&survivors);
    let after = fleet.stats();
    let dropped: u64 = survivors.said().iter().map(|said| said.drops).sum();
    fleet.stop().await;
    cluster.terminate().await;

    let cores = std::thread::available_parallelism()?.get() as f64;
    let moved = all as f64 - stayed;
    let resent = after.configs_received.values().sum::<u64>() - before.configs_received.values().sum::<u64>();
    let asked = after.full_states_asked - before.full_states_asked;
    Ok(vec![
        Row::new("storm: agents that moved", moved, "", ""),
        Row::new("storm: kill -9 to the last agent connected", took, "s", ""),
        Row::new(
            "storm: processor time per agent that moved, all of Muster, engines and agents",
            1e3 * used / moved,
            "ms",
            "",
        ),
        Row::new("storm: time beside agents x processor time / cores", took * cores / used, "", "<= 1.3"),
        Row::new("storm: answers to the survivors before, p99", 1e3 * calm, "ms", ""),
        Row::new("storm: answers to the survivors within, p99", 1e3 * storm, "ms", ""),
        Row::new("storm: connections of survivors lost", dropped as f64, "", "0"),
        Row::new("storm: configs sent again to agents whose config did not change", resent as f64, "", "0"),
        Row::new("storm: agents asked for full state", asked as f64, "", ""),
    ])
}

/// Processor time of Muster, its engines and the agents so far, in seconds.
fn cpu(cluster: &Cluster) -> Result<f64> {
    let running = cluster.processes().iter().filter(|process| process.is_running());
    let muster = running.map(|process| Ok(process.usage()?.cpu)).sum::<Result<f64>>()?;
    let engines = cluster.nats.servers().iter().map(|server| server.pid());
    let engines = engines.chain([cluster.redis.pid(), cluster.postgres.pid()]);
    let engines: f64 = engines.map(Usage::cpu_with_children).sum();
    Ok(muster + engines + Usage::of(std::process::id())?.cpu)
}

/// Agents that one gateway holds.
async fn agents_of(cluster: &Cluster, gateway: usize) -> f64 {
    let metrics = cluster.process(Role::Gateway, gateway).metrics().await;
    metrics.map(|metrics| metrics.sum("opamp_server_connected_agents")).unwrap_or_default()
}

/// The answer that only one in a hundred took longer than, since the last look; in seconds.
fn p99(reporters: &Reporters) -> f64 {
    let waits = reporters.take_waits();
    waits.get(waits.len() * 99 / 100).map(Duration::as_secs_f64).unwrap_or_default()
}
