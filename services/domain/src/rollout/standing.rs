//! Where each agent stands in a rollout, and how many stand where.
//!
//! An agent's standing is kept with its state, and the counts of a partition change with it in one
//! transaction: nobody has to look at the fleet to know them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Mode;
use crate::agent::{Agent, EndReason};
use crate::capabilities::AgentCapabilities;
use crate::ids::{IntentRevision, RolloutId, Timestamp};
use crate::report::ConfigStatus;

/// Where an agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Exposed, and not there to be sent anything: no failure, no success.
    Offline,
    /// Exposed, and does not accept remote config.
    Unable,
    /// Exposed, and has not said how it went; its deadline has not passed.
    Waiting,
    /// Exposed and connected, and has not said how it went by its deadline.
    Late,
    /// Went away by itself after it was sent the change, and was not back by its deadline.
    Lost,
    /// Could not apply the change.
    Failed,
    /// Was sent the change, and never reports how it went.
    Silent,
    /// Applied the change and is healthy.
    Healthy,
    /// Applied the change and is unhealthy; before, it was not.
    Unhealthy,
    /// Applied the change and is unhealthy, as it was before.
    UnhealthyBefore,
    /// Applied the change; it does not report its health.
    Unknown,
    /// Applied the change, and went away by itself.
    Gone,
    /// Applied the change, and lost its connection by what our own parts did.
    Away,
    /// Not exposed and healthy.
    UnexposedHealthy,
    /// Not exposed and unhealthy.
    UnexposedUnhealthy,
    /// Has back what it had before.
    Restored,
    /// Is to get back what it had before.
    Restoring,
    /// Gets back what it had before when it connects.
    RestoredLater,
    /// Could not apply what it had before.
    RestoreFailed,
    /// Had nothing before, and keeps what it has.
    Kept,
}

impl Standing {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Unable => "unable",
            Self::Waiting => "waiting",
            Self::Late => "late",
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::Silent => "silent",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::UnhealthyBefore => "unhealthy_before",
            Self::Unknown => "unknown_health",
            Self::Gone => "gone",
            Self::Away => "away",
            Self::UnexposedHealthy => "unexposed_healthy",
            Self::UnexposedUnhealthy => "unexposed_unhealthy",
            Self::Restored => "restored",
            Self::Restoring => "restoring",
            Self::RestoredLater => "restored_later",
            Self::RestoreFailed => "restore_failed",
            Self::Kept => "kept",
        }
    }
}

/// What is remembered of an agent for a rollout, with its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track {
    /// The rollout.
    pub rollout: RolloutId,
    /// Where it stands.
    pub standing: Standing,
    /// Since when its deadline runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// It was unhealthy when it was exposed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_unhealthy: bool,
    /// It is exposed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exposed: bool,
    /// It was sent the change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sent: bool,
}

/// What a rollout means for one agent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The rollout.
    pub rollout: RolloutId,
    /// What it means for agents.
    pub mode: Mode,
    /// The agent is exposed.
    pub exposed: bool,
    /// The desired config holds the candidate.
    pub given: bool,
    /// Agents that are not exposed are watched, too.
    pub compares: bool,
    /// How long the agent may take.
    pub apply_deadline: Duration,
}

/// Where an agent stands by what is known of it now, and when to look again though it says nothing. None if
/// it is not watched for the rollout.
///
/// The agent's desired config is already the one that follows from the part; an offer may have been made,
/// and not yet been sent.
pub fn look(
    before: Option<&Track>,
    part: &Part,
    agent: &Agent,
    now: Timestamp,
) -> Option<(Track, Option<Timestamp>)> {
    let state = &agent.state;
    let is_connected = is_there(agent);
    let healthy = state.health.as_ref().map(|health| health.healthy);
    let known = before.copied().filter(|track| track.exposed || !part.exposed);
    let mut track = known.unwrap_or(Track {
        rollout: part.rollout,
        standing: Standing::Offline,
        since: None,
        was_unhealthy: healthy == Some(false),
        exposed: part.exposed,
        sent: false,
    });
    if !part.exposed {
        if !part.compares || part.mode == Mode::Back || track.exposed {
            return None;
        }
        track.standing = match (is_connected, healthy) {
            (true, Some(true)) => Standing::UnexposedHealthy,
            (true, Some(false)) => Standing::UnexposedUnhealthy,
            _ => Standing::Offline,
        };
        // What is neither here nor there is not counted.
        return (track.standing != Standing::Offline).then_some((track, None));
    }
    if part.mode == Mode::Back {
        track.standing = restoring(agent, is_connected);
        return Some((track, None));
    }
    if part.given && state.offered.is_some() {
        track.sent = true;
    }
    if !part.given {
        // Halted before it had the change: nothing is asked of it.
        track.since = None;
        track.standing = if is_connected { Standing::Waiting } else { Standing::Offline };
        return Some((track, None));
    }
    Some(forward(track, part, agent, now))
}

/// Whether it is connected and says something.
fn is_there(agent: &Agent) -> bool {
    agent.live_session().is_some_and(|session| session.silent_since.is_none())
}

fn restoring(agent: &Agent, is_connected: bool) -> Standing {
    let state = &agent.state;
    let Some(desired) = &state.desired else { return Standing::Kept };
    let is_reported = state.remote_config.hash.as_ref() == Some(desired);
    let has_failed = state.failed.as_ref().is_some_and(|failed| failed.hash == *desired);
    if has_failed || is_reported && state.remote_config.status == ConfigStatus::Failed {
        Standing::RestoreFailed
    } else if is_reported && state.remote_config.status == ConfigStatus::Applied {
        Standing::Restored
    } else if !is_connected {
        Standing::RestoredLater
    } else if state.capabilities.has(AgentCapabilities::ACCEPTS_REMOTE_CONFIG)
        && state.capabilities.has(AgentCapabilities::REPORTS_REMOTE_CONFIG)
    {
        Standing::Restoring
    } else {
        // It was sent it, and says nothing of it.
        Standing::Restored
    }
}

