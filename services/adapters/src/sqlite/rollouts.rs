//! Strategies, rollouts, their ledgers and counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use muster_domain::ids::{Cell, InstanceUid, IntentRevision, Partition, RolloutId, Tenant, Timestamp};
use muster_domain::intent::{Intent, IntentChange};
use muster_domain::rollout::{Counts, Rollout, Staged, Step, StoredStrategy};
use muster_ports::EngineError;
use muster_ports::rollouts::{PartitionCounts, RolloutStore, StepError};
use muster_ports::store::{Commit, IntentError};
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, query};

use super::SqliteStore;
use super::audit::append;
use super::error::{corrupt, failed};
use super::intent::{raise_floor, raise_revision};
use super::rows::{Reading, limit, signed, to_json};

#[async_trait]
impl RolloutStore for SqliteStore {
    async fn active_rollouts(&self) -> Result<Vec<(Tenant, Rollout)>, EngineError> {
        let found = query("SELECT tenant, body FROM rollouts WHERE active = 1 ORDER BY id")
            .fetch_all(&mut *self.reader().await?)
            .await
            .map_err(failed("rollouts"))?;
        let read = |row: &SqliteRow| {
            let reading = Reading::new(row, "rollouts");
            Ok((reading.parsed("tenant")?, reading.json("body")?))
        };
        found.iter().map(read).collect()
    }

