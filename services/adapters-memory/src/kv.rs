//! Key-value in one process.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_ports::EngineError;
use muster_ports::kv::{KeyValue, Precondition, PutError, Versioned};
use tokio::time::Instant;

use crate::lock;

/// One bucket, that is lost with the process.
#[derive(Debug, Default)]
pub struct MemoryKeyValue {
    ttl: Option<Duration>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Number of the bucket's last change.
    version: u64,
    values: BTreeMap<String, Kept>,
}

#[derive(Debug)]
struct Kept {
    value: Versioned,
    expires: Option<Instant>,
}

impl MemoryKeyValue {
    /// An empty bucket, whose values go away this long after they were written last.
    pub fn new(ttl: Option<Duration>) -> Self {
        Self { ttl, ..Self::default() }
    }

    /// Does something with the values that have not expired. Those that have are removed, all of
    /// them: buckets are small, and nothing else would.
    fn with_live<T>(&self, act: impl FnOnce(&mut Bucket, Instant) -> T) -> T {
        let mut bucket = lock(&self.bucket);
        let now = Instant::now();
        bucket.values.retain(|_, kept| kept.expires.is_none_or(|expires| now < expires));
        act(&mut bucket, now)
    }
}

#[async_trait]
impl KeyValue for MemoryKeyValue {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, EngineError> {
        Ok(self.with_live(|bucket, _| bucket.values.get(key).map(|kept| kept.value.clone())))
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<u64, PutError> {
        self.with_live(|bucket, now| {
            let present = bucket.values.get(key).map(|kept| kept.value.version);
            let holds = match precondition {
                Precondition::Any => true,
                Precondition::Absent => present.is_none(),
                Precondition::Version(version) => present == Some(version),
            };
            if !holds {
                return Err(PutError::Conflict);
            }
            bucket.version += 1;
            let version = bucket.version;
            // An end that the clock cannot tell is no end.
            let expires = self.ttl.and_then(|ttl| now.checked_add(ttl));
            bucket.values.insert(key.to_owned(), Kept { value: Versioned { value, version }, expires });
            Ok(version)
        })
    }

    async fn remove(&self, key: &str) -> Result<(), EngineError> {
        self.with_live(|bucket, _| {
            if bucket.values.remove(key).is_some() {
                bucket.version += 1;
            }
        });
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, EngineError> {
        Ok(self.with_live(|bucket, _| {
            let from = bucket
                .values
                .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
            from.take_while(|(key, _)| key.starts_with(prefix))
                .map(|(key, kept)| (key.clone(), kept.value.clone()))
                .collect()
        }))
    }
}
