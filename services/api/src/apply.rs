//! `POST /api/v1/apply`: manifests, all of them or none.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use muster_domain::audit::Entry;
use muster_domain::ids::Timestamp;
use muster_domain::intent::{Action, Intent, IntentChange, Outcome, plan};
use muster_domain::manifest;
use muster_ports::store::IntentError;
use serde::Serialize;
use serde_json::json;
use tracing::info;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::{MAX_BODY, Shared};

/// How often a change is planned again when another one came between.
const ATTEMPTS: usize = 5;

/// What was applied.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Applied {
    /// Number of the tenant's intent now.
    revision: u64,
    /// What happened to each object.
    results: Vec<OutcomeView>,
}

/// What happened to one object.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OutcomeView {
    /// The manifest's kind.
    kind: String,
    /// The object's name.
    name: String,
    /// Version, of a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// `created`, `configured` or `unchanged`.
    action: &'static str,
}

/// Applies manifests: one YAML stream (or JSON document) of ConfigTemplates and ConfigAssignments.
/// All take effect together, or none does.
#[utoipa::path(
    post, path = "/api/v1/apply", tag = "configuration", operation_id = "apply",
    request_body(content = String, content_type = "application/yaml"),
    responses(
        (status = 200, body = Applied),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn apply(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Applied>, ApiError> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::TooLarge(format!("the manifests are larger than {MAX_BODY} bytes: apply them in parts"))
        }
        _ => ApiError::BadRequest(error.body_text()),
    })?;
    let text = std::str::from_utf8(&body)
        .map_err(|error| ApiError::BadRequest(format!("the manifests are not UTF-8: {error}")))?;
    let documents = manifest::parse(text).map_err(ApiError::Manifests)?;
    if documents.is_empty() {
        return Err(ApiError::BadRequest("there is no manifest in the request".to_owned()));
    }
    let tenant = &caller.tenant;
    for _ in 0..ATTEMPTS {
        let intent = shared.engines.intent.intent(tenant).await?;
        let now = (shared.engines.clock)();
        let mut change = plan(&intent, &documents, now, Uuid::now_v7).map_err(ApiError::Manifests)?;
        change.audit = Some(entry(&caller, &intent, &change, now));
        let revision = match shared.engines.intent.change(tenant, &change).await {
            Ok(revision) => revision,
            Err(IntentError::Moved) => continue,
            Err(IntentError::Engine(error)) => return Err(error.into()),
        };
        if !change.is_empty() {
            info!(event = "intent_changed", %tenant, revision = revision.0, templates = change.templates.len(), assignments = change.assignments.len(), "manifests were applied");
            shared.wake().await;
        }
        let results = change.outcomes.into_iter().map(view).collect();
        return Ok(Json(Applied { revision: revision.0, results }));
    }
    Err(ApiError::Conflict("others change the configuration at the same time: apply again".to_owned()))
}

/// What is written in the audit log: the assignments as they were and are, and the new versions of templates.
fn entry(caller: &Caller, intent: &Intent, change: &IntentChange, now: Timestamp) -> Entry {
    let assignments: Vec<_> = change.assignments.iter().map(|changed| changed.name.as_str()).collect();
    let before: Vec<_> = assignments.iter().filter_map(|name| intent.assignments.get(*name)).collect();
    let templates: Vec<_> = change
        .templates
        .iter()
        .map(|template| json!({"name": template.name, "version": template.version, "digest": template.digest.to_string()}))
        .collect();
    let targets = assignments.iter().map(|name| format!("assignments/{name}"));
    let templated = change.templates.iter().map(|template| format!("configs/{}", template.name));
    let target: Vec<_> = templated.chain(targets).collect();
    caller.entry("apply", target.join(" "), now).with_states(
        json!({"revision": intent.revision.0, "assignments": before}).to_string(),
        json!({"templates": templates, "assignments": change.assignments}).to_string(),
    )
}

fn view(outcome: Outcome) -> OutcomeView {
    OutcomeView {
        kind: outcome.kind,
        name: outcome.name,
        version: outcome.version,
        action: match outcome.action {
            Action::Created => "created",
            Action::Configured => "configured",
            Action::Unchanged => "unchanged",
        },
    }
}
