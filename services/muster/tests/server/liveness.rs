//! Who is there, who is not, and whose doing that is.

use std::time::Duration;

use muster_proto::opamp::AgentToServer;
use muster_testkit::messages::{first_report, goodbye, heartbeat, new_uid};
use muster_testkit::{Muster, RawAgent, eventually};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::events::Events;
use crate::{SOON, agent, agent_has, apply, assignment, offer, server, template};

/// A server on which an agent that reports heartbeats is silent after a second without one.
async fn impatient() -> Muster {
    Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__WEBSOCKET__AGENT_SILENT_AFTER", "1s")
        .start()
        .await
}

/// The uids that a list with this query shows.
async fn listed(muster: &Muster, query: &str) -> Vec<String> {
    let listed = muster.api().get(&format!("/api/v1/agents?{query}")).await.unwrap();
    let items = listed["items"].as_array().unwrap();
    items.iter().map(|item| item["instance_uid"].as_str().unwrap().to_owned()).collect()
}

async fn connected(muster: &Muster) -> (RawAgent, Uuid) {
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[("team", "blue")])).await;
    agent_has(muster, uid, "/liveness", "connected").await;
    (agent, uid)
}

#[tokio::test]
async fn shut_down_disconnected_and_unreachable_are_told_apart() {
    let muster = server().await;
    let (mut stays, here) = connected(&muster).await;
    let (mut stops, stopped) = connected(&muster).await;
    let (mut closes, closed) = connected(&muster).await;
    let (vanishes, vanished) = connected(&muster).await;
    let (mut ordered, ordered_away) = connected(&muster).await;
    let mut events = Events::listen(&muster, "disconnected").await;
    let mut told = async |uid: Uuid, liveness: &str, reason: &str| {
        let view = agent_has(&muster, uid, "/liveness", liveness).await;
        assert_eq!((&view["connected"], &view["session"]["end_reason"]), (&json!(false), &json!(reason)));
        let expected = json!({"kind": "disconnected", "instance_uid": uid.to_string(), "reason": reason,
                              "liveness": liveness});
        assert_eq!(events.next().await, expected);
    };
    stops.exchange(&goodbye(stopped, 1)).await;
    told(stopped, "shut_down", "agent_disconnect").await;
    closes.close(1000).await;
    told(closed, "disconnected", "closed").await;
    drop(vanishes);
    told(vanished, "unreachable", "connection_lost").await;
    muster.cli(&["agents", "disconnect", &ordered_away.to_string(), "--wait"]).await.expect_success();
    assert_eq!(ordered.recv_close().await, 1000);
    told(ordered_away, "disconnected", "operator").await;

    let cases = [
        ("liveness=connected", vec![here]),
        ("liveness=shut_down", vec![stopped]),
        ("liveness=unreachable,shut_down", vec![stopped, vanished]),
        ("liveness=disconnected&limit=1", vec![closed]),
        ("liveness=disconnected", vec![closed, ordered_away]),
        ("liveness=disconnected&selector=team%3Dred", vec![]),
        ("drifted=true", vec![]),
    ];
    for (query, expected) in cases {
        let mut expected: Vec<_> = expected.iter().map(Uuid::to_string).collect();
        expected.sort();
        assert_eq!(listed(&muster, query).await, expected, "{query}");
    }
    let refused = muster.api().get("/api/v1/agents?liveness=gone").await.unwrap_err();
    assert_eq!((refused.status, refused.detail().starts_with("liveness: ")), (400, true), "{refused}");
    let shown = muster.cli(&["agents", "list", "--liveness", "unreachable,shut_down"]).await.expect_success();
    for part in ["unreachable", "shut down", &stopped.to_string(), &vanished.to_string()] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains(&here.to_string()) && !shown.contains(&closed.to_string()), "{shown}");
    let metrics = muster.api().metrics().await.unwrap();
    for reason in ["agent_disconnect", "closed", "connection_lost", "operator"] {
        let series = format!("muster_control_sessions_ended_total{{reason=\"{reason}\"}}");
        assert_eq!(metrics.get(&series), Some(1.0), "{series}");
    }
    stays.exchange(&heartbeat(here, 1)).await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn one_silent_agent_of_a_connection_is_unreachable_and_still_gets_its_config() {
    let muster = impatient().await;
    let (silent, loud) = (new_uid(), new_uid());
    let mut shared = RawAgent::connect(&muster.opamp_url()).await;
    shared.exchange(&first_report(silent, &[("team", "blue")])).await;
    shared.exchange(&first_report(loud, &[("team", "red")])).await;
    agent_has(&muster, silent, "/liveness", "connected").await;
    let mut events = Events::listen(&muster, "unreachable,reachable,disconnected").await;

    let mut sequence = 0;
    let view = eventually(SOON, async || {
        sequence += 1;
        shared.exchange(&heartbeat(loud, sequence)).await;
        let view = agent(&muster, silent).await;
        if view["liveness"] == "unreachable" { Ok(view) } else { Err(format!("{view:#}")) }
    })
    .await;
    assert_eq!((&view["connected"], &view["session"]["end_reason"]), (&json!(true), &Value::Null));
    assert!(view["session"]["silent_since"].is_string(), "{view}");
    assert_eq!(events.next().await, json!({"kind": "unreachable", "instance_uid": silent.to_string()}));
    assert_eq!(listed(&muster, "liveness=unreachable").await, [silent.to_string()]);
    assert_eq!(agent(&muster, loud).await["liveness"], "connected");
    let shown = muster.cli(&["agents", "get", &silent.to_string()]).await.expect_success();
    assert!(shown.contains("unreachable") && shown.contains("silent since"), "{shown}");
    let metrics = muster.api().metrics().await.unwrap();
    assert!(metrics.sum("muster_control_silences_total") >= 1.0);

    // It may hear what it does not answer; when it does, it is there again.
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    offer(&mut shared).await;
    shared.exchange(&heartbeat(silent, 1)).await;
    let view = agent_has(&muster, silent, "/liveness", "connected").await;
    assert_eq!(view["session"]["silent_since"], Value::Null);
    let told = json!({"kind": "reachable", "instance_uid": silent.to_string()});
    // The other one may have been silent for a second meanwhile.
    while events.next().await != told {}
    muster.assert_no_errors();
}

#[tokio::test]
async fn who_reports_no_heartbeats_is_not_waited_for() {
    let muster = impatient().await;
    let (mute, beats) = (new_uid(), new_uid());
    let mut first = RawAgent::connect(&muster.opamp_url()).await;
    // Without ReportsHeartbeat.
    first.exchange(&AgentToServer { capabilities: 0x1, ..first_report(mute, &[]) }).await;
    let mut second = RawAgent::connect(&muster.opamp_url()).await;
    second.exchange(&first_report(beats, &[])).await;
    agent_has(&muster, beats, "/liveness", "unreachable").await;
    assert_eq!(agent(&muster, mute).await["liveness"], "connected", "its connection is open");
    assert_eq!(first.next_within(Duration::from_millis(1)).await, None);
    muster.assert_no_errors();
}
