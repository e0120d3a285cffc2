//! The agents' endpoint: WebSocket upgrades, and requests of agents that poll.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{
    CONNECTION, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router, middleware};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use muster_domain::ids::AgentKey;
use muster_tls::{Listener, Stream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::access::Pass;
use crate::admission::Refusal;
use crate::socket::Socket;
use crate::{Shared, accept, access, connection, polling, upstream};

/// Name of the header in which clients say who they are (specification, "OpAMP-Instance-UID").
pub(crate) const INSTANCE_UID: &str = "opamp-instance-uid";

/// Serves the endpoint until `stop`.
pub(crate) async fn serve(shared: &Arc<Shared>, listener: Listener, stop: CancellationToken) {
    let route = get(upgrade).head(polling::probe).merge(polling::route(shared));
    let router = Router::new().route(&shared.settings.path, route).with_state(Arc::clone(shared));
    let router = router.layer(middleware::from_fn_with_state(Arc::clone(shared), access::stand));
    accept::serve(shared, listener, router, stop).await;
}

/// Refuses a request before it costs anything, and says when to come back.
fn refuse(shared: &Shared, refusal: Refusal) -> Response {
    shared.refused(refusal.name());
    let seconds = upstream::retry_after(shared).as_secs().to_string();
    let (status, reason) = refusal.answer();
    (status, [(RETRY_AFTER, seconds)], reason).into_response()
}

async fn upgrade(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(pass): Extension<Pass>,
    mut request: Request,
) -> Response {
    let accept = match handshake(request.headers()) {
        Ok(accept) => accept,
        Err(refusal) => return *refusal,
    };
    if shared.is_draining() {
        return refuse(&shared, Refusal::Draining);
    }
    let tenant = pass.tenant.clone();
    let uid = request.headers().get(INSTANCE_UID).and_then(|uid| uid.to_str().ok()?.parse().ok());
    let key = uid.map(|uid| AgentKey { tenant: tenant.clone(), uid });
    let place = match shared.admission.admit(&shared, &tenant, key).await {
        Ok(place) => place,
        Err(refusal) => return refuse(&shared, refusal),
    };
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "WebSockets need HTTP/1.1\n").into_response();
    };
    let serving = Arc::clone(&shared);
    shared.spawn(&shared.tracker, async move {
        let shared = serving;
        if let Some(socket) = take_over(upgrade, shared.settings.max_message_size).await {
            connection::serve(shared, socket, peer, pass).await;
        }
        drop(place);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// Checks the client's handshake (RFC 6455, section 4.2.1) and gives the key that accepts it.
fn handshake(headers: &HeaderMap) -> Result<HeaderValue, Box<Response>> {
    let has = |name: HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(wanted)))
    };
    let refuse = |response: Response| Err(Box::new(response));
    if !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") {
        let text = "this is an OpAMP endpoint: connect with a WebSocket, or POST application/x-protobuf\n";
        return refuse((StatusCode::UPGRADE_REQUIRED, [(UPGRADE, "websocket")], text).into_response());
    }
    if !has(SEC_WEBSOCKET_VERSION, "13") {
        let text = "only version 13 of the WebSocket protocol is spoken here\n";
        return refuse((StatusCode::UPGRADE_REQUIRED, [(SEC_WEBSOCKET_VERSION, "13")], text).into_response());
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let accept = key.and_then(|key| HeaderValue::from_str(&key).ok());
    match accept {
        Some(accept) => Ok(accept),
        None => refuse((StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing\n").into_response()),
    }
}

/// The bare stream of an upgraded connection: nothing of HTTP stays behind.
async fn take_over(upgrade: OnUpgrade, max_message: usize) -> Option<Socket<Stream>> {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            debug!(%error, "a client went away during the upgrade");
            return None;
        }
    };
    match downcast::<TokioIo<Stream>>(upgraded) {
        Ok(parts) => Some(Socket::new(parts.io.into_inner(), &parts.read_buf, max_message)),
        Err(_) => {
            error!("a connection is given up: the listener serves streams of another kind");
            None
        }
    }
}
