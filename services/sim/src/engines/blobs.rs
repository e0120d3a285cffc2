//! Payloads that are too large for the log.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::ids::Tenant;
use muster_ports::EngineError;
use muster_ports::blobs::{BlobRef, Blobs, Mark, PutError};

use super::Wire;
use crate::trace::Hash;
use crate::weather::Engine;

/// Blobs as a process sees them.
pub(crate) struct SimBlobs(pub(super) Arc<Wire>);

#[async_trait]
impl Blobs for SimBlobs {
    async fn put(&self, tenant: &Tenant, content: Bytes) -> Result<BlobRef, PutError> {
        let (world, name, tenant) = (Arc::clone(&self.0.world), self.0.process.name.clone(), tenant.clone());
        let work = async move {
            let blob = world.engines().blobs.put(&tenant, content).await?;
            world.trace.note(&name, format_args!("puts blob {} of {}", Hash(&blob.digest.0), blob.size));
            Ok(blob)
        };
        self.0.call(Engine::Blobs, None, work).await
    }

    async fn get(&self, tenant: &Tenant, blob: &BlobRef) -> Result<Option<Bytes>, EngineError> {
        let (world, tenant, blob) = (Arc::clone(&self.0.world), tenant.clone(), *blob);
        let work = async move { world.engines().blobs.get(&tenant, &blob).await };
        self.0.call(Engine::Blobs, None, work).await
    }

    async fn mark(&self) -> Result<Mark, EngineError> {
        let world = Arc::clone(&self.0.world);
        self.0.call(Engine::Blobs, None, async move { world.engines().blobs.mark().await }).await
    }

    async fn remove_before(&self, mark: &Mark) -> Result<(), EngineError> {
        let (world, name, mark) = (Arc::clone(&self.0.world), self.0.process.name.clone(), *mark);
        let work = async move {
            world.trace.note(&name, format_args!("removes blobs before {}", mark.position));
            world.engines().blobs.remove_before(&mark).await
        };
        self.0.call(Engine::Blobs, None, work).await
    }
}
