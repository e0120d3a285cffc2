//! The durable log between gateways and control: an ordered queue a partition.

use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::ids::{MessageId, Partition};

use crate::EngineError;

/// Position of an entry in the log: higher is later, within one life of the log. Positions of a
/// partition need not be consecutive. Zero is before the first entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

/// An entry as it was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it is.
    pub position: Position,
    /// The publisher's id for it.
    pub id: MessageId,
    /// The publisher's bytes.
    pub payload: Bytes,
}

/// Why something was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The log takes no more until something is purged.
    #[error("the log is full")]
    Full,
    /// The payload is larger than the log takes.
    #[error("a payload of {size} bytes is over the log's limit of {limit}")]
    TooLarge {
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The log did not say; the entry may have been stored all the same.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The log. What was acknowledged is there until it is purged, or until the log itself is lost.
#[async_trait]
pub trait Log: Send + Sync {
    /// Bytes of the largest payload that it takes now.
    fn max_payload(&self) -> usize;

    /// Appends an entry and returns its position once it is durable. Entries that one caller
    /// publishes one after the other to one partition stand in that order. A second publish of one
    /// id within two minutes has no effect, and returns the position of the first.
    async fn publish(
        &self,
        partition: Partition,
        id: MessageId,
        payload: Bytes,
    ) -> Result<Position, PublishError>;

    /// Opens a reader of the partition that begins with the first entry after `after`.
    async fn read(&self, partition: Partition, after: Position) -> Result<Box<dyn LogReader>, EngineError>;

    /// The id of the entry at exactly this position, if it is there: it tells whether this is the
    /// log that one knew. At position zero, before every entry, it is the id of the log itself, of which
    /// another one in its place has another; none, if the log has no such id.
    async fn id_at(&self, partition: Partition, position: Position)
    -> Result<Option<MessageId>, EngineError>;

    /// Position of the last entry of the partition, zero if none is there. Entries whose publish was
    /// answered before this began are not above it.
    async fn last(&self, partition: Partition) -> Result<Position, EngineError>;

    /// Removes entries of the partition below `position`; the one at `position` stays.
    async fn purge(&self, partition: Partition, position: Position) -> Result<(), EngineError>;
}

/// Reads one partition in order.
#[async_trait]
pub trait LogReader: Send {
    /// Waits until there is an entry, then returns it with what else is there, at most `max`, in
    /// order, each once. It never waits for more. Cancelling the wait loses nothing.
    async fn next(&mut self, max: usize) -> Result<Vec<LogEntry>, EngineError>;
}
