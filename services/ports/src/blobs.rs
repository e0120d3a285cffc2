//! Payloads that are too large for the log and the bus, known by their content.
//!
//! A blob is on its way from one role to another, not kept: who puts one refers to it within
//! [`USED_WITHIN`], in an entry of the log or in an answer, and control removes it when nothing that
//! is still to be read can refer to it.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::ids::{Digest, Tenant};

use crate::EngineError;

/// Bytes of the largest blob.
pub const MAX_BLOB: usize = 128 << 20;

/// Who has put a blob refers to it within this time, counted from the begin of the put; later it has to
/// be put again. Whoever removes blobs waits for longer.
pub const USED_WITHIN: Duration = Duration::from_secs(60);

/// Bytes a second that an engine is given time for at least.
const SLOWEST: u64 = 4 << 20;

/// Longest wait for a blob of this size, on the way to the engine or back.
pub fn patience(bytes: u64) -> Duration {
    Duration::from_secs(5) + Duration::from_secs(1 + bytes / SLOWEST)
}

/// What a blob is asked for by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobRef {
    /// SHA-256 of the content, computed by the server.
    pub digest: Digest,
    /// Bytes of the content.
    pub size: u64,
}

/// Why a blob was not put.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// It is larger than [`MAX_BLOB`].
    #[error("a blob of {size} bytes is over the limit of {MAX_BLOB}")]
    TooLarge {
        /// Bytes given.
        size: usize,
    },
    /// The engine is away, slow or full; a part of the blob may be there, where no get finds it.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A moment in the order of puts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which life of the store it is of: a store that was lost and made anew is another one.
    pub life: i128,
    /// Everything up to here was put before.
    pub position: u64,
    /// Bytes that the store held at that moment.
    pub bytes: u64,
}

/// The blobs of a cell, by tenant and content.
///
/// Every call ends within [`patience`] for its size. What one tenant puts, another does not find, even
/// if it is the same.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// Keeps a content. Once this returns, every get finds it, until it is removed. The content may be
    /// there already, or be put by others at the same time: then it counts as put by the last of them.
    async fn put(&self, tenant: &Tenant, content: Bytes) -> Result<BlobRef, PutError>;

    /// The content with this digest and size, which has been verified; none if there is none. It sees
    /// every put that was answered before it began.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] if the engine does not say, [`EngineError::Corrupt`] if something else
    /// is in the content's place.
    async fn get(&self, tenant: &Tenant, blob: &BlobRef) -> Result<Option<Bytes>, EngineError>;

    /// The present moment.
    async fn mark(&self) -> Result<Mark, EngineError>;

    /// Removes what was put before the mark and not once more since. A put that was under way at that
    /// moment may be undone. No effect on a later life of the store.
    async fn remove_before(&self, mark: &Mark) -> Result<(), EngineError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_blob_is_used_in_time() {
        // To the engine, and what refers to it to the log.
        assert!(patience(MAX_BLOB as u64) + patience(0) < USED_WITHIN);
    }
}
