//! What a decision for an agent means for its standing in rollouts.

use super::standing::{Standing, Track, look};
use crate::agent::Agent;
use crate::desired::{Decided, Desired, Planner};
use crate::ids::{RolloutId, Timestamp};

/// What changed of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Followed {
    /// The agent's state is to be written.
    pub changed: bool,
    /// Where it stood and where it stands, by rollout.
    pub moves: Vec<(RolloutId, Option<Standing>, Option<Standing>)>,
    /// When to look again though the agent says nothing.
    pub due: Option<Timestamp>,
}

/// Brings an agent's standing in rollouts up to date. Its desired config and its offer already follow from
/// the same decision.
pub fn follow(agent: &mut Agent, decided: &Decided, planner: &Planner, now: Timestamp) -> Followed {
    let mut followed = Followed::default();
    hold(agent, decided, planner, &mut followed);
    let before = std::mem::take(&mut agent.state.rollouts);
    let mut after: Vec<Track> = Vec::with_capacity(decided.parts.len());
    for part in &decided.parts {
        let known = before.iter().find(|track| track.rollout == part.rollout);
        let found = look(known, part, agent, now);
        let stood = known.map(|track| track.standing);
        let stands = found.map(|(track, _)| track.standing);
        if stood != stands {
            followed.moves.push((part.rollout, stood, stands));
        }
        if let Some((track, due)) = found {
            after.push(track);
            followed.due = followed.due.into_iter().chain(due).min();
        }
    }
    // Who left a rollout that is under way is counted no more. What has ended keeps its counts.
    for track in &before {
        let is_left = !decided.parts.iter().any(|part| part.rollout == track.rollout);
        if is_left && planner.is_under_way(track.rollout) {
            followed.moves.push((track.rollout, Some(track.standing), None));
        }
    }
    followed.changed |= before != after;
    agent.state.rollouts = after;
    followed
}

/// Notes which changes the agent has reported, of those that it may keep.
fn hold(agent: &mut Agent, decided: &Decided, planner: &Planner, followed: &mut Followed) {
    let state = &mut agent.state;
    let count = state.holding.len();
    state.holding.retain(|id| planner.is_layer(*id));
    followed.changed |= state.holding.len() != count;
    if let Desired::Config(config) = &decided.desired
        && state.remote_config.hash.as_ref() == Some(&config.hash)
    {
        for id in &decided.given {
            followed.changed |= state.holding.insert(*id);
        }
    }
}
