//! Reading a request's body: bounded in size, in time, and together with all others in memory.

use std::error::Error;
use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Shared;
use crate::polling::tap::TooLong;

/// Memory is given out in pieces of so many bytes.
const PIECE: usize = 1 << 10;
/// Bytes that the bodies of all requests may hold together, unless one message may be larger.
const MEMORY: usize = 256 << 20;

/// Memory for the bodies of all requests together.
pub(crate) struct Room(Arc<Semaphore>);

impl Room {
    /// Room for several messages of the largest size.
    pub(crate) fn new(max_message: usize) -> Self {
        let pieces = MEMORY.max(max_message.saturating_mul(2)) / PIECE;
        Self(Arc::new(Semaphore::new(pieces.min(Semaphore::MAX_PERMITS))))
    }
}

/// A body that was read, and its room.
pub(crate) struct Held {
    /// The body.
    pub(crate) message: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("the body is larger than {0} bytes (server.websocket.max_message_size)")]
    TooLarge(usize),
    #[error("the bodies of all requests together take as much memory as they may")]
    NoRoom,
    #[error("the body did not come in time (server.polling.body_timeout)")]
    Slow,
    #[error("the body cannot be read: {0}")]
    Malformed(String),
}

/// Reads a body that is decompressed on the way.
pub(crate) async fn read(shared: &Shared, body: Body) -> Result<Held, Unread> {
    let work = collect(body, shared.settings.max_message_size, &shared.room);
    match tokio::time::timeout(shared.settings.body_timeout, work).await {
        Ok(read) => read,
        Err(_) => Err(Unread::Slow),
    }
}

async fn collect(mut body: Body, limit: usize, room: &Room) -> Result<Held, Unread> {
    let mut chunks: Vec<Bytes> = Vec::new();
    let mut length = 0;
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error, limit))?;
        let Ok(chunk) = frame.into_data() else { continue };
        length += chunk.len();
        if length > limit {
            return Err(Unread::TooLarge(limit));
        }
        let pieces = length.div_ceil(PIECE) - held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if pieces > 0 {
            let pieces = u32::try_from(pieces).map_err(|_| Unread::NoRoom)?;
            let more = Arc::clone(&room.0).try_acquire_many_owned(pieces).map_err(|_| Unread::NoRoom)?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
        }
        chunks.push(chunk);
    }
    let message = match <[Bytes; 1]>::try_from(chunks) {
        Ok([message]) => message,
        Err(chunks) => {
            let mut message = BytesMut::with_capacity(length);
            for chunk in chunks {
                message.extend_from_slice(&chunk);
            }
            message.freeze()
        }
    };
    Ok(Held { message, _room: held })
}

/// What the failure of a read means.
fn broken(error: &axum::Error, limit: usize) -> Unread {
    let mut cause: &(dyn Error + 'static) = error;
    loop {
        // More came over the network than may.
        if cause.is::<TooLong>() {
            return Unread::TooLarge(limit);
        }
        // The innermost cause says it.
        match cause.source() {
            Some(deeper) => cause = deeper,
            None => return Unread::Malformed(cause.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use std::time::Duration;

    use hyper::body::Frame;

    use super::*;
    use crate::polling::tap::Tap;

    /// A body that comes in these pieces.
    struct Chunks(VecDeque<&'static [u8]>);

    impl hyper::body::Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk)))))
        }
    }

    fn body(chunks: &[&'static [u8]]) -> Body {
        Body::new(Chunks(chunks.iter().copied().collect()))
    }

    #[tokio::test]
    async fn a_body_is_put_together_within_its_bounds() {
        let room = Room::new(8);
        let read = collect(body(&[b"abc", b"", b"defgh"]), 8, &room).await.unwrap();
        assert_eq!(read.message, "abcdefgh");
        assert_eq!(collect(body(&[]), 8, &room).await.unwrap().message, "");
        let error = collect(body(&[b"abc", b"defghi"]), 8, &room).await.err().unwrap();
        assert!(matches!(error, Unread::TooLarge(8)), "{error}");
        let tap = Tap::new(body(&[b"abc", b"def", b"ghi"]), 5);
        let error = collect(Body::new(tap.clone()), 8, &room).await.err().unwrap();
        assert!(matches!(error, Unread::TooLarge(8)), "{error}");
        tap.drain(2, Duration::from_secs(60)).await;
    }

    #[tokio::test]
    async fn all_bodies_together_have_bounds_too() {
        let room = Room(Arc::new(Semaphore::new(3)));
        let kilobyte: &[u8] = &[7; PIECE];
        let one = collect(body(&[kilobyte, b"x"]), 1 << 20, &room).await.unwrap();
        assert_eq!(room.0.available_permits(), 1);
        let error = collect(body(&[kilobyte, b"x"]), 1 << 20, &room).await.err().unwrap();
        assert!(matches!(error, Unread::NoRoom), "{error}");
        assert_eq!(room.0.available_permits(), 1, "what was refused holds nothing");
        drop(one);
        collect(body(&[kilobyte, b"x"]), 1 << 20, &room).await.unwrap();
    }
}
