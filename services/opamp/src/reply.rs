//! What the server says to an agent, as ServerToAgent messages.

use std::time::Duration;

use muster_domain::capabilities::ServerCapabilities;
use muster_domain::ids::InstanceUid;
use muster_proto::opamp::server_error_response::Details;
use muster_proto::opamp::{
    RetryInfo, ServerErrorResponse, ServerErrorResponseType, ServerToAgent, ServerToAgentFlags,
};

/// Longest reason put into an error_response, in bytes.
const MAX_REASON: usize = 500;

/// The plain answer to a message. `first` adds the server's capabilities; `full_state` asks for a
/// full report (ServerToAgentFlags.ReportFullState).
pub fn answer(uid: InstanceUid, first: bool, full_state: bool) -> ServerToAgent {
    ServerToAgent {
        instance_uid: uid.as_bytes().to_vec(),
        capabilities: if first { ServerCapabilities::PRESENT.0 } else { 0 },
        flags: if full_state { ServerToAgentFlags::ReportFullState as u64 } else { 0 },
        ..ServerToAgent::default()
    }
}

/// Refuses a message. The uid is echoed as far as there is one.
pub fn bad_request(uid: Option<InstanceUid>, reason: &str) -> ServerToAgent {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    error(uid, ServerErrorResponseType::BadRequest, &reason[..end], None)
}

/// Says that the message could not be taken now and may be sent again after this long.
pub fn unavailable(uid: InstanceUid, reason: &str, retry_after: Duration) -> ServerToAgent {
    let nanoseconds = u64::try_from(retry_after.as_nanos()).unwrap_or(u64::MAX);
    let details = Details::RetryInfo(RetryInfo { retry_after_nanoseconds: nanoseconds });
    error(Some(uid), ServerErrorResponseType::Unavailable, reason, Some(details))
}

fn error(
    uid: Option<InstanceUid>,
    kind: ServerErrorResponseType,
    reason: &str,
    details: Option<Details>,
) -> ServerToAgent {
    ServerToAgent {
        instance_uid: uid.map(|uid| uid.as_bytes().to_vec()).unwrap_or_default(),
        error_response: Some(ServerErrorResponse {
            r#type: kind.into(),
            error_message: reason.to_owned(),
            details,
        }),
        ..ServerToAgent::default()
    }
}
