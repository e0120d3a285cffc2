//! Configuration as people change it: histories, previews, deletions and what agents feel of them.

use muster_testkit::messages::{first_report, new_uid};
use muster_testkit::{Muster, RawAgent};
use serde_json::{Value, json};

use crate::{QUIET, agent_has, apply, assignment, body, offer, run, server, template};

/// Applies manifests with these options; the problem if they are refused.
async fn apply_with(muster: &Muster, query: &str, manifests: &[&str]) -> Result<Value, String> {
    let body = manifests.join("\n---\n");
    let path = format!("/api/v1/apply?{query}");
    let answer = muster.api().post_text(&path, "application/yaml", &body).await;
    answer.map_err(|error| format!("{} {}", error.status, error.detail()))
}

/// An assignment like [`assignment`] of another name, priority and file.
fn other(name: &str, more: &str) -> String {
    assignment("other:4317").replace("name: blue", &format!("name: {name}")) + more
}

#[tokio::test]
async fn a_revision_tells_who_when_and_why() {
    let muster = server().await;
    let first = [template("v1", "10s"), assignment("one:4317")];
    let first: Vec<_> = first.iter().map(String::as_str).collect();
    let applied = apply_with(&muster, "message=the%20first", &first).await.unwrap();
    assert_eq!(applied["revision"], json!(1));
    apply_with(&muster, "message=slower", &[&template("v2", "20s")]).await.unwrap();
    let api = muster.api();
    let history = api.get("/api/v1/configs/base/history").await.unwrap();
    assert_eq!(history["items"][0]["version"], "v2");
    assert_eq!(history["items"][0]["message"], "slower");
    assert_eq!(history["items"][0]["author"], "anonymous");
    assert_eq!(history["items"][0]["assignments"], json!(["blue"]), "it follows the latest");
    assert_eq!(history["items"][1]["assignments"], json!([]));
    let diff = api.get("/api/v1/configs/base/diff").await.unwrap();
    let text = diff["diff"].as_str().unwrap();
    assert!(text.contains("-        collection_interval: 10s\n+        collection_interval: 20s"), "{text}");
    assert!(text.starts_with("--- base v1\n+++ base v2\n"), "{text}");

    // Who has not seen the last change of an object does not overwrite it.
    let changed = assignment("two:4317");
    apply_with(&muster, "if_revision=2", &[&changed]).await.unwrap();
    let refused = apply_with(&muster, "if_revision=2", &[&assignment("three:4317")]).await.unwrap_err();
    let expected =
        "409 ConfigAssignment \"blue\" was configured at revision 3 by anonymous, after revision 2";
    assert!(refused.starts_with(expected), "{refused}");
    let early = apply_with(&muster, "if_revision=2", &[&template("v3", "5s")]).await;
    assert!(early.is_ok(), "another object may have changed: {early:?}");
    let future = apply_with(&muster, "if_revision=99", &[&changed]).await.unwrap_err();
    assert!(future.starts_with("400 if_revision: the configuration is at revision 4"), "{future}");

    let changes = api.get("/api/v1/changes?kind=ConfigAssignment&name=blue&limit=1").await.unwrap();
    assert_eq!(changes["items"][0]["revision"], json!(3));
    let manifest = changes["items"][0]["objects"][0]["manifest"].as_str().unwrap();
    assert!(manifest.contains("    endpoint: \"two:4317\"\n"), "{manifest}");
    assert_eq!(changes["next_before"], json!(3));
    let all = api.get("/api/v1/changes").await.unwrap();
    let revisions: Vec<_> = all["items"].as_array().unwrap().iter().map(|item| &item["revision"]).collect();
    assert_eq!(revisions, [4, 3, 2, 1]);
    muster.assert_no_errors();
}

