//! The listener as the web framework wants it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use muster_tls::{Listener, Stream};
use tracing::warn;

/// Pause after an accept that failed, as when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A listener that goes on when a connection cannot be accepted.
pub(crate) struct Accepting(pub(crate) Listener);

/// Whose connection a request came on.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

impl Connected<IncomingStream<'_, Accepting>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Accepting>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl axum::serve::Listener for Accepting {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    warn!(%error, "a connection could not be accepted; limits of open files are a usual cause");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}
