//! The main path: an agent reports, a configuration is applied, the agent gets it and says so.

use muster_testkit::RawAgent;
use muster_testkit::messages::{first_report, goodbye, health, heartbeat, new_uid};
use serde_json::json;

use crate::{QUIET, agent, agent_has, apply, assignment, body, offer, run, server, template};

#[tokio::test]
async fn a_matching_agent_gets_its_config_and_shows_it() {
    let muster = server().await;
    let (blue, red) = (new_uid(), new_uid());
    let mut matching = RawAgent::connect(&muster.opamp_url()).await;
    let first =
        matching.exchange(&first_report(blue, &[("service.name", "otelcol"), ("team", "blue")])).await;
    assert_eq!(first.capabilities, 0x7, "AcceptsStatus, OffersRemoteConfig, AcceptsEffectiveConfig");
    assert_eq!(first.flags, 0, "a first report with full state is a whole");
    let mut other = RawAgent::connect(&muster.opamp_url()).await;
    other.exchange(&first_report(red, &[("service.name", "otelcol"), ("team", "red")])).await;

    let applied = apply(&muster, &[&assignment("one:4317"), &template("v1", "10s")]).await;
    assert_eq!(
        applied["results"],
        json!([
            {"kind": "ConfigTemplate", "name": "base", "version": "v1", "action": "created"},
            {"kind": "ConfigAssignment", "name": "blue", "action": "created"},
        ])
    );
    let offered = offer(&mut matching).await;
    assert_eq!(offered.config.as_ref().unwrap().config_map["base"].content_type, "text/yaml");
    let text = body(&offered);
    assert!(text.contains("collection_interval: 10s") && text.contains("ratio: 0.5"), "{text}");
    assert!(text.contains("one:4317"), "{text}");

    run(&mut matching, blue, 1, &offered).await;
    let view = agent_has(&muster, blue, "/remote_config/status", "APPLIED").await;
    assert_eq!(view["remote_config"]["reported_hash"], view["remote_config"]["desired_hash"]);
    assert_eq!(view["effective_config"]["base"]["body"], json!(text));
    assert_eq!(view["sequence_num"], json!(3));
    assert_eq!(view["connected"], json!(true));
    assert_eq!(view["healthy"], json!(true));
    assert_eq!(view["attributes"]["identifying"], json!({"service.name": "otelcol"}));
    assert_eq!(view["attributes"]["non_identifying"], json!({"team": "blue"}));

    // The other agent, and the same apply again: nothing.
    assert_eq!(other.next_within(QUIET).await, None);
    let again = apply(&muster, &[&assignment("one:4317"), &template("v1", "10s")]).await;
    assert_eq!(again["revision"], applied["revision"]);
    assert_eq!(again["results"][0]["action"], "unchanged");
    assert_eq!(matching.next_within(QUIET).await, None);
    let view = agent(&muster, red).await;
    assert_eq!(
        view["remote_config"],
        json!({"desired_hash": null, "reported_hash": null, "status": "UNSET", "error_message": "",
               "failed_hash": null, "held": null, "history": []})
    );

    // Changed values, then a changed template.
    apply(&muster, &[&assignment("two:4317")]).await;
    let second = offer(&mut matching).await;
    assert!(body(&second).contains("two:4317"));
    run(&mut matching, blue, 4, &second).await;
    apply(&muster, &[&template("v2", "20s")]).await;
    let third = offer(&mut matching).await;
    assert!(body(&third).contains("collection_interval: 20s"));
    run(&mut matching, blue, 7, &third).await;
    agent_has(&muster, blue, "/remote_config/status", "APPLIED").await;
    assert_eq!(other.next_within(QUIET).await, None);
    muster.assert_no_errors();
}

#[tokio::test]
async fn an_agent_that_connects_later_is_offered_at_once() {
    let muster = server().await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.send(&first_report(uid, &[("team", "blue")])).await;
    let offered = offer(&mut agent).await;
    run(&mut agent, uid, 1, &offered).await;
    agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;

    // Reconnecting with the sequence going on: in sync, and the config is not sent again.
    agent.close(1000).await;
    agent_has(&muster, uid, "/connected", false).await;
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    let answer = agent.exchange(&heartbeat(uid, 4)).await;
    assert_eq!(answer.flags, 0, "the sequence goes on: nothing is to be asked for");
    assert_eq!(agent.next_within(QUIET).await, None);
    muster.assert_no_errors();
}

#[tokio::test]
async fn labels_select_agents() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[("team", "red")])).await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    agent_has(&muster, uid, "/connected", true).await;
    assert_eq!(agent.next_within(QUIET).await, None);
    let labels = format!("/api/v1/agents/{uid}/labels");
    let answer = muster.api().patch(&labels, &json!({"team": "blue"})).await.unwrap();
    assert_eq!(answer, json!({"labels": {"team": "blue"}}), "a label hides the attribute");
    let offered = offer(&mut agent).await;
    run(&mut agent, uid, 1, &offered).await;
    let listed = muster.api().get("/api/v1/agents?selector=team%3Dblue").await.unwrap();
    assert_eq!(listed["items"][0]["instance_uid"], json!(uid.to_string()));
    muster.assert_no_errors();
}

#[tokio::test]
async fn health_and_goodbye_are_shown() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[])).await;
    agent.exchange(&health(uid, 1, false, "queue is full")).await;
    let view = agent_has(&muster, uid, "/healthy", false).await;
    assert_eq!(view["health"]["last_error"], "queue is full");
    agent.exchange(&goodbye(uid, 2)).await;
    let view = agent_has(&muster, uid, "/connected", false).await;
    assert_eq!(view["session"]["end_reason"], "agent_disconnect");
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_gap_is_asked_for_in_the_very_reply() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[])).await;
    let answer = agent.exchange(&heartbeat(uid, 5)).await;
    assert_eq!(answer.flags, 1, "ReportFullState");
    let answer = agent.exchange(&heartbeat(uid, 6)).await;
    assert_eq!(answer.flags, 0, "once a gap");
    muster.assert_no_errors();
}
