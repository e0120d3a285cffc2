//! `PATCH /api/v1/agents/{instance_uid}/labels`: what operators say of an agent.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use muster_domain::selector::{Condition, Requirement};
use serde::Serialize;
use utoipa::ToSchema;

use crate::Shared;
use crate::caller::Caller;
use crate::problem::{ApiError, Problem};

/// An agent's labels.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LabelsView {
    /// Labels by key.
    labels: BTreeMap<String, String>,
}

/// Sets labels, and removes those whose value is null (a JSON merge patch).
#[utoipa::path(
    patch, path = "/api/v1/agents/{instance_uid}/labels", tag = "agents", operation_id = "labelAgent",
    params(("instance_uid" = String, Path, description = "The agent's instance_uid.")),
    request_body = Object,
    responses((status = 200, body = LabelsView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn patch(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(uid): Path<String>,
    changes: Result<Json<BTreeMap<String, Option<String>>>, JsonRejection>,
) -> Result<Json<LabelsView>, ApiError> {
    let Json(changes) = changes.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    for (label, value) in &changes {
        // A label is what a selector can ask for.
        let condition = value.clone().map_or(Condition::DoesNotExist, |value| Condition::In(vec![value]));
        Requirement::new(label, condition)
            .map_err(|error| ApiError::BadRequest(format!("label {label:?}: {error}")))?;
    }
    let key = caller.key(&uid)?;
    let now = (shared.engines.clock)();
    let audit = caller.entry("labelAgent", format!("agents/{}", key.uid), now);
    let labels = shared.engines.intent.label(&key, &changes, now, Some(&audit)).await?;
    let labels = labels.ok_or_else(|| ApiError::NotFound(format!("there is no agent {uid}")))?;
    shared.wake().await;
    Ok(Json(LabelsView { labels }))
}
