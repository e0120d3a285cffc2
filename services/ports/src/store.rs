//! The store: the truth about agents and intent.
//!
//! What is observed of an agent is stored for each cell: a cell works alone, so an agent that moves to
//! another one is a new agent there, and what its old cell still writes of it (the end of its session,
//! late) touches only its old row. Intent, labels among it, is the tenant's and holds in every cell.
//! Who reads the fleet sees an agent once, as the cell has it in which its session started last.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::agent::Agent;
use muster_domain::audit::Entry;
use muster_domain::command::{Command, CommandState};
use muster_domain::desired::Labels;
use muster_domain::ids::{
    AgentKey, Cell, CommandId, Incarnation, InstanceUid, IntentRevision, MessageId, Partition, Tenant,
    Timestamp,
};
use muster_domain::intent::{ChangeRecord, Intent, IntentChange, ObjectRef};
use muster_domain::liveness::AgentFilter;
use muster_domain::report::{Components, ComponentsKey, ConfigMap};
use muster_domain::selector::AgentSelector;
use uuid::Uuid;

use crate::EngineError;
use crate::access::AccessStore;
use crate::log::Position;
use crate::rollouts::{PartitionCounts, RolloutStore};

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

/// A changed agent, and which of its parts are to be written. All are written for an agent that is new
/// to the cell.
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

/// An entry of the log that could not be folded, kept for people to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Where it stood in the partition's log.
    pub position: Position,
    /// Its id.
    pub message: MessageId,
    /// Its payload.
    pub payload: Bytes,
    /// Why it could not be folded, for people.
    pub reason: String,
    /// When that was found.
    pub at: Timestamp,
    /// The agent that it is from, as far as that can be told.
    pub key: Option<AgentKey>,
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
    /// Entries that are passed over, each at most once.
    pub quarantined: Vec<Quarantined>,
    /// Commands that are settled by this, each at most once: they must still be queued. So what is sent
    /// after the commit has left the queue before.
    pub commands: Vec<SettledCommand>,
    /// Where the partition's agents stand in rollouts, of those where that has changed. Like everything of a
    /// partition it has one writer, so that these are written as they are.
    pub counts: PartitionCounts,
}

/// What becomes of a queued command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledCommand {
    /// Tenant of the command.
    pub tenant: Tenant,
    /// The command.
    pub id: CommandId,
    /// What it is from now on: not queued.
    pub state: CommandState,
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
    /// A command is not queued any more: look again at what is.
    #[error("command {0} is not queued any more")]
    CommandMoved(CommandId),
    /// The store holds the commit to be wrong for a lasting reason, such as data that it cannot hold:
    /// trying again does not help, and something in `agents` is at fault.
    #[error("the store refused the commit: {reason}")]
    Rejected {
        /// What it said.
        reason: String,
    },
    /// The engine did not do it; the commit may have been written all the same.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What control's workers ask of the store: fold state, exactly once.
#[async_trait]
pub trait FoldStore: Send + Sync {
    /// The row of a partition, made with epoch 1 and position zero if there is none.
    async fn partition(&self, cell: &Cell, partition: Partition) -> Result<PartitionRow, EngineError>;

    /// These agents as the cell has them, in any order; those that it has not are left out.
    async fn agents(&self, cell: &Cell, keys: &[AgentKey]) -> Result<Vec<StoredAgent>, EngineError>;

