//! `GET /api/v1/agents/{instance_uid}/explain`: why an agent has what it has; and a preview of what it would
//! be given.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use muster_domain::desired::{Desired, ExplainedAssignment, ExplainedFile, ExplainedValue, Planner};
use muster_domain::intent::plan;
use muster_ports::store::StoredAgent;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::{Shared, apply, diff};

/// Why an agent has what it has.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExplanationView {
    /// The agent.
    instance_uid: String,
    /// Number of the intent that this rests on.
    revision: u64,
    /// Hash of the config that it should run, hex; null if it gets none.
    desired_hash: Option<String>,
    /// Hash that it reports, hex.
    reported_hash: Option<String>,
    /// Why it gets no config although an assignment matches.
    held: Option<String>,
    /// What that means.
    summary: String,
    /// The assignments that are for it, the highest priority first.
    assignments: Vec<ExplainedAssignmentView>,
    /// The files of its config, by name.
    files: Vec<ExplainedFileView>,
}

/// An assignment that is for an agent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExplainedAssignmentView {
    /// Its name.
    name: String,
    /// Its priority.
    priority: i32,
    /// Name of its template.
    template: String,
    /// The version that it gives.
    version: String,
    /// Whether that is the latest because the assignment names none.
    follows_latest: bool,
    /// Whether it is deleted, and its agents keep what it gave.
    retired: bool,
}

/// A file of an agent's config.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExplainedFileView {
    /// Its name.
    name: String,
    /// MIME type.
    content_type: String,
    /// The assignment that gives it.
    assignment: String,
    /// Other assignments that would give it, in the order of their turn.
    hidden: Vec<String>,
    /// Those of them that have the same priority: only their names decide.
    clashes: Vec<String>,
    /// Values of its placeholders.
    values: Vec<ExplainedValueView>,
}

/// A value of a placeholder.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExplainedValueView {
    /// Name of the variable, key of the attribute or label.
    name: String,
    /// `assignment`, `default`, `attribute` or `label`.
    origin: &'static str,
    /// The text as it is written; null if there is none.
    value: Option<String>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

