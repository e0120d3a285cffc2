//! The sweep of agents that poll and are heard no more.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_domain::agent::EndReason;
use muster_domain::ids::{AgentKey, SessionId};
use muster_ports::store::StoredAgent;
use tracing::{debug, info};

use super::batch::Batch;
use super::{PAGE, Restart, Worker};

/// Longest wait for ownership.
const DEADLINE: Duration = Duration::from_secs(2);

impl Worker<'_> {
    /// Ends sessions of agents that poll and were not heard within the deadline.
    pub(super) async fn end_silent(&mut self) -> Result<(), Restart> {
        let now = self.now();
        loop {
            let silent = self.polls.silent(now, self.shared.settings.poll_deadline, PAGE);
            let is_full = silent.len() == PAGE;
            if silent.is_empty() {
                return Ok(());
            }
            // Ended there first: a request that comes after this begins another session.
            let work = self.shared.engines.polls.expire(silent.clone());
            let Ok(told) = tokio::time::timeout(DEADLINE, work).await else { return Ok(()) };
            let told = match told {
                Ok(told) => told,
                Err(error) => {
                    debug!(partition = %self.partition, %error, "whether agents that poll were heard cannot be seen: they stay as they are");
                    return Ok(());
                }
            };
            let mut over = BTreeMap::new();
            for ((key, session, _), silence) in silent.into_iter().zip(told) {
                if self.polls.told(&key, session, silence, now) {
                    over.insert(key, session);
                }
            }
            // If the intent moved, the next look does it.
            if !over.is_empty() && !self.end_polls(over).await? || !is_full {
                return Ok(());
            }
        }
    }

    /// Stores the end of these sessions of polls, as far as they are live. `false`: the intent has moved.
    async fn end_polls(&mut self, over: BTreeMap<AgentKey, SessionId>) -> Result<bool, Restart> {
        let mut batch = Batch::new(self.now(), self.shared.intents.planners());
        self.remember(&batch, &over.keys().cloned().collect()).await?;
        let mut ended = 0;
        for (key, session) in over {
            let stored = self.cache.get(&key);
            let is_it =
                |stored: &&StoredAgent| stored.agent.live_session().is_some_and(|live| live.id == session);
            match stored.filter(is_it) {
                Some(stored) => {
                    batch.end_session(stored, EndReason::Silent);
                    ended += 1;
                }
                None => self.polls.forget(&key),
            }
        }
        if ended == 0 {
            return Ok(true);
        }
        info!(partition = %self.partition, sessions = ended, "ended sessions of agents that poll and were not heard any more");
        self.finish(batch, self.progress()).await
    }
}
