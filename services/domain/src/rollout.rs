//! Rollouts: a change of an assignment that reaches its agents in stages, each judged before the next.
//!
//! A [`Rollout`] is a value. What is observed of its agents are [`Counts`]; what to do next, or why to wait,
//! is decided by [`plan`](planner::plan); what people may ask of it by [`command`](act::command).

pub mod act;
pub mod cohort;
pub mod create;
pub mod follow;
pub mod planner;
pub mod standing;
pub mod strategy;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::Entry;
use crate::ids::{InstanceUid, IntentRevision, RolloutId, Timestamp};
use crate::intent::{Assignment, Intent};
use crate::selector::AgentSelector;
use crate::template::TypedValue;
pub use standing::{Counts, Standing};
pub use strategy::Strategy;

/// Transitions that a rollout keeps: the first ones and the last ones.
pub const MAX_HISTORY: usize = 200;
/// Layers that may lie under a rollout; the lowest but the last one are dropped where there are more.
pub const MAX_LAYERS: usize = 16;

/// What an assignment gives: a template's version with values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Name of the template.
    pub template: String,
    /// Its version, always a certain one.
    pub version: String,
    /// Values of the template's variables.
    pub values: BTreeMap<String, TypedValue>,
    /// Name of the file made from the template's `config`; the template's name where absent.
    pub file: Option<String>,
}

impl Release {
    /// What an assignment gives by an intent, as if there were no rollouts.
    pub fn of(intent: &Intent, assignment: &Assignment) -> Option<Self> {
        let revision = intent.template(&assignment.template, assignment.version.as_deref())?;
        Some(Self {
            template: assignment.template.clone(),
            version: revision.version.clone(),
            values: assignment.values.clone(),
            file: assignment.file.clone(),
        })
    }
}

/// Which of an assignment's agents a layer is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// All of them.
    Everyone,
    /// Those that also match this.
    Matching(AgentSelector),
    /// Those in the ledger of this rollout.
    Ledger(RolloutId),
}

/// A release and the agents that get it, where no layer above is for them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// For whom.
    pub who: Who,
    /// What they get.
    pub release: Release,
    /// The rollout that brought it; none for what was there before the first one.
    pub of: Option<RolloutId>,
    /// Nothing of it is sent: who has it keeps it, others get what lies under it.
    pub frozen: bool,
}

/// What state a rollout is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for a person who approves it.
    PendingApproval,
    /// Agents of the stage apply the change.
    Running,
    /// Agents of the stage have applied the change, and are watched.
    Soaking,
    /// Nothing is sent and no clock runs until a person says so.
    Paused,
    /// Agents get back what they had before.
    RollingBack,
    /// Every agent that can be reached has what it had before.
    RolledBack,
    /// Every agent gets the change.
    Completed,
    /// A person ended it where it stood.
    Aborted,
    /// A newer change took its place.
    Superseded,
}

impl State {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PendingApproval => "pending_approval",
            Self::Running => "running",
            Self::Soaking => "soaking",
            Self::Paused => "paused",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::Superseded => "superseded",
        }
    }

    /// Whether something still happens by itself or is waited for.
    pub fn is_active(self) -> bool {
        matches!(
            self,
            Self::PendingApproval | Self::Running | Self::Soaking | Self::Paused | Self::RollingBack
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A change of state or stage: when, by whom, why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// When.
    pub at: Timestamp,
    /// The state from then on.
    pub state: State,
    /// Number of the stage from then on, from 0.
    pub stage: usize,
    /// Who: a principal, or [`SYSTEM`].
    pub actor: String,
    /// Why, for people.
    pub reason: String,
}

/// The actor of what happens by itself.
pub const SYSTEM: &str = "muster";

/// How long the agents of a stage have been watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SoakClock {
    /// Time that counts, before it began to run last.
    pub counted: Duration,
    /// Since when it runs, if it does.
    pub running_since: Option<Timestamp>,
}

impl SoakClock {
    /// How much of the soak is over at this time.
    pub fn elapsed(&self, now: Timestamp) -> Duration {
        self.counted + self.running_since.map(|since| now.since(since)).unwrap_or_default()
    }

    /// When the soak of this length is over, if the clock goes on running.
    pub fn ends(&self, length: Duration) -> Option<Timestamp> {
        Some(self.running_since?.plus(length.saturating_sub(self.counted)))
    }

    fn start(&mut self, now: Timestamp) {
        self.running_since.get_or_insert(now);
    }

    fn stop(&mut self, now: Timestamp) {
        self.counted = self.elapsed(now);
        self.running_since = None;
    }
}

