//! `POST /api/v1/apply`: manifests, all of them or none.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use muster_domain::ids::{Tenant, check_name};
use muster_domain::intent::{Action, Intent, IntentChange, Made, ObjectRef, Outcome, plan};
use muster_domain::manifest::{self, Document, Manifest};
use muster_domain::selector::AgentSelector;
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::caller::Caller;
use crate::change::{ATTEMPTS, made, moved, unchanged_since, write};
use crate::impact::{self, Impact};
use crate::problem::{ApiError, Problem};
use crate::{MAX_BODY, Shared, diff};

/// Agent ids of a strategy that are looked up for warnings.
const MAX_CHECKED: usize = 100;

/// How to apply.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApplyQuery {
    /// Why, for the history.
    message: Option<String>,
    /// The revision that the author looked at: refused if one of the objects was changed after it.
    if_revision: Option<u64>,
    /// The source that owns what is applied from now on, such as a repository. What another one owns is
    /// refused.
    owner: Option<String>,
    /// Deletes what the owner owns and the manifests do not declare.
    #[serde(default)]
    prune: bool,
    /// Only says what would happen.
    #[serde(default)]
    dry_run: bool,
    /// Applies also what is proven wrong for agents. The history says so.
    #[serde(default)]
    force: bool,
}

/// What was applied.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Applied {
    /// Number of the tenant's intent now.
    revision: u64,
    /// What happened to each object.
    results: Vec<OutcomeView>,
    /// Ids of the rollouts that this began; in a dry run none.
    rollouts: Vec<String>,
    /// Whether nothing was written: it is what would happen.
    dry_run: bool,
    /// What it does to agents.
    impact: Impact,
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
    /// `created`, `configured`, `unchanged`, `deleted` or `retired`.
    action: &'static str,
    /// In a dry run, the unified difference of its manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
}

/// Applies manifests: one YAML stream (or JSON document) of ConfigTemplates and ConfigAssignments.
/// All take effect together, or none does.
#[utoipa::path(
    post, path = "/api/v1/apply", tag = "configuration", operation_id = "apply", params(ApplyQuery),
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
    query: Result<Query<ApplyQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Applied>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let documents = documents(&text(&caller, body)?)?;
    query.check()?;
    let made = made(&shared, &caller, query.message.as_deref())?;
    for _ in 0..ATTEMPTS {
        let intent = shared.engines.intent.intent(&caller.tenant).await?;
        if let Some(revision) = query.if_revision {
            unchanged_since(&shared, &caller, &intent, &objects(&documents), revision).await?;
        }
        let mut change = planned(&intent, &documents, &query, &made)?;
        let mut impact = impact::of(&shared, &caller.tenant, &intent, &change).await?;
        impact.warnings.extend(warnings(&shared, &caller.tenant, &documents).await);
        if query.dry_run {
            let results = change.outcomes.iter().map(|outcome| view(outcome, Some((&intent, &change))));
            let (results, revision) = (results.collect(), intent.revision.0);
            return Ok(Json(Applied { revision, results, rollouts: Vec::new(), dry_run: true, impact }));
        }
        if let Some(first) = impact.errors.first() {
            if !query.force {
                return Err(ApiError::Preflight(impact.errors));
            }
            warn!(event = "preflight_overridden", tenant = %caller.tenant, actor = caller.actor, errors = impact.errors.len(), first, "a configuration is applied that is proven wrong for agents");
            change.force(first);
        }
        let Some(revision) = write(&shared, &caller, "apply", &intent, &mut change).await? else { continue };
        let results = change.outcomes.iter().map(|outcome| view(outcome, None)).collect();
        let rollouts = change.new_rollouts.iter().map(|rollout| rollout.id.to_string()).collect();
        return Ok(Json(Applied { revision: revision.0, results, rollouts, dry_run: false, impact }));
    }
    Err(moved())
}

