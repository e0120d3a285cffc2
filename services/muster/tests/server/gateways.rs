//! Agents that move between gateways, on the engines of a cluster.

use muster_proto::opamp::AgentToServer;
use muster_testkit::engines::{Engine, Nats, Postgres, Redis, engines_or_skip};
use muster_testkit::messages::{first_report, full_state, health, heartbeat, new_uid};
use muster_testkit::{Muster, RawAgent};
use serde_json::{Value, json};

use crate::{QUIET, agent_has, apply, assignment, offer, run, template};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_moves_between_gateways_keeps_its_state_and_its_numbers_count_on() {
    if !engines_or_skip(&[Engine::Nats, Engine::Redis, Engine::Postgres]) {
        return;
    }
    let (nats, redis) = (Nats::start().await, Redis::start().await);
    let postgres = Postgres::builder().without_fsync().start().await;
    let role = |role: &str, name: &str| {
        Muster::builder(env!("CARGO_BIN_EXE_muster"))
            .env("MUSTER_BUS__TYPE", "nats")
            .env("MUSTER_BUS__URL", nats.url())
            .env("MUSTER_BUS__REPLICAS", "1")
            .env("MUSTER_BUS__MAX_BYTES", "64MiB")
            .env("MUSTER_BUS__MAX_BLOB_BYTES", "64MiB")
            .env("MUSTER_OWNERSHIP__TYPE", "redis")
            .env("MUSTER_OWNERSHIP__URL", redis.url())
            .env("MUSTER_DATABASE__TYPE", "postgres")
            .arg(format!("--roles={role}"))
            .arg(format!("--name={name}"))
    };
    let database = postgres.database().await;
    let control = role("control,api", "c1").env("MUSTER_DATABASE__CONNECTION_STRING", database).start().await;
    let (mut first, second) = (role("gateway", "g1").start().await, role("gateway", "g2").start().await);
    apply(&control, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&first.opamp_url()).await;
    agent.send(&first_report(uid, &[("team", "blue")])).await;
    let offered = offer(&mut agent).await;
    run(&mut agent, uid, 1, &offered).await;
    agent.exchange(&health(uid, 4, false, "queue is full")).await;
    let before = agent_has(&control, uid, "/healthy", false).await;
    assert_eq!(before["session"]["gateway"], "g1");

    // It comes to the other one as opamp-go does: number and capabilities alone, and nothing is asked for.
    agent.close(1000).await;
    agent_has(&control, uid, "/liveness", "disconnected").await;
    let mut agent = RawAgent::connect(&second.opamp_url()).await;
    assert_eq!(agent.exchange(&heartbeat(uid, 5)).await.flags, 0, "the numbers go on");
    let after = agent_has(&control, uid, "/session/gateway", "g2").await;
    for part in ["/attributes", "/health", "/effective_config", "/remote_config", "/first_seen", "/drift"] {
        assert_eq!(after.pointer(part), before.pointer(part), "{part}");
    }
    assert_eq!(agent.next_within(QUIET).await, None);
    // Back on the first one, after a message that was lost on the way.
    agent.close(1000).await;
    agent_has(&control, uid, "/liveness", "disconnected").await;
    let mut agent = RawAgent::connect(&first.opamp_url()).await;
    assert_eq!(agent.exchange(&heartbeat(uid, 7)).await.flags, 1, "ReportFullState");
    // What it says of its config is as before: left out.
    let whole = full_state(uid, 8, &[("team", "blue"), ("host.name", "new")]);
    let whole = AgentToServer { remote_config_status: None, effective_config: None, ..whole };
    agent.exchange(&whole).await;
    agent_has(&control, uid, "/attributes/non_identifying/host.name", "new").await;

    // A gateway that dies disconnects its agents: it is not their fault, and that stays known.
    first.kill9().await;
    let view = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        loop {
            let view = crate::agent(&control, uid).await;
            if view["connected"] == json!(false) {
                return view;
            }
            tokio::time::sleep(QUIET).await;
        }
    });
    let view = view.await.unwrap();
    assert_eq!(
        (&view["liveness"], &view["session"]["end_reason"], &view["drift"]),
        (&json!("disconnected"), &json!("gateway_lost"), &Value::Null)
    );
    let metrics = control.api().metrics().await.unwrap();
    let lost = "muster_control_sessions_ended_total{reason=\"gateway_lost\"}";
    assert_eq!(metrics.get(lost), Some(1.0));
    let mut agent = RawAgent::connect(&second.opamp_url()).await;
    agent.exchange(&heartbeat(uid, 9)).await;
    agent_has(&control, uid, "/liveness", "connected").await;
    second.assert_no_errors();
}
