//! Everything that agents report is bounded, kept and shown whole.

use muster_proto::Message;
use muster_proto::opamp::any_value::Value as Any;
use muster_proto::opamp::{
    AgentDescription, AgentToServer, AnyValue, ArrayValue, AvailableComponents, ComponentDetails,
    ComponentHealth, CustomCapabilities, CustomMessage, KeyValue, KeyValueList, RemoteConfigStatuses,
    ServerErrorResponseType,
};
use muster_testkit::messages::{
    CAPABILITIES, config_status, effective_config, first_report, full_state, heartbeat, new_uid,
};
use muster_testkit::{Muster, RawAgent};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{QUIET, agent, agent_has, apply, assignment, offer, server, template};

/// The agent capability ReportsAvailableComponents.
const REPORTS_COMPONENTS: u64 = 0x4000;

fn pair(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

fn text(key: &str, value: &str) -> KeyValue {
    pair(key, Any::StringValue(value.to_owned()))
}

/// A value of every kind, and what they are as JSON.
fn every_kind() -> (Vec<KeyValue>, Value) {
    let one = AnyValue { value: Some(Any::IntValue(1)) };
    let pairs = vec![
        text("text", "a\0b"),
        pair("flag", Any::BoolValue(true)),
        pair("int", Any::IntValue(i64::MIN)),
        pair("double", Any::DoubleValue(0.5)),
        pair("nan", Any::DoubleValue(f64::NAN)),
        pair("bytes", Any::BytesValue(vec![0, 255])),
        pair("list", Any::ArrayValue(ArrayValue { values: vec![one, AnyValue::default()] })),
        pair("map", Any::KvlistValue(KeyValueList { values: vec![text("k", "v")] })),
        KeyValue { key: "null".to_owned(), value: None },
    ];
    let expected = json!({
        "text": "a\u{fffd}b", "flag": true, "int": i64::MIN, "double": 0.5, "nan": "NaN", "bytes": "AP8=",
        "list": [1, null], "map": {"k": "v"}, "null": null,
    });
    (pairs, expected)
}

fn health() -> ComponentHealth {
    let receiver = ComponentHealth {
        healthy: false,
        status: "StatusRecoverableError".to_owned(),
        last_error: "port in use".to_owned(),
        start_time_unix_nano: 1_000_000_000,
        status_time_unix_nano: 2_000_000_000,
        attributes: vec![text("port", "4317")],
        ..ComponentHealth::default()
    };
    let pipeline = ComponentHealth {
        healthy: true,
        component_health_map: [("receiver:otlp".to_owned(), receiver)].into(),
        ..ComponentHealth::default()
    };
    ComponentHealth {
        healthy: true,
        component_health_map: [("pipeline:traces".to_owned(), pipeline)].into(),
        ..ComponentHealth::default()
    }
}

fn components(hash: &[u8], list: &[&str]) -> Option<AvailableComponents> {
    let receiver = ComponentDetails { metadata: vec![text("version", "1.2")], ..ComponentDetails::default() };
    let kind = ComponentDetails {
        sub_component_map: [("otlp".to_owned(), receiver)].into(),
        ..ComponentDetails::default()
    };
    let components = list.iter().map(|name| ((*name).to_owned(), kind.clone())).collect();
    Some(AvailableComponents { components, hash: hash.to_vec() })
}

#[tokio::test]
async fn all_that_an_agent_reports_is_shown_whole() {
    let muster = server().await;
    let uid = new_uid();
    let (pairs, expected) = every_kind();
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    // With a bit that no version of the protocol has yet.
    let capabilities = CAPABILITIES | 1 << 60;
    let able = |message| AgentToServer { capabilities, ..message };
    let first = AgentToServer {
        agent_description: Some(AgentDescription {
            identifying_attributes: vec![text("service.name", "otelcol")],
            non_identifying_attributes: pairs,
        }),
        capabilities,
        health: Some(health()),
        custom_capabilities: Some(CustomCapabilities { capabilities: vec!["com.example.pause".to_owned()] }),
        available_components: components(&[1, 2], &["receivers"]),
        ..first_report(uid, &[])
    };
    assert_eq!(socket.exchange(&first).await.error_response, None);
    let files = [("", "a: 1"), ("collector.yaml", "b: 2"), ("größe.yaml", "")];
    socket.exchange(&able(effective_config(uid, 1, &files))).await;
    // A status of a kind that no version of the protocol has yet.
    let mut unknown = config_status(uid, 2, &[7], RemoteConfigStatuses::Unset, "");
    unknown.remote_config_status.as_mut().unwrap().status = 99;
    socket.exchange(&able(unknown)).await;
    let failed = config_status(uid, 3, &[7], RemoteConfigStatuses::Failed, "no such receiver");
    socket.exchange(&able(failed)).await;

    let view = agent_has(&muster, uid, "/remote_config/error_message", "no such receiver").await;
    assert_eq!(view["attributes"]["non_identifying"], expected);
    assert!(view["capabilities"].as_array().unwrap().contains(&json!("0x1000000000000000")), "{view}");
    assert_eq!(view["custom_capabilities"], json!(["com.example.pause"]));
    let receiver = &view["health"]["components"]["pipeline:traces"]["components"]["receiver:otlp"];
    assert_eq!(
        *receiver,
        json!({
            "healthy": false, "status": "StatusRecoverableError", "last_error": "port in use",
            "start_time": "1970-01-01T00:00:01Z", "status_time": "1970-01-01T00:00:02Z",
            "attributes": {"port": "4317"}, "components": {},
        })
    );
    for (name, body) in files {
        assert_eq!(view["effective_config"][name], json!({"body": body, "content_type": "text/yaml"}));
    }
    assert_eq!(
        view["available_components"],
        json!({"hash": "0102", "components": {"receivers": {"metadata": {}, "components": {
            "otlp": {"metadata": {"version": "1.2"}, "components": {}},
        }}}})
    );
    let history = view["remote_config"]["history"].as_array().unwrap();
    let statuses: Vec<_> = history.iter().map(|change| change["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["UNSET", "FAILED"]);

    let shown = muster.cli(&["agents", "get", &uid.to_string()]).await.expect_success();
    for part in [
        "otelcol",
        "0x1000000000000000",
        "com.example.pause",
        "receiver:otlp",
        "port in use",
        "port=4317",
        "no such receiver",
        "version=1.2",
        "collector.yaml",
        "größe.yaml",
        "FAILED",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // In lists the large parts are left out.
    let listed = muster.api().get("/api/v1/agents?selector=flag%3Dtrue").await.unwrap();
    let item = &listed["items"][0];
    assert_eq!(item["available_components"], json!({"hash": "0102"}));
    assert_eq!((item.get("effective_config"), item["remote_config"].get("history")), (None, None));
    muster.assert_no_errors();
}

async fn connect(muster: &Muster, name: &str, capabilities: u64, hash: &[u8]) -> (RawAgent, Uuid) {
    let uid = new_uid();
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    let first = AgentToServer {
        capabilities,
        available_components: components(hash, &[]),
        ..first_report(uid, &[("service.name", name)])
    };
    assert_eq!(socket.exchange(&first).await.error_response, None);
    (socket, uid)
}

async fn is_asked(socket: &mut RawAgent) {
    let asked = socket.recv().await;
    assert_eq!(asked.flags, 2, "ReportAvailableComponents: {asked:?}");
}

#[tokio::test]
async fn components_are_asked_for_once_a_hash_tenant_and_type() {
    let muster = server().await;
    let able = CAPABILITIES | REPORTS_COMPONENTS;
    let (mut first, uid) = connect(&muster, "otelcol", able, &[9]).await;
    is_asked(&mut first).await;
    let view = agent(&muster, uid).await;
    assert_eq!(view["available_components"], json!({"hash": "09", "components": null}));
    let told = AgentToServer { available_components: components(&[9], &["exporters"]), ..heartbeat(uid, 1) };
    first.exchange(&told).await;
    agent_has(&muster, uid, "/available_components/components/exporters/metadata", json!({})).await;

    // The list is known now, also for those that never report it.
    let (mut second, other) = connect(&muster, "otelcol", able, &[9]).await;
    let view = agent_has(&muster, other, "/available_components/hash", "09").await;
    assert!(view["available_components"]["components"]["exporters"].is_object(), "{view}");
    assert_eq!(second.next_within(QUIET).await, None);
    // Another type's hash is another hash, and who cannot report lists is not asked.
    let (mut third, _) = connect(&muster, "other", able, &[9]).await;
    is_asked(&mut third).await;
    let (mut fourth, _) = connect(&muster, "otelcol", CAPABILITIES, &[10]).await;
    assert_eq!(fourth.next_within(QUIET).await, None);
    muster.assert_no_errors();
}

#[tokio::test]
async fn only_what_the_agent_supports_now_is_used() {
    let muster = server().await;
    let uid = new_uid();
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    socket.exchange(&first_report(uid, &[("team", "blue")])).await;
    let without = |sequence| AgentToServer { capabilities: 1, ..heartbeat(uid, sequence) };
    socket.exchange(&without(1)).await;
    agent_has(&muster, uid, "/capabilities", json!(["ReportsStatus"])).await;
    apply(&muster, &[&template("v1", "10s"), &assignment("one:4317")]).await;
    agent_has(&muster, uid, "/remote_config/held", Value::Null).await;
    assert_eq!(socket.next_within(QUIET).await, None, "it does not take remote config now");
    // Zero means unchanged.
    socket.exchange(&AgentToServer { capabilities: 0, ..heartbeat(uid, 2) }).await;
    assert_eq!(socket.next_within(QUIET).await, None);
    socket.send(&heartbeat(uid, 3)).await;
    offer(&mut socket).await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_report_over_a_limit_is_refused_by_the_name_of_the_field() {
    let muster = server().await;
    let uid = new_uid();
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    socket.exchange(&first_report(uid, &[("team", "blue")])).await;
    let long = "x".repeat(70_000);
    let refused = socket.exchange(&full_state(uid, 1, &[("team", &long)])).await;
    assert_eq!(refused.instance_uid, uid.as_bytes());
    let error = refused.error_response.unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::BadRequest);
    assert_eq!(
        error.error_message,
        "agent_description.non_identifying_attributes.value.string_value: has 70000 bytes, at most 65536 are taken"
    );
    // What was refused took no effect; the agent is asked for what the server may lack.
    let answer = socket.exchange(&heartbeat(uid, 2)).await;
    assert_eq!((answer.error_response, answer.flags), (None, 1));
    socket.exchange(&full_state(uid, 3, &[("team", "red")])).await;
    agent_has(&muster, uid, "/attributes/non_identifying/team", "red").await;
    muster.assert_no_errors();
}

#[tokio::test]
async fn fields_and_custom_messages_that_are_unknown_do_no_harm() {
    let muster = server().await;
    let uid = new_uid();
    let mut socket = RawAgent::connect(&muster.opamp_url()).await;
    let mut frame = vec![0];
    first_report(uid, &[("team", "blue")]).encode(&mut frame).unwrap();
    // Field 1007 with a text, field 1006 as a group that holds a number.
    frame.extend([0xfa, 0x3e, 0x01, b'x', 0xf3, 0x3e, 0x08, 0x01, 0xf4, 0x3e]);
    socket.send_raw(frame).await;
    assert_eq!(socket.recv().await.error_response, None);
    let custom = CustomMessage {
        capability: "com.example.unknown".to_owned(),
        r#type: "hello".to_owned(),
        data: vec![1, 2, 3],
    };
    let answer = socket.exchange(&AgentToServer { custom_message: Some(custom), ..heartbeat(uid, 1) }).await;
    assert_eq!((answer.error_response, answer.custom_message), (None, None));
    agent_has(&muster, uid, "/attributes/non_identifying/team", "blue").await;
    muster.assert_no_errors();
}