    /// A page of a partition's agents in key order, after `after`.
    async fn partition_agents(
        &self,
        cell: &Cell,
        partition: Partition,
        after: Option<&AgentKey>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError>;

    /// Up to `limit` agents of a partition whose live session is on a WebSocket and began in a gateway
    /// life that is not among these. Sessions of polls are no gateway's.
    async fn orphans(
        &self,
        cell: &Cell,
        partition: Partition,
        live: &[Incarnation],
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError>;

    /// Writes all of a commit, or nothing. It first moves the partition row by compare-and-swap, so
    /// that commits of a partition are one after the other, and returns the row as it is now. A change
    /// of intent that was answered before the commit is seen by `decided_on`.
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

    /// Writes a change, and its record of the audit log, if the intent is still at the revision that it was
    /// planned on. Returns the new revision; the present one for an empty change, of which nothing is written.
    async fn change(&self, tenant: &Tenant, change: &IntentChange) -> Result<IntentRevision, IntentError>;

    /// Raises a tenant's revision to at least this one and changes nothing else. A store that was restored
    /// from a backup gives revisions again that agents were sent offers of since: past those, its own
    /// count anew. Returns the revision now.
    async fn advance(&self, tenant: &Tenant, at_least: IntentRevision)
    -> Result<IntentRevision, EngineError>;

    /// Changes that were [remembered](IntentChange::made), the last one first, made before the revision
    /// `before`; with an object, only those that it was part of.
    async fn history(
        &self,
        tenant: &Tenant,
        object: Option<&ObjectRef>,
        before: Option<IntentRevision>,
        limit: usize,
    ) -> Result<Vec<ChangeRecord>, EngineError>;

    /// Sets (`Some`) and removes (`None`) labels of one agent. Returns its labels now, or `None`
    /// if no such agent is stored. The record of the audit log gets the labels of before and after.
    async fn label(
        &self,
        key: &AgentKey,
        changes: &BTreeMap<String, Option<String>>,
        now: Timestamp,
        audit: Option<&Entry>,
    ) -> Result<Option<Labels>, EngineError>;
}

/// What the api reads of the fleet.
#[async_trait]
pub trait FleetStore: Send + Sync {
    /// One agent and its effective config.
    async fn agent(&self, key: &AgentKey) -> Result<Option<(StoredAgent, Option<ConfigMap>)>, EngineError>;

    /// A page of the tenant's agents that the selector matches, as [`matches`] says, and the filter, in
    /// order of their uids, after `after`. A page of fewer than `limit` agents is the last one.
    ///
    /// [`matches`]: muster_domain::desired::matches
    async fn find(
        &self,
        tenant: &Tenant,
        selector: &AgentSelector,
        filter: &AgentFilter,
        after: Option<InstanceUid>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError>;

    /// As [`find`](Self::find), without a filter.
    async fn page(
        &self,
        tenant: &Tenant,
        selector: &AgentSelector,
        after: Option<InstanceUid>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        self.find(tenant, selector, &AgentFilter::default(), after, limit).await
    }

    /// Id of the cluster whose store this is: made by the first call, and then for ever the same.
    async fn cluster(&self) -> Result<Uuid, EngineError>;

    /// Whether the store answers.
    async fn ping(&self) -> Result<(), EngineError>;
}

/// Lists of components that agents can be configured with, each stored once for all agents that report
/// its hash. What is stored here is a hint: agents choose the hashes.
#[async_trait]
pub trait ComponentStore: Send + Sync {
    /// Those of these lists that are not stored. A list that was put before is seen.
    async fn missing_components(
        &self,
        keys: &BTreeSet<ComponentsKey>,
    ) -> Result<BTreeSet<ComponentsKey>, EngineError>;

    /// Stores lists, each in the place of the one with the same key. Of a tenant's lists the
    /// [`MAX_COMPONENT_LISTS`] that changed last are kept.
    async fn put_components(
        &self,
        lists: &BTreeMap<ComponentsKey, Components>,
        now: Timestamp,
    ) -> Result<(), EngineError>;

    /// A list, if it is stored.
    async fn components(&self, key: &ComponentsKey) -> Result<Option<Components>, EngineError>;
}

/// Lists of components that are kept of a tenant.
pub const MAX_COMPONENT_LISTS: usize = 1000;

/// A command that is queued, without what is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedCommand {
    /// Its id.
    pub id: CommandId,
    /// The agent that it is for.
    pub key: AgentKey,
    /// From when on it is not sent any more.
    pub expires_at: Timestamp,
}

/// Why commands were not queued.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The tenant would have too many queued commands.
    #[error("{queued} commands are queued already")]
    Full {
        /// How many it has.
        queued: usize,
    },
    /// The engine did not do it; the commands may have been queued all the same.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Commands to agents: queued by the api, settled by [`FoldStore::commit`]. They are the tenant's and hold
/// in every cell, like intent.
#[async_trait]
pub trait CommandStore: Send + Sync {
    /// Queues all of these, or none. Those whose id is there already stay as they are. Refused if the
    /// tenant would have more than `most` queued commands then; calls at the same time may exceed that
    /// together. The record of the audit log is written with the first of them that is new.
    async fn queue(
        &self,
        tenant: &Tenant,
        commands: &[Command],
        most: usize,
        audit: Option<&Entry>,
    ) -> Result<(), QueueError>;

    /// These commands of a tenant, in order of their ids; those that are not there are left out.
    async fn commands(&self, tenant: &Tenant, ids: &[CommandId]) -> Result<Vec<Command>, EngineError>;

    /// The latest commands of an agent, the last one first.
    async fn latest_commands(&self, key: &AgentKey, limit: usize) -> Result<Vec<Command>, EngineError>;

    /// Queued commands of all tenants, in order of their ids, the first `limit` of them.
    async fn queued(&self, limit: usize) -> Result<Vec<QueuedCommand>, EngineError>;

    /// Forgets up to `limit` commands that were settled before this time. Returns how many it forgot.
    async fn forget_settled(&self, before: Timestamp, limit: usize) -> Result<usize, EngineError>;
}

/// How far [`RecoveryStore::resync`] lifts whatever counts: further than the time that a backup does not know
/// of can have come.
pub const RESYNC_LIFT: u64 = 1_000_000_000;

/// What an operator asks of a store that was restored from a backup.
#[async_trait]
pub trait RecoveryStore: Send + Sync {
    /// Puts a store that was set back in front of all that was decided in the time that it has forgotten, in
    /// one transaction: every partition of the cell begins a new epoch, and the intent of every tenant that
    /// has any gets a new revision, each [`RESYNC_LIFT`] above the present one. So do the generations of the
    /// partition rows, so that no worker of before goes on. Nothing else changes; it may be done at any time,
    /// and again. Returns the revisions.
    async fn resync(&self, cell: &Cell) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError>;
}

/// A store in all its aspects.
pub trait Store:
    FoldStore
    + IntentStore
    + FleetStore
    + ComponentStore
    + CommandStore
    + RolloutStore
    + RecoveryStore
    + AccessStore
{
}

impl<T> Store for T where
    T: FoldStore
        + IntentStore
        + FleetStore
        + ComponentStore
        + CommandStore
        + RolloutStore
        + RecoveryStore
        + AccessStore
{
}
