//! What the program tells of itself: its log and its traces, in this process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use axum::routing::post;
use muster::config::Config;
use muster::telemetry::{self, Telemetry};
use muster_proto::Message as _;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use serde_json::{Value, json};
use tracing::dispatcher::with_default;
use tracing::{Dispatch, Span, debug, debug_span, error, info, info_span, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::fmt::MakeWriter;

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const PARENT: u64 = 0x00f0_67aa_0ba9_02b7;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn messages(&self) -> Vec<String> {
        self.lines().iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Telemetry with JSON lines and, if there is an endpoint, traces.
fn mk_telemetry(endpoint: Option<&str>) -> (Log, Dispatch, Telemetry) {
    let traces =
        endpoint.map(|endpoint| format!("  traces: {{endpoint: '{endpoint}'}}\n")).unwrap_or_default();
    let text = format!("region: north\ntelemetry:\n  logs: {{format: json}}\n{traces}");
    let config = Config::parse(Some(("muster.yaml", &text)), []).unwrap();
    let log = Log::default();
    let (dispatch, telemetry) = telemetry::build("gateway,api", &config, None, log.clone()).unwrap();
    (log, dispatch, telemetry)
}

#[derive(Debug)]
struct Failed(Option<Box<Failed>>);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "it failed" } else { "it is \"full\"\nnow" })
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.as_ref().map(|source| source as _)
    }
}

#[test]
fn a_line_is_a_flat_object() {
    let (log, dispatch, _telemetry) = mk_telemetry(None);
    with_default(&dispatch, || {
        let failed = Failed(Some(Box::new(Failed(None))));
        let outer =
            info_span!("outer", tenant = "acme", agent_id = "outer", remote_addr = tracing::field::Empty);
        outer.record("remote_addr", "10.0.1.100:52345");
        let _outer = outer.entered();
        let _inner = info_span!("inner", agent_id = "inner", otel.kind = "server").entered();
        error!(
            target: "muster_control::worker",
            event = "config_update_failed",
            agent_id = %"agent-002",
            config_version = 7_u64,
            error = &failed as &dyn std::error::Error,
            level = "mine",
            huge = u128::MAX,
            ratio = f64::NAN,
            duration_ms = 456,
            final_try = true,
            "an agent could not apply {}", "it",
        );
        info!(target: "hyper_util::client", "hello");
    });
    let lines = log.lines();
    assert_eq!(lines.len(), 2);
    let [mut first, mut second] = [lines[0].clone(), lines[1].clone()];
    for line in [&mut first, &mut second] {
        let timestamp = line["timestamp"].take();
        let timestamp = timestamp.as_str().unwrap();
        time::OffsetDateTime::parse(timestamp, &time::format_description::well_known::Rfc3339).unwrap();
        assert!(timestamp.ends_with('Z') && timestamp.len() == 27, "{timestamp}");
    }
    assert_eq!(
        first,
        json!({
            "timestamp": null,
            "level": "ERROR",
            "component": "control",
            "event": "config_update_failed",
            "message": "an agent could not apply it",
            "agent_id": "agent-002",
            "config_version": 7,
            "error": "it failed: it is \"full\"\nnow",
            "level_": "mine",
            "huge": u128::MAX.to_string(),
            "ratio": "NaN",
            "duration_ms": 456,
            "final_try": true,
            "tenant": "acme",
            "remote_addr": "10.0.1.100:52345",
        })
    );
    let names: Vec<_> = first.as_object().unwrap().keys().take(5).collect();
    assert_eq!(names, ["timestamp", "level", "component", "event", "message"]);
    assert_eq!(
        second,
        json!({
            "timestamp": null, "level": "INFO", "component": "hyper_util", "message": "hello",
            "agent_id": "inner", "tenant": "acme", "remote_addr": "10.0.1.100:52345",
        })
    );
}

#[test]
fn the_level_changes_while_it_runs() {
    let (log, dispatch, telemetry) = mk_telemetry(None);
    let handle = telemetry.handle();
    let say = |text: &str| {
        debug!(target: "muster_gateway", "{text}");
        debug!(target: "h2", "noise");
    };
    with_default(&dispatch, || {
        say("not yet");
        handle.toggle().unwrap();
        assert_eq!(handle.level(), "debug");
        say("now");
        handle.toggle().unwrap();
        assert_eq!(handle.level(), "info");
        say("no more");
        handle.set_level("warn").unwrap();
        warn!("only this");
        handle.set_level("error,muster_gateway=trace").unwrap();
        say("ours");
        assert!(handle.set_level("loud").is_err());
        say("still ours");
    });
    let changed = "the log's level changed";
    assert_eq!(
        log.messages(),
        [changed, "now", changed, changed, "only this", "ours", "still ours"],
        "while less than info is logged, changes to less are not told"
    );
    assert_eq!(log.lines()[0]["from"], "info");
    assert_eq!(log.lines()[0]["to"], "debug");
}

