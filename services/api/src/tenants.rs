//! `/api/v1/tenants`: the customers of who runs Muster, for role system.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use muster_domain::ids::Tenant;
use muster_domain::tenant::{DEFAULT, Quotas, TenantRecord};
use muster_ports::access::TenantError;
use serde::{Deserialize, Serialize};
use tracing::info;
use utoipa::{IntoParams, ToSchema};

use crate::Shared;
use crate::caller::Caller;
use crate::cursor::Bound;
use crate::problem::{ApiError, Problem};
use crate::tokens::page_size;
use crate::views::rfc3339;

/// What a tenant may use. What is left out is as the configuration has it for every tenant.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct QuotasView {
    /// Most agents that are stored.
    agents: Option<u64>,
    /// Most connections of agents at once, on one gateway.
    connections: Option<u64>,
    /// Reports a second, on one gateway.
    messages_per_second: Option<u64>,
    /// Most bytes of one apply's manifests.
    config_bytes: Option<u64>,
    /// Requests to the API a second, on one process.
    requests_per_second: Option<u64>,
}

impl From<Quotas> for QuotasView {
    fn from(quotas: Quotas) -> Self {
        let Quotas { agents, connections, messages_per_second, config_bytes, requests_per_second } = quotas;
        Self { agents, connections, messages_per_second, config_bytes, requests_per_second }
    }
}

impl QuotasView {
    fn checked(self) -> Result<Quotas, ApiError> {
        let Self { agents, connections, messages_per_second, config_bytes, requests_per_second } = self;
        let quotas = Quotas { agents, connections, messages_per_second, config_bytes, requests_per_second };
        quotas.check().map_err(|what| ApiError::BadRequest(format!("quotas.{what}")))?;
        Ok(quotas)
    }
}

/// What tenant is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    /// Its name: lower-case letters, digits, `-` and `.`, 63 characters at most.
    name: String,
    /// What it may use.
    #[serde(default)]
    quotas: QuotasView,
}

/// What a tenant may use from now on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewQuotas {
    /// All of its quotas.
    quotas: QuotasView,
    /// The revision that the tenant must still be at; any where it is left out.
    revision: Option<u64>,
}

/// A tenant.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantView {
    /// Its name.
    name: String,
    /// What it may use.
    quotas: QuotasView,
    /// Raised by every change.
    revision: u64,
    /// When it was made (RFC 3339).
    created_at: String,
    /// When it was changed last (RFC 3339).
    updated_at: String,
    /// When it was removed (RFC 3339).
    removed_at: Option<String>,
    /// How many agents of it are stored. Absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    agents: Option<u64>,
}

/// Tenants.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantList {
    /// The tenants, by name.
    items: Vec<TenantView>,
    /// Where the next page begins; null on the last page.
    next_cursor: Option<String>,
}

/// Which page of tenants.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantsQuery {
    /// Items on a page, 1 to 1000; 100 by default.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

fn refused(error: TenantError) -> ApiError {
    match error {
        TenantError::None(tenant) => ApiError::NotFound(format!("there is no tenant {tenant}")),
        TenantError::Taken(tenant) => ApiError::Conflict(format!(
            "there is, or was, a tenant {tenant}: use another name, which a removed tenant keeps"
        )),
        TenantError::Moved(revision) => {
            ApiError::Conflict(format!("revision: the tenant is at revision {revision}: look again"))
        }
        TenantError::Connected(count) => ApiError::Conflict(format!(
            "{count} agents of the tenant are connected: revoke their credentials first, and wait until they are gone"
        )),
        TenantError::Engine(error) => error.into(),
    }
}

fn parsed(name: &str) -> Result<Tenant, ApiError> {
    name.parse().map_err(|error| ApiError::BadRequest(format!("name: {error}")))
}

/// Makes a tenant.
#[utoipa::path(
    post, path = "/api/v1/tenants", tag = "access", operation_id = "createTenant", request_body = NewTenant,
    responses(
        (status = 201, body = TenantView),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    body: Result<Json<NewTenant>, JsonRejection>,
) -> Result<(StatusCode, Json<TenantView>), ApiError> {
    let Json(new) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let (tenant, quotas) = (parsed(&new.name)?, new.quotas.checked()?);
    let now = (shared.engines.clock)();
    let audit = caller.entry("createTenant", format!("tenants/{tenant}"), now);
    let made = shared.engines.access.create_tenant(&tenant, &quotas, now, &audit).await.map_err(refused)?;
    info!(event = "tenant_created", %tenant, actor = caller.actor, "a tenant was made");
    Ok((StatusCode::CREATED, Json(view(made))))
}

