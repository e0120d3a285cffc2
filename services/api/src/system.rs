//! `/health`, `/ready`, `/metrics`: this process, for those who run it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use muster_ports::EngineError;
use prometheus::{Encoder, Registry, TextEncoder};
use tracing::{error, warn};

/// Longest wait for one engine before the process counts as not ready.
const READY_DEADLINE: Duration = Duration::from_secs(2);

type Checking = Pin<Box<dyn Future<Output = Result<(), EngineError>> + Send>>;

/// Whether an engine answers.
struct Check {
    engine: &'static str,
    ask: Box<dyn Fn() -> Checking + Send + Sync>,
}

/// Whether this process can serve: it is not stopping, and every engine that it needs answers.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: Arc<Vec<Check>>,
    stopping: Arc<AtomicBool>,
}

impl Readiness {
    /// Adds an engine that the process needs.
    #[must_use]
    pub fn with<F>(self, engine: &'static str, ask: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), EngineError>> + Send + 'static,
    {
        let mut checks = Arc::into_inner(self.checks).unwrap_or_default();
        checks.push(Check { engine, ask: Box::new(move || Box::pin(ask())) });
        Self { checks: Arc::new(checks), stopping: self.stopping }
    }

    /// The process is stopping: from now on it is not ready.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// What keeps the process from serving, a line each.
    async fn missing(&self) -> Vec<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return vec!["stopping".to_owned()];
        }
        let mut missing = Vec::new();
        for check in self.checks.iter() {
            match tokio::time::timeout(READY_DEADLINE, (check.ask)()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(%error, "not ready");
                    missing.push(format!("{} does not answer as it should", check.engine));
                }
                Err(_) => missing.push(format!("{} does not answer in time", check.engine)),
            }
        }
        missing
    }
}

/// What the routes of this module need.
#[derive(Clone)]
pub(crate) struct System {
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Registry,
}

/// Says that the process is alive.
#[utoipa::path(get, path = "/health", tag = "system", operation_id = "health", responses((status = 200, body = String)))]
pub(crate) async fn health() -> &'static str {
    "ok\n"
}

/// Says whether the process can serve: the engines that it needs answer, and it is not stopping.
#[utoipa::path(
    get, path = "/ready", tag = "system", operation_id = "ready",
    responses((status = 200, body = String), (status = 503, body = String))
)]
pub(crate) async fn ready(State(system): State<System>) -> Response {
    let missing = system.readiness.missing().await;
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n").into_response()
}

/// The process's metrics, in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "system", operation_id = "metrics", responses((status = 200, body = String)))]
pub(crate) async fn metrics(State(system): State<System>) -> Response {
    render(&system.metrics)
}

/// Metrics as a response.
pub(crate) fn render(registry: &Registry) -> Response {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&registry.gather(), &mut text) {
        Ok(()) => ([(CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => {
            error!(%error, "metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
