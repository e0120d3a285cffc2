//! Moves rollouts: looks at what is known, asks the planner, takes the step that it says.
//!
//! Every control does so, for all rollouts: of the steps that several come to, the store takes one. Nothing is
//! remembered here that another control, or this one after a crash, would not find out again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_domain::capabilities::AgentCapabilities;
use muster_domain::desired::matches;
use muster_domain::ids::{InstanceUid, Partition, RolloutId, Tenant, Timestamp};
use muster_domain::rollout::cohort::{Candidate, Population};
use muster_domain::rollout::planner::{Facts, Need, Plan, plan, stage_selector};
use muster_domain::rollout::{Counts, Rollout, State};
use muster_ports::EngineError;
use muster_ports::bus::Subject;
use muster_ports::log::Position;
use muster_ports::rollouts::StepError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::Shared;
use crate::changes::Changes;

/// How often rollouts are looked at while one is under way: counts of other controls' partitions come so.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Least time between two looks that news of this control's own partitions lead to.
const REST: Duration = Duration::from_millis(50);
/// Longest time that one rollout is worked on before it is the next one's turn.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the agents of a tenant that were looked up are taken for all that there are.
const POPULATION_FOR: Duration = Duration::from_secs(5);
/// Agents read at a time.
const PAGE: usize = 500;
/// Steps taken of one rollout in one look.
const STEPS: usize = 8;

/// What workers tell.
#[derive(Default)]
pub(crate) struct Rollouts {
    counted: Changes,
}

impl Rollouts {
    /// Agents stand elsewhere than before.
    pub(crate) fn counted(&self) {
        self.counted.happen();
    }
}

/// What one control found out of a rollout's agents, so as not to look it up at every look.
#[derive(Default)]
struct Known {
    population: Option<(Instant, Vec<Candidate>)>,
    /// The stage that these were looked up for.
    stage: usize,
    reading: Option<Reading>,
}

/// Where each partition's log ended at some time.
struct Reading {
    at: Timestamp,
    /// By partition: epoch and position. One that was folded as far is no more in it.
    ends: BTreeMap<Partition, (u64, Position)>,
}

/// Looks at rollouts until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut counted = shared.rollouts.counted.watch();
    let mut changed = shared.intents.watch();
    let mut known: BTreeMap<RolloutId, Known> = BTreeMap::new();
    loop {
        let active = match look(&shared, &mut known).await {
            Ok(active) => active,
            Err(error) => {
                if let Some(more) = shared.outages.rollouts.tell((shared.engines.clock)()) {
                    warn!(%error, more, "rollouts stand still: they could not be looked at");
                }
                true
            }
        };
        let pause = if active { LOOK_EVERY } else { shared.settings.poll_every };
        // Each of them leads to the same look, so that none can starve another.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = counted.changed() => {}
            () = changed.changed() => {}
            () = tokio::time::sleep(pause) => continue,
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REST) => {}
        }
        counted.mark_seen();
    }
}

/// Looks at every rollout that is not at its end. Whether there is any.
async fn look(shared: &Shared, known: &mut BTreeMap<RolloutId, Known>) -> Result<bool, EngineError> {
    let active = shared.engines.rollouts.active_rollouts().await?;
    known.retain(|id, _| active.iter().any(|(_, rollout)| rollout.id == *id));
    let is_any = !active.is_empty();
    for (tenant, rollout) in active {
        let id = rollout.id;
        let work = advance(shared, &tenant, rollout, known.entry(id).or_default());
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(result) => result?,
            Err(_) => warn!(%tenant, rollout = %id, "a rollout could not be looked at in time"),
        }
    }
    Ok(is_any)
}

/// Takes steps until the planner says to wait.
async fn advance(
    shared: &Shared,
    tenant: &Tenant,
    mut rollout: Rollout,
    known: &mut Known,
) -> Result<(), EngineError> {
    let mut population: Option<Population> = None;
    for _ in 0..STEPS {
        let now = (shared.engines.clock)();
        let read_through = read_through(shared, known).await?;
        let counts = counts(shared, tenant, rollout.id).await?;
        let is_assigned = shared.intents.is_staged(tenant, &rollout);
        let facts = Facts { counts: &counts, read_through, population: population.as_ref(), is_assigned };
        let Plan { step, need, .. } = plan(&rollout, &facts, now);
        match need {
            Some(Need::Population) if population.is_none() => {
                population = Some(look_up(shared, tenant, &rollout, known).await?);
                continue;
            }
            Some(Need::ReadThrough(until)) => {
                if known.reading.as_ref().is_none_or(|reading| reading.at < until) {
                    known.reading = Some(note_ends(shared, now).await?);
                    continue;
                }
                return Ok(());
            }
            Some(Need::Population) | None => {}
        }
        let Some(step) = step else { return Ok(()) };
        let before = rollout;
        rollout = match shared.engines.rollouts.step(tenant, &step).await {
            Ok(after) => after,
            // Another control was faster: what it did is looked at the next time.
            Err(StepError::Moved) => return Ok(()),
            Err(StepError::Engine(error)) => return Err(error),
        };
        population = None;
        tell(shared, tenant, &before, &rollout);
        if step.moves_intent {
            // Floors first, then offers: the refresh does it in this order.
            shared.intents.refresh(shared).await?;
            let wake = Subject::Wake(shared.settings.cell.clone());
            if let Err(error) = shared.engines.bus.publish(&wake, Default::default()).await {
                debug!(%error, "other controls were not woken; they look by themselves");
            }
        }
        if !rollout.state.is_active() {
            return Ok(());
        }
    }
    Ok(())
}

