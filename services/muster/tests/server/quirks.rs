//! How real clients behave, each tried with a fake that behaves so.

use std::time::Duration;

use muster_proto::opamp::{AgentConfigFile, AgentToServer, ComponentHealth, ServerErrorResponseType};
use muster_testkit::fakes::{Applies, Extension, Java, OldRust, OpampGo, OperatorBridge, Supervisor};
use muster_testkit::messages::{CAPABILITIES, first_report, new_uid};
use muster_testkit::{Muster, RawAgent, eventually};
use serde_json::{Value, json};

use crate::{QUIET, SOON, agent, agent_has, apply, assignment, body, server, template};

const BLUE: [(&str, &str); 2] = [("service.name", "otelcol"), ("team", "blue")];

fn healthy(healthy: bool) -> AgentToServer {
    let health = Some(ComponentHealth { healthy, ..ComponentHealth::default() });
    AgentToServer { health, ..AgentToServer::default() }
}

#[tokio::test]
async fn opamp_go_reconnects_with_uid_number_and_capabilities_alone() {
    let muster = server().await;
    let uid = new_uid();
    let mut client = OpampGo::start(&muster.opamp_url(), uid, CAPABILITIES, &BLUE).await;
    client.report(healthy(true)).await;
    client.heartbeat().await;
    agent_has(&muster, uid, "/sequence_num", 2).await;
    client.reconnect().await;
    assert_eq!(client.hear_within(QUIET).await, None, "nothing is to be asked for");
    client.report(healthy(false)).await;
    let view = agent_has(&muster, uid, "/healthy", false).await;
    assert_eq!(view["attributes"]["non_identifying"], json!({"team": "blue"}));
    assert_eq!(view["connected"], json!(true));
    muster.assert_no_errors();
}

#[tokio::test]
async fn opamp_go_leaves_gaps_and_is_asked_once_for_each() {
    let muster = server().await;
    let uid = new_uid();
    let mut client = OpampGo::start(&muster.opamp_url(), uid, CAPABILITIES, &BLUE).await;
    client.lose_a_message();
    client.lose_a_message();
    client.heartbeat().await;
    assert_eq!(client.hear().await.flags, 1, "ReportFullState");
    assert_eq!(client.hear_within(QUIET).await, None, "once a gap");
    client.heartbeat().await;
    assert_eq!(client.hear_within(QUIET).await, None, "full state has mended it");
    muster.assert_no_errors();
}

#[tokio::test]
async fn opamp_go_sends_heartbeats_without_saying_so() {
    let muster = server().await;
    let uid = new_uid();
    // ReportsStatus alone.
    let mut client = OpampGo::start(&muster.opamp_url(), uid, 1, &BLUE).await;
    let before = agent_has(&muster, uid, "/connected", true).await["last_seen"].clone();
    client.heartbeat().await;
    assert_eq!(client.hear_within(QUIET).await, None);
    let view = agent_has(&muster, uid, "/sequence_num", 1).await;
    assert!(view["last_seen"].as_str() > before.as_str(), "{view}");
    muster.assert_no_errors();
}

#[tokio::test]
async fn opamp_go_stops_with_a_goodbye_and_waits_for_the_close() {
    let muster = server().await;
    let uid = new_uid();
    let client = OpampGo::start(&muster.opamp_url(), uid, CAPABILITIES, &BLUE).await;
    let began = std::time::Instant::now();
    assert_eq!(client.stop().await, 1000);
    assert!(began.elapsed() < Duration::from_secs(5), "it waits no longer");
    let view = agent_has(&muster, uid, "/connected", false).await;
    assert_eq!(view["session"]["end_reason"], "agent_disconnect");
    muster.assert_no_errors();
}