/// Explains why an agent has what it has: assignments, versions, values and where each comes from, holds.
#[utoipa::path(
    get, path = "/api/v1/agents/{instance_uid}/explain", tag = "agents", operation_id = "explainAgent",
    params(("instance_uid" = String, Path, description = "The agent's instance_uid.")),
    responses((status = 200, body = ExplanationView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn explain(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(uid): Path<String>,
) -> Result<Json<ExplanationView>, ApiError> {
    let stored = stored(&shared, &caller, &uid).await?;
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    Ok(Json(view(&Planner::new(&intent), &stored)))
}

async fn stored(shared: &Shared, caller: &Caller, uid: &str) -> Result<StoredAgent, ApiError> {
    let found = shared.engines.fleet.agent(&caller.key(uid)?).await?;
    let (stored, _) = found.ok_or_else(|| ApiError::NotFound(format!("there is no agent {uid}")))?;
    Ok(stored)
}

fn view(planner: &Planner, stored: &StoredAgent) -> ExplanationView {
    let StoredAgent { agent, labels } = stored;
    let told = planner.explain(agent, labels);
    let reported = agent.state.remote_config.hash.as_ref();
    let (desired_hash, held, summary) = match &told.desired {
        Desired::Nothing => (None, None, "no assignment is for the agent: it keeps what it runs".to_owned()),
        Desired::Held { reason } => {
            (None, Some(reason.clone()), format!("held back: {reason}; it keeps what it runs"))
        }
        Desired::Config(config) if Some(&config.hash) == reported => {
            (Some(&config.hash), None, "it reports the config that it should run".to_owned())
        }
        Desired::Config(config)
            if agent.state.failed.as_ref().is_some_and(|failed| failed.hash == config.hash) =>
        {
            let told = "it could not apply this config, which is not offered again until it changes";
            (Some(&config.hash), None, told.to_owned())
        }
        Desired::Config(config) => {
            (Some(&config.hash), None, "it does not report yet that it runs this config".to_owned())
        }
    };
    let assignment = |found: ExplainedAssignment| ExplainedAssignmentView {
        name: found.name,
        priority: found.priority,
        template: found.template,
        version: found.version,
        follows_latest: found.follows,
        retired: found.retired,
    };
    let value = |found: ExplainedValue| {
        let (value, missing) = match found.value {
            Ok(value) => (Some(value), None),
            Err(missing) => (None, Some(missing)),
        };
        ExplainedValueView {
            name: found.origin.name().to_owned(),
            origin: found.origin.kind(),
            value,
            missing,
        }
    };
    let file = |found: ExplainedFile| ExplainedFileView {
        name: found.name,
        content_type: found.content_type,
        assignment: found.assignment,
        hidden: found.hidden,
        clashes: found.clashes,
        values: found.values.into_iter().map(value).collect(),
    };
    ExplanationView {
        instance_uid: agent.key.uid.to_string(),
        revision: planner.revision().0,
        desired_hash: desired_hash.map(ToString::to_string),
        reported_hash: reported.map(ToString::to_string),
        held,
        summary,
        assignments: told.assignments.into_iter().map(assignment).collect(),
        files: told.files.into_iter().map(file).collect(),
    }
}

/// What an agent is given, and would be given.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PreviewView {
    /// The agent.
    instance_uid: String,
    /// Hash of that config, hex; null if it gets none.
    desired_hash: Option<String>,
    /// Why it gets no config although an assignment matches.
    held: Option<String>,
    /// The files, by name.
    files: Vec<PreviewFile>,
    /// The unified difference to what it should run now; empty if nothing changes.
    diff: String,
}

/// A file of a preview.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PreviewFile {
    /// Its name.
    name: String,
    /// MIME type.
    content_type: String,
    /// Its text.
    body: String,
}

/// Shows the config that one agent would be given if these manifests were applied; with an empty body, the
/// one that it should run now. Nothing is changed.
#[utoipa::path(
    post, path = "/api/v1/agents/{instance_uid}/preview", tag = "agents", operation_id = "previewConfig",
    params(("instance_uid" = String, Path, description = "The agent's instance_uid.")),
    request_body(content = String, content_type = "application/yaml"),
    responses(
        (status = 200, body = PreviewView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn preview(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(uid): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PreviewView>, ApiError> {
    let StoredAgent { agent, labels } = stored(&shared, &caller, &uid).await?;
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let body = apply::text(&caller, body)?;
    let before = Planner::new(&intent);
    let after = if body.trim().is_empty() {
        Planner::new(&intent)
    } else {
        let documents = apply::documents(&body)?;
        let now = (shared.engines.clock)();
        let change = plan(&intent, &documents, now, Uuid::now_v7).map_err(ApiError::Manifests)?;
        Planner::new(&intent.with(&change))
    };
    let rendered = |planner: &Planner| match planner.desired(&agent, &labels) {
        Desired::Nothing => (None, None, Vec::new()),
        Desired::Held { reason } => (None, Some(reason), Vec::new()),
        Desired::Config(config) => (Some(config.hash.to_string()), None, planner.rendered(&config)),
    };
    let named = |files: &[(String, String, String)]| -> Vec<diff::File> {
        files.iter().map(|(name, _, text)| (name.clone(), text.clone())).collect()
    };
    let (_, _, old) = rendered(&before);
    let (desired_hash, held, new) = rendered(&after);
    // An agent that is given nothing keeps what it runs.
    let changes = desired_hash.as_ref().map(|_| diff::files(&named(&old), &named(&new))).unwrap_or_default();
    let file = |(name, content_type, body)| PreviewFile { name, content_type, body };
    Ok(Json(PreviewView {
        instance_uid: agent.key.uid.to_string(),
        desired_hash,
        held,
        files: new.into_iter().map(file).collect(),
        diff: changes,
    }))
}
