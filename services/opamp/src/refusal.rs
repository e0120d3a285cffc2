//! Why something is not done for an agent.

use std::time::Duration;

use muster_domain::ids::InstanceUid;

use crate::connection::Output;
use crate::reply::Reply;

/// Why an offer may not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// It is for a session that does not speak for the agent (any more).
    SessionGone,
    /// The session was sent an offer of a later intent revision.
    Superseded,
}

impl Stale {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionGone => "session_gone",
            Self::Superseded => "superseded",
        }
    }
}

/// Something that could not be done now, and when the agent should try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotNow {
    /// For the agent's operator.
    pub reason: String,
    /// For the agent.
    pub retry_after: Duration,
}

impl NotNow {
    pub(crate) fn to(&self, uid: InstanceUid) -> Output {
        Output::Send(Reply::Unavailable { uid, reason: self.reason.clone(), retry_after: self.retry_after })
    }
}
