//! The store: its commits are judged as they happen.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use muster_domain::audit::Entry;
use muster_domain::desired::Labels;
use muster_domain::ids::{AgentKey, Cell, Incarnation, IntentRevision, Partition, Tenant, Timestamp};
use muster_domain::intent::{ChangeRecord, Intent, IntentChange, ObjectRef};
use muster_ports::EngineError;
use muster_ports::kv::KeyValue;
use muster_ports::log::Log;
use muster_ports::store::{
    Commit, CommitError, FoldStore, IntentError, IntentStore, PartitionRow, StoredAgent,
};
use muster_proto::Message;
use muster_proto::bus::GatewayLease;

use super::Wire;
use crate::Broken;
use crate::check::Committed;
use crate::trace::Short;
use crate::weather::Engine;
use crate::world::World;

/// The store as a process sees it.
pub(crate) struct SimStore(Arc<Wire>);

impl SimStore {
    pub(super) fn new(wire: &Arc<Wire>) -> Self {
        Self(Arc::clone(wire))
    }

    fn world(&self) -> Arc<World> {
        Arc::clone(&self.0.world)
    }
}

#[async_trait]
impl FoldStore for SimStore {
    async fn partition(&self, cell: &Cell, partition: Partition) -> Result<PartitionRow, EngineError> {
        let (world, cell) = (self.world(), cell.clone());
        let work = async move {
            let mut row = world.engines().store.partition(&cell, partition).await?;
            if world.broken == Some(Broken::PerAgentOffset)
                && let Some((position, message)) = world.check(|checker| checker.last_of_an_agent(partition))
            {
                (row.position, row.message) = (position, Some(message));
            }
            Ok(row)
        };
        self.0.call(Engine::Store, None, work).await
    }

    async fn agents(&self, cell: &Cell, keys: &[AgentKey]) -> Result<Vec<StoredAgent>, EngineError> {
        let (world, cell, keys) = (self.world(), cell.clone(), keys.to_vec());
        let work = async move { world.engines().store.agents(&cell, &keys).await };
        self.0.call(Engine::Store, None, work).await
    }

    async fn partition_agents(
        &self,
        cell: &Cell,
        partition: Partition,
        after: Option<&AgentKey>,
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        let (world, cell, after) = (self.world(), cell.clone(), after.cloned());
        let work = async move {
            world.engines().store.partition_agents(&cell, partition, after.as_ref(), limit).await
        };
        self.0.call(Engine::Store, None, work).await
    }

    async fn orphans(
        &self,
        cell: &Cell,
        partition: Partition,
        live: &[Incarnation],
        limit: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        let (world, cell, live) = (self.world(), cell.clone(), live.to_vec());
        let work = async move { world.engines().store.orphans(&cell, partition, &live, limit).await };
        self.0.call(Engine::Store, None, work).await
    }

    async fn commit(&self, commit: Commit) -> Result<PartitionRow, CommitError> {
        let (world, name) = (self.world(), self.0.process.name.clone());
        let work = async move {
            let result = judged(&world, commit.clone()).await;
            let (partition, (epoch, position, _)) = (commit.partition, commit.progress);
            let agents: Vec<_> =
                commit.agents.iter().map(|write| Short(write.agent.key.uid.0).to_string()).collect();
            match &result {
                Ok(row) => world.trace.note(
                    &name,
                    format_args!(
                        "commits {partition} epoch {epoch} to {} generation {} of {}",
                        position.0,
                        row.generation,
                        agents.join(",")
                    ),
                ),
                Err(error) => world.trace.note(&name, format_args!("cannot commit {partition}: {error}")),
            }
            result
        };
        self.0.call(Engine::Store, None, work).await
    }
}

