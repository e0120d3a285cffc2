//! The bus: messages on core subjects.
//!
//! On a cluster of servers a subscription takes a moment to be known to the others: what is sent on
//! another server within that moment may still find nobody.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Message, Request, RequestErrorKind, Subject as NatsSubject, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use muster_ports::EngineError;
use muster_ports::bus::{Bus, Received, Reply, RequestError, Subject, Subscription};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::warn;

use super::ListenerLimits;
use super::connection::Connection;
use super::errors::unavailable;
use super::names;

/// The listeners of a queue subject share its messages under this name.
const QUEUE: &str = "muster";

/// The bus of a cell. A clone is the same bus.
#[derive(Clone)]
pub struct NatsBus {
    connection: Arc<Connection>,
    limits: ListenerLimits,
    lost: Arc<AtomicU64>,
}

impl NatsBus {
    pub(super) fn new(connection: Arc<Connection>, limits: ListenerLimits) -> Self {
        Self { connection, limits, lost: Arc::default() }
    }

    /// How many messages listeners have lost because they were too slow, since the bus was made.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Bus for NatsBus {
    async fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), EngineError> {
        // Without a connection it would be kept and sent at some later time, to whoever listens then.
        if !self.connection.is_up() {
            return Err(unavailable("the connection is lost"));
        }
        send(&self.connection, names::bus_subject(subject), payload).await
    }

    async fn request(
        &self,
        subject: &Subject,
        payload: Bytes,
        patience: Duration,
    ) -> Result<Bytes, RequestError> {
        let connection = &self.connection;
        let made = *connection.made.borrow();
        // Silence says something about the other side only while there was a connection to it.
        let silent = || {
            if connection.is_up() && *connection.made.borrow() == made {
                RequestError::TimedOut
            } else {
                unavailable("the connection was lost while an answer was awaited").into()
            }
        };
        if !connection.is_up() {
            return Err(unavailable("the connection is lost").into());
        }
        let request = Request::new().payload(payload).timeout(None);
        let answer = connection.client.send_request(names::bus_subject(subject), request);
        match timeout(patience, answer).await {
            Ok(Ok(message)) => Ok(message.payload),
            Ok(Err(error)) => match error.kind() {
                RequestErrorKind::NoResponders => Err(RequestError::NoResponders),
                RequestErrorKind::TimedOut => Err(silent()),
                _ => Err(unavailable(error).into()),
            },
            Err(_) => Err(silent()),
        }
    }

    async fn subscribe(&self, subject: &Subject) -> Result<Box<dyn Subscription>, EngineError> {
        let name = names::bus_subject(subject);
        let client = &self.connection.client;
        let subscribe = async {
            let subscriber = if subject.is_queue() {
                client.queue_subscribe(name.clone(), QUEUE.to_owned()).await
            } else {
                client.subscribe(name.clone()).await
            };
            subscriber.map_err(unavailable)
        };
        let subscriber = self.connection.bounded("a subscription", subscribe).await?;
        let mailbox = Arc::new(Mailbox {
            subject: name,
            limits: self.limits,
            lost: Arc::clone(&self.lost),
            waiting: Mutex::default(),
            changed: Notify::new(),
            connection: Arc::clone(&self.connection),
        });
        let task = tokio::spawn(fill(subscriber, Arc::clone(&mailbox))).abort_handle();
        let subscription = NatsSubscription { mailbox, task };
        self.connection.settle().await?;
        Ok(Box::new(subscription))
    }
}

/// Sends a message as far as the connection's buffer.
async fn send(connection: &Connection, subject: NatsSubject, payload: Bytes) -> Result<(), EngineError> {
    let sending = connection.client.publish(subject, payload);
    let sent = timeout(connection.timeout, sending).await;
    sent.map_err(|_| unavailable("the connection takes no more"))?.map_err(unavailable)
}

/// What waits for one listener. It is apart from the driver's own queue, which counts no bytes, says not
/// whose it is, and loses the latest message rather than the oldest.
struct Mailbox {
    subject: NatsSubject,
    limits: ListenerLimits,
    lost: Arc<AtomicU64>,
    waiting: Mutex<Waiting>,
    /// There is something to look at. At most one waits: a subscription is read by `&mut`.
    changed: Notify,
    connection: Arc<Connection>,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Message>,
    bytes: usize,
    closed: bool,
}

impl Waiting {
    fn take(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.payload.len();
        Some(message)
    }
}

/// Puts what arrives into the mailbox, until the bus is closed.
async fn fill(mut subscriber: Subscriber, mailbox: Arc<Mailbox>) {
    while let Some(message) = subscriber.next().await {
        mailbox.put(message);
    }
    mailbox.lock().closed = true;
    mailbox.changed.notify_one();
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message in, and the oldest out where there is no room.
    fn put(&self, message: Message) {
        let mut lost = 0;
        {
            let mut waiting = self.lock();
            waiting.bytes += message.payload.len();
            waiting.messages.push_back(message);
            while waiting.messages.len() > self.limits.messages.max(1)
                || (waiting.bytes > self.limits.bytes && waiting.messages.len() > 1)
            {
                waiting.take();
                lost += 1;
            }
        }
        self.changed.notify_one();
        if lost > 0 {
            let all = self.lost.fetch_add(lost, Ordering::Relaxed) + lost;
            if self.connection.notices.due("slow listener").is_some() {
                let subject = self.subject.as_str();
                warn!(subject, lost = all, "a listener on the bus is too slow and loses messages");
            }
        }
    }
}

struct NatsSubscription {
    mailbox: Arc<Mailbox>,
    task: AbortHandle,
}

impl Drop for NatsSubscription {
    fn drop(&mut self) {
        // Ends the subscription on the server, too.
        self.task.abort();
    }
}

#[async_trait]
impl Subscription for NatsSubscription {
    async fn next(&mut self) -> Option<Received> {
        loop {
            {
                let mut waiting = self.mailbox.lock();
                if let Some(message) = waiting.take() {
                    let connection = &self.mailbox.connection;
                    let reply = message.reply.map(|subject| {
                        Box::new(NatsReply { connection: Arc::clone(connection), subject }) as Box<dyn Reply>
                    });
                    return Some(Received { payload: message.payload, reply });
                }
                if waiting.closed {
                    return None;
                }
            }
            self.mailbox.changed.notified().await;
        }
    }
}

struct NatsReply {
    connection: Arc<Connection>,
    subject: NatsSubject,
}

#[async_trait]
impl Reply for NatsReply {
    async fn send(self: Box<Self>, payload: Bytes) -> Result<(), EngineError> {
        send(&self.connection, self.subject, payload).await
    }
}
