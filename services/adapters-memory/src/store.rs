//! The store in one process, for tests and simulation.

mod rollouts;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Mutex;

use async_trait::async_trait;
use muster_domain::agent::{Agent, Transport};
use muster_domain::audit::Entry;
use muster_domain::command::{Command, CommandState, Status};
use muster_domain::desired::{Labels, matches};
use muster_domain::ids::{
    AgentKey, Cell, CommandId, Incarnation, InstanceUid, IntentRevision, Partition, Tenant, Timestamp,
};
use muster_domain::intent::{ChangeRecord, Intent, IntentChange, ObjectRef};
use muster_domain::liveness::AgentFilter;
use muster_domain::report::{Components, ComponentsKey, ConfigMap};
use muster_domain::selector::AgentSelector;
use muster_ports::EngineError;
use muster_ports::log::Position;
use muster_ports::store::{
    AgentWrite, CommandStore, Commit, CommitError, ComponentStore, FleetStore, FoldStore, IntentError,
    IntentStore, MAX_COMPONENT_LISTS, PartitionRow, Quarantined, QueueError, QueuedCommand, RESYNC_LIFT,
    RecoveryStore, StoredAgent,
};
use uuid::Uuid;

use crate::access::Access;
use crate::lock;

/// A store that is lost with the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    pub(crate) tables: Mutex<Tables>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Tables {
    pub(crate) access: Access,
    partitions: BTreeMap<(Cell, Partition), PartitionRow>,
    /// Each agent as every cell has it; never none.
    agents: BTreeMap<AgentKey, BTreeMap<Cell, Row>>,
    /// Agents of each partition.
    members: BTreeMap<(Cell, Partition), BTreeSet<AgentKey>>,
    quarantined: Vec<Quarantined>,
    labels: BTreeMap<AgentKey, Labels>,
    intents: BTreeMap<Tenant, Intent>,
    /// Changes that were remembered, the last one last.
    changes: BTreeMap<Tenant, Vec<ChangeRecord>>,
    commands: BTreeMap<CommandId, Command>,
    cluster: Option<Uuid>,
    components: BTreeMap<ComponentsKey, (Timestamp, Components)>,
    rollouts: rollouts::Rollouts,
}

#[derive(Debug, Clone)]
struct Row {
    agent: Agent,
    effective_config: Option<ConfigMap>,
}

impl Clone for MemoryStore {
    /// A backup: what is stored now, and what is written to one of them later is not in the other.
    fn clone(&self) -> Self {
        Self { tables: Mutex::new(lock(&self.tables).clone()) }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entries that were passed over, in the order of their commits.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        lock(&self.tables).quarantined.clone()
    }
}

impl Tables {
    fn with_labels(&self, agent: &Agent) -> StoredAgent {
        let labels = self.labels.get(&agent.key).cloned().unwrap_or_default();
        StoredAgent { agent: agent.clone(), labels }
    }

    /// The agent as this cell has it.
    fn stored(&self, cell: &Cell, key: &AgentKey) -> Option<StoredAgent> {
        self.agents.get(key)?.get(cell).map(|row| self.with_labels(&row.agent))
    }

    /// The agent as the cell has it in which its session started last.
    fn latest(&self, key: &AgentKey) -> Option<&Row> {
        let started = |row: &Row| row.agent.session.as_ref().map(|session| session.started_at);
        let newest = self.agents.get(key)?.iter().max_by_key(|(cell, row)| (started(row), *cell));
        newest.map(|(_, row)| row)
    }

