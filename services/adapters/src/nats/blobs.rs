//! Blobs: a stream with a subject for each piece of each blob.
//!
//! The subject of a piece is its tenant, the digest of the whole content and the piece's number, and the
//! stream keeps one message of each. So whoever puts a content writes the same pieces to the same places,
//! at once or one after the other, and a put that is broken off leaves nothing that the next one does not
//! use. A put writes every piece anew: the stream's sequence is the order of puts, and one purge of
//! everything up to some sequence removes what nobody has put since, without a list of what is there.
//!
//! The object store of the driver is not used. It keeps the pieces of a broken-off put, and those of all but
//! one of several puts at once, for ever; it leaves a marker for each object that was ever removed; while it
//! replaces an object, readers of the old one wait for pieces that are gone.

use std::ops::Range;
use std::sync::Arc;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Info, LastRawMessageErrorKind, Stream};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use muster_domain::ids::{Digest, Digesting, Tenant};
use muster_ports::EngineError;
use muster_ports::blobs::{BlobRef, Blobs, MAX_BLOB, Mark, PutError, patience};
use tokio::task::yield_now;
use tokio::time::timeout;
use tracing::warn;

use super::connection::{Connection, NotPublished};
use super::errors::{corrupt, is_full, of_stream, unavailable};
use super::names;

/// Bytes of each piece but the last. A part of the format: with another size it would be another one.
const PIECE: usize = 256 << 10;
/// Pieces of one blob that are on their way at once.
const AT_ONCE: usize = 8;
/// Bytes that are digested without a pause for other tasks.
const DIGEST_AT_ONCE: usize = 1 << 20;

/// The blobs of a cell. A clone is the same store.
#[derive(Clone)]
pub struct NatsBlobs {
    connection: Arc<Connection>,
    stream: Arc<Stream>,
}

/// The pieces of a content of this size; an empty one has one, too.
fn pieces(size: usize) -> impl Iterator<Item = Range<usize>> {
    let count = size.div_ceil(PIECE).max(1);
    (0..count).map(move |piece| piece * PIECE..size.min((piece + 1) * PIECE))
}

async fn digest_of(content: &[u8]) -> Digest {
    let mut digesting = Digesting::default();
    for part in content.chunks(DIGEST_AT_ONCE) {
        digesting.update(part);
        yield_now().await;
    }
    digesting.finish()
}

fn life(info: &Info) -> i128 {
    info.created.unix_timestamp_nanos()
}

impl NatsBlobs {
    pub(super) fn new(connection: Arc<Connection>, stream: Stream) -> Self {
        Self { connection, stream: Arc::new(stream) }
    }

    /// Name of the stream.
    pub fn stream_name(&self) -> &str {
        &self.stream.cached_info().config.name
    }

    fn subject(&self, tenant: &Tenant, digest: &Digest, piece: usize) -> String {
        names::blob_subject(&self.connection.cell, tenant, digest, piece)
    }

    async fn put_piece(&self, subject: String, piece: Bytes) -> Result<(), EngineError> {
        let message = || PublishMessage::build().payload(piece.clone());
        match self.connection.publish(&subject, message).await {
            Ok(_) => Ok(()),
            Err(NotPublished::Engine(error)) => Err(error),
            Err(NotPublished::Refused(error)) if is_full(&error) => {
                let name = self.stream_name();
                if let Some(left_out) = self.connection.notices.due("blobs full") {
                    warn!(stream = name, left_out, %error, "there is no room for more blobs");
                }
                Err(unavailable(format_args!("the stream {name} is full ({error})")))
            }
            Err(NotPublished::Refused(error)) if error.kind() == PublishErrorKind::StreamNotFound => {
                Err(unavailable(format_args!("the stream {} does not answer", self.stream_name())))
            }
            Err(NotPublished::Refused(error)) => Err(of_stream(self.stream_name(), &error)),
        }
    }

    /// A piece, if it is there.
    async fn piece(&self, subject: String) -> Result<Option<Bytes>, EngineError> {
        let read = async {
            // Any replica answers this one, and one that lags does not know the piece yet.
            if let Ok(message) = self.stream.direct_get_last_for_subject(&subject).await {
                return Ok(Some(message.payload));
            }
            match self.stream.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => Ok(Some(message.payload)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
                Err(error) => Err(of_stream(self.stream_name(), &error)),
            }
        };
        self.connection.bounded("a read of a blob", read).await
    }

