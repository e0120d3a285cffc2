//! `muster-swarm`: simulated agents against a server, with a line of JSON a second on what they see.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use muster_fleet::{Fleet, FleetOptions, Kind, Mix, Stats};
use serde_json::json;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulated agents against a server.
#[derive(Debug, Parser)]
struct Options {
    /// Where the agents connect.
    #[arg(long, default_value = "ws://127.0.0.1:4320/v1/opamp")]
    url: String,
    /// How many.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Index of the first, where several processes make one swarm.
    #[arg(long, default_value_t = 0)]
    first_index: usize,
    /// Seconds between an agent's heartbeats; 0 for none.
    #[arg(long, default_value_t = 30.0)]
    heartbeat: f64,
    /// First connections a second.
    #[arg(long, default_value_t = 1000.0)]
    connect_rate: f64,
    /// Longest time from APPLYING to APPLIED, in milliseconds.
    #[arg(long, default_value_t = 100)]
    apply_delay: u64,
    /// Source addresses, in turn.
    #[arg(long, value_delimiter = ',')]
    sources: Vec<IpAddr>,
    /// Healthy collectors alone, rather than several kinds.
    #[arg(long)]
    collectors: bool,
    /// Stop after this many seconds; without it, on Ctrl-C.
    #[arg(long)]
    seconds: Option<u64>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let began = Instant::now();
    let mix = if options.collectors { Mix::only(Kind::Collector) } else { Mix::default() };
    let fleet = FleetOptions {
        count: options.agents,
        first_index: options.first_index,
        heartbeat: Duration::try_from_secs_f64(options.heartbeat).context("--heartbeat")?,
        connect_rate: options.connect_rate,
        apply_delay: Duration::ZERO..=Duration::from_millis(options.apply_delay),
        sources: options.sources,
        mix,
        ..FleetOptions::new(options.url)
    };
    let fleet = Fleet::start(fleet, CancellationToken::new())?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let limit = options.seconds.map_or(Duration::MAX, Duration::from_secs);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            _ = ticks.tick() => println!("{}", line(&fleet.stats(), began)),
            _ = &mut interrupt => break,
        }
        if began.elapsed() >= limit {
            break;
        }
    }
    println!("{}", line(&fleet.stop().await, began));
    Ok(())
}

fn line(stats: &Stats, began: Instant) -> serde_json::Value {
    json!({
        "seconds": began.elapsed().as_secs_f64(),
        "connected": stats.connected,
        "connections": stats.connections,
        "connect_failures": stats.connect_failures,
        "drops": stats.drops,
        "sent": stats.sent,
        "received": stats.received,
        "full_states_asked": stats.full_states_asked,
        "heartbeats": stats.heartbeats,
        "offers": stats.configs_received.values().sum::<u64>(),
        "applied": stats.applied,
        "failed": stats.failed,
        "running": stats.running,
        "errors": stats.errors,
        "last_error": stats.last_error,
    })
}
