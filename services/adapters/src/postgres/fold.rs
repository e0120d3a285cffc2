//! Fold state: partition rows, commits, agents by key and by partition.

use std::collections::BTreeSet;

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, Cell, Incarnation, InstanceUid, IntentRevision, MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::log::Position;
use muster_ports::store::{AgentWrite, Commit, CommitError, FoldStore, PartitionRow, StoredAgent};
use sqlx::{Connection as _, PgConnection, query};
use uuid::Uuid;

use super::commands::settle;
use super::error::{failed, refused};
use super::rollouts::write_counts;
use super::rows::{Reading, limit, select_agents, signed, stored_agents};
use super::write::{Keys, quarantine, write_agents, write_configs, write_sessions};
use super::{INTENT_LOCKS, PostgresStore, call, intent_lock};

#[async_trait]
impl FoldStore for PostgresStore {
    async fn partition(&self, cell: &Cell, partition: Partition) -> Result<PartitionRow, EngineError> {
        call!(self, |connection| partition_row(connection, cell, partition))
    }

    async fn agents(&self, cell: &Cell, keys: &[AgentKey]) -> Result<Vec<StoredAgent>, EngineError> {
        let keys = Keys::from_iter(keys.iter().collect::<BTreeSet<_>>());
        let found = query(select_agents!(
            "unnest($2::text[], $3::uuid[]) AS k (tenant, uid) \
             JOIN agents AS a ON a.tenant = k.tenant AND a.uid = k.uid AND a.cell = $1",
            ""
        ))
        .bind(cell.as_str())
        .bind(&keys.tenants)
        .bind(&keys.uids);
        call!(self, |connection| async { stored_agents(found.fetch_all(connection).await) })
    }

    async fn partition_agents(
        &self,
        cell: &Cell,
        partition: Partition,
        after: Option<&AgentKey>,
        rows: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        // Every tenant's name comes after the empty one.
        let (tenant, uid) = after.map_or(("", Uuid::nil()), |key| (key.tenant.as_str(), key.uid.0));
        let found = query(select_agents!(
            "agents AS a",
            "WHERE a.cell = $1 AND a.partition = $2 AND (a.tenant, a.uid) > ($3, $4) \
             ORDER BY a.tenant, a.uid LIMIT $5"
        ))
        .bind(cell.as_str())
        .bind(i32::from(partition.number()))
        .bind(tenant)
        .bind(uid)
        .bind(limit(rows));
        call!(self, |connection| async { stored_agents(found.fetch_all(connection).await) })
    }

    async fn orphans(
        &self,
        cell: &Cell,
        partition: Partition,
        live: &[Incarnation],
        rows: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        let live: Vec<Uuid> = live.iter().map(|incarnation| incarnation.0).collect();
        let found = query(select_agents!(
            "agents AS a",
            "WHERE s.cell = $1 AND s.partition = $2 AND s.ended_at IS NULL \
             AND s.transport <> 'http' AND s.incarnation <> ALL($3) LIMIT $4"
        ))
        .bind(cell.as_str())
        .bind(i32::from(partition.number()))
        .bind(live)
        .bind(limit(rows));
        call!(self, |connection| async { stored_agents(found.fetch_all(connection).await) })
    }

    async fn commit(&self, commit: Commit) -> Result<PartitionRow, CommitError> {
        call!(self, |connection| write(connection, &commit))
    }
}

async fn partition_row(
    connection: &mut PgConnection,
    cell: &Cell,
    partition: Partition,
) -> Result<PartitionRow, EngineError> {
    if let Some(row) = find_row(connection, cell, partition).await? {
        return Ok(row);
    }
    let first = PartitionRow { epoch: 1, position: Position(0), message: None, generation: 0 };
    query(
        "INSERT INTO partitions (cell, partition, epoch, position, message_id, generation) \
         VALUES ($1, $2, $3, $4, NULL, $5) ON CONFLICT DO NOTHING",
    )
    .bind(cell.as_str())
    .bind(i32::from(partition.number()))
    .bind(signed(first.epoch))
    .bind(signed(first.position.0))
    .bind(signed(first.generation))
    .execute(&mut *connection)
    .await
    .map_err(failed("partitions"))?;
    Ok(find_row(connection, cell, partition).await?.unwrap_or(first))
}

async fn find_row(
    connection: &mut PgConnection,
    cell: &Cell,
    partition: Partition,
) -> Result<Option<PartitionRow>, EngineError> {
    let found = query(
        "SELECT epoch, position, message_id, generation FROM partitions WHERE cell = $1 AND partition = $2",
    )
    .bind(cell.as_str())
    .bind(i32::from(partition.number()))
    .fetch_optional(connection)
    .await
    .map_err(failed("partitions"))?;
    let Some(found) = found else { return Ok(None) };
    let reading = Reading::new(&found, "partitions");
    Ok(Some(PartitionRow {
        epoch: reading.unsigned("epoch")?,
        position: Position(reading.unsigned("position")?),
        message: reading.get::<Option<Uuid>>("message_id")?.map(MessageId),
        generation: reading.unsigned("generation")?,
    }))
}

