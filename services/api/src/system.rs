//! `/health`, `/ready`, `/metrics`: this process, for those who run it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus::{Encoder, Registry, TextEncoder};
use tracing::{error, warn};

use crate::Shared;

/// Longest wait for the store before the process counts as not ready.
const READY_DEADLINE: Duration = Duration::from_secs(2);

/// Says that the process is alive.
#[utoipa::path(get, path = "/health", tag = "system", operation_id = "health", responses((status = 200, body = String)))]
pub(crate) async fn health() -> &'static str {
    "ok\n"
}

/// Says whether the process can serve: the store answers.
#[utoipa::path(
    get, path = "/ready", tag = "system", operation_id = "ready",
    responses((status = 200, body = String), (status = 503, body = String))
)]
pub(crate) async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    match tokio::time::timeout(READY_DEADLINE, shared.engines.fleet.ping()).await {
        Ok(Ok(())) => "ready\n".into_response(),
        Ok(Err(error)) => {
            warn!(%error, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n").into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the store does not answer in time\n").into_response(),
    }
}

/// The process's metrics, in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "system", operation_id = "metrics", responses((status = 200, body = String)))]
pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    render(&shared.engines.metrics)
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
