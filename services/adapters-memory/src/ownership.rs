//! Ownership in one process, of agents on WebSockets and of agents that poll.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, Claim, SessionId, Timestamp};
use muster_domain::poll::{Begun, Letter, Poll, PollEnd, Silence, State, Tracks};
use muster_ports::EngineError;
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Holder, Owned, Ownership, Settled};
use muster_ports::polls::{PollOutcome, Polls};

use crate::lock;

/// Ownership that is lost with the process.
#[derive(Debug, Default)]
pub struct MemoryOwnership {
    agents: Mutex<HashMap<AgentKey, Row>>,
}

#[derive(Debug, Clone)]
struct Row {
    /// The session on a WebSocket that holds the agent.
    holder: Option<Holder>,
    /// Its session of polls is open only while there is no holder.
    state: State,
}

impl Clone for MemoryOwnership {
    /// A backup: what is known now, and what one of them learns later the other does not know.
    fn clone(&self) -> Self {
        Self { agents: Mutex::new(lock(&self.agents).clone()) }
    }
}

impl MemoryOwnership {
    /// Knows of no agent.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Row {
    fn is_held_by(&self, session: SessionId) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.session == session)
    }
}

#[async_trait]
impl Ownership for MemoryOwnership {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, EngineError> {
        let mut agents = lock(&self.agents);
        let ClaimRequest { key, session, gateway, incarnation, now, displace, epoch } = request;
        let hold = |claim| Some(Holder { session, claim, gateway, incarnation });
        let Some(row) = agents.get_mut(&key) else {
            let claim = Claim(now.0);
            let state = State {
                last: (session, claim),
                settled: None,
                seen: now,
                open: None,
                tracks: Tracks::default(),
                epoch: 0,
            };
            agents.insert(key, Row { holder: hold(claim), state });
            return Ok(ClaimOutcome::Granted { claim });
        };
        let in_the_way = |holder: &&Holder| holder.session != session && displace != Some(holder.session);
        if let Some(holder) = row.holder.as_ref().filter(in_the_way) {
            return Ok(ClaimOutcome::Contested { holder: holder.clone() });
        }
        let (previous, before) = row.state.last;
        let claim = Claim(now.0.max(before.0.saturating_add(1)));
        let settled = row.state.settled_in(epoch);
        if previous != session {
            row.state.settled = None;
        }
        row.holder = hold(claim);
        row.state.last = (session, claim);
        row.state.open = None;
        row.state.seen = row.state.seen.max(now);
        Ok(ClaimOutcome::Resumed { claim, settled, previous })
    }

    async fn settle(&self, settled: Vec<Settled>) -> Result<Vec<(AgentKey, SessionId)>, EngineError> {
        let mut agents = lock(&self.agents);
        let mut refused = Vec::new();
        for Settled { key, session, sequence_num, epoch, seen } in settled {
            let Some(row) = agents.get_mut(&key).filter(|row| row.is_held_by(session)) else {
                refused.push((key, session));
                continue;
            };
            if sequence_num.is_some() {
                (row.state.settled, row.state.epoch) = (sequence_num, epoch);
            }
            row.state.seen = row.state.seen.max(seen);
        }
        Ok(refused)
    }

    async fn release(&self, key: &AgentKey, session: SessionId) -> Result<(), EngineError> {
        let mut agents = lock(&self.agents);
        if let Some(row) = agents.get_mut(key).filter(|row| row.is_held_by(session)) {
            row.holder = None;
        }
        Ok(())
    }

    async fn look_up(&self, keys: &[AgentKey]) -> Result<Vec<Option<Owned>>, EngineError> {
        let agents = lock(&self.agents);
        let owned = |row: &Row| Owned {
            holder: row.holder.clone(),
            settled: row.state.settled,
            seen: row.state.seen,
        };
        Ok(keys.iter().map(|key| agents.get(key).map(owned)).collect())
    }
}

#[async_trait]
impl Polls for MemoryOwnership {
    async fn begin(&self, key: &AgentKey, poll: Poll) -> Result<PollOutcome, EngineError> {
        let mut agents = lock(&self.agents);
        let Some(row) = agents.get_mut(key) else {
            let (state, begun) = State::first(&poll);
            agents.insert(key.clone(), Row { holder: None, state });
            return Ok(PollOutcome::Begun(begun));
        };
        if let Some(holder) = row.holder.as_ref().filter(|holder| poll.displace != Some(holder.session)) {
            return Ok(PollOutcome::Contested { holder: holder.clone() });
        }
        let begun = row.state.begin(&poll);
        if begun != Begun::Newcomer {
            row.holder = None;
        }
        Ok(PollOutcome::Begun(begun))
    }

    async fn end(&self, key: &AgentKey, end: PollEnd) -> Result<bool, EngineError> {
        Ok(lock(&self.agents).get_mut(key).is_some_and(|row| row.state.end(&end)))
    }

    async fn post(&self, letters: Vec<Letter>) -> Result<Vec<bool>, EngineError> {
        let mut agents = lock(&self.agents);
        let post = |Letter { key, session, mail, above }: Letter| {
            agents.get_mut(&key).is_some_and(|row| row.state.post(session, &mail, above))
        };
        Ok(letters.into_iter().map(post).collect())
    }

    async fn expire(
        &self,
        silent: Vec<(AgentKey, SessionId, Timestamp)>,
    ) -> Result<Vec<Silence>, EngineError> {
        let mut agents = lock(&self.agents);
        let expire = |(key, session, before): (AgentKey, SessionId, Timestamp)| {
            agents.get_mut(&key).map_or(Silence::Unknown, |row| row.state.expire(session, before))
        };
        Ok(silent.into_iter().map(expire).collect())
    }
}