    async fn read(
        &self,
        tenant: &Tenant,
        digest: &Digest,
        size: usize,
    ) -> Result<Option<Bytes>, EngineError> {
        let place = || format!("the stream {}, {}", self.stream_name(), self.subject(tenant, digest, 0));
        let mut content = BytesMut::new();
        let mut digesting = Digesting::default();
        let read = |(number, range)| async move {
            let piece = self.piece(self.subject(tenant, digest, number)).await?;
            Ok::<_, EngineError>((range, piece))
        };
        let mut rest = pieces(size).enumerate();
        // The first one alone: most of what is not there is not begun.
        let first = stream::iter(rest.next()).then(read);
        let mut found = Box::pin(first.chain(stream::iter(rest).map(read).buffered(AT_ONCE)));
        while let Some((range, piece)) = found.try_next().await? {
            let Some(piece) = piece else { return Ok(None) };
            if piece.len() != range.len() {
                let reason = format!("a piece has {} bytes and not {}: {range:?}", piece.len(), range.len());
                return Err(corrupt(place(), reason));
            }
            // No room is made for what is not known to be there.
            content.reserve(if range.start == 0 { size } else { 0 });
            content.extend_from_slice(&piece);
            digesting.update(&piece);
        }
        if digesting.finish() != *digest {
            return Err(corrupt(place(), "the content has another digest"));
        }
        Ok(Some(content.freeze()))
    }

    async fn info(&self) -> Result<Info, EngineError> {
        let info =
            async { self.stream.get_info().await.map_err(|error| of_stream(self.stream_name(), &error)) };
        self.connection.bounded("a question about the blobs", info).await
    }
}

/// Bounds what is done with a blob of this size.
async fn bounded<T, E: From<EngineError>>(
    size: u64,
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = |_| Err(unavailable(format_args!("a blob of {size} bytes took too long")).into());
    timeout(patience(size), operation).await.unwrap_or_else(late)
}

#[async_trait]
impl Blobs for NatsBlobs {
    async fn put(&self, tenant: &Tenant, content: Bytes) -> Result<BlobRef, PutError> {
        let size = content.len();
        if size > MAX_BLOB {
            return Err(PutError::TooLarge { size });
        }
        let put = async {
            let digest = digest_of(&content).await;
            stream::iter(pieces(size).enumerate())
                .map(|(number, range)| {
                    self.put_piece(self.subject(tenant, &digest, number), content.slice(range))
                })
                .buffer_unordered(AT_ONCE)
                .try_collect::<()>()
                .await?;
            Ok(BlobRef { digest, size: size as u64 })
        };
        bounded(size as u64, put).await
    }

    async fn get(&self, tenant: &Tenant, blob: &BlobRef) -> Result<Option<Bytes>, EngineError> {
        match usize::try_from(blob.size).ok().filter(|size| *size <= MAX_BLOB) {
            Some(size) => bounded(blob.size, self.read(tenant, &blob.digest, size)).await,
            None => Ok(None),
        }
    }

    async fn mark(&self) -> Result<Mark, EngineError> {
        let info = self.info().await?;
        Ok(Mark { life: life(&info), position: info.state.last_sequence, bytes: info.state.bytes })
    }

    async fn remove_before(&self, mark: &Mark) -> Result<(), EngineError> {
        // Sequences begin anew with a new stream.
        if life(&self.info().await?) != mark.life {
            return Ok(());
        }
        let purge = self.stream.purge().sequence(mark.position.saturating_add(1));
        let purge = async { purge.await.map_err(|error| of_stream(self.stream_name(), &error)) };
        let done = self.connection.bounded("a purge of blobs", purge).await?;
        if done.success { Ok(()) } else { Err(corrupt(self.stream_name(), "it does not purge")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_a_whole() {
        for (size, lengths) in [
            (0, vec![0]),
            (1, vec![1]),
            (PIECE, vec![PIECE]),
            (PIECE + 1, vec![PIECE, 1]),
            (2 * PIECE, vec![PIECE; 2]),
        ] {
            let found: Vec<_> = pieces(size).collect();
            assert_eq!(found.iter().map(ExactSizeIterator::len).collect::<Vec<_>>(), lengths);
            assert!(found.windows(2).all(|pair| pair[0].end == pair[1].start), "{found:?}");
        }
    }
}
