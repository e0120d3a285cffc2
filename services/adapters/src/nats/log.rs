//! The log: a stream with a subject a partition.

use std::fmt::Display;
use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind, Stream};
use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::ids::{MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::log::{Log, LogReader, Position, PublishError};
use tracing::warn;
use uuid::Uuid;

use super::connection::{Connection, NotPublished};
use super::errors::{corrupt, is_full, of_stream, unavailable};
use super::names;
use super::reader::NatsReader;

/// What the header with the id takes of the largest message: `NATS/1.0`, the name, a UUID, line ends.
const HEADER_BYTES: usize = 64;

/// The log of a cell on a JetStream stream. A clone is the same log.
#[derive(Clone)]
pub struct NatsLog {
    pub(super) connection: Arc<Connection>,
    pub(super) stream: Arc<Stream>,
    max_payload: Option<usize>,
}

/// What is at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: it was purged, or not written yet.
    Nothing,
    /// An entry of another partition.
    Elsewhere,
    /// An entry of the partition.
    Entry(MessageId),
}

impl NatsLog {
    pub(super) fn new(connection: Arc<Connection>, stream: Stream, max_payload: Option<usize>) -> Self {
        Self { connection, stream: Arc::new(stream), max_payload }
    }

    /// Name of the stream.
    pub fn stream_name(&self) -> &str {
        &self.stream.cached_info().config.name
    }

    pub(super) fn subject(&self, partition: Partition) -> String {
        names::log_subject(&self.connection.cell, partition)
    }

    /// Asks the stream's leader what is at a position.
    pub(super) async fn look(&self, partition: Partition, position: Position) -> Result<Found, EngineError> {
        if position == Position::default() {
            return Ok(Found::Nothing);
        }
        let request = async { Ok(self.stream.get_raw_message(position.0).await) };
        match self.connection.bounded::<_, EngineError>("a read of the log", request).await? {
            Ok(message) if message.subject.as_str() == self.subject(partition) => {
                Ok(Found::Entry(message_id(Some(&message.headers))))
            }
            Ok(_) => Ok(Found::Elsewhere),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(Found::Nothing),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Words for an error, with what to do when the stream itself is gone.
    pub(super) fn failed(&self, error: &impl Display) -> EngineError {
        of_stream(self.stream_name(), error)
    }

    fn publish_failed(
        &self,
        error: async_nats::jetstream::context::PublishError,
        size: usize,
    ) -> PublishError {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => {
                return PublishError::TooLarge { size, limit: self.max_payload() };
            }
            PublishErrorKind::StreamNotFound => {
                return unavailable(format_args!("the stream {} does not answer", self.stream_name())).into();
            }
            _ => {}
        }
        if !is_full(&error) {
            return self.failed(&error).into();
        }
        if let Some(left_out) = self.connection.notices.due("full") {
            warn!(stream = self.stream_name(), left_out, %error, "the log is full");
        }
        PublishError::Full
    }
}

/// The publisher's id in these headers. What others published has the nil id, so that it does not stop a
/// reader: control finds that it is no report.
pub(super) fn message_id(headers: Option<&HeaderMap>) -> MessageId {
    let text = headers.and_then(|headers| headers.get(NATS_MESSAGE_ID));
    let id = text.and_then(|text| Uuid::try_parse(text.as_str()).ok());
    MessageId(id.unwrap_or_default())
}

#[async_trait]
impl Log for NatsLog {
    fn max_payload(&self) -> usize {
        let of_server = self.connection.client.max_payload().saturating_sub(HEADER_BYTES);
        self.max_payload.map_or(of_server, |limit| limit.min(of_server))
    }

    async fn publish(
        &self,
        partition: Partition,
        id: MessageId,
        payload: Bytes,
    ) -> Result<Position, PublishError> {
        let (size, limit) = (payload.len(), self.max_payload());
        if size > limit {
            return Err(PublishError::TooLarge { size, limit });
        }
        let (subject, id) = (self.subject(partition), id.to_string());
        // The id makes sending again safe, wherever an earlier attempt went.
        let message = || PublishMessage::build().payload(payload.clone()).message_id(&id);
        match self.connection.publish(&subject, message).await {
            Ok(acknowledgement) => Ok(Position(acknowledgement.sequence)),
            Err(NotPublished::Engine(error)) => Err(error.into()),
            Err(NotPublished::Refused(error)) => Err(self.publish_failed(error, size)),
        }
    }

    async fn read(&self, partition: Partition, after: Position) -> Result<Box<dyn LogReader>, EngineError> {
        Ok(Box::new(NatsReader::open(self.clone(), partition, after).await?))
    }

    async fn id_at(
        &self,
        partition: Partition,
        position: Position,
    ) -> Result<Option<MessageId>, EngineError> {
        if position == Position::default() {
            let request = async { self.stream.get_info().await.map_err(|error| self.failed(&error)) };
            let created = self.connection.bounded("a look at the stream", request).await?.created;
            // Of two streams of one name, one was made after the other.
            return Ok(Some(MessageId(Uuid::from_u128(created.unix_timestamp_nanos().unsigned_abs()))));
        }
        match self.look(partition, position).await? {
            Found::Entry(id) => Ok(Some(id)),
            Found::Nothing | Found::Elsewhere => Ok(None),
        }
    }

    async fn last(&self, partition: Partition) -> Result<Position, EngineError> {
        let subject = self.subject(partition);
        let request = async { Ok(self.stream.get_last_raw_message_by_subject(&subject).await) };
        match self.connection.bounded::<_, EngineError>("a read of the log", request).await? {
            Ok(message) => Ok(Position(message.sequence)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(Position::default()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn purge(&self, partition: Partition, position: Position) -> Result<(), EngineError> {
        // Zero would be everything, and nothing is below the first.
        if position.0 <= 1 {
            return Ok(());
        }
        let purge = self.stream.purge().filter(self.subject(partition)).sequence(position.0);
        let done = self
            .connection
            .bounded("a purge", async { purge.await.map_err(|error| self.failed(&error)) })
            .await?;
        if done.success { Ok(()) } else { Err(corrupt(self.stream_name(), "it does not purge")) }
    }
}
