//! The body of a request as it comes over the network: bounded, and read to its end where it is refused.
//!
//! A client that is still sending when its connection is closed sees a broken connection and not the answer,
//! and sends the same again.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

/// More came than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is too long")]
pub(crate) struct TooLong;

/// A body that two may read from, one after the other.
#[derive(Clone)]
pub(crate) struct Tap(Arc<Mutex<Inner>>);

struct Inner {
    body: Body,
    /// Bytes that may still come.
    left: usize,
}

impl Tap {
    /// A body of which no more than `limit` bytes are let through.
    pub(crate) fn new(body: Body, limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner { body, left: limit })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads up to `limit` further bytes within this time, and forgets them.
    pub(crate) async fn drain(&self, mut limit: usize, within: Duration) {
        let mut body = std::mem::take(&mut self.lock().body);
        let rest = async {
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                match limit.checked_sub(length) {
                    Some(left) => limit = left,
                    None => return,
                }
            }
        };
        // Whoever sends on has had time enough.
        let _ = tokio::time::timeout(within, rest).await;
    }
}

impl HttpBody for Tap {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut inner = self.lock();
        let frame = match ready!(Pin::new(&mut inner.body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let length = frame.data_ref().map_or(0, Bytes::len);
        match inner.left.checked_sub(length) {
            Some(left) => inner.left = left,
            None => return Poll::Ready(Some(Err(TooLong.into()))),
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}
