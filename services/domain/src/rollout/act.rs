//! What people may ask of a rollout.

use super::planner::{advance, next};
use super::{Rollout, SoakClock, State, Step};
use crate::ids::Timestamp;

/// Longest reason that a person may give, in bytes.
pub const MAX_REASON: usize = 500;

/// What a person asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Let it begin.
    Approve,
    /// Send nothing, and stop the clock.
    Pause,
    /// Go on.
    Resume,
    /// Go to the next stage, whatever the present one says.
    Promote,
    /// End it where it stands.
    Abort,
    /// Give agents back what they had.
    Rollback,
}

impl Command {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Approve, Self::Pause, Self::Resume, Self::Promote, Self::Abort, Self::Rollback];

    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
        }
    }

    /// The states in which it can be asked.
    fn states(self) -> &'static [State] {
        use State::{Aborted, Completed, Paused, PendingApproval, Running, Soaking};
        match self {
            Self::Approve => &[PendingApproval],
            Self::Pause => &[Running, Soaking],
            Self::Resume => &[Paused],
            Self::Promote => &[Running, Soaking, Paused],
            Self::Abort => &[PendingApproval, Running, Soaking, Paused],
            Self::Rollback => &[Running, Soaking, Paused, Completed, Aborted],
        }
    }
}

/// Why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The rollout is in another state.
    #[error("the rollout is {state}, and {command} needs it to be {}", or(.needed))]
    State {
        /// What was asked.
        command: &'static str,
        /// Its state.
        state: State,
        /// The states in which it can be asked.
        needed: &'static [State],
    },
    /// The author may not approve the own change.
    #[error("{0} made this change: another person has to approve it")]
    OwnChange(String),
    /// A newer change of the assignment is there.
    #[error("a newer change of the assignment took its place: roll that one back, or apply what is to be")]
    NotLatest,
    /// The reason is too long.
    #[error("reason: is longer than {MAX_REASON} bytes: make it shorter")]
    LongReason,
}

fn or(states: &[State]) -> String {
    states.iter().map(|state| state.name()).collect::<Vec<_>>().join(" or ")
}

/// Decides what a command does to a rollout. `is_latest`: no newer rollout of the assignment exists.
///
/// # Errors
/// Why it does nothing.
pub fn command(
    rollout: &Rollout,
    command: Command,
    actor: &str,
    reason: &str,
    is_latest: bool,
    now: Timestamp,
) -> Result<Step, Refused> {
    if !command.states().contains(&rollout.state) {
        let needed = command.states();
        return Err(Refused::State { command: command.name(), state: rollout.state, needed });
    }
    if !is_latest {
        return Err(Refused::NotLatest);
    }
    if reason.len() > MAX_REASON {
        return Err(Refused::LongReason);
    }
    if command == Command::Approve && actor == rollout.author {
        return Err(Refused::OwnChange(actor.to_owned()));
    }
    let reason = if reason.is_empty() { default_reason(command) } else { reason };
    let mut after = next(rollout);
    let step = |after, moves_intent, raises_floor| Step {
        after,
        admitted: Vec::new(),
        moves_intent,
        raises_floor,
        audit: None,
    };
    Ok(match command {
        Command::Approve => {
            after.opened_at = now;
            after.note(now, State::Running, actor, reason);
            step(after, true, false)
        }
        Command::Pause => {
            after.soak.stop(now);
            after.note(now, State::Paused, actor, reason);
            step(after, true, true)
        }
        Command::Resume => {
            after.failure = None;
            after.soak = SoakClock::default();
            after.opened_at = now;
            after.note(now, State::Running, actor, reason);
            step(after, true, false)
        }
        Command::Promote => advance(rollout, actor, reason, now),
        Command::Abort => {
            after.soak.stop(now);
            after.note(now, State::Aborted, actor, reason);
            step(after, true, true)
        }
        Command::Rollback => {
            after.soak.stop(now);
            after.note(now, State::RollingBack, actor, reason);
            step(after, true, true)
        }
    })
}

fn default_reason(command: Command) -> &'static str {
    match command {
        Command::Approve => "approved",
        Command::Pause => "paused by a person",
        Command::Resume => "resumed by a person",
        Command::Promote => "promoted by a person",
        Command::Abort => "aborted by a person",
        Command::Rollback => "rolled back by a person",
    }
}
