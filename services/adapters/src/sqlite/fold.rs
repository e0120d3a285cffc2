//! Fold state: partition rows, commits, agents by key and by partition.

use std::collections::BTreeSet;

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, Cell, Incarnation, InstanceUid, MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::log::Position;
use muster_ports::store::{Commit, CommitError, FoldStore, PartitionRow, Quarantined, StoredAgent};
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, query};

use super::SqliteStore;
use super::commands::settle;
use super::error::failed;
use super::intent::present_revision;
use super::rollouts::write_counts;
use super::rows::{Reading, limit, select_agents, signed, stored_agent, to_json};
use super::write::{Home, write_agents};

#[async_trait]
impl FoldStore for SqliteStore {
    async fn partition(&self, cell: &Cell, partition: Partition) -> Result<PartitionRow, EngineError> {
        let home = Home { cell, partition };
        if let Some(row) = home.row(&mut *self.reader().await?).await? {
            return Ok(row);
        }
        let mut transaction = self.begin_write().await?;
        let first = PartitionRow { epoch: 1, position: Position(0), message: None, generation: 0 };
        query(
            "INSERT INTO partitions (cell, partition, epoch, position, message_id, generation) \
             VALUES ($1, $2, $3, $4, NULL, $5) ON CONFLICT DO NOTHING",
        )
        .bind(cell.as_str())
        .bind(partition.number())
        .bind(signed(first.epoch))
        .bind(signed(first.position.0))
        .bind(signed(first.generation))
        .execute(&mut *transaction)
        .await
        .map_err(failed("partitions"))?;
        let row = home.row(&mut transaction).await?;
        transaction.commit().await.map_err(failed("partitions"))?;
        Ok(row.unwrap_or(first))
    }

    async fn agents(&self, cell: &Cell, keys: &[AgentKey]) -> Result<Vec<StoredAgent>, EngineError> {
        let keys: BTreeSet<(&str, InstanceUid)> =
            keys.iter().map(|key| (key.tenant.as_str(), key.uid)).collect();
        let found = query(select_agents!(
            "FROM json_each($1) AS k \
             CROSS JOIN agents AS a ON a.tenant = k.value ->> 0 AND a.uid = unhex(k.value ->> 1, '-') \
             AND a.cell = $2 LEFT JOIN sessions AS s USING (tenant, uid, cell)"
        ))
        .bind(to_json("agents", &keys)?)
        .bind(cell.as_str())
        .fetch_all(&mut *self.reader().await?)
        .await;
        stored_agents(found)
    }

    async fn partition_agents(
        &self,
        cell: &Cell,
        partition: Partition,
        after: Option<&AgentKey>,
        rows: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        // Every tenant's name comes after the empty one.
        let (tenant, uid) = after.map_or(("", &[][..]), |key| (key.tenant.as_str(), &key.uid.as_bytes()[..]));
        let found = query(select_agents!(
            "FROM agents AS a LEFT JOIN sessions AS s USING (tenant, uid, cell) \
             WHERE a.cell = $1 AND a.partition = $2 AND (a.tenant, a.uid) > ($3, $4) \
             ORDER BY a.tenant, a.uid LIMIT $5"
        ))
        .bind(cell.as_str())
        .bind(partition.number())
        .bind(tenant)
        .bind(uid)
        .bind(limit(rows))
        .fetch_all(&mut *self.reader().await?)
        .await;
        stored_agents(found)
    }

    async fn orphans(
        &self,
        cell: &Cell,
        partition: Partition,
        live: &[Incarnation],
        rows: usize,
    ) -> Result<Vec<StoredAgent>, EngineError> {
        let found = query(select_agents!(
            "FROM sessions AS s JOIN agents AS a USING (tenant, uid, cell) \
             WHERE s.cell = $1 AND s.partition = $2 AND s.ended_at IS NULL \
             AND s.transport <> 'http' AND s.incarnation NOT IN (SELECT unhex(value, '-') FROM json_each($3)) LIMIT $4"
        ))
        .bind(cell.as_str())
        .bind(partition.number())
        .bind(to_json("sessions", &live)?)
        .bind(limit(rows))
        .fetch_all(&mut *self.reader().await?)
        .await;
        stored_agents(found)
    }

