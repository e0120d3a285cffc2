//! What a connection does by itself at some time: asks again for full state, and tells of agents that say
//! nothing although the connection is open.
//!
//! Pings and frames tell that a connection lives. They say nothing of one of several agents on it, nor of an
//! agent that hangs behind a library that answers pings. An agent that reports heartbeats (AgentCapabilities,
//! ReportsHeartbeat) is *silent* when none of its messages has come for some intervals. Its session goes on:
//! it may hear what it does not answer.

use std::time::Duration;

use muster_domain::capabilities::AgentCapabilities;
use muster_domain::ids::{InstanceUid, Timestamp};

use crate::connection::{Connection, Output, Publish};
use crate::session::{Active, InFlight};

/// An agent that comes back by itself reports more seldom than was thought: it is given so many of its own
/// intervals from then on.
const INTERVALS: u32 = 3;
/// No agent is given longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What the log did not take is told again after this long.
const AGAIN: Duration = Duration::from_secs(30);

/// When an agent was heard, and what the log knows of that.
#[derive(Debug, Default)]
pub(crate) struct Hearing {
    heard: Timestamp,
    /// The agent said that it reports heartbeats.
    expected: bool,
    /// The log knows the agent as silent.
    pub(crate) told: bool,
    /// What it was found to need.
    interval: Duration,
    /// The log is told nothing before.
    not_before: Timestamp,
}

impl Hearing {
    /// The agent has said something.
    pub(crate) fn hear(&mut self, capabilities: AgentCapabilities, now: Timestamp) {
        if capabilities != AgentCapabilities::default() {
            self.expected = capabilities.has(AgentCapabilities::REPORTS_HEARTBEAT);
        }
        if self.told {
            self.interval = self.interval.max(now.since(self.heard));
        }
        self.heard = now;
    }

    fn due(&self, silent_after: Duration) -> Timestamp {
        let patience = self.interval.saturating_mul(INTERVALS).min(LONGEST).max(silent_after);
        self.heard.plus(patience).max(self.not_before)
    }
}

impl Active {
    fn ask_due(&self) -> Option<Timestamp> {
        self.tracker.ask_due().filter(|_| self.is_free())
    }

    fn silence_due(&self, silent_after: Duration) -> Option<Timestamp> {
        let may = self.hearing.expected && !self.hearing.told && self.announced && self.is_free();
        may.then(|| self.hearing.due(silent_after))
    }

    /// Has the log told whether the agent is silent.
    pub(crate) fn tell_silence(&mut self, silent: bool) -> Output {
        self.in_flight = Some((self.claimed.session, InFlight::Silence(silent)));
        Output::Publish(Publish {
            uid: self.uid,
            session: self.claimed.session,
            claim: self.claimed.claim,
            started: None,
            message: None,
            ended: None,
            dirty: self.tracker.is_dirty(),
            silent,
            unsent: None,
            sent: self.sent.clone(),
        })
    }

    /// What came of that.
    pub(crate) fn told_silence(&mut self, silent: bool, is_stored: bool, now: Timestamp) {
        if is_stored {
            self.hearing.told = silent;
        } else {
            self.hearing.not_before = now.plus(AGAIN);
        }
    }
}

impl Connection {
    /// When [`Connection::timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Does what is due: asks agents for full state, tells that agents are silent.
    pub fn timeout(&mut self, now: Timestamp) {
        let silent_after = self.limits.silent_after;
        let due: Vec<_> = self.due.iter().take_while(|(at, _)| *at <= now).copied().collect();
        for (at, uid) in due {
            self.due.remove(&(at, uid));
            // What is due of a session that is gone is of nobody.
            let Some(active) = self.active(uid).filter(|active| active.due == Some(at)) else { continue };
            active.due = None;
            if active.ask_due().is_some_and(|due| due <= now) {
                active.tracker.asked(now);
                self.ask(uid);
            } else if active.silence_due(silent_after).is_some_and(|due| due <= now) {
                let tell = active.tell_silence(true);
                self.outputs.push_back(tell);
            }
            self.look(uid);
        }
    }

    /// Notes when the session is to be looked at next, after anything that may have changed that.
    pub(crate) fn look(&mut self, uid: InstanceUid) {
        let silent_after = self.limits.silent_after;
        let Some(active) = self.active(uid) else { return };
        let due = [active.ask_due(), active.silence_due(silent_after)].into_iter().flatten().min();
        let before = std::mem::replace(&mut active.due, due);
        if before != due {
            if let Some(before) = before {
                self.due.remove(&(before, uid));
            }
            self.due.extend(due.map(|due| (due, uid)));
        }
    }
}

#[cfg(test)]
#[path = "timing_tests.rs"]
mod tests;
