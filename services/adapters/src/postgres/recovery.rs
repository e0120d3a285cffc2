//! What an operator asks of a database that was restored from a backup.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use muster_domain::ids::{Cell, IntentRevision, PARTITIONS, Tenant};
use muster_ports::EngineError;
use muster_ports::store::{RESYNC_LIFT, RecoveryStore};
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, query};

use super::error::failed;
use super::rows::{Reading, signed};
use super::{INTENT_LOCKS, PostgresStore, call, intent_lock};

#[async_trait]
impl RecoveryStore for PostgresStore {
    async fn resync(&self, cell: &Cell) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError> {
        call!(self, |connection| resync(connection, cell))
    }
}

/// Rows of partitions first and locks on intents then, as commits do: so neither waits for the other.
async fn resync(
    connection: &mut PgConnection,
    cell: &Cell,
) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    query(
        "INSERT INTO partitions AS p (cell, partition, epoch, position, message_id, generation) \
         SELECT $1, number, 1 + $3, 0, NULL, $3 FROM generate_series(0, $2 - 1) AS number ORDER BY number \
         ON CONFLICT (cell, partition) DO UPDATE SET epoch = p.epoch + $3, generation = p.generation + $3",
    )
    .bind(cell.as_str())
    .bind(i32::from(PARTITIONS))
    .bind(signed(RESYNC_LIFT))
    .execute(&mut *transaction)
    .await
    .map_err(failed("partitions"))?;
    let tenants = query("SELECT tenant, revision FROM intents").fetch_all(&mut *transaction).await;
    let locks = tenants.map_err(failed("intents"))?;
    let locks: BTreeSet<i32> =
        locks.iter().map(|row| Ok(intent_lock(&revision(row)?.0))).collect::<Result<_, EngineError>>()?;
    for lock in locks {
        query("SELECT pg_advisory_xact_lock($1, $2)")
            .bind(INTENT_LOCKS)
            .bind(lock)
            .execute(&mut *transaction)
            .await
            .map_err(failed("intents"))?;
    }
    let lifted = query("UPDATE intents SET revision = revision + $1 RETURNING tenant, revision")
        .bind(signed(RESYNC_LIFT))
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed("intents"))?;
    let lifted = lifted.iter().map(revision).collect::<Result<_, _>>()?;
    transaction.commit().await.map_err(failed("intents"))?;
    Ok(lifted)
}

fn revision(row: &PgRow) -> Result<(Tenant, IntentRevision), EngineError> {
    let reading = Reading::new(row, "intents");
    Ok((reading.parsed("tenant")?, IntentRevision(reading.unsigned("revision")?)))
}
