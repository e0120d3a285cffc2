//! `GET /api/v1/assignments`: which agents get which template.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use muster_domain::intent::{Assignment, Intent, ObjectRef};
use muster_domain::selector::AgentSelector;
use muster_domain::template::TypedValue;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Shared;
use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::views::rfc3339;

/// Assignments.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AssignmentList {
    /// The assignments, by name.
    items: Vec<AssignmentView>,
}

/// An assignment.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AssignmentView {
    /// Its name.
    name: String,
    /// The template.
    template: TemplateRefView,
    /// Values of the template's variables.
    #[schema(value_type = Object)]
    values: BTreeMap<String, TypedValue>,
    /// Which agents.
    #[schema(value_type = Object)]
    selector: AgentSelector,
    /// Its requirements in the syntax of selectors.
    selector_text: String,
    /// Of two assignments with one file, the higher priority gives it.
    priority: i32,
    /// Name of the file made from the template's `config`; null for the template's name.
    file: Option<String>,
    /// What its agents run once it is deleted: `fall_back` or `keep`.
    on_removal: &'static str,
    /// When it was deleted so that its agents keep what it gave (RFC 3339); null while it lives.
    retired_at: Option<String>,
    /// The source that may prune it; null for nobody.
    owner: Option<String>,
    /// When it was first applied (RFC 3339).
    created_at: String,
    /// When it was last changed (RFC 3339).
    updated_at: String,
}

/// The template of an assignment.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateRefView {
    /// Its name.
    name: String,
    /// The version asked for; null follows the latest.
    version: Option<String>,
    /// The version in use.
    resolved_version: Option<String>,
}

/// Lists assignments.
#[utoipa::path(
    get, path = "/api/v1/assignments", tag = "configuration", operation_id = "listAssignments",
    responses((status = 200, body = AssignmentList))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
) -> Result<Json<AssignmentList>, ApiError> {
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let items = intent.assignments.values().map(|assignment| view(&intent, assignment)).collect();
    Ok(Json(AssignmentList { items }))
}

/// Shows one assignment.
#[utoipa::path(
    get, path = "/api/v1/assignments/{name}", tag = "configuration", operation_id = "getAssignment",
    params(("name" = String, Path, description = "The assignment's name.")),
    responses((status = 200, body = AssignmentView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<AssignmentView>, ApiError> {
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let assignment = intent.assignments.get(&name);
    let assignment =
        assignment.ok_or_else(|| ApiError::NotFound(format!("there is no assignment {name:?}")))?;
    Ok(Json(view(&intent, assignment)))
}

fn view(intent: &Intent, assignment: &Assignment) -> AssignmentView {
    let object = ObjectRef { kind: "ConfigAssignment".to_owned(), name: assignment.name.clone() };
    let resolved = intent.template(&assignment.template, assignment.version.as_deref());
    AssignmentView {
        name: assignment.name.clone(),
        template: TemplateRefView {
            name: assignment.template.clone(),
            version: assignment.version.clone(),
            resolved_version: resolved.map(|revision| revision.version.clone()),
        },
        values: assignment.values.clone(),
        selector: assignment.selector.clone(),
        selector_text: assignment.selector.requirements.to_string(),
        priority: assignment.priority,
        file: assignment.file.clone(),
        on_removal: assignment.on_removal.name(),
        retired_at: assignment.retired_at.map(rfc3339),
        owner: intent.owners.get(&object).cloned(),
        created_at: rfc3339(assignment.created_at),
        updated_at: rfc3339(assignment.updated_at),
    }
}
