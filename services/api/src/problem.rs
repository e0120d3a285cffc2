//! Errors of the API, as problem details (RFC 9457).

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use muster_domain::manifest::ManifestError;
use muster_ports::EngineError;
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

/// What went wrong with a request, and how to mend it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Always `about:blank`: the title says it.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: String,
    /// HTTP status.
    status: u16,
    /// What is wrong, and the fix.
    detail: String,
    /// Problems of manifests, each with its place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<PlacedError>,
}

/// A problem at a place of the request's body.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlacedError {
    /// Line, from 1; absent where what is wrong has no place.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    /// Column, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u32>,
    /// Path of the field; may be empty.
    field: String,
    /// What is wrong, and the fix.
    message: String,
}

/// Why a request was not served.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The request is not well formed; the text names the field and the fix.
    BadRequest(String),
    /// Who asks has not shown who they are; the text says how to.
    Unauthenticated(String),
    /// Who asks may not do this; the text says why.
    Forbidden(String),
    /// There is nothing at the path.
    NoRoute,
    /// The path does not take the method.
    NoMethod,
    /// There is no such thing.
    NotFound(String),
    /// The body is too large.
    TooLarge(String),
    /// What is there is not what the request was made for.
    Conflict(String),
    /// The process does as much already as it may.
    Busy(String),
    /// Who asks has asked too often: how long to wait.
    TooMany(Duration),
    /// Manifests that cannot be applied.
    Manifests(Vec<ManifestError>),
    /// What is proven wrong with what agents would get.
    Preflight(Vec<String>),
    /// An engine is away.
    Engine(EngineError),
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::BadRequest(detail) => problem(StatusCode::BAD_REQUEST, detail),
            Self::Unauthenticated(detail) => {
                let challenge = [(WWW_AUTHENTICATE, "Bearer realm=\"muster\"")];
                (challenge, problem(StatusCode::UNAUTHORIZED, detail)).into_response()
            }
            Self::Forbidden(detail) => problem(StatusCode::FORBIDDEN, detail),
            Self::NoRoute => no_route(),
            Self::NoMethod => no_method(),
            Self::NotFound(detail) => problem(StatusCode::NOT_FOUND, detail),
            Self::TooLarge(detail) => problem(StatusCode::PAYLOAD_TOO_LARGE, detail),
            Self::Conflict(detail) => problem(StatusCode::CONFLICT, detail),
            Self::Busy(detail) => problem(StatusCode::SERVICE_UNAVAILABLE, detail),
            Self::TooMany(wait) => {
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                let detail = format!("this is more than may be asked in a time: come back in {seconds} s");
                ([(RETRY_AFTER, seconds.to_string())], problem(StatusCode::TOO_MANY_REQUESTS, detail))
                    .into_response()
            }
            Self::Manifests(errors) => {
                let errors: Vec<_> = errors
                    .into_iter()
                    .map(|error| PlacedError {
                        line: Some(error.line),
                        column: Some(error.column),
                        field: error.field,
                        message: error.message,
                    })
                    .collect();
                let detail = "nothing was applied: mend the manifests and apply them again".to_owned();
                respond(StatusCode::UNPROCESSABLE_ENTITY, detail, errors)
            }
            Self::Preflight(errors) => {
                let placed =
                    |message| PlacedError { line: None, column: None, field: String::new(), message };
                let detail = "nothing was applied: mend this, or apply it all the same with force".to_owned();
                respond(StatusCode::UNPROCESSABLE_ENTITY, detail, errors.into_iter().map(placed).collect())
            }
            Self::Engine(error) => {
                error!(error = &error as &dyn std::error::Error, "a request could not be served");
                let detail = "the store does not answer as it should: see the server's log".to_owned();
                let status = match error {
                    EngineError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
                    EngineError::Corrupt { .. } => StatusCode::INTERNAL_SERVER_ERROR,
                };
                problem(status, detail)
            }
        }
    }
}

fn problem(status: StatusCode, detail: String) -> Response {
    respond(status, detail, Vec::new())
}

fn respond(status: StatusCode, detail: String, errors: Vec<PlacedError>) -> Response {
    let title = status.canonical_reason().unwrap_or("Error").to_owned();
    let body = Problem { kind: "about:blank", title, status: status.as_u16(), detail, errors };
    (status, [(CONTENT_TYPE, "application/problem+json")], Json(body).into_response().into_body())
        .into_response()
}

/// Any path that is not a route.
pub(crate) async fn not_found() -> Response {
    no_route()
}

fn no_route() -> Response {
    problem(StatusCode::NOT_FOUND, "there is nothing at this path: see /api/v1/openapi.json".to_owned())
}

/// A route that does not know the method.
pub(crate) async fn method_not_allowed() -> Response {
    no_method()
}

fn no_method() -> Response {
    let detail = "this path does not take the method: see /api/v1/openapi.json".to_owned();
    problem(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// A request that took too long.
pub(crate) fn timed_out() -> Response {
    problem(StatusCode::SERVICE_UNAVAILABLE, "the request took too long and was given up".to_owned())
}

/// A handler that panicked: a defect of the server, not the end of it.
#[expect(clippy::needless_pass_by_value, reason = "the signature of CatchPanicLayer")]
pub(crate) fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
    error!(panic = text, "a request handler panicked");
    problem(StatusCode::INTERNAL_SERVER_ERROR, "a defect of the server: see its log".to_owned())
}
