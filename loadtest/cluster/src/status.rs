//! `cluster`: everything at work until Ctrl-C, with a line each second.

use std::time::Duration;

use anyhow::Result;
use muster_fleet::{Fleet, FleetOptions, Kind, Mix};
use muster_testkit::Metrics;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, ClusterOptions};
use crate::process::Role;

/// Runs a cluster, with simulated agents if any are asked for, until Ctrl-C or SIGTERM.
///
/// # Errors
/// If the cluster does not start.
pub async fn run(options: &ClusterOptions, agents: usize) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!(
        "starting NATS, Redis, Postgres and {} processes of Muster",
        options.gateways + options.controls + options.apis
    );
    let cluster = tokio::select! {
        cluster = Cluster::start(options) => cluster?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    welcome(&cluster);
    let fleet = match agents {
        0 => None,
        count => {
            let mix = Mix::only(Kind::Collector);
            let options =
                FleetOptions { count, mix, stable_uids: true, ..FleetOptions::new(cluster.opamp_url()) };
            Some(Fleet::start(options, CancellationToken::new())?)
        }
    };
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => println!("{}", line(&cluster, fleet.as_ref()).await),
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    println!("stopping: agents, gateways, controls, apis, then the engines");
    if let Some(fleet) = fleet {
        fleet.stop().await;
    }
    cluster.terminate().await;
    println!("stopped");
    Ok(())
}

fn welcome(cluster: &Cluster) {
    let server = cluster.role(Role::Api).next().map(|api| api.api().base().to_owned()).unwrap_or_default();
    println!("\n  agents connect at  {} (a balancer over the gateways)", cluster.opamp_url());
    for process in cluster.processes() {
        let agents = if process.role == Role::Gateway { process.opamp_url() } else { String::new() };
        let id = process.id().map_or("-".to_owned(), |id| id.to_string());
        println!("  {:<18} {}  process {id}  {agents}", process.name, process.api().base());
    }
    println!("  {:<18} {}", "NATS", cluster.nats.url());
    println!("  {:<18} {}", "Redis", cluster.redis.url());
    println!("  {:<18} {}", "Postgres", cluster.postgres.url());
    println!("  {:<18} {}", "logs", cluster.logs().display());
    println!(
        "
Try, in another terminal:

  muster agents list --server {server}
  muster apply --server {server} -f docs/examples/collector-template.yaml -f docs/examples/collector-assignment.yaml
  cargo run -p muster-swarm -- --url {} --agents 100
  kill -9 PROCESS

Press Ctrl-C to stop.
",
        cluster.opamp_url()
    );
}

/// Agents of each gateway, reports published and folded, partitions of each control.
async fn line(cluster: &Cluster, fleet: Option<&Fleet>) -> String {
    let of = async |role, name: &str| -> String {
        let all = cluster.metrics(role).await;
        let one = |metrics: &Option<Metrics>| {
            metrics.as_ref().map_or("down".to_owned(), |metrics| metrics.sum(name).to_string())
        };
        all.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let agents = of(Role::Gateway, "opamp_server_connected_agents").await;
    let partitions = of(Role::Control, "muster_control_partitions").await;
    let published = cluster.sum(Role::Gateway, "muster_gateway_publishes_total").await;
    let folded = cluster.sum(Role::Control, "muster_control_folded_entries_total").await;
    let apis = cluster.metrics(Role::Api).await.iter().filter(|metrics| metrics.is_some()).count();
    let running = fleet.map(|fleet| {
        let stats = fleet.stats();
        let running: usize = stats.running.values().sum();
        format!(" | fleet: {} connected, {running} with a config", stats.connected)
    });
    format!(
        "agents by gateway: {agents} | partitions by control: {partitions} | reports published {published}, folded {folded} | apis up: {apis}{}",
        running.unwrap_or_default()
    )
}
