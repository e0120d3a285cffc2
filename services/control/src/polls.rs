//! Agents that poll and are heard no more: nobody's connection breaks, so a worker remembers the live sessions
//! of polls and looks, when one has been silent for long, whether ownership has heard of it.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_domain::agent::{Agent, Transport};
use muster_domain::ids::{AgentKey, SessionId, Timestamp};
use muster_domain::poll::Silence;
use prometheus::IntGauge;

/// Live sessions of polls of one partition.
pub(crate) struct Polls {
    sessions: BTreeMap<AgentKey, Heard>,
    /// How many all partitions of this control have.
    count: IntGauge,
}

struct Heard {
    session: SessionId,
    /// As far as this worker knows.
    at: Timestamp,
    /// Ownership did not know the agent when it was asked last.
    is_unknown: bool,
}

impl Polls {
    /// Knows of none yet.
    pub(crate) fn new(count: IntGauge) -> Self {
        Self { sessions: BTreeMap::new(), count }
    }

    /// Takes note of an agent as it is stored now.
    pub(crate) fn note(&mut self, agent: &Agent) {
        match agent.live_session().filter(|session| session.transport == Transport::Http) {
            Some(session) => {
                let at = session.started_at.max(agent.state.last_report);
                let heard = self.sessions.entry(agent.key.clone()).or_insert_with(|| {
                    self.count.inc();
                    Heard { session: session.id, at, is_unknown: false }
                });
                if heard.session != session.id {
                    *heard = Heard { session: session.id, at, is_unknown: false };
                }
                heard.at = heard.at.max(at);
            }
            None => self.forget(&agent.key),
        }
    }

    /// The agent's session is not live.
    pub(crate) fn forget(&mut self, key: &AgentKey) {
        if self.sessions.remove(key).is_some() {
            self.count.dec();
        }
    }

    /// Up to `limit` sessions that were not heard within the deadline, with the moment since when.
    pub(crate) fn silent(
        &self,
        now: Timestamp,
        deadline: Duration,
        limit: usize,
    ) -> Vec<(AgentKey, SessionId, Timestamp)> {
        let before = Timestamp(now.0.saturating_sub(Timestamp(0).plus(deadline).0));
        let silent = self.sessions.iter().filter(|(_, heard)| heard.at <= before);
        silent.map(|(key, heard)| (key.clone(), heard.session, before)).take(limit).collect()
    }

    /// Takes what ownership said of a session. Returns whether it is over.
    pub(crate) fn told(
        &mut self,
        key: &AgentKey,
        session: SessionId,
        silence: Silence,
        now: Timestamp,
    ) -> bool {
        let Some(heard) = self.sessions.get_mut(key).filter(|heard| heard.session == session) else {
            return false;
        };
        match silence {
            Silence::Over => true,
            // Ownership was lost: an agent that is still there makes itself known within another deadline.
            Silence::Unknown if !heard.is_unknown => {
                heard.is_unknown = true;
                heard.at = now;
                false
            }
            Silence::Unknown => true,
            Silence::Heard(at) => {
                heard.is_unknown = false;
                heard.at = heard.at.max(at);
                false
            }
        }
    }
}

impl Drop for Polls {
    fn drop(&mut self) {
        self.count.sub(i64::try_from(self.sessions.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use muster_domain::agent::{EndReason, Session};
    use muster_domain::ids::{Claim, Incarnation, InstanceUid};
    use uuid::Uuid;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(90);

    fn at(seconds: u64) -> Timestamp {
        Timestamp(0).plus(Duration::from_secs(seconds))
    }

    fn agent(number: u128, session: u128, started: u64) -> Agent {
        let key = AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::from_u128(number)) };
        let session = Session {
            id: SessionId(Uuid::from_u128(session)),
            claim: Claim(1),
            gateway: "gateway-1".parse().unwrap(),
            incarnation: Incarnation(Uuid::nil()),
            transport: Transport::Http,
            remote_addr: String::new(),
            started_at: at(started),
            silent_since: None,
            ended: None,
        };
        Agent { session: Some(session), ..Agent::new(key, at(started)) }
    }

    fn silent(polls: &Polls, now: u64) -> Vec<u128> {
        polls.silent(at(now), DEADLINE, 10).into_iter().map(|(key, ..)| key.uid.0.as_u128()).collect()
    }

    #[test]
    fn only_silent_sessions_are_asked_about() {
        let count = IntGauge::new("count", "count").unwrap();
        let mut polls = Polls::new(count.clone());
        polls.note(&agent(1, 1, 10));
        polls.note(&agent(2, 2, 20));
        let mut connected = agent(3, 3, 0);
        connected.session.as_mut().unwrap().transport = Transport::WebSocket;
        polls.note(&connected);
        assert_eq!(silent(&polls, 99), [0; 0]);
        assert_eq!(silent(&polls, 100), [1]);
        assert_eq!(silent(&polls, 110), [1, 2]);
        let (one, two) = (agent(1, 1, 10), agent(2, 2, 20));
        let session = SessionId(Uuid::from_u128(1));
        assert!(!polls.told(&one.key, session, Silence::Heard(at(60)), at(110)));
        assert_eq!(silent(&polls, 110), [2]);
        assert_eq!(silent(&polls, 150), [1, 2]);
        assert!(polls.told(&one.key, session, Silence::Over, at(150)));
        assert_eq!(silent(&polls, 150), [1, 2], "until its end is stored");
        let mut ended = one.clone();
        ended.session.as_mut().unwrap().ended = Some((at(150), EndReason::Silent));
        polls.note(&ended);
        assert_eq!(silent(&polls, 150), [2]);
        // Another session has begun meanwhile: the answer is not about that.
        polls.note(&agent(2, 5, 160));
        assert!(!polls.told(&two.key, SessionId(Uuid::from_u128(2)), Silence::Over, at(160)));
        assert_eq!(silent(&polls, 249), [0; 0]);
        assert_eq!(count.get(), 1);
        drop(polls);
        assert_eq!(count.get(), 0);
    }

    #[test]
    fn an_agent_that_ownership_forgot_gets_another_deadline() {
        let count = IntGauge::new("count", "count").unwrap();
        let mut polls = Polls::new(count.clone());
        let one = agent(1, 1, 0);
        polls.note(&one);
        let session = SessionId(Uuid::from_u128(1));
        assert!(!polls.told(&one.key, session, Silence::Unknown, at(90)));
        assert_eq!(silent(&polls, 179), [0; 0]);
        assert_eq!(silent(&polls, 180), [1]);
        assert!(polls.told(&one.key, session, Silence::Unknown, at(180)));
    }
}
