//! The log of one process.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::ids::{MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::log::{Log, LogEntry, LogReader, Position, PublishError};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::lock;

/// How long the id of an entry is remembered, so that a repeated publish is seen.
pub const DEDUPLICATION_WINDOW: Duration = Duration::from_secs(120);
/// Most ids that are remembered for one partition: past this the oldest are forgotten early. It
/// bounds memory; within one process a publish is repeated at once or never.
pub const DEDUPLICATION_IDS: usize = 16 * 1024;
/// What an entry counts beside its payload, in bytes.
const ENTRY_BYTES: usize = 64;

/// Size of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the largest payload.
    pub payload_bytes: usize,
    /// Bytes of all entries together; past this the log is full.
    pub total_bytes: usize,
}

impl Default for Limits {
    /// 1 MiB for a payload, 256 MiB in all.
    fn default() -> Self {
        Self { payload_bytes: 1024 * 1024, total_bytes: 256 * 1024 * 1024 }
    }
}

/// A log that lives as long as the process, with every partition. Positions are numbered across the
/// partitions, so that those of one partition have gaps, as in logs of other kinds.
#[derive(Debug, Default)]
pub struct MemoryLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    id: Option<MessageId>,
    partitions: Vec<PartitionLog>,
    /// Last position that was given.
    last: AtomicU64,
    used_bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct PartitionLog {
    entries: Mutex<Entries>,
    published: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    kept: VecDeque<LogEntry>,
    recent: HashMap<MessageId, Position>,
    recent_by_age: VecDeque<(Instant, MessageId)>,
}

impl MemoryLog {
    /// An empty log of this size.
    pub fn new(limits: Limits) -> Self {
        Self { shared: Arc::new(Shared::new(limits, None)) }
    }

    /// An empty log of this size that others are told from by its id.
    pub fn with_id(limits: Limits, id: MessageId) -> Self {
        Self { shared: Arc::new(Shared::new(limits, Some(id))) }
    }

    /// Bytes that the entries count now.
    pub fn used_bytes(&self) -> usize {
        self.shared.used_bytes.load(Ordering::Relaxed)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new(Limits::default(), None)
    }
}

impl Shared {
    fn new(limits: Limits, id: Option<MessageId>) -> Self {
        let partitions = Partition::all().map(|_| PartitionLog::default()).collect();
        Self { limits, id, partitions, last: AtomicU64::new(0), used_bytes: AtomicUsize::new(0) }
    }

    fn partition(&self, partition: Partition) -> &PartitionLog {
        // There is one for each number that a partition can have.
        &self.partitions[usize::from(partition.number())]
    }

    /// Takes this many bytes of the log's size; `false` if they are not there.
    fn reserve(&self, bytes: usize) -> bool {
        let within = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limits.total_bytes);
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok()
    }
}

impl Entries {
    fn remember(&mut self, id: MessageId, position: Position, now: Instant) {
        self.recent.insert(id, position);
        self.recent_by_age.push_back((now, id));
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, id)) = self.recent_by_age.front()
            && (now.duration_since(*at) > DEDUPLICATION_WINDOW
                || self.recent_by_age.len() > DEDUPLICATION_IDS)
        {
            self.recent.remove(id);
            self.recent_by_age.pop_front();
        }
    }

    fn after(&self, position: Position, max: usize) -> Vec<LogEntry> {
        let start = self.kept.partition_point(|entry| entry.position <= position);
        self.kept.range(start..).take(max).cloned().collect()
    }
}

#[async_trait]
impl Log for MemoryLog {
    fn max_payload(&self) -> usize {
        self.shared.limits.payload_bytes
    }

    async fn publish(
        &self,
        partition: Partition,
        id: MessageId,
        payload: Bytes,
    ) -> Result<Position, PublishError> {
        let shared = &self.shared;
        let (size, limit) = (payload.len(), shared.limits.payload_bytes);
        if size > limit {
            return Err(PublishError::TooLarge { size, limit });
        }
        let log = shared.partition(partition);
        let position = {
            let mut entries = lock(&log.entries);
            let now = Instant::now();
            entries.forget(now);
            if let Some(position) = entries.recent.get(&id) {
                return Ok(*position);
            }
            if !shared.reserve(size + ENTRY_BYTES) {
                return Err(PublishError::Full);
            }
            // The partition's lock is held, so that its positions stand in order.
            let position = Position(shared.last.fetch_add(1, Ordering::Relaxed) + 1);
            entries.kept.push_back(LogEntry { position, id, payload });
            entries.remember(id, position, now);
            position
        };
        log.published.notify_waiters();
        Ok(position)
    }

    async fn read(&self, partition: Partition, after: Position) -> Result<Box<dyn LogReader>, EngineError> {
        Ok(Box::new(MemoryReader { shared: Arc::clone(&self.shared), partition, after }))
    }

    async fn id_at(
        &self,
        partition: Partition,
        position: Position,
    ) -> Result<Option<MessageId>, EngineError> {
        if position == Position::default() {
            return Ok(self.shared.id);
        }
        let entries = lock(&self.shared.partition(partition).entries);
        let found = entries.kept.binary_search_by_key(&position, |entry| entry.position);
        Ok(found.ok().and_then(|at| entries.kept.get(at)).map(|entry| entry.id))
    }

    async fn last(&self, partition: Partition) -> Result<Position, EngineError> {
        let entries = lock(&self.shared.partition(partition).entries);
        Ok(entries.kept.back().map(|entry| entry.position).unwrap_or_default())
    }

    async fn purge(&self, partition: Partition, position: Position) -> Result<(), EngineError> {
        let mut entries = lock(&self.shared.partition(partition).entries);
        while let Some(entry) = entries.kept.pop_front_if(|entry| entry.position < position) {
            self.shared.used_bytes.fetch_sub(entry.payload.len() + ENTRY_BYTES, Ordering::Relaxed);
        }
        Ok(())
    }
}

struct MemoryReader {
    shared: Arc<Shared>,
    partition: Partition,
    after: Position,
}

#[async_trait]
impl LogReader for MemoryReader {
    async fn next(&mut self, max: usize) -> Result<Vec<LogEntry>, EngineError> {
        let log = self.shared.partition(self.partition);
        loop {
            // Made before looking: it hears of what is published from here on.
            let published = log.published.notified();
            let found = lock(&log.entries).after(self.after, max);
            if let Some(last) = found.last() {
                self.after = last.position;
                return Ok(found);
            }
            published.await;
        }
    }
}