/// A change of an assignment on its way to agents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Its id.
    pub id: RolloutId,
    /// Name of the assignment.
    pub assignment: String,
    /// Name of the strategy.
    pub strategy_name: String,
    /// The strategy as it was when the rollout began.
    pub strategy: Strategy,
    /// What agents are to get.
    pub candidate: Release,
    /// What agents get that it does not reach: the first layer that is for an agent.
    pub base: Vec<Layer>,
    /// Its state.
    pub state: State,
    /// The present stage, from 0.
    pub stage: usize,
    /// Every agent is exposed, those that come later too.
    pub everyone: bool,
    /// Agents in the ledger.
    pub exposed: u64,
    /// Agents that the ledger is to have in this stage; none until the stage has been filled a first time.
    pub target: Option<u64>,
    /// When the stage was opened.
    pub opened_at: Timestamp,
    /// How long its agents have been watched.
    pub soak: SoakClock,
    /// The intent revision at which what agents get from it changed last. Set by the store.
    pub revision: IntentRevision,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who changed the assignment.
    pub author: String,
    /// Why it was halted, if it was.
    pub failure: Option<String>,
    /// What happened to it, oldest first.
    pub history: Vec<Transition>,
    /// Raised by every write.
    pub version: u64,
}

/// What a rollout means for agents now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Exposed agents are offered the candidate.
    Forward,
    /// Exposed agents are offered nothing of it, and keep it if they have it.
    Halted,
    /// Exposed agents are offered what they had before.
    Back,
}

impl Rollout {
    /// Whether it says what agents get, if it is its assignment's latest. Nothing but a change that does not
    /// roll out supersedes the latest one: from then on all agents get what the assignment says.
    pub fn is_in_effect(&self) -> bool {
        self.state != State::Superseded
    }

    /// The present stage. There always is one: a strategy has at least one stage.
    pub fn present_stage(&self) -> Option<&strategy::Stage> {
        self.strategy.stages.get(self.stage)
    }

    /// Whether the present stage is the last one.
    pub fn is_last_stage(&self) -> bool {
        self.stage + 1 >= self.strategy.stages.len()
    }

    /// What it means for agents now; none if nobody is watched for it.
    pub fn mode(&self) -> Option<Mode> {
        match self.state {
            State::Running | State::Soaking => Some(Mode::Forward),
            State::Paused => Some(Mode::Halted),
            State::RollingBack => Some(Mode::Back),
            _ => None,
        }
    }

    /// For whom the candidate is.
    pub fn who(&self) -> Who {
        match (self.everyone, &self.strategy.target) {
            (true, None) => Who::Everyone,
            (true, Some(target)) => Who::Matching(target.clone()),
            (false, _) => Who::Ledger(self.id),
        }
    }

    /// What agents get, the first layer that is for an agent.
    pub fn layers(&self) -> Vec<Layer> {
        let candidate =
            |frozen| Layer { who: self.who(), release: self.candidate.clone(), of: Some(self.id), frozen };
        let top = match self.state {
            State::PendingApproval | State::RollingBack | State::RolledBack => None,
            State::Running | State::Soaking | State::Completed => Some(candidate(false)),
            // Nothing of a change that was stopped or superseded is sent any more, unless all have it.
            State::Paused | State::Aborted => Some(candidate(true)),
            State::Superseded => Some(candidate(!self.everyone)),
        };
        let covers_all = top.as_ref().is_some_and(|layer| layer.who == Who::Everyone && !layer.frozen);
        let base = if covers_all { &[][..] } else { &self.base };
        top.into_iter().chain(base.iter().cloned()).collect()
    }

    /// The ledgers that the layers speak of.
    pub fn ledgers(&self) -> BTreeSet<RolloutId> {
        let of_base = self.base.iter().filter_map(|layer| match layer.who {
            Who::Ledger(id) => Some(id),
            _ => None,
        });
        of_base.chain([self.id]).collect()
    }

    /// Notes a transition into a state, of the present stage.
    fn note(&mut self, at: Timestamp, state: State, actor: &str, reason: impl Into<String>) {
        self.state = state;
        if self.history.len() >= MAX_HISTORY {
            self.history.remove(MAX_HISTORY / 2);
        }
        let (actor, reason) = (actor.to_owned(), reason.into());
        self.history.push(Transition { at, state, stage: self.stage, actor, reason });
    }
}

/// A write of a rollout. All of it is done if the rollout still has the version before, or nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The rollout from then on. Its version is the one before, plus one.
    pub after: Rollout,
    /// Agents that its ledger gets.
    pub admitted: Vec<InstanceUid>,
    /// What agents get changes: the intent gets its next revision, which becomes the rollout's.
    pub moves_intent: bool,
    /// What the assignment gave before is superseded: its floor rises to that revision.
    pub raises_floor: bool,
    /// What is written in the audit log with it, if a person asked for it.
    pub audit: Option<Entry>,
}

/// The latest rollout of an assignment, with the ledgers that its layers speak of.
#[derive(Debug, Clone, PartialEq)]
pub struct Staged {
    /// The rollout.
    pub rollout: Rollout,
    /// Agents by ledger.
    pub ledgers: BTreeMap<RolloutId, Arc<BTreeSet<InstanceUid>>>,
}

/// A strategy as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredStrategy {
    /// Its name.
    pub name: String,
    /// What it says.
    pub strategy: Strategy,
    /// When it was first applied.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}
