//! Messages that may be lost: deliveries to a gateway, wake-ups, requests between roles.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::ids::{Cell, GatewayId, Tenant};

use crate::EngineError;

/// Bytes of payload that every bus takes in one message. What is larger goes as a [blob](crate::blobs), or
/// in parts.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Deliveries for one gateway.
    Deliveries(Cell, GatewayId),
    /// Requests to one gateway.
    Gateway(Cell, GatewayId),
    /// Requests to any one control.
    Control(Cell),
    /// Intent has changed: every control looks. Carries no data.
    Wake(Cell),
    /// Floors have risen: every gateway looks. Carries no data.
    Floors(Cell),
    /// Agents' credentials have changed: every gateway looks. Carries no data.
    Credentials(Cell),
    /// Requests to any one keeper of agents' credentials.
    Keeper(Cell),
    /// What happens to a tenant's agents, for whoever watches.
    Events(Cell, Tenant),
}

impl Subject {
    /// Whether each message goes to one of the subscribers, rather than to all.
    pub fn is_queue(&self) -> bool {
        matches!(self, Self::Control(_) | Self::Keeper(_))
    }
}

/// A message that was received.
pub struct Received {
    /// Its bytes.
    pub payload: Bytes,
    /// Where an answer goes, if one is awaited.
    pub reply: Option<Box<dyn Reply>>,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens on the subject.
    #[error("nobody listens")]
    NoResponders,
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The bus is away.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The bus. At most once: a message reaches who listens at that moment, or nobody.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Sends a message.
    async fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), EngineError>;

    /// Sends a message and waits for one answer.
    async fn request(
        &self,
        subject: &Subject,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, RequestError>;

    /// Listens. What is sent after this returns is received. The queue behind it is bounded: a
    /// listener that is too slow loses messages, and the loss is logged.
    async fn subscribe(&self, subject: &Subject) -> Result<Box<dyn Subscription>, EngineError>;
}

/// Messages of one subscription.
#[async_trait]
pub trait Subscription: Send {
    /// The next message; `None` when the bus is closed. Cancelling the wait loses nothing.
    async fn next(&mut self) -> Option<Received>;
}

/// Answers one request.
#[async_trait]
pub trait Reply: Send {
    /// Sends the answer.
    async fn send(self: Box<Self>, payload: Bytes) -> Result<(), EngineError>;
}