#[tokio::test]
async fn the_supervisor_starts_unhealthy_and_applies_late() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let uid = new_uid();
    let mut supervisor = Supervisor::start(&muster.opamp_url(), uid, &BLUE).await;
    agent_has(&muster, uid, "/healthy", false).await;
    let offered = supervisor.offer().await;
    supervisor.apply(&offered, Applies::Well).await;
    let view = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    assert_eq!(view["healthy"], json!(true));
    assert_eq!(view["effective_config"][""]["body"], json!(body(&offered)), "under the empty name");
    let statuses = |view: &Value| -> Vec<Value> {
        let history = view["remote_config"]["history"].as_array().unwrap();
        history.iter().map(|change| change["status"].clone()).collect()
    };
    assert_eq!(statuses(&view), ["APPLYING", "APPLIED"]);
    // An agent that no assignment matches any more keeps what it runs: an empty map would stop it.
    let labels = format!("/api/v1/agents/{uid}/labels");
    muster.api().patch(&labels, &json!({"team": "red"})).await.unwrap();
    agent_has(&muster, uid, "/remote_config/desired_hash", Value::Null).await;
    assert_eq!(supervisor.offer_within(QUIET).await, None);
    assert!(!supervisor.collector_stopped);
    muster.assert_no_errors();
}

#[tokio::test]
async fn the_supervisors_rollback_does_not_loop_and_an_operator_can_retry() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let uid = new_uid();
    let mut supervisor = Supervisor::start(&muster.opamp_url(), uid, &BLUE).await;
    let first = supervisor.offer().await;
    supervisor.apply(&first, Applies::Well).await;
    agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;

    // APPLIED(A), APPLYING(B), FAILED(B), APPLIED(A): B is not offered again, also to a new session.
    apply(&muster, &[&assignment("bad:4317")]).await;
    let second = supervisor.offer().await;
    supervisor.apply(&second, Applies::AndRollsBack).await;
    let failed = hex(&second.config_hash);
    let view = agent_has(&muster, uid, "/remote_config/failed_hash", failed.as_str()).await;
    assert_eq!(view["remote_config"]["status"], "FAILED");
    assert_eq!(view["remote_config"]["error_message"], "the collector did not become healthy");
    let view = agent_has(&muster, uid, "/remote_config/reported_hash", hex(&first.config_hash)).await;
    assert_eq!(view["remote_config"]["status"], "FAILED", "it stays while that is what it should run");
    assert_eq!(supervisor.offer_within(QUIET).await, None);
    supervisor.client().reconnect().await;
    assert_eq!(supervisor.offer_within(QUIET).await, None);
    let shown = muster.cli(&["agents", "get", &uid.to_string()]).await.expect_success();
    assert!(shown.contains("the collector did not become healthy"), "{shown}");

    // Asked for, it is offered again: once for each asking.
    let answer = muster.cli(&["agents", "retry", &uid.to_string()]).await.expect_success();
    assert!(answer.contains(&uid.to_string()), "{answer}");
    let again = supervisor.offer().await;
    assert_eq!(again.config_hash, second.config_hash);
    supervisor.apply(&again, Applies::AndRollsBack).await;
    agent_has(&muster, uid, "/remote_config/failed_hash", failed.as_str()).await;
    assert_eq!(supervisor.offer_within(QUIET).await, None);
    muster.api().post_text(&format!("/api/v1/agents/{uid}/retry"), "text/plain", "").await.unwrap();
    let third = supervisor.offer().await;
    supervisor.apply(&third, Applies::Well).await;
    let view = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    assert_eq!(view["remote_config"]["failed_hash"], Value::Null);

    // Who runs what it should is offered nothing, and who is not there cannot be asked.
    muster.cli(&["agents", "retry", &uid.to_string()]).await.expect_success();
    assert_eq!(supervisor.offer_within(QUIET).await, None);
    let error = muster.cli(&["agents", "retry", &new_uid().to_string()]).await.expect_failure();
    assert!(error.contains("there is no agent"), "{error}");
    muster.assert_no_errors();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn the_extension_only_reports() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let uid = new_uid();
    let mut extension = Extension::start(&muster.opamp_url(), uid, &BLUE).await;
    let view = agent_has(&muster, uid, "/health/components/pipeline:traces/status", "StatusOK").await;
    assert!(view["effective_config"][""]["body"].as_str().unwrap().contains("[REDACTED]"), "{view}");
    // The list of components is asked for, a config never offered.
    let asked = extension.hear_within(crate::SOON).await.unwrap();
    assert_eq!((asked.flags, asked.remote_config), (2, None));
    agent_has(&muster, uid, "/available_components/components/receivers/metadata", json!({})).await;
    assert_eq!(extension.hear_within(QUIET).await, None);
    muster.assert_no_errors();
}