    async fn commit(&self, commit: Commit) -> Result<PartitionRow, CommitError> {
        let mut transaction = self.begin_write().await?;
        let (epoch, position, message) = commit.progress;
        let generation = commit.generation.wrapping_add(1);
        let moved = query(
            "UPDATE partitions SET epoch = $1, position = $2, message_id = $3, generation = $4 \
             WHERE cell = $5 AND partition = $6 AND generation = $7",
        )
        .bind(signed(epoch))
        .bind(signed(position.0))
        .bind(message.map(|id| id.0))
        .bind(signed(generation))
        .bind(commit.cell.as_str())
        .bind(commit.partition.number())
        .bind(signed(commit.generation))
        .execute(&mut *transaction)
        .await
        .map_err(failed("partitions"))?;
        if moved.rows_affected() == 0 {
            return Err(CommitError::RowMoved);
        }
        for (tenant, revision) in &commit.decided_on {
            if present_revision(&mut transaction, tenant).await? != *revision {
                return Err(CommitError::IntentMoved(tenant.clone()));
            }
        }
        let home = Home { cell: &commit.cell, partition: commit.partition };
        write_agents(&mut transaction, &home, &commit.agents).await?;
        for entry in &commit.quarantined {
            quarantine(&mut transaction, &home, epoch, entry).await?;
        }
        settle(&mut transaction, &commit.commands).await?;
        write_counts(&mut transaction, &commit).await?;
        transaction.commit().await.map_err(failed("partitions"))?;
        Ok(PartitionRow { epoch, position, message, generation })
    }
}

async fn quarantine(
    connection: &mut SqliteConnection,
    home: &Home<'_>,
    epoch: u64,
    entry: &Quarantined,
) -> Result<(), EngineError> {
    query(
        "INSERT INTO quarantine (cell, partition, epoch, position, message_id, tenant, uid, payload, reason, at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
    )
    .bind(home.cell.as_str())
    .bind(home.partition.number())
    .bind(signed(epoch))
    .bind(signed(entry.position.0))
    .bind(entry.message.0)
    .bind(entry.key.as_ref().map(|key| key.tenant.as_str()))
    .bind(entry.key.as_ref().map(|key| key.uid.0))
    .bind(&entry.payload[..])
    .bind(&entry.reason)
    .bind(signed(entry.at.0))
    .execute(connection)
    .await
    .map_err(failed("quarantine"))?;
    Ok(())
}

fn stored_agents(found: Result<Vec<SqliteRow>, sqlx::Error>) -> Result<Vec<StoredAgent>, EngineError> {
    found.map_err(failed("agents"))?.iter().map(stored_agent).collect()
}

impl Home<'_> {
    async fn row(&self, connection: &mut SqliteConnection) -> Result<Option<PartitionRow>, EngineError> {
        let found = query(
            "SELECT epoch, position, message_id, generation FROM partitions WHERE cell = $1 AND partition = $2",
        )
        .bind(self.cell.as_str())
        .bind(self.partition.number())
        .fetch_optional(connection)
        .await
        .map_err(failed("partitions"))?;
        let Some(found) = found else { return Ok(None) };
        let reading = Reading::new(&found, "partitions");
        let message = match reading.get::<Option<&[u8]>>("message_id")? {
            Some(_) => Some(reading.id::<MessageId>("message_id")?),
            None => None,
        };
        Ok(Some(PartitionRow {
            epoch: reading.unsigned("epoch")?,
            position: Position(reading.unsigned("position")?),
            message,
            generation: reading.unsigned("generation")?,
        }))
    }
}
