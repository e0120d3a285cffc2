//! `/api/v1/rollouts`: changes on their way to agents, and what people ask of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use muster_domain::ids::{InstanceUid, Partition, RolloutId, Tenant};
use muster_domain::rollout::act::{self, Command};
use muster_domain::rollout::planner::{Facts, plan};
use muster_domain::rollout::{Counts, Layer, Release, Rollout, Staged, Transition, Who};
use muster_domain::template::TypedValue;
use muster_ports::rollouts::StepError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;
use utoipa::{IntoParams, ToSchema};

use crate::Shared;
use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::strategies;
use crate::views::rfc3339;

/// Rollouts on a page unless the request says otherwise, and at most.
const PAGE: (usize, usize) = (100, 1000);
/// How often a command is decided again when the rollout moved meanwhile.
const ATTEMPTS: usize = 5;

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Rollouts on a page, 1 to 1000; 100 by default.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A page of rollouts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RolloutList {
    /// The rollouts, the last one first.
    items: Vec<RolloutView>,
    /// Where the next page begins; null on the last page.
    next_cursor: Option<String>,
}

/// A rollout.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RolloutView {
    /// Its id.
    id: String,
    /// The assignment.
    assignment: String,
    /// Name of the strategy.
    strategy: String,
    /// The strategy as it was when the rollout began.
    #[schema(value_type = Object)]
    strategy_spec: Value,
    /// What agents get.
    candidate: ReleaseView,
    /// What agents get that it does not reach, the first that is for an agent.
    base: Vec<LayerView>,
    /// Its state.
    state: &'static str,
    /// Number of the present stage, from 1.
    stage: usize,
    /// Name of the present stage.
    stage_name: String,
    /// How many stages there are.
    stages: usize,
    /// Every agent is exposed.
    everyone: bool,
    /// Agents that were admitted; with `everyone`, those that were before.
    exposed: u64,
    /// Agents that the stage admits; null until it has begun.
    target: Option<u64>,
    /// How long its agents were watched, in seconds.
    soaked_seconds: f64,
    /// How long they are watched, in seconds.
    soak_seconds: f64,
    /// Whether the soak clock runs.
    soak_running: bool,
    /// Agents by where they stand.
    counts: BTreeMap<&'static str, u64>,
    /// Why it goes no further now.
    waiting_on: Vec<String>,
    /// Why it was halted; null if it was not.
    failure: Option<String>,
    /// Who changed the assignment.
    author: String,
    /// When it was made (RFC 3339).
    created_at: String,
    /// When the present stage began (RFC 3339).
    opened_at: String,
    /// A newer rollout of the assignment is not there.
    is_latest: bool,
    /// What happened, oldest first.
    history: Vec<TransitionView>,
}

/// A template's version with values.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReleaseView {
    /// Name of the template.
    template: String,
    /// Its version.
    version: String,
    /// Values of its variables.
    #[schema(value_type = Object)]
    values: BTreeMap<String, TypedValue>,
}

/// What some agents have.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LayerView {
    /// `everyone`, `matching`, or `ledger`: those of an earlier rollout.
    who: &'static str,
    /// What they have.
    release: ReleaseView,
    /// The rollout that brought it; null for what was there before the first one.
    rollout: Option<String>,
    /// Nothing of it is sent any more.
    frozen: bool,
}

/// A change of state or stage.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TransitionView {
    /// When (RFC 3339).
    at: String,
    /// The state from then on.
    state: &'static str,
    /// Number of the stage from then on, from 1.
    stage: usize,
    /// Who: a principal, or `muster`.
    actor: String,
    /// Why.
    reason: String,
}

/// Agents of a rollout's ledger.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LedgerView {
    /// The agents, in order of their instance_uids.
    items: Vec<LedgerAgent>,
    /// Where the next page begins; null on the last page.
    next_cursor: Option<String>,
}