    async fn rollouts(
        &self,
        tenant: &Tenant,
        before: Option<RolloutId>,
        rows: usize,
    ) -> Result<Vec<Rollout>, EngineError> {
        let found = query(
            "SELECT body FROM rollouts WHERE tenant = $1 AND ($2 IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(before.map(|id| id.0))
        .bind(limit(rows))
        .fetch_all(&mut *self.reader().await?)
        .await
        .map_err(failed("rollouts"))?;
        found.iter().map(body).collect()
    }

    async fn rollout(&self, tenant: &Tenant, id: RolloutId) -> Result<Option<Rollout>, EngineError> {
        let found = query("SELECT body FROM rollouts WHERE tenant = $1 AND id = $2")
            .bind(tenant.as_str())
            .bind(id.0)
            .fetch_optional(&mut *self.reader().await?)
            .await
            .map_err(failed("rollouts"))?;
        found.as_ref().map(body).transpose()
    }

    async fn ledger(&self, tenant: &Tenant, id: RolloutId) -> Result<BTreeSet<InstanceUid>, EngineError> {
        read_ledger(&mut *self.reader().await?, tenant, id).await
    }

    async fn rollout_counts(
        &self,
        tenant: &Tenant,
        id: RolloutId,
    ) -> Result<BTreeMap<(Cell, Partition), Counts>, EngineError> {
        let found =
            query("SELECT cell, partition, counts FROM rollout_counts WHERE tenant = $1 AND rollout = $2")
                .bind(tenant.as_str())
                .bind(id.0)
                .fetch_all(&mut *self.reader().await?)
                .await
                .map_err(failed("rollout_counts"))?;
        let read = |row: &SqliteRow| {
            let reading = Reading::new(row, "rollout_counts");
            let number: i64 = reading.get("partition")?;
            let partition = u16::try_from(number).ok().and_then(Partition::new);
            let partition =
                partition.ok_or_else(|| corrupt("rollout_counts", format_args!("partition {number}")))?;
            Ok(((reading.parsed("cell")?, partition), reading.json("counts")?))
        };
        found.iter().map(read).collect()
    }

    async fn partition_counts(
        &self,
        cell: &Cell,
        partition: Partition,
    ) -> Result<PartitionCounts, EngineError> {
        let found = query(
            "SELECT c.tenant, c.rollout, c.counts FROM rollouts AS r JOIN rollout_counts AS c \
             ON c.tenant = r.tenant AND c.rollout = r.id AND c.cell = $1 AND c.partition = $2 WHERE r.active = 1",
        )
        .bind(cell.as_str())
        .bind(partition.number())
        .fetch_all(&mut *self.reader().await?)
        .await
        .map_err(failed("rollout_counts"))?;
        let read = |row: &SqliteRow| {
            let reading = Reading::new(row, "rollout_counts");
            Ok(((reading.parsed("tenant")?, reading.id("rollout")?), reading.json("counts")?))
        };
        found.iter().map(read).collect()
    }

    async fn step(&self, tenant: &Tenant, step: &Step) -> Result<Rollout, StepError> {
        let mut transaction = self.begin_write().await?;
        let revision = match step.moves_intent {
            true => raise_revision(&mut transaction, tenant).await?,
            false => IntentRevision::default(),
        };
        let Some(after) = take(&mut transaction, tenant, step, revision).await? else {
            return Err(StepError::Moved);
        };
        append(&mut transaction, tenant, step.audit.as_ref()).await?;
        transaction.commit().await.map_err(failed("rollouts"))?;
        Ok(after)
    }
}

/// Writes a step, of which the intent has this revision if it moves it. None: the rollout has moved.
async fn take(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    step: &Step,
    revision: IntentRevision,
) -> Result<Option<Rollout>, EngineError> {
    let mut after = step.after.clone();
    if step.moves_intent {
        after.revision = revision;
    }
    let moved = query(
        "UPDATE rollouts SET version = $1, active = $2, body = $3 WHERE tenant = $4 AND id = $5 AND version = $6",
    )
    .bind(signed(after.version))
    .bind(i64::from(after.state.is_active()))
    .bind(to_json("rollouts", &after)?)
    .bind(tenant.as_str())
    .bind(after.id.0)
    .bind(signed(after.version.wrapping_sub(1)))
    .execute(&mut *connection)
    .await
    .map_err(failed("rollouts"))?;
    if moved.rows_affected() == 0 {
        return Ok(None);
    }
    if step.raises_floor {
        raise_floor(connection, tenant, &after.assignment, revision).await?;
    }
    if !step.admitted.is_empty() {
        query(
            "INSERT OR IGNORE INTO rollout_agents (tenant, rollout, uid, stage) \
             SELECT $1, $2, unhex(value, '-'), $4 FROM json_each($3)",
        )
        .bind(tenant.as_str())
        .bind(after.id.0)
        .bind(to_json("rollout_agents", &step.admitted)?)
        .bind(limit(after.stage))
        .execute(connection)
        .await
        .map_err(failed("rollout_agents"))?;
    }
    Ok(Some(after))
}

/// Writes what a change of intent means for strategies and rollouts.
pub(super) async fn write_rollouts(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    change: &IntentChange,
    revision: IntentRevision,
) -> Result<(), IntentError> {
    for strategy in &change.strategies {
        query(
            "INSERT OR REPLACE INTO strategies (tenant, name, spec, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(tenant.as_str())
        .bind(&strategy.name)
        .bind(to_json("strategies", &strategy.strategy)?)
        .bind(signed(strategy.created_at.0))
        .bind(signed(strategy.updated_at.0))
        .execute(&mut *connection)
        .await
        .map_err(failed("strategies"))?;
    }
    for step in &change.rollouts {
        if take(connection, tenant, step, revision).await?.is_none() {
            return Err(IntentError::Moved);
        }
    }
    for rollout in &change.new_rollouts {
        let rollout = Rollout { revision, ..rollout.clone() };
        query(
            "INSERT INTO rollouts (tenant, id, assignment, begun, version, active, body) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(tenant.as_str())
        .bind(rollout.id.0)
        .bind(&rollout.assignment)
        .bind(signed(revision.0))
        .bind(signed(rollout.version))
        .bind(i64::from(rollout.state.is_active()))
        .bind(to_json("rollouts", &rollout)?)
        .execute(&mut *connection)
        .await
        .map_err(failed("rollouts"))?;
    }
    Ok(())
}

/// Reads a tenant's strategies, and the latest rollout of each assignment.
pub(super) async fn read_rollouts(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    intent: &mut Intent,
) -> Result<(), EngineError> {
    let strategies = query("SELECT name, spec, created_at, updated_at FROM strategies WHERE tenant = $1")
        .bind(tenant.as_str())
        .fetch_all(&mut *connection)
        .await
        .map_err(failed("strategies"))?;
    for row in &strategies {
        let name: String = Reading::new(row, "strategies").get("name")?;
        let reading = Reading::new(row, &format!("strategies, {tenant}:{name}"));
        let stored = StoredStrategy {
            name: name.clone(),
            strategy: reading.json("spec")?,
            created_at: Timestamp(reading.unsigned("created_at")?),
            updated_at: Timestamp(reading.unsigned("updated_at")?),
        };
        intent.strategies.insert(name, stored);
    }
    let latest = query(
        "SELECT r.body FROM rollouts AS r WHERE r.tenant = $1 AND r.begun = (SELECT max(o.begun) \
         FROM rollouts AS o WHERE o.tenant = r.tenant AND o.assignment = r.assignment)",
    )
    .bind(tenant.as_str())
    .fetch_all(&mut *connection)
    .await
    .map_err(failed("rollouts"))?;
    for row in &latest {
        let rollout = body(row)?;
        let mut ledgers = BTreeMap::new();
        for id in rollout.ledgers() {
            ledgers.insert(id, Arc::new(read_ledger(connection, tenant, id).await?));
        }
        intent.rollouts.insert(rollout.assignment.clone(), Staged { rollout, ledgers });
    }
    Ok(())
}

/// Writes where a partition's agents stand, within a commit.
pub(super) async fn write_counts(
    connection: &mut SqliteConnection,
    commit: &Commit,
) -> Result<(), EngineError> {
    for ((tenant, rollout), counts) in &commit.counts {
        query(
            "INSERT OR REPLACE INTO rollout_counts (tenant, rollout, cell, partition, counts) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(tenant.as_str())
        .bind(rollout.0)
        .bind(commit.cell.as_str())
        .bind(commit.partition.number())
        .bind(to_json("rollout_counts", counts)?)
        .execute(&mut *connection)
        .await
        .map_err(failed("rollout_counts"))?;
    }
    Ok(())
}

async fn read_ledger(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    id: RolloutId,
) -> Result<BTreeSet<InstanceUid>, EngineError> {
    let found = query("SELECT uid FROM rollout_agents WHERE tenant = $1 AND rollout = $2")
        .bind(tenant.as_str())
        .bind(id.0)
        .fetch_all(connection)
        .await
        .map_err(failed("rollout_agents"))?;
    found.iter().map(|row| Reading::new(row, "rollout_agents").id("uid")).collect()
}

fn body(row: &SqliteRow) -> Result<Rollout, EngineError> {
    Reading::new(row, "rollouts").json("body")
}