#[tokio::test]
async fn what_is_in_use_stays_and_a_removal_never_empties_an_agent() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[("team", "blue")])).await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let high = other("high", "  priority: 5\n  on_removal: keep\n");
    let offered = offer(&mut agent).await;
    run(&mut agent, uid, 1, &offered).await;
    apply(&muster, &[&high]).await;
    let second = offer(&mut agent).await;
    assert!(body(&second).contains("other:4317"));
    run(&mut agent, uid, 4, &second).await;
    agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;

    let api = muster.api();
    let refused = api.delete("/api/v1/configs/base").await.unwrap_err();
    assert_eq!(refused.status, 409);
    let expected =
        "ConfigTemplate \"base\" is in use by ConfigAssignment \"blue\", ConfigAssignment \"high\"";
    assert!(refused.detail().starts_with(expected), "{refused}");

    // Its agents keep what it gave; an agent that comes later gets the next.
    let removed = api.delete("/api/v1/assignments/high").await.unwrap();
    assert_eq!(removed["action"], "retired");
    assert_eq!(agent.next_within(QUIET).await, None);
    let mut late = RawAgent::connect(&muster.opamp_url()).await;
    late.send(&first_report(new_uid(), &[("team", "blue")])).await;
    assert!(body(&offer(&mut late).await).contains("one:4317"));
    let told = api.get(&format!("/api/v1/agents/{uid}/explain")).await.unwrap();
    assert_eq!(told["assignments"][0]["retired"], json!(true));
    assert_eq!(told["files"][0]["assignment"], "high");
    assert_eq!(told["files"][0]["hidden"], json!(["blue"]));
    assert_eq!(told["summary"], "it reports the config that it should run");

    // Deleted once more, its agents fall back; the last one gone, they keep what they run.
    let removed = api.delete("/api/v1/assignments/high?then=fall_back&message=done").await.unwrap();
    assert_eq!(removed["action"], "deleted");
    let third = offer(&mut agent).await;
    assert!(body(&third).contains("one:4317"));
    run(&mut agent, uid, 7, &third).await;
    api.delete("/api/v1/assignments/blue").await.unwrap();
    let view = agent_has(&muster, uid, "/remote_config/desired_hash", Value::Null).await;
    assert_ne!(view["remote_config"]["reported_hash"], Value::Null);
    assert_eq!(agent.next_within(QUIET).await, None, "nobody is sent an empty config");
    api.delete("/api/v1/configs/base").await.unwrap();
    assert_eq!(api.get("/api/v1/configs").await.unwrap(), json!({"items": []}));
    muster.assert_no_errors();
}

