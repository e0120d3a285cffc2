//! Lives of the log, as gateways know them: what they had acknowledged before one began may be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use muster_domain::ids::{AgentKey, Partition};
use muster_ports::EngineError;
use muster_ports::epochs::{self, Epochs};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::Shared;

/// An agent that comes within this time of a new epoch was perhaps not asked for full state yet where it
/// was before.
const RECENT: Duration = Duration::from_secs(120);

/// The epoch that every partition begins with: nothing was lost before it.
const FIRST: u64 = 1;

/// Epochs of the partitions.
#[derive(Default)]
pub(crate) struct Lives {
    state: Mutex<State>,
    /// As in the state, for who asks at every heartbeat.
    known: ArcSwap<Epochs>,
    /// One or more have risen.
    pub(crate) risen: Notify,
}

#[derive(Default)]
struct State {
    known: Epochs,
    /// Those whose agents are still to be asked.
    to_ask: BTreeSet<Partition>,
    /// When each of them rose last.
    rose: BTreeMap<Partition, Instant>,
}

impl State {
    /// Takes what the bucket holds; the partitions whose epoch has risen. The first that is heard of one is
    /// no rise, unless it has `agents` here already and is not the partition's first of all: what they said
    /// may be of a life of the log that the bucket never had, or has lost.
    fn take(&mut self, found: &Epochs, agents: &BTreeSet<Partition>, now: Instant) -> usize {
        let mut risen = 0;
        for partition in Partition::all() {
            let before = self.known.of(partition);
            let is_loss = before > 0 || found.of(partition) > FIRST && agents.contains(&partition);
            if self.known.raise(partition, found.of(partition)) && is_loss {
                self.to_ask.insert(partition);
                self.rose.insert(partition, now);
                risen += 1;
            }
        }
        risen
    }
}

impl Lives {
    /// Looks for new epochs.
    pub(crate) async fn look(&self, shared: &Shared) -> Result<(), EngineError> {
        let found = epochs::load(shared.engines.values.as_ref(), &shared.settings.cell).await?;
        let risen = {
            let mut state = self.state();
            let agents = match found == state.known {
                true => BTreeSet::new(),
                false => shared.registry.partitions(),
            };
            let risen = state.take(&found, &agents, Instant::now());
            self.known.store(Arc::new(state.known.clone()));
            risen
        };
        if risen > 0 {
            warn!(event = "epochs_risen", gateway = %shared.settings.gateway, partitions = risen, "the log or the store was lost or set back: agents are claimed anew and asked for full state");
            self.risen.notify_one();
        }
        Ok(())
    }

    /// Epoch of a partition, zero if it is not known.
    pub(crate) fn of(&self, partition: Partition) -> u64 {
        self.known.load().of(partition)
    }

    /// The partitions whose agents are to be asked for full state, once.
    pub(crate) fn take_to_ask(&self) -> BTreeSet<Partition> {
        std::mem::take(&mut self.state().to_ask)
    }

    /// Whether what was settled of an agent may be lost all the same.
    pub(crate) fn is_recent(&self, key: &AgentKey) -> bool {
        let mut state = self.state();
        if state.rose.is_empty() {
            return false;
        }
        state.rose.retain(|_, at| at.elapsed() < RECENT);
        state.rose.contains_key(&Partition::of(key))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_epoch_of_no_agents_is_no_rise_and_a_lost_bucket_none_either() {
        let partition = Partition::new(3).unwrap();
        let epochs = |epoch| {
            let mut epochs = Epochs::default();
            epochs.raise(partition, epoch);
            epochs
        };
        let mut state = State::default();
        let nobody = BTreeSet::new();
        let risen = [0, 2, 2, 0, 2, 3, 1].map(|epoch| state.take(&epochs(epoch), &nobody, Instant::now()));
        assert_eq!(risen, [0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(state.to_ask, [partition].into());
        let mut state = State::default();
        let here = BTreeSet::from([partition]);
        assert_eq!(state.take(&epochs(1), &here, Instant::now()), 0, "nothing can have been lost before it");
        assert_eq!(state.take(&epochs(2), &here, Instant::now()), 1);
        let mut state = State::default();
        assert_eq!(state.take(&epochs(2), &here, Instant::now()), 1, "agents came before it was told");
    }

    #[tokio::test(start_paused = true)]
    async fn an_epoch_is_recent_for_a_while() {
        let key = |number| AgentKey {
            tenant: "a".parse().unwrap(),
            uid: muster_domain::ids::InstanceUid(uuid::Uuid::from_u128(number)),
        };
        let risen = Partition::of(&key(1));
        let other = (2..).map(key).find(|key| Partition::of(key) != risen).unwrap();
        let lives = Lives::default();
        assert!(!lives.is_recent(&key(1)));
        lives.state().rose.insert(risen, Instant::now());
        assert!(lives.is_recent(&key(1)) && !lives.is_recent(&other));
        tokio::time::advance(RECENT).await;
        assert!(!lives.is_recent(&key(1)));
    }
}