#[tokio::test]
async fn the_operator_bridge_has_many_files_and_a_connection_for_each_agent() {
    let muster = server().await;
    let uid = new_uid();
    let standalone = [new_uid(), new_uid()];
    let mut bridge = OperatorBridge::start(&muster.opamp_url(), uid, &BLUE, &standalone).await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let offered = bridge.offer().await;
    bridge.apply(&offered).await;
    let view = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    assert_eq!(view["effective_config"]["opamp/base"]["body"], json!(body(&offered)));
    let resources: Vec<_> = (0..200)
        .map(|at| {
            let file = AgentConfigFile { body: format!("a: {at}").into(), ..AgentConfigFile::default() };
            (format!("namespace/collector-{at}"), file)
        })
        .collect();
    bridge.report(resources).await;
    let last = "/effective_config/namespace~1collector-199/body";
    let view = agent_has(&muster, uid, last, "a: 199").await;
    assert_eq!(view["effective_config"].as_object().map(|files| files.len()), Some(200));
    for agent in standalone {
        agent_has(&muster, agent, "/connected", true).await;
    }
    let gone = bridge.stop_one().await.unwrap();
    agent_has(&muster, gone, "/connected", false).await;
    assert_eq!(agent(&muster, standalone[0]).await["connected"], json!(true));
    muster.assert_no_errors();
}

#[tokio::test]
async fn the_java_client_uses_numbers_up_while_it_is_down_and_leaves_hashes_out() {
    let muster = server().await;
    let uid = new_uid();
    let mut client = Java::start(&muster.opamp_url(), uid, &BLUE).await;
    agent_has(&muster, uid, "/connected", true).await;
    client.lose_the_socket();
    client.say(healthy(true)).await;
    client.say(healthy(false)).await;
    client.reconnect().await;
    // What could not be said comes with the next message, and the gap is asked about in its answer.
    assert_eq!(client.hear().await.0.flags, 1);
    agent_has(&muster, uid, "/healthy", false).await;

    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let (offered, wait) = client.hear().await;
    assert_eq!(wait, None);
    let offered = offered.remote_config.unwrap();
    client.apply_without_a_hash(&offered).await;
    let view = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    assert_eq!(view["remote_config"]["reported_hash"], json!(hex(&offered.config_hash)));
    muster.assert_no_errors();
}

#[tokio::test]
async fn the_old_rust_client_is_refused_and_harms_nobody() {
    let muster = server().await;
    assert_eq!(OldRust::probe(&muster.opamp_http_url()).await, 200);
    let mut old = OldRust::start(&muster.opamp_url()).await;
    for _ in 0..2 {
        let error = old.report().await.error_response.unwrap();
        assert_eq!(error.r#type(), ServerErrorResponseType::BadRequest);
        assert_eq!(error.error_message, "instance_uid must be 16 bytes, this one has 26");
    }
    let mut other = RawAgent::connect(&muster.opamp_url()).await;
    let uid = new_uid();
    assert_eq!(other.exchange(&first_report(uid, &BLUE)).await.error_response, None);
    agent_has(&muster, uid, "/connected", true).await;
    let listed = muster.api().get("/api/v1/agents").await.unwrap();
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1));
    muster.assert_no_errors();
}

/// A server on which an agent may report three times, and then once a second.
async fn stingy() -> Muster {
    Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__BUDGETS__AGENT", "{messages_per_second: 1, messages_burst: 3}")
        .start()
        .await
}

