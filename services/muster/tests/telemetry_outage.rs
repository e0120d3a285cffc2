//! A collector that cannot be reached. Alone in its process: what sends says so in the process's log.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::{self, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster::config::Config;
use muster::telemetry;
use muster_testkit::eventually;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use serde_json::Value;
use tracing::{debug_span, info};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_one_warning() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let text = format!("telemetry: {{logs: {{format: json}}, traces: {{endpoint: 'http://{address}'}}}}");
    let config = Config::parse(Some(("muster.yaml", &text)), []).unwrap();
    let log = Log::default();
    let writer = log.clone();
    let (dispatch, telemetry) =
        telemetry::build("gateway", &config, Some("debug,hyper_util=info"), move || writer.clone()).unwrap();
    dispatch.try_init().unwrap();

    let parent =
        SpanContext::new(TraceId::from(1), SpanId::from(1), TraceFlags::SAMPLED, true, TraceState::NONE);
    let report = || {
        let span = debug_span!(target: "muster_gateway", "report");
        let context = opentelemetry::Context::new().with_remote_span_context(parent.clone());
        span.set_parent(context).unwrap();
    };
    let warnings = || {
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["event"] == "traces_not_sent").collect::<Vec<_>>()
    };
    // A full batch is sent at once.
    (0..1500).for_each(|_| report());
    let warning = eventually(Duration::from_secs(20), async || {
        warnings().pop().ok_or_else(|| "no warning yet".to_owned())
    })
    .await;
    assert_eq!(warning["level"], "WARN");
    assert_eq!(warning["component"], "muster");
    assert_eq!(warning["endpoint"], format!("http://{address}/v1/traces"));
    assert!(warning["spans"].as_u64().unwrap() > 0, "{warning}");
    assert!(warning["error"].is_string(), "{warning}");

    (0..1500).for_each(|_| report());
    info!("the log goes on");
    tokio::task::spawn_blocking(move || drop(telemetry)).await.unwrap();
    assert_eq!(warnings().len(), 1, "one a minute");
}
