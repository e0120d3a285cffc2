//! NATS, alone or as a cluster, with the configuration files of `deploy/nats`.

use std::ffi::OsString;
use std::ops::{Deref, DerefMut};

use serde_json::Value;
use tempfile::TempDir;

use super::programs::Engine;
use super::server::{self, Launch, NotReady, Probe, START, Server, http};
use crate::certificates::Certificates;
use crate::eventually::try_eventually;
use crate::ports::free_ports;

const ALONE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/nats/server.conf");
const CLUSTERED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/nats/nats.conf");

/// A NATS server with JetStream, which writes to disk before it acknowledges. See [`Server`] for what
/// can be done to it.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    port: u16,
    monitor_port: u16,
}

impl Nats {
    /// Starts a server that is in no cluster; panics if there is no nats-server.
    pub async fn start() -> Self {
        server::start(async || {
            let ports = free_ports(2);
            let (port, monitor_port) = (ports[0], ports[1]);
            Self::launch(ALONE, "nats", port, monitor_port, "/healthz", Vec::new()).await
        })
        .await
    }

    /// As [`start`](Self::start), with TLS: clients show a certificate of the same authority.
    pub async fn start_with_tls(certificates: &Certificates) -> Self {
        let file = |name| certificates.path(name).into_os_string();
        let arguments: Vec<OsString> = vec![
            "--tlsverify".into(),
            "--tlscert".into(),
            file("server.crt"),
            "--tlskey".into(),
            file("server.key"),
            "--tlscacert".into(),
            file("ca.crt"),
        ];
        server::start(async || {
            let ports = free_ports(2);
            let (port, monitor_port) = (ports[0], ports[1]);
            Self::launch_with(&arguments, ALONE, "nats", port, monitor_port, "/healthz", Vec::new()).await
        })
        .await
    }

    /// Its address for clients with TLS, such as `tls://127.0.0.1:12345`.
    pub fn tls_url(&self) -> String {
        format!("tls://127.0.0.1:{}", self.port)
    }

    /// Its address for clients, such as `nats://127.0.0.1:12345`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its port for clients.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its monitoring endpoint, without a path.
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor_port)
    }

    /// What its monitoring endpoint says, such as `/jsz`; or what went wrong.
    pub async fn monitor(&self, path: &str) -> Result<Value, String> {
        let body = http(self.monitor_port, path).await?;
        serde_json::from_str(&body).map_err(|error| format!("{path}: {error}: {body}"))
    }

    async fn launch(
        config: &str,
        name: &str,
        port: u16,
        monitor_port: u16,
        path: &'static str,
        more: Vec<(&'static str, String)>,
    ) -> Result<Self, NotReady> {
        Self::launch_with(&[], config, name, port, monitor_port, path, more).await
    }

    async fn launch_with(
        arguments: &[OsString],
        config: &str,
        name: &str,
        port: u16,
        monitor_port: u16,
        path: &'static str,
        more: Vec<(&'static str, String)>,
    ) -> Result<Self, NotReady> {
        let directory = TempDir::new().expect("a temporary directory");
        let mut environment = vec![
            ("NATS_NAME", name.to_owned()),
            ("NATS_HOST", "127.0.0.1".to_owned()),
            ("NATS_PORT", port.to_string()),
            ("NATS_MONITOR_PORT", monitor_port.to_string()),
            ("NATS_STORE_DIR", directory.path().join("data").display().to_string()),
        ];
        environment.extend(more);
        let launch = Launch {
            program: Engine::Nats.program("nats-server"),
            arguments: [&["--config".into(), config.into()], arguments].concat(),
            environment,
            user: None,
            probe: Probe::Http { port: monitor_port, path },
            stop: "TERM",
            abort: "KILL",
        };
        Ok(Self { server: Server::start(directory, launch).await?, port, monitor_port })
    }
}

impl Deref for Nats {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Nats {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// NATS servers in a cluster, so that streams can have replicas.
#[derive(Debug)]
pub struct NatsCluster {
    servers: Vec<Nats>,
}

impl NatsCluster {
    /// Starts a cluster and waits until it is [`ready`](Self::ready); panics if there is no nats-server.
    pub async fn start(size: usize) -> Self {
        let cluster = server::start(async || {
            let ports: Vec<[u16; 3]> = free_ports(3 * size).as_chunks().0.to_vec();
            let routes: Vec<String> =
                ports.iter().map(|[_, _, cluster]| format!("\"nats://127.0.0.1:{cluster}\"")).collect();
            let routes = format!("[{}]", routes.join(", "));
            let mut servers = Vec::new();
            for (number, [port, monitor, cluster]) in (1..).zip(ports) {
                let more = vec![("NATS_CLUSTER_PORT", cluster.to_string()), ("NATS_ROUTES", routes.clone())];
                // Not the whole of its health, which is that of the cluster, too.
                let path = "/healthz?js-enabled-only=true";
                let name = format!("nats-{number}");
                servers.push(Nats::launch(CLUSTERED, &name, port, monitor, path, more).await?);
            }
            Ok(Self { servers })
        })
        .await;
        cluster.ready().await;
        cluster
    }

    /// The addresses of all servers for clients, separated by commas.
    pub fn url(&self) -> String {
        self.servers.iter().map(Nats::url).collect::<Vec<_>>().join(",")
    }

    /// Every server.
    pub fn servers(&self) -> &[Nats] {
        &self.servers
    }

    /// Every server, to kill and restart. A restart waits until the server answers, and not until the
    /// cluster is [`ready`](Self::ready).
    pub fn servers_mut(&mut self) -> &mut [Nats] {
        &mut self.servers
    }

    /// The number in [`servers`](Self::servers) of the one that leads the cluster's metadata, if one does.
    pub async fn leader(&self) -> Option<usize> {
        for server in &self.servers {
            if let Ok(state) = server.monitor("/jsz").await
                && let Some(leader) = state["meta_cluster"]["leader"].as_str()
            {
                return leader.strip_prefix("nats-")?.parse::<usize>().ok()?.checked_sub(1);
            }
        }
        None
    }

    /// Waits until every server is healthy, has routes to all others and sees a leader.
    pub async fn ready(&self) {
        for server in &self.servers {
            if let Err(reason) = try_eventually(START, async || self.member(server).await).await {
                panic!("the cluster is not ready within {START:?}: {reason}\n{}", server.logs().join("\n"));
            }
        }
    }

    /// Whether a server is a full member of the cluster.
    async fn member(&self, server: &Nats) -> Result<(), String> {
        let size = self.servers.len();
        let routes = server.monitor("/routez").await?;
        let mut others: Vec<&str> = routes["routes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|r| r["remote_id"].as_str())
            .collect();
        others.sort_unstable();
        others.dedup();
        let meta = &server.monitor("/jsz").await?["meta_cluster"];
        if others.len() + 1 != size || meta["leader"].is_null() || meta["cluster_size"] != size {
            return Err(format!("routes to {others:?}, {meta}"));
        }
        server.monitor("/healthz").await.map(drop)
    }
}
