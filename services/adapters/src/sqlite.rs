//! The store in one SQLite file, for `muster serve` on one machine.
//!
//! One connection writes, in transactions that take the write lock when they begin; a few others
//! read. Every acknowledged write has been synced to the disk (`synchronous = FULL` on a write-ahead
//! log), so that no change of intent that an operator was told of is lost with the power.

mod access;
mod audit;
mod changes;
mod commands;
mod components;
mod credentials;
mod error;
mod fleet;
mod fold;
mod intent;
mod open;
mod recovery;
mod rollouts;
mod rows;
mod write;

use std::fs::File;

use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqlitePool, Transaction};

use error::failed;
use muster_ports::EngineError;

/// The store in one file. It belongs to one process at a time.
#[derive(Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Locked for as long as the store is open. Dropped last: fields are dropped in this order.
    _lock: File,
}

impl SqliteStore {
    /// Begins a transaction that writes. Dropped without a commit, it leaves nothing.
    async fn begin_write(&self) -> Result<Transaction<'static, Sqlite>, EngineError> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed("a new transaction"))
    }

    /// Begins a transaction whose reads all see one moment.
    async fn begin_read(&self) -> Result<Transaction<'static, Sqlite>, EngineError> {
        self.readers.begin().await.map_err(failed("a new transaction"))
    }

    /// A connection for one read.
    async fn reader(&self) -> Result<PoolConnection<Sqlite>, EngineError> {
        self.readers.acquire().await.map_err(failed("a connection"))
    }
}
