//! A fleet of simulated agents on one server.

use std::time::Duration;

use muster_fleet::{Fleet, FleetOptions};
use muster_testkit::{Muster, eventually};
use tokio_util::sync::CancellationToken;

use crate::{SOON, apply, server};

#[tokio::test]
async fn a_fleet_gets_its_config_and_heartbeats_cost_no_publish() {
    let muster = server().await;
    let fleet = quiet_fleet(&muster, muster.opamp_url(), 200).await;
    let connected = async || muster.api().metrics().await.unwrap().sum("opamp_server_connected_agents");
    assert_eq!(connected().await, 200.0);
    let stats = fleet.stop().await;
    assert_eq!(stats.errors, 0, "{stats:?}");
    eventually(SOON, async || {
        let left = connected().await;
        if left == 0.0 { Ok(()) } else { Err(format!("{left} are still connected")) }
    })
    .await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn so_does_a_fleet_that_polls() {
    let muster = server().await;
    let fleet = quiet_fleet(&muster, muster.opamp_http_url(), 50).await;
    let connected = async || muster.api().metrics().await.unwrap().sum("muster_control_polling_agents");
    assert_eq!(connected().await, 50.0);
    let stats = fleet.stop().await;
    assert_eq!((stats.errors, stats.error_responses), (0, 0), "{stats:?}");
    eventually(SOON, async || {
        let left = connected().await;
        if left == 0.0 { Ok(()) } else { Err(format!("{left} are still connected")) }
    })
    .await;
    muster.assert_no_errors();
}

/// Starts a fleet, applies a config, and waits until nothing but heartbeats comes, which publish nothing.
async fn quiet_fleet(muster: &Muster, url: String, agents: usize) -> Fleet {
    let options = FleetOptions {
        count: agents,
        heartbeat: Duration::from_millis(250),
        apply_delay: Duration::ZERO..=Duration::from_millis(50),
        ..FleetOptions::new(url)
    };
    let fleet = Fleet::start(options, CancellationToken::new()).unwrap();
    fleet.wait(|stats| stats.connected == agents, SOON).await.unwrap();
    apply(
        muster,
        &[
            include_str!("../../../../docs/examples/collector-template.yaml"),
            include_str!("../../../../docs/examples/collector-assignment.yaml"),
        ],
    )
    .await;
    let collectors = muster.api().get("/api/v1/agents?limit=1000").await.unwrap();
    let collectors = collectors["items"].as_array().unwrap().clone();
    let wanted = collectors.iter().filter(|agent| !agent["remote_config"]["desired_hash"].is_null()).count();
    eventually(SOON, async || {
        let stats = fleet.stats();
        let settled = usize::try_from(stats.applied + stats.failed).unwrap();
        if settled >= wanted.max(1) { Ok(()) } else { Err(format!("{wanted} wanted, {stats:?}")) }
    })
    .await;

    // From here on the fleet is quiet: heartbeats are answered, and nothing is published.
    let quiet = |name: &'static str| async { muster.api().metrics().await.unwrap().sum(name) };
    eventually(SOON, async || {
        let published = quiet("muster_gateway_publishes_total").await;
        let received = quiet("opamp_server_messages_received_total").await;
        eventually(SOON, async || {
            let more = quiet("opamp_server_messages_received_total").await - received;
            if more >= 500.0 { Ok(()) } else { Err(format!("{more} heartbeats")) }
        })
        .await;
        let more = quiet("muster_gateway_publishes_total").await - published;
        if more == 0.0 { Ok(()) } else { Err(format!("{more} entries were published meanwhile")) }
    })
    .await;
    fleet
}
