//! The agents' endpoint: `/v1/opamp`, WebSocket upgrades.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Shared, connection, upstream};

/// Path of the OpAMP endpoint (specification, "WebSocket Transport").
const PATH: &str = "/v1/opamp";

/// Accepts connections until `stop`.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route(PATH, get(upgrade).post(plain_http))
        .with_state(shared)
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn upgrade(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    upgrade: WebSocketUpgrade,
) -> Response {
    // Refused before the upgrade: a connection that is accepted and then closed is tried again at once.
    let Ok(place) = Arc::clone(&shared.connections).try_acquire_owned() else {
        shared.metrics.refused_connections.inc();
        let seconds = upstream::retry_after().as_secs().to_string();
        let reason = "the gateway carries as many connections as it may (server.websocket.max_connections)\n";
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, seconds)], reason).into_response();
    };
    let max_message_size = shared.settings.max_message_size;
    upgrade
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_message_size(max_message_size)
        .max_frame_size(max_message_size)
        .on_upgrade(move |socket| {
            let tracker = shared.tracker.clone();
            tracker.track_future(async move {
                connection::serve(shared, socket, peer).await;
                drop(place);
            })
        })
}

async fn plain_http() -> Response {
    let reason = "plain HTTP polling is not available yet: connect with a WebSocket to the same address\n";
    (StatusCode::NOT_IMPLEMENTED, reason).into_response()
}