/// What a collector was sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collector {
    /// Receives at an address of its own for as long as the test runs.
    async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let received = collector.clone();
        let receive = async move |headers: HeaderMap, body: Bytes| {
            assert_eq!(headers[header::CONTENT_TYPE], "application/x-protobuf");
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            received.0.lock().unwrap().push(request);
        };
        let router = axum::Router::new().route("/v1/traces", post(receive));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, address)
    }
}

/// A span that goes on a recorded trace of another process.
fn following(span: Span) -> Span {
    let (trace, parent) = (TraceId::from(TRACE), SpanId::from(PARENT));
    let context = SpanContext::new(trace, parent, TraceFlags::SAMPLED, true, TraceState::NONE);
    span.set_parent(opentelemetry::Context::new().with_remote_span_context(context)).unwrap();
    span
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_arrive_over_http() {
    let (collector, address) = Collector::start().await;
    let (log, dispatch, telemetry) = mk_telemetry(Some(&format!("http://{address}")));
    with_default(&dispatch, || {
        let span = following(
            debug_span!(target: "muster_gateway", "report", tenant = "acme", otel.kind = "producer"),
        );
        span.in_scope(|| {
            info!(target: "muster_gateway", agent_id = "a", "reported");
            drop(debug_span!(target: "muster_control", "fold"));
            // Not ours: neither a part of the trace nor on the way between parts.
            let _sending = info_span!(target: "hyper", "send").entered();
            drop(debug_span!(target: "muster_api", "offer"));
        });
    });
    // What is left is sent at the end.
    tokio::task::spawn_blocking(move || drop(telemetry)).await.unwrap();

    let requests = std::mem::take(&mut *collector.0.lock().unwrap());
    let [request] = &requests[..] else { panic!("{} requests", requests.len()) };
    let [of_resource] = &request.resource_spans[..] else { panic!("{request:?}") };
    let attributes = &of_resource.resource.as_ref().unwrap().attributes;
    let attributes: BTreeMap<_, _> = attributes
        .iter()
        .map(|pair| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(AnyValue::StringValue(text)) => (pair.key.as_str(), text.as_str()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(attributes["service.name"], "muster");
    assert_eq!(attributes["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(attributes["muster.role"], "gateway,api");
    assert_eq!(attributes["muster.region"], "north");

    let spans: Vec<_> = of_resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["fold", "offer", "report"], "spans end from the inside");
    let report = spans[2];
    assert_eq!(report.parent_span_id, PARENT.to_be_bytes());
    for span in &spans {
        assert_eq!(span.trace_id, TRACE.to_be_bytes());
        if span.name != "report" {
            assert_eq!(span.parent_span_id, report.span_id);
        }
    }
    assert_eq!(report.events[0].name, "reported");
    let line = &log.lines()[0];
    let span_id: String = report.span_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(line["trace_id"], json!(format!("{TRACE:032x}")));
    assert_eq!(line["span_id"], json!(span_id));
}

#[test]
fn grpc_is_spoken_where_it_is_asked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("grpc://{}", listener.local_addr().unwrap());
    let (_log, dispatch, telemetry) = mk_telemetry(Some(&endpoint));
    with_default(&dispatch, || drop(following(debug_span!(target: "muster_gateway", "report"))));
    let stopping = std::thread::spawn(move || drop(telemetry));
    let (mut connection, _) = listener.accept().unwrap();
    let mut preface = [0; 24];
    connection.read_exact(&mut preface).unwrap();
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    drop(connection);
    drop(listener);
    stopping.join().unwrap();
}

#[test]
fn a_collector_that_is_silent_holds_nothing_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_log, dispatch, telemetry) = mk_telemetry(Some(&format!("http://{}", silent.local_addr().unwrap())));
    let began = Instant::now();
    with_default(&dispatch, || {
        for _ in 0..20_000 {
            drop(following(debug_span!(target: "muster_gateway", "report")));
        }
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}: spans wait for a collector");
    let stopping = Instant::now();
    drop(telemetry);
    let took = stopping.elapsed();
    assert!(took < Duration::from_millis(4500), "{took:?}: stopping waits for a collector");
}
