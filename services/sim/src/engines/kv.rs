//! Leases and floors.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use muster_adapters_memory::MemoryKeyValue;
use muster_ports::EngineError;
use muster_ports::kv::{KeyValue, Precondition, PutError, Versioned};

use super::Wire;
use crate::trace::Hash;
use crate::weather::Engine;
use crate::world::World;

/// Which bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bucket {
    Leases,
    Values,
}

impl Bucket {
    fn of(self, world: &World) -> Arc<MemoryKeyValue> {
        let engines = world.engines();
        match self {
            Self::Leases => engines.leases,
            Self::Values => engines.values,
        }
    }
}

/// A bucket as a process sees it.
pub(crate) struct SimKeyValue(pub(super) Arc<Wire>, pub(super) Bucket);

/// One connection carries all calls of a process.
const LANE: Option<u64> = Some(0);

#[async_trait]
impl KeyValue for SimKeyValue {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, EngineError> {
        let (world, bucket, key) = (Arc::clone(&self.0.world), self.1, key.to_owned());
        self.0.call(Engine::Values, LANE, async move { bucket.of(&world).get(&key).await }).await
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<u64, PutError> {
        let (world, bucket, key) = (Arc::clone(&self.0.world), self.1, key.to_owned());
        let name = self.0.process.name.clone();
        let work = async move {
            let result = bucket.of(&world).put(&key, value.clone(), precondition).await;
            let written = result.is_ok();
            world.trace.note(&name, format_args!("puts {key} = {} written={written}", Hash(&value)));
            result
        };
        self.0.call(Engine::Values, LANE, work).await
    }

    async fn remove(&self, key: &str) -> Result<(), EngineError> {
        let (world, bucket, key) = (Arc::clone(&self.0.world), self.1, key.to_owned());
        let name = self.0.process.name.clone();
        let work = async move {
            world.trace.note(&name, format_args!("removes {key}"));
            bucket.of(&world).remove(&key).await
        };
        self.0.call(Engine::Values, LANE, work).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, EngineError> {
        let (world, bucket, prefix) = (Arc::clone(&self.0.world), self.1, prefix.to_owned());
        self.0.call(Engine::Values, LANE, async move { bucket.of(&world).list(&prefix).await }).await
    }
}
