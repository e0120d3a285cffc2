//! A real client: an agent on the opamp-go library.

use std::time::Duration;

use muster_testkit::go_or_skip;
use serde_json::json;

use crate::{QUIET, agent_has, apply, assignment, server, template};

#[tokio::test]
async fn an_opamp_go_agent_is_managed_end_to_end() {
    let Some(go) = go_or_skip() else { return };
    let mut muster = server().await;
    let blue = go.agent().await.attr("service.name", "otelcol").attr("team", "blue");
    let mut blue = blue.reject("poison").apply_delay(Duration::from_millis(300)).start(&muster.opamp_url());
    let mut red = go.agent().await.attr("team", "red").start(&muster.opamp_url());
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
    assert_eq!(blue.wait_within("remote_config", QUIET).await, None);

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
