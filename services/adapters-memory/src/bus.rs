//! The bus of one process.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_ports::EngineError;
use muster_ports::bus::{Bus, Received, Reply, RequestError, Subject, Subscription};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::lock;

/// How much may wait for one listener; past this it loses its oldest messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Messages.
    pub messages: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

impl Default for Limits {
    /// 4,096 messages, 64 MiB.
    fn default() -> Self {
        Self { messages: 4096, bytes: 64 * 1024 * 1024 }
    }
}

/// A bus between the tasks of one process. Dropping it ends every subscription.
#[derive(Debug, Default)]
pub struct MemoryBus {
    limits: Limits,
    subjects: Mutex<HashMap<Subject, Listeners>>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Listeners {
    mailboxes: Vec<Weak<Mailbox>>,
    /// Whose turn it is on a queue subject.
    turn: usize,
}

/// What waits for one listener.
#[derive(Debug)]
struct Mailbox {
    subject: Subject,
    limits: Limits,
    lost: Arc<AtomicU64>,
    waiting: Mutex<Waiting>,
    /// There is something to look at. At most one waits: a subscription is read by `&mut`.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Message>,
    bytes: usize,
    /// The listener has lost messages since its mailbox was empty.
    losing: bool,
    closed: bool,
}

#[derive(Debug, Clone)]
struct Message {
    payload: Bytes,
    answer: Option<Answer>,
}

/// Where the answer to a request goes; the first one takes it.
type Answer = Arc<Mutex<Option<oneshot::Sender<Bytes>>>>;

impl MemoryBus {
    /// A bus whose listeners are bounded by `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { limits, subjects: Mutex::default(), lost: Arc::default() }
    }

    /// How many messages listeners have lost because they were too slow, since the bus was made.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Hands a message to those who listen; returns to how many.
    fn deliver(&self, subject: &Subject, message: Message) -> usize {
        let chosen: Vec<Arc<Mailbox>> = {
            let mut subjects = lock(&self.subjects);
            let Some(listeners) = subjects.get_mut(subject) else { return 0 };
            let mut present: Vec<_> = listeners.mailboxes.iter().filter_map(Weak::upgrade).collect();
            if subject.is_queue() && !present.is_empty() {
                listeners.turn = listeners.turn.wrapping_add(1);
                present = vec![present.swap_remove(listeners.turn % present.len())];
            }
            present
        };
        for mailbox in &chosen {
            mailbox.put(message.clone());
        }
        chosen.len()
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        let listeners =
            lock(&self.subjects).drain().flat_map(|(_, listeners)| listeners.mailboxes).collect::<Vec<_>>();
        for mailbox in listeners.iter().filter_map(Weak::upgrade) {
            lock(&mailbox.waiting).closed = true;
            mailbox.changed.notify_one();
        }
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), EngineError> {
        self.deliver(subject, Message { payload, answer: None });
        Ok(())
    }

    async fn request(
        &self,
        subject: &Subject,
        payload: Bytes,
        patience: Duration,
    ) -> Result<Bytes, RequestError> {
        let (sender, answered) = oneshot::channel();
        // Held to the end: a listener that drops the request is as silent here as on a network.
        let answer = Arc::new(Mutex::new(Some(sender)));
        if self.deliver(subject, Message { payload, answer: Some(Arc::clone(&answer)) }) == 0 {
            return Err(RequestError::NoResponders);
        }
        match timeout(patience, answered).await {
            Ok(Ok(payload)) => Ok(payload),
            Ok(Err(_)) | Err(_) => Err(RequestError::TimedOut),
        }
    }

    async fn subscribe(&self, subject: &Subject) -> Result<Box<dyn Subscription>, EngineError> {
        let mailbox = Arc::new(Mailbox {
            subject: subject.clone(),
            limits: self.limits,
            lost: Arc::clone(&self.lost),
            waiting: Mutex::default(),
            changed: Notify::new(),
        });
        let mut subjects = lock(&self.subjects);
        subjects.retain(|_, listeners| {
            listeners.mailboxes.retain(|mailbox| mailbox.strong_count() > 0);
            !listeners.mailboxes.is_empty()
        });
        subjects.entry(subject.clone()).or_default().mailboxes.push(Arc::downgrade(&mailbox));
        Ok(Box::new(MemorySubscription(mailbox)))
    }
}

impl Mailbox {
    /// Puts a message in, and the oldest out where there is no room.
    fn put(&self, message: Message) {
        let mut lost = 0;
        let begins_to_lose = {
            let mut waiting = lock(&self.waiting);
            waiting.bytes += message.payload.len();
            waiting.messages.push_back(message);
            while waiting.messages.len() > self.limits.messages.max(1)
                || (waiting.bytes > self.limits.bytes && waiting.messages.len() > 1)
            {
                waiting.take();
                lost += 1;
            }
            let before = waiting.losing;
            waiting.losing |= lost > 0;
            waiting.losing && !before
        };
        self.lost.fetch_add(lost, Ordering::Relaxed);
        if begins_to_lose {
            tracing::warn!(subject = ?self.subject, "a listener on the bus is too slow and loses messages");
        }
        self.changed.notify_one();
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.payload.len();
        Some(message)
    }
}

struct MemorySubscription(Arc<Mailbox>);

#[async_trait]
impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Option<Received> {
        loop {
            {
                let mut waiting = lock(&self.0.waiting);
                if let Some(Message { payload, answer }) = waiting.take() {
                    waiting.losing &= !waiting.messages.is_empty();
                    let reply = answer.map(|answer| Box::new(MemoryReply(answer)) as Box<dyn Reply>);
                    return Some(Received { payload, reply });
                }
                if waiting.closed {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }
}

struct MemoryReply(Answer);

#[async_trait]
impl Reply for MemoryReply {
    async fn send(self: Box<Self>, payload: Bytes) -> Result<(), EngineError> {
        if let Some(sender) = lock(&self.0).take() {
            // Nobody waits any more: the answer came too late, and is lost as it would be anywhere.
            let _ = sender.send(payload);
        }
        Ok(())
    }
}
