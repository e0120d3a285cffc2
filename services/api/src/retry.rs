//! `POST /api/v1/agents/{instance_uid}/retry`: offer again what an agent could not apply.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use muster_domain::intent::IntentChange;
use muster_ports::store::IntentError;
use serde::Serialize;
use tracing::info;
use utoipa::ToSchema;

use crate::Shared;
use crate::caller::Caller;
use crate::problem::{ApiError, Problem};

/// How often the change is made again when another one came between.
const ATTEMPTS: usize = 5;

/// What was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RetryView {
    /// The agent.
    instance_uid: String,
    /// Number of the tenant's intent now.
    revision: u64,
}

/// Forgets that the agent could not apply its config, so that it is offered again: now, or when the
/// agent connects. An agent that runs what it should is offered nothing.
#[utoipa::path(
    post, path = "/api/v1/agents/{instance_uid}/retry", tag = "agents", operation_id = "retryAgent",
    params(("instance_uid" = String, Path, description = "The agent's instance_uid.")),
    responses(
        (status = 200, body = RetryView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn post(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(uid): Path<String>,
) -> Result<Json<RetryView>, ApiError> {
    let key = caller.key(&uid)?;
    if shared.engines.fleet.agent(&key).await?.is_none() {
        return Err(ApiError::NotFound(format!("there is no agent {uid}")));
    }
    let now = (shared.engines.clock)();
    for _ in 0..ATTEMPTS {
        let revisions = shared.engines.intent.revisions().await?;
        let change = IntentChange {
            planned_on: revisions.get(&key.tenant).copied().unwrap_or_default(),
            retries: BTreeSet::from([key.uid]),
            audit: Some(caller.entry("retryAgent", format!("agents/{}", key.uid), now)),
            ..IntentChange::default()
        };
        match shared.engines.intent.change(&key.tenant, &change).await {
            Ok(revision) => {
                info!(event = "retry_requested", tenant = %key.tenant, agent_id = %key.uid, revision = revision.0, "an operator asked that an agent is offered its config again");
                shared.wake().await;
                return Ok(Json(RetryView { instance_uid: key.uid.to_string(), revision: revision.0 }));
            }
            Err(IntentError::Moved) => {}
            Err(IntentError::Engine(error)) => return Err(error.into()),
        }
    }
    Err(ApiError::Conflict("others change the configuration at the same time: ask again".to_owned()))
}