/// An agent of a rollout's ledger.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LedgerAgent {
    /// The agent.
    instance_uid: String,
    /// Where it stands; null if it is not watched for the rollout.
    standing: Option<&'static str>,
    /// What it goes back to; null if it had nothing, and keeps what it has.
    previous: Option<ReleaseView>,
    /// What the agent said last of a config that it could not apply; null if nothing.
    error_message: Option<String>,
}

/// Why a person asks something of a rollout.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Reason {
    /// Why, for people, at most 500 bytes; may be left out.
    reason: String,
}

/// Lists rollouts.
#[utoipa::path(
    get, path = "/api/v1/rollouts", tag = "rollouts", operation_id = "listRollouts", params(ListQuery),
    responses((status = 200, body = RolloutList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<RolloutList>, ApiError> {
    let (limit, before) = page_of(query)?;
    let before = before.map(|cursor| id(&cursor)).transpose()?;
    let mut found = shared.engines.rollouts.rollouts(&caller.tenant, before, limit + 1).await?;
    let next_cursor = (found.len() > limit).then(|| found[limit - 1].id.to_string());
    found.truncate(limit);
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let mut items = Vec::with_capacity(found.len());
    for rollout in found {
        let is_latest = is_latest(&intent.rollouts, &rollout);
        items.push(view(&shared, &caller.tenant, rollout, is_latest).await?);
    }
    Ok(Json(RolloutList { items, next_cursor }))
}

/// Shows one rollout.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{id}", tag = "rollouts", operation_id = "getRollout",
    params(("id" = String, Path, description = "The rollout's id.")),
    responses((status = 200, body = RolloutView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<RolloutView>, ApiError> {
    let rollout = find(&shared, &caller.tenant, &text).await?;
    let intent = shared.engines.intent.intent(&caller.tenant).await?;
    let is_latest = is_latest(&intent.rollouts, &rollout);
    Ok(Json(view(&shared, &caller.tenant, rollout, is_latest).await?))
}

/// Lists the agents that a rollout has admitted, with what each goes back to.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{id}/agents", tag = "rollouts", operation_id = "listRolloutAgents",
    params(("id" = String, Path, description = "The rollout's id."), ListQuery),
    responses((status = 200, body = LedgerView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn agents(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<LedgerView>, ApiError> {
    let (limit, after) = page_of(query)?;
    let bad_cursor = |_| ApiError::BadRequest("cursor: use next_cursor of the page before".to_owned());
    let after: Option<InstanceUid> = after.map(|cursor| cursor.parse()).transpose().map_err(bad_cursor)?;
    let rollout = find(&shared, &caller.tenant, &text).await?;
    let tenant = &caller.tenant;
    let ledger = shared.engines.rollouts.ledger(tenant, rollout.id).await?;
    let mut base = BTreeMap::new();
    for layer in &rollout.base {
        if let Who::Ledger(of) = layer.who {
            base.insert(of, shared.engines.rollouts.ledger(tenant, of).await?);
        }
    }
    let mut uids = ledger.iter().filter(|uid| after.is_none_or(|after| **uid > after)).copied();
    let mut items = Vec::new();
    for uid in uids.by_ref().take(limit) {
        let key = muster_domain::ids::AgentKey { tenant: tenant.clone(), uid };
        let stored = shared.engines.fleet.agent(&key).await?.map(|(stored, _)| stored);
        let track = stored
            .as_ref()
            .and_then(|stored| stored.agent.state.rollouts.iter().find(|track| track.rollout == rollout.id));
        let has = |layer: &&Layer| match &layer.who {
            Who::Everyone => true,
            Who::Matching(selector) => stored.as_ref().is_some_and(|stored| {
                muster_domain::desired::matches(selector, &stored.agent, &stored.labels)
            }),
            Who::Ledger(of) => {
                let holds = stored.as_ref().is_some_and(|stored| stored.agent.state.holding.contains(of));
                base.get(of).is_some_and(|ledger| ledger.contains(&uid)) && (!layer.frozen || holds)
            }
        };
        let failed = stored.as_ref().and_then(|stored| stored.agent.state.failed.as_ref());
        items.push(LedgerAgent {
            instance_uid: uid.to_string(),
            standing: track.map(|track| track.standing.name()),
            previous: rollout.base.iter().find(has).map(|layer| release(&layer.release)),
            error_message: failed.map(|failed| failed.error_message.clone()),
        });
    }
    let next_cursor = uids.next().and_then(|_| items.last().map(|last| last.instance_uid.clone()));
    Ok(Json(LedgerView { items, next_cursor }))
}

/// A handler for each command.
macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident $path:literal $operation:literal $command:expr;)*) => {$(
        $(#[$doc])*
        #[utoipa::path(
            post, path = $path, tag = "rollouts", operation_id = $operation,
            params(("id" = String, Path, description = "The rollout's id.")),
            request_body(content = Reason, content_type = "application/json"),
            responses(
                (status = 200, body = RolloutView),
                (status = 404, body = Problem, content_type = "application/problem+json"),
                (status = 409, body = Problem, content_type = "application/problem+json")
            )
        )]
        pub(crate) async fn $name(
            State(shared): State<Arc<Shared>>,
            caller: Caller,
            Path(text): Path<String>,
            body: Bytes,
        ) -> Result<Json<RolloutView>, ApiError> {
            command(&shared, &caller, $command, $operation, &text, &body).await
        }
    )*};
}

commands! {
    /// Lets a rollout begin that waits for approval. Its author may not.
    approve "/api/v1/rollouts/{id}/approve" "approveRollout" Command::Approve;
    /// Sends nothing more of a rollout, and stops its soak clock.
    pause "/api/v1/rollouts/{id}/pause" "pauseRollout" Command::Pause;
    /// Goes on with a rollout that is paused. Its stage is judged anew.
    resume "/api/v1/rollouts/{id}/resume" "resumeRollout" Command::Resume;
    /// Goes to the next stage now, whatever the present one says.
    promote "/api/v1/rollouts/{id}/promote" "promoteRollout" Command::Promote;
    /// Ends a rollout where it stands: who has the change keeps it.
    abort "/api/v1/rollouts/{id}/abort" "abortRollout" Command::Abort;
    /// Gives agents back what they had before.
    rollback "/api/v1/rollouts/{id}/rollback" "rollBackRollout" Command::Rollback;
}

/// Does what a person asks. In a state in which that cannot be asked it is refused with the reason.
async fn command(
    shared: &Shared,
    caller: &Caller,
    command: Command,
    operation: &str,
    text: &str,
    body: &[u8],
) -> Result<Json<RolloutView>, ApiError> {
    let Reason { reason } = match body.is_empty() {
        true => Reason::default(),
        false => serde_json::from_slice(body).map_err(|error| {
            ApiError::BadRequest(format!("the body is not {{\"reason\": \"...\"}}: {error}"))
        })?,
    };
    let tenant = &caller.tenant;
    for _ in 0..ATTEMPTS {
        let rollout = find(shared, tenant, text).await?;
        let intent = shared.engines.intent.intent(tenant).await?;
        let is_latest = is_latest(&intent.rollouts, &rollout);
        let now = (shared.engines.clock)();
        let mut step = act::command(&rollout, command, &caller.actor, &reason, is_latest, now)
            .map_err(|refused| ApiError::Conflict(refused.to_string()))?;
        let state = |rollout: &Rollout| json!({"state": rollout.state, "stage": rollout.stage + 1});
        let mut after = state(&step.after);
        after["reason"] = reason.clone().into();
        let entry = caller.entry(operation, format!("rollouts/{}", rollout.id), now);
        step.audit = Some(entry.with_states(state(&rollout).to_string(), after.to_string()));
        match shared.engines.rollouts.step(tenant, &step).await {
            Ok(after) => {
                let (actor, command) = (&caller.actor, command.name());
                info!(event = "rollout_commanded", %tenant, rollout = %after.id, assignment = after.assignment, command, actor, reason, state = %after.state, "a person moved a rollout");
                shared.wake().await;
                return Ok(Json(view(shared, tenant, after, is_latest).await?));
            }
            Err(StepError::Moved) => {}
            Err(StepError::Engine(error)) => return Err(error.into()),
        }
    }
    Err(ApiError::Conflict("the rollout moves at the same time: look at it, and ask again".to_owned()))
}

fn page_of(query: Result<Query<ListQuery>, QueryRejection>) -> Result<(usize, Option<String>), ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE.0);
    if !(1..=PAGE.1).contains(&limit) {
        return Err(ApiError::BadRequest(format!("limit: must be 1 to {}, not {limit}", PAGE.1)));
    }
    Ok((limit, query.cursor))
}

fn id(text: &str) -> Result<RolloutId, ApiError> {
    text.parse().map_err(|error| ApiError::BadRequest(format!("{error}")))
}

async fn find(shared: &Shared, tenant: &Tenant, text: &str) -> Result<Rollout, ApiError> {
    let found = shared.engines.rollouts.rollout(tenant, id(text)?).await?;
    found.ok_or_else(|| ApiError::NotFound(format!("there is no rollout {text}")))
}

fn is_latest(staged: &BTreeMap<String, Staged>, rollout: &Rollout) -> bool {
    staged.get(&rollout.assignment).is_some_and(|staged| staged.rollout.id == rollout.id)
}

async fn view(
    shared: &Shared,
    tenant: &Tenant,
    rollout: Rollout,
    is_latest: bool,
) -> Result<RolloutView, ApiError> {
    let stored = shared.engines.rollouts.rollout_counts(tenant, rollout.id).await?;
    let mut counts = Counts::default();
    for partition in Partition::all() {
        let key = (shared.settings.cell.clone(), partition);
        let known = stored.get(&key).cloned().unwrap_or_default();
        match partition.number() {
            0 => counts = known,
            _ => counts.add(&known),
        }
    }
    let now = (shared.engines.clock)();
    let facts = Facts { counts: &counts, read_through: None, population: None, is_assigned: true };
    let waiting_on = plan(&rollout, &facts, now).waiting_on.iter().map(ToString::to_string).collect();
    let stage = rollout.present_stage();
    let soak = stage.map(|stage| stage.soak).unwrap_or_default();
    Ok(RolloutView {
        id: rollout.id.to_string(),
        assignment: rollout.assignment.clone(),
        strategy: rollout.strategy_name.clone(),
        strategy_spec: strategies::spec(&rollout.strategy),
        candidate: release(&rollout.candidate),
        base: rollout.base.iter().map(layer).collect(),
        state: rollout.state.name(),
        stage: rollout.stage + 1,
        stage_name: stage.map(|stage| stage.name.clone()).unwrap_or_default(),
        stages: rollout.strategy.stages.len(),
        everyone: rollout.everyone,
        exposed: rollout.exposed,
        target: rollout.target,
        soaked_seconds: rollout.soak.elapsed(now).min(soak).as_secs_f64(),
        soak_seconds: soak.as_secs_f64(),
        soak_running: rollout.soak.running_since.is_some(),
        counts: counts.by.iter().map(|(standing, count)| (standing.name(), *count)).collect(),
        waiting_on,
        failure: rollout.failure.clone(),
        author: rollout.author.clone(),
        created_at: rfc3339(rollout.created_at),
        opened_at: rfc3339(rollout.opened_at),
        is_latest,
        history: rollout.history.iter().map(transition).collect(),
    })
}

fn release(release: &Release) -> ReleaseView {
    let Release { template, version, values, .. } = release.clone();
    ReleaseView { template, version, values }
}

fn layer(layer: &Layer) -> LayerView {
    LayerView {
        who: match layer.who {
            Who::Everyone => "everyone",
            Who::Matching(_) => "matching",
            Who::Ledger(_) => "ledger",
        },
        release: release(&layer.release),
        rollout: layer.of.map(|id| id.to_string()),
        frozen: layer.frozen,
    }
}

fn transition(transition: &Transition) -> TransitionView {
    TransitionView {
        at: rfc3339(transition.at),
        state: transition.state.name(),
        stage: transition.stage + 1,
        actor: transition.actor.clone(),
        reason: transition.reason.clone(),
    }
}