/// Writes a commit, in a handful of statements whatever its size.
async fn write(connection: &mut PgConnection, commit: &Commit) -> Result<PartitionRow, CommitError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    let row = move_row(&mut transaction, commit).await?;
    let partial = commit.agents.iter().filter(|write| !write.state || !write.session);
    let known = check(&mut transaction, commit, partial.map(|write| &write.agent.key).collect()).await?;
    let writes: Vec<(&AgentWrite, bool)> = commit
        .agents
        .iter()
        .map(|write| (write, write.state && write.session || !known.contains(&write.agent.key)))
        .collect();
    write_agents(&mut transaction, commit, &writes).await?;
    write_sessions(&mut transaction, commit, &writes).await?;
    write_configs(&mut transaction, commit).await?;
    quarantine(&mut transaction, commit).await?;
    settle(&mut transaction, &commit.commands).await?;
    write_counts(&mut transaction, commit).await?;
    transaction.commit().await.map_err(refused("partitions"))?;
    Ok(row)
}

/// Moves the partition's row. With the same statement it keeps changes of intent of the tenants that
/// the commit is about away until the commit has ended: their revisions, that the next statement
/// reads, and their labels, that the agents' rows have a copy of.
async fn move_row(connection: &mut PgConnection, commit: &Commit) -> Result<PartitionRow, CommitError> {
    let (epoch, position, message) = commit.progress;
    let generation = commit.generation.wrapping_add(1);
    let tenants = commit.agents.iter().map(|write| &write.agent.key.tenant).chain(commit.decided_on.keys());
    // In one order everywhere, so that no two commits wait for each other.
    let locks: BTreeSet<i32> = tenants.collect::<BTreeSet<_>>().into_iter().map(intent_lock).collect();
    let moved = query(
        "UPDATE partitions SET epoch = $1, position = $2, message_id = $3, generation = $4 \
         WHERE cell = $5 AND partition = $6 AND generation = $7 \
         RETURNING (SELECT count(pg_advisory_xact_lock_shared($8, l.tenant)) FROM unnest($9::int4[]) AS l (tenant))",
    )
    .bind(signed(epoch))
    .bind(signed(position.0))
    .bind(message.map(|id| id.0))
    .bind(signed(generation))
    .bind(commit.cell.as_str())
    .bind(i32::from(commit.partition.number()))
    .bind(signed(commit.generation))
    .bind(INTENT_LOCKS)
    .bind(locks.into_iter().collect::<Vec<_>>())
    .fetch_optional(connection)
    .await
    .map_err(failed("partitions"))?;
    match moved {
        Some(_) => Ok(PartitionRow { epoch, position, message, generation }),
        None => Err(CommitError::RowMoved),
    }
}

/// Checks the revisions that the commit was decided on. Returns those of the keys that the cell has
/// agents for.
async fn check(
    connection: &mut PgConnection,
    commit: &Commit,
    keys: Keys<'_>,
) -> Result<BTreeSet<AgentKey>, CommitError> {
    if commit.decided_on.is_empty() && keys.uids.is_empty() {
        return Ok(BTreeSet::new());
    }
    let tenants: Vec<&str> = commit.decided_on.keys().map(|tenant| tenant.as_str()).collect();
    let found = query(
        "SELECT tenant, NULL::uuid AS uid, revision FROM intents WHERE tenant = ANY($1) \
         UNION ALL SELECT a.tenant, a.uid, 0 FROM unnest($2::text[], $3::uuid[]) AS k (tenant, uid) \
         JOIN agents AS a ON a.tenant = k.tenant AND a.uid = k.uid AND a.cell = $4",
    )
    .bind(tenants)
    .bind(keys.tenants)
    .bind(keys.uids)
    .bind(commit.cell.as_str())
    .fetch_all(connection)
    .await
    .map_err(failed("intents"))?;
    let mut moved = commit.decided_on.clone();
    moved.retain(|_, revision| *revision != IntentRevision(0));
    let mut known = BTreeSet::new();
    for row in &found {
        let reading = Reading::new(row, "intents");
        let tenant = reading.parsed("tenant")?;
        if let Some(uid) = reading.get::<Option<Uuid>>("uid")? {
            known.insert(AgentKey { tenant, uid: InstanceUid(uid) });
            continue;
        }
        let revision = IntentRevision(reading.unsigned("revision")?);
        if commit.decided_on.get(&tenant) == Some(&revision) {
            moved.remove(&tenant);
        } else {
            moved.insert(tenant, revision);
        }
    }
    match moved.into_keys().next() {
        Some(tenant) => Err(CommitError::IntentMoved(tenant)),
        None => Ok(known),
    }
}
