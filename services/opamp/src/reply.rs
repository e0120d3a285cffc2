//! What the server says to an agent by itself: answers, and refusals with their reasons.

use std::time::Duration;

use bytes::Bytes;
use muster_domain::capabilities::ServerCapabilities;
use muster_domain::ids::InstanceUid;
use muster_proto::opamp::server_error_response::Details;
use muster_proto::opamp::{
    AgentIdentification, CustomCapabilities, RetryInfo, ServerErrorResponse, ServerErrorResponseType,
    ServerToAgent, ServerToAgentFlags,
};

use crate::frame;

/// Longest reason put into an error_response, in bytes.
const MAX_REASON: usize = 500;

/// One message to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The plain answer to a message, or a message that only asks.
    Answer {
        /// The agent.
        uid: InstanceUid,
        /// Whether the server introduces itself: its capabilities are added.
        first: bool,
        /// Whether a full report is asked for (ServerToAgentFlags.ReportFullState).
        full_state: bool,
        /// The instance_uid that the agent is to use from now on (AgentIdentification.new_instance_uid).
        /// The message itself still carries the one that the agent used: some clients drop others.
        new_uid: Option<InstanceUid>,
    },
    /// Asks for the list of available components (ServerToAgentFlags.ReportAvailableComponents).
    AskComponents {
        /// The agent.
        uid: InstanceUid,
    },
    /// The custom capabilities of the agent that the server takes part in.
    CustomCapabilities {
        /// The agent.
        uid: InstanceUid,
        /// Their names.
        capabilities: Vec<String>,
    },
    /// The message is refused (ServerErrorResponseType.BadRequest).
    BadRequest {
        /// The agent, as far as it is known.
        uid: Option<InstanceUid>,
        /// What is wrong, for the agent's operator.
        reason: String,
    },
    /// The message could not be taken now (ServerErrorResponseType.Unavailable).
    Unavailable {
        /// The agent.
        uid: InstanceUid,
        /// Why, for the agent's operator.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
}

impl Reply {
    /// The refusal of an agent that uses the instance_uid of another live one and does not take a new one.
    pub fn uid_refused(uid: InstanceUid) -> Self {
        let reason = format!(
            "instance_uid {uid} is refused: this agent was given another one and does not take it; configure one that no other agent uses"
        );
        Self::BadRequest { uid: Some(uid), reason }
    }

    /// The message is refused for this reason.
    pub fn refusal(uid: InstanceUid, reason: &str) -> Self {
        Self::BadRequest { uid: Some(uid), reason: reason.to_owned() }
    }

    /// The payload of the WebSocket message.
    pub fn frame(&self) -> Bytes {
        frame::encode(&self.message())
    }

    /// The message. An error_response stands alone in it (specification, "ServerErrorResponse").
    pub fn message(&self) -> ServerToAgent {
        match self {
            Self::Answer { uid, first, full_state, new_uid } => ServerToAgent {
                instance_uid: uid.as_bytes().to_vec(),
                capabilities: if *first { ServerCapabilities::PRESENT.0 } else { 0 },
                flags: if *full_state { ServerToAgentFlags::ReportFullState as u64 } else { 0 },
                agent_identification: new_uid
                    .map(|new_uid| AgentIdentification { new_instance_uid: new_uid.as_bytes().to_vec() }),
                ..ServerToAgent::default()
            },
            Self::AskComponents { uid } => ServerToAgent {
                instance_uid: uid.as_bytes().to_vec(),
                flags: ServerToAgentFlags::ReportAvailableComponents as u64,
                ..ServerToAgent::default()
            },
            Self::CustomCapabilities { uid, capabilities } => ServerToAgent {
                instance_uid: uid.as_bytes().to_vec(),
                custom_capabilities: Some(CustomCapabilities { capabilities: capabilities.clone() }),
                ..ServerToAgent::default()
            },
            Self::BadRequest { uid, reason } => {
                error(*uid, ServerErrorResponseType::BadRequest, reason, None)
            }
            Self::Unavailable { uid, reason, retry_after } => {
                let nanoseconds = u64::try_from(retry_after.as_nanos()).unwrap_or(u64::MAX);
                let details = Details::RetryInfo(RetryInfo { retry_after_nanoseconds: nanoseconds });
                error(Some(*uid), ServerErrorResponseType::Unavailable, reason, Some(details))
            }
        }
    }
}

fn error(
    uid: Option<InstanceUid>,
    kind: ServerErrorResponseType,
    reason: &str,
    details: Option<Details>,
) -> ServerToAgent {
    let end = reason.floor_char_boundary(MAX_REASON);
    ServerToAgent {
        instance_uid: uid.map(|uid| uid.as_bytes().to_vec()).unwrap_or_default(),
        error_response: Some(ServerErrorResponse {
            r#type: kind.into(),
            error_message: reason[..end].to_owned(),
            details,
        }),
        ..ServerToAgent::default()
    }
}
