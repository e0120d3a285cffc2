//! Input that must be refused with a clear reason, and after which the server goes on.

use muster_proto::Message;
use muster_proto::opamp::{AgentToServer, ServerErrorResponseType};
use muster_testkit::messages::{first_report, heartbeat, new_uid};
use muster_testkit::{Muster, RawAgent};
use serde_json::Value;

use crate::events::Events;
use crate::{agent, agent_has, apply, assignment, offer, run, server, template};

#[tokio::test]
async fn bad_frames_are_answered_and_the_connection_goes_on() {
    let muster = server().await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[])).await;
    let text_uid = AgentToServer { instance_uid: vec![b'a'; 26], ..AgentToServer::default() };
    let mut text_uid_frame = vec![0];
    text_uid.encode(&mut text_uid_frame).unwrap();
    let cases: [(Vec<u8>, &str); 5] = [
        (vec![], "the message is empty"),
        (vec![1, 2, 3], "the header is 0x01"),
        (vec![0], "instance_uid must be 16 bytes, this one has 0"),
        (vec![0, 0x1a, 0xff, 1], "the message is not an AgentToServer"),
        (text_uid_frame, "instance_uid must be 16 bytes, this one has 26"),
    ];
    for (frame, reason) in cases {
        agent.send_raw(frame).await;
        let error = agent.recv().await.error_response.unwrap();
        assert_eq!(error.r#type(), ServerErrorResponseType::BadRequest);
        assert!(error.error_message.starts_with(reason), "{}", error.error_message);
    }
    let answer = agent.exchange(&heartbeat(uid, 1)).await;
    assert_eq!((answer.error_response, answer.flags), (None, 0));
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_client_without_header_is_understood() {
    let muster = server().await;
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.send_raw(first_report(new_uid(), &[]).encode_to_vec()).await;
    assert_eq!(agent.recv().await.error_response, None);
}

#[tokio::test]
async fn an_oversized_message_closes_with_1009_and_text_with_1003() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__WEBSOCKET__MAX_MESSAGE_SIZE", "65536")
        .start()
        .await;
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    // The server may close before it has read all of it.
    let _ = agent.try_send_raw(vec![0; 65537]).await;
    assert_eq!(agent.recv_close().await, 1009);
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.send_text("hello").await;
    assert_eq!(agent.recv_close().await, 1003);
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    assert_eq!(agent.exchange(&first_report(uid, &[])).await.error_response, None);
    muster.assert_no_errors();
}

/// Applies manifests that are refused, and returns the first error.
async fn refusal(muster: &Muster, manifests: &str) -> Value {
    let error = muster.api().post_text("/api/v1/apply", "application/yaml", manifests).await.unwrap_err();
    assert_eq!(error.status, 422, "{error:?}");
    error.problem["errors"][0].clone()
}

