//! OpAMP over plain HTTP: one request, one answer, on whatever gateway (specification, "Plain HTTP
//! Transport").
//!
//! The session is kept in ownership, where no gateway holds it. A request that takes effect is carried out in
//! a task of its own: a client that gives up waiting does not undo half of it.

mod answer;
mod body;
mod mail;
mod tap;
mod turn;
mod waiting;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, HttpBody as _};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use muster_domain::ids::InstanceUid;
use muster_opamp::head::Head;
use muster_opamp::poll;
use tokio::sync::oneshot;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_http::decompression::RequestDecompressionLayer;
use tracing::debug;

use crate::Shared;
use crate::access::Pass;
use crate::listener::INSTANCE_UID;
use crate::polling::answer::Answer;
pub(crate) use crate::polling::answer::probe;
pub(crate) use crate::polling::body::Room;
use crate::polling::body::Unread;
use crate::polling::tap::Tap;
pub(crate) use crate::polling::waiting::Waiting;

/// The body of a request and of an answer.
const PROTOBUF: &str = "application/x-protobuf";
/// An answer of nothing but an instance_uid would only grow by compression.
const COMPRESSED_FROM: u64 = 19;

/// Answers agents that poll.
pub(crate) fn route(shared: &Arc<Shared>) -> MethodRouter<Arc<Shared>> {
    post(take)
        .route_layer(RequestDecompressionLayer::new())
        .route_layer(middleware::from_fn(only_protobuf))
        .route_layer(CompressionLayer::new().compress_when(SizeAbove::new(COMPRESSED_FROM)))
        .route_layer(middleware::from_fn_with_state(Arc::clone(shared), bounded))
}

/// Bounds what comes over the network, and counts requests by what became of them.
async fn bounded(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let limit = shared.settings.max_message_size;
    let is_expecting = request.headers().contains_key(EXPECT);
    let (parts, body) = request.into_parts();
    let is_too_long = body.size_hint().lower() > limit as u64;
    let tap = Tap::new(body, limit);
    let mut response = if is_too_long {
        Answer::unread(&shared, &Unread::TooLarge(limit)).into_response()
    } else {
        next.run(Request::from_parts(parts, Body::new(tap.clone()))).await
    };
    // One that waits for our word before it sends hears the answer instead.
    let is_sending = !response.status().is_success() && response.status() != StatusCode::REQUEST_TIMEOUT;
    if is_sending && !is_expecting {
        tap.drain(limit, shared.settings.body_timeout).await;
    }
    let result = match response.extensions().get::<answer::Result>() {
        Some(result) => result.0,
        None if response.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported",
        None => "failed",
    };
    shared.metrics.http_requests.with_label_values(&[result]).inc();
    if shared.is_draining() {
        // It is answered, and the next one goes elsewhere.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Refuses bodies of another type, and calls the encoding by its usual name.
async fn only_protobuf(mut request: Request, next: Next) -> Response {
    let content_type = request.headers().get(CONTENT_TYPE);
    if !content_type.is_some_and(|given| given.as_bytes().eq_ignore_ascii_case(PROTOBUF.as_bytes())) {
        let text = format!("a request's Content-Type must be exactly {PROTOBUF}\n");
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response();
    }
    let headers = request.headers_mut();
    // Content codings are no matter of capitals (RFC 9110, section 8.4.1).
    let encoding = headers.get(CONTENT_ENCODING).map(|given| given.as_bytes().to_ascii_lowercase());
    match encoding.as_deref() {
        Some(b"gzip" | b"x-gzip") => {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Some(b"identity" | b"") => {
            headers.remove(CONTENT_ENCODING);
        }
        _ => {}
    }
    next.run(request).await
}

/// Takes one request.
async fn take(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(pass): Extension<Pass>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let held = match body::read(&shared, body).await {
        Ok(held) => held,
        Err(error) => {
            debug!(remote_addr = %peer, %error, "a request's body was not read");
            return Answer::unread(&shared, &error).into_response();
        }
    };
    let message = held.message.clone();
    let head = match poll::head(&message) {
        Ok(head) => head,
        Err(error) => return Answer::bad(StatusCode::OK, error.uid, error.reason).into_response(),
    };
    if let Err(reason) = agrees(&parts.headers, &head) {
        return Answer::bad(StatusCode::BAD_REQUEST, Some(head.uid), reason).into_response();
    }
    shared.metrics.received.inc();
    let Ok(place) = Arc::clone(&shared.polls).try_acquire_owned() else {
        return Answer::shed(&shared).into_response();
    };
    let (answer, answered) = oneshot::channel();
    let serving = Arc::clone(&shared);
    shared.spawn(&shared.tracker, async move {
        // A client that went away needs no answer.
        let _ = answer.send(turn::take(&serving, (peer, pass), head, message).await);
        drop((held, place));
    });
    match answered.await {
        Ok(answer) => {
            if answer.is_message() {
                shared.metrics.sent.inc();
            }
            answer.into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Checks the header against the body.
fn agrees(headers: &HeaderMap, head: &Head) -> Result<(), String> {
    let Some(given) = headers.get(INSTANCE_UID) else { return Ok(()) };
    let given = given.to_str().unwrap_or_default();
    let uid = given.parse::<InstanceUid>().map_err(|error| format!("header OpAMP-Instance-UID: {error}"))?;
    if uid != head.uid {
        return Err(format!("header OpAMP-Instance-UID says {uid}, but the message is of {}", head.uid));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use muster_domain::capabilities::AgentCapabilities;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_header_agrees_with_the_body() {
        let uid = InstanceUid(Uuid::from_u128(7));
        let head = Head {
            uid,
            sequence_num: 0,
            capabilities: AgentCapabilities::default(),
            kinds: 0,
            digest: 0,
            requests_uid: false,
            has_nul: false,
        };
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(INSTANCE_UID, HeaderValue::from_str(value).unwrap());
            agrees(&headers, &head)
        };
        assert_eq!(agrees(&HeaderMap::new(), &head), Ok(()));
        assert_eq!(check(&uid.to_string()), Ok(()));
        assert_eq!(check(&uid.to_string().to_uppercase()), Ok(()));
        assert!(check(&Uuid::from_u128(8).to_string()).unwrap_err().contains("but the message is of"));
        assert!(check("agent-001").unwrap_err().contains("is not a UUID"));
        assert!(check("").is_err());
    }
}
