//! Accepts connections and speaks HTTP on them, with a deadline for whatever a client may put off.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use muster_tls::{Listener, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::Shared;

/// The first request's head has to be there after this long.
const FIRST_HEAD: Duration = Duration::from_secs(10);
/// Any later one: clients that poll use a connection again after 30 s and more.
const NEXT_HEAD: Duration = Duration::from_secs(75);
/// How long requests may take to be answered when the listener stops.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Connections that are no WebSocket (yet), beside as many as there may be of these.
const MORE_STREAMS: usize = 1024;
/// Pause after an accept that failed, as when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` until `stop`, then answers what was asked and returns.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    mut listener: Listener,
    router: Router,
    stop: CancellationToken,
) {
    let service = TowerToHyperService::new(router);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(NEXT_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(shared.settings.ping_every)
        .keep_alive_timeout(shared.settings.silent_after);
    let streams = Arc::new(Semaphore::new(shared.settings.max_connections.saturating_add(MORE_STREAMS)));
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match Arc::clone(&streams).try_acquire_owned() {
                Ok(place) => {
                    let serving = one(builder.clone(), service.clone(), (stream, peer), stop.clone(), place);
                    shared.spawn(&tracker, serving);
                }
                // Without a place it cannot even be told why.
                Err(_) => shared.refused("streams"),
            },
            Err(error) => {
                shared.refused("accept_failed");
                if let Some(more) = shared.outages.accept.tell((shared.engines.clock)()) {
                    warn!(%error, more, "a connection could not be accepted; limits of open files are a usual cause");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(STOP_DEADLINE, tracker.wait()).await.is_err() {
        debug!(open = tracker.len(), "requests were not answered in time");
    }
}

/// Serves one connection: until it is upgraded, until the client has nothing more to ask, or until a
/// deadline passes.
async fn one(
    builder: auto::Builder<TokioExecutor>,
    service: TowerToHyperService<Router>,
    (stream, peer): (Stream, SocketAddr),
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let asked = Arc::new(AtomicBool::new(false));
    let has_asked = Arc::clone(&asked);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        service.call(request)
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let first = tokio::time::sleep(FIRST_HEAD);
    tokio::pin!(first);
    let (mut is_first, mut is_stopping) = (true, false);
    let end = loop {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut first, if is_first => {
                is_first = false;
                if !has_asked.load(Ordering::Relaxed) {
                    break Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
            }
            end = connection.as_mut() => break end,
        }
    };
    if let Err(error) = end {
        debug!(error, remote_addr = %peer, "a client's connection ended");
    }
}