/// Says what applying manifests would change, of the configuration and of agents. Nothing is written.
#[utoipa::path(
    post, path = "/api/v1/diff", tag = "configuration", operation_id = "diffManifests", params(ApplyQuery),
    request_body(content = String, content_type = "application/yaml"),
    responses(
        (status = 200, body = Applied),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn compare(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<ApplyQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Applied>, ApiError> {
    let query = query.map(|Query(query)| Query(ApplyQuery { dry_run: true, ..query }));
    apply(State(shared), caller, query, body).await
}

impl ApplyQuery {
    fn check(&self) -> Result<(), ApiError> {
        if let Some(owner) = &self.owner {
            check_name("owner", owner).map_err(|error| ApiError::BadRequest(error.to_string()))?;
        }
        if self.prune && self.owner.is_none() {
            return Err(ApiError::BadRequest("prune: name the owner whose objects are pruned".to_owned()));
        }
        Ok(())
    }
}

/// The change that these manifests make of an intent.
fn planned(
    intent: &Intent,
    documents: &[Document],
    query: &ApplyQuery,
    made: &Made,
) -> Result<IntentChange, ApiError> {
    let change = plan(intent, documents, made.at, Uuid::now_v7).map_err(ApiError::Manifests)?;
    let change = match &query.owner {
        Some(owner) => {
            change.owned(intent, documents, owner, query.prune, made.at).map_err(ApiError::Conflict)?
        }
        None => change,
    };
    Ok(change.signed(made.clone()))
}

/// What the documents declare.
fn objects(documents: &[Document]) -> BTreeSet<ObjectRef> {
    let object = |Document { manifest, .. }: &Document| ObjectRef {
        kind: manifest.kind().to_owned(),
        name: manifest.name().to_owned(),
    };
    documents.iter().map(object).collect()
}

/// The text of a body of manifests.
pub(crate) fn text(caller: &Caller, body: Result<Bytes, BytesRejection>) -> Result<String, ApiError> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::TooLarge(format!("the manifests are larger than {MAX_BODY} bytes: apply them in parts"))
        }
        _ => ApiError::BadRequest(error.body_text()),
    })?;
    if let Some(most) = caller.quotas.config_bytes.filter(|most| body.len() as u64 > *most) {
        let what =
            format!("the manifests are larger than the {most} bytes of the tenant's quota config_bytes");
        return Err(ApiError::TooLarge(what));
    }
    String::from_utf8(body.into())
        .map_err(|error| ApiError::BadRequest(format!("the manifests are not UTF-8: {error}")))
}

/// The manifests of a body; at least one.
pub(crate) fn documents(text: &str) -> Result<Vec<Document>, ApiError> {
    let documents = manifest::parse(text).map_err(ApiError::Manifests)?;
    if documents.is_empty() {
        return Err(ApiError::BadRequest("there is no manifest in the request".to_owned()));
    }
    Ok(documents)
}

/// Channels that a strategy may name and that nobody listens to, and agents that it names and nobody knows.
async fn warnings(shared: &Shared, tenant: &Tenant, documents: &[Document]) -> Vec<String> {
    let mut warnings = Vec::new();
    for document in documents {
        let Manifest::RolloutStrategy(manifest) = &document.manifest else { continue };
        let name = &manifest.name;
        let unknown = manifest.strategy.notify.iter();
        let unknown = unknown.filter(|channel| !shared.settings.channels.contains(*channel));
        warnings.extend(unknown.map(|channel| {
            format!("RolloutStrategy {name:?}: no channel {channel:?} is configured: nobody is told there (notifications)")
        }));
        let targets = manifest.strategy.target.iter().flat_map(|target| &target.agent_ids);
        for id in targets.take(MAX_CHECKED) {
            let selector = AgentSelector { agent_ids: [id.clone()].into(), ..AgentSelector::default() };
            // What cannot be looked up now is not warned of: the manifests are applied.
            let found = shared.engines.fleet.page(tenant, &selector, None, 1).await;
            if found.is_ok_and(|found| found.is_empty()) {
                warnings.push(format!(
                    "RolloutStrategy {name:?}: no agent {id:?} is known: an agent id is an instance_uid, or the label `name` of an agent"
                ));
            }
        }
    }
    warnings
}

fn view(outcome: &Outcome, planned: Option<(&Intent, &IntentChange)>) -> OutcomeView {
    OutcomeView {
        kind: outcome.kind.clone(),
        name: outcome.name.clone(),
        version: outcome.version.clone(),
        action: outcome.action.name(),
        diff: planned.map(|(intent, change)| difference(outcome, intent, change)),
    }
}

/// What changes in an object's manifest.
fn difference(outcome: &Outcome, intent: &Intent, change: &IntentChange) -> String {
    let name = format!("{}/{}", outcome.kind, outcome.name);
    if outcome.kind == "RolloutStrategy" {
        return String::new();
    }
    let old = match outcome.kind.as_str() {
        "ConfigTemplate" => intent.template(&outcome.name, None).map(|latest| latest.source.clone()),
        _ => intent.assignments.get(&outcome.name).map(|assignment| assignment.manifest()),
    };
    let new = match (outcome.action, outcome.kind.as_str()) {
        (Action::Unchanged, _) => return String::new(),
        (Action::Deleted | Action::Retired, _) => None,
        (_, "ConfigTemplate") => {
            let new = change
                .templates
                .iter()
                .find(|new| new.name == outcome.name && Some(&new.version) == outcome.version.as_ref());
            new.map(|new| new.source.clone())
        }
        _ => outcome.manifest.clone(),
    };
    let header =
        |side: &str, there: bool| if there { format!("{side}/{name}") } else { "/dev/null".to_owned() };
    let (old_name, new_name) = (header("a", old.is_some()), header("b", new.is_some()));
    diff::unified(&old_name, &old.unwrap_or_default(), &new_name, &new.unwrap_or_default())
}