fn forward(mut track: Track, part: &Part, agent: &Agent, now: Timestamp) -> (Track, Option<Timestamp>) {
    let state = &agent.state;
    let is_connected = is_there(agent);
    let reported = &state.remote_config;
    let is_reported = state.desired.is_some() && reported.hash == state.desired;
    let has_failed = state.failed.as_ref().is_some_and(|failed| Some(&failed.hash) == state.desired.as_ref())
        || is_reported && reported.status == ConfigStatus::Failed;
    if has_failed {
        track.standing = Standing::Failed;
        return (track, None);
    }
    if is_reported && reported.status == ConfigStatus::Applied {
        track.standing = match (is_connected, state.health.as_ref().map(|health| health.healthy)) {
            (true, Some(true)) => Standing::Healthy,
            (true, Some(false)) if track.was_unhealthy => Standing::UnhealthyBefore,
            (true, Some(false)) => Standing::Unhealthy,
            (true, None) => Standing::Unknown,
            (false, _) => match went(agent) {
                Went::ByItself => Standing::Gone,
                Went::ByUs => Standing::Away,
                Went::InOrder => Standing::Offline,
            },
        };
        return (track, None);
    }
    if is_connected {
        if !state.capabilities.has(AgentCapabilities::ACCEPTS_REMOTE_CONFIG) {
            track.standing = Standing::Unable;
            return (track, None);
        }
        if track.sent && !state.capabilities.has(AgentCapabilities::REPORTS_REMOTE_CONFIG) {
            track.standing = Standing::Silent;
            return (track, None);
        }
    }
    if track.standing == Standing::Offline && is_connected {
        track.since = Some(now);
    }
    let deadline = track.since.map(|since| since.plus(part.apply_deadline));
    let is_late = deadline.is_some_and(|deadline| deadline <= now);
    track.standing = match (is_connected, is_late) {
        (true, true) => Standing::Late,
        (true, false) => Standing::Waiting,
        // It may come back, with or without news.
        (false, false) if track.sent => Standing::Waiting,
        (false, true) if track.sent && went(agent) == Went::ByItself => Standing::Lost,
        (false, _) => Standing::Offline,
    };
    let due = deadline.filter(|_| track.standing == Standing::Waiting);
    (track, due)
}

/// Why an agent is not connected.
#[derive(PartialEq, Eq)]
enum Went {
    /// It, or the network, broke the connection.
    ByItself,
    /// What we did.
    ByUs,
    /// It said goodbye.
    InOrder,
}

fn went(agent: &Agent) -> Went {
    if agent.live_session().is_some_and(|session| session.silent_since.is_some()) {
        return Went::ByItself;
    }
    match agent.session.as_ref().and_then(|session| session.ended) {
        Some((
            _,
            EndReason::GatewayStopped | EndReason::GatewayLost | EndReason::Superseded | EndReason::Operator,
        )) => Went::ByUs,
        Some((_, EndReason::AgentDisconnect)) | None => Went::InOrder,
        Some((
            _,
            EndReason::ConnectionLost | EndReason::Closed | EndReason::Silent | EndReason::ProtocolError,
        )) => Went::ByItself,
    }
}

/// How many agents stand where, of one partition or of all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// By standing; none is zero.
    #[serde(default)]
    pub by: BTreeMap<Standing, u64>,
    /// The intent revision that all agents were looked at with; of several partitions the lowest.
    #[serde(default)]
    pub looked_at: IntentRevision,
}

impl Counts {
    /// How many stand there.
    pub fn of(&self, standing: Standing) -> u64 {
        self.by.get(&standing).copied().unwrap_or_default()
    }

    /// How many stand at any of these.
    pub fn sum(&self, standings: &[Standing]) -> u64 {
        standings.iter().map(|standing| self.of(*standing)).sum()
    }

    /// An agent that stood at one now stands at another; none for one that is not watched.
    pub fn step(&mut self, before: Option<Standing>, after: Option<Standing>) {
        if let Some(standing) = before {
            let left = self.of(standing).saturating_sub(1);
            match left {
                0 => self.by.remove(&standing),
                left => self.by.insert(standing, left),
            };
        }
        if let Some(standing) = after {
            *self.by.entry(standing).or_default() += 1;
        }
    }

    /// Adds those of another partition.
    pub fn add(&mut self, other: &Self) {
        for (standing, count) in &other.by {
            *self.by.entry(*standing).or_default() += count;
        }
        self.looked_at = self.looked_at.min(other.looked_at);
    }

    /// Agents that count in the error rate: those that were connected since they were exposed.
    pub fn reached(&self) -> u64 {
        use Standing::{Late, Lost, Waiting};
        self.sum(&[Waiting, Late, Lost]) + self.reported()
    }

    /// Agents that failed, or did not apply the change in time.
    pub fn errors(&self) -> u64 {
        self.sum(&[Standing::Failed, Standing::Late, Standing::Lost])
    }

    /// Agents that said how it went.
    pub fn reported(&self) -> u64 {
        self.applied() + self.of(Standing::Failed)
    }

    /// Agents that applied the change.
    pub fn applied(&self) -> u64 {
        use Standing::{Away, Gone, Healthy, Unhealthy, UnhealthyBefore, Unknown};
        self.sum(&[Healthy, Unhealthy, UnhealthyBefore, Unknown, Gone, Away])
    }
}
