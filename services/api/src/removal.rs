//! `DELETE` of assignments and templates: what agents run then is the operator's choice, and what is in use
//! stays.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use muster_domain::intent::{OnRemoval, Removal, RemovalError, RemoveTarget, plan_removal};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Shared;
use crate::caller::Caller;
use crate::change::{ATTEMPTS, made, moved, write};
use crate::problem::{ApiError, Problem};

/// How to delete.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemovalQuery {
    /// What the agents of an assignment run then: `keep`, what it gave last; `fall_back`, what the other
    /// assignments give. By default what its manifest says (`on_removal`).
    then: Option<String>,
    /// Why, for the history.
    message: Option<String>,
}

/// What was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Removed {
    /// Number of the tenant's intent now.
    revision: u64,
    /// The kind of its manifest.
    kind: String,
    /// Its name.
    name: String,
    /// `deleted`; `retired` where its agents keep what it gave.
    action: &'static str,
}

/// Deletes an assignment. No agent is sent an empty config: one to which no other assignment gives anything
/// keeps what it runs.
#[utoipa::path(
    delete, path = "/api/v1/assignments/{name}", tag = "configuration", operation_id = "deleteAssignment",
    params(("name" = String, Path, description = "The assignment's name."), RemovalQuery),
    responses(
        (status = 200, body = Removed),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn assignment(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
    query: Result<Query<RemovalQuery>, QueryRejection>,
) -> Result<Json<Removed>, ApiError> {
    remove(&shared, &caller, RemoveTarget::Assignment, name, query).await
}

/// Deletes a template with all its versions, unless an assignment uses one.
#[utoipa::path(
    delete, path = "/api/v1/configs/{name}", tag = "configuration", operation_id = "deleteConfig",
    params(("name" = String, Path, description = "The template's name."), RemovalQuery),
    responses(
        (status = 200, body = Removed),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn template(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
    query: Result<Query<RemovalQuery>, QueryRejection>,
) -> Result<Json<Removed>, ApiError> {
    remove(&shared, &caller, RemoveTarget::Template, name, query).await
}

async fn remove(
    shared: &Shared,
    caller: &Caller,
    target: RemoveTarget,
    name: String,
    query: Result<Query<RemovalQuery>, QueryRejection>,
) -> Result<Json<Removed>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let then = query.then.as_deref().map(|text| {
        let known = OnRemoval::ALL.into_iter().find(|known| known.name() == text);
        known.ok_or_else(|| ApiError::BadRequest("then: write keep or fall_back".to_owned()))
    });
    let then = then.transpose()?;
    if then.is_some() && target != RemoveTarget::Assignment {
        return Err(ApiError::BadRequest("then: only assignments have it".to_owned()));
    }
    let made = made(shared, caller, query.message.as_deref())?;
    let removals = BTreeSet::from([Removal { target, name: name.clone(), then }]);
    let operation = match target {
        RemoveTarget::Assignment => "deleteAssignment",
        RemoveTarget::Template => "deleteConfig",
    };
    for _ in 0..ATTEMPTS {
        let intent = shared.engines.intent.intent(&caller.tenant).await?;
        let mut change = plan_removal(&intent, &removals, made.at).map_err(refused)?.signed(made.clone());
        let Some(revision) = write(shared, caller, operation, &intent, &mut change).await? else { continue };
        let action = change.outcomes.first().map_or("deleted", |outcome| outcome.action.name());
        return Ok(Json(Removed { revision: revision.0, kind: target.kind().to_owned(), name, action }));
    }
    Err(moved())
}

fn refused(error: RemovalError) -> ApiError {
    match error {
        RemovalError::Absent { .. } => ApiError::NotFound(error.to_string()),
        RemovalError::InUse { .. } => ApiError::Conflict(error.to_string()),
    }
}