#[tokio::test]
async fn one_agent_is_explained_and_previewed() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[("team", "blue")])).await;
    let held = template("v1", "10s").replace("10s", "'{{.agent.attributes[\"interval\"]}}'");
    apply(&muster, &[&held, &assignment("one:4317")]).await;
    agent_has(&muster, uid, "/remote_config/desired_hash", Value::Null).await;
    let api = muster.api();
    let explain = format!("/api/v1/agents/{uid}/explain");
    let told = api.get(&explain).await.unwrap();
    let reason = "assignment \"blue\", file \"base\": the agent has no attribute \"interval\"";
    assert_eq!(told["held"], json!(reason));
    let values = told["files"][0]["values"].as_array().unwrap();
    let origins: Vec<_> = values.iter().map(|value| (&value["name"], &value["origin"])).collect();
    assert!(origins.contains(&(&json!("interval"), &json!("attribute"))), "{origins:?}");
    assert!(origins.contains(&(&json!("ratio"), &json!("default"))), "{origins:?}");
    assert!(origins.contains(&(&json!("endpoint"), &json!("assignment"))), "{origins:?}");

    // What it would be given, and nothing changes.
    let preview = format!("/api/v1/agents/{uid}/preview");
    let next = template("v2", "20s");
    let shown = api.post_text(&preview, "application/yaml", &next).await.unwrap();
    assert!(shown["files"][0]["body"].as_str().unwrap().contains("collection_interval: 20s"), "{shown}");
    assert!(shown["diff"].as_str().unwrap().contains("+++ b/base"), "{shown}");
    let now = api.post_text(&preview, "application/yaml", "").await.unwrap();
    assert_eq!(now["held"], json!(reason));
    assert_eq!(agent.next_within(QUIET).await, None);
    let refused = api.post_text(&preview, "application/yaml", "kind: X").await.unwrap_err();
    assert_eq!(refused.status, 422);
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_dry_run_says_how_many_agents_change_and_writes_nothing() {
    let muster = server().await;
    let mut agents = Vec::new();
    for team in ["blue", "blue", "red"] {
        let mut agent = RawAgent::connect(&muster.opamp_url()).await;
        let uid = new_uid();
        agent.exchange(&first_report(uid, &[("team", team)])).await;
        agent_has(&muster, uid, "/connected", true).await;
        agents.push(agent);
    }
    let file = muster.data_dir().join("base.yaml");
    std::fs::write(&file, [template("v1", "10s"), assignment("one:4317")].join("\n---\n")).unwrap();
    let file = file.to_str().unwrap();
    let dry = muster.cli(&["apply", "-f", file, "--dry-run"]).await.expect_success();
    assert!(dry.contains("2 agents change\n"), "{dry}");
    assert!(dry.contains("+++ b/ConfigTemplate/base") && dry.contains("+  hostmetrics:"), "{dry}");
    assert_eq!(muster.api().get("/api/v1/configs").await.unwrap(), json!({"items": []}));
    assert_eq!(agents[0].next_within(QUIET).await, None);

    // For scripts: 2 where something differs, 0 where nothing does.
    let differs = muster.cli(&["diff", "-f", file]).await;
    assert_eq!(differs.code, Some(2), "{differs:?}");
    muster.cli(&["apply", "-f", file]).await.expect_success();
    let same = muster.cli(&["diff", "-f", file]).await;
    assert_eq!(same.code, Some(0), "{same:?}");
    assert!(same.stdout.contains("0 agents change"), "{same:?}");
    let broken = muster.cli_with_input(&["diff", "-f", "-"], "kind: X").await;
    assert_eq!(broken.code, Some(1), "{broken:?}");

    // A selector that matches nothing, with what it may mean.
    let none = assignment("one:4317").replace("team: blue", "taem: blue");
    let applied = apply(&muster, &[&none]).await;
    let warning = applied["impact"]["warnings"][0].as_str().unwrap();
    let expected = "ConfigAssignment \"blue\" selects no agent: no agent has \"taem\"";
    assert!(warning.starts_with(expected), "{warning}");
    muster.assert_no_errors();
}

#[tokio::test]
async fn what_is_proven_wrong_is_not_applied_unless_forced() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[("team", "blue")])).await;
    agent_has(&muster, uid, "/connected", true).await;
    let pipeline = "    service: {pipelines: {metrics: {receivers: [hostmetrics], exporters: [otlpp]}}}\n";
    let broken = template("v1", "10s") + pipeline;
    let both = [broken.as_str(), &assignment("one:4317")];
    let refused = apply_with(&muster, "", &both).await.unwrap_err();
    assert!(refused.starts_with("422 nothing was applied"), "{refused}");
    let told =
        muster.api().post_text("/api/v1/diff", "application/yaml", &both.join("\n---\n")).await.unwrap();
    let error = told["impact"]["errors"][0].as_str().unwrap();
    assert!(error.starts_with(&format!("1 agent ({uid}): file \"base\", line ")), "{error}");
    assert!(
        error.ends_with(
            "\"otlpp\" is not defined in exporters or connectors: define it; did you mean `otlp`?"
        )
    );
    apply_with(&muster, "force=true&message=I%20know", &both).await.unwrap();
    let changes = muster.api().get("/api/v1/changes").await.unwrap();
    let message = changes["items"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("I know\nforced: 1 agent"), "{message}");
    offer(&mut agent).await;

    // Two assignments that give one file at one priority.
    let clash = apply_with(&muster, "", &[&other("green", "")]).await.unwrap_err();
    assert!(clash.starts_with("422"), "{clash}");
    let clash =
        muster.api().post_text("/api/v1/diff", "application/yaml", &other("green", "")).await.unwrap();
    let clash = clash["impact"]["errors"][0].as_str().unwrap();
    let expected =
        "ConfigAssignment \"green\" and ConfigAssignment \"blue\" both give file \"base\" at priority 0";
    assert!(clash.starts_with(expected), "{clash}");
    muster.assert_no_errors();
}
