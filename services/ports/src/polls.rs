//! Sessions of agents that poll over plain HTTP: the part of ownership that no gateway holds.
//!
//! It is kept where [`crate::ownership`] is, and as much of a hint: it may be lost at any time. An agent has
//! one session at a time, on a WebSocket or of polls.

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, SessionId, Timestamp};
use muster_domain::poll::{Begun, Letter, Poll, PollEnd, Silence};

use crate::EngineError;
use crate::ownership::Holder;

/// Answer to a request's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollOutcome {
    /// What becomes of it.
    Begun(Begun),
    /// A session on a WebSocket holds the agent; nothing was changed.
    Contested {
        /// Which.
        holder: Holder,
    },
}

/// Ownership of agents that poll. Each call is atomic for each agent; calls for many agents are no
/// transaction. What is decided is what [`muster_domain::poll`] decides.
#[async_trait]
pub trait Polls: Send + Sync {
    /// A request begins. The same call may be made again.
    async fn begin(&self, key: &AgentKey, poll: Poll) -> Result<PollOutcome, EngineError>;

    /// A request ends. `false`, and no effect: it is not in flight any more.
    async fn end(&self, key: &AgentKey, end: PollEnd) -> Result<bool, EngineError>;

    /// Puts letters before the next requests. Returns for each whether it is there: it is not if its session
    /// is over.
    async fn post(&self, letters: Vec<Letter>) -> Result<Vec<bool>, EngineError>;

    /// Ends sessions, each unless its agent was heard after that moment.
    async fn expire(
        &self,
        silent: Vec<(AgentKey, SessionId, Timestamp)>,
    ) -> Result<Vec<Silence>, EngineError>;
}
