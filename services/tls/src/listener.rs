//! Listeners: connections come out of them when they are ready to be read, with TLS or without.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::Stream;

/// Handshakes at once; further connections wait in the system's queue.
const MAX_HANDSHAKES: usize = 4096;
/// Longest handshake, and longest one while more than half of the places are taken.
const DEADLINE: Duration = Duration::from_secs(10);
const CROWDED_DEADLINE: Duration = Duration::from_secs(3);

/// Whether clients show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked.
    NotAsked,
    /// They may: one that is shown must be good.
    Optional,
    /// They must.
    Required,
}

/// What a listener does beside encrypting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Its name in metrics and logs.
    pub name: &'static str,
    /// What it speaks inside TLS, in the order that it prefers (ALPN).
    pub protocols: &'static [&'static str],
    /// Whether clients show a certificate.
    pub clients: ClientCertificates,
}

/// What is counted of TLS.
#[derive(Debug, Clone)]
pub struct Metrics {
    handshakes: IntCounterVec,
    pub(crate) reloads: IntCounterVec,
    pub(crate) usable: IntGauge,
    pub(crate) expires: IntGauge,
}

impl Metrics {
    /// Makes them part of a registry.
    ///
    /// # Errors
    /// If they are part of it already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name, help, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            handshakes: counters(
                "muster_tls_handshakes_total",
                "TLS handshakes by listener and result: full, resumed, failed, timed_out.",
                &["listener", "result"],
            )?,
            reloads: counters(
                "muster_tls_reloads_total",
                "Changes of the files of TLS: ok, or failed where the old certificate was kept.",
                &["result"],
            )?,
            usable: IntGauge::new(
                "muster_tls_files_usable",
                "1 while the files of TLS can be used as they are; 0 while an older certificate is in use.",
            )?,
            expires: IntGauge::new(
                "muster_tls_certificate_expires_timestamp_seconds",
                "When the certificate in use expires, in seconds since 1970.",
            )?,
        };
        registry.register(Box::new(metrics.handshakes.clone()))?;
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.usable.clone()))?;
        registry.register(Box::new(metrics.expires.clone()))?;
        Ok(metrics)
    }
}

/// Makes TLS of connections, with what the files hold now.
#[derive(Debug)]
pub(crate) struct Acceptor {
    pub(crate) config: ArcSwap<ServerConfig>,
    pub(crate) options: Options,
    metrics: Metrics,
}

impl Acceptor {
    pub(crate) fn new(config: Arc<ServerConfig>, options: Options, metrics: Metrics) -> Self {
        Self { config: ArcSwap::new(config), options, metrics }
    }

    async fn accept(&self, stream: TcpStream, peer: SocketAddr, deadline: Duration) -> Option<Stream> {
        let acceptor = TlsAcceptor::from(self.config.load_full());
        let count = |result| self.metrics.handshakes.with_label_values(&[self.options.name, result]).inc();
        match tokio::time::timeout(deadline, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let is_resumed = stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
                count(if is_resumed { "resumed" } else { "full" });
                Some(Stream::Tls(Box::new(stream.into())))
            }
            Ok(Err(error)) => {
                count("failed");
                let listener = self.options.name;
                debug!(listener, remote_addr = %peer, %error, "a TLS handshake failed");
                None
            }
            Err(_) => {
                count("timed_out");
                debug!(listener = self.options.name, remote_addr = %peer, "a TLS handshake took too long");
                None
            }
        }
    }
}

/// A listener with TLS or without.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Acceptor>>,
    handshakes: JoinSet<Option<(Stream, SocketAddr)>>,
}

impl From<TcpListener> for Listener {
    /// Without TLS.
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None, handshakes: JoinSet::new() }
    }
}

impl Listener {
    pub(crate) fn tls(tcp: TcpListener, acceptor: Arc<Acceptor>) -> Self {
        Self { tcp, tls: Some(acceptor), handshakes: JoinSet::new() }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next connection, its TLS handshake done. Many handshakes go on at once, and one that takes too
    /// long or fails costs the others nothing. Cancelling the wait loses nothing; dropping the listener ends
    /// the handshakes.
    ///
    /// # Errors
    /// If the system has no connection to give, as when the process has no file descriptor left.
    pub async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        loop {
            let has_place = self.handshakes.len() < MAX_HANDSHAKES;
            tokio::select! {
                biased;
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(accepted)) = done {
                        return Ok(accepted);
                    }
                }
                accepted = self.tcp.accept(), if has_place => {
                    let (stream, peer) = accepted?;
                    // Small messages go at once. A client that is gone is found when it is read from.
                    let _ = stream.set_nodelay(true);
                    let Some(acceptor) = self.tls.clone() else { return Ok((Stream::Plain(stream), peer)) };
                    let is_crowded = self.handshakes.len() > MAX_HANDSHAKES / 2;
                    let deadline = if is_crowded { CROWDED_DEADLINE } else { DEADLINE };
                    self.handshakes.spawn(async move {
                        acceptor.accept(stream, peer, deadline).await.map(|stream| (stream, peer))
                    });
                }
            }
        }
    }
}
