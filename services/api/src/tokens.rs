//! `/api/v1/tokens`: tokens of people and service accounts; and who asks.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use muster_domain::access::Role;
use muster_domain::ids::{Tenant, Timestamp, TokenId};
use muster_domain::token::{self, LIFE, Token};
use muster_ports::access::{TokenChoice, TokenError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::info;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::Shared;
use crate::caller::Caller;
use crate::cursor::Bound;
use crate::problem::{ApiError, Problem};
use crate::views::rfc3339;

/// Most tokens of a tenant that count.
const MAX_TOKENS: usize = 1000;
/// Tokens on a page unless the request says otherwise, and at most.
const PAGE: (usize, usize) = (100, 1000);

/// What token is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewToken {
    /// Whose it is: a person or a service account, such as `ana@example.com` or `ci`.
    account: String,
    /// `viewer`, `operator`, `approver`, `admin` or `system`; not more than the caller's own.
    role: String,
    /// For how long it counts, in seconds; 90 days by default.
    expires_in_seconds: Option<u64>,
}

/// A token without its text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenView {
    /// Its id.
    id: String,
    /// Whose it is.
    account: String,
    /// The tenant that it is of.
    tenant: String,
    /// What it allows.
    role: &'static str,
    /// `live`, `expired` or `revoked`.
    state: &'static str,
    /// Who made it.
    created_by: String,
    /// When (RFC 3339).
    created_at: String,
    /// Until when it counts (RFC 3339).
    expires_at: String,
    /// When it was revoked (RFC 3339).
    revoked_at: Option<String>,
}

/// A new token: its text is shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MadeToken {
    /// What to send as `Authorization: Bearer`. It is stored nowhere.
    token: String,
    /// The rest of it.
    #[serde(flatten)]
    view: TokenView,
}

/// Tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenList {
    /// The tokens, the latest first.
    items: Vec<TokenView>,
    /// Where the next page begins; null on the last page.
    next_cursor: Option<String>,
}

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    /// Items on a page, 1 to 1000; 100 by default.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Whose tokens.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccountQuery {
    /// The account.
    account: String,
}

/// Who asks.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WhoView {
    /// Their name.
    account: String,
    /// The tenant that the request is about.
    tenant: String,
    /// Their role.
    role: &'static str,
}

/// Says who asks, and for which tenant.
#[utoipa::path(
    get, path = "/api/v1/whoami", tag = "access", operation_id = "whoAmI",
    responses((status = 200, body = WhoView))
)]
pub(crate) async fn who(caller: Caller) -> Json<WhoView> {
    Json(WhoView { account: caller.actor, tenant: caller.tenant.to_string(), role: caller.role.name() })
}

/// Makes a token of a person or a service account. An account may have several, so that one replaces another.
#[utoipa::path(
    post, path = "/api/v1/tokens", tag = "access", operation_id = "createToken", request_body = NewToken,
    responses(
        (status = 201, body = MadeToken),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    body: Result<Json<NewToken>, JsonRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Json(new) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let role: Role = new.role.parse().map_err(|error| ApiError::BadRequest(format!("role: {error}")))?;
    token::check_account(&new.account).map_err(|what| ApiError::BadRequest(format!("account: {what}")))?;
    let life = new.expires_in_seconds.map_or(LIFE.2, Duration::from_secs);
    if !(LIFE.0..=LIFE.1).contains(&life) {
        let (least, most) = (LIFE.0.as_secs(), LIFE.1.as_secs());
        return Err(ApiError::BadRequest(format!("expires_in_seconds: must be {least} to {most}")));
    }
    if !caller.role.includes(role) {
        let what = format!("role: {} may not give role {role}, which allows more", caller.role);
        return Err(ApiError::Forbidden(what));
    }
    let now = (shared.engines.clock)();
    let (text, token) = make(&caller.tenant, new.account, role, caller.actor.clone(), now, life);
    let view = view(token.clone(), now);
    let audit = caller.entry("createToken", format!("tokens/{}", token.id), now);
    let audit = audit.with_states(String::new(), state(&token));
    match shared.engines.access.create_token(&token, &audit, MAX_TOKENS).await {
        Ok(()) => {}
        Err(TokenError::NoTenant(tenant)) => {
            return Err(ApiError::NotFound(format!("there is no tenant {tenant}")));
        }
        Err(TokenError::Full(count)) => {
            return Err(ApiError::Conflict(format!("the tenant has {count} tokens: revoke some first")));
        }
        Err(TokenError::Engine(error)) => return Err(error.into()),
    }
    info!(event = "token_created", tenant = %token.tenant, actor = caller.actor, account = token.account, %role, token_id = %token.id, "a token was made");
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(MadeToken { token: text, view })))
}

