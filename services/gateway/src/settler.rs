//! Tells ownership how far sessions are settled: at most 100 ms late, many in one call.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_domain::ids::{AgentKey, Claim, SessionId};
use muster_ports::ownership::Settled;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Shared;
use crate::mailbox::Order;

/// How late ownership may learn of progress.
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Longest wait for ownership.
const DEADLINE: Duration = Duration::from_secs(2);

/// Progress that ownership does not know yet: the latest of each agent.
#[derive(Default)]
pub(crate) struct Settler {
    waiting: Mutex<BTreeMap<AgentKey, Settled>>,
}

impl Settler {
    /// Notes progress of a session.
    pub(crate) fn note(&self, mut settled: Settled) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let before = waiting.get(&settled.key).filter(|before| before.session == settled.session);
        if let Some(before) = before.filter(|_| settled.sequence_num.is_none()) {
            (settled.sequence_num, settled.epoch) = (before.sequence_num, before.epoch);
        }
        waiting.insert(settled.key.clone(), settled);
    }

    /// Takes what is noted of one session, for its release.
    fn take(&self, key: &AgentKey, session: SessionId) -> Option<Settled> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.get(key)?.session == session { waiting.remove(key) } else { None }
    }

    fn take_all(&self) -> Vec<Settled> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting).into_values().collect()
    }
}

/// Writes progress until `stop`, and once more then.
pub(crate) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(FLUSH_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // The stop comes once; until then every tick is taken.
        tokio::select! {
            biased;
            () = stop.cancelled() => return flush(&shared).await,
            _ = ticks.tick() => flush(&shared).await,
        }
    }
}

async fn flush(shared: &Shared) {
    let settled = shared.settler.take_all();
    if settled.is_empty() {
        return;
    }
    let count = settled.len();
    match tokio::time::timeout(DEADLINE, shared.engines.ownership.settle(settled)).await {
        Ok(Ok(not_holders)) => {
            for (key, session) in not_holders {
                if let Some(mailbox) = shared.registry.find(&key, session) {
                    mailbox.put(Order::Reclaim(key.uid, session, Claim::default()));
                }
            }
        }
        // Lost progress makes the next session of these agents dirty: it is asked for full state.
        Ok(Err(error)) => tell(shared, count, &error),
        Err(_) => tell(shared, count, &"no answer in time"),
    }
}

fn tell(shared: &Shared, count: usize, error: &dyn Display) {
    if let Some(more) = shared.outages.settle.tell((shared.engines.clock)()) {
        warn!(%error, count, more, "progress of sessions was not recorded");
    }
}

/// The session is over: writes its last progress and gives the agent back.
pub(crate) async fn release(shared: &Shared, key: &AgentKey, session: SessionId) {
    let last = shared.settler.take(key, session);
    let work = async {
        if let Some(last) = last {
            shared.engines.ownership.settle(vec![last]).await?;
        }
        shared.engines.ownership.release(key, session).await
    };
    let error = match tokio::time::timeout(DEADLINE, work).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    if let Some(more) = shared.outages.release.tell((shared.engines.clock)()) {
        warn!(tenant = %key.tenant, agent_id = %key.uid, error, more, "an agent was not given back");
    }
}
