//! Redis.

use std::ops::{Deref, DerefMut};

use tempfile::TempDir;

use super::programs::Engine;
use super::server::{self, Launch, Probe, Server, exchange};
use crate::certificates::Certificates;
use crate::ports::free_ports;

/// Files of a server with TLS: its certificate, its key, the authority of clients.
type Tls = [String; 3];

/// What a Redis server is started with.
#[derive(Clone, Debug, Default)]
pub struct RedisBuilder {
    snapshots: bool,
    tls: Option<Tls>,
}

impl RedisBuilder {
    /// Keeps its data over restarts as of the last [`snapshot`](Redis::snapshot), which it also takes
    /// by itself now and then, and at the end in order.
    pub fn snapshots(mut self) -> Self {
        self.snapshots = true;
        self
    }

    /// Serves with TLS, too, and there asks clients for a certificate of the same authority.
    pub fn tls(mut self, certificates: &Certificates) -> Self {
        self.tls = Some(
            ["server.crt", "server.key", "ca.crt"].map(|name| certificates.path(name).display().to_string()),
        );
        self
    }

    /// Starts the server and waits until it is ready; panics if there is no redis-server.
    pub async fn start(self) -> Redis {
        server::start(async || {
            let directory = TempDir::new().expect("a temporary directory");
            let ports = free_ports(2);
            let (port, tls_port) = (ports[0], ports[1]);
            let secure = tls_port.to_string();
            let (data, number) = (directory.path().display().to_string(), port.to_string());
            let save = if self.snapshots { "60 1000" } else { "" };
            let mut options = vec![
                ("--port", number.as_str()),
                ("--bind", "127.0.0.1"),
                ("--dir", &data),
                ("--save", save),
                ("--appendonly", "no"),
            ];
            if let Some([cert, key, ca]) = &self.tls {
                options.extend([
                    ("--tls-port", secure.as_str()),
                    ("--tls-cert-file", cert),
                    ("--tls-key-file", key),
                    ("--tls-ca-cert-file", ca),
                    ("--tls-auth-clients", "yes"),
                ]);
            }
            let launch = Launch {
                program: Engine::Redis.program("redis-server"),
                arguments: options.iter().flat_map(|(name, value)| [name.into(), value.into()]).collect(),
                environment: Vec::new(),
                user: None,
                probe: Probe::Line { port, request: "PING\r\nQUIT\r\n", reply: "+PONG" },
                stop: "TERM",
                abort: "KILL",
            };
            Ok(Redis { server: Server::start(directory, launch).await?, port, tls_port })
        })
        .await
    }
}

/// A Redis server. See [`Server`] for what can be done to it.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    port: u16,
    tls_port: u16,
}

impl Redis {
    /// Starts a server that keeps nothing over restarts; panics if there is no redis-server.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server with other settings.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    /// Its address, such as `redis://127.0.0.1:12345`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its address with TLS, such as `rediss://127.0.0.1:12345`.
    pub fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.tls_port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Forgets everything.
    pub async fn flush(&self) {
        assert_eq!(self.command("FLUSHALL").await, "+OK\r\n");
    }

    /// Writes its data to disk, from where a restart reads it with [`snapshots`](RedisBuilder::snapshots).
    pub async fn snapshot(&self) {
        assert_eq!(self.command("SAVE").await, "+OK\r\n");
    }

    /// Runs a command of plain words, such as `INFO memory`, and returns the reply as it is on the wire.
    pub async fn command(&self, words: &str) -> String {
        let said = exchange(self.port, &format!("{words}\r\nQUIT\r\n")).await;
        let said = said.unwrap_or_else(|error| panic!("Redis does not answer {words}: {error}"));
        said.strip_suffix("+OK\r\n").unwrap_or(&said).to_owned()
    }
}

impl Deref for Redis {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Redis {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}
