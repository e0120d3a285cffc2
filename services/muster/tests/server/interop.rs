//! A real client: an agent on the opamp-go library.

use std::time::Duration;

use muster_testkit::messages::new_uid;
use muster_testkit::{ClientAgentBuilder, Muster, go_or_skip, node_or_skip, python_or_skip};
use serde_json::json;
use uuid::Uuid;

use crate::{QUIET, agent_has, apply, assignment, server, template};

/// How long opamp-go waits between two polls.
const POLL: Duration = Duration::from_millis(500);

#[tokio::test]
async fn an_opamp_go_agent_is_managed_end_to_end() {
    let Some(go) = go_or_skip() else { return };
    let muster = server().await;
    let url = muster.opamp_url();
    managed_end_to_end(muster, &url, go.agent().await, QUIET).await;
}

#[tokio::test]
async fn an_opamp_go_agent_that_polls_is_managed_end_to_end() {
    let Some(go) = go_or_skip() else { return };
    let muster = server().await;
    let url = muster.opamp_http_url();
    managed_end_to_end(muster, &url, go.agent().await.heartbeat(POLL), POLL * 4).await;
}

#[tokio::test]
async fn an_opamp_go_agent_that_compresses_is_managed_end_to_end() {
    let Some(go) = go_or_skip() else { return };
    let muster = server().await;
    let url = muster.opamp_http_url();
    managed_end_to_end(muster, &url, go.agent().await.heartbeat(POLL).arg("--gzip"), POLL * 4).await;
}

async fn managed_end_to_end(mut muster: Muster, url: &str, agent: ClientAgentBuilder, quiet: Duration) {
    let blue = agent.clone().attr("service.name", "otelcol").attr("team", "blue");
    let mut blue = blue.reject("poison").apply_delay(Duration::from_millis(300)).start(url);
    let mut red = agent.uid(new_uid()).attr("team", "red").start(url);
    blue.wait("connected").await;
    red.wait("connected").await;
    agent_has(&muster, blue.uid(), "/connected", true).await;
    agent_has(&muster, red.uid(), "/connected", true).await;

    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let event = blue.wait("remote_config").await;
    agent_has(&muster, blue.uid(), "/remote_config/status", "APPLYING").await;
    let applied = blue.wait("applied").await;
    let view = agent_has(&muster, blue.uid(), "/remote_config/status", "APPLIED").await;
    assert_eq!(view["remote_config"]["reported_hash"], applied["hash"]);
    assert_eq!(view["remote_config"]["desired_hash"], event["hash"]);
    assert_eq!(view["effective_config"]["base"]["body"], event["files"]["base"]["body"]);

    // A config that the agent rejects is shown as failed, and not sent again.
    apply(&muster, &[&assignment("poison:4317")]).await;
    let failed = blue.wait("failed").await;
    let view = agent_has(&muster, blue.uid(), "/remote_config/status", "FAILED").await;
    assert_eq!(view["remote_config"]["failed_hash"], failed["hash"]);
    assert!(view["remote_config"]["error_message"].as_str().unwrap().contains("poison"), "{view:#}");
    assert_eq!(blue.wait_within("remote_config", quiet).await, None);

    // Another value heals it.
    apply(&muster, &[&assignment("two:4317")]).await;
    blue.wait("applied").await;
    agent_has(&muster, blue.uid(), "/remote_config/status", "APPLIED").await;

    // The server is killed: the client comes back by itself, without full state, and is asked.
    muster.kill9().await;
    muster.restart().await;
    agent_has(&muster, blue.uid(), "/connected", true).await;
    blue.command("health false broken").await;
    let view = agent_has(&muster, blue.uid(), "/healthy", false).await;
    assert_eq!(view["attributes"]["non_identifying"], json!({"team": "blue"}));
    apply(&muster, &[&assignment("three:4317")]).await;
    blue.wait("applied").await;

    assert!(red.events().iter().all(|event| event["event"] != "remote_config"), "{:?}", red.events());
    blue.disconnect().await;
    red.disconnect().await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_agent_on_the_python_client_is_managed() {
    let Some(agent) = python_or_skip() else { return };
    let (muster, uid) = managed_by_polls(agent).await;
    let view = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    assert!(view["effective_config"]["base"]["body"].as_str().unwrap().contains("three:4317"), "{view:#}");
    // It says goodbye.
    let view = agent_has(&muster, uid, "/connected", false).await;
    assert_eq!(view["session"]["end_reason"], "agent_disconnect");
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_agent_on_the_node_client_is_managed() {
    let Some(agent) = node_or_skip() else { return };
    let (muster, uid) = managed_by_polls(agent).await;
    // It only falls silent.
    let view = agent_has(&muster, uid, "/connected", false).await;
    assert_eq!(view["session"]["end_reason"], "silent");
    muster.assert_no_errors();
}

/// An agent's life with a client that only polls, until it is stopped.
async fn managed_by_polls(agent: ClientAgentBuilder) -> (Muster, Uuid) {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"));
    let mut muster = muster.env("MUSTER_SERVER__POLLING__DEADLINE", "5s").start().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let agent = agent.attr("service.name", "otelcol").attr("team", "blue").heartbeat(POLL);
    let mut agent =
        agent.reject("poison").apply_delay(Duration::from_millis(300)).start(&muster.opamp_http_url());
    let uid = agent.uid();
    let offered = agent.wait("remote_config").await;
    let applied = agent.wait("applied").await;
    assert_eq!(offered["hash"], applied["hash"]);
    let view = agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    assert_eq!(view["remote_config"]["reported_hash"], applied["hash"]);
    assert_eq!(view["session"]["transport"], "http");
    assert_eq!(view["attributes"]["non_identifying"]["team"], "blue");

    apply(&muster, &[&assignment("poison:4317")]).await;
    let failed = agent.wait("failed").await;
    let view = agent_has(&muster, uid, "/remote_config/status", "FAILED").await;
    assert_eq!(view["remote_config"]["failed_hash"], failed["hash"]);
    assert_eq!(agent.wait_within("remote_config", POLL * 4).await, None, "it is not sent again");

    apply(&muster, &[&assignment("two:4317")]).await;
    agent.wait("applied").await;
    agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    // The server is killed: the client goes on by itself.
    muster.kill9().await;
    muster.restart().await;
    apply(&muster, &[&assignment("three:4317")]).await;
    agent.wait("applied").await;
    agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    agent.disconnect().await;
    (muster, uid)
}
