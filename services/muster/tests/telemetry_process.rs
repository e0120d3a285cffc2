//! What the real program writes to standard error, and how its level is switched.

use std::time::Duration;

use muster::config::Config;
use muster::telemetry;
use muster_testkit::Muster;
use serde_json::Value;
use tracing::dispatcher::with_default;
use tracing::{debug_span, info_span};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_log_is_json_and_its_level_is_switched_by_a_signal() {
    let mut muster = Muster::builder(env!("CARGO_BIN_EXE_muster")).start().await;
    muster.signal("USR1").await;
    let line = muster.wait_for_log("\"to\":\"debug\"", SOON).await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["event"], "log_level_changed");
    assert_eq!((&line["from"], &line["component"]), (&Value::from("info"), &Value::from("muster")));
    muster.signal("USR1").await;
    muster.wait_for_log("\"to\":\"info\"", SOON).await;
    muster.terminate().await;
    for line in muster.logs() {
        let line: Value = serde_json::from_str(&line).unwrap();
        for field in ["timestamp", "level", "component", "message"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_at_the_start() {
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster"));
    let error = muster.run(&["serve", "--log-level", "loud"]).await.expect_failure();
    assert!(error.contains("--log-level: \"loud\" is not a level"), "{error}");
    let muster = muster.env("MUSTER_TELEMETRY__TRACES__ENDPOINT", "jaeger:80");
    let error = muster.run(&["serve"]).await.expect_failure();
    assert!(error.contains("telemetry.traces.endpoint: \"jaeger:80\": port 4317 means gRPC"), "{error}");
}

/// Here, where no other subscriber of the process has an interest in spans.
#[test]
fn without_a_collector_no_detailed_span_is_made() {
    let config = Config::parse(None, []).unwrap();
    let (dispatch, _telemetry) = telemetry::build("gateway", &config, None, std::io::sink).unwrap();
    with_default(&dispatch, || {
        assert!(debug_span!(target: "muster_gateway", "report").is_disabled());
        assert!(!info_span!(target: "muster_gateway", "request").is_disabled());
    });
}
