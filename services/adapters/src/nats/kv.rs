//! Buckets of values, read from and written to a stream's leader.
//!
//! A bucket is laid out as any other client of key-value buckets does it, so that `nats kv` can look at it.

use std::sync::Arc;

use async_nats::header::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use muster_ports::EngineError;
use muster_ports::kv::{KeyValue, Precondition, PutError, Versioned};

use super::connection::Connection;
use super::errors::{answer, unavailable};
use super::names;

/// Says what a message does to its key; without it, it is a value.
const OPERATION: &str = "KV-Operation";
const DELETE: &str = "DEL";
/// Written by the server itself, where a bucket is set up for it.
const MARKER_REASON: &str = "Nats-Marker-Reason";
/// Values of a list that are asked for at once.
const LIST_AT_ONCE: usize = 64;

/// One bucket. A clone is the same bucket.
///
/// Versions are the sequences of its stream. A removed value leaves a marker, which counts as absent and
/// keeps the removed value's version from coming back.
#[derive(Clone)]
pub struct NatsKeyValue {
    connection: Arc<Connection>,
    bucket: Arc<str>,
    stream: Arc<Stream>,
}

/// The last message of a key.
struct Latest {
    version: u64,
    /// The value; none if the message is a marker.
    value: Option<Bytes>,
}

/// Why a message was not written.
enum WriteError {
    /// Another one was there.
    Conflict,
    Engine(EngineError),
}

impl From<EngineError> for WriteError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<WriteError> for PutError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Conflict => Self::Conflict,
            WriteError::Engine(error) => Self::Engine(error),
        }
    }
}

impl NatsKeyValue {
    pub(super) fn new(connection: Arc<Connection>, bucket: String, stream: Stream) -> Self {
        Self { connection, bucket: bucket.into(), stream: Arc::new(stream) }
    }

    /// Name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    async fn latest(&self, subject: &str) -> Result<Option<Latest>, EngineError> {
        match self.stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => {
                let value = (!is_marker(&message.headers)).then_some(message.payload);
                Ok(Some(Latest { version: message.sequence, value }))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Writes a message, if the last one of the key has this version; zero is none.
    async fn write(
        &self,
        subject: &str,
        message: PublishMessage,
        expected: Option<u64>,
    ) -> Result<u64, WriteError> {
        let message = match expected {
            Some(version) => message.expected_last_subject_sequence(version),
            None => message,
        };
        let sent = self.connection.context.send_publish(subject.to_owned(), message).await;
        let acknowledged = match sent {
            Ok(acknowledgement) => acknowledgement.await,
            Err(error) => Err(error),
        };
        match acknowledged {
            Ok(acknowledgement) => Ok(acknowledgement.sequence),
            Err(error) if is_conflict(&error) => Err(WriteError::Conflict),
            Err(error) => Err(WriteError::Engine(unavailable(error))),
        }
    }

    async fn create(&self, subject: &str, message: PublishMessage, value: Bytes) -> Result<u64, WriteError> {
        match self.write(subject, message, Some(0)).await {
            Err(WriteError::Conflict) => {}
            done => return done,
        }
        let expected = match self.latest(subject).await? {
            Some(Latest { value: Some(_), .. }) => return Err(WriteError::Conflict),
            // In place of the marker, if that is still the last.
            Some(Latest { version, value: None }) => version,
            // It has gone away since.
            None => 0,
        };
        self.write(subject, PublishMessage::build().payload(value), Some(expected)).await
    }
}

fn is_marker(headers: &HeaderMap) -> bool {
    headers.get(OPERATION).is_some_and(|operation| operation.as_str() != "PUT")
        || headers.get(MARKER_REASON).is_some()
}

fn is_conflict(error: &PublishError) -> bool {
    let codes = [ErrorCode::STREAM_WRONG_LAST_SEQUENCE, ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT];
    error.kind() == PublishErrorKind::WrongLastSequence
        || answer(error).is_some_and(|answer| codes.contains(&answer.error_code()))
}

#[async_trait]
impl KeyValue for NatsKeyValue {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, EngineError> {
        let subject = names::key_subject(&self.bucket, key);
        let latest = self.connection.bounded("a read of a value", self.latest(&subject)).await?;
        Ok(latest.and_then(versioned))
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<u64, PutError> {
        let subject = names::key_subject(&self.bucket, key);
        let message = PublishMessage::build().payload(value.clone());
        let write = async {
            match precondition {
                Precondition::Any => self.write(&subject, message, None).await,
                Precondition::Absent => self.create(&subject, message, value).await,
                // A marker's version is no value's, and no version is given out.
                Precondition::Version(0) => Err(WriteError::Conflict),
                Precondition::Version(version) => self.write(&subject, message, Some(version)).await,
            }
        };
        Ok(self.connection.bounded("a write of a value", write).await?)
    }

    async fn remove(&self, key: &str) -> Result<(), EngineError> {
        let subject = names::key_subject(&self.bucket, key);
        let remove = async {
            if self.latest(&subject).await?.and_then(versioned).is_none() {
                return Ok(());
            }
            let marker = PublishMessage::build().header(OPERATION, DELETE);
            match self.write(&subject, marker, None).await {
                Ok(_) | Err(WriteError::Conflict) => Ok(()),
                Err(WriteError::Engine(error)) => Err(error),
            }
        };
        self.connection.bounded("a removal of a value", remove).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, EngineError> {
        let list = async {
            // The leader tells the subjects that have a message, and then each one's last.
            let subjects = self.stream.info_with_subjects(names::bucket_subjects(&self.bucket)).await;
            let subjects: Vec<(String, usize)> =
                subjects.map_err(unavailable)?.try_collect().await.map_err(unavailable)?;
            let wanted = subjects.into_iter().filter_map(|(subject, _)| {
                let key = names::key_of(&self.bucket, &subject)?;
                key.starts_with(prefix).then_some((key, subject))
            });
            let read = async |(key, subject): (String, String)| {
                let latest = self.latest(&subject).await?;
                Ok(latest.and_then(versioned).map(|value| (key, value)))
            };
            let found: Vec<Option<(String, Versioned)>> = stream::iter(wanted.collect::<Vec<_>>())
                .map(read)
                .buffer_unordered(LIST_AT_ONCE)
                .try_collect()
                .await?;
            let mut found: Vec<_> = found.into_iter().flatten().collect();
            found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            Ok(found)
        };
        self.connection.bounded("a list of values", list).await
    }
}

fn versioned(latest: Latest) -> Option<Versioned> {
    latest.value.map(|value| Versioned { value, version: latest.version })
}
