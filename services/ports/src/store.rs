//! The store: the truth about agents and intent.

use std::collections::BTreeMap;

use async_trait::async_trait;
use muster_domain::agent::Agent;
use muster_domain::desired::Labels;
use muster_domain::ids::{
    AgentKey, Cell, Incarnation, InstanceUid, IntentRevision, MessageId, Partition, Tenant, Timestamp,
};
use muster_domain::intent::{Intent, IntentChange};
use muster_domain::report::ConfigMap;

use crate::EngineError;
use crate::log::Position;

/// How far a partition of the log is folded, and by which generation of its worker's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionRow {
    /// Life of the log that the position is of; the first is 1.
    pub epoch: u64,
    /// Last folded position.
    pub position: Position,
    /// Id of the entry there, to recognise the log by; none at position zero.
    pub message: Option<MessageId>,
    /// Raised by every transaction of a worker.
    pub generation: u64,
}

/// An agent as stored, with its labels.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredAgent {
    /// The agent.
    pub agent: Agent,
    /// Its labels.
    pub labels: Labels,
}

/// A changed agent, and which of its parts are to be written. All are written for a new agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentWrite {
    /// The agent as it is now.
    pub agent: Agent,
    /// Write its session.
    pub session: bool,
    /// Write its state.
    pub state: bool,
    /// Write this effective config.
    pub effective_config: Option<ConfigMap>,
}

/// One transaction of a partition's worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// Cell of the partition.
    pub cell: Cell,
    /// The partition.
    pub partition: Partition,
    /// Generation that the row must still have; it is raised by one.
    pub generation: u64,
    /// Epoch, position and message id to write into the row.
    pub progress: (u64, Position, Option<MessageId>),
    /// Intent revisions that decisions in this commit rest on: they must still be the present ones.
    pub decided_on: BTreeMap<Tenant, IntentRevision>,
    /// Agents of this partition that changed, each at most once.
    pub agents: Vec<AgentWrite>,
}

/// Why a commit wrote nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another worker moved the partition row: this one's memory of the partition is worthless.
    #[error("another worker moved the partition row")]
    RowMoved,
    /// A tenant's intent has changed: decide again.
    #[error("the intent of tenant {0} has changed")]
    IntentMoved(Tenant),
    /// The engine did not do it; the commit may have been written all the same.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What control's workers ask of the store: fold state, exactly once.
#[async_trait]
pub trait FoldStore: Send + Sync {
    /// The row of a partition, made with epoch 1 and position zero if there is none.
    async fn partition(&self, cell: &Cell, partition: Partition) -> Result<PartitionRow, EngineError>;

    /// These agents, in any order; those that are not stored are left out.
    async fn agents(&self, keys: &[AgentKey]) -> Result<Vec<StoredAgent>, EngineError>;

    /// A page of a partition's agents in key order, after `after`.
    async fn partition_agents(
        &self,
        cell: &Cell,
        partition: Partition,
        after: Option<&AgentKey>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError>;

    /// Up to `limit` agents of a partition whose live session began in a gateway life that is not
    /// among these.
    async fn orphans(
        &self,
        cell: &Cell,
        partition: Partition,
        live: &[Incarnation],
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError>;

    /// Writes all of a commit, or nothing. It first moves the partition row by compare-and-swap, so
    /// that commits of a partition are one after the other, and returns the row as it is now.
    async fn commit(&self, commit: Commit) -> Result<PartitionRow, CommitError>;
}

/// Why a change of intent was not written.
#[derive(Debug, thiserror::Error)]
pub enum IntentError {
    /// The intent is no longer the one that the change was planned on: plan again.
    #[error("the intent has changed since this was planned")]
    Moved,
    /// The engine did not do it; the change may have been written all the same.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What operators want, written by the api and read by control. Every change of a tenant's intent
/// raises its revision by one, in the change's own transaction.
#[async_trait]
pub trait IntentStore: Send + Sync {
    /// Present revision of every tenant that has any intent.
    async fn revisions(&self) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError>;

    /// All of a tenant's intent, as of one moment.
    async fn intent(&self, tenant: &Tenant) -> Result<Intent, EngineError>;

    /// Writes a change if the intent is still at the revision that it was planned on. Returns the
    /// new revision; the present one for an empty change.
    async fn change(&self, tenant: &Tenant, change: &IntentChange) -> Result<IntentRevision, IntentError>;

    /// Sets (`Some`) and removes (`None`) labels of one agent. Returns its labels now, or `None`
    /// if no such agent is stored.
    async fn label(
        &self,
        key: &AgentKey,
        changes: &BTreeMap<String, Option<String>>,
        now: Timestamp,
    ) -> Result<Option<Labels>, EngineError>;
}

/// What the api reads of the fleet.
#[async_trait]
pub trait FleetStore: Send + Sync {
    /// One agent and its effective config.
    async fn agent(&self, key: &AgentKey) -> Result<Option<(StoredAgent, Option<ConfigMap>)>, EngineError>;

    /// A page of a tenant's agents in order of their uids, after `after`.
    async fn page(
        &self,
        tenant: &Tenant,
        after: Option<InstanceUid>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError>;

    /// Whether the store answers.
    async fn ping(&self) -> Result<(), EngineError>;
}

/// A store in all its aspects.
pub trait Store: FoldStore + IntentStore + FleetStore {}

impl<T: FoldStore + IntentStore + FleetStore> Store for T {}
