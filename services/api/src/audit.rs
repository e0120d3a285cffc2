//! `GET /api/v1/audit`: who changed what.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use muster_domain::audit::{Outcome, Record};
use muster_domain::ids::Timestamp;
use muster_ports::access::{AuditFilter, AuditPage};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::{IntoParams, ToSchema};

use crate::Shared;
use crate::caller::Caller;
use crate::cursor::Bound;
use crate::problem::{ApiError, Problem};
use crate::tokens::page_size;
use crate::views::rfc3339;

/// Which records.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// Only what this actor did.
    actor: Option<String>,
    /// Only this operation, as the table of operations names it.
    operation: Option<String>,
    /// `done` or `denied`.
    outcome: Option<String>,
    /// From this time on (RFC 3339).
    since: Option<String>,
    /// Before this time (RFC 3339).
    until: Option<String>,
    /// `latest` first (the default), or `oldest`.
    first: Option<String>,
    /// Records on a page, 1 to 1000; 100 by default.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A record of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RecordView {
    /// Its number in the tenant's chain, from 1.
    number: u64,
    /// When (RFC 3339).
    at: String,
    /// When, in microseconds since 1970: what the digest is made over.
    at_us: u64,
    /// Who.
    actor: String,
    /// With which role.
    role: &'static str,
    /// From which address.
    remote_addr: String,
    /// Which operation.
    operation: String,
    /// What it was done to.
    target: String,
    /// What was there before: JSON as a text, or empty.
    before: String,
    /// What is there now: JSON as a text, or empty.
    after: String,
    /// `done` or `denied`.
    outcome: &'static str,
    /// Digest of the record before, hex.
    previous: String,
    /// Digest of this one, hex.
    digest: String,
}

/// Records of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditList {
    /// The records.
    items: Vec<RecordView>,
    /// Where the next page begins; null on the last page.
    next_cursor: Option<String>,
    /// The last record of the tenant's chain.
    head: HeadView,
    /// The tenant, whose name is in every digest.
    tenant: String,
}

/// The last record of a chain.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HeadView {
    /// Its number; 0 for an empty chain.
    number: u64,
    /// Its digest, hex.
    digest: String,
}

fn time(name: &str, text: &Option<String>) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let parsed = OffsetDateTime::parse(text, &Rfc3339).ok();
    let micros = parsed.and_then(|at| u64::try_from(at.unix_timestamp_nanos() / 1000).ok());
    let wrong = || ApiError::BadRequest(format!("{name}: {text:?} is no time such as 2026-11-21T00:00:00Z"));
    micros.map(|micros| Some(Timestamp(micros))).ok_or_else(wrong)
}

/// Shows the tenant's audit log.
#[utoipa::path(
    get, path = "/api/v1/audit", tag = "access", operation_id = "listAudit", params(AuditQuery),
    responses((status = 200, body = AuditList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<AuditList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let limit = page_size(query.limit)?;
    let outcome = query.outcome.as_deref().map(|name| {
        Outcome::named(name).ok_or_else(|| ApiError::BadRequest("outcome: use done or denied".to_owned()))
    });
    let filter = AuditFilter {
        outcome: outcome.transpose()?,
        since: time("since", &query.since)?,
        until: time("until", &query.until)?,
        actor: query.actor.clone(),
        operation: query.operation.clone(),
    };
    let is_upwards = match query.first.as_deref() {
        None | Some("latest") => false,
        Some("oldest") => true,
        Some(_) => return Err(ApiError::BadRequest("first: use latest or oldest".to_owned())),
    };
    let all = [&query.actor, &query.operation, &query.outcome, &query.since, &query.until];
    let parts: Vec<&str> = all
        .into_iter()
        .flat_map(|part| [if part.is_some() { "1" } else { "0" }, part.as_deref().unwrap_or_default()])
        .chain([if is_upwards { "oldest" } else { "latest" }])
        .collect();
    let bound = Bound { tenant: &caller.tenant, operation: "listAudit", query: &parts };
    let from = match &query.cursor {
        None => None,
        Some(cursor) => {
            let position = bound.open(cursor)?;
            let number: Option<[u8; 8]> = position.try_into().ok();
            let wrong = || ApiError::BadRequest("cursor: use next_cursor of the page before".to_owned());
            Some(number.map(u64::from_be_bytes).ok_or_else(wrong)?)
        }
    };
    let page = match is_upwards {
        true => AuditPage::After(from.unwrap_or(0)),
        false => AuditPage::Before(from.unwrap_or(u64::MAX)),
    };
    let access = &shared.engines.access;
    // Before the records: what comes between is in them, and not missing from them.
    let head = access.audit_head(&caller.tenant).await?;
    let mut found = access.audit(&caller.tenant, &filter, page, limit + 1).await?;
    let next_cursor = (found.len() > limit).then(|| bound.seal(&found[limit - 1].number.to_be_bytes()));
    found.truncate(limit);
    Ok(Json(AuditList {
        items: found.into_iter().map(view).collect(),
        next_cursor,
        head: HeadView { number: head.number, digest: head.digest.to_string() },
        tenant: caller.tenant.to_string(),
    }))
}

fn view(record: Record) -> RecordView {
    let Record { number, entry, previous, digest } = record;
    RecordView {
        number,
        at: rfc3339(entry.at),
        at_us: entry.at.0,
        actor: entry.actor,
        role: entry.role.name(),
        remote_addr: entry.remote,
        operation: entry.operation,
        target: entry.target,
        before: entry.before,
        after: entry.after,
        outcome: entry.outcome.name(),
        previous: previous.to_string(),
        digest: digest.to_string(),
    }
}