/// A new token and its text.
pub(crate) fn make(
    tenant: &Tenant,
    account: String,
    role: Role,
    created_by: String,
    created_at: Timestamp,
    life: Duration,
) -> (String, Token) {
    let text = token::text(&rand::random());
    let token = Token {
        id: TokenId(Uuid::now_v7()),
        tenant: tenant.clone(),
        account,
        role,
        digest: token::digest(&text),
        created_by,
        created_at,
        expires_at: created_at.plus(life),
        revoked_at: None,
    };
    (text, token)
}

/// What the audit log says of a token.
pub(crate) fn state(token: &Token) -> String {
    json!({"account": token.account, "role": token.role.name(), "expires_at": rfc3339(token.expires_at)})
        .to_string()
}

/// Lists tokens, the latest first; those that do not count any more among them.
#[utoipa::path(
    get, path = "/api/v1/tokens", tag = "access", operation_id = "listTokens", params(PageQuery),
    responses((status = 200, body = TokenList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<TokenList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let limit = page_size(query.limit)?;
    let bound = Bound { tenant: &caller.tenant, operation: "listTokens", query: &[] };
    let before = match &query.cursor {
        None => None,
        Some(cursor) => {
            let position = bound.open(cursor)?;
            let id = TokenId::try_from(position.as_slice());
            Some(id.map_err(|error| ApiError::BadRequest(format!("cursor: {error}")))?)
        }
    };
    let mut found = shared.engines.access.tokens(&caller.tenant, before, limit + 1).await?;
    let next_cursor = (found.len() > limit).then(|| bound.seal(found[limit - 1].id.as_bytes()));
    found.truncate(limit);
    let now = (shared.engines.clock)();
    Ok(Json(TokenList { items: found.into_iter().map(|token| view(token, now)).collect(), next_cursor }))
}

/// Size of a page that was asked for.
pub(crate) fn page_size(asked: Option<usize>) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(PAGE.0);
    if !(1..=PAGE.1).contains(&limit) {
        return Err(ApiError::BadRequest(format!("limit: must be 1 to {}, not {limit}", PAGE.1)));
    }
    Ok(limit)
}

/// Revokes a token: from now on it does not count.
#[utoipa::path(
    delete, path = "/api/v1/tokens/{id}", tag = "access", operation_id = "revokeToken",
    params(("id" = String, Path, description = "The token's id.")),
    responses((status = 200, body = TokenView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn revoke(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<TokenView>, ApiError> {
    let id: TokenId = id.parse().map_err(|error| ApiError::BadRequest(format!("{error}")))?;
    let mut revoked =
        revoke_chosen(&shared, &caller, "revokeToken", &TokenChoice::Id(id), format!("tokens/{id}")).await?;
    let token = revoked.pop().ok_or_else(|| {
        ApiError::NotFound(format!("there is no token {id} that counts, or you may not revoke it"))
    })?;
    Ok(Json(view(token, (shared.engines.clock)())))
}

/// Revokes every token of an account.
#[utoipa::path(
    delete, path = "/api/v1/tokens", tag = "access", operation_id = "revokeAccount", params(AccountQuery),
    responses((status = 200, body = TokenList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn revoke_account(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<AccountQuery>, QueryRejection>,
) -> Result<Json<TokenList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let target = format!("accounts/{}", query.account);
    let choice = TokenChoice::Account(query.account);
    let revoked = revoke_chosen(&shared, &caller, "revokeAccount", &choice, target).await?;
    let now = (shared.engines.clock)();
    let items = revoked.into_iter().map(|token| view(token, now)).collect();
    Ok(Json(TokenList { items, next_cursor: None }))
}

async fn revoke_chosen(
    shared: &Shared,
    caller: &Caller,
    operation: &str,
    choice: &TokenChoice,
    target: String,
) -> Result<Vec<Token>, ApiError> {
    let now = (shared.engines.clock)();
    let roles: Vec<Role> = Role::ALL.into_iter().filter(|role| caller.role.includes(*role)).collect();
    let audit = caller.entry(operation, target, now);
    let revoked = shared.engines.access.revoke_tokens(&caller.tenant, choice, &roles, now, &audit).await?;
    for token in &revoked {
        info!(event = "token_revoked", tenant = %token.tenant, actor = caller.actor, account = token.account, token_id = %token.id, "a token was revoked");
    }
    Ok(revoked)
}

fn view(token: Token, now: Timestamp) -> TokenView {
    TokenView {
        id: token.id.to_string(),
        tenant: token.tenant.to_string(),
        role: token.role.name(),
        state: token.state(now).name(),
        created_by: token.created_by,
        created_at: rfc3339(token.created_at),
        expires_at: rfc3339(token.expires_at),
        revoked_at: token.revoked_at.map(rfc3339),
        account: token.account,
    }
}