    /// Agents of a partition, in key order, after `after`.
    fn members<'a>(
        &'a self,
        cell: &Cell,
        partition: Partition,
        after: Option<&AgentKey>,
    ) -> impl Iterator<Item = StoredAgent> + 'a {
        let from = after.cloned().map_or(Bound::Unbounded, Bound::Excluded);
        let keys =
            self.members.get(&(cell.clone(), partition)).map(|keys| keys.range((from, Bound::Unbounded)));
        let cell = cell.clone();
        keys.into_iter().flatten().filter_map(move |key| self.stored(&cell, key))
    }

    fn revision(&self, tenant: &Tenant) -> IntentRevision {
        self.intents.get(tenant).map(|intent| intent.revision).unwrap_or_default()
    }

    /// How many live sessions a tenant has.
    pub(crate) fn connected(&self, tenant: &Tenant) -> usize {
        let rows =
            self.agents.iter().filter(|(key, _)| key.tenant == *tenant).flat_map(|(_, cells)| cells.values());
        rows.filter(|row| row.agent.live_session().is_some()).count()
    }

    /// How many agents a tenant has.
    pub(crate) fn count(&self, tenant: &Tenant) -> usize {
        self.agents.keys().filter(|key| key.tenant == *tenant).count()
    }

    /// Forgets all of a tenant but the number of its intent and its floors, which it raises.
    pub(crate) fn forget(&mut self, tenant: &Tenant) {
        self.partitions.values_mut().for_each(|row| row.generation += 1);
        self.agents.retain(|key, _| key.tenant != *tenant);
        self.members.values_mut().for_each(|keys| keys.retain(|key| key.tenant != *tenant));
        self.labels.retain(|key, _| key.tenant != *tenant);
        self.commands.retain(|_, command| command.key.tenant != *tenant);
        self.components.retain(|key, _| key.tenant != *tenant);
        self.changes.remove(tenant);
        self.quarantined.retain(|entry| entry.key.as_ref().is_none_or(|key| key.tenant != *tenant));
        if let Some(intent) = self.intents.get_mut(tenant) {
            let revision = IntentRevision(intent.revision.0 + 1);
            let given = intent.assignments.keys().map(|assignment| (assignment.clone(), revision));
            let floors = intent.floors.clone().into_iter().chain(given).collect();
            *intent = Intent { revision, floors, ..Intent::default() };
        }
    }

    fn write(&mut self, home: (Cell, Partition), write: AgentWrite) {
        let AgentWrite { agent, session, state, effective_config } = write;
        let key = agent.key.clone();
        let cells = self.agents.entry(key.clone()).or_default();
        match cells.get_mut(&home.0) {
            Some(row) => {
                if session {
                    row.agent.session = agent.session;
                }
                if state {
                    row.agent.state = agent.state;
                }
                if effective_config.is_some() {
                    row.effective_config = effective_config;
                }
            }
            None => {
                cells.insert(home.0.clone(), Row { agent, effective_config });
            }
        }
        self.members.entry(home).or_default().insert(key);
    }
}

#[async_trait]
impl FoldStore for MemoryStore {
    async fn partition(&self, cell: &Cell, partition: Partition) -> Result<PartitionRow, EngineError> {
        let first = PartitionRow { epoch: 1, position: Position(0), message: None, generation: 0 };
        Ok(*lock(&self.tables).partitions.entry((cell.clone(), partition)).or_insert(first))
    }

    async fn agents(&self, cell: &Cell, keys: &[AgentKey]) -> Result<Vec<StoredAgent>, EngineError> {
        let tables = lock(&self.tables);
        let keys: BTreeSet<&AgentKey> = keys.iter().collect();
        Ok(keys.into_iter().filter_map(|key| tables.stored(cell, key)).collect())
    }

    async fn partition_agents(
        &self,
        cell: &Cell,
        partition: Partition,
        after: Option<&AgentKey>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        Ok(lock(&self.tables).members(cell, partition, after).take(limit).collect())
    }

    async fn orphans(
        &self,
        cell: &Cell,
        partition: Partition,
        live: &[Incarnation],
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        let tables = lock(&self.tables);
        let is_orphan = |stored: &StoredAgent| {
            stored.agent.live_session().is_some_and(|session| {
                session.transport != Transport::Http && !live.contains(&session.incarnation)
            })
        };
        Ok(tables.members(cell, partition, None).filter(is_orphan).take(limit).collect())
    }

    async fn commit(&self, commit: Commit) -> Result<PartitionRow, CommitError> {
        let mut tables = lock(&self.tables);
        let home = (commit.cell, commit.partition);
        let generation = tables.partitions.get(&home).map(|row| row.generation);
        if generation != Some(commit.generation) {
            return Err(CommitError::RowMoved);
        }
        if let Some((tenant, _)) =
            commit.decided_on.iter().find(|(tenant, revision)| tables.revision(tenant) != **revision)
        {
            return Err(CommitError::IntentMoved(tenant.clone()));
        }
        let is_queued = |tenant: &Tenant, id| {
            let found = tables.commands.get(id).filter(|command| command.key.tenant == *tenant);
            found.is_some_and(|command| command.state.status == Status::Queued)
        };
        if let Some(moved) = commit.commands.iter().find(|settled| !is_queued(&settled.tenant, &settled.id)) {
            return Err(CommitError::CommandMoved(moved.id));
        }
        let (epoch, position, message) = commit.progress;
        let row = PartitionRow { epoch, position, message, generation: commit.generation + 1 };
        tables.partitions.insert(home.clone(), row);
        for write in commit.agents {
            tables.write(home.clone(), write);
        }
        tables.quarantined.extend(commit.quarantined);
        for settled in commit.commands {
            if let Some(command) = tables.commands.get_mut(&settled.id) {
                command.state = settled.state;
            }
        }
        tables.rollouts.count(&home, commit.counts);
        Ok(row)
    }
}

#[async_trait]
impl IntentStore for MemoryStore {
    async fn revisions(&self) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError> {
        let tables = lock(&self.tables);
        Ok(tables.intents.iter().map(|(tenant, intent)| (tenant.clone(), intent.revision)).collect())
    }

