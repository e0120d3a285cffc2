//! Commands of operators: which are queued, for the workers to decide; and what is settled for long goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use muster_domain::ids::{Partition, Timestamp};
use muster_ports::EngineError;
use muster_ports::store::QueuedCommand;
use tracing::warn;

use crate::Shared;
use crate::changes::{Changes, Watcher};

/// Most queued commands that are looked at, of all tenants.
const MOST: usize = 100_000;
/// How long settled commands are kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often those that are older are forgotten, and how many of them at a time.
const FORGET_EVERY: Duration = Duration::from_secs(600);
const FORGET: usize = 1000;
/// Most such steps in a row: the rest is for the next time.
const FORGET_STEPS: usize = 100;

/// Queued commands by the partition of their agent, in order of their ids.
pub(crate) type Queued = BTreeMap<Partition, Vec<QueuedCommand>>;

/// The queued commands, as last read.
#[derive(Default)]
pub(crate) struct Commands {
    queued: ArcSwap<Queued>,
    changes: Changes,
}

impl Commands {
    /// Sees when other commands are queued than at the look before.
    pub(crate) fn watch(&self) -> Watcher {
        self.changes.watch()
    }

    /// The queued commands.
    pub(crate) fn queued(&self) -> Arc<Queued> {
        self.queued.load_full()
    }

    /// Reads what is queued, for every worker.
    pub(crate) async fn refresh(&self, shared: &Shared) -> Result<(), EngineError> {
        let found = shared.engines.commands.queued(MOST).await?;
        if found.len() == MOST
            && let Some(more) = shared.outages.commands.tell((shared.engines.clock)())
        {
            warn!(more, most = MOST, "more commands are queued than are looked at: the later ones wait");
        }
        let mut queued = Queued::new();
        for command in found {
            queued.entry(Partition::of(&command.key)).or_default().push(command);
        }
        if **self.queued.load() != queued {
            self.queued.store(Arc::new(queued));
            self.changes.happen();
        }
        Ok(())
    }
}

/// Forgets, from time to time, what was settled long ago.
#[derive(Default)]
pub(crate) struct Forgetting {
    done: Option<Timestamp>,
}

impl Forgetting {
    /// Does it if it is time.
    pub(crate) async fn step(&mut self, shared: &Shared) -> Result<(), EngineError> {
        let now = (shared.engines.clock)();
        if self.done.is_some_and(|done| now.since(done) < FORGET_EVERY) {
            return Ok(());
        }
        self.done = Some(now);
        let before = Timestamp(now.0.saturating_sub(u64::try_from(KEPT.as_micros()).unwrap_or(u64::MAX)));
        for _ in 0..FORGET_STEPS {
            if shared.engines.commands.forget_settled(before, FORGET).await? < FORGET {
                break;
            }
        }
        Ok(())
    }
}
