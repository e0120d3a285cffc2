//! What a request is answered, as HTTP.

use axum::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use muster_domain::ids::InstanceUid;
use muster_opamp::connection::NotNow;
use muster_opamp::poll::Said;
use muster_opamp::reply::Reply;
use muster_proto::Message;
use muster_proto::encoding::{WireType, encode_key, encode_varint};
use muster_proto::opamp::ServerToAgent;

use crate::polling::PROTOBUF;
use crate::polling::body::Unread;
use crate::{Shared, upstream};

/// ServerToAgent.remote_config.
const REMOTE_CONFIG: u32 = 3;

/// What became of a request, as metrics name it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Result(pub(crate) &'static str);

/// What a request is answered.
pub(crate) struct Answer {
    status: StatusCode,
    reply: Option<Bytes>,
    /// For people, where there is no reply.
    text: String,
    retry_after: Option<u64>,
    result: &'static str,
}

impl Answer {
    /// A message. `remote_config`, an encoded AgentRemoteConfig, is added to it.
    pub(crate) fn message(said: &Said, remote_config: Option<&Bytes>, result: &'static str) -> Self {
        Self {
            status: StatusCode::OK,
            reply: Some(encode(&said.message(), remote_config)),
            text: String::new(),
            retry_after: None,
            result,
        }
    }

    /// The message cannot be taken (specification, "Bad Request").
    pub(crate) fn bad(status: StatusCode, uid: Option<InstanceUid>, reason: String) -> Self {
        Self { status, ..Self::message(&Reply::BadRequest { uid, reason }.into(), None, "bad_request") }
    }

    /// Not now: the client comes again (specification, "Throttling").
    pub(crate) fn unavailable(uid: InstanceUid, not_now: NotNow, result: &'static str) -> Self {
        let NotNow { reason, retry_after } = not_now;
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            retry_after: Some(retry_after.as_secs()),
            ..Self::message(&Reply::Unavailable { uid, reason, retry_after }.into(), None, result)
        }
    }

    /// The gateway works on as many requests as it may.
    pub(crate) fn shed(shared: &Shared) -> Self {
        Self {
            retry_after: Some(upstream::retry_after(shared).as_secs()),
            ..Self::text(StatusCode::SERVICE_UNAVAILABLE, "shed", "too many requests at once\n".to_owned())
        }
    }

    /// The body was not read.
    pub(crate) fn unread(shared: &Shared, error: &Unread) -> Self {
        let text = format!("{error}\n");
        match error {
            Unread::TooLarge(_) => Self::text(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text),
            Unread::Slow => Self::text(StatusCode::REQUEST_TIMEOUT, "slow", text),
            Unread::NoRoom => Self { text, ..Self::shed(shared) },
            Unread::Malformed(_) => Self::bad(StatusCode::BAD_REQUEST, None, error.to_string()),
        }
    }

    fn text(status: StatusCode, result: &'static str, text: String) -> Self {
        Self { status, reply: None, text, retry_after: None, result }
    }

    /// Whether the agent is sent a message of the protocol.
    pub(crate) fn is_message(&self) -> bool {
        self.reply.is_some()
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = match self.reply {
            Some(reply) => ([(CONTENT_TYPE, PROTOBUF)], reply).into_response(),
            None => self.text.into_response(),
        };
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::REQUEST_TIMEOUT {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(Result(self.result));
        response
    }
}

/// Says that the endpoint is there, to a client that asks before it sends.
pub(crate) async fn probe() -> Response {
    ([(ALLOW, "GET, HEAD, POST")], StatusCode::OK).into_response()
}

fn encode(message: &ServerToAgent, remote_config: Option<&Bytes>) -> Bytes {
    let Some(remote_config) = remote_config else { return message.encode_to_vec().into() };
    // Fields may come in any order: the offer's bytes, shared between agents, are copied once and not decoded.
    let mut bytes = BytesMut::with_capacity(message.encoded_len() + remote_config.len() + 16);
    // BytesMut grows as needed, so encoding cannot run out of room.
    let _ = message.encode(&mut bytes);
    encode_key(REMOTE_CONFIG, WireType::LengthDelimited, &mut bytes);
    encode_varint(remote_config.len() as u64, &mut bytes);
    bytes.put_slice(remote_config);
    bytes.freeze()
}

/// How long the body of an answer gets with an offer added.
pub(crate) fn length(message: usize, remote_config: &Bytes) -> usize {
    message + remote_config.len() + 16
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_proto::opamp::{AgentConfigMap, AgentRemoteConfig};
    use uuid::Uuid;

    use super::*;

    const UID: InstanceUid = InstanceUid(Uuid::from_u128(7));

    #[test]
    fn an_offer_is_added_to_the_message() {
        let remote_config =
            AgentRemoteConfig { config: Some(AgentConfigMap::default()), config_hash: vec![1, 2] };
        let message = Reply::Answer { uid: UID, first: true, full_state: true, new_uid: None }.message();
        let offer = Bytes::from(remote_config.encode_to_vec());
        let bytes = encode(&message, Some(&offer));
        assert!(bytes.len() <= length(message.encoded_len(), &offer));
        let expected = ServerToAgent { remote_config: Some(remote_config), ..message };
        assert_eq!(ServerToAgent::decode(bytes), Ok(expected));
    }

    #[test]
    fn not_now_says_when() {
        let not_now =
            NotNow { reason: "the log is away".to_owned(), retry_after: Duration::from_millis(31_500) };
        let response = Answer::unavailable(UID, not_now, "unavailable").into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "31");
        assert_eq!(response.headers()["content-type"], "application/x-protobuf");
    }
}