    async fn intent(&self, tenant: &Tenant) -> Result<Intent, EngineError> {
        let tables = lock(&self.tables);
        let mut intent = tables.intents.get(tenant).cloned().unwrap_or_default();
        intent.rollouts = tables.rollouts.staged(tenant);
        Ok(intent)
    }

    async fn change(&self, tenant: &Tenant, change: &IntentChange) -> Result<IntentRevision, IntentError> {
        let mut tables = lock(&self.tables);
        let present = tables.revision(tenant);
        if change.is_empty() {
            return Ok(present);
        }
        if change.planned_on != present {
            return Err(IntentError::Moved);
        }
        if !change.rollouts.iter().all(|step| tables.rollouts.can_take(tenant, step)) {
            return Err(IntentError::Moved);
        }
        let intent = tables.intents.entry(tenant.clone()).or_default();
        intent.apply(change);
        let revision = intent.revision;
        for step in &change.rollouts {
            tables.take_step(tenant, step, revision);
        }
        for rollout in &change.new_rollouts {
            tables.rollouts.begin(tenant, rollout, revision);
        }
        if let Some(record) = change.record(revision) {
            tables.changes.entry(tenant.clone()).or_default().push(record);
        }
        if let Some(audit) = &change.audit {
            tables.access.append(tenant, audit);
        }
        Ok(revision)
    }

    async fn advance(
        &self,
        tenant: &Tenant,
        at_least: IntentRevision,
    ) -> Result<IntentRevision, EngineError> {
        let mut tables = lock(&self.tables);
        let revision = &mut tables.intents.entry(tenant.clone()).or_default().revision;
        *revision = at_least.max(*revision);
        Ok(*revision)
    }

    async fn history(
        &self,
        tenant: &Tenant,
        object: Option<&ObjectRef>,
        before: Option<IntentRevision>,
        limit: usize,
    ) -> Result<Vec<ChangeRecord>, EngineError> {
        let tables = lock(&self.tables);
        let is_part = |record: &ChangeRecord| {
            let is = |object: &ObjectRef| {
                record.outcomes.iter().any(|found| found.kind == object.kind && found.name == object.name)
            };
            object.is_none_or(is) && before.is_none_or(|before| record.revision < before)
        };
        let changes = tables.changes.get(tenant).into_iter().flatten().rev();
        Ok(changes.filter(|record| is_part(record)).take(limit).cloned().collect())
    }

    async fn label(
        &self,
        key: &AgentKey,
        changes: &BTreeMap<String, Option<String>>,
        _now: Timestamp,
        audit: Option<&Entry>,
    ) -> Result<Option<Labels>, EngineError> {
        let mut tables = lock(&self.tables);
        if !tables.agents.contains_key(key) {
            return Ok(None);
        }
        let labels = tables.labels.entry(key.clone()).or_default();
        let before = labels.clone();
        for (name, value) in changes {
            match value {
                Some(value) => labels.insert(name.clone(), value.clone()),
                None => labels.remove(name),
            };
        }
        let after = labels.clone();
        if after != before {
            tables.intents.entry(key.tenant.clone()).or_default().revision.0 += 1;
        }
        if let Some(audit) = audit {
            let json = |labels: &Labels| serde_json::to_string(labels).unwrap_or_default();
            let audit = audit.clone().with_states(json(&before), json(&after));
            tables.access.append(&key.tenant, &audit);
        }
        Ok(Some(after))
    }
}

#[async_trait]
impl ComponentStore for MemoryStore {
    async fn missing_components(
        &self,
        keys: &BTreeSet<ComponentsKey>,
    ) -> Result<BTreeSet<ComponentsKey>, EngineError> {
        let tables = lock(&self.tables);
        Ok(keys.iter().filter(|key| !tables.components.contains_key(*key)).cloned().collect())
    }

    async fn put_components(
        &self,
        lists: &BTreeMap<ComponentsKey, Components>,
        now: Timestamp,
    ) -> Result<(), EngineError> {
        let stored = &mut lock(&self.tables).components;
        for (key, list) in lists {
            if stored.get(key).is_none_or(|(_, known)| known != list) {
                stored.insert(key.clone(), (now, list.clone()));
            }
            let mut of_tenant: Vec<_> = stored
                .iter()
                .filter(|(other, _)| other.tenant == key.tenant)
                .map(|(other, (at, _))| (*at, other.clone()))
                .collect();
            of_tenant.sort_unstable_by(|a, b| b.cmp(a));
            for (_, surplus) in of_tenant.drain(..).skip(MAX_COMPONENT_LISTS) {
                stored.remove(&surplus);
            }
        }
        Ok(())
    }

    async fn components(&self, key: &ComponentsKey) -> Result<Option<Components>, EngineError> {
        Ok(lock(&self.tables).components.get(key).map(|(_, list)| list.clone()))
    }
}

