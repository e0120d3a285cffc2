//! Agents that run something else than they had applied: shown, told, and mended where that may be.

use muster_proto::opamp::{AgentRemoteConfig, AgentToServer, RemoteConfigStatuses};
use muster_testkit::messages::{config_status, effective_config, first_report, new_uid};
use muster_testkit::{Muster, RawAgent};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::events::Events;
use crate::{QUIET, agent_has, apply, assignment, offer, run, server, template};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An agent that was offered its config and has applied it; the next number is 4.
async fn managed(muster: &Muster, uid: Uuid) -> (RawAgent, AgentRemoteConfig) {
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.send(&first_report(uid, &[("team", "blue")])).await;
    let offered = offer(&mut agent).await;
    run(&mut agent, uid, 1, &offered).await;
    agent_has(muster, uid, "/remote_config/status", "APPLIED").await;
    (agent, offered)
}

#[tokio::test]
async fn an_agent_that_leaves_its_config_is_shown_and_offered_it_again() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let uid = new_uid();
    let (mut agent, offered) = managed(&muster, uid).await;
    let view = agent_has(&muster, uid, "/drift", Value::Null).await;
    assert_eq!(view["remote_config"]["desired_hash"], json!(hex(&offered.config_hash)));
    let mut events = Events::listen(&muster, "drifted,drift_ended").await;

    agent.exchange(&config_status(uid, 4, &[7], RemoteConfigStatuses::Applied, "")).await;
    let view = agent_has(&muster, uid, "/drift/kind", "remote_config").await;
    let (expected, since) = (hex(&offered.config_hash), &view["drift"]["since"]);
    assert_eq!(
        view["drift"],
        json!({"kind": "remote_config", "since": since, "expected": expected, "found": "07",
               "offered_again_at": null})
    );
    let told = json!({"kind": "drifted", "instance_uid": uid.to_string(), "drift": "remote_config",
                      "since": since, "expected": expected, "found": "07"});
    assert_eq!(events.next().await, told);
    let shown = muster.cli(&["agents", "get", &uid.to_string()]).await.expect_success();
    assert!(shown.contains("Drift") && shown.contains("DRIFTED"), "{shown}");
    let metrics = muster.api().metrics().await.unwrap();
    assert_eq!(metrics.sum("muster_control_drifts_total"), 1.0);

    // The hash differs, so it is offered again, and is mended by that.
    let again = offer(&mut agent).await;
    assert_eq!(again.config_hash, offered.config_hash);
    run(&mut agent, uid, 5, &again).await;
    agent_has(&muster, uid, "/drift", Value::Null).await;
    let told = json!({"kind": "drift_ended", "instance_uid": uid.to_string(), "drift": "remote_config"});
    assert_eq!(events.next().await, told);

    // Who leaves it again is not offered it at once: something puts the other config there.
    agent.exchange(&config_status(uid, 8, &[7], RemoteConfigStatuses::Applied, "")).await;
    let view = agent_has(&muster, uid, "/drift/kind", "remote_config").await;
    assert!(view["drift"]["offered_again_at"].as_str() > view["drift"]["since"].as_str(), "{view}");
    assert_eq!(agent.next_within(QUIET).await, None);
    muster.cli(&["agents", "retry", &uid.to_string()]).await.expect_success();
    offer(&mut agent).await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_effective_config_that_changes_without_an_offer_is_shown_and_nothing_is_sent() {
    let mut muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let (first, uid) = (new_uid(), new_uid());
    let (_first, offered) = managed(&muster, first).await;

    // The other one comes with the config: nothing was offered that a change could be put down to.
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    let hash = &offered.config_hash;
    let has = AgentToServer {
        remote_config_status: config_status(uid, 0, hash, RemoteConfigStatuses::Applied, "")
            .remote_config_status,
        effective_config: effective_config(uid, 0, &[("", "a: 1")]).effective_config,
        ..first_report(uid, &[("team", "blue")])
    };
    agent.exchange(&has).await;
    agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    let mut events = Events::listen(&muster, "drifted,drift_ended").await;
    agent.exchange(&effective_config(uid, 1, &[("", "a: 2")])).await;
    let view = agent_has(&muster, uid, "/drift/kind", "effective_config").await;
    assert_ne!(view["drift"]["expected"], view["drift"]["found"]);
    assert_eq!(view["effective_config"][""]["body"], "a: 2");
    let told = events.next().await;
    assert_eq!((&told["kind"], &told["drift"]), (&json!("drifted"), &json!("effective_config")));
    assert_eq!(agent.next_within(QUIET).await, None, "the hash matches: nothing may be sent");

    // It is stored with the agent, and over when what it had is back.
    muster.kill9().await;
    muster.restart().await;
    agent_has(&muster, uid, "/drift/kind", "effective_config").await;
    let mut events = Events::listen(&muster, "drifted,drift_ended").await;
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&effective_config(uid, 2, &[("", "a: 1")])).await;
    agent_has(&muster, uid, "/drift", Value::Null).await;
    assert_eq!(events.next().await["kind"], "drift_ended");

    // An operator who looked into it may take what runs for right.
    agent.exchange(&effective_config(uid, 3, &[("", "a: 3")])).await;
    agent_has(&muster, uid, "/drift/kind", "effective_config").await;
    muster.cli(&["agents", "retry", &uid.to_string()]).await.expect_success();
    agent_has(&muster, uid, "/drift", Value::Null).await;
    assert_eq!(events.next().await["kind"], "drifted");
    assert_eq!(events.next().await["kind"], "drift_ended");
    // The first one was offered its config just now: what it reports late is part of that.
    assert_eq!(crate::agent(&muster, first).await["drift"], Value::Null);
    muster.assert_no_errors();
}
