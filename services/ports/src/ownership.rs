//! Who holds which agent's connection, and how far its messages are settled.
//!
//! Ownership is a hint: it may be lost at any time, and what it said is then found out again. It
//! never decides alone who speaks for an agent (the store's claim numbers do).

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, Claim, GatewayId, Incarnation, SessionId, Timestamp};

use crate::EngineError;

/// The session that holds an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The session.
    pub session: SessionId,
    /// Its claim.
    pub claim: Claim,
    /// The gateway that it is on.
    pub gateway: GatewayId,
    /// That gateway's life.
    pub incarnation: Incarnation,
}

/// A wish to hold an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    /// The agent.
    pub key: AgentKey,
    /// The session that would hold it.
    pub session: SessionId,
    /// The gateway that it is on.
    pub gateway: GatewayId,
    /// That gateway's life.
    pub incarnation: Incarnation,
    /// Now. The claim's number is at least this many microseconds, so that claims made after
    /// ownership was lost are above those before.
    pub now: Timestamp,
    /// A holder that has been judged dead: it no longer stands in the way.
    pub displace: Option<SessionId>,
    /// Epoch of the agent's partition of the log, zero if it is not known: what was settled in another one
    /// may be lost with that log.
    pub epoch: u64,
}

/// Answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The session holds the agent, of which nothing was known.
    Granted {
        /// Number of the claim.
        claim: Claim,
    },
    /// The session holds the agent, which was known.
    Resumed {
        /// Number of the claim.
        claim: Claim,
        /// Sequence number up to which every message was settled, if one was, and in the epoch of the claim
        /// as far as both are known.
        settled: Option<u64>,
        /// The session before.
        previous: SessionId,
    },
    /// Another session holds it; nothing was changed.
    Contested {
        /// Who.
        holder: Holder,
    },
}

/// Progress of a session: everything up to `sequence_num` was a heartbeat or is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The agent.
    pub key: AgentKey,
    /// The session that says so.
    pub session: SessionId,
    /// The sequence number; `None` says only that the agent was heard.
    pub sequence_num: Option<u64>,
    /// Epoch of the agent's partition of the log that has those messages, zero if it is not known.
    pub epoch: u64,
    /// When the agent was heard last.
    pub seen: Timestamp,
}

/// What is known of an agent's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Who holds it now; `None` after a release.
    pub holder: Option<Holder>,
    /// Settled sequence number.
    pub settled: Option<u64>,
    /// When the agent was heard last.
    pub seen: Timestamp,
}

/// Ownership. Each call is atomic for each agent; calls for many agents are no transaction.
#[async_trait]
pub trait Ownership: Send + Sync {
    /// Claims an agent for a session. The same session may claim again. What was settled is told and then
    /// forgotten: nothing is until the new session settles something. Otherwise the number of a life of the
    /// agent that is over could fit a later one by chance.
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, EngineError>;

    /// Records progress, for each only if that session holds the agent. Returns those that do not:
    /// their gateway claims again or closes.
    async fn settle(&self, settled: Vec<Settled>) -> Result<Vec<(AgentKey, SessionId)>, EngineError>;

    /// The session holds the agent no longer; what is settled stays known. No effect if it did not
    /// hold it.
    async fn release(&self, key: &AgentKey, session: SessionId) -> Result<(), EngineError>;

    /// What is known of these agents, in their order.
    async fn look_up(&self, keys: &[AgentKey]) -> Result<Vec<Option<Owned>>, EngineError>;
}
