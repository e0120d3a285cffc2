//! Who changed what of the configuration, when and why: `GET /api/v1/changes` and the histories and
//! differences of templates.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use muster_domain::ids::IntentRevision;
use muster_domain::intent::{ChangeRecord, ObjectRef, TemplateRevision};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::views::rfc3339;
use crate::{Shared, diff};

/// Changes on a page unless the request says otherwise, and at most.
const PAGE: (usize, usize) = (100, 1000);

/// Which changes to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangesQuery {
    /// Only changes of objects of this kind, such as `ConfigAssignment`; with `name`.
    kind: Option<String>,
    /// Only changes of the object with this name; with `kind`.
    name: Option<String>,
    /// Only changes before this revision: `next_before` of the page before.
    before: Option<u64>,
    /// Changes on a page, 1 to 1000; 100 by default.
    limit: Option<usize>,
}

/// A page of changes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChangeList {
    /// The changes, the last one first.
    items: Vec<ChangeView>,
    /// `before` of the next page; null on the last page.
    next_before: Option<u64>,
}

/// A change of the configuration.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChangeView {
    /// The revision of the tenant's configuration that it made.
    revision: u64,
    /// When (RFC 3339).
    at: String,
    /// Who.
    author: String,
    /// Why, in the author's words; may be empty.
    message: String,
    /// What it changed.
    objects: Vec<ChangedObject>,
}

/// What a change did to an object.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChangedObject {
    /// The kind of its manifest.
    kind: String,
    /// Its name.
    name: String,
    /// Version, of a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// `created`, `configured`, `deleted` or `retired`.
    action: &'static str,
    /// Its manifest then, of an assignment; of one that was deleted, its last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<String>,
}

/// Lists changes of the configuration.
#[utoipa::path(
    get, path = "/api/v1/changes", tag = "configuration", operation_id = "listChanges", params(ChangesQuery),
    responses((status = 200, body = ChangeList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn changes(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<ChangesQuery>, QueryRejection>,
) -> Result<Json<ChangeList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE.0);
    if !(1..=PAGE.1).contains(&limit) {
        return Err(ApiError::BadRequest(format!("limit: must be 1 to {}, not {limit}", PAGE.1)));
    }
    let object = match (query.kind, query.name) {
        (Some(kind), Some(name)) => Some(ObjectRef { kind, name }),
        (None, None) => None,
        _ => return Err(ApiError::BadRequest("kind, name: give both, or none".to_owned())),
    };
    let before = query.before.map(IntentRevision);
    let tenant = &caller.tenant;
    // One more than asked for tells whether there is another page.
    let mut found = shared.engines.intent.history(tenant, object.as_ref(), before, limit + 1).await?;
    let is_more = found.len() > limit;
    found.truncate(limit);
    let next_before = found.last().filter(|_| is_more).map(|last| last.revision.0);
    Ok(Json(ChangeList { items: found.into_iter().map(view).collect(), next_before }))
}

fn view(record: ChangeRecord) -> ChangeView {
    let object = |outcome: muster_domain::intent::Outcome| ChangedObject {
        kind: outcome.kind,
        name: outcome.name,
        version: outcome.version,
        action: outcome.action.name(),
        manifest: outcome.manifest,
    };
    ChangeView {
        revision: record.revision.0,
        at: rfc3339(record.made.at),
        author: record.made.author,
        message: record.made.message,
        objects: record.outcomes.into_iter().map(object).collect(),
    }
}

/// The versions of a template.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VersionList {
    /// The versions, the latest first.
    items: Vec<VersionView>,
}

/// A version of a template.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VersionView {
    /// The version.
    version: String,
    /// Digest of its content, hex.
    digest: String,
    /// When it was applied (RFC 3339).
    created_at: String,
    /// Who applied it; empty for one of before it was asked.
    author: String,
    /// Why, in the author's words; may be empty.
    message: String,
    /// Names of the assignments that give it.
    assignments: Vec<String>,
}

/// Lists the versions of a template.
#[utoipa::path(
    get, path = "/api/v1/configs/{name}/history", tag = "configuration", operation_id = "listConfigVersions",
    params(("name" = String, Path, description = "The template's name.")),
    responses((status = 200, body = VersionList), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn versions(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<VersionList>, ApiError> {
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let revisions = intent.templates.get(&name).map(Vec::as_slice).unwrap_or_default();
    if revisions.is_empty() {
        return Err(ApiError::NotFound(format!("there is no template {name:?}")));
    }
    let gives = |revision: &TemplateRevision| {
        let assignments = intent.assignments.values().filter(|assignment| {
            let given = intent.template(&assignment.template, assignment.version.as_deref());
            given.is_some_and(|given| given.id == revision.id)
        });
        assignments.map(|assignment| assignment.name.clone()).collect()
    };
    let item = |revision: &TemplateRevision| VersionView {
        version: revision.version.clone(),
        digest: revision.digest.to_string(),
        created_at: rfc3339(revision.created_at),
        author: revision.author.clone(),
        message: revision.message.clone(),
        assignments: gives(revision),
    };
    Ok(Json(VersionList { items: revisions.iter().rev().map(item).collect() }))
}

/// Which versions to compare.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiffQuery {
    /// The old version; by default the one before `to`.
    from: Option<String>,
    /// The new version; by default the latest.
    to: Option<String>,
}

/// What differs between two versions of a template.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DiffView {
    /// The template's name.
    name: String,
    /// The old version; null where there is none before `to`.
    from: Option<String>,
    /// The new version.
    to: String,
    /// The unified difference of their manifests; empty if they are the same.
    diff: String,
}

/// Compares two versions of a template.
#[utoipa::path(
    get, path = "/api/v1/configs/{name}/diff", tag = "configuration", operation_id = "diffConfigVersions",
    params(("name" = String, Path, description = "The template's name."), DiffQuery),
    responses((status = 200, body = DiffView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn compare(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
    query: Result<Query<DiffQuery>, QueryRejection>,
) -> Result<Json<DiffView>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let revisions = intent.templates.get(&name).map(Vec::as_slice).unwrap_or_default();
    let find = |version: &str| {
        let found = revisions.iter().position(|revision| revision.version == version);
        found.ok_or_else(|| {
            let known = revisions.iter().map(|revision| revision.version.as_str()).collect::<Vec<_>>();
            ApiError::NotFound(format!(
                "template {name:?} has no version {version:?}: it has {}",
                known.join(", ")
            ))
        })
    };
    let Some(latest) = revisions.len().checked_sub(1) else {
        return Err(ApiError::NotFound(format!("there is no template {name:?}")));
    };
    let to = query.to.as_deref().map_or(Ok(latest), find)?;
    let from = query.from.as_deref().map(find).transpose()?.or(to.checked_sub(1));
    let (old, new) = (from.map(|from| &revisions[from]), &revisions[to]);
    let label = |revision: &TemplateRevision| format!("{name} {}", revision.version);
    let (old_name, old_text) =
        old.map_or_else(|| ("/dev/null".to_owned(), String::new()), |old| (label(old), old.source.clone()));
    Ok(Json(DiffView {
        from: old.map(|old| old.version.clone()),
        to: new.version.clone(),
        diff: diff::unified(&old_name, &old_text, &label(new), &new.source),
        name,
    }))
}
