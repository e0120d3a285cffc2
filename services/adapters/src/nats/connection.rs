//! The one connection of a process, and what is common to all that is done on it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, ClientError, Event, ServerError};
use muster_domain::ids::Cell;
use muster_ports::EngineError;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::errors::{answer, unavailable};

/// A kind of notice is logged at most once in this time.
const NOTICE_EVERY: Duration = Duration::from_secs(60);
/// How often a wait looks at the connection's state by itself, should an event be lost.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Wait before a message is sent again that its stream could not take yet.
const NOT_YET: Duration = Duration::from_millis(50);
/// Wait for an acknowledgement before a message is sent again.
const SEND_AGAIN: Duration = Duration::from_millis(1500);

/// The connection.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) cell: Cell,
    /// Longest wait for an answer, and for the connection to come back before.
    pub(super) timeout: Duration,
    pub(super) notices: Arc<Notices>,
    /// How often the connection was made.
    pub(super) made: watch::Receiver<u64>,
}

impl Connection {
    pub(super) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the connection is up, so that nothing lies in its buffer to be sent much later.
    pub(super) async fn up(&self) -> Result<(), EngineError> {
        if self.is_up() {
            return Ok(());
        }
        let mut made = self.made.clone();
        let wait = async {
            while !self.is_up() {
                // An end of the events leaves the looking.
                if let Ok(Err(_)) = timeout(LOOK_EVERY, made.changed()).await {
                    sleep(LOOK_EVERY).await;
                }
            }
        };
        timeout(self.timeout, wait).await.map_err(|_| unavailable("the connection is lost"))
    }

    /// Bounds one operation, the wait for the connection included.
    pub(super) async fn bounded<T, E: From<EngineError>>(
        &self,
        what: &str,
        operation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let whole = async {
            self.up().await?;
            operation.await
        };
        timeout(self.timeout, whole)
            .await
            .unwrap_or_else(|_| Err(unavailable(format_args!("no answer to {what} in time")).into()))
    }

    /// Publishes a message until its stream has acknowledged it, for a while. It is sent again where the
    /// acknowledgement is lost, so it must be one that may arrive twice.
    pub(super) async fn publish(
        &self,
        subject: &str,
        message: impl Fn() -> PublishMessage,
    ) -> Result<PublishAck, NotPublished> {
        let give_up = Instant::now() + self.timeout.saturating_sub(2 * NOT_YET);
        self.bounded("a publish", async {
            loop {
                self.up().await?;
                let mut made = self.made.clone();
                made.mark_unchanged();
                let send = async { self.context.send_publish(subject.to_owned(), message()).await?.await };
                let error = tokio::select! {
                    biased;
                    acknowledged = send => match acknowledged {
                        Ok(acknowledgement) => return Ok(acknowledgement),
                        Err(error) => error,
                    },
                    // The acknowledgement is lost with the connection or with the stream's leader.
                    Ok(()) = made.changed() => continue,
                    () = sleep(SEND_AGAIN) => continue,
                };
                match error.kind() {
                    PublishErrorKind::TimedOut => {}
                    // Nobody listens for the stream: it has no leader for the moment, or is gone.
                    PublishErrorKind::StreamNotFound if Instant::now() < give_up => sleep(NOT_YET).await,
                    // An earlier attempt is on its way to the replicas; soon it has a position.
                    _ if is_in_process(&error) => sleep(NOT_YET).await,
                    _ => return Err(NotPublished::Refused(error)),
                }
            }
        })
        .await
    }

    /// Waits until the server has handled all that was sent on this connection before.
    pub(super) async fn settle(&self) -> Result<(), EngineError> {
        let nowhere = super::names::nowhere(&self.cell);
        self.bounded("a round trip", async {
            match self.client.request(nowhere, bytes::Bytes::new()).await {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => Ok(()),
                Err(error) => Err(unavailable(error)),
            }
        })
        .await
    }
}

/// Why a stream did not acknowledge a message.
pub(super) enum NotPublished {
    /// It did not answer.
    Engine(EngineError),
    /// What it answered.
    Refused(PublishError),
}

impl From<EngineError> for NotPublished {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

fn is_in_process(error: &PublishError) -> bool {
    answer(error).is_some_and(|answer| answer.error_code() == ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT)
}

/// Logs that must not become many: one of each kind in a minute, with the number of those left out.
#[derive(Debug, Default)]
pub(super) struct Notices(Mutex<HashMap<&'static str, (Instant, u64)>>);

impl Notices {
    /// Whether to log now; then how many were left out since the last time.
    pub(super) fn due(&self, kind: &'static str) -> Option<u64> {
        self.due_at(kind, Instant::now())
    }

    fn due_at(&self, kind: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kinds.get_mut(kind) {
            Some((last, left_out)) if now.duration_since(*last) < NOTICE_EVERY => {
                *left_out += 1;
                None
            }
            Some((last, left_out)) => {
                *last = now;
                Some(std::mem::take(left_out))
            }
            None => {
                kinds.insert(kind, (now, 0));
                Some(0)
            }
        }
    }

    /// Logs what happened to the connection.
    pub(super) fn event(&self, event: &Event) {
        let kind = match event {
            Event::Connected => "connected",
            Event::Disconnected => "disconnected",
            Event::LameDuckMode => "lame duck",
            Event::Draining | Event::Closed => "closed",
            Event::SlowConsumer(_) => "slow consumer",
            Event::ServerError(ServerError::AuthorizationViolation) => "authorization",
            Event::ServerError(_) => "server error",
            Event::ClientError(ClientError::Other(_)) => "reconnect",
            Event::ClientError(_) => "client error",
        };
        let Some(left_out) = self.due(kind) else { return };
        match event {
            Event::Connected => info!(left_out, "connected to NATS"),
            Event::Disconnected => warn!(left_out, "the connection to NATS is lost"),
            Event::LameDuckMode => info!(left_out, "the NATS server is about to stop"),
            Event::Draining | Event::Closed => info!("the connection to NATS ends"),
            Event::SlowConsumer(_) => {
                warn!(left_out, "a subscription on NATS is too slow and loses messages");
            }
            Event::ServerError(error) => warn!(left_out, %error, "NATS reports an error"),
            Event::ClientError(error) => warn!(left_out, %error, "NATS cannot be reached"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_notice_of_a_kind_in_a_minute() {
        let notices = Notices::default();
        let now = Instant::now();
        assert_eq!(notices.due_at("a", now), Some(0));
        assert_eq!(notices.due_at("a", now), None);
        assert_eq!(notices.due_at("a", now), None);
        assert_eq!(notices.due_at("b", now), Some(0));
        assert_eq!(notices.due_at("a", now + NOTICE_EVERY), Some(2));
        assert_eq!(notices.due_at("a", now + NOTICE_EVERY), None);
    }
}