/// Lists tenants; those that were removed among them.
#[utoipa::path(
    get, path = "/api/v1/tenants", tag = "access", operation_id = "listTenants", params(TenantsQuery),
    responses((status = 200, body = TenantList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<TenantsQuery>, QueryRejection>,
) -> Result<Json<TenantList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let limit = page_size(query.limit)?;
    let bound = Bound { tenant: &caller.tenant, operation: "listTenants", query: &[] };
    let after = match &query.cursor {
        None => None,
        Some(cursor) => {
            let position = String::from_utf8(bound.open(cursor)?).unwrap_or_default();
            Some(position.parse().map_err(|error| ApiError::BadRequest(format!("cursor: {error}")))?)
        }
    };
    let mut found = shared.engines.access.tenants(after.as_ref(), limit + 1).await?;
    let next_cursor = (found.len() > limit).then(|| bound.seal(found[limit - 1].tenant.as_str().as_bytes()));
    found.truncate(limit);
    Ok(Json(TenantList { items: found.into_iter().map(view).collect(), next_cursor }))
}

/// Shows a tenant, with how many agents it has.
#[utoipa::path(
    get, path = "/api/v1/tenants/{name}", tag = "access", operation_id = "getTenant",
    params(("name" = String, Path, description = "The tenant's name.")),
    responses((status = 200, body = TenantView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    _caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<TenantView>, ApiError> {
    let tenant = parsed(&name)?;
    let found = shared.engines.access.tenant(&tenant).await?;
    let found = found.ok_or_else(|| ApiError::NotFound(format!("there is no tenant {tenant}")))?;
    let agents = Some(shared.engines.access.count_agents(&tenant).await?);
    Ok(Json(TenantView { agents, ..view(found) }))
}

/// Sets all that a tenant may use.
#[utoipa::path(
    put, path = "/api/v1/tenants/{name}/quotas", tag = "access", operation_id = "limitTenant",
    params(("name" = String, Path, description = "The tenant's name.")), request_body = NewQuotas,
    responses(
        (status = 200, body = TenantView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn limit(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
    body: Result<Json<NewQuotas>, JsonRejection>,
) -> Result<Json<TenantView>, ApiError> {
    let Json(new) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let (tenant, quotas) = (parsed(&name)?, new.quotas.checked()?);
    let now = (shared.engines.clock)();
    let audit = caller.entry("limitTenant", format!("tenants/{tenant}"), now);
    let access = &shared.engines.access;
    let limited = access.limit_tenant(&tenant, &quotas, new.revision, now, &audit).await.map_err(refused)?;
    info!(event = "tenant_limited", %tenant, actor = caller.actor, "what a tenant may use was changed");
    shared.wake().await;
    Ok(Json(view(limited)))
}

/// Removes a tenant and all that it has but its audit log. Its name is not given again.
#[utoipa::path(
    delete, path = "/api/v1/tenants/{name}", tag = "access", operation_id = "removeTenant",
    params(("name" = String, Path, description = "The tenant's name.")),
    responses(
        (status = 200, body = TenantView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn remove(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<TenantView>, ApiError> {
    let tenant = parsed(&name)?;
    if tenant.as_str() == DEFAULT {
        return Err(ApiError::Conflict(format!("tenant {DEFAULT} is always there: it cannot be removed")));
    }
    let now = (shared.engines.clock)();
    let audit = caller.entry("removeTenant", format!("tenants/{tenant}"), now);
    let removed = shared.engines.access.remove_tenant(&tenant, now, &audit).await.map_err(refused)?;
    info!(event = "tenant_removed", %tenant, actor = caller.actor, "a tenant was removed");
    shared.wake().await;
    Ok(Json(view(removed)))
}

fn view(record: TenantRecord) -> TenantView {
    TenantView {
        name: record.tenant.to_string(),
        quotas: record.quotas.into(),
        revision: record.revision,
        created_at: rfc3339(record.created_at),
        updated_at: rfc3339(record.updated_at),
        removed_at: record.removed_at.map(rfc3339),
        agents: None,
    }
}