#[tokio::test]
async fn opamp_go_ignores_when_to_come_again_and_loses_nothing() {
    let muster = stingy().await;
    let uid = new_uid();
    let mut client = OpampGo::start(&muster.opamp_url(), uid, CAPABILITIES, &BLUE).await;
    agent_has(&muster, uid, "/connected", true).await;
    // It goes on at once, whatever it is told, and so does the server.
    let mut refused = 0;
    for at in 0..20 {
        client.report(healthy(at % 2 == 0)).await;
        while let Some(message) = client.hear_within(Duration::from_millis(1)).await {
            refused += u32::from(message.error_response.is_some());
        }
    }
    assert!(refused < 21, "{refused}");
    // What was refused is asked for, until it is known: the last thing it said.
    let path = format!("/api/v1/agents/{uid}");
    let mut told = false;
    for _ in 0..60 {
        while let Some(message) = client.hear_within(Duration::from_millis(250)).await {
            refused += u32::from(message.error_response.is_some());
        }
        client.heartbeat().await;
        told = muster.api().get(&path).await.unwrap()["healthy"] == json!(false);
        if told && refused > 0 {
            break;
        }
    }
    assert!(told && refused > 0, "told: {told}, refused: {refused}");
    muster.assert_no_errors();
}

#[tokio::test]
async fn the_java_client_closes_when_it_is_told_to_come_later_and_comes_back_whole() {
    let muster = stingy().await;
    let uid = new_uid();
    let mut client = Java::start(&muster.opamp_url(), uid, &BLUE).await;
    agent_has(&muster, uid, "/connected", true).await;
    for at in 0..10 {
        client.say(healthy(at % 2 == 0)).await;
    }
    // It closes its socket, and would wait for as long as it is told.
    let (message, wait) = client.hear().await;
    let error = message.error_response.unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::Unavailable);
    let wait = wait.unwrap();
    assert!((30..=60).contains(&wait.as_secs()), "{wait:?}");
    agent_has(&muster, uid, "/liveness", "disconnected").await;
    // Meanwhile it uses numbers up; its next message says what it could not say, and is asked for the rest.
    client.say(healthy(true)).await;
    client.reconnect().await;
    assert_eq!(client.hear().await.0.flags, 1, "ReportFullState");
    agent_has(&muster, uid, "/liveness", "connected").await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_clone_of_the_supervisor_starts_its_collector_anew_once() {
    let muster = server().await;
    let uid = new_uid();
    let mut first = Supervisor::start(&muster.opamp_url(), uid, &BLUE).await;
    agent_has(&muster, uid, "/connected", true).await;
    let mut clone = Supervisor::start(&muster.opamp_url(), uid, &BLUE).await;
    // Both are read, since the first one is asked whether it lives.
    let given = async {
        while clone.client().uid() == uid {
            let _ = clone.offer_within(Duration::from_millis(50)).await;
        }
    };
    let lives = async {
        loop {
            let _ = first.offer_within(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = given => {}
        () = lives => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => {}
    }
    let new = clone.client().uid();
    assert_ne!(new, uid, "it is given a uid of its own");
    agent_has(&muster, new, "/connected", true).await;
    assert_eq!(clone.offer_within(QUIET).await, None);
    assert_eq!((first.collector_starts, clone.collector_starts), (0, 1), "no more than once");
    muster.assert_no_errors();
}

#[tokio::test]
async fn the_supervisor_takes_no_remote_config_unless_it_is_told_to() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let uid = new_uid();
    // All but AcceptsRemoteConfig and ReportsRemoteConfig.
    let mut client = OpampGo::start(&muster.opamp_url(), uid, CAPABILITIES & !0x1002, &BLUE).await;
    eventually(SOON, async || {
        let view =
            muster.api().get(&format!("/api/v1/agents/{uid}")).await.map_err(|error| error.to_string())?;
        let should = &view["remote_config"]["desired_hash"];
        if should.is_string() { Ok(()) } else { Err(format!("it should run something: {view:#}")) }
    })
    .await;
    assert_eq!(client.hear_within(QUIET).await, None, "it is never offered that");
    client.heartbeat().await;
    client.heartbeat().await;
    agent_has(&muster, uid, "/sequence_num", 2).await;
    client.reconnect().await;
    assert_eq!(client.hear_within(QUIET).await, None);
    muster.assert_no_errors();
}
