//! The blobs of one process.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::ids::{Digest, Tenant};
use muster_ports::EngineError;
use muster_ports::blobs::{BlobRef, Blobs, MAX_BLOB, Mark, PutError};

use crate::lock;

/// What a blob counts beside its content, in bytes.
const BLOB_BYTES: usize = 128;

/// Blobs that live as long as the process.
#[derive(Debug)]
pub struct MemoryBlobs {
    /// Bytes of all blobs together.
    room: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Each with the number of its last put.
    blobs: HashMap<(Tenant, Digest), (u64, Bytes)>,
    /// Number of the last put of all.
    last: u64,
    bytes: usize,
}

impl MemoryBlobs {
    /// No blobs yet, and room for this many bytes of them.
    pub fn new(room: usize) -> Self {
        Self { room, kept: Mutex::default() }
    }
}

impl Default for MemoryBlobs {
    /// Room for 512 MiB.
    fn default() -> Self {
        Self::new(512 << 20)
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn put(&self, tenant: &Tenant, content: Bytes) -> Result<BlobRef, PutError> {
        let size = content.len();
        if size > MAX_BLOB {
            return Err(PutError::TooLarge { size });
        }
        let digest = Digest::of(&content);
        let mut kept = lock(&self.kept);
        let key = (tenant.clone(), digest);
        if !kept.blobs.contains_key(&key) {
            let bytes = kept.bytes + size + BLOB_BYTES;
            if bytes > self.room {
                let reason = "there is no room for more until reports have been folded".to_owned();
                return Err(EngineError::Unavailable { engine: "blob store", reason }.into());
            }
            kept.bytes = bytes;
        }
        kept.last += 1;
        let last = kept.last;
        kept.blobs.insert(key, (last, content));
        Ok(BlobRef { digest, size: size as u64 })
    }

    async fn get(&self, tenant: &Tenant, blob: &BlobRef) -> Result<Option<Bytes>, EngineError> {
        let kept = lock(&self.kept);
        // Nothing can have changed it here since its digest was computed.
        let found = kept.blobs.get(&(tenant.clone(), blob.digest)).map(|(_, content)| content.clone());
        Ok(found.filter(|content| content.len() as u64 == blob.size))
    }

    async fn mark(&self) -> Result<Mark, EngineError> {
        let kept = lock(&self.kept);
        Ok(Mark { life: 0, position: kept.last, bytes: kept.bytes as u64 })
    }

    async fn remove_before(&self, mark: &Mark) -> Result<(), EngineError> {
        let mut kept = lock(&self.kept);
        kept.blobs.retain(|_, (put, _)| *put > mark.position);
        kept.bytes = kept.blobs.values().map(|(_, content)| content.len() + BLOB_BYTES).sum();
        Ok(())
    }
}
