//! Which life of the log, and of the store, a partition's row is of.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_ports::EngineError;
use muster_ports::bus::Subject;
use muster_ports::epochs;
use muster_ports::log::Position;
use muster_ports::store::{Commit, CommitError, PartitionRow};
use tracing::debug;

use super::{Restart, Worker};

impl Worker<'_> {
    /// Makes sure that the log is the one that the row's position is of, and the store one that was not set
    /// back; otherwise opens an epoch. Gateways learn of every epoch, and ask their agents for full state when
    /// it has risen.
    pub(super) async fn verify_epoch(&mut self) -> Result<(), Restart> {
        let (bucket, cell) = (self.shared.engines.values.as_ref(), &self.shared.settings.cell);
        let row = self.row;
        let told = epochs::load(bucket, cell).await?.of(self.partition);
        let is_known = self.is_log_known().await?;
        let has_no_log = row.position == Position::default() && row.message.is_none();
        let message = match is_known && !has_no_log {
            true => row.message,
            false => self.shared.engines.log.id_at(self.partition, Position::default()).await?,
        };
        if has_no_log && message.is_some() && told <= row.epoch {
            let commit = self.commit((row.epoch, row.position, message), BTreeMap::new(), Vec::new());
            self.row = self.write_row(commit).await?;
        }
        if !is_known || told > row.epoch {
            let progress = match is_known {
                true => (told + 1, row.position, message),
                false => (row.epoch.max(told) + 1, Position::default(), message),
            };
            debug!(partition = %self.partition, epoch = progress.0, position = row.position.0, told, "the log or the store is not the one of before: a new epoch begins");
            let commit = self.commit(progress, BTreeMap::new(), Vec::new());
            self.row = self.write_row(commit).await?;
        }
        self.raise_epoch(told).await
    }

    /// Makes sure that the bucket has the epoch, which may have been lost.
    pub(super) async fn tell_epoch(&self) -> Result<(), Restart> {
        let (bucket, cell) = (self.shared.engines.values.as_ref(), &self.shared.settings.cell);
        let told = epochs::load(bucket, cell).await?.of(self.partition);
        self.raise_epoch(told).await
    }

    async fn raise_epoch(&self, told: u64) -> Result<(), Restart> {
        if self.row.epoch > told {
            let (bucket, cell) = (self.shared.engines.values.as_ref(), &self.shared.settings.cell);
            let _turn = self.shared.raising_epochs.lock().await;
            epochs::raise(bucket, cell, self.partition, self.row.epoch).await?;
            // Gateways look by themselves if this is lost.
            let _ = self.shared.engines.bus.publish(&Subject::Floors(cell.clone()), Bytes::new()).await;
        }
        Ok(())
    }

    /// Whether the log is the one that the row's position is of.
    pub(super) async fn is_log_known(&self) -> Result<bool, EngineError> {
        let PartitionRow { position, message, .. } = self.row;
        // Of a row that was made before any log was seen.
        if position == Position::default() && message.is_none() {
            return Ok(true);
        }
        let found = self.shared.engines.log.id_at(self.partition, position).await?;
        Ok(found.is_some() && found == message)
    }

    async fn write_row(&self, commit: Commit) -> Result<PartitionRow, Restart> {
        self.write(commit).await.map_err(|error| match error {
            CommitError::Engine(error) => Restart::Engine(error),
            CommitError::Rejected { reason } => Restart::Rejected(reason),
            CommitError::RowMoved | CommitError::IntentMoved(_) | CommitError::CommandMoved(_) => {
                Restart::RowMoved
            }
        })
    }

    /// Makes sure that the row is the one that this worker left: a quiet one would not notice for long.
    pub(super) async fn verify_row(&self) -> Result<(), Restart> {
        let row = self.shared.engines.fold.partition(&self.shared.settings.cell, self.partition).await?;
        if row == self.row { Ok(()) } else { Err(Restart::RowMoved) }
    }
}
