//! Ownership in one process.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, Claim, SessionId};
use muster_ports::EngineError;
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Holder, Owned, Ownership, Settled};

use crate::lock;

/// Ownership that is lost with the process.
#[derive(Debug, Default)]
pub struct MemoryOwnership {
    agents: Mutex<HashMap<AgentKey, Row>>,
}

#[derive(Debug, Clone)]
struct Row {
    owned: Owned,
    /// The last session that held the agent, and its claim.
    last: (SessionId, Claim),
    /// Epoch of the log that what is settled is of.
    epoch: u64,
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

#[async_trait]
impl Ownership for MemoryOwnership {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, EngineError> {
        let mut agents = lock(&self.agents);
        let ClaimRequest { key, session, gateway, incarnation, now, displace, epoch } = request;
        let hold = |claim| Holder { session, claim, gateway, incarnation };
        let Some(row) = agents.get_mut(&key) else {
            let claim = Claim(now.0);
            let owned = Owned { holder: Some(hold(claim)), settled: None, seen: now };
            agents.insert(key, Row { owned, last: (session, claim), epoch: 0 });
            return Ok(ClaimOutcome::Granted { claim });
        };
        let in_the_way = |holder: &&Holder| holder.session != session && displace != Some(holder.session);
        if let Some(holder) = row.owned.holder.as_ref().filter(in_the_way) {
            return Ok(ClaimOutcome::Contested { holder: holder.clone() });
        }
        let (previous, before) = row.last;
        let settled = row.owned.settled.filter(|_| row.epoch == epoch || row.epoch == 0 || epoch == 0);
        if previous != session {
            row.owned.settled = None;
        }
        let claim = Claim(now.0.max(before.0.saturating_add(1)));
        row.last = (session, claim);
        row.owned.holder = Some(hold(claim));
        row.owned.seen = row.owned.seen.max(now);
        Ok(ClaimOutcome::Resumed { claim, settled, previous })
    }

    async fn settle(&self, settled: Vec<Settled>) -> Result<Vec<(AgentKey, SessionId)>, EngineError> {
        let mut agents = lock(&self.agents);
        let mut refused = Vec::new();
        for Settled { key, session, sequence_num, epoch, seen } in settled {
            let held = agents.get_mut(&key).filter(|row| holds(&row.owned, session));
            let Some(row) = held else {
                refused.push((key, session));
                continue;
            };
            if sequence_num.is_some() {
                row.epoch = epoch;
            }
            let owned = &mut row.owned;
            owned.settled = sequence_num.or(owned.settled);
            owned.seen = owned.seen.max(seen);
        }
        Ok(refused)
    }

    async fn release(&self, key: &AgentKey, session: SessionId) -> Result<(), EngineError> {
        let mut agents = lock(&self.agents);
        if let Some(owned) =
            agents.get_mut(key).map(|row| &mut row.owned).filter(|owned| holds(owned, session))
        {
            owned.holder = None;
        }
        Ok(())
    }

    async fn look_up(&self, keys: &[AgentKey]) -> Result<Vec<Option<Owned>>, EngineError> {
        let agents = lock(&self.agents);
        Ok(keys.iter().map(|key| agents.get(key).map(|row| row.owned.clone())).collect())
    }
}

fn holds(owned: &Owned, session: SessionId) -> bool {
    owned.holder.as_ref().is_some_and(|holder| holder.session == session)
}
