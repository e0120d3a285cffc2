//! Rollouts, their ledgers and counts, as they are stored.
//!
//! They begin with a change of intent ([`IntentStore::change`]), their agents are read with the intent
//! ([`IntentStore::intent`]), and where agents stand is written by workers ([`Commit::counts`]).
//!
//! [`IntentStore::change`]: crate::store::IntentStore::change
//! [`IntentStore::intent`]: crate::store::IntentStore::intent
//! [`Commit::counts`]: crate::store::Commit::counts

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use muster_domain::ids::{Cell, InstanceUid, Partition, RolloutId, Tenant};
use muster_domain::rollout::{Counts, Rollout, Step};

use crate::EngineError;

/// Where a partition's agents stand in rollouts.
pub type PartitionCounts = BTreeMap<(Tenant, RolloutId), Counts>;

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The rollout is not at the version that the step was planned on: look again.
    #[error("the rollout has moved since this was planned")]
    Moved,
    /// The engine did not do it; the step may have been taken all the same.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Rollouts. They are the tenant's and hold in every cell, like intent.
#[async_trait]
pub trait RolloutStore: Send + Sync {
    /// Rollouts of all tenants that are not at their end, in order of their ids.
    async fn active_rollouts(&self) -> Result<Vec<(Tenant, Rollout)>, EngineError>;

    /// The last `limit` rollouts of a tenant before `before`, the last one first.
    async fn rollouts(
        &self,
        tenant: &Tenant,
        before: Option<RolloutId>,
        limit: usize,
    ) -> Result<Vec<Rollout>, EngineError>;

    /// A rollout, if there is one with this id.
    async fn rollout(&self, tenant: &Tenant, id: RolloutId) -> Result<Option<Rollout>, EngineError>;

    /// The agents of a rollout's ledger.
    async fn ledger(&self, tenant: &Tenant, id: RolloutId) -> Result<BTreeSet<InstanceUid>, EngineError>;

    /// Where a rollout's agents stand, in each partition that has said so.
    async fn rollout_counts(
        &self,
        tenant: &Tenant,
        id: RolloutId,
    ) -> Result<BTreeMap<(Cell, Partition), Counts>, EngineError>;

    /// Where a partition's agents stand in rollouts that are not at their end.
    async fn partition_counts(
        &self,
        cell: &Cell,
        partition: Partition,
    ) -> Result<PartitionCounts, EngineError>;

    /// Takes all of a step if the rollout still has the version before, or does nothing: of several that take
    /// one from there, one does. A step that moves the intent raises the tenant's intent revision in the same
    /// transaction, so that commits that were decided before it write nothing. Returns the rollout as it is now.
    async fn step(&self, tenant: &Tenant, step: &Step) -> Result<Rollout, StepError>;
}