/// Logs and tells listeners what a step did.
fn tell(shared: &Shared, tenant: &Tenant, before: &Rollout, after: &Rollout) {
    let news = after
        .history
        .len()
        .saturating_sub(before.history.len())
        .max(usize::from(after.history.last() != before.history.last()));
    for transition in after.history.iter().rev().take(news).rev() {
        let (rollout, assignment, state) = (after.id, &after.assignment, transition.state);
        let (stage, actor, reason) = (transition.stage, &transition.actor, &transition.reason);
        if after.failure.is_some() && matches!(state, State::Paused | State::RollingBack) {
            warn!(event = "rollout_halted", %tenant, %rollout, assignment, %state, stage, actor, reason, "a rollout was halted");
        } else {
            info!(event = "rollout_moved", %tenant, %rollout, assignment, %state, stage, actor, reason, "a rollout went on");
        }
        shared.metrics.rollouts.with_label_values(&[state.name()]).inc();
        shared.events.tell_rollout(tenant, after, transition);
    }
}

/// Where the agents of all partitions stand. One that has not said is as if it had not looked.
async fn counts(shared: &Shared, tenant: &Tenant, id: RolloutId) -> Result<Counts, EngineError> {
    let stored = shared.engines.rollouts.rollout_counts(tenant, id).await?;
    let mut all: Option<Counts> = None;
    for partition in Partition::all() {
        let key = (shared.settings.cell.clone(), partition);
        let counts = stored.get(&key).cloned().unwrap_or_default();
        match &mut all {
            Some(all) => all.add(&counts),
            None => all = Some(counts),
        }
    }
    let mut all = all.unwrap_or_default();
    // Other cells work alone: what they say counts, and nobody waits for them.
    for ((cell, _), counts) in &stored {
        if *cell != shared.settings.cell {
            all.add(&Counts { looked_at: all.looked_at, ..counts.clone() });
        }
    }
    Ok(all)
}

/// The agents that a rollout may reach, and its ledger.
async fn look_up(
    shared: &Shared,
    tenant: &Tenant,
    rollout: &Rollout,
    known: &mut Known,
) -> Result<Population, EngineError> {
    let exposed = shared.engines.rollouts.ledger(tenant, rollout.id).await?;
    if let Some((at, candidates)) = &known.population
        && known.stage == rollout.stage
        && at.elapsed() < POPULATION_FOR
    {
        return Ok(Population { candidates: candidates.clone(), exposed });
    }
    let intent = shared.engines.intent.intent(tenant).await?;
    let mut candidates = Vec::new();
    if let Some(assignment) = intent.assignments.get(&rollout.assignment) {
        let target = rollout.strategy.target.as_ref();
        let of_stage = rollout.present_stage().and_then(stage_selector);
        let mut after: Option<InstanceUid> = None;
        loop {
            let page = shared.engines.fleet.page(tenant, &assignment.selector, after, PAGE).await?;
            for stored in &page {
                let (agent, labels) = (&stored.agent, &stored.labels);
                let is_reachable = target.is_none_or(|target| matches(target, agent, labels))
                    && agent.state.capabilities.has(AgentCapabilities::ACCEPTS_REMOTE_CONFIG);
                if is_reachable {
                    let is_of_stage = of_stage.is_none_or(|selector| matches(selector, agent, labels));
                    candidates.push(Candidate { uid: agent.key.uid, is_of_stage });
                }
            }
            after = page.last().map(|stored| stored.agent.key.uid);
            if page.len() < PAGE {
                break;
            }
        }
    }
    known.population = Some((Instant::now(), candidates.clone()));
    known.stage = rollout.stage;
    Ok(Population { candidates, exposed })
}

/// Notes where every partition's log ends now.
async fn note_ends(shared: &Shared, now: Timestamp) -> Result<Reading, EngineError> {
    let mut ends = BTreeMap::new();
    for partition in Partition::all() {
        let row = shared.engines.fold.partition(&shared.settings.cell, partition).await?;
        let end = shared.engines.log.last(partition).await?;
        ends.insert(partition, (row.epoch, end));
    }
    Ok(Reading { at: now, ends })
}

/// The time before which everything that was reported is folded, if that is known.
async fn read_through(shared: &Shared, known: &mut Known) -> Result<Option<Timestamp>, EngineError> {
    let Some(reading) = &mut known.reading else { return Ok(None) };
    let waiting: Vec<_> = reading.ends.iter().map(|(partition, end)| (*partition, *end)).collect();
    for (partition, (epoch, end)) in waiting {
        let row = shared.engines.fold.partition(&shared.settings.cell, partition).await?;
        if row.epoch != epoch {
            // Another log, or a new count of this one: what was noted says nothing.
            known.reading = None;
            return Ok(None);
        }
        if row.position >= end {
            reading.ends.remove(&partition);
        }
    }
    Ok(reading.ends.is_empty().then_some(reading.at))
}
