//! `GET /api/v1/agents`: the fleet.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use muster_domain::ids::{AgentKey, InstanceUid};
use muster_domain::liveness::{AgentFilter, Liveness};
use muster_domain::selector::{AgentSelector, Selector};
use muster_ports::ownership::Owned;
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::{IntoParams, ToSchema};

use crate::Shared;
use crate::caller::Caller;
use crate::cursor::Bound;
use crate::problem::{ApiError, Problem};
use crate::views::{self, AgentView};

/// Agents on a page unless the request says otherwise, and at most.
const PAGE: (usize, usize) = (100, 1000);

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Label selector over labels and attributes, such as `os.type=linux,team in (a,b)`.
    #[serde(default)]
    selector: String,
    /// Only agents that are one of these, with commas between: `connected`, `unreachable`, `disconnected`,
    /// `shut_down`.
    liveness: Option<String>,
    /// Only agents that have drifted from the config that they had applied, or (`false`) have not.
    drifted: Option<bool>,
    /// Agents on a page, 1 to 1000; 100 by default.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A page of agents.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AgentList {
    /// The agents, in order of their instance_uids.
    items: Vec<AgentView>,
    /// Where the next page begins; null on the last page.
    next_cursor: Option<String>,
}

/// Lists agents.
#[utoipa::path(
    get, path = "/api/v1/agents", tag = "agents", operation_id = "listAgents", params(ListQuery),
    responses((status = 200, body = AgentList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<AgentList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE.0);
    if !(1..=PAGE.1).contains(&limit) {
        return Err(ApiError::BadRequest(format!("limit: must be 1 to {}, not {limit}", PAGE.1)));
    }
    let requirements: Selector =
        query.selector.parse().map_err(|error| ApiError::BadRequest(format!("selector: {error}")))?;
    let selector = AgentSelector { requirements, ..AgentSelector::default() };
    let filter = AgentFilter { liveness: liveness(query.liveness.as_deref())?, drifted: query.drifted };
    let drifted = query.drifted.map_or("", |drifted| if drifted { "1" } else { "0" });
    let asked = [query.selector.as_str(), query.liveness.as_deref().unwrap_or_default(), drifted];
    let bound = Bound { tenant: &caller.tenant, operation: "listAgents", query: &asked };
    let after: Option<InstanceUid> = match &query.cursor {
        None => None,
        Some(cursor) => {
            let uid = InstanceUid::try_from(bound.open(cursor)?.as_slice());
            Some(uid.map_err(|error| ApiError::BadRequest(format!("cursor: {error}")))?)
        }
    };
    // One more than asked for tells whether there is another page.
    let mut found = shared.engines.fleet.find(&caller.tenant, &selector, &filter, after, limit + 1).await?;
    let next_cursor = (found.len() > limit).then(|| bound.seal(found[limit - 1].agent.key.uid.as_bytes()));
    found.truncate(limit);
    let keys: Vec<_> = found.iter().map(|stored| stored.agent.key.clone()).collect();
    let owned = look_up(&shared, &keys).await;
    let items =
        found.into_iter().zip(owned).map(|(stored, owned)| views::agent(stored, owned.as_ref())).collect();
    Ok(Json(AgentList { items, next_cursor }))
}

/// Shows one agent, with the config that it runs.
#[utoipa::path(
    get, path = "/api/v1/agents/{instance_uid}", tag = "agents", operation_id = "getAgent",
    params(("instance_uid" = String, Path, description = "The agent's instance_uid.")),
    responses((status = 200, body = AgentView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(uid): Path<String>,
) -> Result<Json<AgentView>, ApiError> {
    let key = caller.key(&uid)?;
    let Some((stored, effective)) = shared.engines.fleet.agent(&key).await? else {
        return Err(ApiError::NotFound(format!("there is no agent {uid}")));
    };
    let components = match stored.agent.state.components_key(&key.tenant) {
        Some(id) => shared.engines.components.components(&id).await?,
        None => None,
    };
    let owned = look_up(&shared, &[key]).await.pop().flatten();
    Ok(Json(views::agent(stored, owned.as_ref()).with_details(effective.unwrap_or_default(), components)))
}

fn liveness(names: Option<&str>) -> Result<BTreeSet<Liveness>, ApiError> {
    let names = names.into_iter().flat_map(|names| names.split(','));
    let read = |name: &str| name.parse().map_err(|error| ApiError::BadRequest(format!("liveness: {error}")));
    names.map(read).collect()
}

/// What ownership knows; nothing while it is away, as it is only a hint.
async fn look_up(shared: &Shared, keys: &[AgentKey]) -> Vec<Option<Owned>> {
    match shared.engines.ownership.look_up(keys).await {
        Ok(owned) => owned,
        Err(error) => {
            warn!(%error, "agents are shown without what ownership knows of them");
            vec![None; keys.len()]
        }
    }
}