/// Commits, and has the checker look at it.
async fn judged(world: &World, mut commit: Commit) -> Result<PartitionRow, CommitError> {
    let engines = world.engines();
    let before = engines.store.partition(&commit.cell, commit.partition).await?;
    if world.broken == Some(Broken::NoFence) {
        commit.generation = before.generation;
    }
    let log_knows = engines.log.1.id_at(commit.partition, before.position).await?;
    let row = engines.store.commit(commit.clone()).await?;
    let keys: Vec<_> = commit.agents.iter().map(|write| write.agent.key.clone()).collect();
    let labels: BTreeMap<AgentKey, Labels> = engines
        .store
        .agents(&commit.cell, &keys)
        .await?
        .into_iter()
        .map(|stored| (stored.agent.key, stored.labels))
        .collect();
    let intent = match commit.decided_on.get(&world.tenant) {
        Some(revision) if !world.check(|checker| checker.has_planner(*revision)) => {
            Some(engines.store.intent(&world.tenant).await?)
        }
        _ => None,
    };
    let leases = engines.leases.list("gateways/").await?;
    let leases = leases.iter().filter_map(|(_, lease)| GatewayLease::decode(lease.value.clone()).ok());
    let live = leases.filter_map(|lease| Incarnation::try_from(lease.incarnation.as_ref()).ok()).collect();
    world.check(|checker| {
        checker.committed(&Committed { commit: &commit, before, row, log_knows, labels, intent, live });
    });
    Ok(row)
}

#[async_trait]
impl IntentStore for SimStore {
    async fn revisions(&self) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError> {
        let world = self.world();
        self.0.call(Engine::Store, None, async move { world.engines().store.revisions().await }).await
    }

    async fn intent(&self, tenant: &Tenant) -> Result<Intent, EngineError> {
        let (world, tenant) = (self.world(), tenant.clone());
        self.0.call(Engine::Store, None, async move { world.engines().store.intent(&tenant).await }).await
    }

    async fn change(&self, tenant: &Tenant, change: &IntentChange) -> Result<IntentRevision, IntentError> {
        let (world, name) = (self.world(), self.0.process.name.clone());
        let (tenant, change) = (tenant.clone(), change.clone());
        let work = async move {
            let result = world.engines().store.change(&tenant, &change).await;
            match &result {
                Ok(revision) => world.trace.note(&name, format_args!("changes the intent: {revision}")),
                Err(error) => world.trace.note(&name, format_args!("cannot change the intent: {error}")),
            }
            result
        };
        self.0.call(Engine::Store, None, work).await
    }

    async fn advance(
        &self,
        tenant: &Tenant,
        at_least: IntentRevision,
    ) -> Result<IntentRevision, EngineError> {
        let (world, name, tenant) = (self.world(), self.0.process.name.clone(), tenant.clone());
        let work = async move {
            let revision = world.engines().store.advance(&tenant, at_least).await?;
            world.trace.note(&name, format_args!("advances the intent to {revision}"));
            Ok(revision)
        };
        self.0.call(Engine::Store, None, work).await
    }

    async fn history(
        &self,
        tenant: &Tenant,
        object: Option<&ObjectRef>,
        before: Option<IntentRevision>,
        limit: usize,
    ) -> Result<Vec<ChangeRecord>, EngineError> {
        let (world, tenant, object) = (self.world(), tenant.clone(), object.cloned());
        let work =
            async move { world.engines().store.history(&tenant, object.as_ref(), before, limit).await };
        self.0.call(Engine::Store, None, work).await
    }

    async fn label(
        &self,
        key: &AgentKey,
        changes: &BTreeMap<String, Option<String>>,
        now: Timestamp,
        audit: Option<&Entry>,
    ) -> Result<Option<Labels>, EngineError> {
        let (world, key, changes, audit) = (self.world(), key.clone(), changes.clone(), audit.cloned());
        let name = self.0.process.name.clone();
        let work = async move {
            world.trace.note(&name, format_args!("labels {} {changes:?}", Short(key.uid.0)));
            world.engines().store.label(&key, &changes, now, audit.as_ref()).await
        };
        self.0.call(Engine::Store, None, work).await
    }
}
