//! Rollouts, their ledgers and counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use muster_domain::ids::{Cell, InstanceUid, IntentRevision, Partition, RolloutId, Tenant};
use muster_domain::rollout::{Counts, Rollout, Staged, Step};
use muster_ports::EngineError;
use muster_ports::rollouts::{PartitionCounts, RolloutStore, StepError};

use super::{MemoryStore, Tables};
use crate::lock;

#[derive(Debug, Default, Clone)]
pub(super) struct Rollouts {
    /// Each with the revision at which it began.
    rows: BTreeMap<(Tenant, RolloutId), (IntentRevision, Rollout)>,
    ledgers: BTreeMap<(Tenant, RolloutId), BTreeSet<InstanceUid>>,
    counts: BTreeMap<(Tenant, RolloutId), BTreeMap<(Cell, Partition), Counts>>,
}

impl Rollouts {
    pub(super) fn begin(&mut self, tenant: &Tenant, rollout: &Rollout, revision: IntentRevision) {
        let stored = Rollout { revision, ..rollout.clone() };
        self.rows.insert((tenant.clone(), rollout.id), (revision, stored));
    }

    pub(super) fn can_take(&self, tenant: &Tenant, step: &Step) -> bool {
        let found = self.rows.get(&(tenant.clone(), step.after.id));
        found.is_some_and(|(_, rollout)| rollout.version + 1 == step.after.version)
    }

    pub(super) fn count(&mut self, home: &(Cell, Partition), counts: PartitionCounts) {
        for (rollout, counts) in counts {
            self.counts.entry(rollout).or_default().insert(home.clone(), counts);
        }
    }

    /// The latest rollout of each assignment.
    pub(super) fn staged(&self, tenant: &Tenant) -> BTreeMap<String, Staged> {
        let mut latest: BTreeMap<&str, &(IntentRevision, Rollout)> = BTreeMap::new();
        for row in self.rows.iter().filter(|((of, _), _)| of == tenant).map(|(_, row)| row) {
            let known = latest.entry(&row.1.assignment).or_insert(row);
            if known.0 < row.0 {
                *known = row;
            }
        }
        let staged = |rollout: &Rollout| Staged {
            ledgers: rollout
                .ledgers()
                .into_iter()
                .map(|id| (id, Arc::new(self.ledger(tenant, id))))
                .collect(),
            rollout: rollout.clone(),
        };
        latest.into_iter().map(|(name, (_, rollout))| (name.to_owned(), staged(rollout))).collect()
    }

    fn ledger(&self, tenant: &Tenant, id: RolloutId) -> BTreeSet<InstanceUid> {
        self.ledgers.get(&(tenant.clone(), id)).cloned().unwrap_or_default()
    }
}

impl Tables {
    /// Writes a step that can be taken.
    pub(super) fn take_step(&mut self, tenant: &Tenant, step: &Step, revision: IntentRevision) -> Rollout {
        let mut after = step.after.clone();
        if step.moves_intent {
            after.revision = revision;
        }
        if step.raises_floor {
            let intent = self.intents.entry(tenant.clone()).or_default();
            intent.floors.insert(after.assignment.clone(), revision);
        }
        let key = (tenant.clone(), after.id);
        self.rollouts.ledgers.entry(key.clone()).or_default().extend(&step.admitted);
        if let Some(row) = self.rollouts.rows.get_mut(&key) {
            row.1 = after.clone();
        }
        after
    }
}

#[async_trait]
impl RolloutStore for MemoryStore {
    async fn active_rollouts(&self) -> Result<Vec<(Tenant, Rollout)>, EngineError> {
        let tables = lock(&self.tables);
        let active = tables.rollouts.rows.iter().filter(|(_, (_, rollout))| rollout.state.is_active());
        let mut active: Vec<_> =
            active.map(|((tenant, _), (_, rollout))| (tenant.clone(), rollout.clone())).collect();
        active.sort_by_key(|(_, rollout)| rollout.id);
        Ok(active)
    }

    async fn rollouts(
        &self,
        tenant: &Tenant,
        before: Option<RolloutId>,
        limit: usize,
    ) -> Result<Vec<Rollout>, EngineError> {
        let tables = lock(&self.tables);
        let of_tenant = tables.rollouts.rows.iter().rev().filter(|((of, _), _)| of == tenant);
        let earlier = of_tenant.filter(|((_, id), _)| before.is_none_or(|before| *id < before));
        Ok(earlier.take(limit).map(|(_, (_, rollout))| rollout.clone()).collect())
    }

    async fn rollout(&self, tenant: &Tenant, id: RolloutId) -> Result<Option<Rollout>, EngineError> {
        let tables = lock(&self.tables);
        Ok(tables.rollouts.rows.get(&(tenant.clone(), id)).map(|(_, rollout)| rollout.clone()))
    }

    async fn ledger(&self, tenant: &Tenant, id: RolloutId) -> Result<BTreeSet<InstanceUid>, EngineError> {
        Ok(lock(&self.tables).rollouts.ledger(tenant, id))
    }

    async fn rollout_counts(
        &self,
        tenant: &Tenant,
        id: RolloutId,
    ) -> Result<BTreeMap<(Cell, Partition), Counts>, EngineError> {
        let tables = lock(&self.tables);
        Ok(tables.rollouts.counts.get(&(tenant.clone(), id)).cloned().unwrap_or_default())
    }

    async fn partition_counts(
        &self,
        cell: &Cell,
        partition: Partition,
    ) -> Result<PartitionCounts, EngineError> {
        let tables = lock(&self.tables);
        let home = (cell.clone(), partition);
        let active = tables.rollouts.rows.iter().filter(|(_, (_, rollout))| rollout.state.is_active());
        let counts = active.filter_map(|(key, _)| {
            let counts = tables.rollouts.counts.get(key)?.get(&home)?;
            Some((key.clone(), counts.clone()))
        });
        Ok(counts.collect())
    }

    async fn step(&self, tenant: &Tenant, step: &Step) -> Result<Rollout, StepError> {
        let mut tables = lock(&self.tables);
        if !tables.rollouts.can_take(tenant, step) {
            return Err(StepError::Moved);
        }
        let intent = tables.intents.entry(tenant.clone()).or_default();
        if step.moves_intent {
            intent.revision.0 += 1;
        }
        let revision = intent.revision;
        if let Some(audit) = &step.audit {
            tables.access.append(tenant, audit);
        }
        Ok(tables.take_step(tenant, step, revision))
    }
}
