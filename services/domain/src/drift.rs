//! Drift: an agent runs something else than the config that it had applied, and nobody offered it that.
//!
//! Two things tell of it, each compared with what it was before and never with the other (agents merge
//! and redact): the hash of the remote config that the agent reports, and the effective config. The first
//! is mended by an offer, since the hash differs; where the agent leaves a config again and again, with
//! growing distance. The second is only shown: while the hash matches, nothing may be sent (OpAMP,
//! AgentRemoteConfig).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agent::{Agent, AgentEvent, AgentState, Offered};
use crate::ids::{ConfigHash, Digest, SessionId, Timestamp};
use crate::reconcile::{LAST_RETRY, wait};
use crate::report::ConfigStatus;

/// For so long after an offer, and after it was applied, what changes is put down to it: agents report
/// their effective config before or after the status, and some only with a later heartbeat.
pub const SETTLES: Duration = Duration::from_secs(60);

/// An agent runs something else than it had applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// What tells of it.
    pub kind: DriftKind,
    /// When that was reported first.
    pub since: Timestamp,
    /// What it had: the hash of the remote config, or the digest of the effective config; hex.
    pub expected: String,
    /// What it reports instead; none where it reports no hash.
    pub found: Option<String>,
    /// In this session it is not offered its config again before that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<(SessionId, Timestamp)>,
}

/// What tells of a drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// The reported hash left the desired one.
    RemoteConfig,
    /// The effective config changed without an offer.
    EffectiveConfig,
}

impl DriftKind {
    /// As the API and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RemoteConfig => "remote_config",
            Self::EffectiveConfig => "effective_config",
        }
    }
}

/// What an agent ran when it had applied the config that it should run: what drift is measured against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// Hash of that config.
    pub hash: ConfigHash,
    /// Digest of the effective config; none while it reports none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Digest>,
    /// When it was last reported that it runs.
    pub seen: Timestamp,
    /// How often the agent left it within the session in which it had it.
    #[serde(default)]
    pub left: u32,
}

/// The last offer, while what changes is put down to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settling {
    /// Its hash.
    pub hash: ConfigHash,
    /// How long that is so.
    pub until: Timestamp,
}

impl Agent {
    /// Looks whether the agent has drifted. Level-triggered: it may be called at any time, after
    /// [`set_retried`](AgentState::set_retried) and [`set_desired`](AgentState::set_desired). Returns
    /// whether the state changed; what happened goes to `events`.
    ///
    /// A drift ends when the agent has again what it had applied, when it should run another config or
    /// none, and when an operator asked for another try: then what it runs is taken for right.
    pub fn judge_drift(&mut self, now: Timestamp, events: &mut Vec<AgentEvent>) -> bool {
        // Only a drift within one session is the work of something that puts another config there; agents
        // that begin anew may just not remember theirs.
        let session = self.live_session().map(|session| (session.id, session.started_at));
        let state = &mut self.state;
        let (drift, baseline) = (state.drift.clone(), state.baseline.clone());
        state.drift = state.find_drift(session, now);
        match (&drift, &state.drift) {
            (Some(before), Some(after)) if before.kind == after.kind => {}
            (None, None) => {}
            (before, after) => {
                events.extend(before.as_ref().map(|before| AgentEvent::DriftEnded(before.kind)));
                events.extend(after.clone().map(AgentEvent::Drifted));
            }
        }
        drift != state.drift || baseline != state.baseline
    }
}

impl AgentState {
    fn find_drift(&mut self, session: Option<(SessionId, Timestamp)>, now: Timestamp) -> Option<Drift> {
        let Some(desired) = &self.desired else {
            self.baseline = None;
            return None;
        };
        let settling = self.settling.clone().filter(|settling| now < settling.until);
        let reported = &self.remote_config;
        if reported.hash.as_ref() == Some(desired) && reported.status == ConfigStatus::Applied {
            return self.compare_effective(desired.clone(), settling, now);
        }
        let baseline = self.baseline.as_mut().filter(|baseline| baseline.hash == *desired)?;
        // Being applied anew, or failed: it was not left.
        if reported.hash.as_ref() == Some(desired) {
            return self.drift.clone();
        }
        // An offer that was taken back may still be carried out: the agent was told to leave.
        if settling.is_some_and(|settling| reported.hash.as_ref() == Some(&settling.hash)) {
            self.baseline = None;
            return None;
        }
        let found = reported.hash.as_ref().map(ToString::to_string);
        if let Some(before) = self.drift.clone().filter(|drift| drift.kind == DriftKind::RemoteConfig) {
            return Some(Drift { found, ..before });
        }
        let same_session = session.filter(|(_, started_at)| *started_at <= baseline.seen);
        baseline.left = baseline.left.saturating_add(u32::from(same_session.is_some()));
        let again = same_session
            .filter(|_| baseline.left > 1)
            .map(|(session, _)| (session, now.plus(wait(baseline.left - 1))));
        Some(Drift {
            kind: DriftKind::RemoteConfig,
            since: self.last_report,
            expected: desired.to_string(),
            found,
            again,
        })
    }

    /// Compares the effective config of an agent that runs the desired config with what it was.
    fn compare_effective(
        &mut self,
        desired: ConfigHash,
        settling: Option<Settling>,
        now: Timestamp,
    ) -> Option<Drift> {
        // Nothing at all is what agents report that do not know theirs yet.
        let effective = self.effective_config.filter(|_| !self.effective_is_blank);
        let before = self.baseline.take().filter(|baseline| baseline.hash == desired);
        if before.is_none() && settling.as_ref().is_some_and(|settling| settling.hash == desired) {
            self.settling = Some(Settling { hash: desired.clone(), until: now.plus(SETTLES) });
        }
        let kept = before.as_ref().filter(|_| settling.is_none()).and_then(|baseline| baseline.effective);
        let expected = kept.or(effective).or_else(|| before.as_ref()?.effective);
        let left = before.map_or(0, |baseline| baseline.left);
        self.baseline = Some(Baseline { hash: desired, effective: expected, seen: self.last_report, left });
        let (expected, found) = (expected?, effective?);
        if expected == found {
            return None;
        }
        let before = self.drift.as_ref().filter(|drift| drift.kind == DriftKind::EffectiveConfig);
        Some(Drift {
            kind: DriftKind::EffectiveConfig,
            since: before.map_or(self.last_report, |drift| drift.since),
            expected: expected.to_string(),
            found: Some(found.to_string()),
            again: None,
        })
    }

    /// Remembers an offer that is made now.
    pub fn set_offered(&mut self, offer: Offered, now: Timestamp) {
        self.settling = Some(Settling { hash: offer.hash.clone(), until: now.plus(SETTLES) });
        self.offered = Some(offer);
    }

    /// Until when this session is not offered again what its agent leaves again and again.
    pub(crate) fn drift_wait(&self, session: SessionId, now: Timestamp) -> Option<Timestamp> {
        let (of, until) = self.drift.as_ref()?.again?;
        // Later than any wait: the clock of whoever noted it was ahead.
        let waits = of == session && now < until && until.since(now) <= LAST_RETRY * 2;
        waits.then_some(until)
    }
}

#[cfg(test)]
#[path = "drift_tests.rs"]
mod tests;