#[tokio::test]
async fn bad_manifests_name_the_place_and_store_nothing() {
    let muster = server().await;
    let whole = |from: &str, to: &str| {
        let text = format!("{}---\n{}", template("v1", "10s"), assignment("one:4317"));
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    let cases = [
        (whole("kind: ConfigAssignment", "kind: Deployment"), "kind", "Deployment"),
        (whole("  values:", "  valuess:"), "spec.valuess", "values"),
        (whole("endpoint: one:4317", "endpiont: one:4317"), "spec.values.endpiont", "endpoint"),
        (whole("    endpoint: one:4317", "    endpoint: 7"), "spec.values.endpoint", "string"),
        (whole("    endpoint: one:4317", "    endpoint: one:4317\n    ratio: 2.0"), "spec.values.ratio", "1"),
        (whole("    endpoint: one:4317", "    ratio: 0.1"), "spec.values", "endpoint"),
        (whole("{{.ratio}}", "{{.ratoi}}"), "spec.config", "ratoi"),
        (whole("    name: base\n  values", "    name: nothing\n  values"), "spec.template.name", "nothing"),
        (whole("  selector:", "  rollout:\n    strategy: canary\n  selector:"), "spec.rollout", "rollout"),
    ];
    for (manifests, field, word) in cases {
        let error = refusal(&muster, &manifests).await;
        assert!(error["field"].as_str().unwrap().starts_with(field), "{field}: {error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
        assert!(error["line"].as_u64() > Some(0) && error["column"].as_u64() > Some(0), "{error}");
    }
    let broken = refusal(&muster, "apiVersion: opamp.io/v1\nkind: [\n").await;
    assert_eq!(broken["line"], 3, "{broken}");
    assert_eq!(muster.api().get("/api/v1/configs").await.unwrap()["items"], Value::Array(Vec::new()));
    assert_eq!(muster.api().get("/api/v1/assignments").await.unwrap()["items"], Value::Array(Vec::new()));

    // A version never changes, and a new version must fit the assignments that follow it.
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    let changed = refusal(&muster, &template("v1", "99s")).await;
    assert!(changed["message"].as_str().unwrap().contains("exists with other content"), "{changed}");
    let unfit = refusal(&muster, &template("v2", "10s").replace("type: string", "type: int")).await;
    assert!(unfit["message"].as_str().unwrap().contains("\"blue\""), "{unfit}");
    muster.assert_no_errors();
}

#[tokio::test]
async fn the_command_line_says_where_and_fails() {
    let muster = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.yaml");
    std::fs::write(&file, template("v1", "10s").replace("max: 1", "max: many")).unwrap();
    let file = file.to_str().unwrap();
    let error = muster.cli(&["apply", "-f", file]).await.expect_failure();
    assert!(error.contains(&format!("{file}: line 15, column 12: spec.variables[1].max")), "{error}");
    let error = muster.cli(&["agents", "get", "nonsense"]).await.expect_failure();
    assert!(error.contains("is not a UUID"), "{error}");
    let error = muster.cli(&["agents", "get", &new_uid().to_string()]).await.expect_failure();
    assert!(error.contains("there is no agent"), "{error}");
    let error = muster.cli(&["agents", "list", "--selector", "a in (b"]).await.expect_failure();
    assert!(error.contains("selector"), "{error}");
}

#[tokio::test]
async fn the_api_refuses_what_it_does_not_know() {
    let muster = server().await;
    for (path, status) in [
        ("/api/v1/agents?limit=0", 400),
        ("/api/v1/agents?limit=many", 400),
        ("/api/v1/agents?selctor=a", 400),
        ("/api/v1/agents?cursor=x", 400),
        ("/api/v1/configs/none", 404),
        ("/nothing", 404),
    ] {
        let error = muster.api().get(path).await.unwrap_err();
        assert_eq!(error.status, status, "{path}: {error:?}");
        assert!(!error.detail().is_empty(), "{path}");
    }
    let uid = new_uid();
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    socket.exchange(&first_report(uid, &[("odd", "a\0b")])).await;
    crate::agent_has(&muster, uid, "/connected", true).await;
    let shown = agent(&muster, uid).await;
    assert_eq!(shown["attributes"]["non_identifying"]["odd"], "a\u{fffd}b");
    muster.assert_no_errors();
}

#[tokio::test]
async fn serve_refuses_to_run_open_by_mistake() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"));
    let exposed =
        muster.clone().env("MUSTER_SERVER__WEBSOCKET__ENDPOINT", "0.0.0.0:4320").run(&["serve"]).await;
    let error = exposed.expect_failure();
    assert!(error.contains("server.allow_insecure"), "{error}");
    let error = muster.env("MUSTER_AUTH__TYPE", "jwt").run(&["serve"]).await.expect_failure();
    assert!(error.contains("auth.type"), "{error}");
}

#[tokio::test]
async fn a_config_that_is_larger_than_agents_are_sent_is_not_sent_and_told_of() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_SERVER__WEBSOCKET__MAX_SENT_MESSAGE_SIZE", "1024")
        .start()
        .await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[("team", "blue")])).await;
    agent_has(&muster, uid, "/connected", true).await;
    let mut events = Events::listen(&muster, "config_not_sent").await;
    let large = format!("{}    note: \"{}\"\n", template("v1", "10s"), "x".repeat(1024));
    apply(&muster, &[&large, &assignment("one:4317")]).await;
    let told = events.next().await;
    let view = agent_has(&muster, uid, "/connected", true).await;
    assert_eq!(told["instance_uid"], uid.to_string());
    assert_eq!(told["config_hash"], view["remote_config"]["desired_hash"]);
    assert!(told["size"].as_u64() > Some(1024) && told["limit"] == 1024, "{told}");
    let metrics = muster.api().metrics().await.unwrap();
    assert!(metrics.get("muster_gateway_offers_total{result=\"too_large\"}") >= Some(1.0));
    assert!(muster.logs().iter().any(|line| line.contains("message_too_large")));
    let answer = agent.exchange(&heartbeat(uid, 1)).await;
    assert_eq!((answer.error_response, answer.remote_config), (None, None), "it goes on without");
    // What fits is sent.
    apply(&muster, &[&template("v2", "10s")]).await;
    let offered = offer(&mut agent).await;
    run(&mut agent, uid, 2, &offered).await;
    agent_has(&muster, uid, "/remote_config/status", "APPLIED").await;
    muster.assert_no_errors();
}
