//! Small replicated values: leases, epochs and floors.

use async_trait::async_trait;
use bytes::Bytes;

use crate::EngineError;

/// A value and the number of its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// Rises with every change of the bucket.
    pub version: u64,
}

/// What a write needs to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Anything.
    Any,
    /// No value.
    Absent,
    /// The value with this version.
    Version(u64),
}

/// Why a value was not written.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The precondition did not hold.
    #[error("the key was changed by another writer")]
    Conflict,
    /// The engine did not say; the value may have been written.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// One bucket of values. The bucket may have a time to live: then a value goes away that long after
/// it was written last. Reads see every write that was acknowledged before they began.
#[async_trait]
pub trait KeyValue: Send + Sync {
    /// The value under a key.
    async fn get(&self, key: &str) -> Result<Option<Versioned>, EngineError>;

    /// Writes a value. Returns its version.
    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<u64, PutError>;

    /// Removes a value; no error if there is none.
    async fn remove(&self, key: &str) -> Result<(), EngineError>;

    /// All keys with this prefix and their values, by key.
    async fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, EngineError>;
}
