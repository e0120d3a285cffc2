//! `GET /api/v1/strategies`: how changes roll out.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use muster_domain::rollout::strategy::{DAYS, OnFailure, Promotion, Share, Size, Stage};
use muster_domain::rollout::{StoredStrategy, Strategy};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::Shared;
use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::views::rfc3339;

/// Rollout strategies.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StrategyList {
    /// The strategies, by name.
    items: Vec<StrategyView>,
}

/// A rollout strategy.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StrategyView {
    /// Its name.
    name: String,
    /// Its spec, with every default written out.
    #[schema(value_type = Object)]
    spec: Value,
    /// When it was first applied (RFC 3339).
    created_at: String,
    /// When it was last changed (RFC 3339).
    updated_at: String,
}

/// Lists rollout strategies.
#[utoipa::path(
    get, path = "/api/v1/strategies", tag = "rollouts", operation_id = "listStrategies",
    responses((status = 200, body = StrategyList))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
) -> Result<Json<StrategyList>, ApiError> {
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    Ok(Json(StrategyList { items: intent.strategies.values().map(view).collect() }))
}

/// Shows one rollout strategy.
#[utoipa::path(
    get, path = "/api/v1/strategies/{name}", tag = "rollouts", operation_id = "getStrategy",
    params(("name" = String, Path, description = "The strategy's name.")),
    responses((status = 200, body = StrategyView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<StrategyView>, ApiError> {
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let stored = intent.strategies.get(&name);
    stored
        .map(|stored| Json(view(stored)))
        .ok_or_else(|| ApiError::NotFound(format!("there is no strategy {name:?}")))
}

fn view(stored: &StoredStrategy) -> StrategyView {
    StrategyView {
        name: stored.name.clone(),
        spec: spec(&stored.strategy),
        created_at: rfc3339(stored.created_at),
        updated_at: rfc3339(stored.updated_at),
    }
}

/// A strategy in the words of its manifest.
pub(crate) fn spec(strategy: &Strategy) -> Value {
    let windows = strategy.windows.iter().map(|window| {
        let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        let days: Vec<_> = DAYS
            .iter()
            .enumerate()
            .filter(|(bit, _)| window.days & 1 << bit != 0)
            .map(|(_, day)| day)
            .collect();
        json!({"days": days, "from": time(window.from), "to": time(window.to)})
    });
    json!({
        "stages": strategy.stages.iter().map(stage).collect::<Vec<_>>(),
        "failure_policy": {
            "action": match strategy.on_failure {
                OnFailure::Rollback => "rollback",
                OnFailure::Pause => "pause",
            },
            "notification": strategy.notify,
        },
        "target_selector": strategy.target,
        "max_in_flight": strategy.max_in_flight,
        "apply_deadline_seconds": strategy.apply_deadline.as_secs_f64(),
        "windows": windows.collect::<Vec<_>>(),
    })
}

fn stage(stage: &Stage) -> Value {
    let criteria = &stage.criteria;
    let fraction = |share: Option<Share>| share.map(Share::fraction);
    let mut view = json!({
        "name": stage.name,
        "duration_seconds": stage.soak.as_secs_f64(),
        "promotion": match stage.promotion {
            Promotion::Automatic => "automatic",
            Promotion::Manual => "manual",
        },
        "deadline_seconds": stage.deadline.map(|deadline| deadline.as_secs_f64()),
        "success_criteria": {
            "error_rate_threshold": fraction(criteria.error_rate),
            "health_check_pass_rate": fraction(criteria.pass_rate),
            "comparison_margin": fraction(criteria.margin),
            "min_reports": criteria.min_reports.max(1),
        },
    });
    let (key, size) = match &stage.size {
        Size::Share(share) => ("percentage", json!((share.fraction() * 1e8).round() / 1e6)),
        Size::Count(count) => ("count", json!(count)),
        Size::Matching(selector) => ("selector", json!(selector)),
    };
    view[key] = size;
    view
}
