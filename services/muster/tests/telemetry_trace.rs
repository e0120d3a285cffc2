//! One trace from an agent's report through the log to the fold and the offer, from the real program.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::routing::post;
use muster_proto::Message as _;
use muster_testkit::engines::{Engine, Nats, Postgres, Redis, engines_or_skip};
use muster_testkit::messages::{first_report, new_uid};
use muster_testkit::{Muster, MusterBuilder, RawAgent, eventually};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(20);

const MANIFESTS: &str = "apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: base, version: v1}
spec:
  config:
    receivers: {otlp: {}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: all}
spec:
  template: {name: base}
  selector:
    matchLabels: {team: blue}
";

/// What a collector was sent.
type Spans = Arc<Mutex<Vec<Span>>>;

async fn collector() -> (Spans, String) {
    let spans = Spans::default();
    let received = spans.clone();
    let receive = async move |body: Bytes| {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        received.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
    };
    let router = axum::Router::new().route("/v1/traces", post(receive));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (spans, url)
}

/// Whether a span says that it is about this agent.
fn is_of(span: &Span, uid: Uuid) -> bool {
    let text = Some(any_value::Value::StringValue(uid.to_string()));
    let is_uid = |value: &AnyValue| value.value == text;
    span.attributes.iter().any(|pair| pair.key == "agent_id" && pair.value.as_ref().is_some_and(is_uid))
}

/// A process that sends its traces there.
fn process(collector: &str) -> MusterBuilder {
    Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_TELEMETRY__TRACES__ENDPOINT", collector)
        .env("OTEL_TRACES_SAMPLER", "always_on")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
}

#[tokio::test]
async fn a_report_is_traced_to_the_offer() {
    let (spans, url) = collector().await;
    let muster = process(&url).start().await;
    check(&spans, &muster, &muster).await;
}

#[tokio::test]
async fn a_report_is_traced_to_the_offer_across_processes() {
    if !engines_or_skip(&[Engine::Nats, Engine::Redis, Engine::Postgres]) {
        return;
    }
    let (nats, redis, postgres) = tokio::join!(Nats::start(), Redis::start(), Postgres::start());
    let (spans, url) = collector().await;
    let role = |roles: &str| {
        process(&url)
            .env("MUSTER_BUS__TYPE", "nats")
            .env("MUSTER_BUS__URL", nats.url())
            .env("MUSTER_BUS__REPLICAS", "1")
            .env("MUSTER_BUS__MAX_BYTES", "64MiB")
            .env("MUSTER_BUS__MAX_BLOB_BYTES", "64MiB")
            .env("MUSTER_OWNERSHIP__TYPE", "redis")
            .env("MUSTER_OWNERSHIP__URL", redis.url())
            .env("MUSTER_DATABASE__TYPE", "postgres")
            .env("MUSTER_DATABASE__CONNECTION_STRING", postgres.url())
            .arg("--roles")
            .arg(roles)
            .arg("--name")
            .arg(roles.replace(',', "-"))
    };
    // The gateway waits for the stream, which control makes.
    let (control, gateway) = tokio::join!(role("control,api").start(), role("gateway").start());
    check(&spans, &gateway, &control).await;
}

/// Has a config offered to an agent of `gateway`, and follows the trace back to the agent's report.
async fn check(spans: &Spans, gateway: &Muster, control: &Muster) {
    control.api().post_text("/api/v1/apply", "application/yaml", MANIFESTS).await.unwrap();
    // An offer may also follow from the change of intent, which is no report's. Once one agent has its
    // config, control knows the intent, and the next agent's offer follows from its report.
    let mut first = RawAgent::connect(&gateway.opamp_url()).await;
    first.send(&first_report(new_uid(), &[("team", "blue")])).await;
    first.recv_where(|message| message.remote_config.is_some()).await;
    let uid = new_uid();
    let mut agent = RawAgent::connect(&gateway.opamp_url()).await;
    agent.send(&first_report(uid, &[("team", "blue")])).await;
    let offer = eventually(SOON, async || {
        let spans = spans.lock().unwrap();
        let of_agent = |span: &&Span| {
            span.name == "offer"
                && spans.iter().any(|fold| fold.span_id == span.parent_span_id && is_of(fold, uid))
        };
        spans.iter().find(of_agent).cloned().ok_or_else(|| format!("{spans:?}"))
    })
    .await;
    let fold = eventually(SOON, async || {
        let spans = spans.lock().unwrap();
        spans.iter().find(|span| span.span_id == offer.parent_span_id).cloned().ok_or_else(String::new)
    })
    .await;
    assert_eq!(fold.name, "fold");
    let report = eventually(SOON, async || {
        let spans = spans.lock().unwrap();
        spans.iter().find(|span| span.span_id == fold.parent_span_id).cloned().ok_or_else(String::new)
    })
    .await;
    assert_eq!((report.name.as_str(), report.parent_span_id.len()), ("report", 0));
    assert_eq!((&report.trace_id, &fold.trace_id), (&offer.trace_id, &offer.trace_id));
    let line = control.wait_for_log(&format!("\"agent_id\":\"{uid}\""), SOON).await;
    let line: Value = serde_json::from_str(&line).unwrap();
    let trace: String = fold.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(line["trace_id"].as_str(), Some(trace.as_str()), "{line}");
    assert_eq!(line["agent_id"], uid.to_string());
    control.assert_no_errors();
    gateway.assert_no_errors();
}
