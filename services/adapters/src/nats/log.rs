//! The log: a stream with a subject a partition.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::ids::{MessageId, Partition};
use muster_ports::EngineError;
use muster_ports::log::{Log, LogReader, Position, PublishError};
use tokio::time::{Instant, sleep};
use tracing::warn;
use uuid::Uuid;

use super::connection::Connection;
use super::errors::{answer, corrupt, unavailable};
use super::names;
use super::reader::NatsReader;

/// What the header with the id takes of the largest message: `NATS/1.0`, the name, a UUID, line ends.
const HEADER_BYTES: usize = 64;
/// How errors end that say that there is no stream.
const STREAM_NOT_FOUND: &str = "error code 10059)";
/// Wait before a publish is sent again that the stream could not take yet.
const NOT_YET: Duration = Duration::from_millis(50);
/// Wait for an acknowledgement before a publish is sent again.
const SEND_AGAIN: Duration = Duration::from_millis(1500);

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

    /// Bytes of the largest payload that it takes.
    pub fn max_payload(&self) -> usize {
        let of_server = self.connection.client.max_payload().saturating_sub(HEADER_BYTES);
        self.max_payload.map_or(of_server, |limit| limit.min(of_server))
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
        // The driver has as many types for it as operations; the words of all end in the code.
        let error = error.to_string();
        if error.contains(STREAM_NOT_FOUND) {
            return unavailable(format_args!(
                "the stream {} is gone; a control creates it when it starts",
                self.stream_name()
            ));
        }
        unavailable(error)
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
        let is_full = answer(&error).is_some_and(|answer| match answer.error_code() {
            // The error of any failed write: the words tell which.
            ErrorCode::STREAM_STORE_FAILED => answer.to_string().starts_with("maximum "),
            code => [
                ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
                ErrorCode::STORAGE_RESOURCES_EXCEEDED,
                ErrorCode::INSUFFICIENT_RESOURCES,
            ]
            .contains(&code),
        });
        if !is_full {
            return self.failed(&error).into();
        }
        if let Some(left_out) = self.connection.notices.due("full") {
            warn!(stream = self.stream_name(), left_out, %error, "the log is full");
        }
        PublishError::Full
    }
}

fn is_in_process(error: &(dyn std::error::Error + 'static)) -> bool {
    answer(error).is_some_and(|answer| answer.error_code() == ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT)
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
        let give_up = Instant::now() + self.connection.timeout.saturating_sub(2 * NOT_YET);
        let publish = async {
            loop {
                self.connection.up().await?;
                let mut made = self.connection.made.clone();
                made.mark_unchanged();
                let message = PublishMessage::build().payload(payload.clone()).message_id(&id);
                let send =
                    async { self.connection.context.send_publish(subject.clone(), message).await?.await };
                let error = tokio::select! {
                    biased;
                    acknowledged = send => match acknowledged {
                        Ok(acknowledgement) => return Ok(Position(acknowledgement.sequence)),
                        Err(error) => error,
                    },
                    // The acknowledgement is lost with the connection or with the stream's leader. The id
                    // makes sending again safe, wherever the first attempt went.
                    Ok(()) = made.changed() => continue,
                    () = sleep(SEND_AGAIN) => continue,
                };
                match error.kind() {
                    PublishErrorKind::TimedOut => {}
                    // Nobody listens for the stream: it has no leader for the moment, or is gone.
                    PublishErrorKind::StreamNotFound if Instant::now() < give_up => sleep(NOT_YET).await,
                    // An earlier attempt is on its way to the replicas; soon it has a position.
                    _ if is_in_process(&error) => sleep(NOT_YET).await,
                    _ => return Err(self.publish_failed(error, size)),
                }
            }
        };
        self.connection.bounded("a publish", publish).await
    }

    async fn read(&self, partition: Partition, after: Position) -> Result<Box<dyn LogReader>, EngineError> {
        Ok(Box::new(NatsReader::open(self.clone(), partition, after).await?))
    }

    async fn id_at(
        &self,
        partition: Partition,
        position: Position,
    ) -> Result<Option<MessageId>, EngineError> {
        match self.look(partition, position).await? {
            Found::Entry(id) => Ok(Some(id)),
            Found::Nothing | Found::Elsewhere => Ok(None),
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