#[async_trait]
impl FleetStore for MemoryStore {
    async fn agent(&self, key: &AgentKey) -> Result<Option<(StoredAgent, Option<ConfigMap>)>, EngineError> {
        let tables = lock(&self.tables);
        let row = tables.latest(key);
        Ok(row.map(|row| (tables.with_labels(&row.agent), row.effective_config.clone())))
    }

    async fn find(
        &self,
        tenant: &Tenant,
        selector: &AgentSelector,
        filter: &AgentFilter,
        after: Option<InstanceUid>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        let tables = lock(&self.tables);
        let key = |uid| AgentKey { tenant: tenant.clone(), uid };
        let from =
            after.map_or(Bound::Included(key(InstanceUid(Uuid::nil()))), |uid| Bound::Excluded(key(uid)));
        let to = Bound::Included(key(InstanceUid(Uuid::max())));
        let of_tenant = tables.agents.range((from, to)).filter_map(|(key, _)| tables.latest(key));
        let all = of_tenant.map(|row| tables.with_labels(&row.agent));
        let found = all.filter(|stored| {
            matches(selector, &stored.agent, &stored.labels) && filter.matches(&stored.agent)
        });
        Ok(found.take(limit).collect())
    }

    async fn cluster(&self) -> Result<Uuid, EngineError> {
        Ok(*lock(&self.tables).cluster.get_or_insert_with(Uuid::now_v7))
    }

    async fn ping(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

#[async_trait]
impl CommandStore for MemoryStore {
    async fn queue(
        &self,
        tenant: &Tenant,
        commands: &[Command],
        most: usize,
        audit: Option<&Entry>,
    ) -> Result<(), QueueError> {
        let mut tables = lock(&self.tables);
        let new: Vec<_> =
            commands.iter().filter(|command| !tables.commands.contains_key(&command.id)).collect();
        let is_queued =
            |command: &&Command| command.key.tenant == *tenant && command.state.status == Status::Queued;
        let queued = tables.commands.values().filter(is_queued).count();
        if !new.is_empty() && queued + new.len() > most {
            return Err(QueueError::Full { queued });
        }
        let new: Vec<Command> = new.into_iter().cloned().collect();
        if let Some(audit) = audit.filter(|_| !new.is_empty()) {
            tables.access.append(tenant, audit);
        }
        for command in new {
            tables.commands.insert(command.id, Command { state: CommandState::QUEUED, ..command });
        }
        Ok(())
    }

    async fn commands(&self, tenant: &Tenant, ids: &[CommandId]) -> Result<Vec<Command>, EngineError> {
        let tables = lock(&self.tables);
        let ids: BTreeSet<_> = ids.iter().collect();
        let found = ids.into_iter().filter_map(|id| tables.commands.get(id));
        Ok(found.filter(|command| command.key.tenant == *tenant).cloned().collect())
    }

    async fn latest_commands(&self, key: &AgentKey, limit: usize) -> Result<Vec<Command>, EngineError> {
        let tables = lock(&self.tables);
        let of_agent = tables.commands.values().rev().filter(|command| command.key == *key);
        Ok(of_agent.take(limit).cloned().collect())
    }

    async fn queued(&self, limit: usize) -> Result<Vec<QueuedCommand>, EngineError> {
        let tables = lock(&self.tables);
        let queued = tables.commands.values().filter(|command| command.state.status == Status::Queued);
        let header = |command: &Command| QueuedCommand {
            id: command.id,
            key: command.key.clone(),
            expires_at: command.expires_at,
        };
        Ok(queued.take(limit).map(header).collect())
    }

    async fn forget_settled(&self, before: Timestamp, limit: usize) -> Result<usize, EngineError> {
        let mut tables = lock(&self.tables);
        let is_old = |command: &&Command| command.state.settled_at.is_some_and(|at| at < before);
        let old: Vec<_> =
            tables.commands.values().filter(is_old).take(limit).map(|command| command.id).collect();
        for id in &old {
            tables.commands.remove(id);
        }
        Ok(old.len())
    }
}

#[async_trait]
impl RecoveryStore for MemoryStore {
    async fn resync(&self, cell: &Cell) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError> {
        let mut tables = lock(&self.tables);
        for partition in Partition::all() {
            let first = PartitionRow { epoch: 1, position: Position(0), message: None, generation: 0 };
            let row = tables.partitions.entry((cell.clone(), partition)).or_insert(first);
            row.epoch += RESYNC_LIFT;
            row.generation += RESYNC_LIFT;
        }
        for intent in tables.intents.values_mut() {
            intent.revision.0 += RESYNC_LIFT;
        }
        Ok(tables.intents.iter().map(|(tenant, intent)| (tenant.clone(), intent.revision)).collect())
    }
}
