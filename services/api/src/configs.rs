//! `GET /api/v1/configs`: templates and their versions.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use muster_domain::intent::TemplateRevision;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Shared;
use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::views::rfc3339;

/// Templates.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConfigList {
    /// The templates, by name.
    items: Vec<ConfigSummary>,
}

/// A template and its versions.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConfigSummary {
    /// Its name.
    name: String,
    /// Its versions, oldest first.
    versions: Vec<String>,
    /// The version that assignments without one follow.
    latest: String,
    /// When the latest was applied (RFC 3339).
    created_at: String,
}

/// One version of a template.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConfigView {
    /// Its name.
    name: String,
    /// The version shown.
    version: String,
    /// All versions, oldest first.
    versions: Vec<String>,
    /// Identifier of the version.
    id: String,
    /// Digest of its content, hex.
    digest: String,
    /// When it was applied (RFC 3339).
    created_at: String,
    /// Who applied it; empty for one of before it was asked.
    author: String,
    /// Why, in the author's words; may be empty.
    message: String,
    /// The manifest as it was applied.
    source: String,
    /// Its variables.
    #[schema(value_type = Vec<Object>)]
    variables: Vec<muster_domain::template::Variable>,
}

/// Which version to show.
#[derive(Debug, Deserialize, IntoParams)]
pub(crate) struct VersionQuery {
    /// The version; the latest by default.
    version: Option<String>,
}

/// Lists templates.
#[utoipa::path(
    get, path = "/api/v1/configs", tag = "configuration", operation_id = "listConfigs",
    responses((status = 200, body = ConfigList))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
) -> Result<Json<ConfigList>, ApiError> {
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let summary = |(name, revisions): (String, Vec<TemplateRevision>)| {
        let latest = revisions.last()?;
        Some(ConfigSummary {
            name,
            latest: latest.version.clone(),
            created_at: rfc3339(latest.created_at),
            versions: revisions.iter().map(|revision| revision.version.clone()).collect(),
        })
    };
    Ok(Json(ConfigList { items: intent.templates.into_iter().filter_map(summary).collect() }))
}

/// Shows one version of a template.
#[utoipa::path(
    get, path = "/api/v1/configs/{name}", tag = "configuration", operation_id = "getConfig",
    params(("name" = String, Path, description = "The template's name."), VersionQuery),
    responses((status = 200, body = ConfigView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
) -> Result<Json<ConfigView>, ApiError> {
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let revisions = intent.templates.get(&name).map(Vec::as_slice).unwrap_or_default();
    let versions: Vec<_> = revisions.iter().map(|revision| revision.version.clone()).collect();
    let Some(revision) = intent.template(&name, query.version.as_deref()) else {
        let detail = match query.version {
            Some(version) if !versions.is_empty() => {
                format!("template {name:?} has no version {version:?}: it has {}", versions.join(", "))
            }
            _ => format!("there is no template {name:?}"),
        };
        return Err(ApiError::NotFound(detail));
    };
    Ok(Json(ConfigView {
        name,
        version: revision.version.clone(),
        versions,
        id: revision.id.to_string(),
        digest: revision.digest.to_string(),
        created_at: rfc3339(revision.created_at),
        author: revision.author.clone(),
        message: revision.message.clone(),
        source: revision.source.clone(),
        variables: revision.compiled.variables.clone(),
    }))
}
