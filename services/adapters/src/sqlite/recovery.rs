//! What an operator asks of a store that was restored from a backup.

use std::collections::BTreeMap;

use async_trait::async_trait;
use muster_domain::ids::{Cell, IntentRevision, Partition, Tenant};
use muster_ports::EngineError;
use muster_ports::store::{IntentStore, RESYNC_LIFT, RecoveryStore};
use sqlx::query;

use super::SqliteStore;
use super::error::failed;
use super::rows::signed;

#[async_trait]
impl RecoveryStore for SqliteStore {
    async fn resync(&self, cell: &Cell) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError> {
        let mut transaction = self.begin_write().await?;
        for partition in Partition::all() {
            query(
                "INSERT INTO partitions AS p (cell, partition, epoch, position, message_id, generation) \
                 VALUES ($1, $2, 1 + $3, 0, NULL, $3) ON CONFLICT (cell, partition) \
                 DO UPDATE SET epoch = p.epoch + $3, generation = p.generation + $3",
            )
            .bind(cell.as_str())
            .bind(partition.number())
            .bind(signed(RESYNC_LIFT))
            .execute(&mut *transaction)
            .await
            .map_err(failed("partitions"))?;
        }
        query("UPDATE intents SET revision = revision + $1")
            .bind(signed(RESYNC_LIFT))
            .execute(&mut *transaction)
            .await
            .map_err(failed("intents"))?;
        transaction.commit().await.map_err(failed("intents"))?;
        self.revisions().await
    }
}
