//! Which rollouts a change of intent begins, and which it supersedes.

use uuid::Uuid;

use super::{
    Layer, MAX_LAYERS, Release, Rollout, SYSTEM, SoakClock, Staged, State, Step, Strategy, Transition, Who,
};
use crate::ids::{IntentRevision, RolloutId, Timestamp};
use crate::intent::{Assignment, Intent, IntentChange};

/// Who changes the intent, and by which rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The principal.
    pub actor: String,
    /// A change waits for another person's approval.
    pub approval_required: bool,
}

/// Adds to a change what it means for rollouts: each assignment with a strategy whose release changes gets a
/// rollout, which supersedes the one before; an assignment that is changed without a strategy ends its own.
pub fn stage_change(
    before: &Intent,
    change: &mut IntentChange,
    origin: &Origin,
    now: Timestamp,
    mut new_id: impl FnMut() -> Uuid,
) {
    let after = before.with(change);
    for name in &change.removed_assignments {
        // One of the same name that is made later begins anew.
        let staged = before.rollouts.get(name).filter(|staged| staged.rollout.is_in_effect());
        change.rollouts.extend(staged.map(|old| superseded(old, origin, now)));
    }
    for assignment in after.assignments.values() {
        let known = before.assignments.get(&assignment.name);
        let Some(wanted) = Release::of(&after, assignment) else { continue };
        // What the agents get from rollouts, if they do.
        let staged = before.rollouts.get(&assignment.name).filter(|staged| staged.rollout.is_in_effect());
        let strategy = assignment.strategy.as_ref().and_then(|name| after.strategies.get(name));
        let Some(stored) = strategy else {
            // From here on every agent gets what the assignment says.
            change.rollouts.extend(staged.map(|old| superseded(old, origin, now)));
            continue;
        };
        let present = known.and_then(|known| Release::of(before, known));
        let given = staged.map(|staged| &staged.rollout.candidate).or(present.as_ref());
        if given == Some(&wanted) {
            continue;
        }
        let base = match staged {
            Some(staged) => base_over(staged),
            None => {
                let layer = |release| Layer { who: Who::Everyone, release, of: None, frozen: false };
                present.map(layer).into_iter().collect()
            }
        };
        let under_way = staged.filter(|staged| staged.rollout.state.is_active());
        change.rollouts.extend(under_way.map(|old| superseded(old, origin, now)));
        let id = RolloutId(new_id());
        change.new_rollouts.push(begin(id, assignment, stored.strategy.clone(), wanted, base, origin, now));
    }
}

fn begin(
    id: RolloutId,
    assignment: &Assignment,
    strategy: Strategy,
    candidate: Release,
    base: Vec<Layer>,
    origin: &Origin,
    now: Timestamp,
) -> Rollout {
    let state = if origin.approval_required { State::PendingApproval } else { State::Running };
    Rollout {
        id,
        assignment: assignment.name.clone(),
        strategy_name: assignment.strategy.clone().unwrap_or_default(),
        strategy,
        candidate,
        base,
        state,
        stage: 0,
        everyone: false,
        exposed: 0,
        target: None,
        opened_at: now,
        soak: SoakClock::default(),
        revision: IntentRevision::default(),
        created_at: now,
        author: origin.actor.clone(),
        failure: None,
        history: vec![Transition {
            at: now,
            state,
            stage: 0,
            actor: origin.actor.clone(),
            reason: "the assignment's template or values changed".to_owned(),
        }],
        version: 1,
    }
}

/// What agents have when the next rollout begins. Who was given a change that did not get to its end keeps it
/// until the new one reaches them.
fn base_over(staged: &Staged) -> Vec<Layer> {
    let old = &staged.rollout;
    let ended =
        match old.state.is_active() && old.state != State::RollingBack && old.state != State::PendingApproval
        {
            true => Rollout { state: State::Superseded, ..old.clone() },
            false if old.state == State::RollingBack => Rollout { state: State::RolledBack, ..old.clone() },
            false => old.clone(),
        };
    let has_agents = |layer: &Layer| match layer.who {
        Who::Ledger(id) => staged.ledgers.get(&id).is_some_and(|ledger| !ledger.is_empty()),
        _ => true,
    };
    let mut layers: Vec<_> = ended.layers().into_iter().filter(has_agents).collect();
    // A target that came again hides the older layer of the same agents.
    let mut seen = Vec::new();
    layers.retain(|layer| match layer.frozen || seen.contains(&layer.who) {
        true => layer.frozen,
        false => {
            seen.push(layer.who.clone());
            true
        }
    });
    if layers.len() > MAX_LAYERS {
        let last = layers.pop();
        layers.truncate(MAX_LAYERS - 1);
        layers.extend(last);
    }
    layers
}

fn superseded(staged: &Staged, origin: &Origin, now: Timestamp) -> Step {
    let old = &staged.rollout;
    let mut after = super::planner::next(old);
    after.soak.stop(now);
    let actor = if origin.actor.is_empty() { SYSTEM } else { &origin.actor };
    after.note(now, State::Superseded, actor, "a newer change of the assignment took its place");
    Step { after, admitted: Vec::new(), moves_intent: true, raises_floor: true, audit: None }
}
